"""Fine-tuning: train on each task in turn, do nothing against forgetting. The default that all methods amend."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from cljax import losses, rows
from cljax.types import Array, Batch, Clock, Fold, Learner, Method, Network, Output, Phase, Tree


def finetune(network: Network) -> Method:
    r"""Fine-tuning: cross-entropy on the current task alone.

    $$ \theta \leftarrow \arg\min_\theta \mathbb{E}_{(x, y) \sim D_t} \left[ -\log \mathrm{softmax}(z_t(x))_y \right] $$

    Args:
      network: an ordinary network; its `per_task` leaves (the head) belong to a task, all others are shared.

    Returns:
      The method, every field filled. Other methods are this one with a few fields replaced.

    Example:
      >>> from cljax import networks
      >>> method = finetune(networks.mlp((8, 8, 1), 2))
      >>> method.name, method.capacity, method.draws_from
      ('finetune', 0, 'current')
    """

    def init(key: Array) -> tuple[Tree, Tree, Tree, dict[str, Array]]:
        params, collections = network.init(key)
        return params, collections, {}, {}

    def loss(params: Tree, learner: Learner, clock: Clock, batch: Batch, key: Array | None):
        output = network.apply(params, learner.collections, batch.inputs, key=key)
        value = task_loss(output.logits, learner, clock, batch)
        return value, (output.collections, {})

    def predict(learner: Learner, inputs: Array, task: Array) -> Array:
        params = rows.take_row(learner.params, task, learner.rows)
        collections = rows.take_row(learner.collections, task, learner.rows)
        return network.apply(params, collections, inputs).logits

    return Method(
        name="finetune",
        init=init,
        begin_task=unchanged,
        loss=loss,
        adjust_gradients=lambda gradients, learner, clock, batch: gradients,
        update_mask=train_everything,
        after_step=lambda previous, learner, clock, batch, gradients: learner,
        end_phase=unchanged,
        predict=predict,
        phases=(Phase(),),
        per_task=network.per_task,
        keeps_rows=(),
        draws_from="current",
        capacity=0,
        forgets_nothing=False,
        candidates=None,
        choose=lambda scores, learners, clock: jnp.argmax(scores).astype(jnp.int32),
        network=network,
    )


def unchanged(learner: Learner, clock: Clock, fold: Fold, key: Array) -> Learner:
    """The hook that does nothing."""
    del clock, fold, key
    return learner


def train_everything(learner: Learner, clock: Clock) -> Tree:
    """The update mask that freezes nothing: a scalar 1 for each leaf."""
    del clock
    return jax.tree.map(lambda leaf: jnp.float32(1.0), learner.params)


def mean(values: Array, weights: Array) -> Array:
    """The mean of per-example values `[B]` over the examples of weight 1."""
    return jnp.sum(values * weights.astype(values.dtype)) / jnp.sum(weights).astype(values.dtype)


def task_loss(logits: Array, learner: Learner, clock: Clock, batch: Batch) -> Array:
    """The mean cross-entropy (nats) of the current task's logits `[B, K]`, over its classes."""
    classes = learner.classes[clock.task]
    return mean(losses.cross_entropy(logits, batch.labels, classes=classes), batch.weights)


def apply_kept(network: Network, learner: Learner, params: Tree, inputs: Array, *, key: Array | None) -> Output:
    """Applies a network whose kept leaves (`keeps_rows`) are stacks `[T, ...]`: the logits of all tasks.

    What does not depend on a kept leaf, the encoder usually, is computed once.

    Returns:
      `Output` with logits `[T, B, K]`; features, maps and activations are those of a task each, `[T, ...]`.
    """
    axes = tuple(rows.row_axes(tree, learner.rows) for tree in (params, learner.collections))

    def one(params: Tree, collections: Tree) -> Output:
        return network.apply(params, collections, inputs, key=key)

    out = Output(0, 0, 0, 0, axes[1])  # type: ignore[arg-type]
    tasks = learner.classes.shape[0]
    return jax.vmap(one, in_axes=axes, out_axes=out, axis_size=tasks)(params, learner.collections)
