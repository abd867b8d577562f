"""Widening: new features that begin as copies of older ones, so that the network computes what it did before."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from cljax import task_params
from cljax.ownership import masks
from cljax.ownership.gates import Owner
from cljax.types import Array, Tree, Wire


def draw_sources(key: Array, owner: Owner, task: ArrayLike) -> Owner:
    """Draws which older feature each feature of a task copies: different ones, as long as there are enough.

    Args:
      key: PRNG key.
      owner: owners of each gate's features, those of the task among them.
      task: int scalar.

    Returns:
      `{gate: [C] int32}`, the place of the source; of every other feature its own. So are those of the task where a
      gate has no older ones.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from cljax.ownership import draw_sources, masks
      >>> owner = {'gate': jnp.array([0, 1, masks.FREE])}
      >>> draw_sources(jax.random.key(0), owner, 1)['gate'].tolist()
      [0, 0, 2]
    """

    def one(key: Array, owner: Array) -> Array:
        new, older = masks.learnable(owner, task), owner < jnp.asarray(task, jnp.int32)
        places, count = jnp.arange(owner.size, dtype=jnp.int32), jnp.sum(older, dtype=jnp.int32)
        shuffled = jax.random.permutation(key, places)
        shuffled = shuffled[jnp.argsort(~older[shuffled], stable=True)]
        rank = jnp.cumsum(new, dtype=jnp.int32) - 1
        return jnp.where(new & (count > 0), shuffled[rank % jnp.maximum(count, 1)], places)

    return {name: one(jax.random.fold_in(key, number), owner[name]) for number, name in enumerate(sorted(owner))}


def widen(tree: Tree, wiring: dict[str, Wire], sources: Owner) -> Tree:
    r"""Lets new features begin as copies of their sources, each copied input's weight divided among its copies.

    .. math:: W_{ij} \leftarrow \frac{W_{s(i) s(j)}}{|\{k : s(k) = s(i)\}|} \quad \text{where } s(j) \ne j

    A copy then computes what its source does. Weights into features that are no copies stay as they are: those from
    copies are for `cut_interference` to set to 0, and then these features compute what they did.

    Args:
      tree: params, focused on a task; or a collection such as `batch_stats`, whose leaves have the gate of the same
        module's affines.
      wiring: wires by path, of `layout`.
      sources: of `draw_sources`.

    Returns:
      The tree.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.ownership import widen
      >>> from cljax.types import Wire
      >>> wires = {'lower': Wire('lower', None, 'a'), 'upper': Wire('upper', 'a', 'b')}
      >>> sources = {'a': jnp.array([0, 1, 1]), 'b': jnp.array([0, 0])}
      >>> params = {'lower': jnp.array([[5.0, 6.0, 0.0]]), 'upper': jnp.array([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]])}
      >>> widen(params, wires, sources)
      {'lower': Array([[5., 6., 6.]], dtype=float32), 'upper': Array([[1., 1.],
             [2., 1.],
             [3., 1.]], dtype=float32)}

    Reference: Chen, Goodfellow and Shlens, Net2Net: Accelerating Learning via Knowledge Transfer, 2016, section 2.2.
    """
    modules = {path.rpartition("/")[0]: wire for path, wire in wiring.items() if wire.inputs is None}

    def copy(path: str, leaf: Array) -> Array:
        wire = wiring.get(path) or modules.get(path.rpartition("/")[0])
        if wire is None or wire.outputs is None:
            return leaf
        last = sources[wire.outputs]
        copied = jnp.take(leaf, last, axis=-1)
        if wire.inputs is not None:
            source = sources[wire.inputs]
            copies = jnp.zeros_like(source).at[source].add(1)[source]
            starts = jnp.arange(wire.repeat, dtype=jnp.int32)[:, None] * source.size
            copied = jnp.take(copied, (starts + source[None, :]).reshape(-1), axis=-2)
            copied = copied / jnp.tile(copies, wire.repeat).astype(leaf.dtype).reshape(*(1,) * (leaf.ndim - 2), -1, 1)
        new = last != jnp.arange(last.size, dtype=jnp.int32)
        return jnp.where(new.reshape(*(1,) * (leaf.ndim - 1), -1), copied, leaf)

    return task_params.map_leaves(copy, tree)
