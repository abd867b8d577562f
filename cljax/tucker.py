"""Tucker factorisation: a tensor as a small core with a matrix for each of its axes."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from cljax.numbers import check_shape, real, whole
from cljax.types import Array


def product(core: Array, factors: Sequence[Array]) -> Array:
    r"""The tensor that a core and its factors stand for.

    .. math:: W_{i_1 \dots i_n} = \sum_{r_1 \dots r_n} S_{r_1 \dots r_n} \prod_k U^{(k)}_{i_k r_k}

    Args:
      core: S `[r_1, ..., r_n]`.
      factors: one for each axis of the core, each `[d_k, r_k]`; or one row of it, `[r_k]`, which leaves the axis out.

    Returns:
      W `[d_1, ..., d_n]`, without the axes whose factor is a row.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.tucker import product
      >>> core = jnp.array([[2.0, 0.0], [0.0, 3.0]])
      >>> product(core, [jnp.array([[1.0, 1.0]]), jnp.array([[1.0, 0.0], [0.0, 1.0]])])
      Array([[2., 3.]], dtype=float32)
      >>> product(core, [jnp.eye(2), jnp.array([0.0, 1.0])])
      Array([0., 3.], dtype=float32)

    Reference: Tucker, Some Mathematical Notes on Three-Mode Factor Analysis, 1966; Yang and Hospedales, Deep
    Multi-Task Representation Learning: A Tensor Factorisation Approach, 2017, section 3.
    """
    if len(factors) != core.ndim:
        raise ValueError(f"core has {core.ndim} axes, but there are {len(factors)} factors: give one for each axis.")
    rank, kept, operands = core.ndim, [], [core, list(range(core.ndim))]
    for axis, factor in enumerate(factors):
        sizes = (core.shape[axis],) if jnp.ndim(factor) == 1 else ("size", core.shape[axis])
        check_shape(f"Factor {axis}", factor, *sizes)
        kept += [rank + axis] if factor.ndim == 2 else []
        operands += [factor, [rank + axis, axis] if factor.ndim == 2 else [axis]]
    return jnp.einsum(*operands, kept, optimize="optimal")


def decompose(tensor: Array, ranks: Sequence[int]) -> tuple[Array, list[Array]]:
    r"""The truncated higher-order singular value decomposition: the core and factors whose product is near a tensor.

    Each factor is the first left singular vectors of the tensor unfolded along its axis, and the core is the product of
    the tensor with their transposes. With full ranks the product is the tensor; else its squared distance is at most
    the sum, over all axes, of the squares of the singular values that are left out.

    Args:
      tensor: `[d_1, ..., d_n]`, floating point.
      ranks: r_k, static: from 1 to d_k, and at most the product of the other axes' lengths.

    Returns:
      The core `[r_1, ..., r_n]`, and the factors `[d_k, r_k]`, with orthonormal columns.

    Raises:
      ValueError: ranks out of range, or of another number than the tensor's axes.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.tucker import decompose, product
      >>> core, factors = decompose(jnp.outer(jnp.array([3.0, 4.0]), jnp.array([1.0, 0.0])), (1, 1))
      >>> jnp.abs(core).round(4), product(core, factors).round(4)
      (Array([[5.]], dtype=float32), Array([[3., 0.],
             [4., 0.]], dtype=float32))

    Reference: De Lathauwer, De Moor and Vandewalle, A Multilinear Singular Value Decomposition, 2000.
    """
    if len(ranks) != tensor.ndim:
        raise ValueError(f"A tensor of {tensor.ndim} axes has as many ranks, not {len(ranks)}: {tuple(ranks)}.")
    factors = []
    for axis, (rank, length) in enumerate(zip(ranks, tensor.shape, strict=True)):
        rank = whole(f"rank {axis}", rank, least=1, most=min(length, tensor.size // length))
        rows = jnp.moveaxis(tensor, axis, 0).reshape(length, -1)
        left, _, _ = jnp.linalg.svd(rows, full_matrices=False)
        factors.append(left[:, :rank])
    return product(tensor, [factor.T for factor in factors]), factors


def numerical_ranks(tensor: ArrayLike, *, relative_error: float = 1e-3) -> tuple[int, ...]:
    r"""How many singular values of each unfolding are above a part of the largest. On the host, as ranks are static.

    .. math:: r_k = |\{ i : \sigma^{(k)}_i > \epsilon \, \sigma^{(k)}_1 \}|

    Args:
      tensor: `[d_1, ..., d_n]`.
      relative_error: epsilon, in [0, 1).

    Returns:
      The ranks, each at least 1.

    Raises:
      ValueError: an error out of range.

    Example:
      >>> import numpy as np
      >>> from cljax.tucker import numerical_ranks
      >>> numerical_ranks(np.diag([1.0, 0.1, 1e-5]))
      (2, 2)

    Reference: the public code of Yang and Hospedales, 2017, whose error the DF-CNN paper's code sets to 0.001.
    """
    relative_error = real("relative_error", relative_error, least=0, below=1)
    tensor = np.asarray(tensor)
    rows = (np.moveaxis(tensor, axis, 0).reshape(length, -1) for axis, length in enumerate(tensor.shape))
    values = [np.linalg.svd(one, compute_uv=False) for one in rows]
    return tuple(max(1, int(np.sum(one > relative_error * one[0]))) for one in values)
