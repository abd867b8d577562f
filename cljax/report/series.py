"""Series in a run's record, as arrays ready to draw."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from cljax.metrics import Interval


def known_mean_and_interval(values: np.ndarray) -> Interval:
    r"""The mean over the seeds that have a value, and its 95% interval by Student's t.

    Like `metrics.mean_and_interval`, but a seed's NaN leaves out that seed at that place only: one that stopped early
    has no later epochs.

    Args:
      values: `[n, ...]`, one row a seed.

    Returns:
      Mean, NaN where no seed has a value; half-width, NaN where fewer than two have.

    Example:
      >>> mean, half_width = known_mean_and_interval(np.array([[1.0, 4.0], [2.0, np.nan], [3.0, np.nan]]))
      >>> print(mean, half_width.round(3))
      [2. 4.] [2.484   nan]
    """
    from scipy.special import stdtrit

    known = np.isfinite(values)
    count = known.sum(axis=0).astype(np.float64)
    mean = np.divide(np.where(known, values, 0.0).sum(axis=0), count, out=np.full(count.shape, np.nan), where=count > 0)
    squares = np.where(known, (values - mean) ** 2, 0.0).sum(axis=0)
    enough = np.maximum(count - 1, 1.0)
    half = stdtrit(enough, 0.975) * np.sqrt(squares / enough / np.maximum(count, 1.0))
    return Interval(mean, np.where(count > 1, half, math.nan))


def over_stream(run: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The accuracies after each visit.

    Args:
      run: an entry of a record.

    Returns:
      The visits, counted from 1, `[R]`; accuracy `[S, R, T]`, NaN where it is unknown; and for each task how many
      visits precede its first, `[T]`.
    """
    rounds = run.get("rounds")
    accuracy = np.asarray((rounds or run)["accuracy"], np.float64)
    count = accuracy.shape[1]
    tasks = np.asarray(run["schedule"]["task"]) if rounds else np.arange(count)
    first = np.array([np.flatnonzero(tasks == task)[0] for task in range(accuracy.shape[2])])
    return np.arange(1, count + 1), accuracy, first


def learning_curve(run: dict[str, Any], kind: str) -> tuple[np.ndarray, np.ndarray]:
    """A series over the epochs of all visits.

    Args:
      run: an entry of a record.
      kind: `'curves'`, whose accuracies are averaged over the tasks visited so far; or a field of `epochs`.

    Returns:
      Where each value stands, in visits, `[P]`: the last epoch of the first visit is at 1. And the values `[S, P]`, NaN
      where a seed had stopped. No place where the record has no such series.
    """
    trained = np.isfinite(np.asarray(run["epochs"]["loss"], np.float64)).sum(axis=-1).max(axis=0)
    before = np.cumsum(trained, axis=1) - trained
    whole = np.maximum(trained.sum(axis=1), 1)
    if kind == "curves":
        points = np.asarray(run["curve_epochs"], np.int64).reshape(-1, 3)
        found = np.asarray(run["curves"] if len(points) else np.zeros([len(run["seeds"]), 0, 1]), np.float64)
        newest = np.maximum.accumulate(run["schedule"]["task"])
        means = [found[:, place, : newest[visit] + 1].mean(axis=1) for place, visit in enumerate(points[:, 0])]
        values = np.stack(means, axis=1) if means else found[:, :, 0]
        visits, phases, epochs = points.T
    else:
        found = np.asarray(run["epochs"][kind], np.float64)
        visits, phases, epochs = (index.ravel() for index in np.indices(found.shape[1:]))
        values, epochs = found.reshape(len(found), -1), epochs + 1
    places = visits + (before[visits, phases] + epochs) / whole[visits]
    there = np.isfinite(values).any(axis=0)
    return places[there], values[:, there]
