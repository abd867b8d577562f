"""Replay: a memory of exemplars, as many of each class as can be, trained on beside the current task's examples."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from cljax.methods.combine import combine
from cljax.methods.common import Scope, plain
from cljax.numbers import whole
from cljax.types import Array, Batch, Clock, Fold, Learner, Memory, Method, Network, Respond, Term


def exemplars(*, memory_size: int = 200) -> Term:
    r"""A memory of exemplars, for any method: at the end of a visit, examples of the task are kept by chance.

    The loop mixes the memory into every epoch: each example of the current task and each exemplar comes once. What is
    learned of an exemplar is the base's affair; by `finetune` and what is built on it, the cross-entropy over the
    classes of the exemplar's own task, or in the class-incremental scenario over those of all tasks seen.

    Each class has the same number of exemplars, or one more by chance, or all of its examples where it has fewer. What
    is kept of an older class becomes fewer by chance; a task that is visited again is drawn anew. Of several labels an
    example (float labels that are not one-hot), as many are kept of each task instead.

    Args:
      memory_size: number of exemplars, at least 1.

    Returns:
      The term `replay`, which adds nothing to the loss.

    Raises:
      ValueError: for a number out of range.

    Example:
      >>> exemplars(memory_size=50).memory_size
      50

    Reference: Rebuffi et al., iCaRL, 2017, section 3.3 has a memory of fixed size, shared by all classes seen; it
    chooses by herding.
    """
    memory_size = whole("replay's memory_size", memory_size, least=1)

    def end_visit(learner: Learner, clock: Clock, fold: Fold, key: Array, respond: Respond) -> Learner:
        kept: Any = learner.memory
        places = fold.max_examples["train"]

        def collect(groups: Array, batch: Batch) -> Array:
            place = jnp.where(batch.weights > 0, batch.position, places)  # surplus examples repeat others
            return groups.at[place].set(group_of(batch.labels, batch.tasks, clock), mode="drop")

        new = fold(collect, jnp.full(places, NONE, jnp.int32))
        older = jnp.where(kept.valid & (kept.tasks != clock.task), group_of(kept.labels, kept.tasks, clock), NONE)
        chosen = balanced_choice(key, jnp.concatenate([new, older]), memory_size)
        from_task = chosen < places
        valid = chosen < places + memory_size
        slot = jnp.full(places, memory_size, jnp.int32)
        slot = slot.at[jnp.where(from_task, chosen, places)].set(jnp.arange(memory_size, dtype=jnp.int32), mode="drop")
        moved = jax.tree.map(lambda leaf: jnp.take(leaf, chosen - places, axis=0, mode="clip"), kept)

        def store(memory: Memory, batch: Batch) -> Memory:
            where = jnp.take(slot, batch.position, mode="clip")
            where = jnp.where(batch.weights > 0, where, memory_size)
            put = lambda old, values: old.at[where].set(values, mode="drop")
            found = {name: put(getattr(memory, name), getattr(batch, name)) for name in ("inputs", "labels", "tasks")}
            return memory._replace(**found)

        return learner._replace(memory=fold(store, moved._replace(valid=valid)))

    return Term("replay", end_visit=end_visit, all_heads=True, memory_size=memory_size)


NONE = 2**31 - 1
"""The group of what is no example."""


def group_of(labels: Array, tasks: Array, clock: Clock) -> Array:
    """The class of each example among all tasks', `[B]` int32; the task alone, of several labels an example."""
    if labels.ndim == 2:
        known = jnp.zeros(len(labels), jnp.bool_) if clock.single_label is None else clock.single_label[tasks]
        labels = jnp.where(known, jnp.argmax(labels, axis=-1).astype(jnp.int32), 0)
    return tasks * clock.classes.shape[1] + labels.astype(jnp.int32)


def balanced_choice(key: Array, groups: Array, count: int) -> Array:
    """Chooses by chance, as many of each group as can be.

    Args:
      key: PRNG key.
      groups: `[N]` int32; `NONE` for what cannot be chosen.
      count: how many to choose, static.

    Returns:
      `[count]` int32 places in `groups`, the least number of a group first; N where there are no more.

    Example:
      >>> groups = jnp.array([0, 0, 0, 0, 1, 1, NONE])
      >>> chosen = balanced_choice(jax.random.key(0), groups, 4)
      >>> jnp.sort(groups[chosen]).tolist()
      [0, 0, 1, 1]
    """
    size = len(groups)
    bits, ties = jax.random.bits(key, (2, size), jnp.uint32)
    by_group = jnp.lexsort((bits, groups))
    ordered = groups[by_group]
    place = jnp.arange(size, dtype=jnp.int32)
    turn = place - jnp.searchsorted(ordered, ordered, side="left").astype(jnp.int32)
    turn = jnp.zeros(size, jnp.int32).at[by_group].set(turn)
    turn = jnp.where(groups == NONE, NONE, turn)
    order = jnp.lexsort((ties, turn)).astype(jnp.int32)
    order = jnp.where(turn[order] == NONE, size, order)
    return jnp.concatenate([order, jnp.full(count, size, jnp.int32)])[:count]


def with_memory(method: Method, memory_size: int) -> Method:
    """A method that also trains on a memory of exemplars; see `exemplars`.

    Args:
      method: one that trains on the current task's examples.
      memory_size: number of exemplars; 0: none, and the method is returned as it is.

    Returns:
      The method, of the same name.

    Raises:
      ValueError: for a number out of range; for a method that has all tasks' examples, or a memory of its own.

    Example:
      >>> from cljax import methods, networks
      >>> with_memory(methods.finetune(networks.mlp((8, 8, 1), 2)), 50).memory_size
      50
    """
    if not whole(f"{method.name}'s memory_size", memory_size):
        return method
    return combine(method, exemplars(memory_size=memory_size), name=method.name)


def replay(network: Network, *, memory_size: int = 200, scope: Scope = "auto") -> Method:
    r"""Replay: fine-tuning on the current task's examples and on exemplars of earlier ones, all together.

    $$ \min_\theta \; \mathbb{E}_{(x, y, s) \sim D_t \cup M} \left[ -\log \mathrm{softmax}(z_s(x))_y \right] $$
    where the memory M has as many exemplars of each class seen before as can be, chosen by chance at the end of each
    visit, and an example's loss is over the classes of its own task s, by that task's head; or, with one growing head,
    over the classes of all tasks seen.

    Args:
      network: an ordinary network. All `per_task` leaves stay stacked, and those of all tasks seen train.
      memory_size: the number of exemplars, for all tasks together; 0 is fine-tuning.
      scope: a softmax over the classes of each example's own task, 'per_task'; or one over all classes seen,
        'concatenated'. 'auto': the second where the scenario is class-incremental, else the first.

    Returns:
      The method.

    Raises:
      ValueError: for an unknown option, or a number out of range; for 'concatenated', where nothing belongs to a task.

    Example:
      >>> from cljax import networks
      >>> replay(networks.mlp((8, 8, 1), 2), memory_size=100).memory_size
      100

    Reference: Rolnick et al., Experience Replay for Continual Learning, 2019; Chaudhry et al., On Tiny Episodic
    Memories in Continual Learning, 2019.
    """
    return with_memory(plain("replay", network, scope=scope), memory_size)
