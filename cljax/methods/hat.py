"""Hard attention to the task: each task learns which features it attends to, and what earlier tasks attend to stays."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cljax import ownership, task_params
from cljax.methods.common import check_network, everything, forward, plain, task_loss
from cljax.methods.owned import check_statistics
from cljax.numbers import flag, real
from cljax.ownership import hard_attention
from cljax.types import Array, Batch, Clock, Fold, Learner, Method, Network, Sizes, Tree

EMBEDDING = "task_embedding"
"""Where the embeddings of the gates are in the parameters."""


class Attended(NamedTuple):
    """What the method keeps.

    Attributes:
      taken: `{gate: [C]}` in [0, 1]: how much the tasks learned so far attend to each feature, the largest of them.
    """

    taken: dict[str, Array]


def hat(network: Network, *, strength: float = 0.75, max_scale: float = 400.0, binarize: bool = False) -> Method:
    r"""Hard attention to the task (HAT): each task learns its gates with its weights, and spares what others use.

    $$ h'_l = \sigma(s \, e^t_l) \odot h_l, \qquad
    L = -\log \mathrm{softmax}(z_t)_y + \lambda R(a^t, a^{<t}), \qquad
    \Delta W_{ij} \propto 1 - \min(a^{<t}_{l-1,i}, a^{<t}_{l,j}) $$

    A task has an embedding e of each gate, drawn from a standard normal distribution and kept within 6. In the course
    of each epoch the scale s grows from `1 / max_scale` to `max_scale`, which is that of prediction and of validation;
    the embeddings' gradients are compensated for it. (So an epoch needs several steps: of one alone, the scale
    is `1 / max_scale`.) R, the metric `sparsity`, charges for features that no earlier
    task attends to, as a part of all of these. $a^{<t}$ is the largest gate of the tasks before. See
    `cljax.ownership.hard_attention`.

    It forgets a little: where a gate is neither 0 nor 1, a weight between features that are taken in part changes in
    part. On five tasks of digits (two layers of 128 units, SGD, 1 to 10 epochs) 3 to 10% of the gates are strictly
    between, and the first task's logits, of size 0.7 to 4, move by up to 0.003, those of the last three tasks by
    nothing. With `binarize`, once a task is learned a gate is closed where it is less than half open, else opened: then
    no bit of an earlier task's logits changes.

    The update is scaled, not the gradient as in the paper: with SGD, with or without momentum, the two are the same;
    with others, and with weight decay, only this one spares what it should. With batch normalisation, channels that
    earlier tasks attend to keep their frozen statistics. A visit to an earlier task trains its embeddings, its head,
    and what is left free. A head that all tasks share has a fixed bias.

    Parameters that are given for the first task (`training.start_from`) are computed through its gates; where it is not
    trained, give it open ones too: `'task_embedding/dense_0': np.full(width, 6.0)`, for each gate.

    Args:
      network: with gates; batch normalisation with `frozen` flags, as in those of `cljax.networks`, may be shared.
      strength: lambda, the number `strength`.
      max_scale: above 0.
      binarize: whether gates are 0 or 1 once a task is learned.

    Returns:
      The method. It forgets nothing where `binarize` is true.

    Raises:
      ValueError: for a network without gates, or with statistics that cannot be frozen; for a number out of range.

    Example:
      >>> from cljax import networks
      >>> from cljax.methods import hat
      >>> hat(networks.mlp((8, 8, 1), 2, hidden=(16,))).per_task
      ('head/kernel', 'head/bias', 'task_embedding/dense_0')

    Reference: Serrà, Surís, Miron and Karatzoglou, Overcoming Catastrophic Forgetting with Hard Attention to the Task,
    2018, section 2.
    """
    check_network(network)
    layout = ownership.layout("hat", network)
    check_statistics("hat", network)
    strength = real("hat's strength", strength, least=0)
    max_scale = real("hat's max_scale", max_scale, above=0)
    binarize = flag("hat's binarize", binarize)
    scale_of = functools.partial(hard_attention.annealed, max_scale=max_scale)

    def settled(embedding: Array) -> Array:
        return (embedding > 0).astype(embedding.dtype) if binarize else hard_attention.gate(embedding, max_scale)

    def gates_of(params: Tree, scale: Array | None) -> dict[str, Array]:
        gate = settled if scale is None else lambda embedding: hard_attention.gate(embedding, scale)
        return jax.tree.map(gate, params[EMBEDDING])

    def view(params: Tree, collections: Tree, method_state: Attended, task: Array, newest: Array | None, scale=None):
        gates = jax.tree.map(lambda gate, like: gate.astype(like.dtype), gates_of(params, scale), collections["gates"])
        shown = {**collections, "gates": gates}
        if "frozen" in collections:
            shown["frozen"] = {name: method_state.taken[name] > 0.5 for name in collections["frozen"]}
        return {name: leaf for name, leaf in params.items() if name != EMBEDDING}, shown

    base = plain("hat", network, view=view)

    def init(key: Array, sizes: Sizes) -> tuple[Tree, Tree, Tree, dict[str, Array]]:
        key, own = jax.random.split(key)
        params, collections = network.init(key)
        gates = collections["gates"]
        keys = dict(zip(gates, jax.random.split(own, len(gates)), strict=True))
        embeddings = {name: jax.random.normal(keys[name], gate.shape, jnp.float32) for name, gate in gates.items()}
        taken = {name: jnp.zeros(gate.shape, jnp.float32) for name, gate in gates.items()}
        return {**params, EMBEDDING: embeddings}, collections, Attended(taken), {"strength": jnp.float32(strength)}

    def loss(params: Tree, learner: Learner, clock: Clock, batch: Batch, key: Array | None):
        scale = None if key is None else scale_of(clock.progress)

        def annealed(params: Tree, collections: Tree, state: Attended, task: Array, newest: Array | None):
            """The current task's gates at its scale; those of others, which a term may ask for, are settled."""
            given = params, collections, state, task, newest
            (shown, settled), (_, soft) = view(*given), view(*given, scale)
            return shown, jax.tree.map(lambda now, then: jnp.where(task == clock.task, now, then), soft, settled)

        output = forward(network, annealed, params, learner, clock, batch.inputs, key=key)
        own = task_params.focus_tree(params, clock.task, task_params.resting(learner.rows.stacked))
        sparsity = hard_attention.sparsity(gates_of(own, scale), learner.method_state.taken)
        value = task_loss(output.logits, clock, batch)
        weighted = learner.hyper["strength"].astype(value.dtype) * sparsity.astype(value.dtype)
        return value + weighted, (output, {"sparsity": sparsity})

    def adjust_gradients(gradients: Tree, learner: Learner, clock: Clock, batch: Batch) -> Tree:
        compensate = functools.partial(hard_attention.compensate, scale=scale_of(clock.progress), max_scale=max_scale)
        return {**gradients, EMBEDDING: jax.tree.map(compensate, gradients[EMBEDDING], learner.params[EMBEDDING])}

    def update_mask(learner: Learner, clock: Clock) -> tuple[Tree, Tree]:
        taken = learner.method_state.taken
        mask = hard_attention.update_mask(learner.params, layout.wires, taken, learner.rows)
        return mask, everything(learner.collections)

    def after_step(previous: Learner, learner: Learner, clock: Clock, batch: Batch, gradients: Tree) -> Learner:
        most = hard_attention.LARGEST_EMBEDDING
        kept = jax.tree.map(lambda embedding: jnp.clip(embedding, -most, most), learner.params[EMBEDDING])
        return learner._replace(params={**learner.params, EMBEDDING: kept})

    def end_phase(learner: Learner, clock: Clock, fold: Fold, key: Array) -> Learner:
        most = lambda taken, gate: jnp.maximum(taken, gate.astype(taken.dtype))
        taken = jax.tree.map(most, learner.method_state.taken, gates_of(learner.params, None))
        return learner._replace(method_state=Attended(taken))

    return base._replace(
        init=init,
        loss=loss,
        adjust_gradients=adjust_gradients,
        update_mask=update_mask,
        after_step=after_step,
        end_phase=end_phase,
        per_task=(*network.per_task, *(f"{EMBEDDING}/{name}" for name in network.shapes[1]["gates"])),
        zero_forgetting=binarize,
    )
