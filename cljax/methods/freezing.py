"""Freezing: learn the first task, then only each new task's own leaves."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from cljax import rows
from cljax.methods.finetune import check_network, finetune
from cljax.types import Array, Batch, Clock, Learner, Method, Network, Tree


def freezing(network: Network) -> Method:
    r"""Freezing: the shared leaves are trained on the first task and never again.

    From the second task on the network runs in evaluation mode (no dropout, stored normalisation statistics) and only
    the task's own leaves are trained: a linear classifier on the first task's features, so nothing is forgotten.

    Args:
      network: an ordinary network with `per_task` leaves.

    Returns:
      The method.

    Raises:
      ValueError: where nothing belongs to a task, so that nothing could be learned after the first.

    Example:
      >>> from cljax import networks
      >>> freezing(networks.mlp((8, 8, 1), 2)).zero_forgetting
      True

    Reference: the baseline of Masana et al., Ternary Feature Masks, 2020, section 4.
    """
    check_network(network)
    require_own_leaves("freezing", network)
    base = finetune(network)

    def only_own(learner: Learner) -> Tree:
        return rows.map_leaves(lambda path, leaf: jnp.float32(rows.has_rows(path, learner.rows)), learner.params)

    def loss(params: Tree, learner: Learner, clock: Clock, batch: Batch, key: Array | None):
        def train(params: Tree):
            return base.loss(params, learner, clock, batch, key)

        def frozen(params: Tree):
            stop = lambda path, leaf: leaf if rows.has_rows(path, learner.rows) else lax.stop_gradient(leaf)
            return base.loss(rows.map_leaves(stop, params), learner, clock, batch, None)

        return lax.cond(clock.newest > 0, frozen, train, params)

    def update_mask(learner: Learner, clock: Clock) -> Tree:
        first = (clock.newest == 0).astype(jnp.float32)
        return jax.tree.map(lambda own: jnp.maximum(own, first), only_own(learner))

    return base._replace(name="freezing", loss=loss, update_mask=update_mask, zero_forgetting=True)


def require_own_leaves(name: str, network: Network) -> None:
    """Raises a `ValueError` where a network has no leaves that belong to a task."""
    if not network.per_task:
        raise ValueError(
            f"{name} needs leaves that belong to a task, but this network's per_task is empty (a shared head, as in "
            f"the domain-incremental scenario). Name some, for example "
            f"network._replace(per_task=('head/kernel', 'head/bias')), or choose another method."
        )
