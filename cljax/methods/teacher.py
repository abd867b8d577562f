"""What methods that distil share: a teacher kept in the learner, and which of its heads and of the student's count."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax

from cljax import rows
from cljax.methods.finetune import apply_kept
from cljax.types import Array, Clock, Fold, Learner, Network, Tree


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


def seen_tasks(learner: Learner, clock: Clock) -> Array:
    """The tasks seen so far, `[T]` bool."""
    return jnp.arange(learner.classes.shape[0]) <= clock.newest


def old_tasks(learner: Learner, clock: Clock) -> Array:
    """The tasks seen so far but the current one, `[T]` bool."""
    return seen_tasks(learner, clock) & ~own_task(learner, clock)


def own_task(learner: Learner, clock: Clock) -> Array:
    """The current task, `[T]` bool."""
    return jnp.arange(learner.classes.shape[0]) == clock.task


def flatten_heads(values: Array) -> Array:
    """One growing head of all tasks' heads: `[T, B, K]` to `[B, T * K]`."""
    tasks, size, outputs = values.shape
    return jnp.moveaxis(values, 0, 1).reshape(size, tasks * outputs)


def outputs_of(learner: Learner, tasks: Array) -> Array:
    """The outputs of some tasks, `[T]` bool, in the one growing head, `[T * K]` bool."""
    return (learner.classes & tasks[:, None]).reshape(-1)


def rows_mask(tree: Tree, learner: Learner, trained: Array, shared: Array | bool) -> Tree:
    """A mask like a tree: some rows of the kept stacks, `trained` `[T]` bool, and perhaps what is shared."""

    def one(path: str, leaf: Array) -> Array:
        if rows.ends_with(path, learner.rows.keeps):
            return trained.astype(jnp.float32).reshape(-1, *(1,) * (leaf.ndim - 1))
        return jnp.asarray(shared, jnp.float32)

    return rows.map_leaves(one, tree)


def head_mask(learner: Learner, trained: Array, *, shared: Array | bool = True) -> Tree:
    """The update mask that trains some rows of the kept stacks, `trained` `[T]` bool, and perhaps what is shared."""
    return rows_mask(learner.params, learner, trained, shared)
