"""Methods in which tasks own features: what a task sees and trains follows from one owner a feature."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from cljax import ownership
from cljax.methods.common import everything, plain
from cljax.ownership import masks
from cljax.types import Array, Clock, Learner, Method, Network, Sizes, Tree


class Owned(NamedTuple):
    """What such a method keeps: the task that made each feature, `{gate: [C] int32}`.

    `masks.pack(masks.ternary(owner, t))` is task t's mask in two bits a feature.
    """

    owner: ownership.Owner


def owned(
    name: str,
    network: Network,
    layout: ownership.Layout,
    *,
    rule: masks.Rule,
    sees: Literal["own", "older", "all"] = "older",
    numbers: Mapping[str, float] = MappingProxyType({}),
) -> Method:
    """Fine-tuning of the features that a task owns, through gates that hide what later tasks own.

    Args:
      name: the method's.
      network: with gates.
      layout: of `ownership.layout`.
      rule: which shared weights a task trains, see `masks.weight_mask`.
      sees: which features a task sees: its own alone; those of older tasks too, except in a layer that feeds a shared
        head; or all that are not free, whoever made them, and these it also trains.
      numbers: the hyper-parameters, as of `plain`.

    Returns:
      The method, all features being free. What claims and releases them is for its hooks to say.

    Example:
      >>> from cljax import networks
      >>> network = networks.mlp((8, 8, 1), 2, hidden=(4,))
      >>> owned('mine', network, ownership.layout('mine', network), rule='ternary').zero_forgetting
      True
    """
    gates = {wire.outputs for wire in layout.wires.values()} if sees == "own" else {layout.shared_head}
    own = tuple(gate for gate in gates if gate is not None)

    def of_first(owner: ownership.Owner) -> ownership.Owner:
        """The owners, as if the first task had made all that is not free."""
        return jax.tree.map(lambda leaf: jnp.where(leaf == masks.FREE, leaf, 0), owner)

    def view(params: Tree, collections: Tree, method_state: Owned, task: Array, newest: Array | None):
        if sees == "all":
            return params, ownership.apply_gates(collections, of_first(method_state.owner), 0, own=own)
        return params, ownership.apply_gates(collections, method_state.owner, task, newest=newest, own=own)

    base = plain(name, network, view=view, numbers=numbers)

    def init(key: Array, sizes: Sizes) -> tuple[Tree, Tree, Tree, dict[str, Array]]:
        params, collections, _, hyper = base.init(key, sizes)
        return params, collections, Owned(ownership.unowned(collections)), hyper

    def update_mask(learner: Learner, clock: Clock) -> tuple[Tree, Tree]:
        owner = learner.method_state.owner
        if sees == "all":
            owner, clock = of_first(owner), clock._replace(task=jnp.int32(0), newest=jnp.int32(0))
        mask = ownership.update_mask(learner.params, layout.wires, owner, clock, learner.rows, rule=rule)
        return mask, everything(learner.collections)

    return base._replace(init=init, update_mask=update_mask, zero_forgetting=sees != "all")


def check_heads(name: str, layout: ownership.Layout, why: str) -> None:
    """Checks that each task has a head of its own.

    Args:
      name: the method's.
      layout: of `ownership.layout`.
      why: it needs one.

    Raises:
      ValueError: tasks share it.
    """
    if layout.shared_head:
        raise ValueError(
            f"{name} needs a head for each task, {why}. Let the head belong to a task: "
            f"network._replace(per_task=('head/kernel', 'head/bias')); or choose clnp, which can divide a shared "
            f"head's inputs among tasks."
        )


def check_statistics(name: str, network: Network) -> None:
    """Checks that normalisation statistics, where tasks share them, can be frozen for features that earlier tasks use.

    Args:
      name: the method's.
      network: with gates.

    Raises:
      ValueError: where they cannot.
    """
    _, collections = network.shapes
    own = [path for path in network.per_task if path.startswith("batch_stats/")]
    if "batch_stats" in collections and ("frozen" not in collections or own):
        raise ValueError(
            f"{name} shares normalisation statistics among tasks and freezes them for older tasks' units, by the flags "
            "collections['frozen'], which this network lacks or contradicts (per_task holds statistics). Use a network "
            "of cljax.networks with normalization='batch', its norms shared; or one without batch normalisation. "
            "A module of your own has them where it takes networks.BatchNorm for every one of its norms, each gated."
        )
