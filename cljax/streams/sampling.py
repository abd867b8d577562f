"""Batches from a stream's tables: pure functions of arrays, for use inside a compiled training step.

A position is a row of a split's flat table. The rows of a task are contiguous and tasks follow one another in their
order, so that a position tells its task: examples cannot, for permuted tasks share them. With N rows in the table, the
numbers N, N + 1, ... stand for the slots of an exemplar memory.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec

from cljax.numbers import check_dtype, check_shape, whole
from cljax.types import Array, Batch, Clock, Memory, Table, Tables

BATCH_AXIS = "batch"
"""The axis of a mesh over which batches are shared among devices."""


def task_of(table: Table, position: Array) -> Array:
    """The task that a position belongs to: the last task that starts at or before it (and is not empty).

    All starts are compared at once: a binary search would be a loop in every batch, slow on accelerators.

    Args:
      table: a split, with T tasks.
      position: int32, any shape.

    Returns:
      int32 in 0..T-1, the shape of `position`.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.streams import task_of
      >>> from cljax.types import Table
      >>> start, size = jnp.array([0, 3, 3]), jnp.array([3, 0, 2])
      >>> table = Table(jnp.arange(5), jnp.zeros(5, jnp.int32), start, size)
      >>> task_of(table, jnp.array([0, 2, 3, 4])).tolist()
      [0, 0, 2, 2]
    """
    check_shape("The table's start", table.start, "T")
    places = jnp.asarray(position, jnp.int32)[..., None]
    starts = jnp.asarray(table.start, jnp.int32).reshape(*[1] * (places.ndim - 1), -1)
    return jnp.maximum(jnp.sum(starts <= places, axis=-1, dtype=jnp.int32) - 1, 0)


def size_of(table: Table, task: Array) -> Array:
    """The number of a task's examples, an int32 scalar.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.streams import size_of
      >>> from cljax.types import Table
      >>> table = Table(jnp.arange(5), jnp.zeros(5, jnp.int32), jnp.array([0, 3]), jnp.array([3, 2]))
      >>> int(size_of(table, jnp.int32(1)))
      2
    """
    return jnp.take(jnp.asarray(table.size, jnp.int32), task, mode="clip")


def apply_permutation(permutation: Array | None, inputs: Array, tasks: Array) -> Array:
    """Permutes every example's flattened elements by its task: `y.flat[p] = x.flat[permutation[task, p]]`.

    Args:
      permutation: `[T, P]` int32, or None, which changes nothing.
      inputs: `[B, ...]`, P elements an example.
      tasks: `[B]` int32.

    Returns:
      Inputs of the same shape and dtype.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.streams import apply_permutation
      >>> apply_permutation(jnp.array([[0, 1], [1, 0]]), jnp.array([[5, 6], [5, 6]]), jnp.array([0, 1])).tolist()
      [[5, 6], [6, 5]]
    """
    check_shape("tasks", tasks, inputs.shape[0])
    if permutation is None:
        return inputs
    flat = inputs.reshape(inputs.shape[0], -1)
    check_shape("permutation", permutation, "T", flat.shape[1])
    order = jnp.take(jnp.asarray(permutation, jnp.int32), tasks, axis=0, mode="clip")
    return jnp.take_along_axis(flat, order, axis=1, mode="clip").reshape(inputs.shape)


def read(examples: Any, rows: Array) -> Array:
    """The examples at some rows: of an array, or of what reads them itself, by `examples.read(rows)`."""
    if hasattr(examples, "read"):
        return examples.read(rows)
    return jnp.take(jnp.asarray(examples), rows, axis=0, mode="clip")


def batch_parts() -> int:
    """Among how many devices of the mesh in context (`jax.set_mesh`) batches are shared; 1: it has no batch axis.

    Example:
      >>> from cljax.streams.sampling import batch_parts
      >>> batch_parts()  # without a mesh in context
      1
    """
    mesh = jax.sharding.get_abstract_mesh()
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    return mesh.shape[BATCH_AXIS] if kinds.get(BATCH_AXIS) is AxisType.Auto else 1


def split_batch(positions: Array) -> Array:
    """A batch's positions, shared among the devices of the mesh in context (`jax.set_mesh`) that has a batch axis.

    Everything that is computed of them follows. Without such an axis, or where its size does not divide B, they are as
    they were.

    Args:
      positions: `[B]`.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax import streams
      >>> streams.split_batch(jnp.arange(4)).tolist()  # without a mesh in context
      [0, 1, 2, 3]
    """
    count = batch_parts()
    if count == 1 or positions.shape[0] % count:
        return positions
    return jax.lax.with_sharding_constraint(positions, PartitionSpec(BATCH_AXIS))


def gather(tables: Tables, table: Table, positions: Array) -> Batch:
    """The examples at some positions, as their tasks show them.

    Args:
      tables: the stream's, for the examples and the permutation.
      table: the split of `tables` that the positions are of.
      positions: `[B]` int32 rows of the split's table.

    Returns:
      Batch with inputs as stored (permuted by task), `position` the place within the task's table, weights 1.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.streams import gather
      >>> from cljax.types import Table, Tables
      >>> table = Table(jnp.array([4, 2]), jnp.array([0, 0]), jnp.array([0, 1]), jnp.array([1, 1]))
      >>> tables = Tables(10 * jnp.arange(5)[:, None], table, table, table, None, jnp.ones((2, 1), bool))
      >>> batch = gather(tables, table, jnp.array([1, 0]))
      >>> batch.inputs.tolist(), batch.tasks.tolist(), batch.position.tolist()
      ([[20], [40]], [1, 0], [0, 0])
    """
    check_shape("positions", positions, "B")
    check_dtype("positions", positions, "int")
    positions = split_batch(positions)
    tasks = task_of(table, positions)
    rows = jnp.take(jnp.asarray(table.index, jnp.int32), positions, mode="clip")
    inputs = read(tables.examples, rows)
    labels = jnp.take(jnp.asarray(table.labels), positions, axis=0, mode="clip")
    starts = jnp.take(jnp.asarray(table.start, jnp.int32), tasks, mode="clip")
    weights = jnp.ones(positions.shape, jnp.float32)
    inputs = apply_permutation(tables.permutation, inputs, tasks)
    return Batch(inputs, labels, tasks, (positions - starts).astype(jnp.int32), weights)


def epoch_order(
    table: Table,
    clock: Clock,
    key: Array,
    *,
    train_on: str | tuple[int, ...],
    max_examples: int,
    memory: Memory | None = None,
) -> tuple[Array, Array]:
    """A uniformly random order, without replacement, of an epoch's examples; built once an epoch.

    Eligible are the examples of the clock's task ('current'), of every task up to the newest ('seen'), or of all
    tasks ('all'), and the valid slots of memory. With 'balanced' the tasks up to the newest take turns, one example
    each, for as many turns as the clock's task has examples: each gives a random part of its examples, a smaller one
    all of them again and again in one random order. With numbers, such as (5, 1), a turn has so many examples of each
    task, the last number being that of all further tasks, and the epoch ends when the first task has given all.

    Every candidate draws 31 random bits, the others a larger number, and a stable sort brings the eligible ones to the
    front. Table and memory draw from keys of their own, so that neither the padding of a table nor `max_examples`
    change the order of a task's examples.

    Args:
      table: the split to draw from, N rows.
      clock: `task` and `newest` are read.
      key: of this epoch.
      train_on: 'current', 'seen', 'all' or 'balanced'; or numbers, at least 1, of examples of each task in a turn.
      max_examples: static bound on the size of a task; 'current', 'balanced' and numbers need it.
      memory: exemplars, M slots, or None; not with 'balanced' or numbers.

    Returns:
      order `[max_examples + M]` (or `[N + M]`, or `[T * max_examples]`) int32, positions, N + slot for memory; what
      follows the first `count` has no meaning. count int32, the number of examples in the epoch.

    Raises:
      ValueError: an unknown `train_on`, or 'balanced' with a memory.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from cljax.streams import epoch_order
      >>> from cljax.types import Table, make_clock
      >>> table = Table(jnp.arange(5), jnp.zeros(5, jnp.int32), jnp.array([0, 3]), jnp.array([3, 2]))
      >>> order, count = epoch_order(table, make_clock(task=1), jax.random.key(0), train_on="current", max_examples=3)
      >>> int(count), sorted(order[:2].tolist())
      (2, [3, 4])
    """
    max_examples = whole("max_examples", max_examples, least=1)
    total = table.index.shape[0]
    start, size = jnp.asarray(table.start, jnp.int32), jnp.asarray(table.size, jnp.int32)
    if train_on == "balanced" or isinstance(train_on, tuple):
        if memory is not None:
            raise ValueError(f"train_on is {train_on!r}, which draws from tasks' examples and not from a memory.")
        return _order_in_turns(start, size, clock, key, max_examples, train_on if isinstance(train_on, tuple) else None)
    if train_on == "current":
        places = jnp.arange(max_examples, dtype=jnp.int32)
        candidates = jnp.take(start, clock.task, mode="clip") + places
        eligible = places < jnp.take(size, clock.task, mode="clip")
    elif train_on in ("seen", "all"):
        candidates = jnp.arange(total, dtype=jnp.int32)
        last = clock.newest if train_on == "seen" else jnp.int32(start.shape[0] - 1)
        eligible = candidates < jnp.take(start + size, last, mode="clip")
    else:
        raise ValueError(
            f"train_on is {train_on!r}, but batches are drawn from 'current', 'seen' or 'all' tasks, or 'balanced'."
        )
    keys = jax.random.split(key)
    bits = jax.random.bits(keys[0], candidates.shape, jnp.uint32)
    if memory is not None:
        slots = memory.valid.shape[0]
        candidates = jnp.concatenate([candidates, total + jnp.arange(slots, dtype=jnp.int32)])
        eligible = jnp.concatenate([eligible, memory.valid])
        bits = jnp.concatenate([bits, jax.random.bits(keys[1], (slots,), jnp.uint32)])
    rank = jnp.where(eligible, bits >> jnp.uint32(1), jnp.uint32(0xFFFFFFFF))
    return jnp.take(candidates, jnp.argsort(rank)), jnp.sum(eligible, dtype=jnp.int32)


def _order_in_turns(
    start: Array, size: Array, clock: Clock, key: Array, max_examples: int, given: tuple[int, ...] | None
) -> tuple[Array, Array]:
    """Turns of given numbers of examples of each task up to the newest, as many as the smallest share allows.

    Where no numbers are given, of one example each, as many turns as the clock's task has examples.
    """
    tasks, places = start.shape[0], jnp.arange(max_examples, dtype=jnp.int32)

    def shuffled(task: Array) -> Array:
        bits = jax.random.bits(jax.random.fold_in(key, task), (max_examples,), jnp.uint32)
        return jnp.argsort(jnp.where(places < size[task], bits >> jnp.uint32(1), jnp.uint32(0xFFFFFFFF)))

    orders = jax.vmap(shuffled)(jnp.arange(tasks, dtype=jnp.int32)).astype(jnp.int32)
    listed = given or (1,)
    each = jnp.asarray([listed[min(task, len(listed) - 1)] for task in range(tasks)], jnp.int32)
    seen = jnp.arange(tasks, dtype=jnp.int32) <= clock.newest
    ends = jnp.cumsum(jnp.where(seen, each, 0), dtype=jnp.int32)
    number = jnp.arange(max(tasks * max_examples, sum(listed) + tasks * listed[-1]), dtype=jnp.int32)
    turn, within = number // ends[-1], number % ends[-1]
    task = jnp.searchsorted(ends, within, side="right").astype(jnp.int32)
    place = turn * each[task] + within - (ends - each)[task]
    place = orders[task, place % jnp.maximum(size[task], 1)]
    turns = jnp.take(size, clock.task, mode="clip")
    if given:
        turns = jnp.min(jnp.where(seen, jnp.maximum(size // each, 1), jnp.int32(2**31 - 1)))
    return start[task] + place, turns * ends[-1]


def draw(
    tables: Tables,
    table: Table,
    order: Array,
    count: Array,
    step: Array,
    batch_size: int,
    memory: Memory | None = None,
) -> Batch:
    """The `step`-th batch of an epoch; a last partial one wraps around, its surplus examples having weight 0.

    Args:
      tables: the stream's.
      table: the split of `tables` that `order` is of.
      order: of `epoch_order`.
      count: of `epoch_order`.
      step: int32, from 0; an epoch has `ceil(count / batch_size)` steps.
      batch_size: B, static.
      memory: the memory that `epoch_order` was given.

    Returns:
      Batch. Examples of memory come as memory holds them, with their own tasks and labels, and position -1.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.streams import draw
      >>> from cljax.types import Table, Tables
      >>> table = Table(jnp.arange(3), jnp.array([0, 1, 2]), jnp.array([0]), jnp.array([3]))
      >>> tables = Tables(jnp.zeros((3, 1)), table, table, table, None, jnp.ones((1, 3), bool))
      >>> batch = draw(tables, table, jnp.array([2, 0, 1]), jnp.int32(3), jnp.int32(1), 2)
      >>> batch.labels.tolist(), batch.weights.tolist()
      ([1, 2], [1.0, 0.0])
    """
    batch_size = whole("batch_size", batch_size, least=1)
    check_shape("order", order, "n")
    number = jnp.asarray(step, jnp.int32) * batch_size + jnp.arange(batch_size, dtype=jnp.int32)
    positions = jnp.take(order, number % jnp.maximum(count, 1), mode="clip")
    weights = (number < count).astype(jnp.float32)
    if memory is None:
        return gather(tables, table, positions)._replace(weights=weights)
    slots = positions - table.index.shape[0]
    from_memory = slots >= 0
    batch = gather(tables, table, jnp.where(from_memory, 0, positions))

    def choose(kept: Array, drawn: Array) -> Array:
        check_dtype("The memory's part of the batch", kept, str(drawn.dtype))
        kept = jnp.take(kept, jnp.maximum(slots, 0), axis=0, mode="clip")
        return jnp.where(from_memory.reshape(-1, *(1,) * (drawn.ndim - 1)), kept, drawn)

    return Batch(
        choose(memory.inputs, batch.inputs),
        choose(memory.labels, batch.labels),
        choose(memory.tasks, batch.tasks),
        jnp.where(from_memory, -1, batch.position),
        weights,
    )


def sequential(tables: Tables, table: Table, task: Array, step: Array, batch_size: int) -> Batch:
    """The `step`-th batch of a task in the order of its table, for folds and evaluation.

    Args:
      tables: the stream's.
      table: a split of `tables`.
      task: int32.
      step: int32, from 0.
      batch_size: B, static.

    Returns:
      Batch; beyond the task's size it wraps around with weight 0. A task without examples gives weights 0 only.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.streams import sequential
      >>> from cljax.types import Table, Tables
      >>> table = Table(jnp.arange(5), jnp.arange(5), jnp.array([0, 2]), jnp.array([2, 3]))
      >>> tables = Tables(jnp.zeros((5, 1)), table, table, table, None, jnp.ones((2, 5), bool))
      >>> batch = sequential(tables, table, jnp.int32(1), jnp.int32(1), 2)
      >>> batch.labels.tolist(), batch.position.tolist(), batch.weights.tolist()
      ([4, 2], [2, 0], [1.0, 0.0])
    """
    batch_size = whole("batch_size", batch_size, least=1)
    start = jnp.take(jnp.asarray(table.start, jnp.int32), task, mode="clip")
    size = size_of(table, task)
    number = jnp.asarray(step, jnp.int32) * batch_size + jnp.arange(batch_size, dtype=jnp.int32)
    batch = gather(tables, table, start + number % jnp.maximum(size, 1))
    tasks = jnp.broadcast_to(jnp.asarray(task, jnp.int32), number.shape)
    return batch._replace(tasks=tasks, weights=(number < size).astype(jnp.float32))
