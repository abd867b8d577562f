"""Starting from given trained parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cljax import rows
from cljax.types import Array, Clock, Fold, Learner, Method, Tree

METHODS_OWN = ("gates", "frozen")
"""Collections that say what a method shows and freezes: they are never loaded."""


def start_from(method: Method, params: Mapping[str, Any]) -> Method:
    """A method that begins task 0 with given parameters instead of random ones.

    Task 0 then needs no training: a schedule may give its first round 0 epochs, such as `streams.lifelong(5, [0, 9, 9,
    9, 9])`. The method's hooks still run, so what it keeps of a task (importance, a teacher, ownership) it keeps of
    task 0. Leaves that belong to a task go to task 0's row; the other rows, and such leaves that are not given, keep
    their initialisation.

    Args:
      method: the method.
      params: `{leaf path: array}` of params, and of collections with the collection's name first, as
        `checkpoints.load_params` gives them. A stack of several tasks' rows gives its first.

    Returns:
      The method with another `begin_task`.

    Raises:
      ValueError: a leaf is missing, unknown, or of another shape.

    Example:
      >>> from cljax import methods, networks
      >>> method = methods.freezing(networks.mlp((8, 8, 1), 2, hidden=(4,)))
      >>> trained = {'dense_0/kernel': np.ones((64, 4)), 'dense_0/bias': np.ones(4)}
      >>> start_from(method, trained).name
      'freezing'
      >>> start_from(method, {**trained, 'head/bias': np.ones(3)})
      Traceback (most recent call last):
      ...
      ValueError: The given leaf 'head/bias' has shape (3,), but that of freezing has shape (2,). ...
    """
    given = _fit(method, params)
    keeps = method.keeps_rows

    def put(learner: Learner) -> Learner:
        def one(path: str, leaf: Array) -> Array:
            if path not in given:
                return leaf
            value = jnp.asarray(given[path]).astype(leaf.dtype)
            return leaf.at[0].set(value) if rows.ends_with(path, keeps) else value

        place = lambda tree: rows.map_leaves(one, tree)
        return learner._replace(params=place(learner.params), collections=place(learner.collections))

    def begin_task(learner: Learner, clock: Clock, fold: Fold, key: Array) -> Learner:
        first = clock.task == 0
        learner = jax.lax.cond(first, put, lambda learner: learner, learner)
        learner = method.begin_task(learner, clock, fold, key)
        return jax.lax.cond(first, put, lambda learner: learner, learner)  # where begin_task has drawn anew

    return method._replace(begin_task=begin_task)


def _fit(method: Method, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The given leaves, with the shapes of a single task's, if they are those of the method."""
    wanted = _shapes(method)
    given: dict[str, np.ndarray] = {}
    for path, value in params.items():
        shape, own = np.shape(value), rows.ends_with(path, method.per_task)
        if path.split("/")[0] in METHODS_OWN:
            continue
        if path not in wanted:
            raise ValueError(
                f"The given leaf '{path}' of shape {shape} is none of {method.name}'s, which are: {', '.join(wanted)}. "
                f"Build the network as it was when it was trained."
            )
        if own and shape[1:] == wanted[path] and len(shape) == len(wanted[path]) + 1:
            value, shape = value[0], shape[1:]
        if shape != wanted[path]:
            cure = ", or leave the leaf out: it belongs to a task" if own else ""
            raise ValueError(
                f"The given leaf '{path}' has shape {shape}, but that of {method.name} has shape {wanted[path]}. Build "
                f"the network as it was when it was trained{cure}."
            )
        given[path] = np.asarray(value)
    for path, shape in wanted.items():
        if path not in given and not rows.ends_with(path, method.per_task):
            raise ValueError(
                f"The leaf '{path}' of {method.name}, of shape {shape}, is not among the given ones, which are: "
                f"{', '.join(params)}. Build the network as it was when it was trained."
            )
    return given


def _shapes(method: Method) -> dict[str, tuple[int, ...]]:
    """The leaves of a single task's parameters and collections that can be given."""
    trees: tuple[Tree, Tree] = jax.eval_shape(method.init, jax.random.key(0))[:2]
    found = {rows.path_name(path): leaf.shape for t in trees for path, leaf in jax.tree_util.tree_leaves_with_path(t)}
    return {path: shape for path, shape in found.items() if path.split("/")[0] not in METHODS_OWN}
