"""What driving a method leaves: the outcome of all seeds, and what is told on the way."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from cljax.text import brief
from cljax.training.evaluation import Evaluation
from cljax.training.search import Tried
from cljax.training.state import EpochLog, Failure, Origin
from cljax.types import Learner


class Event(NamedTuple):
    """Where a driven run stands, after an epoch.

    Attributes:
      method: its name.
      seed: the first of those that run side by side.
      seeds: how many do.
      task: from 0.
      phase: its name.
      epoch: from 1.
      epochs: of the phase, at most.
      loss: mean training loss, in nats.
      validation_accuracy: a fraction, NaN without a validation part.
      done: epochs so far.
      total: epochs of all seeds, at most.

    Example:
      >>> from cljax.training import Event
      >>> event = Event('lwf', 0, 1, 2, 'train', 3, 20, 0.25, 0.9, 43, 100)
      >>> f'{event.method}, task {event.task + 1}, epoch {event.epoch}: {event.done / event.total:.0%}'
      'lwf, task 3, epoch 3: 43%'
    """

    method: str
    seed: int
    seeds: int
    task: int
    phase: str
    epoch: int
    epochs: int
    loss: float
    validation_accuracy: float
    done: int
    total: int


@brief
class Results(NamedTuple):
    """What S seeds leave, NumPy arrays `[S, ...]`; see `Outcome`."""

    evaluation: Evaluation
    epochs: EpochLog
    curves: np.ndarray | None
    failure: Failure
    search: Tried | None
    untrained: np.ndarray | None


@brief
class Outcome(NamedTuple):
    """What driving a method over some seeds gives; NumPy arrays with a leading axis of seeds S.

    Attributes:
      learners: a list, one learner at rest a seed.
      evaluation: `Evaluation` of `[S, R, T]`; accuracy NaN where the schedule does not evaluate, and from the round on
        in which a learner diverged.
      epochs: `EpochLog` of `[S, R, P, E]`, NaN where no epoch was trained.
      curves: `[S, C, T]` accuracy on all tasks after the epochs of `curve_epochs`; NaN where patience stopped earlier.
      failure: `[S]`, where a learner diverged, which then went no further; all -1 of one that did not. See
        `checks.diverged`.
      search: `training.Tried` of `[S, R, ...]`, what a method's search has tried and chosen; None without.
      untrained: `[S, T]` accuracy before the first round, for `metrics.forward_transfer`; None where tasks have heads
        of their own, in the class-incremental scenario, and where rounds are past.
      curve_epochs: `[C, 3]` int, round, phase and epoch (from 1): every `curves_every`-th epoch of each phase.
      seconds: `[S]` of training and evaluation, without compilation and checkpoints, over all processes of the run.
      compile_seconds: of all programs, in this process.
      traces: how often the train step was traced; None where that is not known.
      flops: of one step, before the compiler optimises it; None where it does not tell.
      share_waiting: `[S]` fractions of the time in this process in which the device waited for examples to be read, at
        most; None where all are on the device.
      shares: among how many devices the seeds were shared, and each batch.
      origin: what it is of: `report` takes an outcome as it is.

    Example:
      >>> import optax
      >>> from cljax import data, methods, networks, streams, training
      >>> stream = streams.split(data.load('digits'), tasks=2, epochs=1)
      >>> method = methods.finetune(networks.mlp((8, 8, 1), 5, hidden=(4,)))
      >>> outcome = training.drive(method, optax.adam(1e-2), [(0, stream), (1, stream)])
      >>> outcome.evaluation.accuracy.shape, len(outcome.learners), outcome.traces  # [seed, after task, task]
      ((2, 2, 2), 2, 1)
    """

    learners: list[Learner]
    evaluation: Evaluation
    epochs: EpochLog
    curves: np.ndarray
    failure: Failure
    search: Tried | None
    untrained: np.ndarray | None
    curve_epochs: np.ndarray
    seconds: np.ndarray
    compile_seconds: float
    traces: int | None
    flops: float | None
    share_waiting: np.ndarray | None
    shares: tuple[int, int]
    origin: Origin


def members(outcome: Outcome, which: Sequence[int]) -> Outcome:
    """The outcome of some of the seeds, with their share of the compilation."""
    cut = lambda tree: jax.tree.map(lambda leaf: leaf[np.asarray(which, int)], tree)
    some = lambda values: [values[number] for number in which]
    facts, seeds = (tuple(some(values)) for values in (outcome.origin.facts, outcome.origin.seeds))
    return outcome._replace(
        learners=some(outcome.learners),
        compile_seconds=outcome.compile_seconds * len(which) / len(outcome.learners),
        origin=dataclasses.replace(outcome.origin, facts=facts, seeds=seeds),
        **{name: cut(getattr(outcome, name)) for name in (*Results._fields, "seconds", "share_waiting")},
    )


def curve_epochs(counts: np.ndarray, every: int) -> np.ndarray:
    """Round, phase and epoch (from 1) of every `every`-th planned epoch, `[C, 3]`; none if it is 0.

    Example:
      >>> curve_epochs(np.array([[-1, 4], [1, 2]]), 2).tolist()
      [[0, 1, 2], [0, 1, 4], [1, 1, 2]]
    """
    points = [
        (round, phase, epoch)
        for round, phases in enumerate(counts)
        for phase, count in enumerate(phases)
        for epoch in range(every, count + 1, max(every, 1))
        if every
    ]
    return np.asarray(points, np.int32).reshape(-1, 3)


def curves_at(results: Results, points: np.ndarray, every: int) -> np.ndarray:
    """The curves at the points of `curve_epochs`, `[S, C, T]`."""
    if results.curves is None:
        size, _, tasks = results.evaluation.accuracy.shape
        return np.zeros((size, 0, tasks), np.float32)
    return results.curves[:, points[:, 0], points[:, 1], points[:, 2] // every - 1]
