"""PackNet: each task trains the weights that are free, keeps the largest, and gives the rest to later tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from cljax import task_params
from cljax.methods.common import check_network, number_of_task, plain, scheduled
from cljax.methods.owned import check_statistics
from cljax.numbers import real
from cljax.ownership import masks
from cljax.types import Array, Clock, Fold, Learner, Method, Network, Phase, Sizes, Tree

PRUNE = (0.5, 0.75)
"""The parts of its weights that the first task, and each later one, gives back by default."""


class Packed(NamedTuple):
    """What the method keeps.

    Attributes:
      owner: a tree like the parameters, `masks` of single weights: int32, the task that each weight belongs to, or
        `masks.FREE`; None for a leaf that is not pruned.
    """

    owner: Tree


def packnet(
    network: Network,
    *,
    prune: float | Sequence[float] = PRUNE,
    retrain: float = 1 / 3,
    retrain_factor: float = 0.1,
) -> Method:
    r"""PackNet: a task trains the free weights, prunes the smallest of them, and trains on with those it keeps.

    $$ W^t = W \odot [\mathrm{owner} \le t], \qquad
    \mathrm{owner}_{ij} \leftarrow \mathrm{FREE}, \; W_{ij} \leftarrow 0 \text{ where } \mathrm{owner}_{ij} = t,
    \; |W_{ij}| \le q_l $$

    A first visit has two phases. In the first a task trains all free weights, beside those of older tasks, which it
    uses and cannot change. At its end, in each layer l the smallest in size of the task's weights are set to 0 and are
    free again, a part `prune` of them ($q_l$ is that quantile; ties with it go too). In the second phase the weights
    that are left are trained on, at a lower rate. After that no bit of them changes, unless the task is visited again
    while it is the newest. Free weights begin the next task at 0.

    Layers are the leaves with two axes or more that tasks share: dense kernels and convolutions alike, a shared head's
    too. Biases and normalisation that tasks share are trained by the first task alone; later ones compute with the
    statistics that it left. When an older task is visited again, only what belongs to it is trained.

    Args:
      network: any; batch normalisation with `frozen` flags, as in the networks of `cljax.networks`.
      prune: in [0, 1], the part of a task's weights, in each layer, that it gives back; a sequence is a schedule for
        tasks 0, 1, ..., its last number for all further tasks.
      retrain: in [0, 1), the part of a visit's epochs that comes after pruning; 0: none.
      retrain_factor: factor on the learning rate then.

    Returns:
      The method. It forgets nothing.

    Raises:
      ValueError: for a number out of range, or statistics that cannot be frozen.

    Example:
      >>> from cljax import networks
      >>> from cljax.methods import packnet
      >>> method = packnet(networks.mlp((8, 8, 1), 2), prune=0.75)
      >>> [phase.name for phase in method.phases], method.zero_forgetting
      (['train', 'retrain'], True)

    Reference: Mallya and Lazebnik, PackNet: Adding Multiple Tasks to a Single Network by Iterative Pruning, 2018,
    section 3.
    """
    check_network(network)
    check_statistics("packnet", network)
    schedule = scheduled("packnet", "prune", prune, least=0, most=1)
    retrain = real("packnet's retrain", retrain, least=0, below=1)
    retrain_factor = real("packnet's retrain_factor", retrain_factor, least=0)

    def masked(params: Tree, owner: Tree, show: Array) -> Tree:
        """The parameters, 0 where a weight's owner is larger than `show`."""
        hide = lambda own, leaf: leaf if own is None else jnp.where(own <= show, leaf, jnp.zeros((), leaf.dtype))
        return _map(hide, owner, params)

    def view(params: Tree, collections: Tree, method_state: Packed, task: Array, newest: Array | None):
        if newest is not None and "frozen" in collections:
            later = lambda leaf: jnp.broadcast_to(newest > 0, leaf.shape)
            collections = {**collections, "frozen": jax.tree.map(later, collections["frozen"])}
        return masked(params, method_state.owner, jnp.asarray(task, jnp.int32)), collections

    base = plain("packnet", network, view=view, numbers=schedule)

    def init(key: Array, sizes: Sizes) -> tuple[Tree, Tree, Tree, dict[str, Array]]:
        def free(path: str, leaf: Array) -> Array | None:
            own = leaf.ndim < 2 or task_params.ends_with(path, network.per_task)
            return None if own else jnp.full(leaf.shape, masks.FREE, jnp.int32)

        params, collections, _, hyper = base.init(key, sizes)
        return params, collections, Packed(task_params.map_leaves(free, params)), hyper

    def begin_task(learner: Learner, clock: Clock, fold: Fold, key: Array) -> Learner:
        claim = lambda own: jnp.where(own == masks.FREE, clock.task, own)
        return learner._replace(method_state=Packed(jax.tree.map(claim, learner.method_state.owner)))

    def update_mask(learner: Learner, clock: Clock) -> tuple[Tree, Tree]:
        owners = task_params.by_path(learner.method_state.owner)
        newest = clock.task == clock.newest

        def trained(path: str, leaf: Array) -> Array:
            if task_params.has_rows(path, learner.rows):
                return jnp.float32(1.0)
            if path not in owners:
                return (clock.newest == 0).astype(jnp.float32)
            return ((owners[path] == clock.task) & newest).astype(jnp.float32)

        return task_params.map_leaves(trained, learner.params), task_params.map_leaves(trained, learner.collections)

    def end_phase(learner: Learner, clock: Clock, fold: Fold, key: Array) -> Learner:
        fraction = number_of_task(learner.hyper, schedule, clock.task)

        def release(own: Array | None, leaf: Array) -> Array | None:
            return None if own is None else masks.prune_by_magnitude(leaf, own, clock.task, fraction=fraction)

        def pack(learner: Learner) -> Learner:
            owner = _map(release, learner.method_state.owner, learner.params)
            kept = masked(learner.params, owner, jnp.int32(masks.FREE - 1))
            return learner._replace(params=kept, method_state=Packed(owner))

        return lax.cond(clock.first & (clock.phase == 0), pack, lambda learner: learner, learner)

    retraining = Phase("retrain", retrain, lambda clock: jnp.float32(retrain_factor))
    return base._replace(
        init=init,
        begin_task=begin_task,
        update_mask=update_mask,
        end_phase=end_phase,
        phases=(Phase("train", 1 - retrain), retraining) if retrain else (Phase(),),
        zero_forgetting=True,
    )


def _map(fn, owner: Tree, params: Tree) -> Tree:
    return jax.tree.map(fn, owner, params, is_leaf=lambda leaf: leaf is None)
