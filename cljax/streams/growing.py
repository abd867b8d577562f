"""Streams that grow: tasks that nobody had planned, streams whose examples are gone, room for tasks to come."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from cljax.data.on_demand import Images
from cljax.numbers import whole
from cljax.streams.alignment import pad_table
from cljax.streams.building import as_kind, check_stream
from cljax.streams.schedules import check_schedule, make_table
from cljax.types import Schedule, Stream, Table, Tables

SPLITS = ("train", "validation", "test")


def append(stream: Stream, more: Stream) -> Stream:
    """A stream, then another one's tasks: what a learner that was trained on the first goes on with.

    Args:
      stream: whose tasks and rounds come first, whose name, scenario and standardisation stay.
      more: of one task or several, its examples of the same shape and dtype. Its tasks may have more classes.

    Returns:
      The stream, its schedule that of the first and then that of the second.

    Raises:
      ValueError: examples of another shape or dtype, or read on demand; permuted pixels, or labels of another kind;
        room for tasks to come, which `pad` gives to the longer stream.

    Example:
      >>> import numpy as np
      >>> from cljax.data import from_arrays
      >>> from cljax.streams import append, split
      >>> images = np.zeros((6, 2, 2, 1), np.uint8)
      >>> data = from_arrays(images, [0, 1, 2] * 2, images, [0, 1, 2] * 2)
      >>> longer = append(split(data, tasks=3, validation=0), split(data, tasks=1, validation=0, epochs=4))
      >>> longer.schedule.task.tolist(), longer.schedule.epochs.tolist(), longer.tables.train.size.tolist()
      ([0, 1, 2, 3], [1, 1, 1, 4], [2, 2, 2, 6])
      >>> longer.tables.classes.sum(axis=1).tolist()
      [1, 1, 1, 3]
    """
    check_stream(stream)
    check_stream(more, "The stream to append")
    first, second = stream.tables, more.tables
    for tables, called in ((first, stream.name), (second, more.name)):
        if isinstance(tables.examples, Images):
            raise ValueError(f"The examples of {called!r} are read on demand, and cannot be joined to others: load it.")
        if tables.permutation is not None:
            raise ValueError(
                f"The tasks of {called!r} permute their pixels: make the longer stream by streams.permuted."
            )
    for tables, called in ((first, stream.name), (second, more.name)):
        if not np.all(np.any(tables.classes, axis=1)):
            raise ValueError(
                f"The stream {called!r} has room for tasks to come (streams.pad), behind which no task can be put. "
                f"Append to the stream as it was, and pad the longer one alike."
            )
    kinds = [(tables.examples.shape[1:], str(tables.examples.dtype)) for tables in (first, second)]
    if kinds[0] != kinds[1]:
        raise ValueError(
            f"The examples of {stream.name!r} are {kinds[0][1]} of shape {kinds[0][0]}, but those of {more.name!r} are "
            f"{kinds[1][1]} of shape {kinds[1][0]}. Load the second in the first's size and channels."
        )
    labels = [np.ndim(tables.train.labels) for tables in (first, second)]
    if labels[0] != labels[1] or (first.single_label is None) != (second.single_label is None):
        raise ValueError(
            f"The labels of {stream.name!r} and of {more.name!r} are not of one kind (a class, or a column a class). "
            f"Make streams of tasks of both kinds by streams.from_tasks."
        )
    tasks, outputs = len(first.classes), max(tables.classes.shape[1] for tables in (first, second))
    wide = lambda classes: np.pad(np.asarray(classes), ((0, 0), (0, outputs - classes.shape[1])))
    joined = {part: _join(getattr(first, part), getattr(second, part), len(first.examples), outputs) for part in SPLITS}
    both: Callable[[Any, Any], Any] = lambda a, b: None if a is None else np.concatenate([np.asarray(a), np.asarray(b)])
    tables = Tables(
        np.concatenate([first.examples, second.examples]),
        **joined,
        permutation=None,
        classes=both(wide(first.classes), wide(second.classes)),
        single_label=both(first.single_label, second.single_label),
    )
    later = more.schedule._replace(task=np.asarray(more.schedule.task) + tasks)
    schedule = _then(stream.schedule, later)
    check_schedule(schedule, len(tables.classes))
    facts = {**stream.facts, "appended": [*stream.facts.get("appended", []), more.facts]}
    if "groups" in facts:
        facts["groups"] = [*facts["groups"], *more.facts.get("groups", [[more.name]] * len(second.classes))]
    facts |= {name: [*stream.facts[name], *more.facts[name]] for name in ("classes", "fraction")}
    facts["tasks"] = [*stream.facts["tasks"], *(task + tasks for task in more.facts["tasks"])]
    facts["sizes"] = {part: getattr(tables, part).size.tolist() for part in SPLITS}
    return stream._replace(tables=tables, schedule=schedule, facts=facts)


def forget(stream: Stream) -> Stream:
    """A stream whose examples are gone: what its tasks were, and nothing to train or to evaluate on.

    Appended to, it is what a learner goes on with that has neither old examples nor their place on the disk. Old tasks
    have no accuracy then.

    Args:
      stream: any.

    Example:
      >>> import numpy as np
      >>> from cljax.data import from_arrays
      >>> from cljax.streams import forget, split
      >>> images = np.zeros((4, 2, 2, 1), np.uint8)
      >>> gone = forget(split(from_arrays(images, [0, 1] * 2, images, [0, 1] * 2), tasks=2))
      >>> gone.tables.train.size.tolist(), gone.tables.examples.shape, gone.tables.classes.tolist()
      ([0, 0], (1, 2, 2, 1), [[True], [True]])
    """
    check_stream(stream)
    tables = stream.tables
    empty = {}
    for part in SPLITS:
        labels = np.asarray(getattr(tables, part).labels)[:0]
        empty[part] = make_table([np.zeros(0, np.int32)] * len(tables.classes), [labels] * len(tables.classes))
    facts = {**stream.facts, "sizes": {part: empty[part].size.tolist() for part in SPLITS}}
    examples: Any = np.zeros((1, *tables.examples.shape[1:]), tables.examples.dtype)
    return stream._replace(tables=tables._replace(examples=examples, **empty), facts=facts)


def pad(stream: Stream, *, tasks: int, examples: int, classes: int | None = None, epochs: int | None = None) -> Stream:
    """Room for tasks to come: longer streams that are padded alike run through one program, traced once.

    Args:
      stream: as built, its tasks' examples in memory.
      tasks: T, at least as many as there are. Those to come have no class and no example yet, and a round each.
      examples: n, the rows of `tables.examples`, at least as many as there are; no split of a longer stream may have
        more.
      classes: K, logits of a head; None: as many as now.
      epochs: of the rounds to come; None: those of the last round.

    Returns:
      The stream. `make_run(..., max_examples=...)` is told how large the tasks to come may be, and each run its rounds.

    Raises:
      ValueError: less room than is needed.

    Example:
      >>> import numpy as np
      >>> from cljax.data import from_arrays
      >>> from cljax.streams import pad, split
      >>> images = np.zeros((4, 2, 2, 1), np.uint8)
      >>> data = from_arrays(images, [0, 1] * 2, images, [0, 1] * 2)
      >>> roomy = pad(split(data, tasks=2, validation=0), tasks=3, examples=20)
      >>> roomy.tables.examples.shape, roomy.tables.train.size.tolist(), roomy.schedule.task.tolist()
      ((20, 2, 2, 1), [2, 2, 0], [0, 1, 2])
    """
    check_stream(stream)
    tables, now = stream.tables, stream.tables.classes.shape
    tasks = whole("tasks", tasks, least=now[0])
    size = whole("examples", examples, least=len(tables.examples))
    outputs = now[1] if classes is None else whole("classes", classes, least=now[1])
    more = tasks - now[0]

    def grown(table: Table) -> Table:
        padded = pad_table(table, whole("examples", examples, least=len(table.index)), outputs)
        start = np.pad(np.asarray(table.start), (0, more), constant_values=int(np.sum(table.size)))
        return padded._replace(start=start, size=np.pad(np.asarray(table.size), (0, more)))

    rows = lambda values: (
        None if values is None else np.pad(np.asarray(values), ((0, more), *[(0, 0)] * (np.ndim(values) - 1)))
    )
    images: Any = np.asarray(tables.examples)
    room = np.zeros((size - len(images), *images.shape[1:]), images.dtype)
    last = int(np.asarray(stream.schedule.epochs)[-1]) if epochs is None else epochs
    later = Schedule(np.arange(now[0], tasks), np.full(more, whole("epochs", last, least=1)), np.ones(more, np.bool_))
    parts: dict[str, Any] = {part: grown(getattr(tables, part)) for part in SPLITS}
    padded = tables._replace(
        examples=np.concatenate([images, room]),
        permutation=rows(tables.permutation),
        classes=np.pad(np.asarray(tables.classes), ((0, more), (0, outputs - now[1]))),
        single_label=rows(tables.single_label),
        **parts,
    )
    return stream._replace(tables=padded, schedule=_then(stream.schedule, later))


def _then(schedule: Schedule, later: Schedule) -> Schedule:
    """One schedule, then another."""
    pairs = [(np.asarray(one), np.asarray(other)) for one, other in zip(schedule, later, strict=True)]
    return Schedule(*(np.concatenate([one, other.astype(one.dtype)]) for one, other in pairs))


def _join(one: Table, other: Table, offset: int, outputs: int) -> Table:
    """Two streams' tables of a split, the second's rows after so many examples."""
    parts = [(one, 0), (other, offset)]
    rows, labels = [], []
    for table, before in parts:
        values = np.asarray(table.labels)
        values = as_kind(values, None, outputs) if values.ndim == 2 else values
        for start, size in zip(table.start, table.size, strict=True):
            rows.append(np.asarray(table.index)[start : start + size] + before)
            labels.append(values[start : start + size])
    return make_table(rows, labels)
