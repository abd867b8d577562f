"""Filter synthesis against the strided convolution whose adjoint it is, loops in NumPy, and numbers made by hand."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.test_util import check_grads

from cljax import filters
from cljax.filters import Sizes

deconvolve = jax.jit(filters.deconvolve, static_argnames="stride")
SIDES = [(2, 3), (3, 5), (6, 11)]
SHAPE = (3, 3, 2, 4)
KINDS = {"df": Sizes(base=3, basis=5), "direct": Sizes(base=3), "tc2": Sizes(base=3, basis=5, depth=2)}


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def convolve(values, kernel, stride):
    """The strided 'SAME' convolution from `[k, k, c]` to `[h, w, c_base]`, by lax."""
    dimensions = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(values[None], kernel, (stride, stride), "SAME", dimension_numbers=dimensions)[0]


def dense_matrix(side, kernel, stride):
    """That convolution as a matrix `[h * w * c_base, k * k * c]`, entry by entry."""
    window, _, features, base_features = kernel.shape
    small, low = -(-side // stride), (window - 1) // 2
    matrix = np.zeros((small, small, base_features, side, side, features))
    for y, x, i, j in np.ndindex(small, small, window, window):
        down, right = stride * y + i - low, stride * x + j - low
        if 0 <= down < side and 0 <= right < side:
            matrix[y, x, :, down, right, :] = np.asarray(kernel[i, j]).T
    return matrix.reshape(small * small * base_features, side * side * features)


@pytest.mark.parametrize(("small", "side"), SIDES)
def test_deconvolution_is_the_adjoint_of_the_strided_convolution(small, side):
    base, kernel, bias = normal(0, small, small, 4), normal(1, 3, 3, 5, 4), normal(2, 5)
    found = deconvolve(base, kernel, bias)
    assert found.shape == (side, side, 5)
    _, pull = jax.vjp(lambda values: convolve(values, kernel, 2), jnp.zeros((side, side, 5)))
    np.testing.assert_allclose(found - bias[None, None], pull(base)[0], rtol=1e-5, atol=1e-5)
    matrix = dense_matrix(side, kernel, 2)
    transposed = (matrix.T @ np.asarray(base, np.float64).ravel()).reshape(found.shape)
    np.testing.assert_allclose(found - bias[None, None], transposed, rtol=1e-5, atol=1e-5)


def test_the_dense_matrix_of_these_tests_is_the_convolution():
    values, kernel = normal(0, 5, 5, 2), normal(1, 3, 3, 2, 4)
    product = dense_matrix(5, kernel, 2) @ np.asarray(values, np.float64).ravel()
    np.testing.assert_allclose(product, convolve(values, kernel, 2).ravel(), rtol=1e-5, atol=1e-5)


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 5), st.integers(0, 99))
def test_adjoint_for_any_base_stride_and_window(small, stride, window, seed):
    """<conv(x), L> = <x, deconv(L)>, even windows and strides beyond the window included."""
    side = (small - 1) * stride + 1
    base, kernel, values = normal(seed, small, small, 2), normal(1, window, window, 3, 2), normal(2, side, side, 3)
    found = deconvolve(base, kernel, jnp.zeros(3), stride=stride)
    assert found.shape == values.shape
    product = dense_matrix(side, kernel, stride) @ np.asarray(values, np.float64).ravel()
    scale = np.abs(product) @ np.abs(base).ravel() + 1
    assert abs(product @ base.ravel() - np.vdot(found, values)) < 1e-5 * scale


def test_deconvolution_is_the_transposed_convolution_of_lax():
    base, kernel = normal(0, 6, 6, 4), normal(1, 3, 3, 5, 4)
    expected = lax.conv_transpose(base[None], kernel, (2, 2), [(1, 1), (1, 1)], transpose_kernel=True)[0]
    np.testing.assert_allclose(deconvolve(base, kernel, jnp.zeros(5)), expected, rtol=1e-5, atol=1e-5)


def test_deconvolution_by_hand():
    """A row 1, 10 and a window 1, 2, 3: 1 * (2, 3, .) + 10 * (., 1, 2); then the bias, and no activation."""
    base = jnp.array([[[1.0], [10.0]]])
    kernel = jnp.array([1.0, 2.0, 3.0]).reshape(1, 3, 1, 1)
    assert deconvolve(base, kernel, jnp.array([-5.0]))[..., 0].tolist() == [[-3.0, 8.0, 15.0]]


def test_contraction_by_hand():
    basis = jnp.arange(4.0).reshape(1, 2, 2)
    tensor = jnp.arange(12.0).reshape(2, 2, 3)
    expected = [[[[6, 7, 8], [9, 10, 11]], [[18, 23, 28], [33, 38, 43]]]]
    assert filters.contract(basis, tensor).tolist() == expected


def factors_of(kind, dtype=jnp.float32):
    draw = lambda key: filters.init_factors(key, SHAPE, KINDS[kind], kind=kind, dtype=dtype)
    return jax.jit(draw)(jax.random.key(0))


def plain_kernel(kind, factors):
    """The kernel by dense matrices and einsum, in NumPy and float64."""
    values = {name: np.asarray(leaf, np.float64) for name, leaf in factors.items()}
    matrix = dense_matrix(3, values["deconvolution"], 2)
    bases = values["knowledge_base"].reshape(-1, matrix.shape[0])
    basis = (bases @ matrix).reshape(len(bases), 3, 3, -1) + values["bias"]
    if kind == "df":
        return np.einsum("yxc,cio->yxio", basis[0], values["contraction"])
    if kind == "direct":
        return basis[0].reshape(SHAPE)
    return np.einsum("dyxc,di,co->yxio", basis, values["contraction_in"], values["contraction_out"])


@pytest.mark.parametrize("kind", KINDS)
def test_kernels_are_those_of_plain_sums(kind):
    factors = factors_of(kind)
    kernel = jax.jit(lambda factors: filters.synthesize_kernel(factors, SHAPE))(factors)
    np.testing.assert_allclose(kernel, plain_kernel(kind, factors), rtol=1e-5, atol=1e-6)
    names = {"df": "synthesize", "direct": "synthesize_direct", "tc2": "synthesize_tc2"}
    options = {"features": SHAPE[2:]} if kind == "direct" else {}
    same = jax.jit(functools.partial(getattr(filters, names[kind]), **options))(**factors)
    np.testing.assert_array_equal(kernel, same)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_finite_differences(kind):
    with jax.enable_x64(True):
        factors = factors_of(kind, dtype=jnp.float64)
        weights = jnp.asarray(np.random.default_rng(0).normal(size=SHAPE))
        value = jax.jit(lambda factors: jnp.sum(weights * jnp.sin(filters.synthesize_kernel(factors, SHAPE))))
        check_grads(value, (factors,), order=1, modes=["rev"], rtol=1e-6, atol=1e-6)
        assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(jax.device_get(jax.jit(jax.grad(value))(factors))))


def test_the_side_of_the_base():
    assert [filters.base_side(side) for _, side in SIDES] == [small for small, _ in SIDES]
    assert (filters.base_side(1), filters.base_side(4, stride=1), filters.base_side(4, stride=3)) == (1, 4, 2)
    with pytest.raises(ValueError, match=r"side 4 with stride 2.*a stride that divides 3"):
        filters.base_side(4)
    with pytest.raises(ValueError, match="side 4 with stride 2"):
        filters.init_factors(jax.random.key(0), (4, 4, 2, 2), Sizes(base=2, basis=2))


@pytest.mark.parametrize("shape", [(1, 1, 3, 4), (2, 2, 3, 4), (1, 3, 3, 4), (2, 3, 3, 4), (7, 7, 3, 4)])
@pytest.mark.parametrize("kind", KINDS)
def test_default_sizes_fit_any_kernel(shape, kind):
    sizes = filters.default_sizes(shape, kind=kind)
    make = lambda key: filters.synthesize_kernel(filters.init_factors(key, shape, sizes, kind=kind), shape)
    assert jax.eval_shape(make, jax.random.key(0)).shape == shape


def test_glorot_limits():
    """sqrt(6 / (fan_in + fan_out)): axes but the last two multiply both; a deconvolution's bias has fan_in 1."""
    sizes = {"contraction": 24 * (32 + 64), "knowledge_base": 2 * (2 + 48), "deconvolution": 9 * (24 + 48)}
    draw = lambda key: filters.init_factors(key, (3, 3, 32, 64), Sizes(base=48, basis=24))
    factors = jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), 60))
    for name, fans in {**sizes, "bias": 1 + 24}.items():
        limit = math.sqrt(6 / fans)
        assert 0.99 * limit < float(jnp.max(jnp.abs(factors[name]))) <= limit * (1 + 1e-6)
        assert float(jnp.std(factors[name])) == pytest.approx(limit / math.sqrt(3), rel=0.02)
    drawn = filters.glorot_uniform(jax.random.key(1), (1000,))
    assert float(jnp.max(jnp.abs(drawn))) == pytest.approx(math.sqrt(6 / 2000), rel=0.02)


def test_factors_that_do_not_fit_are_named():
    factors = factors_of("df")
    with pytest.raises(ValueError, match=r"of shape \[4, 4, 2, 4\], but the layer needs \[5, 5, 2, 4\]"):
        filters.synthesize_kernel({**factors, "knowledge_base": jnp.ones((4, 4, 3))}, (5, 5, 2, 4))
    sides = dict(zip(filters.TUCKER, (3, 3, 2, 4, 1), strict=True))
    core = {"core": jnp.ones((1,) * 5), **{name: jnp.ones((side, 1)) for name, side in sides.items()}}
    with pytest.raises(ValueError, match=r"of shape \[3, 3, 2, 4, 1\], but the layer needs \[3, 3, 2, 5, 1\]"):
        filters.synthesize_kernel(core, (3, 3, 2, 5, 1))
    with pytest.raises(ValueError, match="kind is 'tf', but must be one of df, direct, tc2"):
        filters.init_factors(jax.random.key(0), SHAPE, Sizes(2, 2), kind="tf")


def test_a_tree_of_factors_becomes_an_ordinary_one():
    factors, bias = factors_of("tc2"), jnp.arange(4.0)
    like = {"layer": {"bias": bias, "kernel": jnp.zeros(SHAPE)}, "head": {"kernel": jnp.zeros((2, 2))}}
    params = {**like, "layer": {"bias": bias, "kernel": factors}}
    found = filters.synthesize_tree(params, like)
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, like)
    np.testing.assert_array_equal(found["layer"]["kernel"], filters.synthesize_tc2(**factors))
    assert found["layer"]["bias"] is bias


def test_default_sizes_round_up():
    """Of 7 features and 3 inputs: 3.5, 2.625 and 1.125."""
    assert filters.default_sizes((3, 3, 3, 7)) == Sizes(base=4, basis=8)
    assert filters.default_sizes((3, 3, 3, 7), kind="direct") == Sizes(base=8, basis=8)
    assert filters.default_sizes((3, 3, 3, 7), kind="tc2") == Sizes(base=3, basis=6, depth=2)


def test_default_sizes_by_the_sides_and_at_most():
    found = [filters.default_sizes((*sides, 3, 7))[-2:] for sides in ((1, 1), (2, 2), (2, 3), (5, 5), (7, 1))]
    assert found == [(1, 2), (2, 1), (3, 1), (3, 2), (3, 2)]
    assert filters.default_sizes((3, 3, 3, 300)) == Sizes(base=64, basis=128)
    assert filters.default_sizes((3, 3, 3, 300), kind="direct") == Sizes(base=128, basis=128)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("contraction_in", lambda leaf: leaf[:1]),
        ("contraction_in", lambda leaf: leaf[None]),
        ("contraction_out", lambda leaf: leaf[0]),
        ("knowledge_base", lambda leaf: leaf[0]),
    ],
)
def test_factors_of_other_shapes_are_refused(name, change):
    factors = factors_of("tc2")
    with pytest.raises(ValueError, match="has shape"):
        filters.synthesize_tc2(**{**factors, name: change(factors[name])})


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: filters.default_sizes((3, 3, 0, 4)), "length is 0, but must be"),
        (lambda: filters.default_sizes((3, 3, 4.5, 4)), r"length is 4\.5, but must be"),
        (lambda: filters.default_sizes((3, 3, 4)), "not "),
        (lambda: filters.default_sizes((3, 3, 2, 4), kind="other"), "kind is"),
        (
            lambda: filters.init_factors(jax.random.key(0), (3, 3, 2, 2), Sizes(base=-2, basis=2)),
            "base is -2, but must",
        ),
        (lambda: filters.init_factors(jax.random.key(0), (3, 3, 2, 2), Sizes(2, 2, stride=0)), "stride is 0, but must"),
        (lambda: filters.base_side(3, stride=0), "stride is 0, but must"),
        (lambda: filters.base_side(-1), "side is -1, but must"),
        (
            lambda: filters.deconvolve(jnp.ones((2, 2, 1)), jnp.ones((1, 1, 1, 1)), jnp.ones(1), stride=-1),
            "stride is -1",
        ),
    ],
)
def test_numbers_out_of_range_are_refused(wrong, words):
    with pytest.raises(ValueError, match=words):
        wrong()
