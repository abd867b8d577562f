"""Convolution and max-pooling whose gradients are fast on every platform, in pure JAX.

On CPU, XLA compiles the gradient of a convolution well only where its operands are in the plain NHWC and HWIO order.
Inside a loop (`lax.scan`, `lax.while_loop`) it moves the transpositions into the convolution, which then falls to a
naive loop, tens of times slower. So on CPU both gradients are written as plain convolutions of operands that are
transposed first, each behind an optimization barrier. GPU and TPU get the native gradients, which their compilers know.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from cljax.numbers import check_shape
from cljax.types import Array

Padding = str | Sequence[tuple[int, int]]


class _Geometry(NamedTuple):
    """A two-dimensional convolution. The gradients of one are two others, so differentiation never leaves the family.

    Attributes:
      strides: of the window.
      padding: low and high of each axis, maybe negative.
      spread: the dilation of the inputs.
      dilation: that of the kernel.
    """

    strides: tuple[int, ...] = (1, 1)
    padding: tuple[tuple[int, int], ...] = ((0, 0), (0, 0))
    spread: tuple[int, ...] = (1, 1)
    dilation: tuple[int, ...] = (1, 1)


def _native(inputs: Array, kernel: Array, geometry: _Geometry) -> Array:
    return lax.conv_general_dilated(
        inputs,
        kernel,
        window_strides=geometry.strides,
        padding=geometry.padding,
        lhs_dilation=geometry.spread,
        rhs_dilation=geometry.dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve(inputs: Array, kernel: Array, geometry: _Geometry) -> Array:
    return _native(inputs, kernel, geometry)


def _forward(inputs: Array, kernel: Array, geometry: _Geometry) -> tuple[Array, tuple[Array, Array]]:
    return _convolve(inputs, kernel, geometry), (inputs, kernel)


def _backward(geometry: _Geometry, residuals: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    inputs, kernel = residuals
    input_gradient = lax.platform_dependent(
        cotangent,
        kernel,
        cpu=partial(_input_gradient, shape=inputs.shape, geometry=geometry),
        default=partial(_native_input_gradient, shape=inputs.shape, geometry=geometry),
    )
    kernel_gradient = lax.platform_dependent(
        inputs,
        cotangent,
        cpu=partial(_kernel_gradient, shape=kernel.shape, geometry=geometry),
        default=partial(_native_kernel_gradient, shape=kernel.shape, geometry=geometry),
    )
    return input_gradient, kernel_gradient


_convolve.defvjp(_forward, _backward)


def _input_gradient(cotangent: Array, kernel: Array, *, shape: tuple[int, ...], geometry: _Geometry) -> Array:
    """Correlates the spread cotangent with the kernel, turned by 180 degrees, its channels exchanged."""
    padding = []
    for axis in range(2):
        reach = (kernel.shape[axis] - 1) * geometry.dilation[axis]
        size = (shape[1 + axis] - 1) * geometry.spread[axis] + 1
        covered = (cotangent.shape[1 + axis] - 1) * geometry.strides[axis] + 1
        low = reach - geometry.padding[axis][0]
        padding.append((low, size + reach - covered - low))
    turned = lax.optimization_barrier(jnp.flip(kernel, (0, 1)).swapaxes(2, 3))
    return _convolve(
        lax.optimization_barrier(cotangent),
        turned,
        _Geometry(geometry.spread, tuple(padding), geometry.strides, geometry.dilation),
    )


def _kernel_gradient(inputs: Array, cotangent: Array, *, shape: tuple[int, ...], geometry: _Geometry) -> Array:
    """Correlates the inputs with the cotangent: channels become the batch, the batch is summed over as channels."""
    padding = []
    for axis in range(2):
        size = (inputs.shape[1 + axis] - 1) * geometry.spread[axis] + 1
        covered = (cotangent.shape[1 + axis] - 1) * geometry.strides[axis] + 1
        low = geometry.padding[axis][0]
        padding.append((low, (shape[axis] - 1) * geometry.dilation[axis] + covered - size - low))
    result = _convolve(
        lax.optimization_barrier(inputs.transpose(3, 1, 2, 0)),
        lax.optimization_barrier(cotangent.transpose(1, 2, 0, 3)),
        _Geometry(geometry.dilation, tuple(padding), geometry.spread, geometry.strides),
    )
    return lax.optimization_barrier(result).transpose(1, 2, 0, 3)


def _native_input_gradient(cotangent: Array, kernel: Array, *, shape: tuple[int, ...], geometry: _Geometry) -> Array:
    inputs = jax.ShapeDtypeStruct(shape, cotangent.dtype)
    return jax.linear_transpose(lambda value: _native(value, kernel, geometry), inputs)(cotangent)[0]


def _native_kernel_gradient(inputs: Array, cotangent: Array, *, shape: tuple[int, ...], geometry: _Geometry) -> Array:
    kernel = jax.ShapeDtypeStruct(shape, inputs.dtype)
    return jax.linear_transpose(lambda value: _native(inputs, value, geometry), kernel)(cotangent)[0]


def _pairs(
    padding: Padding, sizes: Sequence[int], windows: Sequence[int], strides: Sequence[int]
) -> tuple[tuple[int, int], ...]:
    """Padding as (low, high) for each spatial axis."""
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(sizes, windows, strides, padding)
    pairs = tuple((int(low), int(high)) for low, high in padding)
    for size, window, pair in zip(sizes, windows, pairs, strict=True):
        if size + sum(pair) < window:
            raise ValueError(
                f"A window of {tuple(windows)} does not fit into {tuple(sizes)} positions with padding {pairs}: use "
                "larger inputs, more padding or a smaller window."
            )
    return pairs


def convolve(inputs: Array, kernel: Array, *, stride: int = 1, padding: Padding = "SAME") -> Array:
    """Two-dimensional convolution (cross-correlation), with gradients that are fast inside loops on CPU.

    `outputs[b, y, x, o] = sum_{i, j, c} inputs[b, stride * y + i - top, stride * x + j - left, c] * kernel[i, j, c, o]`

    The outputs are those of `lax.conv_general_dilated`, the gradients too up to rounding. Reverse-mode
    differentiation works to any order, and under `vmap`, `jit` and `scan`; forward mode does not.

    Args:
      inputs: `[B, H, W, C]`, floating point.
      kernel: `[h, w, C, C_out]`, of the inputs' dtype.
      stride: along both spatial axes.
      padding: `'SAME'`, `'VALID'`, or `((top, bottom), (left, right))`.

    Returns:
      `[B, H_out, W_out, C_out]`, of the inputs' dtype.

    Raises:
      ValueError: if the kernel does not fit into the padded inputs.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.networks import convolve
      >>> convolve(jnp.ones((1, 4, 4, 3)), jnp.ones((3, 3, 3, 2)))[0, :2, :2, 0]
      Array([[12., 18.],
             [18., 27.]], dtype=float32)
    """
    check_shape("inputs", inputs, "B", "H", "W", "C")
    check_shape("kernel", kernel, "height", "width", inputs.shape[3], "outputs")
    strides = (stride, stride)
    return _convolve(inputs, kernel, _Geometry(strides, _pairs(padding, inputs.shape[1:3], kernel.shape[:2], strides)))


@jax.custom_jvp
def larger(left: Array, right: Array) -> Array:
    """The larger of two arrays, elementwise; where they are equal they share the gradient.

    `jnp.maximum` gives its gradient to the operand that equals the result. A compiler that computes the operand twice,
    once with a fused multiply-add and once without, finds that neither does, and loses the gradient. Here the operands
    are compared with each other, so the two parts always add up to 1.

    Example:
      >>> jax.grad(larger, argnums=(0, 1))(2.0, 2.0)
      (Array(0.5, dtype=float32, weak_type=True), Array(0.5, dtype=float32, weak_type=True))
    """
    return jnp.maximum(left, right)


@larger.defjvp
def _larger_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    left, right = primals
    part = jnp.where(left > right, 1.0, jnp.where(left == right, 0.5, 0.0)).astype(left.dtype)
    return larger(left, right), part * tangents[0] + (1 - part) * tangents[1]


def max_pool(inputs: Array, *, window: int = 2, stride: int | None = None, padding: Padding = "VALID") -> Array:
    """The largest value of each window, as maxima of strided slices.

    The values are those of `lax.reduce_window`; the gradient is many times faster on CPU. Where several values of a
    window are the largest, they share its gradient (neighbours are compared in pairs, and a draw halves it: four equal
    values get a quarter each), while `lax.reduce_window` gives all to one; either way the shares add up to 1.

    Args:
      inputs: `[B, H, W, C]`, floating point.
      window: its height and width.
      stride: along both spatial axes; the window's size if None.
      padding: `'SAME'`, `'VALID'`, or `((top, bottom), (left, right))`, with minus infinity.

    Returns:
      `[B, H_out, W_out, C]`, of the inputs' dtype.

    Raises:
      ValueError: if the window does not fit into the padded inputs.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.networks import max_pool
      >>> max_pool(jnp.arange(16.0).reshape(1, 4, 4, 1))[0, :, :, 0]
      Array([[ 5.,  7.],
             [13., 15.]], dtype=float32)
    """
    check_shape("inputs", inputs, "B", "H", "W", "C")
    stride = window if stride is None else stride
    pairs = _pairs(padding, inputs.shape[1:3], (window, window), (stride, stride))
    if any(low or high for low, high in pairs):
        lowest = jnp.asarray(-jnp.inf, inputs.dtype)
        inputs = lax.pad(inputs, lowest, ((0, 0, 0), (*pairs[0], 0), (*pairs[1], 0), (0, 0, 0)))
    counts = [(size - window) // stride + 1 for size in inputs.shape[1:3]]
    values = [
        inputs[:, y : y + (counts[0] - 1) * stride + 1 : stride, x : x + (counts[1] - 1) * stride + 1 : stride]
        for y in range(window)
        for x in range(window)
    ]
    while len(values) > 1:
        odd = values[len(values) // 2 * 2 :]
        values = [larger(*pair) for pair in zip(values[::2], values[1::2], strict=False)] + odd
    return values[0]
