r"""Ownership: one integer per feature, or per weight, says which task made it; every mask follows from it.

`owner[c]` is the task that made feature c, or `FREE`. Tasks are numbered by first visit, so `owner <= task` are the
features that a task may use, its own and all older ones, and `owner == task` those that it alone may change. A network
grows by claiming free features, and makes room by releasing its own. All functions work under `jit` with the task as
data, but for `extract` and `embed`, whose gates are known: shapes follow from them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from cljax.numbers import INT32, check_dtype, check_option, check_shape, real, whole
from cljax.task_params import leaf_paths, map_leaves
from cljax.types import Array, Tree, Wire

Rule = Literal["ternary", "pruning"]
FREE = INT32
"""The owner of a feature that no task has claimed: larger than every task, so that no task sees it."""


def visible(owner: Array, task: ArrayLike) -> Array:
    r"""The features that a task uses in its forward pass, its own and those of older tasks.

    .. math:: n^t_c = [\mathrm{owner}_c \le t]

    Args:
      owner: `[...]` int32.
      task: int scalar.

    Returns:
      `[...]` bool.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.ownership.masks import FREE, visible
      >>> visible(jnp.array([0, 1, 2, FREE]), 1).tolist()
      [True, True, False, False]

    Reference: Masana et al., Ternary Feature Masks, 2021, section 3.
    """
    check_dtype("owner", owner, "int32")
    return owner <= jnp.asarray(task, jnp.int32)


def learnable(owner: Array, task: ArrayLike) -> Array:
    r"""The features that a task made, and may change.

    .. math:: m^t_c = [\mathrm{owner}_c = t]

    Args:
      owner: `[...]` int32.
      task: int scalar.

    Returns:
      `[...]` bool; disjoint for different tasks.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.ownership.masks import FREE, learnable
      >>> learnable(jnp.array([0, 1, 2, FREE]), 1).tolist()
      [False, True, False, False]

    Reference: Masana et al., Ternary Feature Masks, 2021, section 3.
    """
    check_dtype("owner", owner, "int32")
    return owner == jnp.asarray(task, jnp.int32)


def ternary(owner: Array, task: ArrayLike) -> Array:
    r"""The three states of features: 0 masked, 1 used in the forward pass only, 2 used and learned.

    .. math:: n^t_c + m^t_c

    Args:
      owner: `[...]` int32.
      task: int scalar.

    Returns:
      `[...]` uint8; `pack` stores four in a byte.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.ownership.masks import FREE, ternary
      >>> ternary(jnp.array([0, 1, 2, FREE]), 1).tolist()
      [1, 2, 0, 0]

    Reference: Masana et al., Ternary Feature Masks, 2021, section 3.
    """
    return visible(owner, task).astype(jnp.uint8) + learnable(owner, task).astype(jnp.uint8)


def _ends(owner_in: Array | None, owner_out: Array | None, repeat: int, head: ArrayLike) -> tuple[Array, Array]:
    """Owners of a weight's ends, `[Cin * repeat, 1]` (or `[1, 1]`) and `[1, Cout]` (or `[1, 1]`)."""
    repeat = whole("repeat", repeat, least=1)
    first = jnp.zeros([1], jnp.int32) if owner_in is None else jnp.tile(owner_in, repeat)
    last = jnp.asarray(head, jnp.int32)[None] if owner_out is None else owner_out
    for name, owner in (("owner_in", first), ("owner_out", last)):
        check_shape(name, owner, "features")
        check_dtype(name, owner, "int32")
    return first[:, None], last[None, :]


def weight_mask(
    owner_in: Array | None,
    owner_out: Array | None,
    task: ArrayLike,
    *,
    repeat: int = 1,
    rule: Rule = "ternary",
) -> Array:
    r"""The weights that a task may change, from the owners of the features at both ends.

    .. math::
        \text{ternary:} \quad [\max(\mathrm{in}_i, \mathrm{out}_j) = t], \qquad
        \text{pruning:} \quad [\mathrm{in}_i \le t \wedge \mathrm{out}_j = t]

    By `'ternary'` a task changes all weights that touch a feature of its own, also those from its new features into old
    ones: older tasks do not see the new features. By `'pruning'` it changes only weights into features of its own, for
    there features are seen by all tasks, and weights from new to old ones must stay 0 (see `interference`). Either way
    no weight is changed by two tasks.

    Args:
      owner_in: `[Cin]` int32, of the input features; None where the inputs are always there: they count as made by
        task 0.
      owner_out: `[Cout]` int32, of the output features; None for a head of the task's own.
      task: int scalar.
      repeat: how often the input features repeat, by `jnp.tile` (`H * W` after flattening `[H, W, C]`).
      rule: see above.

    Returns:
      `[Cin * repeat, Cout]` float32 of 0 and 1, with 1 in place of an axis whose owner is None. It broadcasts to a
      dense kernel; put axes of length 1 in front for a convolution's `[h, w, Cin, Cout]`. With `owner_in` None,
      row 0 is the mask of the biases, and of the normalisation's affines.

    Raises:
      ValueError: for any other rule, or a repeat below 1.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.ownership.masks import FREE, weight_mask
      >>> weight_mask(jnp.array([0, 1]), jnp.array([0, 1, FREE]), 1).tolist()
      [[0.0, 1.0, 0.0], [1.0, 1.0, 0.0]]
      >>> weight_mask(jnp.array([0, 1]), jnp.array([0, 1, FREE]), 1, rule='pruning').tolist()
      [[0.0, 1.0, 0.0], [0.0, 1.0, 0.0]]

    Reference: Masana et al., Ternary Feature Masks, 2021, equations 5 and 6; Golkar et al., Continual Learning via
    Neural Pruning, 2019, algorithm 1.
    """
    first, last = _ends(owner_in, owner_out, repeat, task)
    check_option("rule", rule, Rule)
    if rule == "ternary":
        return learnable(jnp.maximum(first, last), task).astype(jnp.float32)
    return (visible(first, task) & learnable(last, task)).astype(jnp.float32)


def interference(owner_in: Array, owner_out: Array, *, repeat: int = 1) -> Array:
    r"""The weights through which newer features would disturb older ones; pruning sets them to 0.

    .. math:: [\mathrm{in}_i > \mathrm{out}_j]

    Args:
      owner_in: `[Cin]` int32.
      owner_out: `[Cout]` int32.
      repeat: how often the input features repeat, as of `weight_mask`.

    Returns:
      `[Cin * repeat, Cout]` bool.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.ownership.masks import FREE, interference
      >>> interference(jnp.array([0, FREE]), jnp.array([0, 1, FREE])).tolist()
      [[False, False, False], [True, True, False]]

    Reference: Golkar et al., Continual Learning via Neural Pruning, 2019, section 2.1.
    """
    first, last = _ends(owner_in, owner_out, repeat, 0)
    return first > last


def claim(owner: Array, task: ArrayLike, count: ArrayLike) -> Array:
    """Gives the first free features to a task: the network grows.

    Args:
      owner: `[...]` int32; the order is that of the flattened array.
      task: int scalar.
      count: int scalar, traced or not, how many; all, where fewer are free.

    Returns:
      The new owners, `[...]` int32.

    Raises:
      ValueError: a count that is no whole number of at least 0.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.ownership.masks import FREE, claim
      >>> claim(jnp.array([0, FREE, 0, FREE, FREE]), 1, 2).tolist()
      [0, 1, 0, 1, 2147483647]
    """
    check_dtype("owner", owner, "int32")
    count = count if isinstance(count, jax.core.Tracer) else whole("count", count)
    free = owner == FREE
    place = jnp.cumsum(free.ravel(), dtype=jnp.int32).reshape(owner.shape)
    return jnp.where(free & (place <= jnp.asarray(count, jnp.int32)), jnp.asarray(task, jnp.int32), owner)


def prune_by_activity(owner: Array, task: ArrayLike, activity: Array, *, threshold: ArrayLike) -> Array:
    r"""Frees those of a task's features whose average activity is not above a threshold.

    .. math:: \mathrm{owner}_c \leftarrow \mathrm{FREE} \text{ where } \mathrm{owner}_c = t \wedge a_c \le \theta

    Args:
      owner: `[C]` int32.
      task: int scalar.
      activity: `[C]` float, the average absolute activation over the task's examples (and over space), in evaluation
        mode.
      threshold: :math:`\theta`, at least 0, a scalar or `[C]`. At 0 only dead features go, and the function stays as it
        is.

    Returns:
      The new owners, `[C]` int32.

    Raises:
      ValueError: a threshold that is negative or not finite.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.ownership.masks import prune_by_activity
      >>> prune_by_activity(jnp.array([0, 1, 1]), 1, jnp.array([0.0, 0.0, 0.2]), threshold=0.1).tolist()
      [0, 2147483647, 1]

    Reference: Golkar et al., Continual Learning via Neural Pruning, 2019, section 2.2.
    """
    check_shape("activity", activity, *owner.shape)
    if not isinstance(threshold, jax.core.Tracer):
        for one in np.ravel(np.asarray(threshold)):
            real("threshold", one, least=0)
    threshold = jnp.asarray(threshold, activity.dtype)
    if threshold.size > 1:
        check_shape("threshold", threshold, *owner.shape)
    dead = activity <= threshold  # what is NaN is kept, and seen
    return jnp.where(learnable(owner, task) & dead, FREE, owner)


def prune_by_magnitude(weights: Array, owner: Array, task: ArrayLike, *, fraction: ArrayLike) -> Array:
    r"""Frees that fraction of a task's weights whose absolute values are smallest.

    .. math:: \mathrm{owner}_i \leftarrow \mathrm{FREE} \text{ where } \mathrm{owner}_i = t \wedge |w_i| \le q

    with q the k-th smallest absolute value among the n weights of the task, k = round(fraction * n). Ties with it go
    too. Freed weights should then be set to 0, wherever the owner is `FREE`.

    Args:
      weights: `[...]` float, one layer's: the fraction is per layer.
      owner: `[...]` int32, of each weight.
      task: int scalar.
      fraction: scalar in [0, 1].

    Returns:
      The new owners, `[...]` int32.

    Raises:
      ValueError: a fraction outside [0, 1].

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.ownership.masks import prune_by_magnitude
      >>> weights, owner = jnp.array([0.1, -3.0, 2.0, -0.2, 1.0]), jnp.array([0, 1, 1, 1, 1])
      >>> prune_by_magnitude(weights, owner, 1, fraction=0.5).tolist()
      [0, 1, 1, 2147483647, 2147483647]

    Reference: Mallya and Lazebnik, PackNet, 2018, section 3.
    """
    check_shape("owner", owner, *weights.shape)
    fraction = real("fraction", fraction, least=0, most=1)
    own, size = learnable(owner, task), jnp.abs(weights)
    count = jnp.sum(own, dtype=jnp.int32)
    pruned = jnp.round(jnp.asarray(fraction, jnp.float32) * count.astype(jnp.float32)).astype(jnp.int32)
    ranked = jnp.sort(jnp.where(own, size, jnp.inf).ravel())
    cut = jnp.where(pruned > 0, ranked[jnp.maximum(pruned - 1, 0)], -jnp.inf)
    return jnp.where(own & (size <= cut), FREE, owner)


def pack(states: Array) -> Array:
    """Packs two-bit states, four in a byte.

    Args:
      states: `[..., C]` uint8 in 0 to 3, as `ternary` gives.

    Returns:
      `[..., ceil(C / 4)]` uint8; the first state is in the lowest bits.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.ownership.masks import pack
      >>> pack(jnp.array([1, 2, 0, 0, 3], jnp.uint8)).tolist()
      [9, 3]
    """
    check_dtype("states", states, "uint8")
    count = states.shape[-1]
    padded = jnp.pad(states, [(0, 0)] * (states.ndim - 1) + [(0, -count % 4)])
    quads = padded.reshape(*states.shape[:-1], -1, 4)
    first, second, third, fourth = (quads[..., index] << jnp.uint8(2 * index) for index in range(4))
    return first | second | third | fourth


def unpack(packed: Array, count: int) -> Array:
    """Undoes `pack`.

    Args:
      packed: `[..., ceil(C / 4)]` uint8.
      count: C.

    Returns:
      `[..., C]` uint8 in 0 to 3.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.ownership.masks import unpack
      >>> unpack(jnp.array([9, 3], jnp.uint8), 5).tolist()
      [1, 2, 0, 0, 3]
    """
    check_dtype("packed", packed, "uint8")
    count = whole("count", count)
    check_shape("packed", packed, ..., -(-count // 4))
    quads = jnp.stack([(packed >> jnp.uint8(2 * index)) & jnp.uint8(3) for index in range(4)], axis=-1)
    return quads.reshape(*packed.shape[:-1], -1)[..., :count]


def _kept(tree: Tree, wiring: Sequence[Wire], gates: Mapping[str, ArrayLike]) -> dict[str, dict[int, np.ndarray]]:
    """By leaf path, the places kept along each cut axis: of params, or of collections, whose leaves have no wires."""
    kept = {name: np.asarray(gate, bool) for name, gate in gates.items()}
    wires, paths = {wire.path: wire for wire in wiring}, leaf_paths(tree)
    if not set(wires) & set(paths):
        modules = {wire.path.rpartition("/")[0]: wire.outputs for wire in wiring if wire.inputs is None}
        own = {f"{collection}/{gate}": gate for collection in ("gates", "frozen") for gate in kept}
        outputs = {path: own.get(path) or modules.get(path.partition("/")[2].rpartition("/")[0]) for path in paths}
        found = {path: Wire(path, None, gate) for path, gate in outputs.items() if gate}
        wires = found or wires
    if (stray := sorted(set(wires) - set(paths))) and paths:
        raise ValueError(f"The wiring names '{stray[0]}', which is no leaf of params: {', '.join(paths)}.")

    def places(path: str, leaf: Array) -> dict[int, np.ndarray]:
        _, first, last, repeat = wires.get(path, Wire(path, None, None))
        found: dict[int, np.ndarray] = {}
        for gate, axis, times in ((first, leaf.ndim - 2, repeat), (last, leaf.ndim - 1, 1)):
            if gate is None:
                continue
            if leaf.shape[axis] != len(kept[gate]) * times:
                raise ValueError(
                    f"The gate '{gate}' has {len(kept[gate])} features, {times} times, but '{path}' has the shape "
                    f"{leaf.shape}. Check the wiring's repeat and the gate's length."
                )
            found[axis] = np.flatnonzero(np.tile(kept[gate], times))
        return found

    return {path: places(path, leaf) for path, leaf in zip(paths, jax.tree.leaves(tree), strict=True)}


def extract(tree: Tree, wiring: Sequence[Wire], gates: Mapping[str, ArrayLike]) -> Tree:
    """Cuts a task's sub-network out of the parameters, or the collections: a smaller network of its own. On the host.

    A network of `cljax.networks` computes with whatever widths its parameters have, and so `network.apply` of the small
    params and the small collections is the small network. Its logits are the gated network's up to rounding, as sums
    are over fewer terms. With the trees of `networks.export_task`, `collections['gates']` are the gates.

    Args:
      tree: nested dicts of arrays, params or collections, focused on the task (one head).
      wiring: the network's wiring; leaves of params without a wire are kept whole. Of collections, the gates and the
        frozen flags are cut, and the statistics of each module whose affines are wired.
      gates: `{gate: [C] bool}`, the features to keep, such as `visible(owner, task)`.

    Returns:
      The tree with each leaf cut to the kept features on its last axis, and on the one before for its inputs.

    Raises:
      ValueError: where a wire's path is no leaf, or a gate does not fit its leaf.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.ownership.masks import extract
      >>> from cljax.types import Wire
      >>> wiring = [Wire('hidden', None, 'gate'), Wire('head', 'gate', None)]
      >>> params = {'hidden': jnp.ones([4, 3]), 'head': jnp.ones([3, 2])}
      >>> small = extract(params, wiring, {'gate': [True, False, True]})
      >>> small['hidden'].shape, small['head'].shape
      ((4, 2), (2, 2))
    """
    kept = _kept(tree, wiring, gates)

    def cut(path: str, leaf: Array) -> Array:
        for axis, places in kept[path].items():
            leaf = jnp.take(leaf, places, axis=axis)
        return leaf

    return map_leaves(cut, tree)


def embed(tree: Tree, small: Mapping[str, ArrayLike], wiring: Sequence[Wire], gates: Mapping[str, ArrayLike]) -> Tree:
    """Puts a smaller network's leaves into a wider one's, at the kept features: undoes `extract`.

    Args:
      tree: of the wider network, params or collections.
      small: the smaller one's leaves by path; those that are not given stay as they are.
      wiring: the wider network's.
      gates: `{gate: [C] bool}`, which features are the smaller one's.

    Returns:
      The tree; what leads to other features, or comes from them, is as it was.

    Raises:
      ValueError: as of `extract`, and for a leaf of another shape than the features kept.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.ownership.masks import embed
      >>> from cljax.types import Wire
      >>> wiring = [Wire('head', 'gate', None)]
      >>> embed({'head': jnp.zeros([3, 1])}, {'head': jnp.ones([2, 1])}, wiring, {'gate': [True, False, True]})
      {'head': Array([[1.], [0.], [1.]], dtype=float32)}
    """
    kept = _kept(tree, wiring, gates)

    def put(path: str, leaf: Array) -> Array:
        if path not in small:
            return leaf
        value = jnp.asarray(small[path]).astype(leaf.dtype)
        axes = [kept[path].get(axis, np.arange(size)) for axis, size in enumerate(leaf.shape)]
        if value.shape != tuple(map(len, axes)):
            raise ValueError(f"'{path}' has shape {value.shape}, but its kept features need {tuple(map(len, axes))}.")
        return value if value.shape == leaf.shape else jnp.asarray(leaf).at[np.ix_(*axes)].set(value)

    return map_leaves(put, tree)
