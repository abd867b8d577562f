"""Entries of trees, and one of two trees, against NumPy's; in how few operations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cljax.trees import pick, put, select
from tests.shared import bits

TREE = {
    "numbers": np.arange(24, dtype=np.float32).reshape(3, 4, 2),
    "words": np.array([7, 2**32 - 1, 0], np.uint32),
    "flags": (np.array([[True, False], [False, True], [True, True]]),),
    "nothing": None,
    "empty": np.zeros((3, 0), np.int32),
}
OTHER = jax.tree.map(lambda leaf: leaf[::-1].copy(), TREE)


def indices(*numbers):
    return np.array(numbers, np.int32)


@pytest.mark.parametrize("index", range(3))
def test_an_entry_is_numpy_s_with_and_without_compilation(index):
    expected = bits(jax.tree.map(lambda leaf: leaf[index], TREE))
    assert bits(pick(TREE, jnp.int32(index))) == bits(jax.jit(pick)(TREE, jnp.int32(index))) == expected


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint32", "int64"])
def test_an_index_is_of_any_dtype(dtype):
    with jax.enable_x64(dtype == "int64"):
        index = np.array([2, 0], dtype)
        picked = jax.vmap(pick, in_axes=(None, 0))(TREE, index)
        assert bits(picked) == bits(jax.tree.map(lambda leaf: leaf[[2, 0]], TREE))
        assert bits(put(TREE, pick(TREE, index[0]), index[0])) == bits(TREE)


def test_entries_side_by_side_and_beyond_the_ends():
    picked = jax.vmap(pick, in_axes=(None, 0))(TREE, indices(2, 0, 2))
    assert bits(picked) == bits(jax.tree.map(lambda leaf: leaf[[2, 0, 2]], TREE))
    assert bits([pick(TREE, jnp.int32(place)) for place in (-1, 3)]) == bits([pick(TREE, jnp.int32(p)) for p in (0, 2)])


def test_an_entry_is_replaced_and_no_other():
    expected = jax.tree.map(np.copy, TREE)
    for leaf, new in zip(jax.tree.leaves(expected), jax.tree.leaves(OTHER), strict=True):
        leaf[1] = new[0]
    assert bits(put(TREE, pick(OTHER, jnp.int32(0)), jnp.int32(1))) == bits(expected)
    numbers, found = TREE["numbers"].copy(), put(TREE["numbers"], jnp.array([5.0, 6.0]), jnp.int32(2), jnp.int32(3))
    numbers[2, 3] = 5.0, 6.0
    np.testing.assert_array_equal(found, numbers)


def test_one_of_two_trees_alone_and_side_by_side():
    first, second = (jax.device_put(tree) for tree in (TREE, OTHER))
    assert bits([select(jnp.bool_(value), TREE, OTHER) for value in (True, False)]) == bits([first, second])
    both = jax.vmap(select, in_axes=(0, None, None))(np.array([False, True]), TREE, OTHER)
    assert bits(both) == bits(jax.tree.map(lambda *leaves: jnp.stack(leaves), second, first))


def test_each_leaf_takes_two_operations_at_most():
    leaf, row, one = jnp.zeros([3, 4]), jnp.zeros([4]), jnp.int32(1)
    operations = lambda function, *given: [str(eqn.primitive) for eqn in jax.make_jaxpr(function)(*given).eqns]
    assert operations(pick, leaf, one) == ["dynamic_slice", "squeeze"]
    assert operations(put, leaf, row, one) == ["broadcast_in_dim", "dynamic_update_slice"]
    assert operations(select, jnp.bool_(True), leaf, leaf) == ["select_n"]
