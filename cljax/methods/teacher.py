"""What methods that distil share: a teacher, and which tasks it knows."""

from __future__ import annotations

from jax import lax

from cljax.methods.common import as_it_is, forward, own_task, seen_tasks
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


def teach(network: Network, learner: Learner, clock: Clock, inputs: Array) -> Array:
    """The logits of all heads of the teacher, in evaluation mode; constants."""
    params, collections = (learner.method_state["teacher"][part] for part in ("params", "collections"))
    before = learner._replace(collections=collections)
    return lax.stop_gradient(forward(network, as_it_is, params, before, clock, inputs, key=None).logits)


def old_tasks(learner: Learner, clock: Clock) -> Array:
    """The tasks seen so far but the current one, `[T]` bool."""
    return seen_tasks(learner, clock) & ~own_task(learner, clock)
