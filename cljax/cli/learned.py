"""What a run has kept of its learners (`--keep-learners`): to go on from, with tasks nobody planned, and to predict."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import cljax
from cljax.cli.options import Options, Predict, UsageError, seed_numbers, settle

if TYPE_CHECKING:
    import pathlib

    import optax

    from cljax import training
    from cljax.types import Learner, Method, Stream, Tables


def notes_of(stream: Stream, evaluation: training.Evaluation, network: dict[str, Any]) -> dict[str, Any]:
    """What is kept beside a learner, as JSON has it.

    Args:
      stream: that it was trained on.
      evaluation: of `[R, T]`.
      network: what a record says of its network.
    """
    from cljax import report, streams

    tables, facts = stream.tables, stream.facts
    return report.plain(
        {
            "version": cljax.__version__,
            "network": network,
            "scenario": stream.scenario,
            "shape": tables.examples.shape[1:],
            "dtype": str(tables.examples.dtype),
            "labels": [str(tables.train.labels.dtype), *tables.train.labels.shape[1:]],
            "classes": tables.classes,
            "single_label": tables.single_label,
            "names": facts["classes"],
            "max_examples": streams.max_examples(tables),
            "mean": stream.mean,
            "std": stream.std,
            "evaluation": {name: found for name, found in evaluation._asdict().items() if name != "attention"},
        }
    )


def stream_of(notes: dict[str, Any]) -> Stream:
    """A stream of the same tasks, without examples."""
    import numpy as np

    from cljax.types import Schedule, Stream, Table, Tables

    classes: Any = np.asarray(notes["classes"], np.bool_)
    dtype, *columns = notes["labels"]
    none: Any = np.zeros(len(classes), np.int32)
    table = Table(np.zeros(1, np.int32), np.zeros((1, *columns), dtype), none, none)
    single = None if notes["single_label"] is None else np.asarray(notes["single_label"], np.bool_)
    examples: Any = np.zeros((1, *notes["shape"]), notes["dtype"])
    tables = Tables(examples, table, table, table, None, classes, single)
    schedule = Schedule(np.arange(len(classes)), np.ones(len(classes), np.int32), np.ones(len(classes), np.bool_))
    facts = {"classes": notes["names"]}
    return Stream(tables, schedule, "", notes["scenario"], tuple(notes["mean"]), tuple(notes["std"]), facts)


class Kept(NamedTuple):
    """A learner that was kept, and what it is used with.

    Attributes:
      learner: at rest.
      method: that trained it.
      stream: of `stream_of`.
      notes: of `notes_of`.
    """

    learner: Learner
    method: Method
    stream: Stream
    notes: dict[str, Any]


def kept_in(folder: str, name: str, seed: int) -> pathlib.Path:
    """Where a run has kept a learner.

    Raises:
      UsageError: nowhere.
    """
    from cljax.files import expand
    from cljax.storage.folders import LEARNERS

    place = expand(folder) / LEARNERS / name / f"seed-{seed}"
    if not place.is_dir():
        raise UsageError(
            f"There is no learner in {place}. Run {name} there with seed {seed} and --keep-learners first."
        )
    return place


def kept(folder: str, name: str, seed: int) -> Kept:
    """The learner of a method and a seed that a run has kept.

    Args:
      folder: of the run.
      name: of the method.
      seed: of the run's.

    Raises:
      UsageError: there is none, it cannot be read, or the run's configuration cannot.
    """
    from cljax.cli.experiment import own_settings, parameters_of
    from cljax.cli.making import amend, make_network, make_optimizer
    from cljax.methods.build import build
    from cljax.storage import checkpoints

    place, options = kept_in(folder, name, seed), options_of(folder)
    settings = own_settings(name, options.training.set)
    parameters = parameters_of([name], dataclasses.replace(options.training, set=settings))
    optimizer = make_optimizer(options.training)
    found: dict[str, Any] = {}

    def like(notes: dict[str, Any]) -> Learner:
        if "evaluation" not in notes:
            raise ValueError("an earlier version kept nothing beside it.")
        stream, facts = stream_of(notes), notes["network"]
        asked = dataclasses.replace(options.network, network=facts["name"], normalization=facts["normalization"])
        method = build(name, make_network(asked, stream), parameters[name])
        method = amend(method, options.training, stream.schedule)
        found.update(method=method, stream=stream)
        most = notes["max_examples"]
        return like_of(method, optimizer, stream.tables, most)

    try:
        restored = checkpoints.restore(place, like)
    except (ValueError, OSError) as error:
        raise UsageError(str(error)) from None
    if restored.tree is None:
        raise UsageError(f"The learner in {place} cannot be read. {restored.message}")
    return Kept(restored.tree, found["method"], found["stream"], restored.notes)


def like_of(
    method: Method, optimizer: optax.GradientTransformation, tables: Tables, max_examples: dict[str, int]
) -> Learner:
    """The structure, shapes and dtypes of a method's learner."""
    import jax

    from cljax import training

    make = lambda: training.make_learner(method, optimizer, tables, 1.0, jax.random.key(0), max_examples)
    return jax.eval_shape(make)


def past_of(folder: str, name: str, seed: int, stream: Stream) -> training.Past:
    """What a run has left of a method and a seed, for `drive`.

    Args:
      folder, name, seed: as of `kept`.
      stream: that is gone on with.

    Raises:
      UsageError: as of `kept`; or the stream begins with other tasks.
    """
    import numpy as np

    from cljax import training

    found = kept(folder, name, seed)
    was, now = found.notes["names"], stream.facts["classes"]
    if was != [list(map(str, names)) for names in now[: len(was)]]:
        raise UsageError(
            f"The tasks learned in {folder} are {_tasks(was)}, but here they are {_tasks(now[: len(was)])}."
        )
    known = {part: np.asarray(values, np.float64) for part, values in found.notes["evaluation"].items()}
    kinds = {part: np.uint32 if part == "fingerprint" else np.float32 for part in known}
    evaluation = training.Evaluation(**{part: values.astype(kinds[part]) for part, values in known.items()})
    return training.Past(found.learner, evaluation)


def standardised(made: list[tuple[int, Stream]], options: Options, name: str) -> list[tuple[int, Stream]]:
    """The streams of all seeds, with the mean and the standard deviation by which one network standardises all images.

    They are those of the run that is gone on from, whatever part of its examples is read now, or of the learner that
    all begin with (`--init`); else the first seed's.

    Args:
      made: pairs of a seed and its stream.
      options: of the run.
      name: of one of its methods.
    """
    from cljax.storage import checkpoints

    (seed, first), past, start = made[0], options.data.past, options.training.init
    own_numbers = options.data.normalize == "each" and len(options.data.data) > 1
    notes = {} if start is None or own_numbers else checkpoints.notes(start)
    notes = notes if past is None else checkpoints.notes(kept_in(past, name, seed))
    mean, std = (tuple(notes.get(key, own)) for key, own in (("mean", first.mean), ("std", first.std)))
    if len(mean) != len(first.mean):  # of images of another kind
        mean, std = first.mean, first.std
    return [(number, stream._replace(mean=mean, std=std)) for number, stream in made]


def added(options: Options) -> tuple[tuple[str, Options], ...]:
    """The data sets that have been added to what a run began with, its own last, each with its run's options.

    Raises:
      UsageError: the configuration of a run that is gone on from cannot be read.
    """
    data = options.data
    if data.past is None:
        return ()
    return (*added(options_of(data.past)), *((name, options) for name in data.add_task))


def root_of(options: Options) -> Options:
    """The options of the run that others have gone on from, one after the other: of this one, where it is the first.

    Raises:
      UsageError: as of `added`.
    """
    return options if options.data.past is None else root_of(settle(options_of(options.data.past)))


def options_of(folder: str) -> Options:
    """The options of a run, by its folder.

    Raises:
      UsageError: it has no configuration that can be read.
    """
    from cljax.files import expand
    from cljax.storage.folders import CONFIG

    path = str(expand(folder) / CONFIG)
    if not os.path.exists(path):
        raise UsageError(f"There is no {path}. A run that another one goes on from must stay where it was.")
    return _parsed(path, os.stat(path).st_mtime_ns)


@functools.cache
def _parsed(path: str, changed: int) -> Options:
    """The options of a configuration that was last changed then: asked for by every seed, and slow to parse."""
    from cljax.cli import parse
    from cljax.files import read_json

    del changed
    words = ["compare", "--config", path]
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # `parse` says what is wrong
        words += ["--methods", *map(str, read_json(path)["methods"])]  # also those of a sweep
    return parse(words).options  # type: ignore[union-attr]


LATER = {"data_dir", "fraction", "past", "add_task", "dropout"}
"""Options of the data and the network that a run may have otherwise than the one that it goes on from."""
BUILT = ("init", "optimizer", "optimizer_state", "memory")
"""Options of the training that must be the same."""
WHETHER = ("weight_decay", "clip")
"""Options of the training of which it must be the same whether they are 0: the optimizer's state depends on it."""


def check_past(options: Options, methods: Sequence[str], *, swept: bool) -> None:
    """Checks that a run goes on with the tasks that were learned, read as they were, and with the same learner.

    Args:
      options: settled.
      methods: what is asked for.
      swept: whether numbers are varied.

    Raises:
      UsageError: an option that differs, a method that was not kept, or a sweep.
    """
    folder = options.data.past
    if folder is None:
        return
    if swept:
        raise UsageError("A sweep learns all tasks anew with each value: leave out --from and --add-task, or use run.")
    past = settle(options_of(folder))
    if past.data.normalize == "each" and len(past.data.data) > 1:
        raise UsageError(
            f"The data sets of {folder} are each standardised by its own numbers (--normalize each), and those of "
            f"later tasks have none: begin with --normalize first."
        )
    for method in methods:
        kept_in(folder, method, seed_numbers(options.training)[0])
    shown = lambda value: (" ".join(map(str, value)) if isinstance(value, tuple) else str(value or "")) or "not given"
    of = lambda name, was, now: (name, getattr(was, name), getattr(now, name))
    sections, trained = ((past.data, options.data), (past.network, options.network)), (past.training, options.training)
    pairs = [of(field.name, *pair) for pair in sections for field in dataclasses.fields(pair[0])]
    pairs = [pair for pair in pairs if pair[0] not in LATER] + [of(name, *trained) for name in BUILT]
    pairs += [(name, was, now) for name, was, now in (of(name, *trained) for name in WHETHER) if bool(was) != bool(now)]
    for name, before, given in pairs:
        if before != given:
            raise UsageError(
                f"--{name.replace('_', '-')} is {shown(given)}, but was {shown(before)} in {folder}, and says what was "
                f"learned there, or how it is computed. Leave it out with --from."
            )


def predict(command: Predict) -> int:
    """Prints, for each image, the classes that a learner holds most probable.

    Raises:
      UsageError: no such learner or task, or an image that cannot be read.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    from cljax import data
    from cljax.cli.printing import show
    from cljax.data import pictures
    from cljax.files import expand
    from cljax.numbers import whole

    if not command.images:
        raise UsageError("Of which images? Name them: cljax predict runs/first --task 2 picture.png.")
    name, seed = _which(command)
    asked = options_of(command.folder).data
    several = len(asked.data) > 1 or bool(asked.add_task)
    why = "permute the pixels, each in its own way" if asked.scenario == "permuted" else ""
    if asked.normalize == "each" and len(asked.data) > 1:
        why = "are each standardised by the numbers of its data set (--normalize each)"
    if why:
        raise UsageError(
            f"The tasks of {command.folder} {why}, and a picture is as it is: ask its learners from Python."
        )
    learner, method, stream, notes = kept(command.folder, name, seed)
    classes, names = np.asarray(stream.tables.classes), notes["names"]
    if command.task is None and asked.scenario != "class":
        raise UsageError(f"Which task? Give --task and its number: {_tasks(names)}.")
    try:
        tasks = range(len(classes)) if command.task is None else [whole("--task", command.task, most=len(classes) - 1)]
        whole("--top", command.top, least=1)
        height, width, channels = stream.tables.examples.shape[1:]
        if several and channels == 1:  # as of `data.combine`
            read = [pictures.decode(expand(path), path, 3) for path in command.images]
            images = [data.images.resize(data.images.with_channels(one[None], 1), (height, width))[0] for one in read]
        else:
            images = [pictures.decode(expand(path), path, channels, (height, width)) for path in command.images]
    except ValueError as error:
        raise UsageError(str(error)) from None
    inputs = jnp.asarray(np.stack(images).astype(stream.tables.examples.dtype))
    shown = [(task, place) for task in tasks for place in np.flatnonzero(classes[task])]
    heads = {task: np.asarray(method.predict(learner, inputs, jnp.int32(task))) for task in tasks}
    logits = np.stack([heads[task][:, place] for task, place in shown], axis=-1)
    multi_label = stream.tables.train.labels.ndim == 2
    probabilities = np.asarray(jax.nn.sigmoid(logits) if multi_label else jax.nn.softmax(logits, axis=-1))
    known = [names[task][place] for task, place in shown]
    called = [
        name if known.count(name) == 1 else f"{name} (task {task})"
        for name, (task, _) in zip(known, shown, strict=True)
    ]
    for path, row in zip(command.images, probabilities, strict=True):
        best = np.argsort(-row, kind="stable")[: command.top]
        words = [f"{called[one]} {100 * row[one]:.1f}%" for one in best]
        show(f"{path}  {'  '.join(words)}")
    return 0


def _which(command: Predict) -> tuple[str, int]:
    """The method and the seed of the learner that is asked, where the command does not say them all."""
    from cljax.files import expand
    from cljax.storage.folders import LEARNERS, SEED

    place = expand(command.folder) / LEARNERS
    numbers = lambda path: [int(own.name.removeprefix("seed-")) for own in path.glob("*") if SEED.fullmatch(own.name)]
    names = sorted(path.name for path in place.glob("*") if numbers(path))
    if not names:
        raise UsageError(f"{command.folder} has no learners. Run a method there with --keep-learners first.")
    if command.method is None and len(names) > 1:
        raise UsageError(f"{command.folder} has learners of {', '.join(names)}: name one with --method.")
    name = command.method or names[0]
    return name, command.seed if command.seed is not None else min(numbers(place / name), default=0)


def _tasks(names: list[list[str]]) -> str:
    """The tasks by their classes, the first few of each."""
    return "; ".join(
        f"{task}: {', '.join(map(str, own[:3]))}{', ...' if len(own) > 3 else ''}" for task, own in enumerate(names)
    )
