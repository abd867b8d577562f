"""How right single predictions are."""

from __future__ import annotations

import jax.numpy as jnp

from cljax.types import Array


def correct(logits: Array, labels: Array, classes: Array, *, single_label: Array | None = None) -> Array:
    """How right each prediction is: `[B]` float32 in [0, 1]. Where a valid logit is NaN, there is none: 0.

    Args:
      logits: `[B, K]`.
      labels: `[B]` int32, then 1 where the largest valid logit is the label's; or `[B, K]` float32, then the fraction
        of valid labels on whose side of one half the sigmoid of the logit lies.
      classes: `[K]` bool, the valid logits.
      single_label: bool scalar, whether float labels are one-hot and count like whole numbers; None: no.

    Example:
      >>> logits, classes = jnp.array([[1.0, 2.0, 9.0]]), jnp.array([True, True, False])
      >>> correct(logits, jnp.array([1]), classes).tolist()
      [1.0]
      >>> correct(-logits, jnp.array([[0.0, 1.0, 1.0]]), classes).tolist()
      [0.5]
    """
    missing = jnp.isnan(logits) & classes[None, :]
    best = jnp.argmax(jnp.where(classes, logits, -jnp.inf), axis=-1)
    best = jnp.where(jnp.any(missing, axis=-1), -1, best)
    if labels.ndim == 1:
        return ((best == labels) & (labels >= 0)).astype(jnp.float32)
    agree = ((logits > 0) == (labels > 0.5)) & classes[None, :] & ~missing
    share = jnp.sum(agree, axis=-1).astype(jnp.float32) / jnp.sum(classes).astype(jnp.float32)
    if single_label is None:
        return share
    return jnp.where(single_label, (best == jnp.argmax(labels, axis=-1)).astype(jnp.float32), share)
