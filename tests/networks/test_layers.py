"""Layers: closed forms, frozen statistics by bits, standardisation."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cljax.networks import BatchNorm, Convolution, FeatureNorm, gate_features, standardize

MEAN, VARIANCE = [0.5, -1.0, 2.0], [4.0, 0.25, 1.5]


def draw(seed, *shape, dtype=np.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(dtype))


def variables(dtype=jnp.float32):
    return {
        "params": {"scale": jnp.array([1.0, 2.0, -0.5], dtype), "bias": jnp.array([0.0, 0.3, 1.0], dtype)},
        "batch_stats": {"mean": jnp.array(MEAN, dtype), "var": jnp.array(VARIANCE, dtype)},
    }


def normalise(inputs, mean, variance, params):
    return np.asarray(params["scale"]) * (np.asarray(inputs) - mean) / np.sqrt(
        np.asarray(variance) + 1e-5
    ) + np.asarray(params["bias"])


@pytest.mark.parametrize("shape", [(6, 3), (4, 5, 5, 3)])
def test_batch_norm_closed_forms(shape):
    inputs, state = draw(0, *shape), variables()
    evaluated = BatchNorm().apply(state, inputs, train=False)
    np.testing.assert_allclose(evaluated, normalise(inputs, MEAN, VARIANCE, state["params"]), rtol=2e-5, atol=2e-6)

    outputs, moved = BatchNorm(momentum=0.8).apply(state, inputs, train=True, mutable="batch_stats")
    axes = tuple(range(len(shape) - 1))
    mean, variance = np.mean(np.asarray(inputs), axes), np.var(np.asarray(inputs), axes)
    np.testing.assert_allclose(outputs, normalise(inputs, mean, variance, state["params"]), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(moved["batch_stats"]["mean"], 0.8 * np.array(MEAN) + 0.2 * mean, rtol=1e-5)
    np.testing.assert_allclose(moved["batch_stats"]["var"], 0.8 * np.array(VARIANCE) + 0.2 * variance, rtol=1e-5)


def test_batch_norm_is_flax_s():
    inputs = draw(0, 8, 4, 4, 3)
    state = variables()
    ours = BatchNorm().apply(state, inputs, train=True, mutable="batch_stats")
    theirs = nn.BatchNorm(momentum=0.9, use_fast_variance=False).apply(
        state, inputs, use_running_average=False, mutable="batch_stats"
    )
    chex.assert_trees_all_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_frozen_channels_keep_their_bits():
    inputs, state = draw(1, 8, 5, 5, 3), variables()
    frozen = jnp.array([True, False, True])
    evaluated = BatchNorm().apply(state, inputs, train=False)
    free, free_state = BatchNorm().apply(state, inputs, train=True, mutable="batch_stats")
    mixed, mixed_state = BatchNorm().apply(state, inputs, train=True, frozen=frozen, mutable="batch_stats")
    np.testing.assert_array_equal(mixed[..., [0, 2]], evaluated[..., [0, 2]])
    np.testing.assert_array_equal(mixed[..., 1], free[..., 1])
    for name in ("mean", "var"):
        before, after = state["batch_stats"][name], mixed_state["batch_stats"][name]
        np.testing.assert_array_equal(after[jnp.array([0, 2])], before[jnp.array([0, 2])])
        assert after[1] == free_state["batch_stats"][name][1] != before[1]


def test_frozen_channels_have_no_gradient_through_the_batch():
    state, frozen = variables(), jnp.array([True, False, True])
    inputs = draw(2, 6, 3)

    def first(values):
        outputs, _ = BatchNorm().apply(state, values, train=True, frozen=frozen, mutable="batch_stats")
        return outputs[0]

    jacobian = jax.jacrev(first)(inputs)  # [output channel, example, input channel]
    factor = np.asarray(state["params"]["scale"]) / np.sqrt(np.array(VARIANCE) + 1e-5)
    for channel in (0, 2):
        expected = np.zeros((6, 3))
        expected[0, channel] = factor[channel]
        np.testing.assert_allclose(jacobian[channel], expected, rtol=1e-5, atol=1e-7)
    assert float(jnp.abs(jacobian[1, 1:, 1]).min()) > 1e-4  # the others' statistics feel every example


def test_batch_norm_starts_with_identity_statistics():
    started = BatchNorm().init(jax.random.key(0), draw(0, 4, 3) + 5, train=True)
    chex.assert_trees_all_equal(started["batch_stats"], {"mean": jnp.zeros(3), "var": jnp.ones(3)})


def test_feature_norm_is_affine():
    params = {"params": {"scale": jnp.array([2.0, -1.0]), "bias": jnp.array([0.5, 1.0])}}
    inputs = jnp.array([[[[1.0, 2.0]]], [[[3.0, 4.0]]]])
    np.testing.assert_array_equal(FeatureNorm().apply(params, inputs)[:, 0, 0], [[2.5, -1.0], [6.5, -3.0]])
    started = FeatureNorm().init(jax.random.key(0), inputs)
    np.testing.assert_array_equal(FeatureNorm().apply(started, inputs), inputs)


def test_convolution_adds_its_bias():
    state = {"params": {"kernel": jnp.ones((1, 1, 2, 1)), "bias": jnp.array([10.0])}}
    outputs = Convolution(1, 1).apply(state, jnp.arange(4.0).reshape(1, 1, 2, 2))
    np.testing.assert_array_equal(outputs[0, 0, :, 0], [11.0, 15.0])
    strided = Convolution(4, 3, stride=2, padding="VALID", use_bias=False)
    started = strided.init(jax.random.key(0), jnp.ones((1, 9, 9, 2)))
    assert set(started["params"]) == {"kernel"}
    assert strided.apply(started, jnp.ones((1, 9, 9, 2))).shape == (1, 4, 4, 4)


def test_gate_takes_the_activations_dtype_and_masks_gradients():
    gradient = jax.grad(lambda x: gate_features(x, jnp.array([1.0, 0.0])).sum())(jnp.ones((3, 2)))
    np.testing.assert_array_equal(gradient, [[1.0, 0.0]] * 3)
    with jax.enable_x64(True):
        assert gate_features(jnp.ones((1, 2), jnp.float64), jnp.ones(2, jnp.float32)).dtype == jnp.float64


def test_batch_norm_in_float64():
    with jax.enable_x64(True):
        inputs, state = draw(0, 5, 3, dtype=np.float64), variables(jnp.float64)
        outputs, moved = BatchNorm().apply(state, inputs, train=True, mutable="batch_stats")
        assert outputs.dtype == moved["batch_stats"]["mean"].dtype == jnp.float64
        mean, variance = np.mean(np.asarray(inputs), 0), np.var(np.asarray(inputs), 0)
        np.testing.assert_allclose(outputs, normalise(inputs, mean, variance, state["params"]), rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_standardize(dtype):
    raw = np.array([[[0, 51, 255]], [[102, 204, 153]]], dtype)
    scaled = raw / np.float32(255) if dtype == np.uint8 else raw
    result = standardize(jnp.asarray(raw), (0.1, 0.2, 0.3), (0.5, 1.0, 2.0))
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, (scaled - [0.1, 0.2, 0.3]) / [0.5, 1.0, 2.0], rtol=1e-6, atol=1e-7)


def test_standardize_leaves_plain_floats_alone():
    values = draw(0, 4, 3)
    np.testing.assert_array_equal(standardize(values), values)


def test_standardize_names_wrong_channels():
    with pytest.raises(ValueError, match=r"std has shape \(2,\), but the inputs have 3 channels"):
        standardize(jnp.ones((1, 4, 4, 3)), std=(1.0, 2.0))
