"""Starting from given trained parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cljax import ownership, task_params
from cljax.ownership import masks
from cljax.storage import trained
from cljax.training.step import init_shapes
from cljax.types import Array, Clock, Fold, Learner, Method, Tree

METHODS_OWN = ("gates", "frozen")
"""Collections that say what a method shows and freezes: they are never loaded."""


def start_from(method: Method, params: Mapping[str, Any]) -> Method:
    """A method that begins task 0 with given parameters instead of random ones.

    Task 0 then needs no training: a schedule may give its first round 0 epochs, such as `streams.lifelong(5, [0, 9, 9,
    9, 9])`. The method's hooks still run, so what it keeps of a task (importance, a teacher, ownership) it keeps of
    task 0. Leaves that belong to a task go to task 0's row; the other rows, and such leaves that are not given, keep
    their initialisation. Where features have owners (`tfm`, `clnp`), the given ones are task 0's, and no others. The
    network may then be wider than the given one: its first features are the given ones, the rest are free for later
    tasks. Without wider layers nothing is free, and later tasks can only transfer.

    Args:
      method: the method.
      params: `{leaf path: array}` of params, and of collections with the collection's name first, as
        `checkpoints.load_params` gives them; or nested, as Flax has them: variables, a `TrainState`, an `nnx.State`. A
        stack of several tasks' rows gives its first.

    Returns:
      The method with another `begin_task`.

    Raises:
      ValueError: a leaf is missing, unknown, given twice, or of another shape (where features have owners: of a larger
        one).

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
    given, features = _fit(method, params)
    wiring = method.network.wiring if features else ()

    def put(learner: Learner) -> Learner:
        def place(tree: Tree) -> Tree:
            stacked = lambda path: task_params.ends_with(path, method.stacked)
            single = task_params.map_leaves(lambda path, leaf: leaf[0] if stacked(path) else leaf, tree)
            single = masks.embed(single, given, wiring, features)
            return task_params.map_leaves(
                lambda path, old, new: old.at[0].set(new) if stacked(path) else new, tree, single
            )

        state = learner.method_state
        if features:
            owner = {name: jnp.where(kept, jnp.int32(0), jnp.int32(masks.FREE)) for name, kept in features.items()}
            state = ownership.replace_owner(state, owner)
        params, collections = place(learner.params), place(learner.collections)
        return learner._replace(params=params, collections=collections, method_state=state)

    def begin_task(learner: Learner, clock: Clock, fold: Fold, key: Array) -> Learner:
        first = clock.task == 0
        learner = jax.lax.cond(first, put, lambda learner: learner, learner)
        learner = method.begin_task(learner, clock, fold, key)
        return jax.lax.cond(first, put, lambda learner: learner, learner)  # where begin_task has drawn anew

    return method._replace(begin_task=begin_task)


def _fit(method: Method, params: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The given leaves, with the shapes of a single task's, and which features are given, where they have owners."""
    trees: tuple[Tree, Tree, Tree] = init_shapes(method)[:3]
    params = trained.parameters(trained.flatten(dict(params) if isinstance(params, Mapping) else params))
    owner, wiring = ownership.owner_of(trees[2], trees[1]) or {}, method.network.wiring
    widths = {w.outputs: np.shape(params[w.path])[-1:] for w in reversed(wiring) if w.outputs and w.path in params}
    features = {name: np.arange(leaf.size) < sum(widths.get(name, leaf.shape)) for name, leaf in owner.items()}
    cut = lambda tree: masks.extract(tree, wiring, features) if features else tree
    wanted = _shapes(jax.eval_shape(lambda *both: tuple(map(cut, both)), *trees[:2]))
    given: dict[str, np.ndarray] = {}
    for path, value in params.items():
        places = [f"{name}/{path}" for name in trees[1] if path not in wanted and f"{name}/{path}" in wanted]
        path = places[0] if len(places) == 1 else path  # an nnx.State does not name them
        shape, own = np.shape(value), task_params.ends_with(path, method.per_task)
        if path.split("/")[0] in METHODS_OWN:
            continue
        if path not in wanted:
            raise ValueError(
                f"The given leaf '{path}' of shape {shape} is none of {method.name}'s, which are: {', '.join(wanted)}. "
                f"Build the network as it was when it was trained."
            )
        if np.asarray(value).dtype.kind in "cOSUMm":
            raise ValueError(f"The given leaf '{path}' is of {np.asarray(value).dtype}, but must be of real numbers.")
        if own and shape[1:] == wanted[path] and shape[:1] != (0,) and len(shape) == len(wanted[path]) + 1:
            value, shape = value[0], shape[1:]
        if shape != wanted[path]:
            cure = ", or leave the leaf out: it belongs to a task" if own else ""
            raise ValueError(
                f"The given leaf '{path}' has shape {shape}, but that of {method.name} has shape {wanted[path]}. Build "
                f"the network as it was when it was trained{cure}."
            )
        given[path] = np.asarray(value)
    for path, shape in wanted.items():
        if path not in given and not task_params.ends_with(path, method.per_task):
            raise ValueError(
                f"The leaf '{path}' of {method.name}, of shape {shape}, is not among the given ones, which are: "
                f"{', '.join(params)}. Build the network as it was when it was trained."
            )
    return given, features


def _shapes(trees: tuple[Tree, Tree]) -> dict[str, tuple[int, ...]]:
    """The leaves of a single task's parameters and collections that can be given."""
    found = {
        task_params.path_name(path): leaf.shape for t in trees for path, leaf in jax.tree_util.tree_leaves_with_path(t)
    }
    return {path: shape for path, shape in found.items() if path.split("/")[0] not in METHODS_OWN}
