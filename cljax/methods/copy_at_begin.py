"""A task that begins with a copy of an earlier task's leaves."""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp

from cljax import task_params
from cljax.numbers import check_option
from cljax.trees import pick, put
from cljax.types import Array, Clock, Fold, Learner, Method, Tree

Source = Literal["first", "last"]


def copy_at_begin(method: Method, *, source: Source = "first", drawn: tuple[str, ...] = ()) -> Method:
    """Has every task begin with a copy of the leaves of its own that an earlier task has, statistics included.

    Args:
      method: any.
      source: whose leaves are copied: the first task's, or the last one's before.
      drawn: leaf paths that are not copied but drawn anew, such as the head's.

    Returns:
      The method; what it does at a task's beginning comes after the copying.

    Raises:
      ValueError: for an unknown source; for a leaf that the network does not have.

    Example:
      >>> from cljax import methods, networks
      >>> from cljax.methods import copy_at_begin
      >>> own = networks.own_last_layers(networks.mlp((8, 8, 1), 2, hidden=(4, 4)), 1)
      >>> copy_at_begin(methods.finetune(own), drawn=('head/kernel', 'head/bias')).name
      'finetune'
    """
    check_option(f"{method.name}'s source", source, Source)
    leaves = {*method.per_task, *(path for tree in method.network.shapes for path in task_params.leaf_paths(tree))}
    if stray := [path for path in drawn if not any(task_params.ends_with(leaf, (path,)) for leaf in leaves)]:
        raise ValueError(
            f"{stray[0]!r} in drawn is no leaf of {method.name}'s network, which has {', '.join(sorted(leaves))}."
        )

    def begin_task(learner: Learner, clock: Clock, fold: Fold, key: Array) -> Learner:
        row = jnp.int32(0) if source == "first" else jnp.maximum(clock.task - 1, 0)

        def copy(path: str, leaf: Array, stack: Array | None) -> Array:
            if not task_params.has_rows(path, learner.rows) or task_params.ends_with(path, drawn):
                return leaf
            return put(leaf, pick(leaf, row), clock.task) if stack is None else pick(stack, row)

        def copied(tree: Tree, stacks: Tree) -> Tree:
            return task_params.map_leaves(copy, tree, stacks)

        params = copied(learner.params, learner.rows.params)
        collections = copied(learner.collections, learner.rows.collections)
        return method.begin_task(learner._replace(params=params, collections=collections), clock, fold, key)

    return method._replace(begin_task=begin_task)
