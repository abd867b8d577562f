"""Splitting: features that a later task has changed get a copy for it, and are again what they were."""

from __future__ import annotations

import jax.numpy as jnp
from jax.typing import ArrayLike

from cljax import task_params
from cljax.ownership import masks
from cljax.ownership.gates import Owner, outer, shaped
from cljax.types import Array, Tree, Wire


def between(leaf: Array, wire: Wire, features: Owner) -> Array:
    """The weights of a leaf whose both ends are among these features; an end without a gate is.

    Args:
      leaf: of params.
      wire: the leaf's.
      features: `{gate: [C] bool}`.

    Returns:
      float32 of 0 and 1 that broadcasts to the leaf, one axis for each of its.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.ownership import between
      >>> from cljax.types import Wire
      >>> marked = {'a': jnp.array([True, False]), 'b': jnp.array([False, True, True])}
      >>> between(jnp.ones([2, 3]), Wire('w', 'a', 'b'), marked).tolist()
      [[0.0, 1.0, 1.0], [0.0, 0.0, 0.0]]
    """
    first, last = (None if gate is None else features[gate] for gate in (wire.inputs, wire.outputs))
    return outer(leaf, first, last, wire.repeat)


def incoming_norms(tree: Tree, wiring: dict[str, Wire]) -> Owner:
    r"""The Euclidean norm of all that leads into each feature: weights from all inputs and places, and the bias.

    .. math:: \sqrt{\textstyle\sum_i W_{ij}^2 + b_j^2}

    Args:
      tree: params, or a tree like them.
      wiring: wires by path, of `layout`.

    Returns:
      `{gate: [C] float32}`.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.ownership import incoming_norms
      >>> from cljax.types import Wire
      >>> wires = {'kernel': Wire('kernel', None, 'gate'), 'bias': Wire('bias', None, 'gate')}
      >>> incoming_norms({'kernel': jnp.array([[3.0, 0.0]]), 'bias': jnp.array([4.0, 0.0])}, wires)['gate'].tolist()
      [5.0, 0.0]
    """
    squares: dict[str, Array] = {}
    for path, leaf in task_params.by_path(tree).items():
        gate = wiring[path].outputs if path in wiring else None
        if gate is not None:
            square = jnp.sum(jnp.square(leaf.astype(jnp.float32)), axis=tuple(range(leaf.ndim - 1)))
            squares[gate] = squares[gate] + square if gate in squares else square
    root = lambda square: jnp.sqrt(jnp.where(square == 0, 1, square))  # whose slope at 0 is infinite
    return {gate: jnp.where(square == 0, 0, root(square)) for gate, square in squares.items()}


def scale_incoming(tree: Tree, wiring: dict[str, Wire], factors: Owner) -> Tree:
    """Multiplies all that leads into a feature, its weights and its bias, by the feature's factor.

    Args:
      tree: params.
      wiring: wires by path, of `layout`.
      factors: `{gate: [C] float32}`.

    Returns:
      The params.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.ownership import scale_incoming
      >>> from cljax.types import Wire
      >>> scale_incoming({'w': jnp.ones([2, 2])}, {'w': Wire('w', None, 'gate')}, {'gate': jnp.array([1.0, 0.5])})
      {'w': Array([[1. , 0.5],
             [1. , 0.5]], dtype=float32)}
    """

    def scale(path: str, leaf: Array) -> Array:
        gate = wiring[path].outputs if path in wiring else None
        return leaf if gate is None else leaf * shaped(leaf, factors[gate].astype(leaf.dtype)[None, :])

    return task_params.map_leaves(scale, tree)


def drift(params: Tree, previous: Tree, wiring: dict[str, Wire], owner: Owner, task: ArrayLike) -> Owner:
    r"""How far a task has moved what leads into each feature, from inputs that older tasks see.

    .. math:: \rho_j = \sqrt{\textstyle\sum_{i : \mathrm{owner}_i < t} (W_{ij} - W^{t-1}_{ij})^2 + (b_j - b^{t-1}_j)^2}

    Args:
      params: focused on the task.
      previous: those before the task, None for leaves that belong to a task.
      wiring: wires by path, of `layout`.
      owner: owners of each gate's features.
      task: int scalar, t.

    Returns:
      `{gate: [C] float32}`.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.ownership import drift
      >>> from cljax.types import Wire
      >>> wires, owner = {'w': Wire('w', 'a', 'b')}, {'a': jnp.array([0, 0, 1]), 'b': jnp.array([0])}
      >>> drift({'w': jnp.array([[3.0], [4.0], [9.0]])}, {'w': jnp.zeros([3, 1])}, wires, owner, 1)['b'].tolist()
      [5.0]

    Reference: Yoon et al., Lifelong Learning with Dynamically Expandable Networks, 2018.
    """
    before, older = task_params.by_path(previous), jnp.asarray(task, jnp.int32) - 1

    def change(path: str, leaf: Array) -> Array:
        if path not in before:
            return jnp.zeros_like(leaf)
        moved, gate = leaf - before[path], wiring[path].inputs if path in wiring else None
        if gate is None:
            return moved
        seen = jnp.tile(masks.visible(owner[gate], older), wiring[path].repeat)[:, None]
        return jnp.where(shaped(leaf, seen), moved, jnp.zeros_like(moved))

    return incoming_norms(task_params.map_leaves(change, params), wiring)


def claim_copies(owner: Array, task: ArrayLike, drift: Array, *, threshold: ArrayLike) -> tuple[Array, Array]:
    """Gives a task a free feature for each older one that has drifted; the most drifted first, where few are free.

    Args:
      owner: `[C]` int32, of one gate.
      task: int scalar.
      drift: `[C]` float.
      threshold: what a feature's drift must exceed.

    Returns:
      The owners, `[C]` int32; and the place that each feature is a copy of, `[C]` int32: of those that are none, their
      own.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.ownership import claim_copies, masks
      >>> owner, sources = claim_copies(jnp.array([0, 0, masks.FREE]), 1, jnp.array([0.2, 0.3, 0.0]), threshold=0.1)
      >>> owner.tolist(), sources.tolist()
      ([0, 0, 1], [0, 1, 1])

    Reference: Yoon et al., Lifelong Learning with Dynamically Expandable Networks, 2018; its public code
    sorts in ascending order, and so copies the least drifted.
    """
    task = jnp.asarray(task, jnp.int32)
    drifted, free = (owner < task) & (drift > jnp.asarray(threshold, drift.dtype)), owner == masks.FREE
    order = jnp.argsort(jnp.where(drifted, -drift, jnp.inf), stable=True).astype(jnp.int32)
    rank = jnp.cumsum(free, dtype=jnp.int32) - 1
    new = free & (rank < jnp.sum(drifted, dtype=jnp.int32))
    places = jnp.arange(owner.size, dtype=jnp.int32)
    return jnp.where(new, task, owner), jnp.where(new, order[jnp.maximum(rank, 0)], places)


def split(params: Tree, previous: Tree, wiring: dict[str, Wire], owner: Owner, task: ArrayLike, sources: Owner) -> Tree:
    r"""Splits features: a copy takes over what a task has made of them, and they are again what they were before it.

    For weights into the task's own features and its head, with $s(k) = i$ where k is the copy of i,

    .. math:: W_{kj} \leftarrow W_{i s(j)}, \qquad W_{ij} \leftarrow 0

    and from features that are neither, $W_{ij} \leftarrow W_{i s(j)}$. What leads into the older feature i is
    $W^{t-1}$ again, and copies do not feed older features. So where all that has changed is split, the task computes
    what it did, and older tasks what they did before it.

    Args:
      params: focused on the task.
      previous: those before the task, None for leaves that belong to a task.
      wiring: wires by path, of `layout`.
      owner: owners of each gate's features, the copies being the task's.
      task: int scalar, t.
      sources: `{gate: [C] int32}`, the place that a feature is a copy of; of those that are none, their own.

    Returns:
      The params.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.ownership import split
      >>> from cljax.types import Wire
      >>> wires = {'w': Wire('w', None, 'a'), 'head': Wire('head', 'a', None)}
      >>> params = {'w': jnp.array([[5.0, 6.0, 0.0]]), 'head': jnp.array([[1.0], [2.0], [0.0]])}
      >>> previous = {'w': jnp.array([[5.0, 4.0, 0.0]]), 'head': None}
      >>> split(params, previous, wires, {'a': jnp.array([0, 0, 1])}, 1, {'a': jnp.array([0, 1, 1])})
      {'head': Array([[1.],
             [0.],
             [2.]], dtype=float32), 'w': Array([[5., 4., 6.]], dtype=float32)}

    Reference: Yoon et al., Lifelong Learning with Dynamically Expandable Networks, 2018. Which edges a
    copy gets is ours.
    """
    before = task_params.by_path(previous)
    copies = {gate: source != jnp.arange(source.size, dtype=jnp.int32) for gate, source in sources.items()}
    halved = {gate: jnp.zeros_like(new).at[sources[gate]].max(new) for gate, new in copies.items()}

    def one(path: str, leaf: Array) -> Array:
        wire, zeros = wiring.get(path), jnp.zeros_like(leaf)
        if wire is None:
            return leaf
        kept = before.get(path, leaf)
        moved, stays = leaf, leaf
        if wire.outputs is not None:
            moved = jnp.take(moved, sources[wire.outputs], axis=-1)
            stays = jnp.where(shaped(leaf, halved[wire.outputs][None, :]), kept, leaf)
        if wire.inputs is not None:
            source, times = sources[wire.inputs], jnp.arange(wire.repeat, dtype=jnp.int32)[:, None]
            rows = lambda marks: shaped(leaf, jnp.tile(marks, wire.repeat)[:, None])
            moved = jnp.take(moved, (times * source.size + source[None, :]).reshape(-1), axis=-2)
            moved = jnp.where(rows(halved[wire.inputs]), zeros, moved)
            stays = jnp.where(rows(copies[wire.inputs]), zeros, stays)
        if wire.outputs is None:
            return moved
        return jnp.where(shaped(leaf, masks.learnable(owner[wire.outputs], task)[None, :]), moved, stays)

    return task_params.map_leaves(one, params)
