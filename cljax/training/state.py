"""What a run is told, and what it carries besides the learner."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cljax.augmentation import Augment
from cljax.numbers import FLOAT32
from cljax.text import brief
from cljax.trees import select
from cljax.types import Array, Clock, HostArray, Method, Network, Schedule, Stream, Tree


def debugging(*modes: str) -> bool:
    """Whether JAX is in one of some modes: 'debug_nans', 'debug_infs', 'disable_jit'."""
    return any(getattr(jax.config, f"jax_{mode}") for mode in modes)


def unknown() -> HostArray:
    """What stands for a value that is not measured: NaN; float32's largest number under `jax_debug_nans`.

    That mode ends at any NaN that a program returns. On the host `reveal` turns the number into NaN.
    """
    return np.float32(FLOAT32 if debugging("debug_nans") else np.nan)


def reveal(values: Any) -> np.ndarray:
    """Values on the host, NaN for `unknown`.

    Example:
      >>> reveal(jnp.array([1.0, 3.4028235e38])).tolist()
      [1.0, nan]
    """
    array = np.asarray(values)
    return np.where(array == np.float32(FLOAT32), np.float32(np.nan), array) if array.dtype == np.float32 else array


class Patience(NamedTuple):
    r"""Epochs that end by patience: the schedule of HAT and TFM.

    After each epoch the validation loss is compared to the best so far. Where it improves, a copy is kept and patience
    is renewed; after `patience` epochs without improvement the rate is divided by `factor`, and training stops once
    the rate is below `minimum_learning_rate`. In the end the best copy is restored, normalisation statistics included.

    Attributes:
      patience: epochs without improvement before the rate drops.
      factor: by which the rate is divided.
      minimum_learning_rate: training stops below it.
      restore_at_drop: whether the best copy is also restored whenever the rate drops (FACIL does, HAT does not).

    Example:
      >>> from cljax import training
      >>> training.Settings(learning_rate=0.05, stopping=training.Patience(patience=3)).stopping.patience
      3
    """

    patience: int = 5
    factor: float = 3.0
    minimum_learning_rate: float = 1e-4
    restore_at_drop: bool = False


EVALUATION_BATCH = 256
"""Of folds, validation and evaluation, where nothing else is said; on an accelerator the least."""


class Settings(NamedTuple):
    """How a run is carried out.

    Attributes:
      batch_size: of training steps.
      learning_rate: by which the updates of an optimizer at unit rate, such as `optax.adam(1.0)`, are multiplied, so
        that patience, searches and sweeps can change it; None: the optimizer has its own, as `optax.adam(1e-3)`.
      stopping: None, epochs by the schedule's count; or `Patience`, the count then being the maximum.
      validate: whether each epoch measures validation loss and accuracy.
      evaluation_batch: of folds, validation and evaluation; None: 256, and on an accelerator up to 1024, as many as
        have four million numbers.
      curves_every: 0, or the number of epochs between evaluations on all tasks.
      attention_images: of how many of the first task's test images each evaluation says where the network looks.
      augment: None, or what is done to the images of every training step: see `cljax.augmentation`.

    Example:
      >>> from cljax import training
      >>> training.Settings(batch_size=64, learning_rate=0.05)._replace(validate=True).batch_size
      64
    """

    batch_size: int = 32
    learning_rate: float | None = None
    stopping: Patience | None = None
    validate: bool = False
    evaluation_batch: int | None = None
    curves_every: int = 0
    attention_images: int = 0
    augment: Augment | None = None


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Origin:
    """What a result is of, with which it can be shown as it is; static, so that `vmap` and `jit` hand it on.

    Attributes:
      method: its name.
      data: the stream's name.
      scenario: how its logits are read.
      network: the method's; a pickled result has None.
      schedule: the rounds.
      facts: of the streams, one a seed.
      seeds: their numbers; 0, 1, ... where a run was given keys.
      curves_every: of the settings.
      rounds: how many are behind: a run may end before the last.
    """

    method: str
    data: str
    scenario: str
    network: Network | None = dataclasses.field(compare=False, repr=False)
    schedule: Schedule = dataclasses.field(compare=False, repr=False)
    facts: tuple[dict[str, Any], ...] = dataclasses.field(compare=False, repr=False)
    seeds: tuple[int, ...] = dataclasses.field(compare=False)
    curves_every: int
    rounds: int = dataclasses.field(compare=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "network": None}  # of closures, which cannot be pickled


def origin(method: Method, settings: Settings, seeds: Sequence[tuple[int, Stream]], rounds: int) -> Origin:
    """Of a method over so many rounds of some seeds' streams."""
    (numbers, streams), first = zip(*seeds, strict=True), seeds[0][1]
    facts, names = tuple(stream.facts for stream in streams), (method.name, first.name, first.scenario)
    return Origin(*names, method.network, first.schedule, facts, numbers, settings.curves_every, rounds)


class Failure(NamedTuple):
    """Where a learner diverged: int32 scalars, all -1 while it has not.

    Attributes:
      round, task, phase, epoch, step: the first step whose loss was NaN or infinite; or the last step of the first
        epoch after which a parameter, or a leaf of the collections, was. Step -1: it was after the method's
        `end_phase`, or a logit of a test example was.
      leaf: of params and then collections, the number of the first leaf that was; -1 if it was the loss or a logit.
    """

    round: HostArray
    task: HostArray
    phase: HostArray
    epoch: HostArray
    step: HostArray
    leaf: HostArray


def no_failure() -> Failure:
    """That of a learner that has not diverged."""
    return Failure(*[jnp.int32(-1)] * len(Failure._fields))


def failure_at(clock: Clock, step: HostArray, leaf: HostArray) -> Failure:
    """That of a learner that has diverged where the clock stands."""
    found = clock.round, clock.task, clock.phase, clock.epoch, step, leaf
    return Failure(*(jnp.asarray(value, jnp.int32) for value in found))


def earlier(first: Failure, second: Failure) -> Failure:
    """The first failure, or the second where there is no first."""
    return select(first.round >= 0, first, second)


@brief
class EpochLog(NamedTuple):
    """What an epoch leaves: mean training loss, validation loss (nats) and accuracy (fraction), NaN if not asked."""

    loss: HostArray
    validation_loss: HostArray
    validation_accuracy: HostArray


class Progress(NamedTuple):
    """How far an epoch is.

    Attributes:
      step: int32, the number of steps taken.
      total: float32, the sum of the losses so far, each times the weight of its batch.
      weight: float32, the sum of the batches' weights.
      failed: int32, the first step whose loss was not finite, or -1.
    """

    step: Array
    total: Array
    weight: Array
    failed: Array


def no_progress() -> Progress:
    """The progress at an epoch's beginning."""
    return Progress(jnp.int32(0), jnp.float32(0.0), jnp.float32(0.0), jnp.int32(-1))


class PhaseState(NamedTuple):
    """What changes during a phase.

    Attributes:
      learner: focused.
      mask: the update mask.
      factor: of the learning rate, by patience.
      best: the copy to restore (params, collections, method_state), or None.
      best_loss: the least validation loss so far.
      patience: epochs left.
      epoch: how many are finished.
      progress: of the epoch under way.
      done: whether the phase trains no further epoch.
      failure: where the learner diverged.
    """

    learner: Any
    mask: Tree
    factor: Array
    best: Tree
    best_loss: Array
    patience: Array
    epoch: Array
    progress: Progress
    done: Array
    failure: Failure
