"""How classes are divided among tasks, and training examples between training and validation part.

Each use of a seed has random numbers of its own, so that one choice never changes another.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from cljax.numbers import INT32, is_list, real, several, whole

_ORDER, _VALIDATION, _FRACTION = 0, 1, 2


def draw_class_order(
    class_order: str | Sequence[int] | np.ndarray | None, count: int, seed: int, *, what: str = "classes"
) -> np.ndarray:
    """The classes in order: 0..count-1 for None, drawn by the seed for 'random', iCaRL's for 'icarl', else as given.

    iCaRL's is `numpy.random.RandomState(1993).shuffle` of 0..count-1, whatever the seed: 68, 56, 78, 8, ... of 100.

    Raises:
      ValueError: another word, or an order with unknown or repeated classes.

    Example:
      >>> draw_class_order([2, 0], 3, seed=0).tolist(), draw_class_order("icarl", 100, seed=0)[:4].tolist()
      ([2, 0], [68, 56, 78, 8])

    Source: S.-A. Rebuffi et al., iCaRL: Incremental Classifier and Representation Learning, CVPR 2017; its public code.
    """
    if class_order is None:
        return np.arange(count)
    option = "class_order" if what == "classes" else "order"
    if isinstance(class_order, str):
        if class_order == "icarl":
            return np.random.RandomState(1993).permutation(count)
        if class_order != "random":
            raise ValueError(f"{option} is {class_order!r}, but must be None, 'random', 'icarl' or their numbers.")
        return np.random.default_rng([seed, _ORDER]).permutation(count)
    such = f"None, 'random', 'icarl' or a list of {what}"
    order = [whole(option, label, least=-INT32) for label in several(option, class_order, such)]
    often = Counter(order)
    wrong = [label for label in order if not 0 <= label < count or often[label] > 1]
    if wrong or not order:
        raise ValueError(
            f"{option} must name {what} 0 to {count - 1}, each at most once; {wrong[0] if wrong else 'nothing'} "
            f"is unknown, repeated or missing in {order}."
        )
    return np.asarray(order)


def group_classes(
    order: np.ndarray, tasks: int, sizes: Sequence[int] | None, *, what: str = "classes"
) -> list[np.ndarray]:
    """The classes of each task: `sizes` many, or as equal as possible, the first tasks being the larger ones.

    Raises:
      ValueError: more tasks than classes, or sizes that do not add up.

    Example:
      >>> [group.tolist() for group in group_classes(np.arange(5), 2, None)]
      [[0, 1, 2], [3, 4]]
    """
    if tasks > len(order):
        raise ValueError(
            f"There are more tasks ({tasks}) than {what} ({len(order)}), but every task needs at least one of them. "
            f"Ask for at most {len(order)} tasks."
        )
    if sizes is None:
        return np.array_split(order, tasks)
    sizes = [whole("sizes", size) for size in several("sizes", sizes, "a list of numbers of classes, one a task")]
    if len(sizes) != tasks or min(sizes) < 1 or sum(sizes) != len(order):
        raise ValueError(
            f"sizes is {list(sizes)}, but must hold {tasks} numbers of classes, one a task, each at least 1, which add "
            f"up to the {len(order)} classes in use."
        )
    return np.split(order, np.cumsum(sizes)[:-1])


def set_aside(labels: np.ndarray, fraction: float, seed: int, task: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows for training and rows for validation, both ascending.

    Of the n examples of a class, `max(1, round(fraction n))` are set aside, but never the last one; which ones, depends
    on seed, task and class alone. Multi-label examples are one class here.

    Args:
      labels: `[n]` int32, or `[n, K]` float32.
      fraction: in [0, 1); nothing is set aside at 0.
      seed: of the choice.
      task: of a stream whose tasks have examples of their own.

    Example:
      >>> learn, validate = set_aside(np.array([0] * 20 + [1]), 0.1, seed=0)
      >>> len(learn), len(validate), 20 in learn
      (19, 2, True)
    """
    held = np.zeros(len(labels), np.bool_)
    for label, group in _by_class(labels):
        count = int(fraction * len(group) + 0.5)
        if fraction > 0:
            count = min(max(count, 1), len(group) - 1)
        held[np.random.default_rng([seed, _VALIDATION, task, label]).permutation(group)[:count]] = True
    return np.flatnonzero(~held), np.flatnonzero(held)


def subsample(labels: np.ndarray, rows: np.ndarray, fraction: float, seed: int, task: int = 0) -> np.ndarray:
    """A class-balanced part of some rows, ascending; a smaller fraction's rows are among those of every larger one.

    Of the n rows of a class, `max(1, round(fraction n))` are kept: the first of an order that depends on seed, task and
    class alone. Multi-label examples are one class here.

    Args:
      labels: of all examples, `[n]` int32, or `[n, K]` float32.
      rows: those to choose from, ascending, such as the training rows of `set_aside`.
      fraction: in (0, 1]; 1 keeps all.
      seed: of the choice.
      task: of a stream whose tasks have examples of their own.

    Example:
      >>> labels = np.array([0] * 20 + [1])
      >>> few, more = (subsample(labels, np.arange(21), fraction, seed=0) for fraction in (0.1, 0.3))
      >>> len(few), len(more), 20 in few, set(few) <= set(more)
      (3, 7, True, True)
    """
    kept = [
        rows[
            np.random.default_rng([seed, _FRACTION, task, label]).permutation(group)[: max(1, int(fraction * n + 0.5))]
        ]
        for label, group in _by_class(labels[rows])
        for n in [len(group)]
    ]
    return np.sort(np.concatenate([rows[:0], *kept]))


def fractions(fraction: float | Sequence[float], tasks: int) -> list[float]:
    """The fraction of each task's training examples, one number a task.

    Raises:
      ValueError: a fraction outside (0, 1], or not one number a task.

    Example:
      >>> fractions(0.3, 2), fractions([1, 0.3], 2)
      ([0.3, 0.3], [1.0, 0.3])
    """
    given: Any = fraction if is_list(fraction) else [fraction] * tasks
    if len(given) != tasks:
        raise ValueError(f"{len(given)} fractions were given for {tasks} tasks; give one for all tasks, or one a task.")
    return [real("The fraction of training examples", one, above=0, most=1) for one in given]


def _by_class(labels: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """Each class that occurs, and where; multi-label examples are one class, 0."""
    if labels.ndim == 2:
        return [(0, np.arange(len(labels)))]
    return [(int(label), np.flatnonzero(labels == label)) for label in np.unique(labels)]
