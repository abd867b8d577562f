"""How classes are divided among tasks, and training examples between training and validation part.

Each use of a seed has random numbers of its own, so that one choice never changes another.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_ORDER, _VALIDATION = 0, 1


def draw_class_order(class_order: str | Sequence[int] | None, count: int, seed: int) -> np.ndarray:
    """The classes in order: 0..count-1 for None, drawn by the seed for 'random', else as given.

    Raises:
      ValueError: another word, or an order with unknown or repeated classes.

    Example:
      >>> draw_class_order([2, 0], 3, seed=0).tolist()
      [2, 0]
    """
    if class_order is None:
        return np.arange(count)
    if isinstance(class_order, str):
        if class_order != "random":
            raise ValueError(f"class_order is {class_order!r}, but must be None, 'random' or a sequence of classes.")
        return np.random.default_rng([seed, _ORDER]).permutation(count)
    order = [int(label) for label in class_order]
    wrong = [label for label in order if not 0 <= label < count or order.count(label) > 1]
    if wrong or not order:
        raise ValueError(
            f"class_order must name classes 0 to {count - 1}, each at most once; {wrong[0] if wrong else 'nothing'} "
            f"is unknown, repeated or missing in {order}."
        )
    return np.asarray(order)


def group_classes(order: np.ndarray, tasks: int, sizes: Sequence[int] | None) -> list[np.ndarray]:
    """The classes of each task: `sizes` many, or as equal as possible, the first tasks being the larger ones.

    Raises:
      ValueError: more tasks than classes, or sizes that do not add up.

    Example:
      >>> [group.tolist() for group in group_classes(np.arange(5), 2, None)]
      [[0, 1, 2], [3, 4]]
    """
    if tasks > len(order):
        raise ValueError(
            f"There are more tasks ({tasks}) than classes ({len(order)}), but every task needs at least one class. "
            f"Ask for at most {len(order)} tasks."
        )
    if sizes is None:
        return np.array_split(order, tasks)
    if len(sizes) != tasks or min(sizes) < 1 or sum(sizes) != len(order):
        raise ValueError(
            f"sizes is {list(sizes)}, but must hold {tasks} numbers of classes, one a task, each at least 1, which add "
            f"up to the {len(order)} classes in use."
        )
    return np.split(order, np.cumsum(sizes)[:-1])


def set_aside(labels: np.ndarray, share: float, seed: int, task: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows for training and rows for validation, both ascending.

    Of the n examples of a class, `max(1, round(share n))` are set aside, but never the last one; which ones, depends on
    seed, task and class alone. Multi-label examples are one class here.

    Args:
      labels: `[n]` int32, or `[n, K]` float32.
      share: in [0, 1); nothing is set aside at 0.
      seed: of the choice.
      task: of a stream whose tasks have examples of their own.

    Example:
      >>> learn, validate = set_aside(np.array([0] * 20 + [1]), 0.1, seed=0)
      >>> len(learn), len(validate), 20 in learn
      (19, 2, True)
    """
    held = np.zeros(len(labels), np.bool_)
    groups = [np.arange(len(labels))] if labels.ndim == 2 else [np.flatnonzero(labels == k) for k in np.unique(labels)]
    for group in groups:
        count = int(share * len(group) + 0.5)
        if share > 0:
            count = min(max(count, 1), len(group) - 1)
        label = 0 if labels.ndim == 2 else int(labels[group[0]])
        held[np.random.default_rng([seed, _VALIDATION, task, label]).permutation(group)[:count]] = True
    return np.flatnonzero(~held), np.flatnonzero(held)
