"""Rows: the leaves of a learner that belong to a task, focused before a visit and written back after it.

A network knows nothing of tasks. Leaves whose path ends with one of the method's `per_task` paths are stored as stacks
`[T, ...]`; a visit to a task works on one row of each, so gradient, optimizer and masks see an ordinary network and a
step's cost does not grow with the number of tasks. Paths are matched by whole components: `'norm'` is not `'my_norm'`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from cljax.numbers import whole
from cljax.trees import pick, put
from cljax.types import Array, Learner, Tree

TASK_SLOTS = "task_slots"
"""Leaves below an attribute of this name have rows whatever their path (see `transforms.per_task`)."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
    """Which leaves have rows, and during a visit their stacks.

    Attributes:
      params, collections, opt_state, method_state: at rest None; during a visit trees like the learner's own, with the
        stack `[T, ...]` as it was when the visit began at each focused leaf, and None elsewhere.
      per_task, stacked: leaf paths with rows, and those of them that stay stacked during a visit. Static.
      tasks: T, the number of tasks. Static.

    Example:
      >>> from cljax.task_params import resting
      >>> rows = resting(['head'], tasks=3)
      >>> rows.per_task, rows.tasks, rows.params
      (('head',), 3, None)
    """

    params: Tree
    collections: Tree
    opt_state: Tree
    method_state: Tree
    per_task: tuple[str, ...] = dataclasses.field(metadata={"static": True})
    stacked: tuple[str, ...] = dataclasses.field(metadata={"static": True})
    tasks: int = dataclasses.field(metadata={"static": True})


PARTS = ("params", "collections", "opt_state", "method_state")


def resting(per_task: Iterable[str], stacked: Iterable[str] = (), *, tasks: int = 1) -> Rows:
    """The rows of a learner at rest, of so many tasks.

    Example:
      >>> from cljax.task_params import resting
      >>> resting(['head/kernel']).per_task
      ('head/kernel',)

    Raises:
      ValueError: one text in place of several.
    """
    if isinstance(per_task, str) or isinstance(stacked, str):
        raise ValueError("Rows are named by several leaf paths, such as ['head']: not by one text.")
    return Rows(None, None, None, None, tuple(per_task), tuple(stacked), tasks)


def path_name(path: tuple) -> str:
    """A key path as a string: dictionary keys, attributes and indices, joined by slashes.

    Example:
      >>> import jax
      >>> from cljax.task_params import path_name
      >>> leaves, _ = jax.tree_util.tree_flatten_with_path({'head': {'bias': 0.0}})
      >>> path_name(leaves[0][0])
      'head/bias'
    """
    return jax.tree_util.keystr(path, simple=True, separator="/")


def leaf_paths(tree: Tree) -> tuple[str, ...]:
    """The paths of all leaves, in order.

    Example:
      >>> from cljax.task_params import leaf_paths
      >>> leaf_paths({'head': {'bias': 0.0, 'kernel': 1.0}})
      ('head/bias', 'head/kernel')
    """
    return tuple(path_name(path) for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0])


def by_path(tree: Tree) -> dict[str, Array]:
    """The leaves by their paths.

    Example:
      >>> from cljax.task_params import by_path
      >>> by_path({'head': {'bias': 0.0, 'kernel': 1.0}})
      {'head/bias': 0.0, 'head/kernel': 1.0}
    """
    return dict(zip(leaf_paths(tree), jax.tree.leaves(tree), strict=True))


def check_same(name: str, tree: Tree, like: str, other: Tree, *, shapes: bool = True) -> None:
    """Checks that two trees have the same leaves, and these the same shapes.

    Args:
      name: how the error calls the first.
      tree: the first.
      like: how it calls the second.
      other: the second.
      shapes: False: the leaves alone.

    Raises:
      ValueError: naming the leaf that differs.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.task_params import check_same
      >>> check_same("anchor", {"bias": jnp.ones(2)}, "params", {"bias": jnp.ones(3)})
      Traceback (most recent call last):
      ...
      ValueError: anchor has 'bias' of shape (2,), but params has it of shape (3,).
    """
    if jax.tree.structure(tree) != jax.tree.structure(other):  # type: ignore[operator]
        raise ValueError(
            f"{name} has the leaves {', '.join(leaf_paths(tree)) or 'none'}, but {like} has "
            f"{', '.join(leaf_paths(other)) or 'none'}: both must have the same, in the same containers."
        )
    for path, one, two in zip(leaf_paths(tree), jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        if shapes and jnp.shape(one) != jnp.shape(two):
            found, wanted = jnp.shape(one), jnp.shape(two)
            raise ValueError(f"{name} has '{path}' of shape {found}, but {like} has it of shape {wanted}.")


def check_floating(name: str, tree: Tree) -> None:
    """Checks that all leaves of a tree are of floating point: neither whole numbers, nor bool, nor random keys.

    Args:
      name: how the error calls it.
      tree: of arrays.

    Raises:
      ValueError: naming the leaf.

    Example:
      >>> import jax
      >>> from cljax.task_params import check_floating
      >>> check_floating("params", {"rngs": jax.random.key(0)})
      Traceback (most recent call last):
      ...
      ValueError: params has 'rngs' of key<fry>: pass floating-point leaves alone, as of nnx.state(model, nnx.Param).
    """
    for path, leaf in zip(leaf_paths(tree), jax.tree.leaves(tree), strict=True):
        if not jnp.issubdtype(kind := jnp.result_type(leaf), jnp.floating):
            raise ValueError(
                f"{name} has '{path}' of {kind}: pass floating-point leaves alone, as of nnx.state(model, nnx.Param)."
            )


def check_scales(name: str, scales: Tree, like: str, tree: Tree) -> None:
    """Checks that each leaf of a tree has a scale: a scalar, or as many axes as it, each of length 1 or of its own.

    Args:
      name: how the error calls a scale.
      scales: of the tree's structure.
      like: how it calls the tree.
      tree: of arrays.

    Raises:
      ValueError: naming the leaf whose scale does not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.task_params import check_scales
      >>> check_scales("mask", {"kernel": jnp.ones((1, 3))}, "updates", {"kernel": jnp.ones((2, 3))})
      >>> check_scales("mask", {"kernel": jnp.ones(3)}, "updates", {"kernel": jnp.ones((2, 3))})
      Traceback (most recent call last):
      ...
      ValueError: The mask of 'kernel' has the shape (3,), which does not broadcast to the parameter's (2, 3). Give ...
    """
    check_same(name, scales, like, tree, shapes=False)
    for path, scale, leaf in zip(leaf_paths(tree), jax.tree.leaves(scales), jax.tree.leaves(tree), strict=True):
        shape, fits = jnp.shape(scale), jnp.shape(leaf)
        if shape and (len(shape) != len(fits) or any(a not in (1, b) for a, b in zip(shape, fits, strict=True))):
            raise ValueError(
                f"The {name} of '{path}' has the shape {shape}, which does not broadcast to the parameter's {fits}. "
                f"Give it a scalar, or as many axes as the parameter has, each of length 1 or of the parameter's."
            )


def ends_with(path: str, suffixes: Iterable[str]) -> bool:
    """Whether the path is, or ends with whole components equal to, one of the suffixes.

    Example:
      >>> from cljax.task_params import ends_with
      >>> ends_with('mu/head/bias', ['head/bias']), ends_with('my_head/bias', ['head/bias'])
      (True, False)
    """
    return any(path == suffix or path.endswith("/" + suffix) for suffix in suffixes)


def has_rows(path: str, rows: Rows) -> bool:
    """Whether the leaf of this path is stored as a stack `[T, ...]`.

    Example:
      >>> from cljax.task_params import has_rows, resting
      >>> [has_rows(path, resting(['head/kernel'])) for path in ('head/kernel', 'dense_0/kernel')]
      [True, False]
    """
    return TASK_SLOTS in path.split("/") or ends_with(path, rows.per_task)


def is_focused(path: str, rows: Rows) -> bool:
    """Whether a visit works on one row of the leaf of this path (it has rows, and is not kept stacked).

    Example:
      >>> from cljax.task_params import is_focused, resting
      >>> rows = resting(['head', 'norm'], stacked=['head'])
      >>> [is_focused(path, rows) for path in ('head', 'norm', 'dense')]
      [False, True, False]
    """
    return TASK_SLOTS in path.split("/") or (ends_with(path, rows.per_task) and not ends_with(path, rows.stacked))


def map_leaves(fn: Callable[..., Tree], tree: Tree, *rest: Tree) -> Tree:
    """Maps `fn(path, leaf, *others)` over a tree and others like it.

    Example:
      >>> from cljax.task_params import map_leaves
      >>> map_leaves(lambda path, leaf: path, {'a': [1.0, 2.0]})
      {'a': ['a/0', 'a/1']}
    """
    return jax.tree_util.tree_map_with_path(lambda path, *leaves: fn(path_name(path), *leaves), tree, *rest)


def take_row(tree: Tree, task: Array, rows: Rows) -> Tree:
    """The tree with row `task` in place of every stack, kept ones too: an ordinary network's params, to predict with.

    Args:
      tree: params or collections of a learner at rest.
      task: int32 scalar.
      rows: the learner's.

    Returns:
      The tree, leaves with rows `[...]` instead of `[T, ...]`; those of floats NaN where a traced task does not exist.

    Raises:
      ValueError: a task that does not exist.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.task_params import resting, take_row
      >>> take_row({'head': jnp.arange(6.).reshape(3, 2)}, jnp.int32(2), resting(['head'], ['head']))['head']
      Array([4., 5.], dtype=float32)
    """

    def row(path: str, leaf: Array) -> Array:
        if not has_rows(path, rows):
            return leaf
        check_task(task, leaf.shape[0])
        return of_task(pick(leaf, task), task, leaf.shape[0])

    return map_leaves(row, tree)


def check_task(task: ArrayLike, tasks: int) -> None:
    """Checks that a task exists, as far as it is known: a traced one is not, see `of_task`.

    Raises:
      ValueError: it does not.

    Example:
      >>> from cljax.task_params import check_task
      >>> check_task(7, 3)
      Traceback (most recent call last):
      ...
      ValueError: task is 7, but must be a whole number from 0 to 2.
    """
    if not isinstance(task, jax.core.Tracer):
        whole("task", task, most=tasks - 1)


def of_task(values: Array, task: ArrayLike, tasks: int) -> Array:
    """Values of a task; NaN in place of floats where a traced task does not exist.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from cljax.task_params import of_task
      >>> jax.jit(lambda task: of_task(jnp.ones(2), task, tasks=3))(7).tolist()
      [nan, nan]
    """
    if not (isinstance(task, jax.core.Tracer) and jnp.issubdtype(values.dtype, jnp.floating)):
        return values
    return jnp.where((task >= 0) & (task < tasks), values, jnp.nan)


def focus_tree(tree: Tree, task: Array, rows: Rows) -> Tree:
    """The tree as a visit sees it: row `task` in place of every stack but the kept ones.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.task_params import focus_tree, resting
      >>> tree = {'dense': jnp.array([5]), 'head': jnp.array([[1, 2], [3, 4]])}
      >>> {name: leaf.tolist() for name, leaf in focus_tree(tree, jnp.int32(1), resting(['head'], tasks=2)).items()}
      {'dense': [5], 'head': [3, 4]}
    """

    def row(path: str, leaf: Array) -> Array:
        if not is_focused(path, rows):
            return leaf
        check_task(task, leaf.shape[0])
        return pick(leaf, task)

    return map_leaves(row, tree)


def focus(learner: Learner, task: Array) -> Learner:
    r"""The learner as the visit to a task sees it: one row of every per-task leaf, the stacks put aside in `rows`.

    Args:
      learner: at rest, per-task leaves `[T, ...]`.
      task: int32 scalar, traced or not; never batched.

    Returns:
      The focused learner: per-task leaves `[...]` (those of `rows.stacked` stay `[T, ...]`).

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.task_params import focus, resting
      >>> from cljax.types import Learner
      >>> learner = Learner({'head': jnp.arange(6.).reshape(3, 2)}, {}, (), {}, {}, None, resting(['head']))
      >>> focus(learner, jnp.int32(1)).params['head']
      Array([2., 3.], dtype=float32)
    """
    rows = learner.rows

    def stacks(tree: Tree) -> Tree:
        return map_leaves(lambda path, leaf: leaf if is_focused(path, rows) else None, tree)

    parts = {part: getattr(learner, part) for part in PARTS}
    focused = {part: focus_tree(tree, task, rows) for part, tree in parts.items()}
    aside = dataclasses.replace(rows, **{part: stacks(tree) for part, tree in parts.items()})
    return learner._replace(**focused, rows=aside)


def merge_row(tree: Tree, stacks: Tree, task: Array) -> Tree:
    """The tree with each stack, its row `task` replaced by the tree's leaf, in the leaf's place.

    Args:
      tree: focused.
      stacks: the same structure, None where a leaf has no stack.
      task: int32 scalar.

    Returns:
      The tree at rest.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.task_params import merge_row
      >>> stacks = {'dense': None, 'head': jnp.array([[1, 2], [3, 4]])}
      >>> merged = merge_row({'dense': jnp.array([5]), 'head': jnp.array([7, 8])}, stacks, jnp.int32(1))
      >>> {name: leaf.tolist() for name, leaf in merged.items()}
      {'dense': [5], 'head': [[1, 2], [7, 8]]}
    """

    def own(stack: Array | None, leaf: Array) -> Array:
        if stack is None:
            return leaf
        check_task(task, stack.shape[0])
        return put(stack, leaf, task)

    return jax.tree.map(own, stacks, tree, is_leaf=lambda leaf: leaf is None)


def write_back(learner: Learner, task: Array) -> Learner:
    """Undoes `focus`: the rows go back into their stacks, all other rows bit for bit as they were.

    Args:
      learner: focused on `task`.
      task: int32 scalar.

    Returns:
      The learner at rest.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.task_params import focus, resting, write_back
      >>> from cljax.types import Learner
      >>> learner = Learner({'head': jnp.zeros([2, 1])}, {}, (), {}, {}, None, resting(['head']))
      >>> visited = focus(learner, jnp.int32(1))._replace(params={'head': jnp.ones([1])})
      >>> write_back(visited, jnp.int32(1)).params['head'].tolist()
      [[0.0], [1.0]]
    """
    rows = learner.rows
    merged = {part: merge_row(getattr(learner, part), getattr(rows, part), task) for part in PARTS}
    return learner._replace(**merged, rows=resting(rows.per_task, rows.stacked, tasks=rows.tasks))


def expand(tree: Tree, tasks: int, rows: Rows) -> Tree:
    """Repeats each focused leaf `tasks` times: the resting form of a tree made for one task.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.task_params import expand, resting
      >>> expand({'head': jnp.ones([2]), 'body': jnp.ones([3])}, 4, resting(['head']))['head'].shape
      (4, 2)
    """

    def repeat(path: str, leaf: Array) -> Array:
        leaf = jnp.asarray(leaf)
        return jnp.broadcast_to(leaf, (tasks, *leaf.shape)) if is_focused(path, rows) else leaf

    return map_leaves(repeat, tree)


def row_axes(tree: Tree, rows: Rows) -> Tree:
    """The `vmap` axes of a tree in which kept leaves are stacks: 0 for those of `rows.stacked`, None elsewhere.

    To read all tasks' heads at once, `vmap` a network's `apply` with these as the axes of its params and collections;
    what does not depend on a stacked leaf (the encoder) is then computed once.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.task_params import resting, row_axes
      >>> row_axes({'dense': jnp.ones(2), 'head': jnp.ones((3, 2))}, resting(['head'], ['head'], tasks=3))
      {'dense': None, 'head': 0}
    """
    return map_leaves(lambda path, leaf: 0 if ends_with(path, rows.stacked) else None, tree)


def flatten_heads(values: Array) -> Array:
    """One growing head of all tasks' heads: `[T, B, K]` to `[B, T * K]`.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.task_params import flatten_heads
      >>> flatten_heads(jnp.array([[[1, 2]], [[3, 4]]])).tolist()
      [[1, 2, 3, 4]]
    """
    tasks, size, outputs = values.shape
    return jnp.moveaxis(values, 0, 1).reshape(size, tasks * outputs)


def check_paths(params: Tree, collections: Tree, per_task: Iterable[str], stacked: Iterable[str] = ()) -> None:
    """Checks that every per-task path is a leaf's whole path and no other leaf's path ends with it.

    Raises:
      ValueError: naming the path and the leaves there are.

    Example:
      >>> from cljax.task_params import check_paths
      >>> check_paths({'head': {'bias': 0.0}}, {}, ['haed/bias'])
      Traceback (most recent call last):
      ...
      ValueError: per_task names 'haed/bias', which is no leaf of the network. Its leaves are: head/bias.
    """
    paths = leaf_paths(params) + leaf_paths(collections)
    per_task = tuple(per_task)
    for name in per_task:
        if name not in paths:
            raise ValueError(
                f"per_task names '{name}', which is no leaf of the network. Its leaves are: {', '.join(paths)}."
            )
        if other := [path for path in paths if path != name and path.endswith("/" + name)]:
            raise ValueError(
                f"per_task names '{name}', but the leaf '{other[0]}' ends with the same components, so the two could "
                f"not be told apart in the optimizer's state. Give one of the two modules another name."
            )
    if stray := [name for name in stacked if name not in per_task]:
        raise ValueError(f"stacked names '{stray[0]}', which is not among per_task: {', '.join(per_task)}.")
