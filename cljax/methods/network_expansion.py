"""Network expansion: new units in the last hidden layers for each new task, which begin as copies of older ones."""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp

from cljax import ownership, task_params
from cljax.methods.common import check_network, is_warm_up, warm_up_phases
from cljax.methods.owned import Owned, check_heads, check_statistics, owned
from cljax.numbers import check_option, real, whole
from cljax.ownership import masks
from cljax.types import Array, Clock, Fold, Learner, Method, Network, Tree

Old = Literal["frozen", "trained"]


def network_expansion(
    network: Network, *, growth: float = 0.25, layers: int = 2, old: Old = "frozen", warm_up: float = 0.25
) -> Method:
    r"""Network expansion: a task adds units to the last hidden layers, copies of older ones, and trains them.

    $$ W_{ij} \leftarrow \frac{W_{s(i) s(j)}}{|\{k : s(k) = s(i)\}|} \;\; (j \text{ new}), \qquad
    W_{ij} \leftarrow 0 \;\; (i \text{ new}, j \text{ old}) $$
    with s the older unit that a new one copies, drawn at random, and a unit that is not new its own: see
    `ownership.widen`. So not a bit of old logits changes by expanding. First the new head is trained alone, then with
    it all weights into new units; old units and lower layers stay, and nothing is forgotten.

    With `old='trained'` everything is trained and every task sees all units; that is fine-tuning of a growing network,
    and with `+lwf` the paper's "network expansion + LwF": `methods.build('network_expansion+lwf', network, {'old':
    'trained'})`. With the old units frozen, distillation has nothing to do.

    The network is given at its full width: a growing layer of W units has $W / (1 + g (T - 1))$ of them for the first
    of T tasks, about, and g times as many for each other. A task that finds none free trains its head alone: leave room
    for tasks to come with `streams.pad`.

    Args:
      network: with gates and a head for each task.
      growth: g, in [0, 1], the units that a task adds, as a part of the first task's; the paper adds 1,024 to 4,096.
      layers: how many of the last hidden layers grow; all, where there are fewer.
      old: whether what earlier tasks made is 'frozen' or 'trained'.
      warm_up: fraction of a visit's epochs for the new head alone, in [0, 1).

    Returns:
      The method.

    Raises:
      ValueError: for a network without gates, with a shared head, or with statistics that cannot be frozen; for an
        unknown option, or a number out of range.

    Example:
      >>> from cljax import networks
      >>> from cljax.methods import network_expansion
      >>> method = network_expansion(networks.mlp((8, 8, 1), 2, hidden=(16, 12)))
      >>> method.zero_forgetting, [phase.name for phase in method.phases]
      (True, ['warm-up', 'train'])

    Reference: Li and Hoiem, Learning without Forgetting, 2016, section 4.2, figure 6(b) and table 2(b).
    """
    check_network(network)
    check_option("network_expansion's old", old, Old)
    growth = real("network_expansion's growth", growth, least=0, most=1)
    layers = whole("network_expansion's layers", layers, least=1)
    phases = warm_up_phases("network_expansion", warm_up, network)
    layout = ownership.layout("network_expansion", network)
    check_statistics("network_expansion", network)
    check_heads("network_expansion", layout, "for a new one is trained on old and new units")
    wires = layout.wires
    gates = dict.fromkeys(wires[path].outputs for path in layout.kernels if wires[path].outputs is not None)
    growing = tuple(gates)[-layers:]
    sees: Literal["all", "older"] = "all" if old == "trained" else "older"
    base = owned("network_expansion", network, layout, rule="pruning", sees=sees, numbers={"growth": growth})

    def begin_task(learner: Learner, clock: Clock, fold: Fold, key: Array) -> Learner:
        others, growth = learner.rows.tasks - 1, learner.hyper["growth"]
        owner = learner.method_state.owner
        given = jnp.any(jnp.stack([jnp.any(masks.learnable(leaf, clock.task)) for leaf in owner.values()]))

        def claim(name: str, leaf: Array) -> Array:
            new = jnp.floor(leaf.size * growth / (1 + growth * others) + 1e-3).astype(jnp.int32)
            count = jnp.where(clock.task == 0, leaf.size - others * new, new) if name in growing else leaf.size
            return masks.claim(leaf, clock.task, jnp.where(given, 0, count))

        owner = {name: claim(name, leaf) for name, leaf in owner.items()}
        sources = ownership.draw_sources(key, owner, clock.task)
        params = ownership.widen(learner.params, wires, sources)
        params = ownership.cut_interference(params, wires, owner, clock.task)
        found = learner.collections
        if "batch_stats" in found:
            found = {**found, "batch_stats": ownership.widen(found["batch_stats"], wires, sources)}
        return learner._replace(params=params, collections=found, method_state=Owned(owner))

    def update_mask(learner: Learner, clock: Clock) -> tuple[Tree, Tree]:
        warm = is_warm_up(phases, clock)
        keep = lambda path, mask: mask if task_params.has_rows(path, learner.rows) else jnp.where(warm, 0, mask)
        params, collections = base.update_mask(learner, clock)
        return task_params.map_leaves(keep, params), task_params.map_leaves(keep, collections)

    return base._replace(begin_task=begin_task, update_mask=update_mask, phases=phases)
