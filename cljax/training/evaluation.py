"""Evaluation: a task's accuracy as its scenario reads the logits, and a fingerprint of the logits' bits."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from cljax import metrics, streams, task_params
from cljax.numbers import check_kind
from cljax.text import brief
from cljax.training.state import Failure, failure_at, no_failure, unknown
from cljax.trees import pick, select
from cljax.types import Array, Batch, Clock, HostArray, Learner, Method, Table, Tables


@brief
class Evaluation(NamedTuple):
    """What evaluation finds, `[T]` each (or scalars, for one task).

    Attributes:
      accuracy: float32 fraction, as the scenario reads the logits; NaN for a task with no examples, and where a
        logit is NaN or plus infinity.
      task_il_accuracy: float32 fraction, with the task's own head, whatever the scenario.
      top5: float32 fraction, as accuracy, where the right one of a single label may be any of the five largest logits.
      fingerprint: uint32, a weighted sum of the bits of the task's own logits over the split: equal as long as no bit
        of any logit has changed.
      attention: `[N, h, w]`, where the network looks for the labels of the first task's test images, as many as
        `settings.attention_images`, after a round of a run: see `looking.make_look`. None without.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax import metrics
      >>> from cljax.training import Evaluation
      >>> accuracy = jnp.array([[0.9, 0.1], [0.7, 0.8]])  # [after task, task]
      >>> found = Evaluation(accuracy, accuracy, jnp.ones((2, 2)), jnp.zeros((2, 2), jnp.uint32))
      >>> print(f'{metrics.average_accuracy(found.accuracy):.2f}')
      0.75
    """

    accuracy: HostArray
    task_il_accuracy: HostArray
    top5: HostArray
    fingerprint: HostArray
    attention: HostArray | None = None


def number_of_batches(examples: HostArray, batch_size: int) -> Any:
    """Batches that cover so many examples, the last perhaps partial."""
    return (examples + batch_size - 1) // batch_size


def bits_sum(logits: Array, weights: Array, first: Array) -> Array:
    """Sums the bits of logits of weight 1, each multiplied by an odd number of its place: uint32, modulo 2^32."""
    bits = lax.bitcast_convert_type(logits.astype(jnp.float32), jnp.uint32)
    size, outputs = bits.shape
    place = (first.astype(jnp.uint32) + jnp.arange(size, dtype=jnp.uint32))[:, None] * jnp.uint32(outputs)
    odd = (place + jnp.arange(outputs, dtype=jnp.uint32)[None, :]) * jnp.uint32(2654435762) + jnp.uint32(1)
    return jnp.sum(jnp.where(weights[:, None] > 0, bits * odd, jnp.uint32(0)), dtype=jnp.uint32)


def over_task(
    fn: Callable[[Any, Batch], Any], carry: Any, tables: Tables, table: Table, task: Array, batch_size: int
) -> Any:
    """Folds `fn(carry, batch)` over a task's examples of a split, in order of position, in one loop of the program."""
    read = lambda step, carry: fn(carry, streams.sequential(tables, table, task, step, batch_size))
    return lax.fori_loop(0, number_of_batches(streams.size_of(table, task), batch_size), read, carry)


def evaluate_task(
    method: Method,
    learner: Learner,
    tables: Tables,
    task: Array,
    *,
    split: str = "test",
    scenario: str = "task",
    newest: Array | None = None,
    batch_size: int = 256,
) -> Evaluation:
    """Evaluates one task; see `evaluate`.

    Args:
      task: int32 scalar.

    Returns:
      `Evaluation` of scalars.
    """
    table = getattr(tables, split)
    newest = jnp.int32(tables.classes.shape[0] - 1) if newest is None else newest

    def add(step: Array, answers: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        batch = streams.sequential(tables, table, task, step, batch_size)
        first = jnp.int32(step) * batch_size
        right, aware, top5, fingerprint = answers
        classes = jnp.asarray(tables.classes)
        tasks, outputs = classes.shape
        everything, own_classes = jnp.arange(tasks, dtype=jnp.int32), pick(classes, task)
        single = None if tables.single_label is None else pick(tables.single_label, task)
        correct = functools.partial(metrics.correct, single_label=single)
        if scenario == "class":
            seen = classes & (everything <= newest)[:, None]
            stacked = jax.vmap(lambda other: method.predict(learner, batch.inputs, other))(everything)
            own = pick(stacked, task)
            flat = task_params.flatten_heads(stacked)
            if batch.labels.ndim == 1:
                labels = jnp.where(task <= newest, task * outputs + batch.labels, -1)
            else:
                place = jax.nn.one_hot(task, tasks, dtype=batch.labels.dtype)
                labels = (place[None, :, None] * batch.labels[:, None, :]).reshape(flat.shape)
            asked = flat, labels, seen.reshape(-1)
        else:
            own = method.predict(learner, batch.inputs, task)
            asked = own, batch.labels, own_classes
        if own.shape != (shape := (len(batch.weights), outputs)):
            raise TypeError(
                f"predict of {method.name} gives shape {own.shape}, but must give the logits of a batch, {shape}."
            )
        by_own_head = correct(own, batch.labels, own_classes)
        right += jnp.sum(batch.weights * (correct(*asked) if scenario == "class" else by_own_head))
        top5 += jnp.sum(batch.weights * correct(*asked, top=5))
        aware += jnp.sum(batch.weights * by_own_head)
        lost = own_classes[None, :] & (batch.weights > 0)[:, None] & (jnp.isnan(own) | jnp.isposinf(own))
        right, aware, top5 = (jnp.where(jnp.any(lost), jnp.nan, value) for value in (right, aware, top5))
        return right, aware, top5, fingerprint + bits_sum(own, batch.weights, first)

    size = streams.size_of(table, task)
    zero = jnp.float32(0.0), jnp.float32(0.0), jnp.float32(0.0), jnp.uint32(0)
    *found, fingerprint = lax.fori_loop(0, number_of_batches(size, batch_size), add, zero)
    share = lambda total: jnp.where(size > 0, total / jnp.maximum(size, 1).astype(jnp.float32), unknown())
    right, aware, top5 = map(share, found)
    return Evaluation(right, aware, top5, fingerprint)


def lost_logits(found: Evaluation, clock: Clock, evaluated: Array, tables: Tables) -> Failure:
    """The failure of a learner that has logits of visited tasks which are no numbers: their accuracy is NaN.

    Args:
      found: after a round, `[T]`.
      clock: of the round.
      evaluated: bool, whether it was evaluated.
      tables: the stream's; a task without test examples has no accuracy that could be lost.
    """
    visited = jnp.arange(found.accuracy.shape[0], dtype=jnp.int32) <= clock.newest
    lost = evaluated & jnp.any(visited & (jnp.asarray(tables.test.size) > 0) & jnp.isnan(found.accuracy))
    return select(lost, failure_at(clock, -1, -1), no_failure())


def evaluate(
    method: Method,
    learner: Learner,
    tables: Tables,
    *,
    split: str = "test",
    scenario: str = "task",
    newest: Array | None = None,
    batch_size: int = 256,
) -> Evaluation:
    r"""Evaluates the learner at rest on every task.

    Task- and domain-incremental: argmax over the valid logits of the task's head. Class-incremental: argmax over the
    logits of the heads of all tasks visited so far, the task being unknown; 0 for a task not yet visited.

    Args:
      method: whose `predict` is asked.
      learner: at rest.
      tables: the stream's data.
      split: 'test', 'validation' or 'train'.
      scenario: 'task', 'class' or 'domain'.
      newest: int32 scalar, the newest task visited; None: all.
      batch_size: of the forward passes.

    Returns:
      `Evaluation` with `[T]` arrays.

    Example:
      >>> import jax
      >>> import optax
      >>> from cljax import data, methods, networks, streams, training
      >>> tables = streams.split(data.load('digits'), tasks=2).tables
      >>> method = methods.finetune(networks.mlp((8, 8, 1), 5, hidden=(4,)))
      >>> learner = training.make_learner(method, optax.sgd(1.0), tables, 0.1, jax.random.key(0))
      >>> training.evaluate(method, learner, tables).accuracy.shape  # before anything is learned
      (2,)
    """
    check_kind("tables", tables, Tables, "a stream's: stream.tables")

    options: dict[str, Any] = {"split": split, "scenario": scenario, "newest": newest, "batch_size": batch_size}
    one = lambda task: evaluate_task(method, learner, tables, task, **options)
    return lax.map(one, jnp.arange(tables.classes.shape[0], dtype=jnp.int32))
