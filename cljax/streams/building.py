"""Streams from data: class splits, permuted pixels, or arrays task by task.

Examples are never copied per task: a task is a list of rows of one shared array. Division into training and
validation part, class order and permutations are functions of the seed alone, each with random numbers of its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from cljax.data.arrays import PARTS, check_classes, check_labels, check_pair, check_parts
from cljax.data.dataset import Dataset
from cljax.data.on_demand import join
from cljax.keys import LARGEST_SEED, make_key
from cljax.numbers import INT32, check_kind, flag, real, several, show, whole
from cljax.streams.division import draw_class_order, fractions, group_classes, set_aside, subsample
from cljax.streams.schedules import FIRST_TASK, MOST, lifelong, make_table, with_schedule
from cljax.types import Schedule, Stream, Tables

SCENARIOS = ("task", "class", "domain")


def split(
    dataset: Dataset,
    *,
    tasks: int,
    scenario: str = "task",
    seed: int = 0,
    class_order: str | Sequence[int] | np.ndarray | None = None,
    validation: float = 0.1,
    fraction: float | Sequence[float] = 1.0,
    sizes: Sequence[int] | None = None,
    epochs: int | Sequence[int] = 1,
    schedule: Schedule | None = None,
) -> Stream:
    """Divides the classes of a data set among tasks; a label is the index of its class within its task.

    Args:
      dataset: single-label.
      tasks: T.
      scenario: `'task'`, `'class'` or `'domain'`-incremental: how logits will be read. The tables do not depend on it.
      seed: of the class order, if random, and of the validation part.
      class_order: None for 0..K-1, `'random'`, `'icarl'` (the order of 1993 of iCaRL and many after it), or the classes
        to use, in order (some may be left out).
      validation: fraction of each class's training examples set aside, at least one example where the class has two.
      fraction: of each class's training examples that is used, in (0, 1], at least one example a class; one number, or
        one a task. Taken after the validation part has been set aside from all examples: that and the test part stay
        whole, so that runs with more and less data are chosen and measured on the same examples. Fewer examples are
        always among the more of the same seed.
      sizes: number of classes of each task; as equal as possible where None, the first tasks being the larger ones.
      epochs: of each visit, where `schedule` is None.
      schedule: the rounds; lifelong where None. Tasks are renumbered by first visit.

    Returns:
      Stream with labels int32 and classes `[T, K]`, K the largest number of classes of a task.

    Raises:
      ValueError: more tasks than classes, sizes that do not add up, an order with unknown or repeated classes, a task
        without training examples, multi-label data, an unknown scenario, a fraction out of range.

    Example:
      >>> import numpy as np
      >>> from cljax.data import from_arrays
      >>> from cljax.streams import split
      >>> images = np.zeros((10, 2, 2, 1), np.uint8)
      >>> data = from_arrays(images, list(range(5)) * 2, images[:5], list(range(5)))
      >>> stream = split(data, tasks=2)
      >>> stream.facts["classes"], stream.tables.classes.sum(axis=1).tolist()
      ([['0', '1', '2'], ['3', '4']], [3, 2])
    """
    seed = check_options(tasks, scenario, validation, seed)
    check_dataset(dataset)
    if dataset.labels.ndim == 2:
        raise ValueError(
            f"The data set {dataset.name!r} is multi-label, so that its classes cannot be divided among tasks without "
            f"dividing its examples. Divide them yourself and use streams.from_tasks."
        )
    examples: Any = dataset.images
    count = len(dataset.classes)
    order = draw_class_order(class_order, count, seed)
    groups = group_classes(order, tasks, sizes)
    learn, validate = set_aside(dataset.train_labels, validation, seed)
    test = np.arange(dataset.train_size, len(dataset.labels))
    used = fractions(fraction, tasks)
    within = np.full(count, -1, np.int32)
    for group in groups:
        within[group] = np.arange(len(group))
    parts = {}
    for name, rows in (("train", learn), ("validation", validate), ("test", test)):
        chosen = [rows[np.isin(dataset.labels[rows], group)] for group in groups]
        if name == "train":
            chosen = [subsample(dataset.labels, *part, seed) for part in zip(chosen, used, strict=True)]
        parts[name] = make_table(chosen, [within[dataset.labels[part]] for part in chosen])
    for task, group in enumerate(groups):
        if not parts["train"].size[task]:
            names = ", ".join(dataset.classes[label] for label in group)
            raise ValueError(
                f"Task {task} (classes {names}) has no training examples in the data set {dataset.name!r}. Leave these "
                f"classes out with class_order, or give each task a class that has examples."
            )
    largest = max(len(group) for group in groups)
    classes: Any = np.asarray([[label < len(group) for label in range(largest)] for group in groups])
    tables = Tables(examples, parts["train"], parts["validation"], parts["test"], None, classes)
    facts = {
        "kind": "split",
        "class_order": [int(label) for label in order],
        "classes": [[dataset.classes[label] for label in group] for group in groups],
    }
    return finish(tables, dataset.name, scenario, dataset.statistics, seed, validation, used, facts, epochs, schedule)


def permuted(
    dataset: Dataset,
    *,
    tasks: int,
    scenario: str = "domain",
    seed: int = 0,
    first_identity: bool = False,
    validation: float = 0.1,
    fraction: float | Sequence[float] = 1.0,
    epochs: int | Sequence[int] = 1,
    schedule: Schedule | None = None,
) -> Stream:
    """Shows the whole data set in every task, its pixels permuted differently.

    Task t uses `jax.random.permutation(fold_in(keys.make_key(seed), t), H * W)` for training, validation and test
    alike, whatever JAX's settings. Whole pixels move: the channels of a pixel stay together, so that statistics per
    channel stay true. Of vectors `[n, D]`, the D elements are permuted.

    Args:
      dataset: single-label or multi-label.
      tasks: T.
      scenario: as in `split`.
      seed: of the permutations and the validation part.
      first_identity: whether task 0 shows the images as they are.
      validation: as in `split`.
      fraction: as in `split`.
      epochs: as in `split`.
      schedule: as in `split`.

    Returns:
      Stream with a permutation `[T, P]` int32 over an example's P flattened elements; the tasks share all examples.

    Raises:
      ValueError: fewer than one task, an unknown scenario, a fraction out of range.

    Example:
      >>> import numpy as np
      >>> from cljax.data import from_arrays
      >>> from cljax.streams import permuted
      >>> images = np.zeros((4, 2, 2, 1), np.uint8)
      >>> stream = permuted(from_arrays(images, [0, 1] * 2, images, [0, 1] * 2), tasks=2, first_identity=True)
      >>> stream.tables.permutation[0].tolist(), stream.tables.permutation.shape
      ([0, 1, 2, 3], (2, 4))

    Source: I. Goodfellow et al., An Empirical Investigation of Catastrophic Forgetting in Gradient-Based Neural
    Networks, ICLR 2014, section 5.
    """
    seed = check_options(tasks, scenario, validation, seed)
    check_dataset(dataset)
    examples: Any = dataset.images
    shape = examples.shape[1:]
    largest = max(len(dataset.labels), int(np.prod(shape)))
    if tasks * largest > INT32:
        raise ValueError(
            f"{tasks} tasks of {len(dataset.labels)} examples of shape {shape} need tables of more than 2**31 entries. "
            f"Ask for at most {INT32 // largest} tasks."
        )
    channels = shape[-1] if len(shape) == 3 else 1
    pixels = int(np.prod(shape)) // channels
    if dataset.statistics is not None and len(shape) == 1 and any(len(set(one)) > 1 for one in dataset.statistics):
        raise ValueError(
            f"Each element of {dataset.name!r} has its own mean and standard deviation, and once permuted would have "
            f"another's. Join the data sets without normalize='each'."
        )
    key = make_key(seed)
    moves = np.stack([jax.random.permutation(jax.random.fold_in(key, task), pixels) for task in range(tasks)])
    if flag("first_identity", first_identity):
        moves[0] = np.arange(pixels)
    permutation: Any = (moves[:, :, None] * channels + np.arange(channels)).reshape(tasks, -1).astype(np.int32)
    learn, validate = set_aside(dataset.train_labels, validation, seed)
    test = np.arange(dataset.train_size, len(dataset.labels))
    used = fractions(fraction, tasks)
    learned = [subsample(dataset.labels, learn, part, seed) for part in used]
    train_table, validation_table, test_table = (
        make_table(rows, [dataset.labels[part] for part in rows])
        for rows in (learned, [validate] * tasks, [test] * tasks)
    )
    classes: Any = np.ones((tasks, len(dataset.classes)), np.bool_)
    tables = Tables(examples, train_table, validation_table, test_table, permutation, classes)
    facts = {
        "kind": "permuted",
        "permutation": {
            "rule": "jax.random.permutation(jax.random.fold_in(cljax.keys.make_key(seed), task), pixels)",
            "seed": seed,
            "pixels": pixels,
            "first_identity": first_identity,
            "sha256": hashlib.sha256(permutation.tobytes()).hexdigest(),
        },
        "classes": [list(dataset.classes)] * tasks,
    }
    return finish(tables, dataset.name, scenario, dataset.statistics, seed, validation, used, facts, epochs, schedule)


def from_tasks(
    tasks: Sequence[tuple[Any, ...]],
    *,
    scenario: str = "task",
    seed: int = 0,
    validation: float = 0.1,
    fraction: float | Sequence[float] = 1.0,
    epochs: int | Sequence[int] = 1,
    schedule: Schedule | None = None,
    name: str = "arrays",
) -> Stream:
    """Makes a stream of arrays given task by task, such as a sequence of data sets.

    Args:
      tasks: for each, `(train_images, train_labels, test_images, test_labels)` as in `data.from_arrays`, or pairs,
        `((X, y), (X_test, y_test))`; sizes and numbers of classes may differ, shapes and dtypes of the images may not.
        Labels are within the task, from 0; or of all tasks together, where no two tasks share a class.
      scenario: as in `split`.
      seed: of the validation part.
      validation: as in `split`; of multi-label tasks, a plain random choice.
      fraction: as in `split`; of multi-label tasks, a plain random choice.
      epochs: as in `split`.
      schedule: as in `split`.
      name: of the data.

    Returns:
      Stream; labels int32; or, where a task is multi-label, float32 `[N, K]`, padded with zero columns where a task has
      fewer classes, and one-hot where a task is single-label: `tables.single_label` says which are.

    Raises:
      TypeError, ValueError: what `data.from_arrays` refuses, the message naming the task; tasks of differing shapes.

    Example:
      >>> import numpy as np
      >>> from cljax.streams import from_tasks
      >>> images = np.zeros((4, 2, 2, 1), np.uint8)
      >>> stream = from_tasks([(images, [0, 1] * 2, images, [0, 1] * 2), (images, [0, 1, 2, 2], images[:1], [2])])
      >>> stream.tables.train.size.tolist(), stream.tables.test.size.tolist(), stream.tables.classes.tolist()
      ([2, 3], [4, 1], [[True, True, False], [True, True, True]])
      >>> pairs = [((images, [0, 1] * 2), (images, [0, 1] * 2)), ((images, [2, 3] * 2), (images, [3, 3, 2, 2]))]
      >>> stream = from_tasks(pairs)
      >>> stream.facts["classes"], stream.tables.test.labels.tolist()
      ([['0', '1'], ['2', '3']], [0, 1, 0, 1, 1, 1, 0, 0])
    """
    tasks = several("tasks", tasks, f"a list of {FOUR}", least=1)
    seed = check_options(len(tasks), scenario, validation, seed)
    arrays = [check_parts(_names(number), *_four(number, task)) for number, task in enumerate(tasks)]
    names = _classes_of_all([labels for _, labels, *_ in arrays])
    checked = [_check_task(number, own, *task) for number, (task, own) in enumerate(zip(arrays, names, strict=True))]
    used = fractions(fraction, len(tasks))
    for number, task in enumerate(checked[1:], 1):
        check_pair(checked[0][0], task[0], "The images of task 0", f"the images of task {number}")
    largest, single = max(len(own) for *_, own in checked), single_label([task[1] for task in checked])
    offset = 0
    rows: dict[str, list[np.ndarray]] = {"train": [], "validation": [], "test": []}
    labels: dict[str, list[np.ndarray]] = {"train": [], "validation": [], "test": []}
    for number, (train_images, train_labels, test_images, test_labels, _) in enumerate(checked):
        learn, validate = set_aside(train_labels, validation, seed, number)
        learn = subsample(train_labels, learn, used[number], seed, number)
        test = len(train_images) + np.arange(len(test_images))
        values = as_kind(np.concatenate([train_labels, test_labels]), single, largest)
        for part, chosen in (("train", learn), ("validation", validate), ("test", test)):
            rows[part].append(offset + chosen)
            labels[part].append(values[chosen])
        offset += len(values)
    examples: Any = join([images for task in checked for images in (task[0], task[2])], name=name)
    classes: Any = np.asarray([[label < len(own) for label in range(largest)] for *_, own in checked])
    train_table, validation_table, test_table = (make_table(rows[part], labels[part]) for part in rows)
    tables = Tables(examples, train_table, validation_table, test_table, None, classes, single)
    facts = {"kind": "tasks", "classes": [own for *_, own in checked]}
    return finish(tables, name, scenario, None, seed, validation, used, facts, epochs, schedule)


def single_label(labels: Sequence[np.ndarray]) -> np.ndarray | None:
    """Which tasks are single-label, `[T]` bool, by their labels; None where all or none are."""
    kinds: Any = np.asarray([values.ndim == 1 for values in labels])
    return None if kinds.all() or not kinds.any() else kinds


def as_kind(labels: np.ndarray, single: np.ndarray | None, largest: int) -> np.ndarray:
    """A task's labels as a stream has them: float ones `[n, largest]`; so are single ones in a stream of both kinds.

    Example:
      >>> as_kind(np.array([1, 0]), np.array([True, False]), 3).tolist()
      [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]
    """
    if labels.ndim == 2:
        return np.pad(labels, ((0, 0), (0, largest - labels.shape[1])))
    return labels if single is None else (labels[:, None] == np.arange(largest)).astype(np.float32)


def check_options(tasks: int, scenario: str, validation: float, seed: int) -> int:
    """Checks what all streams are told.

    Returns:
      The seed, as a Python int.

    Raises:
      ValueError: no task or too many, an unknown scenario, a fraction out of range, a seed out of range.
    """
    whole("tasks", tasks, least=1, most=MOST)
    seed = whole("seed", seed, most=LARGEST_SEED)
    real("The validation fraction", validation, least=0, below=1)
    if scenario not in SCENARIOS:
        raise ValueError(f"The scenario is {scenario!r}, but must be 'task', 'class' or 'domain'.")
    return seed


def check_stream(stream: Any, name: str = "The stream") -> None:
    """Checks that a stream is one, and its schedule.

    Raises:
      ValueError: naming what it is.
    """
    check_kind(name, stream, Stream, "one of cljax.streams, built, such as streams.split(dataset, tasks=5)")
    check_kind(f"{name}'s schedule", stream.schedule, Schedule, "of streams.lifelong(...) or streams.visits(...)")


def check_dataset(dataset: Any) -> None:
    """Raises: TypeError, where it is no data set."""
    if not isinstance(dataset, Dataset):
        raise TypeError(
            f"dataset is {type(dataset).__name__}, but must be a data set, of data.load('digits') or data.from_arrays."
        )


FOUR = "(train_images, train_labels, test_images, test_labels), or ((X, y), (X_test, y_test)), one for each task"


def _four(number: int, task: Any) -> tuple[Any, ...]:
    """A task's arrays, of pairs too."""
    if isinstance(task, Dataset):
        raise TypeError(f"Task {number} is a data set, but must be {FOUR}: streams.sequence takes data sets.")
    parts = list(task) if isinstance(task, tuple | list) else []
    if len(parts) == 2 and all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in parts):
        parts = [*parts[0], *parts[1]]
    if len(parts) != 4:
        what = f"{type(task).__name__} of {len(parts)}" if parts else show(task)
        raise TypeError(f"Task {number} is {what}, but must be {FOUR}. Set a test part aside where there is none.")
    return tuple(parts)


def _classes_of_all(labels: list[np.ndarray]) -> list[np.ndarray | None]:
    """Each task's classes, where all are numbered together: from 0, without gaps, no two tasks sharing one; else None.

    Example:
      >>> [own.tolist() for own in _classes_of_all([np.array([2, 0]), np.array([3, 1, 1])])]
      [[0, 2], [1, 3]]
      >>> _classes_of_all([np.array([0, 1]), np.array([0, 1])])
      [None, None]
    """
    owns = [np.unique(values) for values in labels if values.ndim == 1]
    together = np.sort(np.concatenate(owns)) if len(owns) == len(labels) > 1 else np.zeros(0)
    numbered = together.size > 0 and np.array_equal(together, np.arange(len(together)))
    return list(owns) if numbered else [None] * len(labels)


def _names(number: int) -> list[str]:
    return [f"{part} of task {number}" for part in PARTS]


def _check_task(
    number: int,
    own: np.ndarray | None,
    train_images: Any,
    train_labels: np.ndarray,
    test_images: Any,
    test_labels: np.ndarray,
) -> tuple:
    """A task's arrays, labels within the task, and the names of its classes."""
    what = _names(number)
    if own is not None:
        if (stray := np.setdiff1d(test_labels, own)).size:
            raise ValueError(
                f"{what[3]} are out of range: {stray[0]} is a label of another task, or of none; this one's training "
                f"examples have {show(own.tolist())}."
            )
        pair = [np.searchsorted(own, labels).astype(np.int32) for labels in (train_labels, test_labels)]
        return train_images, pair[0], test_images, pair[1], [str(label) for label in own]
    count = train_labels.shape[1] if train_labels.ndim == 2 else int(train_labels.max()) + 1
    if train_labels.ndim == 1:
        check_classes(train_labels, count, what[1])
    check_labels(test_labels, test_images, what[3], what[2], count)
    return train_images, train_labels, test_images, test_labels, [str(label) for label in range(count)]


def finish(
    tables: Tables,
    name: str,
    scenario: str,
    statistics: tuple[tuple[float, ...], tuple[float, ...]] | None,
    seed: int,
    validation: float,
    fraction: list[float],
    facts: dict[str, Any],
    epochs: int | Sequence[int],
    schedule: Schedule | None,
) -> Stream:
    """A stream, from its tables and what is particular to it; adds common facts and the schedule.

    The network standardises by the statistics given; by those of the first task's training part where None.
    """
    count = len(tables.classes)
    splits = {"train": tables.train, "validation": tables.validation, "test": tables.test}
    facts = {
        "data": name,
        "scenario": scenario,
        "seed": seed,
        "validation": validation,
        "fraction": fraction,
        **facts,
        "standardised_by": FIRST_TASK if statistics is None else "the data set's own numbers",
        "tasks": list(range(count)),
        "sizes": {part: table.size.tolist() for part, table in splits.items()},
    }
    plain = lifelong(count, epochs if schedule is None else 1)
    return with_schedule(
        Stream(tables, plain, name, scenario, *(statistics or ((), ())), facts), plain if schedule is None else schedule
    )
