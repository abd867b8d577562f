"""Softmax regression on four examples, small enough to enumerate."""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from cljax import task_params
from cljax.types import Batch, Learner, Network, Sizes, make_clock

SECOND = make_clock(task=1, classes=np.ones((2, 3), bool))
FIRST = SECOND._replace(task=jnp.int32(0), newest=jnp.int32(0))


def softmax_regression():
    """Three classes of two inputs, no bias, one kernel for all tasks; its features are the inputs times a scale."""

    def init(key):
        return {"scale": jnp.ones(2), "kernel": jnp.zeros([2, 3])}, {}

    def encode(params, collections, inputs, *, train, key):
        return inputs * params["scale"][None, :], {}, collections

    def decode(params, collections, maps, *, train, key):
        return (maps @ params["kernel"], maps), {}, collections

    return Network(init, encode, decode, (), (), (2,), 3)


INPUTS = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, -1.0]])
LABELS = jnp.array([0, 1, 2, 0])


def batch_of(weights=(1.0, 1.0, 1.0, 1.0), inputs=INPUTS, labels=LABELS, task=0):
    tasks = jnp.full(len(inputs), task, jnp.int32)
    return Batch(inputs, labels, tasks, jnp.arange(len(inputs)), jnp.asarray(weights, jnp.float32))


class Fold:
    """The four examples in two batches, surplus ones of weight 0 between them."""

    max_examples: ClassVar = {"train": 4}

    def __init__(self, labels=LABELS, inputs=INPUTS):
        self.given = {"labels": labels, "inputs": inputs}

    def __call__(self, fn, carry, split="train"):
        carry = fn(carry, batch_of((1.0, 1.0, 1.0, 0.0), **self.given))
        return fn(carry, batch_of((0.0, 0.0, 0.0, 1.0), **self.given))


def learner_of(method, **params):
    """A focused learner of two tasks."""
    made, collections, state, hyper = method.init(jax.random.key(0), Sizes(2, 3, Fold.max_examples))
    resting = task_params.resting(method.per_task, method.stacked, tasks=2)
    return Learner({**made, **params}, collections, (), state, hyper, None, resting)


KERNEL = jnp.array([[0.3, -0.2, 0.1], [0.0, 0.4, -0.5]])


def enumerated(kind, kernel):
    """The quantity in plain NumPy: each example's gradient for each class, in batches of two as the fold has them."""
    p = np.exp(INPUTS @ kernel) / np.exp(INPUTS @ kernel).sum(1, keepdims=True)
    of_class = lambda n, y: np.outer(INPUTS[n], np.eye(3)[y] - p[n])
    if kind == "exact":
        return sum(p[n, y] * of_class(n, y) ** 2 for n in range(4) for y in range(3)) / 4
    own = [of_class(n, int(LABELS[n])) for n in range(4)]
    batches = [[0, 1], [2], [3]] if kind == "batched" else [[0], [1], [2], [3]]
    return sum(len(batch) * np.mean([own[n] for n in batch], axis=0) ** 2 for batch in batches) / 4


def gradient_of(method, learner, clock, batch):
    of = lambda params: method.loss(params, learner, clock, batch, None)[0]
    return jax.jit(jax.value_and_grad(of))(learner.params)
