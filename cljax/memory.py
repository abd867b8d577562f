r"""Exemplars: which examples to keep, and how to classify by their means.

Features are scaled to unit length here, as in iCaRL; zero features stay zero.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax

from cljax.losses import at_least_float32, known_labels, unit_length
from cljax.numbers import check_dtype, check_shape, whole
from cljax.trees import varying
from cljax.types import AnyArray, Array

UNPICKED = 2**31 - 1
"""The rank of examples that `herd` did not pick."""


def unit(features: AnyArray) -> Array:
    """Features `[..., D]` scaled to unit length; zero ones stay zero.

    Raises:
      ValueError: whole numbers.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.memory import unit
      >>> unit(jnp.array([[3.0, 4.0], [0.0, 0.0]])).tolist()
      [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
    """
    check_dtype("features", features, "float")
    return unit_length(features)


def herd(features: AnyArray, weights: AnyArray, count: int) -> Array:
    r"""Picks a class's exemplars one by one, so that the mean of the first k is ever as near the class's as it can be.

    .. math::
        p_k = \operatorname*{argmin}_{x} \left\| \mu - \frac{1}{k} \Big( \phi(x) + \sum_{j<k} \phi(p_j) \Big) \right\|,
        \qquad \phi = \frac{f}{\|f\|_2}

    No example is picked twice. As picks come in order of importance, a memory shrinks by dropping the highest ranks:
    those below m are what `herd(..., m)` would pick.

    Args:
      features: `[N, D]` float.
      weights: `[N]`, above 0 for the class's examples and 0 for others (or for surplus).
      count: how many to pick, a Python number; all the class's, where they are fewer.

    Returns:
      `[N]` int32: 0 for the first pick, 1 for the second, ..., and `UNPICKED` for the rest.

    Raises:
      ValueError: a count that is no whole number of at least 0.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.memory import herd
      >>> features = jnp.array([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8], [0.0, 1.0]])
      >>> herd(features, jnp.array([1.0, 1.0, 1.0, 0.0]), 2).tolist()
      [1, 0, 2147483647, 2147483647]

    Reference: Rebuffi et al., iCaRL, 2017, algorithm 4; Welling, Herding Dynamical Weights to Learn, 2009.
    """
    check_shape("features", features, "n", "D")
    check_shape("weights", weights, "n")
    return herd_classes(features, jnp.where(weights > 0, jnp.int32(0), jnp.int32(-1)), 1, count)


def herd_classes(features: AnyArray, labels: AnyArray, classes: int, count: int) -> Array:
    """Picks exemplars of several classes at once, each by `herd`.

    Args:
      features: `[N, D]` float.
      labels: `[N]` int32; examples of a label that is none of 0 to C - 1 are not picked.
      classes: C, a Python number.
      count: how many to pick of each class, a Python number.

    Returns:
      `[N]` int32: the rank of each example in its class, and `UNPICKED` for those not picked.

    Raises:
      ValueError: a number that is no whole number, or out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.memory import herd_classes
      >>> features = jnp.array([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8], [0.0, 1.0]])
      >>> herd_classes(features, jnp.array([0, 0, 0, 1]), 2, 2).tolist()
      [1, 0, 2147483647, 0]

    Reference: Rebuffi et al., iCaRL, 2017, algorithm 4.
    """
    check_shape("features", features, "n", "D")
    check_shape("labels", labels, features.shape[0])
    check_dtype("features", features, "float")
    count, classes = whole("count", count), whole("classes", classes, least=1)
    check_dtype("labels", labels, "int")
    places, known = known_labels(labels, classes)
    member = known[:, None] & (places[:, None] == jnp.arange(classes, dtype=jnp.int32)[None, :])
    features = unit(jnp.where(jnp.any(member, axis=1)[:, None], at_least_float32(features), 0))
    sizes = jnp.sum(member, axis=0, dtype=jnp.int32)
    product = functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST)  # what is near must not be rounded away
    sums = product(member.T.astype(features.dtype), features)
    means = sums / jnp.maximum(sizes, 1).astype(features.dtype)[:, None]
    squares = jnp.sum(features**2, axis=-1)

    def pick(step: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        rank, chosen = carry
        candidates = member & (rank == UNPICKED)[:, None]
        wanted = (step + 1).astype(features.dtype) * means - chosen  # |wanted - x|^2 is k^2 times the squared distance
        distances = squares[:, None] - 2 * product(features, wanted.T)
        best = jnp.argmin(jnp.where(candidates, distances, jnp.inf), axis=0)
        found = jnp.take_along_axis(candidates, best[None], axis=0)[0]
        rank = rank.at[jnp.where(found, best, len(features))].set(step, mode="drop")
        return rank, chosen + jnp.where(found[:, None], features[best], 0)

    start = varying((jnp.full(len(features), UNPICKED, jnp.int32), jnp.zeros_like(means)), features)
    return lax.fori_loop(jnp.int32(0), jnp.minimum(jnp.int32(count), jnp.max(sizes)), pick, start)[0]


NO_GROUP = 2**31 - 1
"""The group of what `balanced_choice` cannot choose."""


def balanced_choice(key: AnyArray, groups: AnyArray, count: int, rank: AnyArray | None = None) -> Array:
    """Chooses as many of each group as can be: their numbers differ by at most one, where all have enough.

    Args:
      key: PRNG key; says which groups have one more.
      groups: `[N]` int32; `NO_GROUP` for what cannot be chosen.
      count: how many to choose, static.
      rank: `[N]` uint32, who comes first in its group; None: by chance.

    Returns:
      `[count]` int32 places in `groups`: the first of each group, then the second of each, and so on; N where there are
      no more. What is chosen of a group is in the order of its ranks, so that the first m are the choice of m.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from cljax.memory import NO_GROUP, balanced_choice
      >>> groups = jnp.array([0, 0, 0, 0, 1, 1, NO_GROUP])
      >>> chosen = balanced_choice(jax.random.key(0), groups, 4)
      >>> jnp.sort(groups[chosen]).tolist()
      [0, 0, 1, 1]
      >>> jnp.sort(balanced_choice(jax.random.key(0), groups, 4, jnp.arange(7, dtype=jnp.uint32))).tolist()
      [0, 1, 4, 5]
    """
    size = len(groups)
    bits, ties = jax.random.bits(key, (2, size), jnp.uint32)
    by_group = jnp.lexsort((bits if rank is None else rank, groups))
    ordered = groups[by_group]
    place = jnp.arange(size, dtype=jnp.int32)
    turn = place - jnp.searchsorted(ordered, ordered, side="left").astype(jnp.int32)
    turn = jnp.zeros(size, jnp.int32).at[by_group].set(turn)
    turn = jnp.where(groups == NO_GROUP, NO_GROUP, turn)
    order = jnp.lexsort((ties, turn)).astype(jnp.int32)
    order = jnp.where(turn[order] == NO_GROUP, size, order)
    return jnp.concatenate([order, jnp.full(count, size, jnp.int32)])[:count]


def mean_distances(features: AnyArray, means: AnyArray, valid: AnyArray) -> Array:
    r"""The squared distances of features from classes' means, all of unit length.

    .. math:: \| \phi(x) - \mu_c / \|\mu_c\|_2 \|_2^2

    Args:
      features: `[B, D]`.
      means: `[C, D]`, of features of unit length.
      valid: `[C]` bool, the classes there are.

    Returns:
      `[B, C]`, in [0, 4]; infinite where not valid. Negated, they serve as logits.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.memory import mean_distances
      >>> means = jnp.array([[2.0, 0.0], [0.0, 1.0]])
      >>> mean_distances(jnp.array([[0.0, 3.0]]), means, jnp.array([True, True])).tolist()
      [[2.0, 0.0]]
    """
    check_shape("features", features, "n", "D")
    check_shape("means", means, "K", features.shape[1])
    check_shape("valid", valid, means.shape[0])
    offsets = unit(features)[:, None, :] - unit(means)[None, :, :]
    return jnp.where(valid[None, :], jnp.sum(offsets**2, axis=-1), jnp.inf)


def nearest_mean(features: AnyArray, means: AnyArray, valid: AnyArray) -> Array:
    r"""Classifies by the nearest mean of exemplars.

    .. math:: y = \operatorname*{argmin}_c \| \phi(x) - \mu_c / \|\mu_c\|_2 \|_2

    Args:
      features: `[B, D]`.
      means: `[C, D]`, of features of unit length.
      valid: `[C]` bool, the classes there are.

    Returns:
      `[B]` int32, the class's index; -1 where no distance is a number, as of NaN.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.memory import nearest_mean
      >>> means = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
      >>> nearest_mean(jnp.array([[3.0, 2.9], [0.0, 5.0]]), means, jnp.array([True, True, False])).tolist()
      [0, 1]

    Reference: Rebuffi et al., iCaRL, 2017, algorithm 1.
    """
    distances = mean_distances(features, means, valid)
    near = distances < jnp.inf
    nearest = jnp.argmin(jnp.where(near, distances, jnp.inf), axis=-1).astype(jnp.int32)
    return jnp.where(jnp.any(near, axis=-1), nearest, -1)
