"""What methods that keep all heads stacked share: a teacher, which heads count and train, one head made of all."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from cljax import losses, rows
from cljax.methods.finetune import apply_kept
from cljax.types import Array, Batch, Clock, Fold, Learner, Network, Output, Tree


def snapshot(params: Tree, collections: Tree) -> Tree:
    """The teacher that a network of these parameters and collections is."""
    return {"params": params, "collections": collections}


def renew_teacher(learner: Learner, clock: Clock, fold: Fold, key: Array) -> Learner:
    """Makes the student as it is the teacher.

    As `begin_task` it makes the teacher of a first visit; as `end_phase` of the last phase that of the next visit,
    whether a first one or another: a teacher knows all tasks but the one that is being learned.
    """
    del clock, fold, key
    state = {**learner.method_state, "teacher": snapshot(learner.params, learner.collections)}
    return learner._replace(method_state=state)


def teach(network: Network, learner: Learner, inputs: Array) -> Array:
    """The logits `[T, B, K]` of all heads of the teacher, in evaluation mode; constants."""
    params, collections = (learner.method_state["teacher"][part] for part in ("params", "collections"))
    logits = apply_kept(network, learner._replace(collections=collections), params, inputs, key=None).logits
    return lax.stop_gradient(logits)


def apply_trained(
    network: Network,
    learner: Learner,
    params: Tree,
    inputs: Array,
    trained: Array,
    *,
    shared: Array | bool = True,
    key: Array | None,
) -> Output:
    """As `apply_kept`; of the collections, what is not trained stays: rows by `trained` `[T]` bool, what is shared."""
    output = apply_kept(network, learner, params, inputs, key=key)
    moves = rows_mask(output.collections, learner, trained, shared)
    select = lambda new, old, mask: jnp.where(mask > 0, new, old)
    return output._replace(collections=jax.tree.map(select, output.collections, learner.collections, moves))


def seen_tasks(learner: Learner, clock: Clock) -> Array:
    """The tasks seen so far, `[T]` bool."""
    return jnp.arange(learner.classes.shape[0], dtype=jnp.int32) <= clock.newest


def old_tasks(learner: Learner, clock: Clock) -> Array:
    """The tasks seen so far but the current one, `[T]` bool."""
    return seen_tasks(learner, clock) & ~own_task(learner, clock)


def own_task(learner: Learner, clock: Clock) -> Array:
    """The current task, `[T]` bool."""
    return jnp.arange(learner.classes.shape[0], dtype=jnp.int32) == clock.task


def flatten_heads(values: Array) -> Array:
    """One growing head of all tasks' heads: `[T, B, K]` to `[B, T * K]`."""
    tasks, size, outputs = values.shape
    return jnp.moveaxis(values, 0, 1).reshape(size, tasks * outputs)


def outputs_of(learner: Learner, tasks: Array) -> Array:
    """The outputs of some tasks, `[T]` bool, in the one growing head, `[T * K]` bool."""
    return (learner.classes & tasks[:, None]).reshape(-1)


def one_head_labels(batch: Batch, learner: Learner) -> Array:
    """The labels as those of one growing head: `[B]` int32; of several labels an example, `[B, T * K]` float32."""
    if batch.labels.ndim == 2:
        return place_labels(batch, learner)
    outputs = learner.classes.shape[1]
    places, known = losses.known_labels(batch.labels, outputs)
    return jnp.where(known, batch.tasks * outputs + places, -1)


def place_labels(batch: Batch, learner: Learner) -> Array:
    """The labels as targets of one growing head: `[B, T * K]` float32, 0 outside the own task's block.

    Where a label is no class, all are NaN, and so will the loss be.
    """
    tasks, outputs = learner.classes.shape
    labels = batch.labels
    if labels.ndim == 1:
        places, known = losses.known_labels(labels, outputs)
        labels = jnp.where(known[:, None], jax.nn.one_hot(places, outputs, dtype=jnp.float32), jnp.nan)
    placed = jax.nn.one_hot(batch.tasks, tasks, dtype=jnp.float32)[:, :, None] * labels[:, None, :].astype(jnp.float32)
    return placed.reshape(-1, tasks * outputs)


def rows_mask(tree: Tree, learner: Learner, trained: Array, shared: Array | bool) -> Tree:
    """A mask like a tree: some rows of the kept stacks, `trained` `[T]` bool, and perhaps what is shared."""

    def one(path: str, leaf: Array) -> Array:
        if rows.ends_with(path, learner.rows.stacked):
            return trained.astype(jnp.float32).reshape(-1, *(1,) * (leaf.ndim - 1))
        return jnp.asarray(shared, jnp.float32)

    return rows.map_leaves(one, tree)


def head_mask(learner: Learner, trained: Array, *, shared: Array | bool = True) -> Tree:
    """The update mask that trains some rows of the kept stacks, `trained` `[T]` bool, and perhaps what is shared."""
    return rows_mask(learner.params, learner, trained, shared)
