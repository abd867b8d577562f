"""Compiled gradients are those of the operations one by one, for every kind of network, its parameters drawn anew.

What went wrong without it: `docs/compiled_maximum.md`.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cljax import networks
from cljax.networks.convolution import larger, max_pool


class Plain(nn.Module):
    """A user's own module."""

    @nn.compact
    def __call__(self, inputs):
        hidden = nn.relu(networks.layers.Convolution(4)(inputs))
        hidden = nn.max_pool(hidden, (2, 2), (2, 2))
        return nn.Dense(2)(nn.relu(nn.Dense(5)(hidden.reshape(len(hidden), -1))))


class PlainNNX(nnx.Module):
    """The same kind of module in NNX."""

    def __init__(self, rngs):
        self.hidden, self.head = nnx.Linear(64, 5, rngs=rngs), nnx.Linear(5, 2, rngs=rngs)

    def __call__(self, inputs):
        return self.head(nnx.relu(self.hidden(inputs.reshape(len(inputs), -1))))


SMALL = (8, 8, 1)
BUILDERS = {
    **{
        f"{name}-{norm}": lambda build=build, norm=norm: build(norm)
        for norm in (None, "batch", "feature")
        for name, build in {
            "mlp": lambda norm: networks.mlp(SMALL, 2, hidden=(5, 5), normalization=norm),
            "cnn": lambda norm: networks.cnn(SMALL, 2, channels=((4,), (6,)), dense=(5,), normalization=norm),
            "pooled": lambda norm: networks.cnn(SMALL, 2, channels=((4,),), dense=(), pooled=True, normalization=norm),
        }.items()
    },
    "overlapping": lambda: networks.cnn(
        SMALL,
        2,
        channels=((4,), (6,)),
        dense=(5,),
        pool=networks.Pool(3, 2, ((1, 1), (1, 1))),
        normalization="feature",
    ),
    "linen": lambda: networks.from_linen(Plain(), SMALL, outputs=2, train_argument=None),
    "nnx": lambda: networks.from_nnx(lambda rngs: PlainNNX(rngs), SMALL, outputs=2),
}


@pytest.mark.parametrize("name", BUILDERS)
def test_compiled_gradients_are_those_of_single_operations(name):
    network = BUILDERS[name]()
    generator = np.random.default_rng(1)
    params, collections = jax.jit(network.init)(jax.random.key(0))
    params = jax.tree.map(lambda leaf: generator.normal(size=leaf.shape).astype(leaf.dtype), params)
    images = generator.integers(0, 256, (16, *SMALL), np.uint8)

    def loss(params):
        return jnp.sum(network.apply(params, collections, images, key=jax.random.key(1)).logits ** 2)

    eager, compiled = jax.grad(loss)(params), jax.jit(jax.grad(loss))(params)
    norm = lambda leaf: np.linalg.norm(np.ravel(leaf))
    largest = max(norm(leaf) for leaf in jax.tree.leaves(eager))
    for one, other in zip(jax.tree.leaves(eager), jax.tree.leaves(compiled), strict=True):
        assert norm(np.subtract(one, other)) <= 1e-4 * max(norm(one), 1e-3 * largest)


def test_the_larger_of_two_gives_its_whole_gradient():
    """Whatever the compiler makes of it: the two parts add up to 1, and go where the larger one is."""
    left = np.array([1, 2, 3, -np.inf, 0], np.float32)
    right = np.array([2, 1, 3, -np.inf, -0.0], np.float32)
    gradients = jax.jit(jax.grad(lambda *pair: jnp.sum(larger(*pair) * jnp.arange(1.0, 6.0)), argnums=(0, 1)))
    np.testing.assert_array_equal(gradients(left, right)[0], [0, 2, 1.5, 2, 2.5])
    np.testing.assert_array_equal(gradients(left, right)[1], [1, 0, 1.5, 2, 2.5])
    ten = np.full(2, 10, np.float32)
    tangents = jax.jvp(larger, (left[:2], right[:2]), (ten, 2 * ten))[1]
    np.testing.assert_array_equal(tangents, [20, 10])


@pytest.mark.parametrize("size", [4, 8])
def test_pooling_of_a_scaled_and_shifted_map(size):
    """A multiply-add that is contracted in one place and not in the other loses no gradient; by hand in float64."""
    generator = np.random.default_rng(size)
    maps, scale, shift = (generator.normal(size=shape) for shape in ((4, size, size, 4), (4,), (4,)))
    windows = (maps * scale + shift).reshape(4, size // 2, 2, size // 2, 2, 4).transpose(0, 1, 3, 2, 4, 5)
    windows = windows.reshape(-1, 4, 4)
    best = windows.argmax(1)[:, None]
    inputs = maps.reshape(4, size // 2, 2, size // 2, 2, 4).transpose(0, 1, 3, 2, 4, 5).reshape(-1, 4, 4)
    value, source = (np.take_along_axis(array, best, 1)[:, 0] for array in (windows, inputs))
    expected = (2 * np.maximum(value, 0) * source).sum(0)

    def loss(scale, maps, shift):
        scaled = maps * scale[None, None, None] + shift[None, None, None]
        return jnp.sum(max_pool(larger(scaled, jnp.zeros_like(scaled))) ** 2)

    given = (array.astype(np.float32) for array in (scale, maps, shift))
    np.testing.assert_allclose(jax.jit(jax.grad(loss))(*given), expected, rtol=1e-5)
