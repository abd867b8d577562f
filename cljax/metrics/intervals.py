"""Means over seeds with their confidence intervals, on the host."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike

from cljax.numbers import real


class Interval(NamedTuple):
    """A mean and the half-width of its confidence interval, mean ± half_width: float64, scalars or `[...]`.

    Example:
      >>> from cljax import metrics
      >>> mean, half_width = metrics.mean_and_interval([0.8, 0.9, 1.0])
      >>> print(f'{mean:.2f} ±{half_width:.2f}')
      0.90 ±0.25
    """

    mean: np.ndarray
    half_width: np.ndarray


def mean_and_interval(values: ArrayLike, *, level: float = 0.95) -> Interval:
    r"""The mean over seeds and its confidence interval by Student's t. On the host.

    .. math::
        \bar{x} \pm t_{n-1, (1 + \mathrm{level}) / 2} \frac{s}{\sqrt{n}}, \qquad
        s^2 = \frac{1}{n-1} \sum (x - \bar{x})^2

    Args:
      values: `[n, ...]`, one row a seed.
      level: the interval's probability, in (0, 1).

    Returns:
      Mean and half-width, `[...]`. One seed says nothing of the spread: its half-width is NaN.

    Raises:
      ValueError: no seed, or a level outside (0, 1).

    Example:
      >>> from cljax.metrics import mean_and_interval
      >>> mean, half_width = mean_and_interval([1.0, 2.0, 3.0])
      >>> print(f'{mean:.1f} ± {half_width:.3f}')
      2.0 ± 2.484
    """
    from scipy.special import stdtrit

    level = real("level", level, above=0, below=1)
    values = np.asarray(values, np.float64)
    if values.ndim < 1 or not len(values):
        raise ValueError(f"values has the shape {values.shape}; it needs a leading axis of at least one seed.")
    count, mean = len(values), values.mean(axis=0)
    if count == 1:
        return Interval(mean, np.full_like(mean, np.nan))
    return Interval(mean, stdtrit(count - 1, (1 + level) / 2) * values.std(axis=0, ddof=1) / math.sqrt(count))


def paired_difference(values: ArrayLike, reference: ArrayLike, *, level: float = 0.95) -> Interval:
    """The mean difference of two methods run on the same seeds, and its confidence interval. On the host.

    Pairing removes what a seed does to both (the order of tasks, the examples), so that far smaller differences show
    than by comparing two intervals. Where the interval leaves out 0, the methods differ at that level.

    Args:
      values: `[n, ...]`, one row a seed.
      reference: `[n, ...]`, the other method's, of the same seeds in the same order.
      level: the interval's probability, in (0, 1).

    Returns:
      Mean and half-width of `values - reference`, `[...]`.

    Example:
      >>> from cljax.metrics import paired_difference
      >>> mean, half_width = paired_difference([0.9, 0.5, 0.7], [0.8, 0.4, 0.5])
      >>> print(f'{mean:.3f} ± {half_width:.3f}')
      0.133 ± 0.143
    """
    values, reference = np.asarray(values, np.float64), np.asarray(reference, np.float64)
    if values.shape != reference.shape:
        raise ValueError(
            f"values {values.shape} and reference {reference.shape} cannot be paired: give both methods' results on "
            f"the same seeds, in the same order."
        )
    return mean_and_interval(values - reference, level=level)
