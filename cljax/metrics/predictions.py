"""How right single predictions are."""

from __future__ import annotations

import jax.numpy as jnp

from cljax.numbers import whole
from cljax.types import Array


def correct(logits: Array, labels: Array, classes: Array, *, single_label: Array | None = None, top: int = 1) -> Array:
    """How right each prediction is: `[B]` float32 in [0, 1]. A valid logit that is NaN is wrong.

    Args:
      logits: `[B, K]`.
      labels: `[B]` int32, then 1 where the label's is among the largest valid logits; or `[B, K]` float32, then the
        fraction of valid labels on whose side of one half the sigmoid of the logit lies.
      classes: `[K]` bool, the valid logits.
      single_label: bool scalar, whether float labels are one-hot and count like whole numbers; None: no.
      top: how many of the largest logits count (of equal ones those of lower index) for a single label: 5 for the
        top-5 accuracy.

    Raises:
      ValueError: for a top below 1.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.metrics import correct
      >>> logits, classes = jnp.array([[1.0, 2.0, 9.0]]), jnp.array([True, True, False])
      >>> correct(logits, jnp.array([1]), classes).tolist()
      [1.0]
      >>> correct(logits, jnp.array([0]), classes, top=2).tolist()
      [1.0]
      >>> correct(-logits, jnp.array([[0.0, 1.0, 1.0]]), classes).tolist()
      [0.5]
    """
    top = whole("top", top, least=1)
    missing = jnp.isnan(logits) & classes[None, :]
    known = ~jnp.any(missing, axis=-1)
    places = jnp.arange(logits.shape[-1], dtype=jnp.int32)[None, :]

    def among_top(labels: Array) -> Array:
        own = places == labels[:, None]
        chosen = jnp.max(jnp.where(own & classes[None, :], logits, -jnp.inf), axis=-1, keepdims=True)
        ahead = (logits > chosen) | ((logits == chosen) & (places < labels[:, None]))
        right = jnp.any(own & classes[None, :], axis=-1) & (jnp.sum(ahead & classes[None, :], axis=-1) < top)
        return (right & known).astype(jnp.float32)

    if labels.ndim == 1:
        return among_top(labels)
    agree = ((logits > 0) == (labels > 0.5)) & classes[None, :] & ~missing
    share = jnp.sum(agree, axis=-1).astype(jnp.float32) / jnp.sum(classes).astype(jnp.float32)
    if single_label is None:
        return share
    labels = jnp.where(classes[None, :], labels, 0)
    one = jnp.abs(jnp.sum(labels.astype(jnp.float32), axis=-1) - 1) <= 1e-2  # and no NaN
    return jnp.where(single_label, among_top(jnp.where(one, jnp.argmax(labels, axis=-1), -1)), share)
