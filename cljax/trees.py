"""Trees of arrays in the fewest operations: an entry, an entry replaced, one of two.

A run does these to every leaf of a learner, and each operation is traced, lowered and compiled. `leaf[index]` and
`jnp.where` are four to six operations a leaf, for they count negative indices from the end, broadcast and promote;
these are one or two.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from cljax.types import Array, Tree


def pick(tree: Tree, index: Array) -> Tree:
    """The entry `index`, from 0, of a tree whose leaves have a leading axis; the nearest one beyond its ends.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.trees import pick
      >>> pick({'a': jnp.array([[1, 2], [3, 4]])}, jnp.int32(1))['a'].tolist()
      [3, 4]
    """
    place = jnp.asarray(index, jnp.int32)

    def one(leaf: Array) -> Array:
        leaf = jnp.asarray(leaf)
        sizes, places = (1, *leaf.shape[1:]), [place, *[jnp.int32(0)] * (leaf.ndim - 1)]
        return lax.squeeze(lax.dynamic_slice(leaf, places, sizes, allow_negative_indices=False), (0,))

    return jax.tree.map(one, tree)


def put(tree: Tree, value: Tree, *index: Array) -> Tree:
    """A tree with one entry replaced, at an index of its first axes, from 0; the nearest one beyond their ends.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.trees import put
      >>> put({'a': jnp.zeros([2, 2])}, {'a': jnp.float32(5.0)}, jnp.int32(1), jnp.int32(0))['a'].tolist()
      [[0.0, 0.0], [5.0, 0.0]]
    """
    first = [jnp.asarray(number, jnp.int32) for number in index]

    def one(leaf: Array, new: Array) -> Array:
        places = [*first, *[jnp.int32(0)] * (leaf.ndim - len(index))]
        entry = lax.expand_dims(new, range(len(index)))
        return lax.dynamic_update_slice(leaf, entry, places, allow_negative_indices=False)

    return jax.tree.map(one, tree, value)


def select(condition: Array, one: Tree, other: Tree) -> Tree:
    """One tree where a scalar condition holds, else the other, of the same shapes and dtypes.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.trees import select
      >>> select(jnp.bool_(False), [jnp.int32(1)], [jnp.int32(2)])
      [Array(2, dtype=int32)]
    """
    return jax.tree.map(lambda a, b: lax.select(condition, jnp.asarray(a), jnp.asarray(b)), one, other)
