"""Freezing: learn the first task, then only each new task's own leaves."""

from __future__ import annotations

from jax import lax

from cljax import task_params
from cljax.methods.common import own_task, plain, require_own_leaves, stop_shared, update_masks
from cljax.methods.copy_at_begin import copy_at_begin
from cljax.types import Array, Batch, Clock, Learner, Method, Network, Tree


def freezing(network: Network) -> Method:
    r"""Freezing: the shared leaves are trained on the first task and never again.

    From the second task on the network runs in evaluation mode (no dropout, stored normalisation statistics) and only
    the task's own leaves are trained: a linear classifier on the first task's features, so nothing is forgotten.
    Statistics that belong to a task are then the first task's.

    Args:
      network: an ordinary network with `per_task` leaves.

    Returns:
      The method.

    Raises:
      ValueError: where nothing belongs to a task, so that nothing could be learned after the first.

    Example:
      >>> from cljax import networks
      >>> from cljax.methods import freezing
      >>> freezing(networks.mlp((8, 8, 1), 2)).zero_forgetting
      True

    Reference: the baseline of Masana et al., Ternary Feature Masks, 2021, section 4.
    """
    base = plain("freezing", network)
    require_own_leaves("freezing", network)
    drawn, statistics = map(task_params.leaf_paths, network.shapes)

    def loss(params: Tree, learner: Learner, clock: Clock, batch: Batch, key: Array | None):
        train = lambda params: base.loss(params, learner, clock, batch, key)
        frozen = lambda params: base.loss(stop_shared(params, learner), learner, clock, batch, None)
        return lax.cond(clock.newest > 0, frozen, train, params)

    def update_mask(learner: Learner, clock: Clock) -> tuple[Tree, Tree]:
        return update_masks(learner, own_task(learner, clock), clock.newest == 0)

    method = base._replace(loss=loss, update_mask=update_mask, zero_forgetting=True)
    own = any(task_params.ends_with(path, network.per_task) for path in statistics)
    return copy_at_begin(method, source="first", drawn=drawn) if own else method
