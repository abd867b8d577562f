"""Trees of arrays in the fewest operations: an entry, an entry replaced, one of two.

A run does these to every leaf of a learner, and each operation is traced, lowered and compiled. `leaf[index]` and
`jnp.where` are four to six operations a leaf, for they count negative indices from the end, broadcast and promote;
these are one or two.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from cljax.types import AnyArray, Array, Tree


def varying(tree: Tree, *like: AnyArray) -> Tree:
    """The same tree, which within `shard_map` differs from device to device where one of some arrays does.

    Elsewhere it is the tree itself. Gradients by parameters that are alike on all devices are summed over them before
    anything is made of them, squares say; by these they are not.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from jax.sharding import PartitionSpec
      >>> from cljax.trees import varying
      >>> mesh = jax.make_mesh((1,), ('device',), axis_types=(jax.sharding.AxisType.Auto,))
      >>> own = lambda w, x: jax.grad(lambda w: jnp.sum(w * x))(varying(w, x))[None]
      >>> spec = PartitionSpec('device')
      >>> jax.shard_map(own, mesh=mesh, in_specs=(PartitionSpec(), spec), out_specs=spec)(2.0, jnp.ones(3)).tolist()
      [3.0]
    """
    over = lambda array: jax.typeof(array).mat.varying
    axes = frozenset().union(*map(over, like))
    cast = lambda leaf: lax.pcast(leaf, tuple(axes - over(leaf)), to="varying")
    return jax.tree.map(lambda leaf: cast(jnp.asarray(leaf)), tree) if axes else tree


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
