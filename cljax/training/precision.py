"""Mean average precision of a learner on each task of a multi-label stream."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax

from cljax import metrics, streams
from cljax.metrics.ranking import Interpolation
from cljax.training.evaluation import over_task
from cljax.types import Array, Batch, Learner, Method, Tables


def evaluate_precision(
    method: Method,
    learner: Learner,
    tables: Tables,
    *,
    split: str = "test",
    interpolation: Interpolation = "area",
    batch_size: int = 256,
) -> Array:
    """Mean average precision on every task, by the task's own head: VOC's measure of multi-label tasks.

    It ranks all of a task's examples at once, so that it is no sum over batches, as accuracy is. `Evaluation.accuracy`
    of a multi-label task is the fraction of labels on the right side of one half, which is high where labels are rare.

    Args:
      method: whose `predict` is asked.
      learner: at rest.
      tables: the stream's data, labels `[N, K]`.
      split: 'test', 'validation' or 'train'.
      interpolation: see `metrics.average_precision`.
      batch_size: of the forward passes.

    Returns:
      `[T]` float32 fractions, the mean over a task's classes that occur; NaN for a task without labels, and for a
      single-label one.

    Raises:
      ValueError: where the labels are not several an example.

    Example:
      >>> import jax
      >>> import numpy as np
      >>> import optax
      >>> from cljax import methods, networks, streams, training
      >>> images, labels = np.zeros((4, 2, 2, 1), np.uint8), np.eye(4, 3, dtype=np.float32)
      >>> tables = streams.from_tasks([(images, labels, images, labels)], validation=0).tables
      >>> method = methods.finetune(networks.mlp((2, 2, 1), 3, hidden=(4,)))
      >>> learner = training.make_learner(method, optax.sgd(1.0), tables, 0.1, jax.random.key(0))
      >>> training.evaluate_precision(method, learner, tables).tolist()  # of a network that has learned nothing
      [0.611...]
    """
    table = getattr(tables, split)
    if table.labels.ndim != 2:
        raise ValueError(
            "Mean average precision needs several labels an example, float32 [N, K], but these are one class each: use "
            "training.evaluate."
        )
    total, outputs = table.labels.shape
    classes, single = jnp.asarray(tables.classes), tables.single_label
    places = jnp.arange(total, dtype=jnp.int32)

    def one(task: Array) -> Array:
        size = streams.size_of(table, task)

        def read(scores: Array, batch: Batch) -> Array:
            logits = method.predict(learner, batch.inputs, task).astype(jnp.float32)
            return lax.dynamic_update_slice_in_dim(scores, logits, batch.position[0], 0)

        start = jnp.zeros((total + batch_size, outputs), jnp.float32)
        scores = over_task(read, start, tables, table, task, batch_size)[:total]
        first = jnp.take(jnp.asarray(table.start, jnp.int32), task)
        labels = jnp.take(jnp.asarray(table.labels), first + places, axis=0, mode="clip")
        found = metrics.mean_average_precision(
            scores,
            labels,
            interpolation=interpolation,
            weights=places < size,
            classes=classes[task],
        )
        return found if single is None else jnp.where(jnp.asarray(single)[task], jnp.nan, found)

    return lax.map(one, jnp.arange(classes.shape[0], dtype=jnp.int32))
