"""Streams of given groups of classes (several data sets, superclasses), and of one set of images labelled anew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cljax.data.arrays import check_labels, check_several
from cljax.data.combining import combine
from cljax.data.dataset import Dataset
from cljax.data.images import Size
from cljax.data.superclasses import Groups, groups_of
from cljax.keys import LARGEST_SEED
from cljax.numbers import show, whole
from cljax.streams.building import as_kind, check_classes, check_dataset, check_options, finish, single_label, split
from cljax.streams.division import draw_class_order, fractions, group_classes, set_aside, subsample
from cljax.streams.schedules import make_table
from cljax.types import Schedule, Stream, Tables


def sequence(
    datasets: Dataset | Sequence[Dataset],
    *,
    tasks: int | None = None,
    seed: int = 0,
    class_order: str | None = None,
    image_size: Size | None = None,
    normalize: str = "first",
    **options: Any,
) -> Stream:
    """One data set after the other, each a task or several; sizes, channels and numbers of classes may differ.

    Args:
      datasets: several, or what `data.combine` made of them (once for all seeds, which then share its examples).
      tasks: T, a multiple of the number of data sets, whose classes are divided as in `split`; one each where None.
      seed: as in `split`.
      class_order: within each data set: None, `'random'` or `'icarl'`, as in `split`.
      image_size: as in `data.combine`; not for data sets combined before.
      normalize: as in `data.combine`; not for data sets combined before.
      **options: scenario, validation, fraction, epochs, schedule, as in `split`.

    Returns:
      Stream; `facts['groups']` names each task's data set.

    Raises:
      ValueError: what `data.combine` and `split` refuse, a number of tasks that is no multiple, a data set that is not
        combined.

    Example:
      >>> import numpy as np
      >>> from cljax.data import from_arrays
      >>> from cljax.streams import sequence
      >>> grey, colour = np.zeros((6, 8, 8, 1), np.uint8), np.zeros((4, 4, 4, 3), np.uint8)
      >>> first = from_arrays(colour, [0, 1] * 2, colour, [0, 1] * 2, name="colour")
      >>> stream = sequence([first, from_arrays(grey, [0, 1, 2] * 2, grey, [0, 1, 2] * 2, name="grey")])
      >>> stream.tables.examples.shape, stream.facts["groups"], stream.tables.classes.sum(axis=1).tolist()
      ((20, 4, 4, 3), [['colour'], ['grey']], [2, 3])
    """
    if isinstance(datasets, Dataset):
        combined = datasets
        if not combined.groups:
            raise ValueError(f"The data set {combined.name!r} is one. Give several, or what data.combine made of them.")
    else:
        combined = combine(datasets, image_size=image_size, normalize=normalize)  # type: ignore[arg-type]
    number = len(combined.groups)
    tasks = number if tasks is None else whole("tasks", tasks, least=1)
    if tasks % number:
        raise ValueError(f"The tasks ({tasks}) must be a multiple of the {number} data sets, which all have as many.")
    seed = whole("seed", seed, most=LARGEST_SEED)
    parts: list[tuple[str, np.ndarray]] = []
    for name, classes in combined.groups:
        order = np.asarray(classes)[draw_class_order(class_order, len(classes), seed)]
        parts += [(name, part) for part in group_classes(order, tasks // number, None)]
    return _split(combined, [([name], part) for name, part in parts], "sequence", seed, options)


def by_superclass(
    dataset: Dataset,
    *,
    tasks: int | None = None,
    groups: Mapping[str, Sequence[str | int]] | None = None,
    order: str | Sequence[int] | np.ndarray | None = None,
    seed: int = 0,
    **options: Any,
) -> Stream:
    """Gives each task the classes of one superclass, or of several.

    Args:
      dataset: single-label; CIFAR-100, or another with `groups`.
      tasks: T, among which the superclasses are divided as equally as possible, the first tasks having more; one each
        where None.
      groups: names or numbers of the classes of each superclass; CIFAR-100's twenty where None.
      order: of the superclasses: None (as given; CIFAR-100's official order), `'random'`, or their numbers (some may be
        left out).
      seed: as in `split`, and of a random order.
      **options: scenario, validation, fraction, epochs, schedule, as in `split`.

    Returns:
      Stream; `facts['groups']` names each task's superclasses.

    Raises:
      ValueError: superclasses that are not known or do not fit, more tasks than superclasses, what `split` refuses.

    Example:
      >>> import numpy as np
      >>> from cljax.data import from_arrays
      >>> from cljax.streams import by_superclass
      >>> images = np.zeros((4, 2, 2, 1), np.uint8)
      >>> data = from_arrays(images, range(4), images, range(4), classes=["cat", "car", "dog", "bus"])
      >>> stream = by_superclass(data, groups={"animals": ["cat", "dog"], "vehicles": ["car", "bus"]})
      >>> stream.facts["groups"], stream.facts["classes"]
      ([['animals'], ['vehicles']], [['cat', 'dog'], ['car', 'bus']])
    """
    tasks = None if tasks is None else whole("tasks", tasks, least=1)
    seed = whole("seed", seed, most=LARGEST_SEED)
    check_dataset(dataset)
    known: Groups = groups_of(dataset.classes, groups, name=dataset.name)
    chosen = draw_class_order(order, len(known), seed, what="superclasses")
    members = group_classes(chosen, len(chosen) if tasks is None else tasks, None, what="superclasses")
    parts = [
        ([known[group][0] for group in part], np.concatenate([np.asarray(known[group][1]) for group in part]))
        for part in members
    ]
    return _split(dataset, parts, "superclass", seed, options)


def relabelled(
    dataset: Dataset,
    labels: Sequence[Any],
    *,
    names: Sequence[Sequence[str]] | None = None,
    scenario: str = "task",
    seed: int = 0,
    validation: float = 0.1,
    fraction: float | Sequence[float] = 1.0,
    epochs: int | Sequence[int] = 1,
    schedule: Schedule | None = None,
) -> Stream:
    """Shows the same images in every task, with other labels: fine and coarse classes, say. No example is copied.

    Args:
      dataset: the images; its own labels decide which examples are set aside for validation, in all tasks the same.
      labels: for each task, of all examples, the training part first: `[n]` whole numbers from 0, or -1 for an example
        that the task leaves out; or `[n, K]` float32 in [0, 1], multi-label. Tasks of both kinds: see `from_tasks`.
      names: of each task's classes; numbers where None.
      scenario: as in `split`.
      seed: as in `split`.
      validation: as in `split`.
      fraction: as in `split`; class-balanced by each task's own labels.
      epochs: as in `split`.
      schedule: as in `split`.

    Raises:
      TypeError, ValueError: labels of another length or out of range; a task without training examples; what `split`
        refuses.

    Example:
      >>> import numpy as np
      >>> from cljax.data import from_arrays
      >>> from cljax.streams import relabelled
      >>> images = np.zeros((4, 2, 2, 1), np.uint8)
      >>> data = from_arrays(images, [0, 1, 2, 3], images, [0, 1, 2, 3])
      >>> stream = relabelled(data, [data.labels, data.labels // 2], validation=0)
      >>> stream.tables.examples is data.images, stream.tables.train.labels.tolist()
      (True, [0, 1, 2, 3, 0, 0, 1, 1])
    """
    seed = check_options(len(labels), scenario, validation, seed)
    check_dataset(dataset)
    used = fractions(fraction, len(labels))
    learn, validate = set_aside(dataset.train_labels, validation, seed)
    test = np.arange(dataset.train_size, len(dataset.labels))
    checked, counts = [], []
    for task, given in enumerate(labels):
        values, count = _check_labels(dataset, given, task)
        if names is None and values.ndim == 1:
            own = values[: dataset.train_size]
            check_classes(own[own >= 0], count, f"The labels of task {task}")
        checked.append(values)
        counts.append(count)
    largest, single, tables = max(counts), single_label(checked), {}
    shown = [as_kind(values, single, largest) for values in checked]
    for part, rows in (("train", learn), ("validation", validate), ("test", test)):
        chosen = [rows if values.ndim == 2 else rows[values[rows] >= 0] for values in checked]
        if part == "train":
            chosen = [subsample(*pair, seed) for pair in zip(checked, chosen, used, strict=True)]
        tables[part] = make_table(chosen, [values[own] for values, own in zip(shown, chosen, strict=True)])
    if not tables["train"].size.all():
        raise ValueError(
            f"Task {int(np.argmin(tables['train'].size))} has no training examples: none has a label from 0, or all "
            f"that have one are set aside for validation. Give it labels, or a smaller validation."
        )
    classes: Any = np.arange(largest) < np.asarray(counts)[:, None]
    titles = (
        [list(map(str, range(count))) for count in counts] if names is None else [list(map(str, own)) for own in names]
    )
    if [len(own) for own in titles] != counts:
        raise ValueError(f"names are of {[len(own) for own in titles]} classes, but the tasks have {counts}.")
    examples: Any = dataset.images
    whole = Tables(examples, tables["train"], tables["validation"], tables["test"], None, classes, single)
    facts = {"kind": "relabelled", "classes": titles}
    return finish(whole, dataset.name, scenario, dataset.statistics, seed, validation, used, facts, epochs, schedule)


def one_vs_all(
    dataset: Dataset,
    *,
    tasks: int | None = None,
    class_order: str | Sequence[int] | np.ndarray | None = None,
    scenario: str = "task",
    seed: int = 0,
    validation: float = 0.1,
    fraction: float | Sequence[float] = 1.0,
    **options: Any,
) -> Stream:
    """Tells one class from all others in each task: binary tasks that share their images, "homogeneous" ones.

    Label 1 is the class, 0 any other. Of the others a task shows as many examples as of the class, drawn by the seed,
    or all there are; so it is in the training, the validation and the test part. To learn, they are drawn from the
    `fraction` that is kept of each class, so that K tasks learn from the same few images. Disjoint pairs of classes,
    "heterogeneous" binary tasks, are `split(dataset, tasks=K // 2)`.

    Args:
      dataset: single-label.
      tasks: T, of the first T classes in order; all K where None.
      class_order: as in `split`.
      scenario: as in `split`.
      seed: as in `split`, and of the draw.
      validation: as in `split`.
      fraction: of every class' training examples, a number for all tasks or one a task. Of a class, those of a smaller
        one are among those of a larger; which others are drawn from them differs.
      **options: epochs, schedule, as in `split`.

    Returns:
      Stream; no example is copied.

    Raises:
      ValueError: more tasks than classes; fewer than two classes; what `split` refuses.

    Example:
      >>> import numpy as np
      >>> from cljax.data import from_arrays
      >>> from cljax.streams import one_vs_all
      >>> images = np.zeros((6, 2, 2, 1), np.uint8)
      >>> stream = one_vs_all(from_arrays(images, [0, 1, 2] * 2, images, [0, 1, 2] * 2), validation=0)
      >>> stream.facts["classes"][2], stream.tables.train.size.tolist(), sorted(stream.tables.train.labels[:4].tolist())
      (['others', '2'], [4, 4, 4], [0, 0, 1, 1])

    Source: the task distributions of S. Lee, J. Stokes and E. Eaton, Learning Shared Knowledge for Deep Lifelong
    Learning Using Deconvolutional Networks, IJCAI 2019, appendix B.2.
    """
    check_dataset(dataset)
    count, given = len(dataset.classes), np.asarray(dataset.labels)
    if given.ndim == 2 or count < 2:
        raise ValueError(f"one_vs_all needs single labels of two classes or more, which {dataset.name!r} has not.")
    seed = whole("seed", seed, most=LARGEST_SEED)
    order = draw_class_order(class_order, count, seed)
    tasks = len(order) if tasks is None else whole("tasks", tasks, least=1, most=len(order))
    check_options(tasks, scenario, validation, seed)
    used = fractions(fraction, tasks)
    learn, validate = set_aside(dataset.train_labels, validation, seed)
    test = np.arange(dataset.train_size, len(given))
    labels = []
    for label, part in zip(order, used, strict=False):
        shown = np.full(len(given), -1, np.int32)
        for number, rows in enumerate((subsample(given, learn, part, seed), test, validate)):
            mine = given[rows] == label
            drawn = np.random.default_rng([seed, _OTHERS, int(label), number]).permutation(rows[~mine])
            shown[drawn[: np.count_nonzero(mine)]] = 0
            shown[rows[mine]] = 1
        labels.append(shown)
    names = [["others", dataset.classes[label]] for label in order[:tasks]]
    common: dict[str, Any] = {"scenario": scenario, "seed": seed, "validation": validation, **options}
    stream = relabelled(dataset, labels, names=names, **common)
    parts = [used[task] for task in stream.facts["tasks"]]
    facts = {**stream.facts, "kind": "one_vs_all", "class_order": order[:tasks].tolist(), "fraction": parts}
    return stream._replace(facts=facts)


_OTHERS = 4
"""Keeps the random numbers of this draw apart from others of the same seed."""


def superclass_labels(dataset: Dataset, groups: Mapping[str, Sequence[str | int]] | None = None) -> np.ndarray:
    """The superclass of every example, for `relabelled`; -1 where its class is in none.

    Args:
      dataset: single-label.
      groups: as in `by_superclass`.

    Returns:
      `[n]` int32.

    Example:
      >>> import numpy as np
      >>> from cljax.data import from_arrays
      >>> from cljax.streams import superclass_labels
      >>> images = np.zeros((4, 2, 2, 1), np.uint8)
      >>> data = from_arrays(images, range(4), images, range(4))
      >>> superclass_labels(data, {"even": [0, 2], "odd": [1, 3]}).tolist()
      [0, 1, 0, 1, 0, 1, 0, 1]
    """
    table = np.full(len(dataset.classes), -1, np.int32)
    for number, (_, classes) in enumerate(groups_of(dataset.classes, groups, name=dataset.name)):
        table[list(classes)] = number
    return table[dataset.labels]


def _split(
    dataset: Dataset, parts: Sequence[tuple[list[str], np.ndarray]], kind: str, seed: int, options: dict[str, Any]
) -> Stream:
    """Tasks of given classes, each with the names of its groups."""
    order = [int(label) for _, classes in parts for label in classes]
    sizes = [len(classes) for _, classes in parts]
    stream = split(dataset, tasks=len(parts), sizes=sizes, class_order=order, seed=seed, **options)
    groups = [parts[task][0] for task in stream.facts["tasks"]]
    return stream._replace(facts={**stream.facts, "kind": kind, "groups": groups})


def _check_labels(dataset: Dataset, given: Any, task: int) -> tuple[np.ndarray, int]:
    """A task's labels and its number of classes, by the training part; -1 stays."""
    what, values, images = f"The labels of task {task}", np.asarray(given), f"The images of {dataset.name!r}"
    if not values.ndim:
        raise ValueError(f"{what} are {show(given)}, but labels must be a list with an array for each task.")
    if not np.issubdtype(values.dtype, np.integer) or values.ndim != 1 or len(values) != len(dataset.labels):
        checked = check_labels(values, dataset.images, what, images, None)
        check_several(checked[: dataset.train_size], what)
        return checked, checked.shape[-1]
    count = int(values[: dataset.train_size].max()) + 1
    check_labels(np.maximum(values, 0), dataset.images, what, images, max(count, 1))
    if values.min() < -1:
        raise ValueError(f"{what} go down to {values.min()}, but must be at least 0, or -1 to leave an example out.")
    return values.astype(np.int32), count
