"""The train step: one gradient, one masked update, for every method and every task."""

from __future__ import annotations

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import optax
from jax import lax

from cljax import rows, transforms
from cljax.types import Array, Batch, Clock, Learner, Memory, Method, Tables, Tree


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
                f"{hook} changed '{rows.path_name(path)}' from {old.dtype}{list(old.shape)} to "
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
      max_examples: of `streams.max_examples`, for the method's `allocate`.

    Returns:
      The learner. Build it with `jax.jit`, so that no two of its leaves share a buffer.

    Raises:
      ValueError: where the method's per-task paths do not name leaves.
    """
    classes = jnp.asarray(tables.classes)
    tasks = classes.shape[0]
    keys = jax.vmap(lambda task: jax.random.fold_in(key, task))(jnp.arange(tasks))
    resting = rows.resting(method.per_task, method.stacked)
    params, collections, method_state, hyper = method.init(keys[0])
    rows.check_paths(params, collections, method.per_task, method.stacked)
    stacked = jax.vmap(method.init)(keys)

    def choose(one: Tree, stack: Tree) -> Tree:
        pairs = jax.tree_util.tree_map_with_path(
            lambda path, leaf, row: row if rows.has_rows(rows.path_name(path), resting) else jnp.asarray(leaf),
            one,
            stack,
        )
        return strengthen(pairs)

    params, collections, method_state = (
        choose(one, stack) for one, stack in zip((params, collections, method_state), stacked[:3], strict=True)
    )
    method_state = method.allocate(method_state, tasks, max_examples or {})
    opt_state = optimizer.init(rows.focus_tree(params, jnp.int32(0), resting))
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
    opt_state = rows.expand(strengthen(opt_state), tasks, resting)
    kinds = None if tables.single_label is None else jnp.asarray(tables.single_label)
    return strengthen(Learner(params, collections, opt_state, method_state, hyper, memory, classes, resting, kinds))


def phase_learning_rate(method: Method, clock: Clock) -> Array:
    """The learning-rate factor of the current phase, a float32 scalar."""
    factors = [phase.learning_rate for phase in method.phases]
    if len(factors) == 1:
        return jnp.asarray(factors[0](clock), jnp.float32)
    branches = [
        lambda now, learning_rate=learning_rate: jnp.asarray(learning_rate(now), jnp.float32)
        for learning_rate in factors
    ]
    return lax.switch(clock.phase, branches, clock)


class TrainStep:
    """A train step that counts how often it was traced: once, if all is well, for a whole stream."""

    def __init__(self, function: Callable) -> None:
        self.traces = 0

        def counted(*arguments):
            self.traces += 1
            return function(*arguments)

        self._step = jax.jit(counted)

    def __call__(
        self, learner: Learner, mask: Tree, clock: Clock, batch: Batch, key: Array
    ) -> tuple[Learner, Array, dict[str, Array]]:
        """Takes one step; see `make_train_step`."""
        return self._step(learner, mask, clock, batch, key)

    def lower(self, *arguments) -> jax.stages.Lowered:
        """Lowers the step for arguments, for its cost and memory analysis."""
        return self._step.lower(*arguments)


def make_train_step(method: Method, optimizer: optax.GradientTransformation) -> TrainStep:
    r"""Makes the train step of a method.

    $$ \theta' = \begin{cases} \theta & m = 0 \\ \theta + \eta\, m\, u(m \ne 0\ ?\ g : 0) & \text{else} \end{cases} $$
    with gradients g after the method's adjustment, the optimizer's update u, the update mask m and the learning rate
    eta = `hyper['learning_rate']` times the phase's factor. A parameter whose mask is 0 keeps every bit, whatever the
    optimizer carries along and whatever the method does after the step. A method of several parts takes one such update
    for each, in turn, and the loss is their sum.

    Args:
      method: the method.
      optimizer: any Optax transformation at unit rate, such as `optax.sgd(1.0, momentum=0.9)`. One that asks for
        `value` gets the loss.

    Returns:
      `step(learner, mask, clock, batch, key) -> (learner, loss, metrics)` on the focused learner. It is jitted; its
      attribute `traces` counts its traces.
    """
    masked = transforms.with_update_mask(optimizer)

    def step(learner: Learner, mask: Tree, clock: Clock, batch: Batch, key: Array):
        chex.assert_equal_shape_prefix([batch.inputs, batch.labels, batch.tasks, batch.weights], 1)
        if not method.parts:
            return update(learner, mask, clock, batch, key, method.loss)
        losses: list[Array] = []
        metrics: dict[str, Array] = {}
        for number, part in enumerate(method.parts):
            trains = part.trains(learner, clock)
            both = jax.tree.map(lambda m, t: jnp.where(t == 0, jnp.zeros((), m.dtype), m), mask, trains)
            learner, loss, found = update(learner, both, clock, batch, jax.random.fold_in(key, number), part.loss)
            losses, metrics = [*losses, loss], {**metrics, **found}
        return learner, sum(losses), metrics

    def update(learner: Learner, mask: Tree, clock: Clock, batch: Batch, key: Array, loss_of: Callable):
        def objective(params: Tree) -> tuple[Array, tuple[Tree, dict[str, Array]]]:
            return loss_of(params, learner, clock, batch, key)

        (loss, (collections, metrics)), gradients = jax.value_and_grad(objective, has_aux=True)(learner.params)
        gradients = method.adjust_gradients(gradients, learner, clock, batch)
        updates, opt_state = masked.update(gradients, learner.opt_state, learner.params, mask=mask, value=loss)
        learning_rate = learner.hyper["learning_rate"] * phase_learning_rate(method, clock)
        updates = jax.tree.map(lambda update: learning_rate.astype(update.dtype) * update, updates)
        moved = learner._replace(
            params=optax.apply_updates(learner.params, updates), collections=collections, opt_state=opt_state
        )
        moved = keep_signature(learner, moved, f"the loss of {method.name} or the optimizer")
        after = method.after_step(learner, moved, clock, batch, gradients)
        after = keep_signature(learner, after, f"after_step of {method.name}")
        return after._replace(params=transforms.keep_masked(learner.params, after.params, mask)), loss, metrics

    return TrainStep(step)
