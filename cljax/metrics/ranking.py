"""Average precision of rankings, by the protocols of PASCAL VOC."""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from cljax.numbers import check_option, check_shape
from cljax.types import Array

Interpolation = Literal["area", "eleven_points"]


def average_precision(
    scores: ArrayLike,
    labels: ArrayLike,
    *,
    interpolation: Interpolation = "area",
    weights: ArrayLike | None = None,
) -> Array:
    r"""Average precision of each class: how well its scores rank the examples that have it before the others.

    .. math::
        p(r) = \max_{i:\, r_i \ge r} p_i, \qquad
        \text{area:} \quad \sum_i (r_i - r_{i-1})\, p(r_i), \qquad
        \text{eleven points:} \quad \frac{1}{11} \sum_{j=0}^{10} p(j / 10)

    with precision and recall :math:`p_i, r_i` of the i examples of largest score; p(r) is 0 where no recall is so
    large. Equal scores stand in the order of the examples.

    Args:
      scores: `[N, K]`, any real numbers.
      labels: `[N, K]`; above one half, the example has the class.
      interpolation: 'area', the area under the interpolated curve (VOC from 2010 on), or 'eleven_points' (until 2009).
      weights: `[N]` or `[N, K]`, 0 where an example counts neither way (VOC's difficult ones, padding); None: all do.

    Returns:
      `[K]` float32, fractions; NaN for a class that no example has, or of which a score that counts is NaN.

    Raises:
      ValueError: for an unknown interpolation.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.metrics import average_precision
      >>> scores, labels = jnp.array([[0.9], [0.8], [0.7]]), jnp.array([[1.0], [0.0], [1.0]])
      >>> print(average_precision(scores, labels).round(4))  # 1/2 * 1 + 1/2 * 2/3
      [0.8333]
      >>> print('%.3f' % average_precision(scores, labels, interpolation='eleven_points')[0])  # (6 + 5 * 2/3) / 11
      0.848

    Reference: Everingham et al., The PASCAL Visual Object Classes Challenge: A Retrospective, 2015, section 3.
    """
    check_option("interpolation", interpolation, Interpolation)
    scores, (has, counts) = jnp.asarray(scores).astype(jnp.float32), _which(labels, weights)
    check_shape("labels", has, *scores.shape)
    missing = jnp.any(jnp.isnan(scores) & counts, axis=0)
    order = jnp.argsort(jnp.where(counts, -scores, jnp.inf), axis=0, stable=True)
    counts, has = (jnp.take_along_axis(each, order, axis=0) for each in (counts, has & counts))
    right = jnp.cumsum(has, axis=0, dtype=jnp.int32)
    seen = jnp.cumsum(counts, axis=0, dtype=jnp.int32)
    total = jnp.sum(has, axis=0, dtype=jnp.int32)
    precision = right.astype(jnp.float32) / jnp.maximum(seen, 1).astype(jnp.float32)
    divisor = jnp.where((total > 0) & ~missing, total.astype(jnp.float32), jnp.nan)
    if interpolation == "area":
        best = lax.cummax(precision, axis=0, reverse=True)
        return jnp.sum(jnp.where(has, best, 0), axis=0) / divisor
    reached = lambda tenth: jnp.max(jnp.where(10 * right >= tenth * total[None], precision, 0), axis=0)
    points = jnp.sum(lax.map(reached, jnp.arange(11, dtype=jnp.int32)), axis=0) / 11
    return jnp.where((total > 0) & ~missing, points, jnp.nan)


def _which(labels: ArrayLike, weights: ArrayLike | None) -> tuple[Array, Array]:
    """`[N, K]` bool: which examples have a class, and which count for it."""
    has = jnp.asarray(labels).astype(jnp.float32) > 0.5
    if weights is None:
        return has, jnp.ones(has.shape, jnp.bool_)
    weights = jnp.asarray(weights).astype(jnp.bool_)
    return has, jnp.broadcast_to(weights if weights.ndim == 2 else weights[:, None], has.shape)


def mean_average_precision(
    scores: ArrayLike,
    labels: ArrayLike,
    *,
    interpolation: Interpolation = "area",
    weights: ArrayLike | None = None,
    classes: ArrayLike | None = None,
) -> Array:
    """The mean of `average_precision` over the classes that some example has.

    Args:
      scores: `[N, K]`.
      labels: `[N, K]`; above one half, the example has the class.
      interpolation: 'area' or 'eleven_points'.
      weights: `[N]` or `[N, K]`, 0 where an example counts neither way; None: all do.
      classes: `[K]` bool, the classes there are; None: all.

    Returns:
      float32 scalar, a fraction; NaN where no class has an example.

    Raises:
      ValueError: for an unknown interpolation.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.metrics import mean_average_precision
      >>> scores = jnp.array([[3.0, 1.0], [2.0, 2.0], [1.0, 3.0]])
      >>> print(mean_average_precision(scores, jnp.array([[1, 1], [0, 1], [0, 0]])).round(4))  # (1 + 2/3) / 2
      0.8333
    """
    each = average_precision(scores, labels, interpolation=interpolation, weights=weights)
    has, counts = _which(labels, weights)
    known = jnp.any(has & counts, axis=0)
    if classes is not None:
        known = known & jnp.asarray(classes)
    return jnp.sum(jnp.where(known, each, 0)) / jnp.where(jnp.any(known), jnp.sum(known).astype(jnp.float32), jnp.nan)
