"""The Tucker product and decomposition against sums term by term and NumPy's."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from cljax import tucker

RANKS, LENGTHS = (2, 1, 3, 2), (3, 2, 4, 2)


def drawn(seed=0, dtype=np.float64):
    """A core, and a factor for each of its axes."""
    generator = np.random.default_rng(seed)
    factors = [generator.normal(size=pair).astype(dtype) for pair in zip(LENGTHS, RANKS, strict=True)]
    return generator.normal(size=RANKS).astype(dtype), factors


def enumerated(core, factors):
    """Every term of every sum."""
    whole = np.zeros([len(factor) for factor in factors])
    for places in np.ndindex(*whole.shape):
        for ranks in np.ndindex(*core.shape):
            term = core[ranks]
            for factor, place, rank in zip(factors, places, ranks, strict=True):
                term = term * factor[place, rank]
            whole[places] += term
    return whole


@pytest.mark.parametrize("rows", [(), (3,), (0, 2), (0, 1, 2, 3)])
def test_the_product_is_the_sum_of_all_terms(rows):
    core, factors = drawn(dtype=np.float32)
    given = [factor[1] if axis in rows else factor for axis, factor in enumerate(factors)]
    wide = [factor[1:2] if axis in rows else factor for axis, factor in enumerate(factors)]
    found = jax.jit(tucker.product)(core, given)
    assert found.shape == tuple(length for axis, length in enumerate(LENGTHS) if axis not in rows)
    np.testing.assert_allclose(found, enumerated(core, wide).reshape(found.shape), rtol=1e-5, atol=1e-5)


def test_the_product_s_gradients_are_finite_differences():
    with jax.enable_x64(True):
        core, (*factors, last) = drawn()
        value = lambda core, factors: jnp.sum(jnp.sin(tucker.product(core, factors)))
        check_grads(jax.jit(value), (jnp.asarray(core), [*map(jnp.asarray, factors), jnp.asarray(last[0])]), order=1)


def test_a_tensor_of_these_ranks_comes_back_and_the_factors_are_orthonormal():
    core, factors = drawn(dtype=np.float32)
    tensor = tucker.product(core, factors)
    assert tucker.numerical_ranks(tensor) == RANKS
    found, bases = jax.jit(lambda tensor: tucker.decompose(tensor, RANKS))(tensor)
    assert found.shape == RANKS
    for basis in bases:
        np.testing.assert_allclose(basis.T @ basis, np.eye(basis.shape[1]), atol=1e-5)
    np.testing.assert_allclose(tucker.product(found, bases), tensor, rtol=1e-4, atol=1e-4)


def test_what_is_cut_off_is_bounded_by_its_singular_values_and_the_rest_is_numpy_s_projection():
    tensor = np.random.default_rng(1).normal(size=LENGTHS)
    unfolded = [np.moveaxis(tensor, axis, 0).reshape(length, -1) for axis, length in enumerate(LENGTHS)]
    with jax.enable_x64(True):
        near = np.asarray(tucker.product(*tucker.decompose(jnp.asarray(tensor), RANKS)))
    projected, bound = tensor, 0.0
    for axis, (rows, rank) in enumerate(zip(unfolded, RANKS, strict=True)):
        left, values, _ = np.linalg.svd(rows)
        bound += np.sum(values[rank:] ** 2)
        projector = left[:, :rank] @ left[:, :rank].T
        projected = np.moveaxis(np.tensordot(projector, projected, (1, axis)), 0, axis)
    np.testing.assert_allclose(near, projected, atol=1e-10)
    assert 0 < np.sum((tensor - near) ** 2) <= bound


def test_numerical_ranks_are_relative():
    tensor = np.zeros((3, 3, 3))
    tensor[range(3), range(3), range(3)] = [200.0, 1.0, 0.1]
    errors = {1e-2: 1, 4e-3: 2, 1e-4: 3}
    assert {error: tucker.numerical_ranks(tensor, relative_error=error) for error in errors} == {
        error: (rank,) * 3 for error, rank in errors.items()
    }
    assert tucker.numerical_ranks(np.zeros((2, 2))) == (1, 1)


@pytest.mark.parametrize(
    ("ranks", "words"),
    [((1, 1), "has as many ranks, not 2"), ((1, 0, 1), "rank 1 is 0"), ((1, 1, 6), "rank 2 is 6, .* from 1 to 4")],
)
def test_ranks_that_there_cannot_be_are_refused(ranks, words):
    with pytest.raises(ValueError, match=words):
        tucker.decompose(jnp.ones((2, 2, 7)), ranks)


def test_factors_that_do_not_fit_are_refused():
    core, factors = drawn(dtype=np.float32)
    for wrong in (factors[:-1], [*factors[:-1], factors[0][:, :1]], [*factors[:-1], core]):
        with pytest.raises(ValueError, match=r"axes, but there are|Factor [0-9] has shape"):
            tucker.product(core, wrong)
