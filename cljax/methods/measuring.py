"""What a task's importance is measured with: the mean over its examples, of its own outputs, in evaluation mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from cljax import importance, losses
from cljax.methods.distilling import own_output
from cljax.methods.terms import Importance, shared
from cljax.numbers import check_option, whole
from cljax.trees import pick
from cljax.types import Array, Batch, Clock, Fold, Learner, Respond, Tree

Fisher = Literal["exact", "sampled", "empirical", "batched"]
Outputs = Callable[[Tree, Array], Array]
"""`(shared parameters, inputs [b, ...]) -> logits [b, K]` of the current task."""
Measure = Callable[[Outputs, Array, Tree, Batch, Array], Tree]
"""`(outputs, classes [K], shared parameters, batch, key) -> tree`: the mean over the batch."""


def over_task(measure: Measure) -> Importance:
    """The mean over the examples of the visited task, from that over a batch.

    Args:
      measure: see `Measure`; the key is the batch's own.

    Returns:
      A function for `terms.quadratic`.
    """

    def whole_task(learner: Learner, clock: Clock, fold: Fold, key: Array, respond: Respond) -> Tree:
        start = shared(learner.params, learner)

        def add(carry: tuple[Tree, Array, Array], batch: Batch) -> tuple[Tree, Array, Array]:
            def outputs(params: Tree, inputs: Array) -> Array:
                put = jax.tree.map(lambda own, given: own if given is None else given, learner.params, params)
                some = Batch(*(leaf[: len(inputs)] for leaf in batch._replace(weights=jnp.ones_like(batch.weights))))
                return own_output(respond(put, some._replace(inputs=inputs)), clock).logits

            total, examples, number = carry
            found = measure(outputs, pick(clock.classes, clock.task), start, batch, jax.random.fold_in(key, number))
            count = jnp.sum(batch.weights)
            total = jax.tree.map(lambda sum, leaf: sum + count.astype(sum.dtype) * leaf.astype(sum.dtype), total, found)
            return total, examples + count, number + 1

        zeros = jax.tree.map(lambda leaf: losses.at_least_float32(jnp.zeros_like(leaf)), start)
        zero = (zeros, jnp.float32(0), jnp.int32(0))
        total, examples, _ = fold(add, zero)
        mean = lambda sum, leaf: (sum / jnp.maximum(examples, 1).astype(sum.dtype)).astype(leaf.dtype)
        return jax.tree.map(mean, total, start)

    return whole_task


def fisher_information(name: str, kind: Fisher, chunk: int) -> Importance:
    """The diagonal Fisher information of the visited task's softmax; see `importance.fisher`.

    Args:
      name: whose option it is, for errors.
      kind: which quantity.
      chunk: how many examples' gradients are held at once; of kind 'batched', the size of a batch.

    Returns:
      A function for `terms.quadratic`.

    Raises:
      ValueError: for an unknown kind or a number out of range; where it is traced, for several labels an example.
    """
    check_option(f"{name}'s fisher", kind, Fisher)
    chunk = whole(f"{name}'s chunk", chunk, least=1)

    def measure(outputs: Outputs, classes: Array, params: Tree, batch: Batch, key: Array) -> Tree:
        if batch.labels.ndim == 2:
            raise ValueError(
                f"{name}'s Fisher information is of a softmax, but the labels are several an example. Of single-label "
                f"tasks it is; mas, and imm with merge='mean', read no labels."
            )
        log_prob = lambda params, inputs: jax.nn.log_softmax(losses.mask_logits(outputs(params, inputs), classes))
        given = (log_prob, params, batch.inputs, batch.labels)
        return importance.fisher(*given, kind=kind, key=key, weights=batch.weights, chunk=chunk)

    return over_task(measure)
