"""Fine-tuning as a user of JAX writes it by hand, without cljax: the step that ours is measured against."""

from __future__ import annotations

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from experiments.benchmark.ours import RATE, Found, Ours, named

Params = dict[str, jax.Array]


def mlp(params: Params, values: jax.Array) -> jax.Array:
    """The features of a perceptron."""
    values, layer = values.reshape(len(values), -1), 0
    while f"dense_{layer}/kernel" in params:
        values = jax.nn.relu(values @ params[f"dense_{layer}/kernel"] + params[f"dense_{layer}/bias"])
        layer += 1
    return values


def cnn(params: Params, values: jax.Array) -> jax.Array:
    """The features of blocks of one 3x3 convolution and pooling, and dense layers."""
    block, form = 0, ("NHWC", "HWIO", "NHWC")
    while f"conv_{block}_0/kernel" in params:
        kernel, bias = params[f"conv_{block}_0/kernel"], params[f"conv_{block}_0/bias"]
        values = jax.nn.relu(lax.conv_general_dilated(values, kernel, (1, 1), "SAME", dimension_numbers=form) + bias)
        values = lax.reduce_window(values, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        block += 1
    return mlp(params, values)


class Plain:
    """Steps of SGD with momentum from the numbers of `Ours`, an epoch in one `lax.scan`.

    Args:
      ours: of fine-tuning.
      network: `mlp` or `cnn`.
    """

    def __init__(self, ours: Ours, network: Callable[[Params, jax.Array], jax.Array]) -> None:
        self.size, self.key = ours.size, jax.random.key(0)
        self.images, self.labels = jnp.asarray(ours.images), jnp.asarray(ours.labels)
        self.params = {name: jnp.array(leaf) for name, leaf in named(ours.learner.params).items()}
        self.momentum = jax.tree.map(jnp.zeros_like, self.params)

        def loss(params: Params, images: jax.Array, labels: jax.Array) -> jax.Array:
            features = network(params, images.astype(jnp.float32) / 255)
            logits = features @ params["head/kernel/1"] + params["head/bias/1"]
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        def step(params: Params, momentum: Params, images: jax.Array, labels: jax.Array):
            value, gradients = jax.value_and_grad(loss)(params, images, labels)
            momentum = jax.tree.map(lambda old, gradient: 0.9 * old + gradient, momentum, gradients)
            return jax.tree.map(lambda leaf, change: leaf - RATE * change, params, momentum), momentum, value

        def epoch(params: Params, momentum: Params, key: jax.Array):
            order = jax.random.permutation(key, len(self.labels)).reshape(self.size.steps, -1)

            def body(carry, rows):
                *carry, value = step(*carry, self.images[rows], self.labels[rows])
                return tuple(carry), value

            return lax.scan(body, (params, momentum), order)

        self.step, self.epoch = jax.jit(step), jax.jit(epoch, donate_argnums=(0, 1))

    def steps(self, count: int) -> Found:
        """As of `Ours`."""
        params, momentum, found, size = self.params, self.momentum, [], self.size.batch_size
        for step in range(count):
            part = slice(step * size, (step + 1) * size)
            params, momentum, value = self.step(params, momentum, self.images[part], self.labels[part])
            found.append(float(value))
        return found, {name: np.asarray(leaf) for name, leaf in params.items()}

    def time(self) -> float:
        """As of `Ours`."""
        begun, self.key = time.perf_counter(), jax.random.fold_in(self.key, 1)
        (self.params, self.momentum), losses = self.epoch(self.params, self.momentum, self.key)
        jax.block_until_ready(losses)
        return (time.perf_counter() - begun) / self.size.steps
