r"""Owned networks: from one owner per feature to a network's gates, frozen channels and update masks.

`masks` is the algebra of single arrays; here it meets a whole network, by its wiring. `owner` is a dict with an
int32 array `[C]` for each gate: the task that made each feature, or `masks.FREE`. Methods that claim features (ternary
feature masks, neural pruning, growing networks) differ in when they claim and release, and in their weight rule; all
else is the same for them, and is in this module.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from cljax import task_params
from cljax.numbers import real
from cljax.ownership import masks
from cljax.types import Array, Clock, Network, Tree, Wire

Owner = dict[str, Array]
"""The owners of the features of each gate, `{gate: [C] int32}`."""


class Layout(NamedTuple):
    """What `layout` reads off a network's wiring.

    Attributes:
      wires: by leaf path.
      kernels: paths of the leaves with two axes or more, in the wiring's order; the head's is the last.
      affines: paths of the normalisations' leaves: those of modules that have no kernel.
      shared_head: the gate whose features feed logits that all tasks share; None where each task has a head.

    Example:
      >>> from cljax import networks, ownership
      >>> found = ownership.layout('tfm', networks.mlp((2,), 3, hidden=(4,)))
      >>> found.kernels, found.shared_head
      (('dense_0/kernel', 'head/kernel'), None)
    """

    wires: dict[str, Wire]
    kernels: tuple[str, ...]
    affines: tuple[str, ...]
    shared_head: str | None


def layout(name: str, network: Network) -> Layout:
    """Reads a network's wiring, and checks that every shared weight leads to features that can be owned.

    Args:
      name: the method's, for the errors.
      network: with gates.

    Returns:
      The layout.

    Raises:
      ValueError: where the network has no gates; where a leaf that all tasks share has no gate on its outputs (a
        shared head needs one on its inputs), so that nothing could keep later tasks from changing what it gives; where
        training changes a collection that tasks share, other than the statistics of batch normalisation.

    Example:
      >>> from cljax import networks
      >>> from cljax.ownership import layout
      >>> layout('clnp', networks.mlp((8, 8, 1), 2, hidden=(4,), normalization='batch'))[1:]
      (('dense_0/kernel', 'head/kernel'), ('norm_0/scale', 'norm_0/bias'), None)
    """
    params, collections = network.shapes
    shapes = {path: leaf.shape for path, leaf in task_params.by_path(params).items()}
    wires = {wire.path: wire for wire in network.wiring}
    if not wires or "gates" not in collections:
        raise ValueError(
            f"{name} owns the features of a network by their gates, but this network has none. Use one of "
            f"cljax.networks, or name the gated submodules: networks.from_linen(..., gates=('Dense_0',))."
        )
    kernels = tuple(path for path in wires if len(shapes[path]) > 1)
    modules = {_module(path) for path in kernels}
    last, owned = kernels[-1], {path for path, wire in wires.items() if wire.outputs is not None}
    head = wires[last].inputs if last not in owned and last not in network.per_task else None
    for path in shapes:
        if path not in owned and path not in network.per_task and not (head and _module(path) == _module(last)):
            raise ValueError(
                f"{name} needs a gate on the outputs of every leaf that tasks share, but '{path}' has none, so a later "
                f"task would change what earlier ones compute. Gate that layer, or let the leaf belong to a task: "
                f"network._replace(per_task=(*network.per_task, '{path}'))."
            )
    if moved := _moved(network, params, collections):
        raise ValueError(
            f"{name} freezes features, but not what a network keeps beside its parameters: '{moved[0]}', which tasks "
            f"share and training changes, would change what earlier tasks compute. Let it belong to a task: "
            f"network._replace(per_task=(*network.per_task, '{moved[0]}')); or leave it out."
        )
    affines = tuple(path for path in wires if path in owned and _module(path) not in modules)
    return Layout(wires, kernels, affines, head)


def _moved(network: Network, params: Tree, collections: Tree) -> list[str]:
    """The leaves of collections, but statistics, that tasks share and a step of training replaces."""
    shared = {
        path
        for path in task_params.leaf_paths(collections)
        if path.split("/")[0] not in ("gates", "frozen", "batch_stats")
    } - set(network.per_task)
    found: list[str] = []

    def train(params: Tree, collections: Tree, inputs: Array) -> None:
        output = network.apply(params, collections, inputs, key=jax.random.key(0))
        leaves = (jax.tree.leaves(tree) for tree in (collections, output.collections))
        found.extend(
            path
            for path, *both in zip(task_params.leaf_paths(collections), *leaves, strict=True)
            if both[0] is not both[1]
        )

    if shared:
        jax.eval_shape(train, params, collections, jax.ShapeDtypeStruct((1, *network.inputs), jnp.float32))
    return sorted(shared & set(found))


def _module(path: str) -> str:
    return path.rpartition("/")[0]


def unowned(collections: Tree) -> Owner:
    """Owners of a new network: every feature of every gate is free.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.ownership import unowned
      >>> unowned({'gates': {'dense_0': jnp.ones(2)}})['dense_0'].tolist()
      [2147483647, 2147483647]
    """
    return {name: jnp.full(gate.shape, masks.FREE, jnp.int32) for name, gate in collections["gates"].items()}


def owner_of(method_state: Tree, collections: Tree) -> Owner | None:
    """The owners of each gate's features, where a method's state has them as its `owner`; None for any other method.

    Example:
      >>> from cljax.ownership import owner_of
      >>> owner_of({}, {}) is None
      True
    """
    owner, gates = getattr(method_state, "owner", None), collections.get("gates", {})
    if not isinstance(owner, dict) or set(owner) != set(gates):
        return None
    return owner if all(jnp.shape(owner[name]) == jnp.shape(gates[name]) for name in gates) else None


def claim(owner: Owner, task: ArrayLike, part: ArrayLike) -> Owner:
    """Gives a task the next free features of each gate; none where it has some already, as those of given parameters.

    Args:
      owner: owners of each gate's features.
      task: int scalar.
      part: in [0, 1], of all of a gate's features, rounded up; as many as are free.

    Returns:
      The owners.

    Raises:
      ValueError: another part.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.ownership import claim, masks
      >>> claim({'gate': jnp.array([0, masks.FREE, masks.FREE])}, 1, 0.3)['gate'].tolist()
      [0, 1, 2147483647]
    """
    part = real("part", part, least=0, most=1)
    had = jnp.any(jnp.stack([jnp.any(masks.learnable(leaf, task)) for leaf in owner.values()]))

    def more(leaf: Array) -> Array:
        # A number such as 0.1 is a little more than a tenth in float32, and 3.0000001 features are three.
        slack = max(1e-4, 2e-7 * leaf.size)
        count = jnp.ceil(jnp.asarray(part, jnp.float32) * jnp.float32(leaf.size) - jnp.float32(slack))
        return masks.claim(leaf, task, jnp.where(had, 0, count.astype(jnp.int32)))

    return jax.tree.map(more, owner)


def replace_owner(method_state: Tree, owner: Owner) -> Tree:
    """A method's state with other owners; of a combination, its base's.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.methods.owned import Owned
      >>> from cljax.ownership import replace_owner
      >>> replace_owner(Owned({'gate': jnp.zeros(2)}), {'gate': jnp.ones(2)}).owner['gate'].tolist()
      [1.0, 1.0]
    """
    if hasattr(method_state, "base"):
        return method_state._replace(base=replace_owner(method_state.base, owner))
    return method_state._replace(owner=owner)


def apply_gates(
    collections: Tree, owner: Owner, task: ArrayLike, *, newest: ArrayLike | None = None, own: tuple[str, ...] = ()
) -> Tree:
    r"""The collections with which a network computes a task: gates open for what it sees, older channels frozen.

    .. math:: \mathrm{gate}_c = [\mathrm{owner}_c \le t], \qquad
        \mathrm{frozen}_c = [\mathrm{owner}_c < t \vee t < \text{newest}]

    Args:
      collections: with `gates`, and `frozen` where batch normalisation has it.
      owner: owners of each gate's features.
      task: int scalar.
      newest: int scalar, the newest task so far; when an older one is visited again, every channel is frozen, as
        later tasks use them all. None: the task.
      own: gates that show a task its own features only, `owner == t`.

    Returns:
      The collections, of the same structure, shapes and dtypes.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.ownership import apply_gates
      >>> gates = apply_gates({'gates': {'dense_0': jnp.ones(3)}}, {'dense_0': jnp.array([0, 1, 2])}, 1)['gates']
      >>> gates['dense_0'].tolist()
      [1.0, 1.0, 0.0]
    """
    task_params.check_same("owner", owner, "the network's gates", collections["gates"])
    task = jnp.asarray(task, jnp.int32)
    revisited = task < (task if newest is None else jnp.asarray(newest, jnp.int32))

    def gate(name: str, leaf: Array) -> Array:
        return (masks.learnable if name in own else masks.visible)(owner[name], task).astype(leaf.dtype)

    shown = {**collections, "gates": {name: gate(name, leaf) for name, leaf in collections["gates"].items()}}
    if "frozen" in collections:
        shown["frozen"] = {name: (owner[name] < task) | revisited for name in collections["frozen"]}
    return shown


def update_mask(
    params: Tree,
    wiring: dict[str, Wire],
    owner: Owner,
    clock: Clock,
    stacks: task_params.Rows,
    *,
    rule: masks.Rule,
) -> Tree:
    """What a visit trains: weights by `masks.weight_mask`, and of the task's own row what it sees.

    A shared leaf is trained by its owner, and only while that is the newest task: later ones rely on it. A task's row
    is trained wherever its features are seen. Of a head that all tasks share, weights from the task's own features are
    trained, and no bias, which needs no wire.

    Args:
      params: focused.
      wiring: wires by path, of `layout`.
      owner: owners of each gate's features.
      clock: where the run stands.
      stacks: the learner's `rows`.
      rule: of the shared weights.

    Returns:
      A tree like params of float32 masks of 0 and 1 that broadcast, one axis for each of the leaf's.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax import task_params
      >>> from cljax.ownership import masks, update_mask
      >>> from cljax.types import Wire, make_clock
      >>> wires = {'hidden': Wire('hidden', None, 'gate'), 'head': Wire('head', 'gate', None)}
      >>> params = {'hidden': jnp.ones([4, 3]), 'head': jnp.ones([3, 2])}
      >>> owner = {'gate': jnp.array([0, 1, masks.FREE])}
      >>> found = update_mask(params, wires, owner, make_clock(task=1), task_params.resting(['head']), rule='ternary')
      >>> found['hidden'].tolist(), found['head'].tolist()
      ([[0.0, 1.0, 0.0]], [[1.0], [1.0], [0.0]])

    Reference: Masana et al., Ternary Feature Masks, 2021, equations 5 and 6; Golkar et al., Continual Learning via
    Neural Pruning, 2019, algorithm 1.
    """
    newest = (clock.task == clock.newest).astype(jnp.float32)

    def trained(path: str, leaf: Array) -> Array:
        mine = task_params.has_rows(path, stacks)
        if mine and path not in wiring:
            return jnp.float32(1.0)
        wire = wiring.get(path, Wire(path, None, None))
        entering = None if wire.inputs is None else owner[wire.inputs]
        leaving = None if wire.outputs is None else owner[wire.outputs]
        if mine:
            first, last = (None if end is None else masks.visible(end, clock.task) for end in (entering, leaving))
            return outer(leaf, first, last, wire.repeat)
        if leaving is None:
            own = jnp.zeros([1], jnp.bool_) if entering is None else masks.learnable(entering, clock.task)
            return newest * outer(leaf, own, None, wire.repeat if entering is not None else 1)
        mask = masks.weight_mask(entering, leaving, clock.task, repeat=wire.repeat, rule=rule)
        return newest * shaped(leaf, mask)

    return task_params.map_leaves(trained, params)


def shaped(leaf: Array, mask: Array) -> Array:
    """A mask `[a, b]` with as many axes as the leaf has, its last two in front of which are of length 1."""
    return mask[0] if leaf.ndim == 1 else mask.reshape((1,) * (leaf.ndim - 2) + mask.shape)


def outer(leaf: Array, first: Array | None, last: Array | None, repeat: int) -> Array:
    """The float32 mask of a leaf from bool masks of its ends; None: all."""
    one = jnp.ones([1], jnp.bool_)
    first, last = one if first is None else jnp.tile(first, repeat), one if last is None else last
    return shaped(leaf, first[:, None] & last[None, :]).astype(jnp.float32)


def _replace(params: Tree, values: Tree, where: Callable[[str], Array | None]) -> Tree:
    """Params, but the values where `where(path)`, a mask `[a, b]`, says so; None: nowhere."""

    def choose(path: str, leaf: Array, value: Array) -> Array:
        mask = where(path)
        return leaf if mask is None else jnp.where(shaped(leaf, mask), value.astype(leaf.dtype), leaf)

    return task_params.map_leaves(choose, params, values)


def cut_interference(
    params: Tree,
    wiring: dict[str, Wire],
    owner: Owner,
    task: ArrayLike,
    *,
    only_own: bool = False,
    both: bool = False,
) -> Tree:
    r"""Sets interference weights to 0: from a task's features and free ones into older, from unseen ones into its head.

    .. math:: W_{ij} \leftarrow 0 \text{ where } \mathrm{in}_i > \mathrm{out}_j \wedge \mathrm{in}_i \ge t

    Without them a network gives a task the same logits with all its gates open as with those of `apply_gates`. What is
    between features of older tasks stays: they may have trained it.

    Args:
      params: focused on the task.
      wiring: wires by path, of `layout`.
      owner: owners of each gate's features.
      task: int scalar, which owns the head in focus.
      only_own: whether only weights from the task's own features go, into those of older tasks.
      both: whether those from older features into the task's own go too, which is for tasks that see their own alone.

    Returns:
      The params.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.ownership import cut_interference
      >>> from cljax.types import Wire
      >>> params = {'head': jnp.ones([3, 1])}
      >>> wires, owner = {'head': Wire('head', 'gate', None)}, {'gate': jnp.array([0, 1, 2])}
      >>> cut_interference(params, wires, owner, 1)['head'].tolist()
      [[1.0], [1.0], [0.0]]

    Reference: Golkar et al., Continual Learning via Neural Pruning, 2019, section 2.1.
    """

    def disturbs(path: str) -> Array | None:
        wire = wiring.get(path)
        if wire is None or wire.inputs is None:
            return None
        last = jnp.asarray(task, jnp.int32)[None] if wire.outputs is None else owner[wire.outputs]
        first = owner[wire.inputs]
        cut = masks.learnable(first, task) if only_own else first >= jnp.asarray(task, jnp.int32)
        found = masks.interference(first, last, repeat=wire.repeat) & jnp.tile(cut, wire.repeat)[:, None]
        if both:
            found |= (jnp.tile(first, wire.repeat)[:, None] < last[None, :]) & masks.learnable(last, task)[None, :]
        return found

    return _replace(params, jax.tree.map(jnp.zeros_like, params), disturbs)


def reinitialize(tree: Tree, fresh: Tree, wiring: dict[str, Wire], owner: Owner, stacks: task_params.Rows) -> Tree:
    """Re-initialises what leads to free features: weights, biases, affines; of a shared head, what comes from them.

    Args:
      tree: params; or a collection such as `batch_stats`, whose leaves have the gate of the same module's affines.
      fresh: a tree like it, newly initialised.
      wiring: wires by path, of `layout`.
      owner: owners of each gate's features.
      stacks: the learner's `rows`; a task's own leaves are left alone.

    Returns:
      The tree.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax import task_params
      >>> from cljax.ownership import masks, reinitialize
      >>> from cljax.types import Wire
      >>> wires = {'hidden': Wire('hidden', None, 'gate')}
      >>> owner = {'gate': jnp.array([0, masks.FREE])}
      >>> old, new = {'hidden': jnp.zeros([1, 2])}, {'hidden': jnp.ones([1, 2])}
      >>> reinitialize(old, new, wires, owner, task_params.resting([]))
      {'hidden': Array([[0., 1.]], dtype=float32)}

    Reference: Golkar et al., Continual Learning via Neural Pruning, 2019, algorithm 1.
    """
    modules = {_module(path): wire for path, wire in wiring.items() if wire.inputs is None}

    def free(path: str) -> Array | None:
        wire = wiring.get(path) or modules.get(_module(path))
        if wire is None or task_params.has_rows(path, stacks):
            return None
        if wire.outputs is not None:
            return (owner[wire.outputs] == masks.FREE)[None, :]
        return None if wire.inputs is None else jnp.tile(owner[wire.inputs] == masks.FREE, wire.repeat)[:, None]

    return _replace(tree, fresh, free)
