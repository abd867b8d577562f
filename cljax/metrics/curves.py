"""Metrics of learning curves: `curves[..., e, j]`, after epoch e of the run, on task j."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from cljax.metrics.matrix import floating
from cljax.numbers import check_dtype, check_shape, real
from cljax.types import Array


def _own_phase(curves: Array, starts: ArrayLike) -> Array:
    """`[..., epochs, T]` bool: whether the epoch is one of the task's own phase."""
    epochs, count = curves.shape[-2:]
    starts = jnp.asarray(starts)
    check_dtype("starts", starts, "int")
    starts = starts.astype(jnp.int32)
    check_shape("starts", starts, count)
    if not isinstance(starts, jax.core.Tracer):
        values = [-1, *starts.tolist(), epochs]
        if any(after <= before for before, after in itertools.pairwise(values)):
            raise ValueError(
                f"starts are {values[1:-1]}, but must increase, from 0 on, and be below {epochs}, the epochs."
            )
    ends = jnp.concatenate([starts[1:], jnp.array([epochs], jnp.int32)])
    epoch = jnp.arange(epochs, dtype=jnp.int32)[:, None]
    return jnp.broadcast_to((epoch >= starts[None]) & (epoch < ends[None]), curves.shape)


def peak_accuracy(curves: ArrayLike, starts: ArrayLike, *, validation: ArrayLike | None = None) -> Array:
    r"""The best accuracy of each task during its own phase.

    .. math:: p_j = \max_{e \in \mathrm{phase}_j} a_j(e)

    The maximum over test accuracies is optimistic; with `validation` the epoch is chosen by those instead.

    Args:
      curves: `[..., epochs, T]`; needs each task's own phase.
      starts: `[T]` int, increasing: the row of the first epoch of each task's phase, which ends where the next begins.
      validation: `[..., epochs, T]`, validation accuracies: the first epoch that is best by them is taken. Where one of
        a task's own phase is NaN, there is no best, and its peak is NaN.

    Returns:
      `[..., T]`; `jnp.mean(..., -1)` of it is the figure that DF-CNN's tables give.

    Example:
      >>> from cljax.metrics import peak_accuracy
      >>> curves = [[.5, .1], [.8, .1], [.6, .7], [.9, .6]]
      >>> peak_accuracy(curves, [0, 2])
      Array([0.8, 0.7], dtype=float32)

    Reference: Lee et al., Learning Shared Knowledge for Deep Lifelong Learning Using Deconvolutional Networks, 2019.
    """
    curves = floating(curves)
    own = _own_phase(curves, starts)
    if validation is None:
        return jnp.max(jnp.where(own, curves, -jnp.inf), axis=-2)
    validation = floating(validation)
    check_shape("validation", validation, *curves.shape)
    validation = jnp.where(own, validation, -jnp.inf)
    chosen = jnp.argmax(validation, axis=-2, keepdims=True)
    unknown = jnp.any(jnp.isnan(validation), axis=-2)
    return jnp.where(unknown, jnp.nan, jnp.take_along_axis(curves, chosen, axis=-2)[..., 0, :])


def forgetting_ratio(curves: ArrayLike, starts: ArrayLike) -> Array:
    r"""The catastrophic forgetting ratio: accuracy as a part of the task's peak, after every epoch.

    .. math:: r_j(e) = a_j(e) / p_j

    Above 1, later tasks improved an earlier one (reverse transfer). Where the peak is 0, nothing was there to forget
    and the ratio is 1.

    Args:
      curves: `[..., epochs, T]`.
      starts: `[T]` int, as of `peak_accuracy`.

    Returns:
      `[..., epochs, T]`. Rows after a task's own phase tell of forgetting; the last row is the final one.

    Example:
      >>> from cljax.metrics import forgetting_ratio
      >>> forgetting_ratio([[.5, .1], [.8, .1], [.4, .5], [.6, .5]], [0, 2])[-1]
      Array([0.75, 1.  ], dtype=float32)

    Reference: Lee et al., as of `peak_accuracy`.
    """
    curves = floating(curves)
    peak = jnp.broadcast_to(peak_accuracy(curves, starts)[..., None, :], curves.shape)
    return jnp.where(peak == 0, 1.0, curves / jnp.where(peak == 0, 1, peak))


def epochs_to_converge(curves: ArrayLike, starts: ArrayLike, *, fraction: float = 0.98) -> Array:
    r"""How many epochs a task needs to come within a fraction of its peak.

    .. math:: \min \{ n \ge 1 : a_j(s_j + n - 1) \ge f \cdot p_j \}

    Args:
      curves: `[..., epochs, T]`; needs each task's own phase.
      starts: `[T]` int, as of `peak_accuracy`.
      fraction: f, in [0, 1].

    Returns:
      `[..., T]` int32, counted from 1: a task that is there after its first epoch needs 1. 0 where a NaN hides it.

    Example:
      >>> from cljax.metrics import epochs_to_converge
      >>> epochs_to_converge([[.5, .1], [.79, .1], [.8, .1], [.4, .7]], [0, 3])
      Array([2, 1], dtype=int32)

    Reference: Lee et al., as of `peak_accuracy`.
    """
    curves, fraction = floating(curves), real("fraction", fraction, least=0, most=1)
    peak = jnp.broadcast_to(peak_accuracy(curves, starts)[..., None, :], curves.shape)
    reached = _own_phase(curves, starts) & (curves >= fraction * peak * (1 - 1e-6))  # but for the product's rounding
    first = jnp.argmax(reached, axis=-2).astype(jnp.int32)
    needed = first - jnp.broadcast_to(jnp.asarray(starts, jnp.int32), first.shape) + 1
    return jnp.where(jnp.any(reached, axis=-2), needed, 0)
