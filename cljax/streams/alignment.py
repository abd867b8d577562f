"""Streams of several seeds as one: equal shapes by padding, and a seed axis where they differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from cljax.data.on_demand import Images
from cljax.types import Stream, Table, Tables


def max_examples(tables: Tables) -> dict[str, int]:
    """The largest task's number of examples in each split (over all seeds, where stacked): a static bound.

    Returns:
      `{'train': n, 'validation': n, 'test': n}`, each at least 1.

    Example:
      >>> import numpy as np
      >>> from cljax.streams import max_examples
      >>> from cljax.types import Table, Tables
      >>> table = Table(np.arange(5), np.zeros(5, np.int32), np.array([0, 2]), np.array([2, 3]))
      >>> max_examples(Tables(np.zeros((5, 1)), table, table, table, None, np.ones((2, 1), bool)))["train"]
      3
    """
    return {part: max(1, int(np.max(getattr(tables, part).size))) for part in ("train", "validation", "test")}


def align(streams: Sequence[Stream]) -> list[Stream]:
    """Pads index and label tables of several seeds to one length each, so that they share one compiled program.

    A task's rows keep their places; the padding comes after the last task and no start or size reaches it.

    Args:
      streams: of the same data and task count.

    Returns:
      The streams in their order, the tables of equal shapes.

    Raises:
      ValueError: no stream, or streams that differ in more than the lengths of their tables.

    Example:
      >>> import numpy as np
      >>> from cljax.data import from_arrays
      >>> from cljax.streams import align, split
      >>> images = np.zeros((7, 2, 2, 1), np.uint8)
      >>> data = from_arrays(images, [0, 1, 2, 0, 1, 2, 2], images, [0, 1, 2, 0, 1, 2, 2])
      >>> parts = [split(data, tasks=2, class_order=order, sizes=(1, 1)) for order in ([0, 1], [1, 2])]
      >>> [len(stream.tables.test.index) for stream in parts], [len(s.tables.test.index) for s in align(parts)]
      ([4, 5], [5, 5])
    """
    _check(streams)
    parts = ("train", "validation", "test")
    length = {part: max(len(getattr(stream.tables, part).index) for stream in streams) for part in parts}

    def pad_all(tables: Tables) -> Tables:
        padded = (pad_table(getattr(tables, part), length[part]) for part in parts)
        return tables._replace(**dict[str, Any](zip(parts, padded, strict=True)))

    return [stream._replace(tables=pad_all(stream.tables)) for stream in streams]


def pad_table(table: Table, rows: int, outputs: int | None = None) -> Table:
    """A table with so many rows, and columns of labels that have some; no start or size reaches the padding."""
    more, labels = rows - len(table.index), np.asarray(table.labels)
    columns = [(0, 0 if outputs is None else outputs - labels.shape[1])] if labels.ndim == 2 else []
    padded: Any = np.pad(np.asarray(table.index), (0, more)), np.pad(labels, ((0, more), *columns))
    return table._replace(index=padded[0], labels=padded[1])


def stack(streams: Sequence[Stream]) -> tuple[Tables, Tables]:
    """One `Tables` for several seeds, with a leading seed axis on the leaves that differ between them only.

    The examples are never stacked. Streams are aligned first.

    Args:
      streams: of the same data, task count and schedule.

    Returns:
      tables, and in_axes for `jax.vmap`: the same tree with 0 where a leaf has the seed axis and None where not.

    Raises:
      ValueError: no stream, or streams of different data, task counts or schedules.

    Example:
      >>> import numpy as np
      >>> from cljax.data import from_arrays
      >>> from cljax.streams import permuted, stack
      >>> images = np.zeros((6, 2, 2, 1), np.uint8)
      >>> data = from_arrays(images, [0, 1, 2] * 2, images, [0, 1, 2] * 2)
      >>> tables, in_axes = stack([permuted(data, tasks=3, seed=seed) for seed in range(2)])
      >>> tables.permutation.shape, in_axes.permutation, in_axes.examples
      ((2, 3, 4), 0, None)
    """
    streams = align(streams)
    first, *others = [stream.tables for stream in streams]
    shared: Any = None  # no leaf, so that the examples take no part

    def same(*leaves: Any) -> bool:
        return all(np.array_equal(leaves[0], leaf) for leaf in leaves[1:])

    bare = [tables._replace(examples=shared) for tables in (first, *others)]
    tables = jax.tree.map(lambda *leaves: leaves[0] if same(*leaves) else np.stack(leaves), *bare)
    in_axes = jax.tree.map(lambda *leaves: None if same(*leaves) else 0, *bare)
    return tables._replace(examples=first.examples), in_axes


def _same_examples(one: Any, other: Any) -> bool:
    """Whether two streams show the same examples; of those read on demand, only their sources are compared."""
    if one is other or isinstance(one, Images) or isinstance(other, Images):
        return one is other or one == other
    return np.array_equal(one, other)


def _check(streams: Sequence[Stream]) -> None:
    if not streams:
        raise ValueError("There is no stream to align. At least one is needed.")
    first: Any = streams[0].tables
    for number, stream in enumerate(streams[1:], 1):
        tables: Any = stream.tables
        if stream.scenario != streams[0].scenario:
            raise ValueError(
                f"Streams 0 and {number} are of the scenarios {streams[0].scenario!r} and {stream.scenario!r}, but all "
                f"seeds are trained and evaluated in one. Build them for the same scenario."
            )
        if not _same_examples(tables.examples, first.examples):
            raise ValueError(
                f"Streams 0 and {number} hold different examples, but seeds that run side by side share one array of "
                f"examples. Build them from the same data set."
            )
        same = [
            np.shape(tables.classes) == np.shape(first.classes),
            np.shape(tables.permutation) == np.shape(first.permutation),
            np.shape(tables.train.labels)[1:] == np.shape(first.train.labels)[1:],
        ]
        if not all(same):
            raise ValueError(
                f"Streams 0 and {number} differ in tasks, largest number of classes, permutation or kind of labels: "
                f"their classes have shapes {np.shape(first.classes)} and {np.shape(tables.classes)}. Seeds that run "
                f"side by side differ in order and division only."
            )
        if not all(np.array_equal(a, b) for a, b in zip(stream.schedule, streams[0].schedule, strict=True)):
            raise ValueError(
                f"The schedules of streams 0 and {number} differ, but seeds that share one program share one schedule. "
                f"Build it once and give it to every stream."
            )
