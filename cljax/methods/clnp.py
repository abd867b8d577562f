"""Continual learning via neural pruning: train all free units, keep the active ones, give back the rest."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from cljax import ownership, task_params
from cljax.methods.common import check_network
from cljax.methods.owned import Owned, check_statistics, owned
from cljax.methods.pruning import prune_within_margin
from cljax.numbers import is_list, real, several
from cljax.types import Array, Batch, Clock, Fold, Learner, Method, Network, Output, Phase, Search, Tree

THRESHOLDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0)
"""Multiples of a layer's mean activity, among which the pruning threshold is sought."""

PAIRS = "pairs of l1 and learning rate, such as [(1e-4, 0.05)]"


def clnp(
    network: Network,
    *,
    l1: float | Sequence[float] = 5e-5,
    margin: float = 0.01,
    thresholds: Sequence[float] = THRESHOLDS,
    candidates: Sequence[tuple[float | Sequence[float], float]] | None = None,
    fine_tune: float = 0.0,
    fine_tune_factor: float = 0.1,
) -> Method:
    r"""Continual learning via neural pruning (CLNP): train the free units, keep those that are active, free the rest.

    $$ \min_{W^{free}} \; \mathbb{E}\left[ -\log \mathrm{softmax}(z_t(x))_y \right] + \sum_l \alpha_l \|W^{free}_l\|_1,
    \qquad N^{act}_l \leftarrow N^{act}_l \cup \{ i \in N_l : \mathbb{E}_S |h_{l,i}| > \theta_l \} $$

    At its first visit a task claims every free unit, and the weights into them are drawn anew. It trains those weights
    and its head; never those into older units, and weights from new into old units stay 0 (interference). After
    training, units whose average activity over the task's training examples, in evaluation mode, is at most theta are
    given back, and the weights from them into kept units and into the head are set to 0. Then a task's logits are the
    same with all units open, and later tasks change no bit of them. A layer's theta is a common multiple k of the
    layer's mean activity: the largest k at which accuracy on the validation examples stays within the margin; dead
    units (theta = 0) go in any case. The penalty enters by its gradient, as weight decay does: the loss is the
    cross-entropy, in training and in validation. With batch normalisation, units of older tasks keep their frozen
    statistics in training too; and as it undoes the size of the kernel before it, L1 acts on what it scales and shifts
    by as well, where tasks share that: a feature's activity goes by it. When an older task is visited again, only its
    head is trained.

    Multi-head or single-head is up to the network. With a shared head (`per_task=()`), a task sees only its own units
    of the last hidden layer, and the head's bias is fixed, as it would be shared. Where a layer has no free units left,
    a task with its own head learns by transfer; with a shared head, and the last layer spent, it cannot learn: see
    `cljax.ownership.usage.diagnostics`.

    Args:
      network: with gates; batch normalisation with `frozen` flags, as in those of `cljax.networks`, may be shared.
      l1: alpha; a sequence gives each kernel its own, in the order of the wiring, the head last. The scale and
        the shift of a batch normalisation have that of the kernel before.
      margin: of validation accuracy, a fraction: how much pruning and the choice among candidates may cost.
      thresholds: the multiples k to try.
      candidates: pairs of l1 and learning rate to train with for each task (graceful forgetting). When all are trained,
        each that is within the margin of the best of them is pruned as far as it stays within the margin of that same
        best; the one that then leaves the fewest units in use is kept. None: no search.
      fine_tune: the part of a visit's epochs, after pruning, in which the new weights that survived are trained on, of
        several candidates those of the one kept; 0: none.
      fine_tune_factor: factor on the learning rate then.

    Returns:
      The method.

    Raises:
      ValueError: for a network without gates, or with statistics that cannot be frozen; for lists of the wrong length;
        for a number out of range.

    Example:
      >>> from cljax import networks
      >>> from cljax.methods import clnp
      >>> method = clnp(networks.mlp((8, 8, 1), 2, hidden=(16,)), fine_tune=0.25)
      >>> method.zero_forgetting, [(phase.name, phase.fraction) for phase in method.phases]
      (True, [('train', 0.75), ('fine-tune', 0.25)])

    Reference: Golkar, Kagan and Cho, Continual Learning via Neural Pruning, 2019, sections 2.1 and 2.2, algorithm 1
    (whose last lines should read the complement and the weights into *active* units).
    """
    check_network(network)
    layout = ownership.layout("clnp", network)
    check_statistics("clnp", network)
    kernels, wires = layout.kernels, layout.wires
    strengths = _strengths(l1, len(kernels))
    pairs = [] if candidates is None else several("clnp's candidates", candidates, PAIRS)
    options = [
        {
            **_strengths(alpha, len(kernels)),
            "learning_rate": real("clnp's candidate for the learning rate", rate, above=0),
        }
        for alpha, rate in (several("One of clnp's candidates", pair, PAIRS, least=2, most=2) for pair in pairs)
    ]
    if any(set(option) != {*strengths, "learning_rate"} for option in options):
        raise ValueError("clnp's candidates give l1 in another form than the option l1: a number, or one a kernel.")
    margin = real("clnp's margin", margin, least=0, most=1)
    fine_tune = real("clnp's fine_tune", fine_tune, least=0, below=1)
    fine_tune_factor = real("clnp's fine_tune_factor", fine_tune_factor, least=0)
    thresholds = several("clnp's thresholds", thresholds, "several numbers, such as (0.1, 1.0)")
    multiples = (0.0, *sorted(real("clnp's threshold", multiple, least=0) for multiple in thresholds))
    number = _penalised(network, layout)
    base = owned("clnp", network, layout, rule="pruning", numbers={**strengths, "margin": margin})

    def begin_task(learner: Learner, clock: Clock, fold: Fold, key: Array) -> Learner:
        owner, (params, collections) = learner.method_state.owner, network.init(key)
        fresh = lambda tree, drawn: ownership.reinitialize(tree, drawn, wires, owner, learner.rows)
        found = learner.collections
        if "batch_stats" in found:
            found = {**found, "batch_stats": fresh(found["batch_stats"], collections["batch_stats"])}
        claimed = Owned(ownership.claim(owner, clock.task, 1.0))
        return learner._replace(params=fresh(learner.params, params), collections=found, method_state=claimed)

    def adjust_gradients(gradients: Tree, learner: Learner, clock: Clock, batch: Batch) -> Tree:
        def shrink(path: str, gradient: Array, leaf: Array) -> Array:
            if path not in number:
                return gradient
            strength = learner.hyper["l1" if len(strengths) == 1 else f"l1_{number[path]}"]
            return gradient + strength.astype(leaf.dtype) * jnp.sign(leaf)

        return task_params.map_leaves(shrink, gradients, learner.params)

    def prune(learners: Learner, clock: Clock, fold: Fold, sound: Array) -> tuple[Learner, Array]:
        def look(learner: Learner, owner: ownership.Owner, inputs: Array) -> Output:
            shown = base.view(learner.params, learner.collections, Owned(owner), clock.task, clock.newest)
            return network.apply(*shown, inputs)

        owner, within = prune_within_margin(look, learners, clock, fold, sound, multiples)
        cut = lambda params, owner: ownership.cut_interference(params, wires, owner, clock.task)
        return learners._replace(params=jax.vmap(cut)(learners.params, owner), method_state=Owned(owner)), within

    def end_phase(learner: Learner, clock: Clock, fold: Fold, key: Array) -> Learner:
        def prune_alone(learner: Learner) -> Learner:
            learners, _ = prune(jax.tree.map(lambda leaf: leaf[None], learner), clock, fold, jnp.ones(1, jnp.bool_))
            return jax.tree.map(lambda leaf: leaf[0], learners)

        return lax.cond(clock.first & (clock.phase == 0), prune_alone, lambda learner: learner, learner)

    def choose(scores: Array, learners: Learner, clock: Clock, fold: Fold) -> tuple[Array, Learner]:
        near = scores >= jnp.max(scores) - learners.hyper["margin"] - 1e-6  # the rounding of accuracies
        first = lambda learners: prune(learners, clock, fold, scores >= 0)
        learners, within = lax.cond(clock.first, first, lambda learners: (learners, near), learners)
        owner = learners.method_state.owner
        used = sum(jnp.sum(leaf <= clock.newest, axis=-1, dtype=jnp.int32) for leaf in owner.values())
        return jnp.argmin(jnp.where(within, used, jnp.int32(2**31 - 1))).astype(jnp.int32), learners

    offered = {name: [option[name] for option in options] for name in options[0]} if options else {}
    offer = lambda learner, clock, scores: {name: jnp.asarray(values, jnp.float32) for name, values in offered.items()}
    tuning = Phase("fine-tune", fine_tune, lambda clock: jnp.float32(fine_tune_factor), searched=False)
    return base._replace(
        begin_task=begin_task,
        adjust_gradients=adjust_gradients,
        end_phase=base.end_phase if options else end_phase,
        phases=(Phase("train", 1 - fine_tune), tuning) if fine_tune else (Phase(),),
        search=Search(offer, choose, len(options)) if options else None,
    )


def _penalised(network: Network, layout: ownership.Layout) -> dict[str, int]:
    """The leaves that L1 acts on: kernels by their number, and of batch normalisations that tasks share the affines."""
    module = lambda path: path.rpartition("/")[0]
    normalised = {module(path).removeprefix("batch_stats/") for path in task_params.leaf_paths(network.shapes[1])}
    found, last = {}, 0
    for path in layout.wires:  # a norm's leaves follow the kernel before it
        if path in layout.kernels:
            found[path] = last = layout.kernels.index(path)
        elif module(path) in normalised and not task_params.ends_with(path, network.per_task):
            found[path] = last
    return found


def _strengths(l1: float | Sequence[float], kernels: int) -> dict[str, float]:
    """L1's strengths as hyper-parameters: one for all kernels, or one each."""
    if not is_list(l1):
        return {"l1": real("clnp's l1", l1, least=0)}
    if len(l1) != kernels:
        raise ValueError(f"clnp's l1 has {len(l1)} numbers for {kernels} kernels (the head's last): give one, or all.")
    return {f"l1_{index}": real("clnp's l1", value, least=0) for index, value in enumerate(l1)}
