"""Metrics of an accuracy matrix: `accuracy[..., i, j]`, after training on task i, on task j."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from cljax.numbers import check_dtype, check_shape
from cljax.types import Array


def floating(values: ArrayLike) -> Array:
    """The values as floating point: their own dtype, or float32.

    Raises:
      ValueError: they are a whole result.
    """
    if hasattr(values, "_fields"):
        kind = type(values).__name__
        raise ValueError(f"A metric takes accuracies, such as result.evaluation.accuracy, not a whole {kind}.")
    values = jnp.asarray(values)
    return values if jnp.issubdtype(values.dtype, jnp.floating) else values.astype(jnp.float32)


def _square(accuracy: ArrayLike) -> Array:
    """The matrix as floating point, `[..., T, T]`."""
    accuracy = floating(accuracy)
    if accuracy.ndim < 2 or accuracy.shape[-1] != accuracy.shape[-2] or not accuracy.shape[-1]:
        raise ValueError(
            f"accuracy has the shape {accuracy.shape}, but a metric over tasks needs [..., T, T], row i being the "
            f"accuracies after task i. Of a stream with revisits, take first_visits(accuracy, tasks) first."
        )
    return accuracy


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
      >>> from cljax.metrics import first_visits
      >>> first_visits([[.9, .1], [.8, .7], [.85, .6]], [0, 1, 0])
      Array([[0.9 , 0.1 ],
             [0.85, 0.6 ]], dtype=float32)
    """
    accuracy, tasks = floating(accuracy), np.asarray(tasks)
    check_dtype("tasks", tasks, "int")
    check_shape("accuracy", accuracy, ..., len(tasks), "T")
    newest = np.maximum.accumulate(tasks)
    steps = np.diff(newest, prepend=-1)
    count = accuracy.shape[-1]
    if tasks.min() < 0 or steps[0] != 1 or steps.max() > 1 or newest[-1] != count - 1:
        raise ValueError(
            f"The rounds' tasks {tasks.tolist()} do not visit the {count} tasks of accuracy in the order of their "
            f"numbers. Number the tasks by first visit (0, 1, 2, ...), and of an unfinished run pass only the columns "
            f"of the tasks visited."
        )
    return jnp.take(accuracy, last_rounds(tasks), axis=-2)


def last_rounds(tasks: np.ndarray) -> np.ndarray:
    """The last round before each next task is first visited, `[T]` int; of the last task, the last of all.

    Args:
      tasks: `[R]` int, the task of each round, numbered by first visit.

    Example:
      >>> import numpy as np
      >>> from cljax.metrics.matrix import last_rounds
      >>> last_rounds(np.array([0, 1, 0])).tolist()
      [0, 2]
    """
    newest = np.maximum.accumulate(tasks)
    return np.searchsorted(newest, np.arange(newest[-1] + 1), side="right") - 1


def average_accuracy(accuracy: ArrayLike) -> Array:
    r"""The mean accuracy over all tasks after the last.

    .. math:: \frac{1}{T} \sum_j R_{T-1,j}

    Args:
      accuracy: `[..., T, T]`; needs the last row.

    Returns:
      `[...]`.

    Example:
      >>> from cljax.metrics import average_accuracy
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
      >>> from cljax.metrics import average_incremental_accuracy
      >>> average_incremental_accuracy([[.9, .0], [.5, .7]], weights=[1, 3])
      Array(0.775, dtype=float32)

    Reference: Rebuffi et al., iCaRL, 2017, section 4. Some later papers leave out the first step: take the mean of the
    per-task values from 1 on.
    """
    accuracy = _square(accuracy)
    count = accuracy.shape[-1]
    weights = jnp.ones(count, accuracy.dtype) if weights is None else jnp.asarray(weights).astype(accuracy.dtype)
    check_shape("weights", weights, count)
    seen = np.tri(count, dtype=bool)
    share = jnp.where(seen, jnp.broadcast_to(weights, (count, count)), 0)
    share = share / jnp.sum(share, axis=-1, keepdims=True)
    steps = jnp.einsum("ij,...ij->...i", share, jnp.where(seen, accuracy, 0), precision=jax.lax.Precision.HIGHEST)
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
      >>> from cljax.metrics import backward_transfer
      >>> backward_transfer([[.875, .25], [.5, .75]])
      Array(-0.375, dtype=float32)

    Reference: Lopez-Paz and Ranzato, Gradient Episodic Memory, 2017, equation 3.
    """
    accuracy = _square(accuracy)
    return _mean((accuracy[..., -1, :] - _diagonal(accuracy))[..., :-1], per_task)


def forward_transfer(accuracy: ArrayLike, baseline: ArrayLike, *, per_task: bool = False) -> Array:
    r"""How much better than an untrained network a task is solved before it is learned.

    .. math:: \frac{1}{T-1} \sum_{j \ge 1} (R_{j-1,j} - b_j)

    It says something where one head serves all tasks, as in the domain-incremental scenario: there a run's result has
    the baseline, `result.untrained`. A head of its own is random until its task is learned, and the class-incremental
    scenario takes no answer from it.

    Args:
      accuracy: `[..., T, T]`; needs the diagonal above the main one.
      baseline: `[..., T]` or `[T]`, the accuracies of the network as initialised; the first is not used.
      per_task: return the terms.

    Returns:
      `[...]`, 0 for a single task; or `[..., T - 1]` per task, for tasks 1 to T - 1.

    Example:
      >>> from cljax.metrics import forward_transfer
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
      >>> from cljax.metrics import forgetting
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
      >>> from cljax.metrics import intransigence
      >>> intransigence([[.75, .25], [.5, .5]], [.75, .625])
      Array(0.0625, dtype=float32)

    Reference: Chaudhry et al., Riemannian Walk, 2018, equation 4.
    """
    accuracy = _square(accuracy)
    return _mean(_per_task(reference, accuracy) - _diagonal(accuracy), per_task)
