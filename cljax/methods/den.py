"""Dynamically expandable networks: retrain what a task uses, add units where that is too little, split what drifted."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from cljax import ownership, proximal, task_params
from cljax.methods.common import check_network
from cljax.methods.owned import check_heads, owned
from cljax.numbers import real, whole
from cljax.ownership import masks
from cljax.ownership.usage import reused
from cljax.types import Array, Batch, Clock, Fold, Learner, Method, Network, Phase, Sizes, Tree

HEAD, RETRAIN, EXPAND, DUPLICATE = range(4)
PHASES = (
    Phase("head", 0.1, skip_first_task=True),
    Phase("retrain", 0.4),
    Phase("expand", 0.25, skip_first_task=True),
    Phase("duplicate", 0.25, skip_first_task=True),
)
"""The stages of a visit, and their parts of its epochs; the first task has the second alone."""


class Stamped(NamedTuple):
    """What the method keeps.

    Attributes:
      owner: the task that made each unit, its timestamp, `{gate: [C] int32}`.
      previous: shared parameters as they were before the newest task; None for leaves that belong to a task.
    """

    owner: ownership.Owner
    previous: Tree


def den(
    network: Network,
    *,
    initial: float = 0.5,
    expansion: int = 10,
    loss_threshold: float = 0.01,
    drift_threshold: float = 0.05,
    l1: float = 1e-5,
    group_lasso: float = 1e-3,
    drift_penalty: float = 0.5,
) -> Method:
    r"""Dynamically expandable networks (DEN): retrain what is relevant, expand where needed, split what drifted.

    The first task trains its units with an L1 penalty, for a sparse network. A first visit of task t after it has
    four phases:

    | phase | trains | at its end |
    |---|---|---|
    | head | the new head alone, with the L1 penalty | |
    | retrain | the weights between the units that are relevant, $S$ | where the loss > `loss_threshold`, add units |
    | expand | the weights of the new units, with both penalties | give back new units that are 0; split |
    | duplicate | the weights of the task's own units, and its head | |

    $$ S_l = \{ i : \exists j \in S_{l+1} : W_{ij} \ne 0 \}, \qquad
    \rho_j = \| W_{\cdot j} - W^{t-1}_{\cdot j} \|_2, \qquad
    n^t_j = [\mathrm{owner}_j \le t] $$
    S is found from the head downwards (selective retraining). In that phase the loss has the term
    $\frac{\lambda}{2} \| W - W^{t-1} \|^2$. The group lasso acts on all that leads into a new unit. An older unit of
    drift $\rho_j$ above `drift_threshold` is split: it is again what it was before the task, for older tasks, and a new
    unit is what the task made of it (`ownership.split`). Task t computes with the units of its time or earlier.
    Older tasks are disturbed by the units that drifted less, and by those for which no unit was free: it forgets.
    With `drift_threshold=0`, and units enough, not a bit of old logits changes.

    The paper's are the penalties, the selection, the two tests, the groups and the timestamps. Ours:

    - The network is given at its full width, of which tasks open units; the parts of a visit's epochs are `PHASES`.
    - The loss that is compared is the mean over the training examples, in evaluation mode.
    - A bias belongs to its unit, in a group and in a drift too. So a unit that is given back was 0.
    - Where few units are free, the most drifted are split. (The public code keeps a list of those that drifted, sorts
      it in ascending order and splits the first: the least drifted.)
    - A copy takes over its unit's edges into the head and into the task's own units, and feeds no older unit.
    - Older units are trained in the phase `retrain` alone, not again after the split. There the paper's L2 penalty is
      the optimizer's weight decay.
    - The penalties that make zeros are proximal steps after each of the optimizer's, of amounts that the learning rate
      does not scale, as in the public code.
    - On further visits a task trains its own units and its head; an older one its head alone.

    Args:
      network: with gates and a head for each task, without normalisation, such as `mlp` or `cnn`; its
        nonlinearity is 0 at 0, as ReLU is.
      initial: in [0, 1], the part of each layer's units that the first task has.
      expansion: k, the units added to each layer, at most; as many as are free.
      loss_threshold: tau, nats.
      drift_threshold: sigma.
      l1: taken off a weight's absolute value at each step.
      group_lasso: taken off the norm of what leads into a new unit at each step.
      drift_penalty: lambda.

    Returns:
      The method.

    Raises:
      ValueError: for a network without gates, with a shared head or with normalisation; for a number out of range.

    Example:
      >>> from cljax import networks
      >>> from cljax.methods import den
      >>> method = den(networks.mlp((8, 8, 1), 2, hidden=(16, 12)))
      >>> [phase.name for phase in method.phases]
      ['head', 'retrain', 'expand', 'duplicate']

    Reference: Yoon, Yang, Lee and Hwang, Lifelong Learning with Dynamically Expandable Networks, 2018.
    """
    check_network(network)
    layout = ownership.layout("den", network)
    wires = layout.wires
    _check(network, layout)
    numbers = {
        "initial": real("den's initial", initial, least=0, most=1),
        "expansion": whole("den's expansion", expansion, least=0),
        "loss_threshold": real("den's loss_threshold", loss_threshold, least=0),
        "drift_threshold": real("den's drift_threshold", drift_threshold, least=0),
        "l1": real("den's l1", l1, least=0),
        "group_lasso": real("den's group_lasso", group_lasso, least=0),
        "drift_penalty": real("den's drift_penalty", drift_penalty, least=0),
    }
    base = owned("den", network, layout, rule="ternary", numbers=numbers)

    def shared(params: Tree) -> Tree:
        own = lambda path, leaf: None if task_params.ends_with(path, network.per_task) else leaf
        return task_params.map_leaves(own, params)

    def staged(clock: Clock) -> Array:
        return clock.first & (clock.task > 0)

    def of_task(learner: Learner, clock: Clock) -> ownership.Owner:
        return {name: masks.learnable(leaf, clock.task) for name, leaf in learner.method_state.owner.items()}

    def init(key: Array, sizes: Sizes) -> tuple[Tree, Tree, Tree, dict[str, Array]]:
        params, collections, state, hyper = base.init(key, sizes)
        return params, collections, Stamped(state.owner, shared(params)), hyper

    def begin_task(learner: Learner, clock: Clock, fold: Fold, key: Array) -> Learner:
        owner, (fresh, _) = learner.method_state.owner, network.init(key)
        params = ownership.reinitialize(learner.params, fresh, wires, owner, learner.rows)
        part = jnp.where(clock.task == 0, learner.hyper["initial"], 0.0)
        state = Stamped(ownership.claim(owner, clock.task, part), shared(params))
        return learner._replace(params=params, method_state=state)

    def adjust_gradients(gradients: Tree, learner: Learner, clock: Clock, batch: Batch) -> Tree:
        strength = jnp.where(staged(clock) & (clock.phase == RETRAIN), learner.hyper["drift_penalty"], 0.0)

        def pull(before: Array | None, gradient: Array, leaf: Array) -> Array:
            return gradient if before is None else gradient + strength.astype(leaf.dtype) * (leaf - before)

        none = lambda leaf: leaf is None
        return jax.tree.map(pull, learner.method_state.previous, gradients, learner.params, is_leaf=none)

    def update_mask(learner: Learner, clock: Clock) -> tuple[Tree, Tree]:
        mask, collections = base.update_mask(learner, clock)
        new = of_task(learner, clock)
        relevant = reused(learner.params, wires, learner.method_state.owner, clock.task)

        def one(path: str, part: Array, leaf: Array) -> Array:
            wire, mine, none = wires.get(path), task_params.has_rows(path, learner.rows), jnp.float32(0.0)
            retrained = part if wire is None else ownership.between(leaf, wire, relevant)
            of_new = none if mine else part
            if mine and wire is not None and wire.inputs is not None:
                of_new = ownership.between(leaf, wire, new)
            parts = part if mine else none, retrained, of_new, part
            shape = jnp.broadcast_shapes(*(jnp.shape(stage) for stage in parts))
            stages = jnp.stack([jnp.broadcast_to(stage, shape) for stage in parts])
            return jnp.where(staged(clock), stages[clock.phase], stages[DUPLICATE])

        return task_params.map_leaves(one, mask, learner.params), collections

    def after_step(previous: Learner, learner: Learner, clock: Clock, batch: Batch, gradients: Tree) -> Learner:
        hyper, expands = learner.hyper, staged(clock) & (clock.phase == EXPAND)
        sparse = clock.first & ((clock.task == 0) | (clock.phase == HEAD) | (clock.phase == EXPAND))
        amount = jnp.where(sparse, hyper["l1"], 0.0)
        thin = lambda path, leaf: proximal.soft_threshold(leaf, amount) if path in layout.kernels else leaf
        params = task_params.map_leaves(thin, learner.params)
        norms = ownership.incoming_norms(params, wires)
        factor = lambda norm, new: jnp.where(new & expands, proximal.group_factor(norm, hyper["group_lasso"]), 1.0)
        factors = jax.tree.map(factor, norms, of_task(learner, clock))
        return learner._replace(params=ownership.scale_incoming(params, wires, factors))

    def expand(learner: Learner, clock: Clock, fold: Fold) -> Learner:
        def add(sums: tuple[Array, Array], batch: Batch) -> tuple[Array, Array]:
            count = jnp.sum(batch.weights)
            value = base.loss(learner.params, learner, clock, batch, None)[0].astype(jnp.float32)
            return sums[0] + jnp.where(count > 0, count * value, 0.0), sums[1] + count

        total, examples = fold(add, (jnp.float32(0.0), jnp.float32(0.0)))
        needed = total > learner.hyper["loss_threshold"] * examples
        count = jnp.where(needed, learner.hyper["expansion"], 0.0).astype(jnp.int32)
        state = learner.method_state
        owner = {name: masks.claim(leaf, clock.task, count) for name, leaf in state.owner.items()}
        # Weights from units that are still free go too: nothing trains them, and no group with one would become 0.
        params = ownership.cut_interference(learner.params, wires, owner, clock.task)
        return learner._replace(params=params, method_state=state._replace(owner=owner))

    def release_and_split(learner: Learner, clock: Clock) -> Learner:
        params, (owner, previous) = learner.params, learner.method_state
        norms = ownership.incoming_norms(params, wires)
        owner = {
            name: jnp.where(masks.learnable(leaf, clock.task) & (norms[name] == 0), masks.FREE, leaf)
            for name, leaf in owner.items()
        }
        moved = ownership.drift(params, previous, wires, owner, clock.task)
        threshold = learner.hyper["drift_threshold"]
        copy = lambda leaf, moved: ownership.claim_copies(leaf, clock.task, moved, threshold=threshold)
        copied = {name: copy(leaf, moved[name]) for name, leaf in owner.items()}
        owner, sources = ({name: found[part] for name, found in copied.items()} for part in (0, 1))
        params = ownership.split(params, previous, wires, owner, clock.task, sources)
        return learner._replace(params=params, method_state=Stamped(owner, previous))

    def end_phase(learner: Learner, clock: Clock, fold: Fold, key: Array) -> Learner:
        at = lambda phase: staged(clock) & (clock.phase == phase)
        same = lambda learner: learner
        learner = lax.cond(at(RETRAIN), lambda learner: expand(learner, clock, fold), same, learner)
        return lax.cond(at(EXPAND), lambda learner: release_and_split(learner, clock), same, learner)

    return base._replace(
        init=init,
        begin_task=begin_task,
        adjust_gradients=adjust_gradients,
        update_mask=update_mask,
        after_step=after_step,
        end_phase=end_phase,
        phases=PHASES,
        zero_forgetting=False,
    )


def _check(network: Network, layout: ownership.Layout) -> None:
    check_heads("den", layout, "from which it finds the units that are relevant to it")
    _, collections = network.shapes
    if layout.affines or "batch_stats" in collections:
        raise ValueError(
            "den cannot use normalisation: a unit that is 0 before it is not 0 after it, and its statistics are "
            "shared. Use a network without: normalization=None."
        )
