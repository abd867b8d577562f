"""The learners that a run has kept (`--keep-learners`): to go on from, with tasks nobody planned, and to predict."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, NamedTuple

import cljax
from cljax.cli.making import amend, make_network, make_optimizer
from cljax.cli.options import Options, UsageError
from cljax.cli.parameters import own_settings, parameters_of
from cljax.cli.past import kept_in, options_of

if TYPE_CHECKING:
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


def kept(folder: str, name: str, seed: int) -> Kept:
    """The learner of a method and a seed that a run has kept.

    Args:
      folder: of the run.
      name: of the method.
      seed: of the run's.

    Raises:
      UsageError: there is none, it cannot be read, or the run's configuration cannot.
    """
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
            f"The tasks learned in {folder} are {tasks_in_words(was)}, but here they are "
            f"{tasks_in_words(now[: len(was)])}."
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


def tasks_in_words(names: list[list[str]]) -> str:
    """The tasks by their classes, the first few of each."""
    return "; ".join(
        f"{task}: {', '.join(map(str, own[:3]))}{', ...' if len(own) > 3 else ''}" for task, own in enumerate(names)
    )
