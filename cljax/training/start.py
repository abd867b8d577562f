"""Starting from what was learned before: data that are put into the learner before its run begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cljax import ownership, task_params
from cljax.numbers import check_kind, show
from cljax.ownership import masks
from cljax.storage import renaming, stored, trained
from cljax.text import brief
from cljax.training.checks import check_hypers
from cljax.training.evaluation import Evaluation
from cljax.training.step import init_shapes
from cljax.types import Array, Learner, Method, Tree

METHODS_OWN = ("gates", "frozen")
"""Collections that say what a method shows and freezes: they are never loaded."""


@brief
class Past(NamedTuple):
    """What the earlier rounds of a stream have left, where a run goes on after them.

    Attributes:
      learner: at rest.
      evaluation: `Evaluation` of `[R, T]`, of the rounds and tasks so far; its fingerprints are not taken over, for
        another program may round otherwise.

    Example:
      >>> import numpy as np
      >>> from cljax import task_params
      >>> from cljax.training import Evaluation, Past
      >>> from cljax.types import Learner
      >>> learner = Learner({'head': np.ones((1, 3))}, {}, (), {}, {}, None, task_params.resting(['head'], tasks=1))
      >>> accuracy = np.float32([[0.9]])  # one round of one task is behind
      >>> Past(learner, Evaluation(accuracy, accuracy, accuracy, np.zeros((1, 1), np.uint32))).learner.rows.tasks
      1
    """

    learner: Learner
    evaluation: Evaluation


@brief
class Start(NamedTuple):
    """What a run begins with in place of its own: data, so that seeds differ in them side by side.

    Attributes:
      hyper: in place of some of `learner.hyper`.
      params: of `given_params`, in place of what is drawn for task 0; empty: none.
      past: what the run goes on from; None: it begins anew.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax import training
      >>> float(training.Start({'strength': jnp.float32(2.0)}, {}).hyper['strength'])
      2.0
    """

    hyper: dict[str, Array]
    params: dict[str, Array]
    past: Past | None = None


NOTHING = Start({}, {})


def begin_with(method: Method, learner: Learner, given: Start) -> Learner:
    """The new learner with what is given."""
    if given.past is not None:
        check_widths(method, given.past.learner)
        learner = extend(learner, given.past.learner)
    learner = learner._replace(hyper={**learner.hyper, **given.hyper})
    return start_from(method, learner, given.params) if given.params else learner


def check_widths(method: Method, past: Learner) -> None:
    """Checks that what was learned is of this method and network, but for logits, which may have been fewer.

    Where a leaf belongs to a task, `extend` would fill up a layer that is wider now.

    Raises:
      ValueError: naming the leaf.
    """
    outputs, drawn = method.network.outputs, init_shapes(method, tasks=past.rows.tasks)
    for shapes, tree in zip(drawn[:2], (past.params, past.collections), strict=True):
        wanted = task_params.by_path(shapes)
        for path, leaf in task_params.by_path(tree).items():
            now, was = wanted[path].shape if path in wanted else (), leaf.shape
            was = was[1:] if task_params.has_rows(path, past.rows) else was
            fewer = len(now) == len(was) and now[:-1] == was[:-1] and was[-1:] < now[-1:] == (outputs,)
            if path in wanted and now != was and not fewer:
                raise ValueError(
                    f"The leaf '{path}' of the learner to go on from has shape {was} a task, but that of this run has "
                    f"{now}. Build the method and its network as they were when it was trained."
                )


def check_given(
    method: Method,
    seeds: Sequence[Any],
    hypers: Sequence[Mapping[str, float]] | None,
    starts: Sequence[Mapping[str, Any]] | None,
    pasts: Sequence[Past] | None = None,
) -> list[Start]:
    """What each seed is given.

    Raises:
      ValueError: as of `check_hypers` and `given_params`; another number of parameters than of seeds, or different
        ones; parameters for task 0 where it is past.
    """
    if starts is not None and pasts is not None:
        raise ValueError("starts gives parameters to task 0, which is past: give one of starts and past.")
    params: list[dict[str, Any]] = [{}] * len(seeds)
    if starts is not None:
        several = not isinstance(starts, Mapping) and len(starts) == len(seeds)
        known = {id(start): given_params(method, start) for start in starts} if several else {}
        params = [known[id(start)] for start in starts] if several else []
        if not several or any(set(leaves) != set(params[0]) for leaves in params):
            raise ValueError(f"starts must be {len(seeds)} mappings of the same leaves, one for each pair of seeds.")
    rows = zip(check_hypers(method, seeds, hypers), params, pasts or (None,) * len(params), strict=True)
    as_arrays = lambda leaves: {name: jnp.asarray(leaf) for name, leaf in leaves.items()}
    return [Start(hyper, as_arrays(leaves), past) for hyper, leaves, past in rows]


def extend(new: Learner, old: Learner) -> Learner:
    """Gives a learner the room of a longer stream: what it has learned, in the place of what was drawn.

    Rows of further tasks, and logits of heads that have more classes now, are those of the new learner; all else is the
    old one's, every bit of it, but for the numbers in `hyper`: these are the new one's, as it was told.

    Args:
      new: of the longer stream, of `make_learner`; the same method, network and optimizer.
      old: at rest, of as many tasks or fewer.

    Returns:
      The learner, at rest, shaped like the new one.

    Raises:
      ValueError: naming the leaf of another shape or dtype, or the structure that differs.

    Example:
      >>> import jax
      >>> import optax
      >>> from cljax import data, methods, networks, streams, training
      >>> from cljax.training import extend
      >>> method = methods.lwf(networks.mlp((8, 8, 1), 2, hidden=(4,)))
      >>> def make(tasks):
      ...     stream = streams.split(data.load('digits'), tasks=tasks, class_order=range(2 * tasks))
      ...     return training.make_learner(method, optax.sgd(1.0), stream.tables, 0.1, jax.random.key(tasks))
      >>> old = make(3)
      >>> longer = extend(make(4), old)
      >>> longer.rows.tasks, bool((longer.params['head']['bias'][:3] == old.params['head']['bias']).all())
      (4, True)
    """
    for name, learner in (("The longer stream's learner", new), ("The learner to go on from", old)):
        check_kind(name, learner, Learner, "a learner, such as training.make_learner's, or of a result")
    parts = {}
    for part in (*task_params.PARTS, "memory"):
        now, was = getattr(new, part), getattr(old, part)
        if jax.tree.structure(now) != jax.tree.structure(was):  # type: ignore[operator]
            raise ValueError(
                f"The learner to go on from has another structure of {part} than this run's. Build the method, its "
                f"network and the optimizer as they were when it was trained."
            )

        def place(path: str, leaf: Array, before: Array, state: bool = part == "method_state") -> Array:
            same = before.ndim == leaf.ndim and before.dtype == leaf.dtype
            pairs = list(zip(before.shape, leaf.shape, strict=False))
            rows = task_params.has_rows(path, new.rows)
            # In what a method keeps, places an example are as many as a task has at most, which may be fewer now.
            if not (same and all(a == b or state or (rows and a < b) for a, b in pairs)):
                by_tasks = same and all(a == b or (a, b) == (old.rows.tasks, new.rows.tasks) for a, b in pairs)
                cure = "Build the method and its network as they were when it was trained."
                if by_tasks:
                    cure = "It has an axis of the tasks that share it: leave room from the beginning (streams.pad)."
                raise ValueError(
                    f"The leaf '{path}' of the learner to go on from is {before.dtype} of shape {before.shape}, but "
                    f"this run's is {leaf.dtype} of shape {leaf.shape}. {cure}"
                )
            return put_corner(leaf, before)

        parts[part] = task_params.map_leaves(place, now, was)
    return new._replace(**parts)


def put_corner(whole: Array, part: Array) -> Array:
    """An array, another of the same rank in place of its first entries, as many as both have.

    Example:
      >>> put_corner(jnp.zeros([2, 3]), jnp.ones([1, 4])).tolist()
      [[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]
    """
    if np.shape(whole) == np.shape(part):
        return jnp.asarray(part)
    corner = tuple(slice(min(sizes)) for sizes in zip(np.shape(whole), np.shape(part), strict=True))
    return jnp.asarray(whole).at[corner].set(jnp.asarray(part)[corner])


def start_from(method: Method, learner: Learner, given: Mapping[str, Array]) -> Learner:
    """Puts given parameters into a new learner: task 0 begins with them, instead of random ones.

    Task 0 then needs no training: a schedule may give its first round 0 epochs, such as `streams.lifelong(5, [0, 9, 9,
    9, 9])`. The method's hooks still run, so what it keeps of a task (importance, a teacher, ownership) it keeps of
    task 0. Leaves that belong to a task go to task 0's row; the other rows, and such leaves that are not given, keep
    their initialisation. Where features have owners (`tfm`, `clnp`), the given ones are task 0's, and no others. The
    network may then be wider than the given one: its first features are the given ones, the rest are free for later
    tasks. Without wider layers nothing is free, and later tasks can only transfer.

    Args:
      method: the learner's.
      learner: new, at rest.
      given: of `given_params`; traced or not, one more argument of a program.

    Returns:
      The learner.

    Example:
      >>> import jax
      >>> import numpy as np
      >>> import optax
      >>> from cljax import data, methods, networks, streams, training
      >>> from cljax.training import start_from
      >>> method = methods.freezing(networks.mlp((8, 8, 1), 2, hidden=(4,)))
      >>> given = training.given_params(method, {'dense_0/kernel': np.ones((64, 4)), 'dense_0/bias': np.ones(4)})
      >>> tables = streams.split(data.load('digits'), tasks=5).tables
      >>> learner = training.make_learner(method, optax.sgd(1.0), tables, 0.1, jax.random.key(0))
      >>> start_from(method, learner, given).params['dense_0']['bias']
      Array([1., 1., 1., 1.], dtype=float32)
    """
    wanted = _shapes(init_shapes(method)[:2])
    if stray := [path for path in given if path not in wanted]:
        raise ValueError(
            f"The given leaf '{stray[0]}' is none of {method.name}'s: give what training.given_params gives."
        )
    features = _features(method, given)
    rows = task_params.resting(method.per_task)  # none of them kept stacked: row 0 is what is given

    def place(tree: Tree) -> Tree:
        has_rows = lambda path: task_params.has_rows(path, rows)
        stacks = task_params.map_leaves(lambda path, leaf: leaf if has_rows(path) else None, tree)
        first = task_params.focus_tree(tree, jnp.int32(0), rows)
        wiring = method.network.wiring if features else ()
        return task_params.merge_row(masks.embed(first, given, wiring, features), stacks, jnp.int32(0))

    state = learner.method_state
    if features:
        owner = {name: jnp.where(kept, jnp.int32(0), jnp.int32(masks.FREE)) for name, kept in features.items()}
        state = ownership.replace_owner(state, owner)
    params, collections = place(learner.params), place(learner.collections)
    return learner._replace(params=params, collections=collections, method_state=state)


def _features(method: Method, given: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Which features of each gate are given, where features have owners; by the shapes of what is given."""
    _, collections, state, _ = init_shapes(method)
    owner, wiring = ownership.owner_of(state, collections) or {}, method.network.wiring
    widths = {w.outputs: np.shape(given[w.path])[-1:] for w in reversed(wiring) if w.outputs and w.path in given}
    return {name: np.arange(leaf.size) < sum(widths.get(name, leaf.shape)) for name, leaf in owner.items()}


def suggest_names(method: Method, params: Mapping[str, Any]) -> dict[str, str]:
    """Names for `given_params`, of parameters that another program has saved: layers of the same shapes, in order.

    Args:
      method: whose they are to be.
      params: `{name: array}`, such as PyTorch's `model.state_dict()`, or what `checkpoints.load_params` has read.

    Returns:
      `{given name: leaf path}`, to be looked at: of layers with the same shapes the order decides.

    Example:
      >>> import numpy as np
      >>> from cljax import methods, networks
      >>> from cljax.training import given_params, suggest_names
      >>> method = methods.freezing(networks.mlp((8, 8, 1), 2, hidden=(4,)))
      >>> saved = {'fc1.weight': np.ones((4, 64)), 'fc1.bias': np.ones(4), 'fc2.weight': np.ones((10, 4))}
      >>> names = suggest_names(method, saved)
      >>> names, given_params(method, saved, names)['dense_0/kernel'].shape
      ({'fc1.bias': 'dense_0/bias', 'fc1.weight': 'dense_0/kernel'}, (64, 4))
    """
    return renaming.suggested(params, _shapes(init_shapes(method)[:2]))


def given_params(
    method: Method, params: Mapping[str, Any], names: Mapping[str, str] | None = None
) -> dict[str, np.ndarray]:
    """Trained parameters as the leaves of a single task, for `drive`, for a run in one program and for `start_from`.

    Args:
      method: whose they are to be.
      params: `{leaf path: array}` of params, and of collections with the collection's name first, as
        `checkpoints.load_params` gives them; or nested, as Flax has them: variables, a `TrainState`, an `nnx.State`. A
        stack of several tasks' rows gives its first.
      names: `{given name: leaf path}`, of parameters that have other names: see `suggest_names`. A leaf called `weight`
        is PyTorch's, and turned round (behind maps that are flattened, its rows are sorted anew). What is not named is
        left out. `numpy.savez('init.npz', **given_params(method, params, names))` writes what `--init` takes.

    Returns:
      `{leaf path: array}`.

    Raises:
      ValueError: a leaf is missing, unknown, given twice, or of another shape (where features have owners: of a larger
        one).

    Example:
      >>> import numpy as np
      >>> from cljax import methods, networks
      >>> from cljax.training import given_params
      >>> method = methods.freezing(networks.mlp((8, 8, 1), 2, hidden=(4,)))
      >>> trained = {'dense_0/kernel': np.ones((64, 4)), 'dense_0/bias': np.ones(4)}
      >>> list(given_params(method, trained))
      ['dense_0/bias', 'dense_0/kernel']
      >>> given_params(method, {**trained, 'head/bias': np.ones(3)})
      Traceback (most recent call last):
      ...
      ValueError: The given leaf 'head/bias' has shape (3,), but that of freezing has shape (2,). ...
    """
    trees = init_shapes(method)[:2]
    if jax.tree_util.treedef_is_leaf(jax.tree.structure(params)):
        raise ValueError(
            f"params is {show(params)}, but must be arrays by name: storage.checkpoints.load_params reads them."
        )
    params = trained.parameters(stored.flatten(dict(params) if isinstance(params, Mapping) else params, str))
    if names is not None:
        check_kind("names", names, Mapping, "{given name: leaf path}, such as training.suggest_names gives")
        params = renaming.renamed(params, names, _shapes(trees), method.network.inputs, method.network.wiring)
    features = _features(method, params)
    cut = lambda tree: masks.extract(tree, method.network.wiring, features) if features else tree
    wanted = _shapes(jax.eval_shape(lambda *both: tuple(map(cut, both)), *trees))
    given: dict[str, np.ndarray] = {}
    for path, value in params.items():
        places = [f"{name}/{path}" for name in trees[1] if path not in wanted and f"{name}/{path}" in wanted]
        path = places[0] if len(places) == 1 else path  # an nnx.State does not name them
        shape, own = np.shape(value), task_params.ends_with(path, method.per_task)
        if path.split("/")[0] in METHODS_OWN:
            continue
        if path not in wanted:
            names = renaming.suggested(params, wanted)
            cure = f", or give names, such as names={show(names, 400)} (training.suggest_names)" if names else ""
            raise ValueError(
                f"The given leaf '{path}' of shape {shape} is none of {method.name}'s, which are: {', '.join(wanted)}. "
                f"Build the network as it was when it was trained{cure}."
            )
        kind = np.asarray(value).dtype.kind
        if jnp.issubdtype(np.asarray(value).dtype, jnp.floating) and not np.isfinite(np.asarray(value)).all():
            raise ValueError(f"The given leaf '{path}' holds NaN or infinity, which would spoil every weight.")
        if kind in "cOSUMm":
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
    return given


def _shapes(trees: tuple[Tree, Tree]) -> dict[str, tuple[int, ...]]:
    """The leaves of a single task's parameters and collections that can be given."""
    found = {path: leaf.shape for tree in trees for path, leaf in task_params.by_path(tree).items()}
    return {path: shape for path, shape in found.items() if path.split("/")[0] not in METHODS_OWN}
