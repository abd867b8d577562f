r"""Exemplars: which examples of a class to keep, and how to classify by their means.

Features are scaled to unit length here, as in iCaRL; zero features stay zero.
"""

from __future__ import annotations

import chex
import jax.numpy as jnp
from jax import lax

from cljax.numbers import whole
from cljax.types import Array

UNPICKED = 2**31 - 1
"""The rank of examples that `herd` did not pick."""


def _unit(features: Array) -> Array:
    length = jnp.sqrt(jnp.sum(features**2, axis=-1, keepdims=True))
    return features / jnp.where(length > 0, length, 1)


def herd(features: Array, weights: Array, count: int) -> Array:
    r"""Picks a class's exemplars one by one, so that the mean of the first k is ever as near the class's as it can be.

    .. math::
        p_k = \operatorname*{argmin}_{x} \left\| \mu - \frac{1}{k} \Big( \phi(x) + \sum_{j<k} \phi(p_j) \Big) \right\|,
        \qquad \phi = \frac{f}{\|f\|_2}

    No example is picked twice. As picks come in order of importance, a memory shrinks by dropping the highest ranks:
    those below m are what `herd(..., m)` would pick.

    Args:
      features: `[N, D]` float.
      weights: `[N]` float, 1 for the class's examples and 0 for others (or for surplus); the mean is weighted by them.
      count: how many to pick, a Python number; all the class's, where they are fewer.

    Returns:
      `[N]` int32: 0 for the first pick, 1 for the second, ..., and `UNPICKED` for the rest.

    Raises:
      ValueError: a count that is no whole number of at least 0.

    Example:
      >>> features = jnp.array([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8], [0.0, 1.0]])
      >>> herd(features, jnp.array([1.0, 1.0, 1.0, 0.0]), 2).tolist()
      [1, 0, 2147483647, 2147483647]

    Reference: Rebuffi et al., iCaRL, 2017, algorithm 4; Welling, Herding Dynamical Weights to Learn, 2009.
    """
    chex.assert_rank([features, weights], [2, 1])
    chex.assert_equal_shape_prefix([features, weights], 1)
    count = whole("count", count)
    features = _unit(jnp.where(weights[:, None] > 0, features, 0))
    total = jnp.sum(weights)
    mean = weights.astype(features.dtype) @ features / jnp.where(total > 0, total, 1).astype(features.dtype)
    squares = jnp.sum(features**2, axis=-1)

    def pick(step: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        rank, chosen = carry
        candidates = (weights > 0) & (rank == UNPICKED)
        wanted = (step + 1).astype(features.dtype) * mean - chosen  # the distance times k, squared, is |wanted - x|^2
        best = jnp.argmin(jnp.where(candidates, squares - 2 * features @ wanted, jnp.inf))
        found = candidates[best]
        rank = rank.at[best].set(jnp.where(found, step, rank[best]))
        return rank, chosen + jnp.where(found, features[best], 0)

    rank = jnp.full(len(features), UNPICKED, jnp.int32)
    return lax.fori_loop(jnp.int32(0), jnp.int32(count), pick, (rank, jnp.zeros_like(mean)))[0]


def mean_distances(features: Array, means: Array, valid: Array) -> Array:
    r"""The squared distances of features from classes' means, all of unit length.

    .. math:: \| \phi(x) - \mu_c / \|\mu_c\|_2 \|_2^2

    Args:
      features: `[B, D]`.
      means: `[C, D]`, of features of unit length.
      valid: `[C]` bool, the classes there are.

    Returns:
      `[B, C]`, in [0, 4]; infinite where not valid. Negated, they serve as logits.

    Example:
      >>> means = jnp.array([[2.0, 0.0], [0.0, 1.0]])
      >>> mean_distances(jnp.array([[0.0, 3.0]]), means, jnp.array([True, True])).tolist()
      [[2.0, 0.0]]
    """
    chex.assert_rank([features, means, valid], [2, 2, 1])
    chex.assert_equal_shape_suffix([features, means], 1)
    chex.assert_equal_shape_prefix([means, valid], 1)
    offsets = _unit(features)[:, None, :] - _unit(means)[None, :, :]
    return jnp.where(valid[None, :], jnp.sum(offsets**2, axis=-1), jnp.inf)


def nearest_mean(features: Array, means: Array, valid: Array) -> Array:
    r"""Classifies by the nearest mean of exemplars.

    .. math:: y = \operatorname*{argmin}_c \| \phi(x) - \mu_c / \|\mu_c\|_2 \|_2

    Args:
      features: `[B, D]`.
      means: `[C, D]`, of features of unit length.
      valid: `[C]` bool, the classes there are.

    Returns:
      `[B]` int32, the class's index; -1 where no distance is a number, as of NaN.

    Example:
      >>> means = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
      >>> nearest_mean(jnp.array([[3.0, 2.9], [0.0, 5.0]]), means, jnp.array([True, True, False])).tolist()
      [0, 1]

    Reference: Rebuffi et al., iCaRL, 2017, algorithm 1.
    """
    distances = mean_distances(features, means, valid)
    near = distances < jnp.inf
    nearest = jnp.argmin(jnp.where(near, distances, jnp.inf), axis=-1).astype(jnp.int32)
    return jnp.where(jnp.any(near, axis=-1), nearest, -1)
