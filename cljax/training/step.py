"""The train step: one gradient, one masked update, for every method and every task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from cljax import task_params, transforms
from cljax.numbers import check_kind, check_shape, show
from cljax.trees import pick
from cljax.types import Array, Batch, Clock, Learner, Memory, Method, Sizes, Tables, Tree

BUILT = "one of cljax.methods, built, such as methods.finetune(network)"
"""What a method is, in errors."""


def strengthen(tree: Tree) -> Tree:
    """Strips weak types, which would make a second call with the same shapes trace again.

    Example:
      >>> jax.typeof(jnp.asarray(1.0)), jax.typeof(strengthen(jnp.asarray(1.0)))
      (ShapedArray(float32[], weak_type=True), ShapedArray(float32[]))
    """
    return jax.tree.map(lambda leaf: lax.convert_element_type(leaf, leaf.dtype), jax.tree.map(jnp.asarray, tree))


def keep_signature(before: Learner, after: Learner, hook: str) -> Learner:
    """Returns `after` with strong types, if it has the structure, shapes and dtypes of `before`.

    Raises:
      TypeError: naming the hook and the leaf. What a hook may change is values, never the learner's signature.
    """
    if not isinstance(after, Learner):
        raise TypeError(f"{hook} returned {show(after)}, but must return the learner, its values changed.")
    after = strengthen(after)
    was, now = jax.tree.structure(before), jax.tree.structure(after)
    if was != now:  # type: ignore[operator]
        raise TypeError(
            f"{hook} changed the structure of the learner from {was} to {now}. State that appears "
            f"during a run must be there from the start: create it in the method's init."
        )
    named = jax.tree_util.tree_flatten_with_path(before)[0]
    for (path, old), new in zip(named, jax.tree.leaves(after), strict=True):
        if (old.shape, old.dtype) != (new.shape, new.dtype):
            raise TypeError(
                f"{hook} changed '{task_params.path_name(path)}' from {old.dtype}{list(old.shape)} to "
                f"{new.dtype}{list(new.shape)}. A hook may change values, never shapes or dtypes; pad to a fixed size."
            )
    return after


def make_learner(
    method: Method,
    optimizer: optax.GradientTransformation,
    tables: Tables,
    learning_rate: float,
    key: Array,
    max_examples: dict[str, int] | None = None,
) -> Learner:
    """Makes the learner of a run, at rest: per-task leaves stacked `[T, ...]`, each row drawn anew.

    Args:
      method: the method.
      optimizer: at unit rate; the loop multiplies its updates by the learning rate.
      tables: the stream's data; their `classes` `[T, K]` say how many rows there are.
      learning_rate: the learning rate, kept as `hyper['learning_rate']`.
      key: PRNG key.
      max_examples: of `streams.max_examples`, for the method's `init`.

    Returns:
      The learner. Build it with `jax.jit`, so that no two of its leaves share a buffer.

    Raises:
      ValueError: where the method's per-task paths do not name leaves.

    Example:
      >>> import jax
      >>> import optax
      >>> from cljax import data, methods, networks, streams, training
      >>> tables = streams.split(data.load('digits'), tasks=5).tables
      >>> method = methods.finetune(networks.mlp((8, 8, 1), 2, hidden=(4,)))
      >>> make = lambda key: training.make_learner(method, optax.sgd(1.0), tables, 0.1, key)
      >>> jax.eval_shape(make, jax.random.key(0)).params['head']['kernel'].shape  # a head for each task
      (5, 4, 2)
    """
    check_kind("The method", method, Method, BUILT)
    check_kind("tables", tables, Tables, "a stream's: stream.tables")
    if not hasattr(key, "dtype"):
        raise ValueError(f"key is {show(key)}, but must be one key, such as jax.random.key(0).")
    tasks, outputs = tables.classes.shape
    sizes = Sizes(tasks, outputs, max_examples or {})
    keys = jax.vmap(lambda task: jax.random.fold_in(key, task))(jnp.arange(tasks))
    resting = task_params.resting(method.per_task, method.stacked, tasks=tasks)
    params, collections, method_state, hyper = method.init(keys[0], sizes)
    task_params.check_paths(params, collections, method.per_task, method.stacked)
    stacked = jax.vmap(lambda key: method.init(key, sizes))(keys)

    def choose(one: Tree, stack: Tree) -> Tree:
        row = lambda path, leaf, rows: rows if task_params.has_rows(path, resting) else leaf
        return strengthen(task_params.map_leaves(row, one, stack))

    params, collections, method_state = (
        choose(one, stack) for one, stack in zip((params, collections, method_state), stacked[:3], strict=True)
    )
    opt_state = optimizer.init(task_params.focus_tree(params, jnp.int32(0), resting))
    memory = None
    if method.memory_size:
        shape, labels = (method.memory_size, *tables.examples.shape[1:]), tables.train.labels
        memory = Memory(
            jnp.zeros(shape, tables.examples.dtype),
            jnp.zeros((method.memory_size, *labels.shape[1:]), labels.dtype),
            jnp.zeros(method.memory_size, jnp.int32),
            jnp.zeros(method.memory_size, jnp.bool_),
        )
    hyper = {name: jnp.asarray(value, jnp.float32) for name, value in {**hyper, "learning_rate": learning_rate}.items()}
    opt_state = task_params.expand(strengthen(opt_state), tasks, resting)
    return strengthen(Learner(params, collections, opt_state, method_state, hyper, memory, resting))


def init_shapes(method: Method, *, tasks: int = 1) -> tuple[Tree, Tree, Tree, Tree]:
    """The shapes and dtypes of what a method's `init` makes for a stream of so many tasks; nothing is drawn."""
    check_kind("The method", method, Method, BUILT)
    sizes = Sizes(tasks, method.network.outputs, dict.fromkeys(("train", "validation", "test"), 1))
    return jax.eval_shape(lambda: method.init(jax.random.key(0), sizes))


def phase_learning_rate(method: Method, clock: Clock) -> Array:
    """The learning-rate factor of the current phase, a float32 scalar."""
    factors = [jnp.asarray(phase.learning_rate(clock), jnp.float32) for phase in method.phases]
    return pick(jnp.stack(factors), clock.phase) if len(factors) > 1 else factors[0]


class TrainStep:
    """A train step that counts how often it was traced: once, if all is well, for a whole stream."""

    def __init__(self, function: Callable) -> None:
        self.traces = 0

        def counted(*arguments):
            self.traces += 1
            return function(*arguments)

        self._step = jax.jit(counted)

    def __call__(
        self, learner: Learner, mask: tuple[Tree, Tree], clock: Clock, batch: Batch, key: Array
    ) -> tuple[Learner, Array, dict[str, Array]]:
        """Takes one step; see `make_train_step`."""
        return self._step(learner, mask, clock, batch, key)

    def lower(self, *arguments) -> jax.stages.Lowered:
        """Lowers the step for arguments, to count its FLOPs."""
        return self._step.lower(*arguments)


def checked_loss(method: Method, found: Any) -> Any:
    """What a method's loss gives, if it has the form that it must have.

    Raises:
      TypeError: it has not.
    """
    if not (isinstance(found, tuple) and len(found) == 2 and isinstance(found[1], tuple) and len(found[1]) == 2):
        raise TypeError(f"The loss of {method.name} gives {show(found)}, but must give (scalar, (output, metrics)).")
    if jnp.shape(found[0]):
        raise TypeError(
            f"The loss of {method.name} has shape {jnp.shape(found[0])}, but must be scalar: the mean over the batch, "
            f"losses.weighted_mean(each, batch.weights)."
        )
    return found


def make_train_step(method: Method, optimizer: optax.GradientTransformation) -> TrainStep:
    r"""Makes the train step of a method.

    $$ \theta' = \begin{cases} \theta & m = 0 \\ \theta + \eta\, m\, u(m \ne 0\ ?\ g : 0) & \text{else} \end{cases} $$
    with gradients g after the method's adjustment, the optimizer's update u, the update mask m and the learning rate
    eta = `hyper['learning_rate']` times the phase's factor. A parameter whose mask is 0 keeps every bit, whatever the
    optimizer carries along and whatever the method does after the step; so does what the collections' mask is 0 for.

    Args:
      method: the method.
      optimizer: any Optax transformation at unit rate, such as `optax.sgd(1.0, momentum=0.9)`. One that asks for
        `value` gets the loss.

    Returns:
      `step(learner, mask, clock, batch, key) -> (learner, loss, metrics)` on the focused learner, with both masks of
      `Method.update_mask`. It is jitted; its attribute `traces` counts its traces.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from cljax import data, methods, networks, streams, task_params, training
      >>> from cljax.types import Batch, make_clock
      >>> tables = streams.split(data.load('digits'), tasks=5).tables
      >>> method = methods.freezing(networks.mlp((8, 8, 1), 2, hidden=(4,)))
      >>> optimizer = optax.sgd(1.0, momentum=0.9)
      >>> learner = training.make_learner(method, optimizer, tables, 0.1, jax.random.key(0))
      >>> learner = task_params.focus(learner, jnp.int32(1))
      >>> clock = make_clock(round=1, task=1, classes=jnp.asarray(tables.classes))
      >>> batch = Batch(jnp.ones((3, 8, 8, 1)), *jnp.ones((2, 3), jnp.int32), jnp.arange(3), jnp.ones(3))
      >>> step = training.make_train_step(method, optimizer)
      >>> before = jax.tree.map(jnp.copy, learner)
      >>> after, loss, _ = step(learner, method.update_mask(learner, clock), clock, batch, jax.random.key(1))
      >>> {name: bool((layer['bias'] == before.params[name]['bias']).all()) for name, layer in after.params.items()}
      {'dense_0': True, 'head': False}
    """
    masked = transforms.with_update_mask(optimizer)

    def step(learner: Learner, mask: tuple[Tree, Tree], clock: Clock, batch: Batch, key: Array):
        for name in ("labels", "tasks", "weights"):
            value = getattr(batch, name)
            check_shape(f"The batch's {name}", value, batch.inputs.shape[0], *value.shape[1:])
        trains, moves = mask

        def objective(params: Tree) -> tuple[Array, tuple[Tree, dict[str, Array]]]:
            value, (output, metrics) = checked_loss(method, method.loss(params, learner, clock, batch, key))
            return value, (output.collections, metrics)

        (loss, (collections, metrics)), gradients = jax.value_and_grad(objective, has_aux=True)(learner.params)
        adjusted = method.adjust_gradients(gradients, learner, clock, batch)
        task_params.check_same(f"What adjust_gradients of {method.name} returns", adjusted, "the loss", gradients)
        adjusted = jax.tree.map(lambda own, given: own.astype(given.dtype), adjusted, gradients)
        updates, opt_state = masked.update(adjusted, learner.opt_state, learner.params, mask=trains, value=loss)
        learning_rate = learner.hyper["learning_rate"] * phase_learning_rate(method, clock)
        updates = jax.tree.map(lambda update: learning_rate.astype(update.dtype) * update, updates)
        moved = learner._replace(
            params=optax.apply_updates(learner.params, updates), collections=collections, opt_state=opt_state
        )
        moved = keep_signature(learner, moved, f"the loss of {method.name} or the optimizer")
        after = method.after_step(learner, moved, clock, batch, gradients)
        after = keep_signature(learner, after, f"after_step of {method.name}")
        params = transforms.keep_masked(learner.params, after.params, trains)
        collections = transforms.keep_masked(learner.collections, after.collections, moves)
        return after._replace(params=params, collections=collections), loss, metrics

    return TrainStep(step)
