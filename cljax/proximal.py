"""Proximal steps: what a penalty that is not smooth takes off after a gradient step, leaving exact zeros."""

from __future__ import annotations

import jax.numpy as jnp
from jax.typing import ArrayLike

from cljax.types import Array


def soft_threshold(values: Array, amount: ArrayLike) -> Array:
    r"""The proximal step of the L1 norm: every value comes nearer to 0 by the same amount, at most to 0.

    .. math:: \mathrm{sign}(w) \max(0, |w| - a)

    Args:
      values: `[...]` float.
      amount: a, scalar, at least 0; of a step of rate eta on a penalty of strength mu it is eta mu.

    Returns:
      `[...]`, of the values' dtype.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.proximal import soft_threshold
      >>> soft_threshold(jnp.array([2.0, -0.5, 0.25]), 0.5).tolist()
      [1.5, 0.0, 0.0]
    """
    left = jnp.maximum(jnp.abs(values) - jnp.asarray(amount, values.dtype), 0)
    return jnp.where(left == 0, jnp.zeros_like(values), jnp.sign(values) * left)  # NaN stays NaN


def group_factor(norms: Array, amount: ArrayLike) -> Array:
    r"""The proximal step of the group lasso: by what a group's weights are multiplied, from their Euclidean norm.

    .. math:: \max\Big(0, 1 - \frac{a}{\|w_g\|}\Big)

    Args:
      norms: `[...]` float, of groups.
      amount: a, scalar, at least 0.

    Returns:
      `[...]`, of the norms' dtype; exactly 0 where a norm is at most a.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.proximal import group_factor
      >>> group_factor(jnp.array([2.0, 0.5, 0.0]), 0.5).tolist()
      [0.75, 0.0, 0.0]
    """
    amount = jnp.asarray(amount, norms.dtype)
    goes = norms <= amount
    return jnp.where(goes, 0, 1 - amount / jnp.where(goes, 1, norms))  # NaN stays NaN
