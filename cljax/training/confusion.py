"""Which class is taken for which, where the task is not told."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from cljax import task_params
from cljax.numbers import check_kind
from cljax.training.evaluation import over_task
from cljax.types import Array, Batch, Learner, Method, Tables


def confusion_matrix(
    method: Method, learner: Learner, tables: Tables, *, split: str = "test", batch_size: int = 256
) -> Array:
    """Counts which class is taken for which in the class-incremental scenario, all tasks having been visited.

    Args:
      method: whose `predict` is asked.
      learner: at rest.
      tables: the stream's data, labels `[N]`.
      split: 'test', 'validation' or 'train'.
      batch_size: of the forward passes.

    Returns:
      `[K, K]` int32 for K = T x outputs, the heads' logits one after the other: row i has the examples of class i,
      column j those that are taken for class j.

    Raises:
      ValueError: where the labels are several an example.

    Example:
      >>> import jax
      >>> import optax
      >>> from cljax import data, methods, networks, streams, training
      >>> tables = streams.split(data.load('digits'), tasks=5, scenario='class').tables
      >>> method = methods.finetune(networks.mlp((8, 8, 1), 2, hidden=(4,)))
      >>> learner = training.make_learner(method, optax.sgd(1.0), tables, 0.1, jax.random.key(0))
      >>> counts = training.confusion_matrix(method, learner, tables)
      >>> counts.shape, int(counts.sum()) - int(tables.test.size.sum())
      ((10, 10), 0)
    """
    check_kind("tables", tables, Tables, "a stream's: stream.tables")
    table, classes = getattr(tables, split), jnp.asarray(tables.classes)
    if table.labels.ndim != 1:
        raise ValueError("A confusion matrix needs one class an example, but these labels are several, [N, K].")
    tasks, outputs = classes.shape
    everything = jnp.arange(tasks, dtype=jnp.int32)

    def add_task(task: Array, counts: Array) -> Array:
        def add(counts: Array, batch: Batch) -> Array:
            logits = jax.vmap(lambda other: method.predict(learner, batch.inputs, other))(everything)
            logits = jnp.where(classes.reshape(-1), task_params.flatten_heads(logits), -jnp.inf)
            own, taken = task * outputs + batch.labels, jnp.argmax(logits, axis=-1)
            return counts.at[own, taken].add(batch.weights.astype(jnp.int32))

        return over_task(add, counts, tables, table, task, batch_size)

    return lax.fori_loop(0, tasks, add_task, jnp.zeros((tasks * outputs, tasks * outputs), jnp.int32))
