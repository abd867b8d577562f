"""Duplicating and fine-tuning: each task gets a copy of an earlier task's whole network, and trains it."""

from __future__ import annotations

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax

from cljax import rows
from cljax.methods.single_task import single_task
from cljax.types import Array, Clock, Fold, Learner, Method, Network, Tree

Source = Literal["first", "last"]


def duplicate_and_finetune(network: Network, *, source: Source = "first") -> Method:
    r"""Duplicating and fine-tuning: a network for each task, which begins as a copy of an earlier task's.

    $$ \theta_t \leftarrow \arg\min_\theta \mathbb{E}_{(x, y) \sim D_t} \left[ -\log \mathrm{softmax}(z(x; \theta))_y
    \right] \quad \text{from} \quad \theta_0 \;\; (\text{or } \theta_{t-1}) $$
    Only the head begins anew. Nothing is forgotten, at the price of a network a task, in storage and, where a task is
    not told, in time.

    Args:
      network: an ordinary network; its `per_task` leaves are the head, which is not copied.
      source: whose parameters and normalisation statistics a new task begins with: the first task's, or the last one's
        before it.

    Returns:
      The method.

    Raises:
      ValueError: for an unknown source.

    Example:
      >>> from cljax import networks
      >>> duplicate_and_finetune(networks.mlp((8, 8, 1), 2)).zero_forgetting
      True

    Reference: the baseline of Li and Hoiem, Learning without Forgetting, 2016, section 1 and figure 1.
    """
    if source not in get_args(Source):
        known = ", ".join(get_args(Source))
        raise ValueError(f"duplicate_and_finetune's source is {source!r}, but must be one of {known}.")

    def begin_task(learner: Learner, clock: Clock, fold: Fold, key: Array) -> Learner:
        row = jnp.int32(0) if source == "first" else jnp.maximum(clock.task - 1, 0)

        def copy(tree: Tree, stacks: Tree) -> Tree:
            earlier = jax.tree.map(lambda stack: lax.dynamic_index_in_dim(stack, row, keepdims=False), stacks)
            drawn = rows.map_leaves(lambda path, leaf: rows.ends_with(path, network.per_task), tree)
            choose = lambda own, leaf, other: leaf if own else jnp.where(clock.task > 0, other, leaf)
            return jax.tree.map(choose, drawn, tree, earlier)

        return learner._replace(
            params=copy(learner.params, learner.rows.params),
            collections=copy(learner.collections, learner.rows.collections),
        )

    return single_task(network)._replace(name="duplicate_and_finetune", begin_task=begin_task)
