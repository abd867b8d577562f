"""What must fit together before anything is compiled, and the error of a loss that is not finite."""

from __future__ import annotations

import numpy as np

from cljax.training.state import Failure, Settings
from cljax.types import Method, Stream

SCENARIOS = ("task", "class", "domain")
DRAWS = ("current", "seen", "all")


class NonFiniteLoss(FloatingPointError):
    """The training loss turned NaN or infinite; the message names task, phase, epoch and step."""


def raise_failure(failure: Failure, method: Method) -> None:
    """Raises if a run's loss turned non-finite.

    Args:
      failure: of a `Result` or a `PhaseState`; with leading axes (seeds), the first that failed is named.
      method: whose phases are named.

    Raises:
      NonFiniteLoss: naming task, phase, epoch and step.
    """
    flat = [np.asarray(leaf).reshape(-1) for leaf in failure]
    broken = np.flatnonzero(flat[4] >= 0)
    if broken.size:
        round, task, phase, epoch, step = (int(leaf[broken[0]]) for leaf in flat)
        raise NonFiniteLoss(
            f"The loss of {method.name} turned non-finite in round {round}: task {task}, phase "
            f"'{method.phases[phase].name}', epoch {epoch}, step {step}. A smaller rate, gradient clipping "
            f"(optax.clip_by_global_norm) or a weaker regulariser usually cures it; jax.config.update("
            f"'jax_debug_nans', True) shows the operation."
        )


def check(method: Method, stream: Stream, settings: Settings) -> None:
    """Checks a method, a stream and settings against each other, without compiling.

    Raises:
      ValueError: naming the thing and the cure.
    """
    tables, schedule = stream.tables, stream.schedule
    if stream.scenario not in SCENARIOS:
        raise ValueError(f"The scenario '{stream.scenario}' is not one of {', '.join(SCENARIOS)}.")
    if method.draws_from not in DRAWS:
        raise ValueError(f"{method.name} draws from '{method.draws_from}', which is not one of {', '.join(DRAWS)}.")
    if not method.phases:
        raise ValueError(f"{method.name} has no phases; a method needs at least one.")
    for name in ("batch_size", "evaluation_batch"):
        if getattr(settings, name) < 1:
            raise ValueError(f"{name} is {getattr(settings, name)}; it must be at least 1.")
    if not (np.isfinite(settings.rate) and settings.rate > 0):
        raise ValueError(f"rate is {settings.rate}; the learning rate must be a positive number.")
    if settings.curves_every < 0:
        raise ValueError(f"curves_every is {settings.curves_every}; it must be 0 (never) or a number of epochs.")
    needs_validation = settings.stopping is not None or method.candidates is not None
    sizes = np.asarray(tables.validation.size)
    if needs_validation and (sizes == 0).any():
        task = int(np.argmax((sizes == 0).reshape(-1))) % tables.classes.shape[-2]
        reason = "patience" if settings.stopping is not None else f"the search of {method.name}"
        raise ValueError(
            f"Task {task} has no validation examples, which {reason} needs. Give the stream a validation part, for "
            f"example validation=0.1, or train a fixed number of epochs."
        )
    for split in ("train", "test"):
        sizes = np.asarray(getattr(tables, split).size)
        if (sizes == 0).any():
            raise ValueError(f"Task {int(np.argmax(sizes == 0))} has no {split} examples.")
    tasks = np.asarray(schedule.task)
    if tasks.size == 0:
        raise ValueError("The stream's schedule has no rounds.")
    if tasks.min() < 0 or tasks.max() >= tables.classes.shape[-2]:
        raise ValueError(
            f"The schedule visits task {int(tasks.max())}, but the stream has tasks 0 to "
            f"{tables.classes.shape[-2] - 1}."
        )
    if (np.asarray(schedule.epochs) < 1).any():
        raise ValueError("Every round of the schedule must have at least one epoch.")
    check_network(method, stream)


def check_network(method: Method, stream: Stream) -> None:
    """Checks that the method's network takes the stream's examples and has as many logits as its tasks have classes.

    Raises:
      ValueError: naming the two shapes.
    """
    network, tables = method.network, stream.tables
    shape, outputs = tuple(tables.examples.shape[1:]), tables.classes.shape[-1]
    if tuple(network.inputs) != shape:
        raise ValueError(
            f"The network of {method.name} takes examples of shape {tuple(network.inputs)}, but those of the stream "
            f"'{stream.name}' have shape {shape}. Build the network with inputs={shape}."
        )
    if network.outputs != outputs:
        raise ValueError(
            f"The network of {method.name} has {network.outputs} logits, but the largest task of the stream "
            f"'{stream.name}' has {outputs} classes. Build the network with outputs={outputs}."
        )
