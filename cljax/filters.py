r"""Filter synthesis: convolution kernels made from a small knowledge base that all tasks share.

A layer's kernel is not a parameter but a product of factors: a knowledge base, deconvolved to the kernel's height and
width, then contracted to its channels. The knowledge base belongs to all tasks, the other factors to one.

    knowledge base [h, w, c_base] --deconvolve--> filter basis [k, k, c] --contract--> kernel [k, k, C, C_out]
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cljax import tucker
from cljax.numbers import check_option, check_shape, whole
from cljax.types import AnyArray, Array, Tree

Kind = Literal["df", "direct", "tc2"]
"""How a kernel is made: `'df'` by `synthesize`, `'direct'` by `synthesize_direct`, `'tc2'` by `synthesize_tc2`."""
TUCKER = ("height", "width", "inputs", "outputs", "task")
"""The factors of a kernel's core `[r_1, ..., r_5]`, see `tucker.product`; the last is a task's row."""


def deconvolve(base: AnyArray, kernel: AnyArray, bias: AnyArray, *, stride: int = 2) -> Array:
    r"""Transposed convolution of a knowledge base: the adjoint of a strided `'SAME'` convolution, plus a bias.

    .. math:: D_{s y + i - a,\; s x + j - a,\; c} \mathrel{+}= \sum_b L_{yxb} V_{ijcb}, \qquad D \mathrel{+}= b_c

    where :math:`a = \lfloor (p - 1) / 2 \rfloor`; places outside are dropped. There is no activation. It is
    `tf.nn.conv2d_transpose` to `[k, k, c]`, `k = (h - 1) * stride + 1`: the vector-Jacobian product of a convolution
    of `[k, k, c]` with the same kernel, stride and `'SAME'` padding.

    Computed as one matrix product and p * p shifted sums: for a base of a handful of places, a general convolution
    takes several times as long.

    Args:
      base: `[h, w, c_base]`, floating point.
      kernel: `[p, p, c, c_base]`, of the base's dtype: outputs before inputs, as TensorFlow has it.
      bias: `[c]`.
      stride: s, along both axes.

    Returns:
      `[(h - 1) * stride + 1, (w - 1) * stride + 1, c]`.

    Raises:
      ValueError: a stride below 1.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.filters import deconvolve
      >>> deconvolve(jnp.array([[[1.0], [10.0]]]), jnp.ones((1, 1, 1, 1)), jnp.zeros(1))[..., 0]
      Array([[ 1.,  0., 10.]], dtype=float32)
      >>> deconvolve(jnp.ones((6, 6, 24)), jnp.ones((3, 3, 48, 24)), jnp.zeros(48)).shape
      (11, 11, 48)

    Reference: Lee, Stokes and Eaton, Learning Shared Knowledge for Deep Lifelong Learning using Deconvolutional
    Networks, 2019, equation 1.
    """
    stride = whole("stride", stride, least=1)
    check_shape("base", base, "height", "width", "channels")
    check_shape("bias", bias, "outputs")
    check_shape("kernel", kernel, "height", "width", bias.shape[0], base.shape[2])
    parts = jnp.einsum("yxb,ijcb->ijyxc", base, kernel)
    result = jnp.asarray(bias)[None, None]
    for i, j in np.ndindex(*kernel.shape[:2]):
        down, right = i - (kernel.shape[0] - 1) // 2, j - (kernel.shape[1] - 1) // 2
        padding = ((down, -down, stride - 1), (right, -right, stride - 1), (0, 0, 0))
        result = result + lax.pad(parts[i, j], jnp.zeros((), parts.dtype), padding)
    return result


def contract(basis: AnyArray, tensor: AnyArray) -> Array:
    r"""Contracts the last axis of a filter basis with the first of a tensor.

    .. math:: W_{yxio} = \sum_c D_{yxc} U_{cio}

    Args:
      basis: `[..., c]`.
      tensor: `[c, ...]`, `[c, C, C_out]` for a convolution's kernel.

    Returns:
      `[..., C, C_out]`.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.filters import contract
      >>> contract(jnp.array([[[1.0, 2.0]]]), jnp.array([[[3.0]], [[5.0]]])).tolist()
      [[[[13.0]]]]

    Reference: Lee et al., 2019, equation 2.
    """
    check_shape("basis", basis, ..., tensor.shape[0])
    return jnp.tensordot(basis, tensor, 1)


def synthesize(
    knowledge_base: AnyArray, deconvolution: AnyArray, bias: AnyArray, contraction: AnyArray, *, stride: int = 2
) -> Array:
    r"""The kernel of a DF-CNN layer: `contract(deconvolve(L, V, b), U)`.

    Args:
      knowledge_base: L `[h, w, c_base]`, shared by all tasks.
      deconvolution: V `[p, p, c, c_base]`.
      bias: `[c]`.
      contraction: U `[c, C, C_out]`.
      stride: of the deconvolution.

    Returns:
      `[k, k, C, C_out]`, with `k = (h - 1) * stride + 1`.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.filters import synthesize
      >>> synthesize(jnp.ones((2, 2, 3)), jnp.ones((3, 3, 5, 3)), jnp.ones(5), jnp.ones((5, 4, 6))).shape
      (3, 3, 4, 6)

    Reference: Lee et al., 2019, equations 1 and 2.
    """
    return contract(deconvolve(knowledge_base, deconvolution, bias, stride=stride), contraction)


def synthesize_direct(
    knowledge_base: AnyArray, deconvolution: AnyArray, bias: AnyArray, *, features: tuple[int, int], stride: int = 2
) -> Array:
    r"""The kernel of a layer of DF-CNN.direct: the deconvolution alone makes all `C * C_out` channels.

    Args:
      knowledge_base: L `[h, w, c_base]`.
      deconvolution: V `[p, p, C * C_out, c_base]`.
      bias: `[C * C_out]`.
      features: `(C, C_out)`.
      stride: of the deconvolution.

    Returns:
      `[k, k, C, C_out]`.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.filters import synthesize_direct
      >>> synthesize_direct(jnp.ones((2, 2, 3)), jnp.ones((3, 3, 8, 3)), jnp.ones(8), features=(4, 2)).shape
      (3, 3, 4, 2)

    Reference: Lee et al., 2019, appendix A (a).
    """
    basis = deconvolve(knowledge_base, deconvolution, bias, stride=stride)
    return basis.reshape(*basis.shape[:2], *features)


def synthesize_tc2(
    knowledge_base: AnyArray,
    deconvolution: AnyArray,
    bias: AnyArray,
    contraction_in: AnyArray,
    contraction_out: AnyArray,
    *,
    stride: int = 2,
) -> Array:
    r"""The kernel of a layer of DF-CNN.tc2: a stack of bases, one contraction for each side's channels.

    .. math:: W_{yxio} = \sum_{d, c} D_{dyxc} U^1_{di} U^2_{co}

    Args:
      knowledge_base: L `[d, h, w, c_base]`.
      deconvolution: V `[p, p, c, c_base]`, the same for each of the d.
      bias: `[c]`.
      contraction_in: U1 `[d, C]`.
      contraction_out: U2 `[c, C_out]`.
      stride: of the deconvolution.

    Returns:
      `[k, k, C, C_out]`.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.filters import synthesize_tc2
      >>> ones = jnp.ones
      >>> synthesize_tc2(ones((2, 2, 2, 3)), ones((3, 3, 5, 3)), ones(5), ones((2, 4)), ones((5, 6))).shape
      (3, 3, 4, 6)

    Reference: Lee et al., 2019, appendix A (b).
    """
    check_shape("knowledge_base", knowledge_base, "bases", "height", "width", "channels")
    check_shape("contraction_in", contraction_in, knowledge_base.shape[0], "inputs")
    check_shape("contraction_out", contraction_out, bias.shape[0], "outputs")
    bases = jax.vmap(lambda base: deconvolve(base, deconvolution, bias, stride=stride))(knowledge_base)
    return contract(jnp.moveaxis(contract(jnp.moveaxis(bases, 0, -1), contraction_in), 2, -1), contraction_out)


class Sizes(NamedTuple):
    """How large the factors of one kernel are.

    Attributes:
      base: c_base, features of the knowledge base.
      basis: c, features of the filter basis; of no account for `'direct'`.
      depth: d, the number of stacked bases, of `'tc2'` alone.
      window: p, side of the deconvolution's kernel.
      stride: of the deconvolution. The base's side is `(k - 1) / stride + 1`, for a kernel of side k.

    Example:
      >>> from cljax.filters import Sizes, base_side
      >>> base_side(5, stride=Sizes(base=8, basis=4).stride)
      3
    """

    base: int
    basis: int = 1
    depth: int = 1
    window: int = 3
    stride: int = 2


def default_sizes(shape: Sequence[int], *, kind: Kind = "df") -> Sizes:
    """Sizes for a kernel of this shape, near those of the paper.

    - `'df'`: half as many features in the base as the layer has, at most 64, and twice the base's in the basis;
    - `'direct'`: as many in the base as the layer has (an even number), at most 128;
    - `'tc2'`: 3/8 of the layer's inputs for the depth and of its features for the base, 3/4 for the basis: exactly
      the paper's for CIFAR-100.

    Halves are rounded up. The window is 3, or the kernel's longer side where that is less; the stride 2, or 1 for
    kernels with an even side.

    Raises:
      ValueError: for another kind; a shape that is not four whole numbers of at least 1.

    Example:
      >>> from cljax.filters import default_sizes
      >>> default_sizes((3, 3, 32, 64))
      Sizes(base=32, basis=64, depth=1, window=3, stride=2)
      >>> default_sizes((3, 3, 32, 64), kind='tc2')
      Sizes(base=24, basis=48, depth=12, window=3, stride=2)
    """
    *sides, inputs, outputs = kernel_shape(shape)
    check_option("kind", kind, Kind)
    window, stride = min(3, max(sides)), 2 if all(side % 2 for side in sides) else 1
    if kind == "tc2":
        base = math.ceil(outputs * 3 / 8)
        return Sizes(base, 2 * base, math.ceil(inputs * 3 / 8), window, stride)
    base = min(-(-outputs // 2), 64)
    return Sizes(base if kind == "df" else 2 * base, 2 * base, 1, window, stride)


def init_factors(
    key: AnyArray, shape: Sequence[int], sizes: Sizes, *, kind: Kind = "df", dtype: Any = jnp.float32
) -> dict[str, Array]:
    """Draws the factors of a kernel, each by `glorot_uniform`, the bias as one of shape `(1, 1, 1, c)`.

    Args:
      key: PRNG key.
      shape: of the kernel, `(k, k, C, C_out)`.
      sizes: of the factors.
      kind: which factors there are; see `Kind`.
      dtype: of the factors.

    Returns:
      A dict: `knowledge_base`, `deconvolution`, `bias`; and `contraction` for `'df'`, `contraction_in` and
      `contraction_out` for `'tc2'`.

    Raises:
      ValueError: for another kind; where no knowledge base fits the kernel's side with the stride; for a shape or sizes
        that are not whole numbers of at least 1.

    Example:
      >>> import jax
      >>> from cljax.filters import Sizes, init_factors
      >>> factors = init_factors(jax.random.key(0), (3, 3, 4, 6), Sizes(base=2, basis=5))
      >>> sorted((name, leaf.shape) for name, leaf in factors.items())[1:]
      [('contraction', (5, 4, 6)), ('deconvolution', (3, 3, 5, 2)), ('knowledge_base', (2, 2, 2))]

    Reference: the public code of Lee et al., 2019.
    """
    *sides, inputs, outputs = kernel_shape(shape)
    check_option("kind", kind, Kind)
    sizes = Sizes(*(whole(name, value, least=1) for name, value in sizes._asdict().items()))
    base = tuple(base_side(side, stride=sizes.stride) for side in sides)
    basis = inputs * outputs if kind == "direct" else sizes.basis
    shapes: dict[str, tuple[int, ...]] = {
        "knowledge_base": (*base, sizes.base),
        "deconvolution": (sizes.window, sizes.window, basis, sizes.base),
        "bias": (1, 1, 1, basis),
    }
    if kind == "df":
        shapes["contraction"] = (basis, inputs, outputs)
    elif kind == "tc2":
        shapes["knowledge_base"] = (sizes.depth, *base, sizes.base)
        shapes |= {"contraction_in": (sizes.depth, inputs), "contraction_out": (basis, outputs)}
    keys = jax.random.split(key, len(shapes))
    factors = {name: glorot_uniform(one, shapes[name], dtype) for name, one in zip(shapes, keys, strict=True)}
    return {**factors, "bias": factors["bias"].reshape(-1)}


def kernel_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of a convolution's kernel, `(k, k, C, C_out)`.

    Raises:
      ValueError: it is not four whole numbers of at least 1.

    Example:
      >>> from cljax.filters import kernel_shape
      >>> kernel_shape([3, 3, 4, 6])
      (3, 3, 4, 6)
    """
    if len(shape) != 4:
        raise ValueError(f"The shape of a convolution's kernel is (k, k, C, C_out), not {tuple(shape)}.")
    return tuple(whole("a kernel's length", length, least=1) for length in shape)


def glorot_uniform(key: AnyArray, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
    r"""Uniform in `[-a, a]` with :math:`a = \sqrt{6 / (n_{in} + n_{out})}`, for any rank, as in TensorFlow 1.

    With m the product of all axes but the last two, `n_in = m * shape[-2]` and `n_out = m * shape[-1]`; at rank 1 both
    are the length.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from cljax.filters import glorot_uniform
      >>> bool(jnp.all(jnp.abs(glorot_uniform(jax.random.key(0), (3,))) <= 1.0))
      True

    Reference: Glorot and Bengio, Understanding the Difficulty of Training Deep Feedforward Networks, 2010, equation 16.
    """
    fans = math.prod(shape[:-2]) * (shape[-1] + (shape[-2] if len(shape) > 1 else shape[-1]))
    limit = math.sqrt(6 / fans)
    return jax.random.uniform(key, tuple(shape), dtype, -limit, limit)


def base_side(side: int, *, stride: int = 2) -> int:
    """The side h of the knowledge base for a kernel of side k: `k = (h - 1) * stride + 1`.

    Raises:
      ValueError: where there is none.

    Example:
      >>> from cljax.filters import base_side
      >>> [base_side(side) for side in (3, 5, 11)]
      [2, 3, 6]
    """
    side, stride = whole("side", side, least=1), whole("stride", stride, least=1)
    if (side - 1) % stride:
        raise ValueError(
            f"No knowledge base makes kernels of side {side} with stride {stride}: a base of side h makes those of "
            f"side (h - 1) * {stride} + 1. Choose a stride that divides {side - 1}, such as 1, or another kernel."
        )
    return (side - 1) // stride + 1


def synthesize_kernel(factors: Mapping[str, Array], shape: Sequence[int]) -> Array:
    """The kernel of this shape that factors (of `init_factors`) stand for; names and shapes tell kind and stride.

    A `core` beside factors of the names in `TUCKER` stands for `tucker.product` of them.

    Raises:
      ValueError: where the factors do not make a kernel of this shape.

    Example:
      >>> import jax
      >>> from cljax.filters import Sizes, init_factors, synthesize_kernel
      >>> factors = init_factors(jax.random.key(0), (5, 5, 4, 6), Sizes(base=2, basis=3))
      >>> synthesize_kernel(factors, (5, 5, 4, 6)).shape
      (5, 5, 4, 6)
    """
    if "core" in factors:
        kernel = tucker.product(factors["core"], [factors[name] for name in TUCKER])
    else:
        base = factors["knowledge_base"].shape[-3:-1]
        strides = ((side - 1) // max(height - 1, 1) for side, height in zip(shape[:2], base, strict=True))
        make: Callable[..., Array] = functools.partial(synthesize_direct, features=(shape[2], shape[3]))
        if "contraction" in factors:
            make = synthesize
        elif "contraction_in" in factors:
            make = synthesize_tc2
        kernel = make(**factors, stride=max(1, *strides))
    if kernel.shape != tuple(shape):
        shapes = ", ".join(f"{name} {list(leaf.shape)}" for name, leaf in factors.items())
        raise ValueError(
            f"These factors make a kernel of shape {list(kernel.shape)}, but the layer needs {list(shape)}: {shapes}. "
            f"A base of side h makes kernels of side (h - 1) * stride + 1; draw the factors with init_factors."
        )
    return kernel


def synthesize_tree(params: Tree, like: Tree) -> Tree:
    """The parameters of an ordinary network: each dict of factors is replaced by the kernel it stands for.

    Args:
      params: nested dicts, some of whose kernels are dicts of factors.
      like: the ordinary network's parameters, or their shapes; the result has their structure.

    Raises:
      ValueError: where the two differ in more than their kernels.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from cljax.filters import Sizes, init_factors, synthesize_tree
      >>> like = {'conv': {'bias': jax.ShapeDtypeStruct((6,), jnp.float32),
      ...                  'kernel': jax.ShapeDtypeStruct((3, 3, 4, 6), jnp.float32)}}
      >>> factors = init_factors(jax.random.key(0), (3, 3, 4, 6), Sizes(base=2, basis=5))
      >>> params = synthesize_tree({'conv': {'bias': jnp.zeros(6), 'kernel': factors}}, like)
      >>> params['conv']['kernel'].shape
      (3, 3, 4, 6)
    """
    return jax.tree.map(
        lambda leaf, part: synthesize_kernel(part, leaf.shape) if isinstance(part, Mapping) else part, like, params
    )
