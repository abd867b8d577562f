"""Schedules: in which order, and for how many epochs, tasks are visited."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from cljax.data.statistics import statistics_of_rows
from cljax.keys import LARGEST_SEED
from cljax.numbers import INT32, check_kind, whole
from cljax.types import Schedule, Stream, Table, Tables

MOST = 1_000_000
"""Tasks of a stream, and rounds of a schedule, at most: more would take hours before anything is trained."""


def lifelong(tasks: int, epochs: int | Sequence[int]) -> Schedule:
    """Every task once, in order, evaluated after each.

    Args:
      tasks: T.
      epochs: of every task, or one number a task.

    Raises:
      ValueError: fewer than one task or epoch, or not one number a task.

    Example:
      >>> from cljax.streams import lifelong
      >>> lifelong(3, 5).task.tolist(), lifelong(3, 5).epochs.tolist()
      ([0, 1, 2], [5, 5, 5])
    """
    tasks = whole("tasks", tasks, least=1, most=MOST)
    if np.ndim(epochs) and len(np.asarray(epochs)) != tasks:
        raise ValueError(f"{len(np.asarray(epochs))} numbers of epochs were given for {tasks} tasks; give one a task.")
    each: Any = epochs if np.ndim(epochs) else [epochs] * tasks
    return _schedule(np.arange(tasks), [whole("epochs", one) for one in each], np.ones(tasks, np.bool_))


def multi_task(tasks: int, rounds: int, *, seed: int = 0, evaluate_every: int = 1) -> Schedule:
    """Rounds of one epoch on a task picked uniformly at random, independently of the rounds before.

    Args:
      tasks: T.
      rounds: R.
      seed: of the picks.
      evaluate_every: evaluate after each so many rounds, and after the last.

    Raises:
      ValueError: fewer than one task, round, or round between evaluations.

    Example:
      >>> from cljax.streams import multi_task
      >>> multi_task(3, 5, evaluate_every=2).evaluate.tolist()
      [False, True, False, True, True]

    Source: the multi-task regime of S. Lee, J. Stokes and E. Eaton, Learning Shared Knowledge for Deep Lifelong
    Learning Using Deconvolutional Networks, IJCAI 2019.
    """
    tasks, rounds = whole("tasks", tasks, least=1, most=MOST), whole("rounds", rounds, least=1, most=MOST)
    evaluate_every, seed = whole("evaluate_every", evaluate_every, least=1), whole("seed", seed, most=LARGEST_SEED)
    task = np.random.default_rng([seed, _PICKS]).integers(tasks, size=rounds)
    number = np.arange(1, rounds + 1)
    return _schedule(task, np.ones(rounds, np.int32), (number % evaluate_every == 0) | (number == rounds))


def together(tasks: int, epochs: int) -> Schedule:
    """All tasks at once, for a method that trains on every task seen (`methods.joint`), evaluated in the end.

    All visits but the last take no epoch: that one trains with all tasks seen.

    Args:
      tasks: T.
      epochs: of the last visit.

    Raises:
      ValueError: fewer than one task or epoch.

    Example:
      >>> from cljax.streams import together
      >>> together(3, 120).epochs.tolist(), together(3, 120).evaluate.tolist()
      ([0, 0, 120], [False, False, True])

    Source: the multi-task training of S. Golkar, M. Kagan and K. Cho, Continual Learning via Neural Pruning, 2019,
    appendix A.
    """
    tasks, epochs = whole("tasks", tasks, least=1, most=MOST), whole("epochs", epochs, least=1)
    last = np.arange(tasks) == tasks - 1
    return _schedule(np.arange(tasks), epochs * last, last)


_PICKS = 3
"""Keeps the random numbers of schedules apart from those of splits at the same seed."""


def visits(sequence: Iterable[tuple[int, int]]) -> Schedule:
    """Visits `(task, epochs)` in a free order, tasks may recur; evaluated after each.

    Args:
      sequence: the visits.

    Raises:
      ValueError: no visit, a negative task, or fewer than one epoch.

    Example:
      >>> from cljax.streams import visits
      >>> visits([(0, 3), (1, 3), (0, 1)]).task.tolist()
      [0, 1, 0]
    """
    pairs = list(sequence)
    if wrong := [pair for pair in pairs if np.shape(pair) != (2,)]:
        raise ValueError(f"A visit is a pair, (task, epochs), not {wrong[0]!r}.")
    task, epochs = ([whole(name, pair[place]) for pair in pairs] for place, name in enumerate(("task", "epochs")))
    return _schedule(task, epochs, np.ones(len(pairs), np.bool_))


def with_schedule(stream: Stream, schedule: Schedule) -> Stream:
    """Gives a stream another schedule, and numbers its tasks by first visit.

    The n-th task to be visited for the first time becomes task n; tasks that no round visits come last. Tables,
    permutation, classes and facts follow, and `facts['tasks']` keeps the original numbers. So do mean and standard
    deviation, where they are the first task's.

    Args:
      stream: as built, tables unstacked.
      schedule: in the stream's present task numbers.

    Raises:
      ValueError: the schedule names a task that the stream has not; a stream with room for tasks to come.

    Example:
      >>> import numpy as np
      >>> from cljax.data import from_arrays
      >>> from cljax.streams import split, visits, with_schedule
      >>> images = np.zeros((6, 2, 2, 1), np.uint8)
      >>> data = from_arrays(images, [0, 1, 2] * 2, images, [0, 1, 2] * 2)
      >>> stream = with_schedule(split(data, tasks=3), visits([(2, 1), (0, 1), (2, 1), (1, 1)]))
      >>> stream.schedule.task.tolist(), stream.facts["tasks"]
      ([0, 1, 0, 2], [2, 0, 1])
    """
    check_kind("The schedule", schedule, Schedule, "of streams.lifelong(...) or streams.visits(...)")
    tables, count = stream.tables, len(stream.tables.classes)
    if len(stream.facts["tasks"]) < count:
        raise ValueError(
            f"The stream {stream.name!r} has room for tasks to come (streams.pad), which have no order yet. Give the "
            f"stream as it was the schedule, and pad it then."
        )
    schedule = _schedule(*schedule)
    if schedule.task.max() >= count:
        raise ValueError(
            f"The schedule visits task {schedule.task.max()}, but the stream has {count} tasks, numbered 0 to "
            f"{count - 1}."
        )
    visited = list(dict.fromkeys(schedule.task.tolist()))
    order = visited + [task for task in range(count) if task not in visited]
    in_order: Any = lambda leaf: None if leaf is None else np.asarray(leaf)[order]
    if order != list(range(count)):
        tables = tables._replace(
            train=_reorder(tables.train, order),
            validation=_reorder(tables.validation, order),
            test=_reorder(tables.test, order),
            permutation=in_order(tables.permutation),
            classes=in_order(tables.classes),
            single_label=in_order(tables.single_label),
        )
    facts, statistics = dict(stream.facts), (stream.mean, stream.std)
    if facts.get("standardised_by") == FIRST_TASK and (order[0] or not stream.mean):
        statistics = first_task_statistics(tables)
    for name in {"tasks", "classes", "fraction", "groups"} & facts.keys():
        facts[name] = [facts[name][task] for task in order]
    facts["sizes"] = {part: [sizes[task] for task in order] for part, sizes in facts["sizes"].items()}
    new = np.argsort(order)
    return stream._replace(
        tables=tables,
        schedule=schedule._replace(task=new[schedule.task].astype(np.int32)),
        facts=facts,
        mean=statistics[0],
        std=statistics[1],
    )


FIRST_TASK = "the training part of the first task"
"""What `facts['standardised_by']` says where mean and standard deviation are of nothing that comes later."""


def first_task_statistics(tables: Tables) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation a channel of the first task's training part, without its validation part.

    All elements of a vector have the same ones where they are bytes, which are of one unit, and an element that hardly
    differs in the first task may in a later one; and where they are permuted, which leaves these true in every task.
    """
    start, size = int(tables.train.start[0]), int(tables.train.size[0])
    pooled = tables.examples.ndim == 2 and (tables.examples.dtype == np.uint8 or tables.permutation is not None)
    return statistics_of_rows(tables.examples, np.asarray(tables.train.index[start : start + size]), pooled=pooled)


def check_schedule(schedule: Schedule, tasks: int) -> None:
    """Checks a schedule that did not come from here: whole numbers, tasks that exist and are numbered by first visit.

    Methods that forget nothing tell old tasks from new ones by their numbers.

    Raises:
      ValueError: naming the round and the cure.

    Example:
      >>> check_schedule(Schedule(np.array([1, 0]), np.array([1, 1]), np.array([True, True])), 2)
      Traceback (most recent call last):
      ...
      ValueError: Round 0 of the schedule visits task 1 before task 0. Tasks are numbered by first visit: ...
    """
    task = _schedule(*schedule).task
    if task.max() >= tasks:
        raise ValueError(f"The schedule visits task {task.max()}, but the stream has tasks 0 to {tasks - 1}.")
    newest = np.maximum.accumulate(task)
    early = np.flatnonzero(np.diff(newest, prepend=-1) > 1)
    if early.size:
        number = int(early[0])
        before = newest[number - 1] + 1 if number else 0
        raise ValueError(
            f"Round {number} of the schedule visits task {task[number]} before task {before}. Tasks are numbered by "
            f"first visit: streams.with_schedule(stream, schedule) numbers them anew."
        )


def make_table(rows: Sequence[np.ndarray], labels: Sequence[np.ndarray]) -> Table:
    """A table of each task's rows and labels, one task after the other; one row of padding where all are empty."""
    size: Any = np.asarray([len(part) for part in rows], np.int32)
    index: Any = np.concatenate(rows).astype(np.int32)
    values: Any = np.concatenate(labels)
    if not len(index):
        index, values = np.zeros(1, np.int32), np.zeros((1, *values.shape[1:]), values.dtype)
    start: Any = np.concatenate([[0], np.cumsum(size)[:-1]]).astype(np.int32)
    return Table(index, values, start, size)


def _reorder(table: Table, order: Sequence[int]) -> Table:
    slices = [slice(table.start[task], table.start[task] + table.size[task]) for task in order]
    index, labels = np.asarray(table.index), np.asarray(table.labels)
    return make_table([index[part] for part in slices], [labels[part] for part in slices])


def _schedule(task: Any, epochs: Any, evaluate: Any) -> Schedule:
    """Checks and converts."""
    task, epochs, evaluate = (np.asarray(part) for part in (task, epochs, evaluate))
    if task.size > MOST:
        raise ValueError(f"A schedule has {task.size} rounds, but may have at most {MOST}.")
    if not (task.shape == epochs.shape == evaluate.shape and task.ndim == 1 and task.size):
        raise ValueError(
            f"A schedule needs at least one round, and a task, a number of epochs and an evaluation flag for each; got "
            f"shapes {task.shape}, {epochs.shape} and {evaluate.shape}."
        )
    for name, part in (("tasks", task), ("epochs", epochs)):
        if not np.issubdtype(part.dtype, np.integer) or part.max() > INT32:
            raise ValueError(
                f"A schedule's {name} must be whole numbers up to {INT32}, not {part.dtype}: {part.max()}."
            )
    number = np.arange(len(epochs))
    begins = (np.cumsum(epochs != 0) == 0) & ((number < len(epochs) - 1) | (number == 0))
    wrong = (task < 0) | (epochs < np.where(begins, 0, 1))
    if wrong.any():
        first = int(np.argmax(wrong))
        raise ValueError(
            f"Round {first} of the schedule visits task {task[first]} for {epochs[first]} epochs; tasks are numbered "
            f"from 0, and a visit takes at least one epoch. Only at the beginning some may take none: the first, where "
            f"parameters are given, or all but the last, where that trains on all tasks (streams.together)."
        )
    return Schedule(task.astype(np.int32), epochs.astype(np.int32), evaluate.astype(np.bool_))
