r"""Metrics of continual learning: from an accuracy matrix, from learning curves, from ownership, from seeds.

`accuracy[..., i, j]` is :math:`R_{i,j}`, the test accuracy on task j after training on task i, both counted from 0; for
streams that revisit tasks, `first_visits` makes such a matrix. `curves[..., e, j]` is the test accuracy on task j after
epoch e of the run. Leading axes are seeds. Accuracies are fractions (percent serve too) and so are the results. Entries
that a metric does not need may be NaN; a NaN among those it needs shows in the result. All functions work on NumPy and
JAX arrays and under `jit`, but for those that say they run on the host. A metric about earlier tasks is 0 for one task.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from cljax.types import Array, Tree


def _square(accuracy: ArrayLike) -> Array:
    """The matrix as floating point, `[..., T, T]`."""
    accuracy = _floating(accuracy)
    if accuracy.ndim < 2 or accuracy.shape[-1] != accuracy.shape[-2] or not accuracy.shape[-1]:
        raise ValueError(
            f"accuracy has the shape {accuracy.shape}, but a metric over tasks needs [..., T, T], row i being the "
            f"accuracies after task i. Of a stream with revisits, take first_visits(accuracy, tasks) first."
        )
    return accuracy


def _floating(values: ArrayLike) -> Array:
    values = jnp.asarray(values)
    return values if jnp.issubdtype(values.dtype, jnp.floating) else values.astype(jnp.float32)


def _mean(per_task: Array, wanted: bool) -> Array:
    """The values themselves where `wanted`, else their mean over the last axis, 0 where there is none."""
    if wanted:
        return per_task
    return jnp.mean(per_task, axis=-1) if per_task.shape[-1] else jnp.zeros(per_task.shape[:-1], per_task.dtype)


def _diagonal(matrix: Array) -> Array:
    return jnp.diagonal(matrix, axis1=-2, axis2=-1)


def first_visits(accuracy: ArrayLike, tasks: ArrayLike) -> Array:
    """The matrix after each task's first visit, of a stream that revisits tasks. `tasks` is read on the host.

    Row i is the row of the last round before task i + 1 is first visited, so revisits of earlier tasks count.

    Args:
      accuracy: `[..., R, T]`, the accuracies after each round.
      tasks: `[R]` int, the task of each round, numbered by first visit: the first visits are 0, 1, ..., T - 1.

    Returns:
      `[..., T, T]`.

    Raises:
      ValueError: where tasks are not numbered by first visit, or not all are visited.

    Example:
      >>> first_visits([[.9, .1], [.8, .7], [.85, .6]], [0, 1, 0])
      Array([[0.9 , 0.1 ],
             [0.85, 0.6 ]], dtype=float32)
    """
    accuracy, tasks = _floating(accuracy), np.asarray(tasks)
    chex.assert_axis_dimension(accuracy, -2, len(tasks))
    newest = np.maximum.accumulate(tasks)
    steps = np.diff(newest, prepend=-1)
    count = accuracy.shape[-1]
    if tasks.min() < 0 or steps[0] != 1 or steps.max() > 1 or newest[-1] != count - 1:
        raise ValueError(
            f"The rounds' tasks {tasks.tolist()} do not visit the {count} tasks of accuracy in the order of their "
            f"numbers. Number the tasks by first visit (0, 1, 2, ...), and of an unfinished run pass only the columns "
            f"of the tasks visited."
        )
    return accuracy[..., np.searchsorted(newest, np.arange(count), side="right") - 1, :]


def average_accuracy(accuracy: ArrayLike) -> Array:
    r"""The mean accuracy over all tasks after the last.

    .. math:: \frac{1}{T} \sum_j R_{T-1,j}

    Args:
      accuracy: `[..., T, T]`; needs the last row.

    Returns:
      `[...]`.

    Example:
      >>> average_accuracy([[.9, .2], [.5, .7]])
      Array(0.6, dtype=float32)

    Reference: Lopez-Paz and Ranzato, Gradient Episodic Memory, 2017, equation 2.
    """
    return jnp.mean(_square(accuracy)[..., -1, :], axis=-1)


def average_incremental_accuracy(
    accuracy: ArrayLike, weights: ArrayLike | None = None, *, per_task: bool = False
) -> Array:
    r"""The mean over all steps of the accuracy on everything seen so far.

    .. math:: \frac{1}{T} \sum_i A_i, \qquad A_i = \frac{\sum_{j \le i} w_j R_{i,j}}{\sum_{j \le i} w_j}

    Args:
      accuracy: `[..., T, T]`; needs the lower triangle.
      weights: `[T]`, the tasks' numbers of classes (or of test examples): with a single head, :math:`A_i` is then the
        accuracy over all classes seen. None: equal weights.
      per_task: return every :math:`A_i`.

    Returns:
      `[...]`, or `[..., T]` per task (the step-wise curve of class-incremental papers).

    Example:
      >>> average_incremental_accuracy([[.9, .0], [.5, .7]], weights=[1, 3])
      Array(0.775, dtype=float32)

    Reference: Rebuffi et al., iCaRL, 2017, section 4. Some later papers leave out the first step: take the mean of the
    per-task values from 1 on.
    """
    accuracy = _square(accuracy)
    count = accuracy.shape[-1]
    weights = jnp.ones(count, accuracy.dtype) if weights is None else jnp.asarray(weights).astype(accuracy.dtype)
    chex.assert_shape(weights, (count,))
    seen = np.tri(count, dtype=bool)
    share = jnp.where(seen, jnp.broadcast_to(weights, (count, count)), 0)
    share = share / jnp.sum(share, axis=-1, keepdims=True)
    steps = jnp.einsum("ij,...ij->...i", share, jnp.where(seen, accuracy, 0))
    return _mean(steps, per_task)


def backward_transfer(accuracy: ArrayLike, *, per_task: bool = False) -> Array:
    r"""How much learning later tasks changed the accuracy on earlier ones; negative where they were forgotten.

    .. math:: \frac{1}{T-1} \sum_{j<T-1} (R_{T-1,j} - R_{j,j})

    Per task these are the signed changes in brackets in the tables on ternary feature masks.

    Args:
      accuracy: `[..., T, T]`; needs the diagonal and the last row.
      per_task: return the terms.

    Returns:
      `[...]`, 0 for a single task; or `[..., T - 1]` per task.

    Example:
      >>> backward_transfer([[.875, .25], [.5, .75]])
      Array(-0.375, dtype=float32)

    Reference: Lopez-Paz and Ranzato, Gradient Episodic Memory, 2017, equation 3.
    """
    accuracy = _square(accuracy)
    return _mean((accuracy[..., -1, :] - _diagonal(accuracy))[..., :-1], per_task)


def forward_transfer(accuracy: ArrayLike, baseline: ArrayLike, *, per_task: bool = False) -> Array:
    r"""How much better than an untrained network a task is solved before it is learned.

    .. math:: \frac{1}{T-1} \sum_{j \ge 1} (R_{j-1,j} - b_j)

    Args:
      accuracy: `[..., T, T]`; needs the diagonal above the main one.
      baseline: `[..., T]` or `[T]`, the accuracies of the network as initialised; the first is not used.
      per_task: return the terms.

    Returns:
      `[...]`, 0 for a single task; or `[..., T - 1]` per task, for tasks 1 to T - 1.

    Example:
      >>> forward_transfer([[.9, .5], [.5, .7]], [.125, .125])
      Array(0.375, dtype=float32)

    Reference: Lopez-Paz and Ranzato, Gradient Episodic Memory, 2017, equation 4.
    """
    accuracy = _square(accuracy)
    ahead = jnp.diagonal(accuracy, offset=1, axis1=-2, axis2=-1)
    return _mean(ahead - _per_task(baseline, accuracy)[..., 1:], per_task)


def _per_task(values: ArrayLike, accuracy: Array) -> Array:
    """`[T]` or `[..., T]` as `[..., T]`."""
    return jnp.broadcast_to(jnp.asarray(values).astype(accuracy.dtype), accuracy.shape[:-1])


def forgetting(
    accuracy: ArrayLike,
    *,
    reference: Literal["earlier", "all", "first"] = "earlier",
    signed: bool = False,
    per_task: bool = False,
) -> Array:
    r"""How far the accuracy on earlier tasks fell below a reference; positive where they were forgotten.

    .. math:: \frac{1}{T-1} \sum_{j<T-1} (\mathrm{reference}_j - R_{T-1,j})

    Publications and libraries differ in the reference, so that the same run gives different numbers:

    - `'earlier'`: :math:`\max_{l<T-1} R_{l,j}` (RWalk, FACIL); negative where the last task brought the best accuracy;
    - `'all'`: :math:`\max_l R_{l,j}`, the last row included (Mammoth, PyCIL); never negative;
    - `'first'`: :math:`R_{j,j}` (Avalanche); equals minus `backward_transfer`.

    Args:
      accuracy: `[..., T, T]`; needs the lower triangle. Accuracies before a task was learned count where they are not
        NaN. For forgetting after task k, pass `accuracy[..., :k + 1, :k + 1]`.
      reference: see above.
      signed: give the change, :math:`R_{T-1,j} - \mathrm{reference}_j`, instead: SequeL's sign, with `'all'`.
      per_task: return the terms.

    Returns:
      `[...]`, 0 for a single task; or `[..., T - 1]` per task.

    Raises:
      ValueError: for any other reference.

    Example:
      >>> matrix = [[.9, .0, .0], [.6, .8, .0], [.7, .9, .5]]
      >>> [f'{float(forgetting(matrix, reference=name)):.2f}' for name in ('earlier', 'all', 'first')]
      ['0.05', '0.10', '0.05']

    Reference: Chaudhry et al., Riemannian Walk, 2018, equation 3.
    """
    accuracy = _square(accuracy)
    count = accuracy.shape[-1]
    if reference == "first":
        best = _diagonal(accuracy)
    elif reference in ("earlier", "all"):
        unlearned = jnp.isnan(accuracy) & jnp.broadcast_to(~np.tri(count, dtype=bool), accuracy.shape)
        rows = jnp.where(unlearned, -jnp.inf, accuracy)
        best = jnp.max(rows if reference == "all" else rows[..., :-1, :], axis=-2, initial=-jnp.inf)
    else:
        raise ValueError(f"reference is '{reference}'; it must be 'earlier', 'all' or 'first'.")
    change = (accuracy[..., -1, :] - best)[..., :-1]
    return _mean(change if signed else -change, per_task)


def intransigence(accuracy: ArrayLike, reference: ArrayLike, *, per_task: bool = False) -> Array:
    r"""How much less of a new task is learned than by a network trained on all tasks so far together.

    .. math:: \frac{1}{T} \sum_k (a^*_k - R_{k,k})

    Args:
      accuracy: `[..., T, T]`; needs the diagonal.
      reference: `[..., T]` or `[T]`: :math:`a^*_k`, the accuracy on task k of a network trained jointly on 0 to k.
      per_task: return the terms; RWalk reports the last.

    Returns:
      `[...]`, or `[..., T]` per task. Negative where learning one by one was better.

    Example:
      >>> intransigence([[.75, .25], [.5, .5]], [.75, .625])
      Array(0.0625, dtype=float32)

    Reference: Chaudhry et al., Riemannian Walk, 2018, equation 4.
    """
    accuracy = _square(accuracy)
    return _mean(_per_task(reference, accuracy) - _diagonal(accuracy), per_task)


def _own_phase(curves: Array, starts: ArrayLike) -> Array:
    """`[..., epochs, T]` bool: whether the epoch is one of the task's own phase."""
    epochs, count = curves.shape[-2:]
    starts = jnp.asarray(starts, jnp.int32)
    chex.assert_shape(starts, (count,))
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
      validation: `[..., epochs, T]`, validation accuracies: the first epoch that is best by them is taken.

    Returns:
      `[..., T]`; `jnp.mean(..., -1)` of it is the figure that DF-CNN's tables give.

    Example:
      >>> curves = [[.5, .1], [.8, .1], [.6, .7], [.9, .6]]
      >>> peak_accuracy(curves, [0, 2])
      Array([0.8, 0.7], dtype=float32)

    Reference: Lee et al., Learning Shared Knowledge for Deep Lifelong Learning Using Deconvolutional Networks, 2019.
    """
    curves = _floating(curves)
    own = _own_phase(curves, starts)
    if validation is None:
        return jnp.max(jnp.where(own, curves, -jnp.inf), axis=-2)
    validation = _floating(validation)
    chex.assert_equal_shape([curves, validation])
    chosen = jnp.argmax(jnp.where(own, validation, -jnp.inf), axis=-2, keepdims=True)
    return jnp.take_along_axis(curves, chosen, axis=-2)[..., 0, :]


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
      >>> forgetting_ratio([[.5, .1], [.8, .1], [.4, .5], [.6, .5]], [0, 2])[-1]
      Array([0.75, 1.  ], dtype=float32)

    Reference: Lee et al., as of `peak_accuracy`.
    """
    curves = _floating(curves)
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
      >>> epochs_to_converge([[.5, .1], [.79, .1], [.8, .1], [.4, .7]], [0, 3])
      Array([2, 1], dtype=int32)

    Reference: Lee et al., as of `peak_accuracy`.
    """
    curves = _floating(curves)
    peak = jnp.broadcast_to(peak_accuracy(curves, starts)[..., None, :], curves.shape)
    reached = _own_phase(curves, starts) & (curves >= fraction * peak)
    first = jnp.argmax(reached, axis=-2).astype(jnp.int32)
    needed = first - jnp.broadcast_to(jnp.asarray(starts, jnp.int32), first.shape) + 1
    return jnp.where(jnp.any(reached, axis=-2), needed, 0)


class Capacity(NamedTuple):
    """Parts of each layer's features, in [0, 1], after a task: trees like the ownership, of float32 scalars.

    Attributes:
      used: owned by this task or an earlier one.
      newly_used: owned by this task.
      free: neither, 1 - used.
    """

    used: Tree
    newly_used: Tree
    free: Tree


def capacity(owner: Tree, task: ArrayLike) -> Capacity:
    """How much of each layer is used, newly used and free after a task.

    Args:
      owner: a tree of int32 arrays: the task that made each feature (or weight), a larger number where it is free. As
        tasks are numbered by first visit, the final ownership tells of every earlier task too.
      task: int scalar.

    Returns:
      The parts; see `Capacity`.

    Example:
      >>> used, newly_used, free = capacity({'conv': jnp.array([0, 1, 1, 2, 9, 9, 9, 9])}, 1)
      >>> float(used['conv']), float(newly_used['conv']), float(free['conv'])
      (0.375, 0.25, 0.625)
    """
    task = jnp.asarray(task, jnp.int32)

    def part(rule):
        return jax.tree.map(lambda layer: jnp.mean(rule(jnp.asarray(layer)), dtype=jnp.float32), owner)

    return Capacity(
        part(lambda layer: layer <= task), part(lambda layer: layer == task), part(lambda layer: layer > task)
    )


BITS = {
    "weight_mask": ("weights", 1),
    "soft_feature_mask": ("features", 32),
    "ternary_feature_mask": ("features", 2),
    "feature_normalization": ("features", 64),
}
"""What a task adds: per weight or per feature, how many bits."""


def overhead_bytes(kind: str, *, tasks: int, weights: int = 0, features: int = 0) -> int:
    """Bytes that a method keeps for its tasks, beyond the network itself. On the host.

    - `'weight_mask'`: 1 bit a weight and task (PackNet);
    - `'soft_feature_mask'`: one float32 a feature and task (HAT);
    - `'ternary_feature_mask'`: 2 bits a feature and task (TFM);
    - `'feature_normalization'`: two float32 a feature and task (TFM's scale and shift, on top of its masks). Where the
      first task's is the identity and not stored, count one task fewer.

    Args:
      kind: one of these.
      tasks: the number of tasks stored.
      weights: the network's number of weights, for `'weight_mask'`.
      features: its number of masked features, for the others.

    Returns:
      Whole bytes, rounded up.

    Raises:
      ValueError: for any other kind, or where the count that it needs is missing.

    Example:
      >>> overhead_bytes('weight_mask', weights=54_547_712, tasks=4)  # AlexNet
      27273856
      >>> overhead_bytes('ternary_feature_mask', features=9_344, tasks=4)
      9344

    Reference: Masana et al., Ternary Feature Masks, 2021, section 2 and figure 1.
    """
    if kind not in BITS:
        raise ValueError(f"kind is '{kind}'; it must be one of {', '.join(BITS)}.")
    unit, bits = BITS[kind]
    count = {"weights": weights, "features": features}[unit]
    if count <= 0:
        raise ValueError(f"The overhead of '{kind}' grows with the number of {unit}; pass {unit}=... (positive).")
    return math.ceil(count * bits * tasks / 8)


class Interval(NamedTuple):
    """A mean and the half-width of its confidence interval, mean ± half_width: float64, scalars or `[...]`."""

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

    Example:
      >>> mean, half_width = mean_and_interval([1.0, 2.0, 3.0])
      >>> print(f'{mean:.1f} ± {half_width:.3f}')
      2.0 ± 2.484
    """
    from scipy.special import stdtrit

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
