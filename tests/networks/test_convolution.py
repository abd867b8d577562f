"""Convolution and pooling: values and gradients are XLA's own, under every transformation."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from cljax.networks import convolve, max_pool


def native(inputs, kernel, stride=1, padding="SAME"):
    return lax.conv_general_dilated(
        inputs, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def gradients(function, inputs, kernel, cotangent):
    outputs, pullback = jax.vjp(function, inputs, kernel)
    return outputs, pullback(cotangent(outputs))


def weigh(outputs):
    return jnp.cos(jnp.arange(outputs.size, dtype=outputs.dtype)).reshape(outputs.shape)


@functools.partial(jax.jit, static_argnums=(2, 3))
def both(inputs, kernel, stride, padding):
    ours = gradients(lambda x, k: convolve(x, k, stride=stride, padding=padding), inputs, kernel, weigh)
    return ours, gradients(lambda x, k: native(x, k, stride, padding), inputs, kernel, weigh)


def assert_same(inputs, kernel, stride, padding):
    ours, theirs = both(inputs, kernel, stride, padding)
    chex.assert_trees_all_close(ours, theirs, rtol=1e-12, atol=1e-11)


GEOMETRIES = [
    ((3, 3), (8, 8), 1, "SAME"),
    ((3, 3), (7, 10), 2, "SAME"),
    ((3, 3), (9, 8), 2, "VALID"),
    ((1, 1), (5, 5), 1, "SAME"),
    ((1, 1), (5, 6), 2, "VALID"),
    ((2, 2), (6, 7), 1, "SAME"),
    ((2, 4), (7, 6), 2, "SAME"),
    ((4, 4), (9, 7), 2, "VALID"),
    ((5, 3), (5, 9), 1, "VALID"),
    ((7, 7), (8, 6), 2, "SAME"),
    ((11, 11), (12, 13), 1, "SAME"),
    ((11, 11), (14, 11), 2, "VALID"),
    ((3, 3), (10, 10), 3, "VALID"),
    ((3, 3), (6, 6), 1, ((2, 0), (1, 3))),
]


@pytest.mark.parametrize(("kernel", "size", "stride", "padding"), GEOMETRIES)
def test_gradients_are_the_native_ones(kernel, size, stride, padding):
    with jax.enable_x64(True):
        assert_same(draw(0, 3, *size, 2), draw(1, *kernel, 2, 4), stride, padding)


@settings(max_examples=8, deadline=None)
@given(
    kernel=st.tuples(st.integers(1, 11), st.integers(1, 11)),
    extra=st.tuples(st.integers(0, 4), st.integers(0, 4)),
    stride=st.integers(1, 3),
    padding=st.sampled_from(["SAME", "VALID"]),
)
def test_gradients_are_the_native_ones_for_any_geometry(kernel, extra, stride, padding):
    size = tuple(a + b for a, b in zip(kernel, extra, strict=True))
    with jax.enable_x64(True):
        assert_same(draw(0, 2, *size, 2), draw(1, *kernel, 2, 3), stride, padding)


def test_by_hand():
    inputs = np.arange(4, dtype=np.float32).reshape(1, 2, 2, 1)
    kernel = np.array([[1, 10], [100, 1000]], np.float32).reshape(2, 2, 1, 1)

    def total(kernel):
        outputs = convolve(inputs, kernel, padding="VALID")
        return outputs.sum(), outputs

    gradient, outputs = jax.jit(jax.grad(total, has_aux=True))(kernel)
    np.testing.assert_array_equal(outputs, [[[[3210.0]]]])
    np.testing.assert_array_equal(np.asarray(gradient)[..., 0, 0], [[0.0, 1.0], [2.0, 3.0]])


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("batched", [(0, 0), (None, 0), (0, None)])
def test_vmapped_gradients(batched, stride):
    with jax.enable_x64(True):
        inputs, kernel = draw(0, 3, 2, 6, 5, 2), draw(1, 3, 3, 3, 2, 4)
        inputs = inputs if batched[0] == 0 else inputs[0]
        kernel = kernel if batched[1] == 0 else kernel[0]

        def gradient(function):
            loss = lambda x, k: jnp.sum(jnp.sin(function(x, k, stride=stride)))
            return jax.jit(jax.vmap(jax.grad(loss, (0, 1)), batched))(inputs, kernel)

        chex.assert_trees_all_close(gradient(convolve), gradient(native), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("stride", "padding"), [(1, "SAME"), (2, "VALID")])
def test_gradient_of_gradient_as_in_an_attention_loss(stride, padding):
    """Grad-CAM inside a loss: the parameters' gradient of a function of the maps' gradient."""
    with jax.enable_x64(True):
        inputs, lower, upper = draw(0, 2, 9, 8, 2), draw(1, 3, 3, 2, 3), draw(2, 3, 3, 3, 4)

        def loss(function, kernels):
            maps = jnp.tanh(function(inputs, kernels[0], stride=stride, padding=padding))
            score = lambda value: jnp.sum(jnp.tanh(function(value, kernels[1], stride=stride, padding=padding)))
            importance = jax.grad(score)(maps).mean((1, 2), keepdims=True)
            return jnp.sum(jnp.square(jnp.sum(importance * maps, -1)))

        ours, theirs = (jax.jit(jax.grad(loss, 1), static_argnums=0)(one, (lower, upper)) for one in (convolve, native))
        chex.assert_trees_all_close(ours, theirs, rtol=1e-10, atol=1e-10)
        assert np.abs(ours[1]).max() > 1e-3


def test_third_order():
    with jax.enable_x64(True):
        inputs, kernel = draw(0, 1, 5, 5, 1), draw(1, 3, 3, 1, 2)

        def third(function):
            value = lambda k: jnp.sum(jnp.sin(function(inputs, k, stride=2)))
            first = lambda k: jnp.sum(jax.grad(value)(k) ** 2)
            return jax.jit(jax.grad(lambda k: jnp.sum(jnp.cos(jax.grad(first)(k)))))(kernel)

        np.testing.assert_allclose(third(convolve), third(native), rtol=1e-9, atol=1e-9)


def test_inside_scan():
    with jax.enable_x64(True):
        inputs, kernel = draw(0, 4, 2, 6, 6, 2), draw(1, 3, 3, 2, 2)

        def train(function):
            def step(value, batch):
                loss, gradient = jax.value_and_grad(lambda k: jnp.mean(jnp.square(function(batch, k))))(value)
                return value - 0.01 * gradient, loss

            return jax.jit(lambda: lax.scan(step, kernel, inputs))()

        chex.assert_trees_all_close(train(convolve), train(native), rtol=1e-12)


@pytest.mark.parametrize(("platform", "barriers"), [("cpu", True), ("cuda", False), ("tpu", False)])
def test_each_platform_gets_its_own_gradients(platform, barriers):
    gradient = jax.jit(jax.grad(lambda x, k: jnp.sum(jnp.sin(convolve(x, k))), (0, 1)))
    traced = gradient.trace(np.ones((2, 4, 4, 3), np.float32), np.ones((3, 3, 3, 2), np.float32))
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert ("optimization_barrier" in text) == barriers
    assert text.count("stablehlo.convolution") == 3


def test_wrong_channels_are_refused():
    with pytest.raises(ValueError, match="kernel has shape"):
        convolve(np.ones((1, 4, 4, 3), np.float32), np.ones((3, 3, 2, 5), np.float32))


POOLS = [(2, None, "VALID"), (2, 2, "SAME"), (3, 2, ((1, 1), (1, 1))), (3, 3, "SAME"), (3, 1, "VALID"), (1, 1, "VALID")]


@pytest.mark.parametrize("size", [(8, 8), (7, 9)])
@pytest.mark.parametrize(("window", "stride", "padding"), POOLS)
def test_pooling_is_reduce_window(window, stride, padding, size):
    inputs = draw(3, 2, *size, 3).astype(np.float32)
    steps = stride or window
    pads = padding if isinstance(padding, str) else ((0, 0), *padding, (0, 0))

    def reference(values):
        return lax.reduce_window(values, -jnp.inf, lax.max, (1, window, window, 1), (1, steps, steps, 1), pads)

    def ours(values):
        return max_pool(values, window=window, stride=stride, padding=padding)

    def slope(pool):
        return jax.jit(jax.grad(lambda x: (jnp.sum(jnp.square(pool(x))), pool(x)), has_aux=True))(inputs)

    (one, pooled), (other, expected) = map(slope, (ours, reference))
    np.testing.assert_array_equal(pooled, expected)
    np.testing.assert_allclose(one, other, rtol=1e-6)  # no draws in random numbers


def test_draws_share_the_gradient():
    pair = jax.jit(jax.grad(lambda x: max_pool(x).sum()))
    np.testing.assert_array_equal(pair(np.ones((1, 2, 2, 1), np.float32)), np.full((1, 2, 2, 1), 0.25))
    two = pair(np.array([[5, 1], [1, 5]], np.float32).reshape(1, 2, 2, 1))
    np.testing.assert_array_equal(np.asarray(two)[0, :, :, 0], [[0.5, 0.0], [0.0, 0.5]])
    three = jax.jit(jax.grad(lambda x: max_pool(x, window=3).sum()))(np.ones((1, 3, 3, 1), np.float32))
    assert np.sum(three) == 1.0
    assert np.min(three) > 0.0


def test_a_kernel_that_does_not_fit_is_named():
    with pytest.raises(ValueError, match="does not fit"):
        convolve(np.ones((1, 2, 8, 1), np.float32), np.ones((3, 3, 1, 1), np.float32), padding="VALID")
    with pytest.raises(ValueError, match="does not fit"):
        max_pool(np.ones((1, 2, 8, 1), np.float32), window=3)
