"""What nearly all methods share: a method of every field, the forward pass, the task's loss, masks, phases."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core

from cljax import losses, task_params
from cljax.numbers import check_option, is_list, real, show
from cljax.trees import pick
from cljax.types import (
    Array,
    Batch,
    Clock,
    Fold,
    Learner,
    Method,
    Network,
    Output,
    Phase,
    Sizes,
    Tree,
    View,
    single_label_of,
)

mean = losses.weighted_mean

Scope = Literal["auto", "per_task", "concatenated"]
"""Which classes a softmax is over; see `all_outputs`."""


def as_it_is(
    params: Tree, collections: Tree, method_state: Tree, task: Array, newest: Array | None
) -> tuple[Tree, Tree]:
    """The view of a method that hides nothing."""
    del method_state, task, newest
    return params, collections


def plain(
    name: str,
    network: Network,
    *,
    view: View = as_it_is,
    warm_up: float = 0.0,
    joint_phase: str = "train",
    scope: Scope = "auto",
    numbers: Mapping[str, float] = MappingProxyType({}),
) -> Method:
    """Fine-tuning through a view, every field filled: the method that all others are, with a few fields replaced.

    Args:
      name: the method's.
      network: an ordinary network.
      view: what a task is computed with, in the loss and in `predict`.
      warm_up: fraction of a visit's epochs, in [0, 1), in which a new task's own leaves are trained alone.
      joint_phase: the name of the phase after it.
      scope: which classes an example's softmax is over: of its own task, 'per_task'; of all tasks seen, 'concatenated',
        whose heads then train together, stacked. 'auto': of all tasks seen where the scenario is class-incremental and
        there is a memory of exemplars, else of its own.
      numbers: the hyper-parameters, kept as float32 in `hyper`.

    Returns:
      The method.

    Raises:
      TypeError: where the network is none.
      ValueError: for an unknown scope, or a number out of range; for 'concatenated', where nothing belongs to a task.

    Example:
      >>> from cljax import networks
      >>> from cljax.methods import plain
      >>> [phase.name for phase in plain('mine', networks.mlp((8, 8, 1), 2), warm_up=0.25).phases]
      ['warm-up', 'train']
    """
    check_network(network)
    check_option(f"{name}'s scope", scope, Scope)
    if scope == "concatenated":
        require_own_leaves(f"{name} with one softmax over all tasks' heads", network)
    phases = warm_up_phases(name, warm_up, network, joint_phase)

    def init(key: Array, sizes: Sizes) -> tuple[Tree, Tree, Tree, dict[str, Array]]:
        return *network.init(key), {}, {name: jnp.float32(value) for name, value in numbers.items()}

    def loss(params: Tree, learner: Learner, clock: Clock, batch: Batch, key: Array | None):
        output = forward(network, view, params, learner, clock, batch.inputs, key=key)
        wide = all_outputs(scope, clock, output.logits) and (scope != "auto" or learner.memory is not None)
        return task_loss(output.logits, clock, batch, seen_tasks(learner, clock) if wide else None), (output, {})

    def update_mask(learner: Learner, clock: Clock) -> tuple[Tree, Tree]:
        alone = is_warm_up(phases, clock)
        older = seen_tasks(learner, clock) & ~alone & (scope == "concatenated")
        return update_masks(learner, own_task(learner, clock) | older, ~alone)

    def predict(learner: Learner, inputs: Array, task: Array) -> Array:
        task_params.check_task(task, learner.rows.tasks)  # also where nothing belongs to a task
        trees = (learner.params, learner.collections, learner.method_state)
        params, collections, state = (task_params.take_row(tree, task, learner.rows) for tree in trees)
        shown = view(params, collections, state, task, None)
        return task_params.of_task(network.apply(*shown, inputs).logits, task, learner.rows.tasks)

    return Method(
        name=name,
        network=network,
        init=init,
        begin_task=unchanged,
        view=view,
        loss=loss,
        adjust_gradients=lambda gradients, learner, clock, batch: gradients,
        update_mask=update_mask,
        after_step=lambda previous, learner, clock, batch, gradients: learner,
        end_phase=unchanged,
        predict=predict,
        phases=phases,
        per_task=network.per_task,
        stacked=network.per_task if scope == "concatenated" else (),
        train_on="current",
        memory_size=0,
        zero_forgetting=False,
        search=None,
        strengths=(),
    )


def forward(
    network: Network, view: View, params: Tree, learner: Learner, clock: Clock, inputs: Array, *, key: Array | None
) -> Output:
    """Runs the network as the current task sees it; where leaves are stacked, as every task does.

    Returns:
      `Output`, logits `[B, K]`; or `[T, B, K]`, as `each_task` has it.
    """

    def one(params: Tree, collections: Tree, task: Array) -> Output:
        shown = view(params, collections, learner.method_state, task, clock.newest)
        return network.apply(*shown, inputs, key=key)

    return each_task(one, params, learner, clock)


def each_task(one: Callable[[Tree, Tree, Array], Output], params: Tree, learner: Learner, clock: Clock) -> Output:
    """Runs `one(params, collections, task)` for the current task; where leaves are stacked, for every task.

    What does not depend on the task or on a stacked leaf, the encoder usually, is computed once.

    Returns:
      `Output` of the current task; or with logits, features, maps and activations of all tasks, `[T, ...]`, and those
      collections that are not stacked as the current task leaves them.
    """
    if not learner.rows.stacked:
        return one(params, learner.collections, clock.task)
    axes = (task_params.row_axes(tree, learner.rows) for tree in (params, learner.collections))
    tasks = jnp.arange(learner.rows.tasks, dtype=jnp.int32)
    output = jax.vmap(one, in_axes=(*axes, 0))(params, learner.collections, tasks)
    own = lambda path, leaf: leaf if task_params.ends_with(path, learner.rows.stacked) else pick(leaf, clock.task)
    return output._replace(collections=task_params.map_leaves(own, output.collections))


def all_outputs(scope: Scope, clock: Clock, logits: Array) -> bool:
    """Whether the softmax is over the classes of all tasks seen, as one growing head.

    'auto': where the scenario is class-incremental, so that tasks must be told apart; unless there is one head for all,
    or tasks of several labels an example are among others, so that no one softmax would do.
    """
    can_be = logits.ndim == 3 and clock.single_label is None
    return scope == "concatenated" or (scope == "auto" and clock.scenario == "class" and can_be)


def task_loss(logits: Array, clock: Clock, batch: Batch, seen: Array | None = None) -> Array:
    """The mean cross-entropy (nats) of each example over its own task's classes, or over those of all tasks seen.

    Args:
      logits: `[B, K]`; or all tasks' `[T, B, K]`, of which each example has its own task's.
      clock: the current one.
      batch: of the current task, or with exemplars of others.
      seen: `[T]` bool, the tasks whose classes are all in one softmax; None: each example's own task alone.

    Raises:
      ValueError: for one softmax, where only some tasks have a single label an example.
    """
    if seen is not None:
        if clock.single_label is not None:
            raise ValueError(
                "Some tasks are single-label, others are not, so that no one softmax is over the classes of all: "
                "choose scope='per_task'."
            )
        labels, classes = one_head_labels(batch, clock), outputs_of(clock, seen)
        return mean(losses.cross_entropy(task_params.flatten_heads(logits), labels, classes=classes), batch.weights)
    if logits.ndim == 3:
        own = jnp.arange(len(logits), dtype=jnp.int32)[:, None] == batch.tasks[None]
        logits = jnp.sum(jnp.where(own[:, :, None], logits, 0), axis=0)
    classes, single = clock.classes[batch.tasks], single_label_of(clock, batch.tasks)
    return mean(losses.cross_entropy(logits, batch.labels, classes=classes, single_label=single), batch.weights)


def own_task(learner: Learner, clock: Clock) -> Array:
    """The current task, `[T]` bool."""
    return jnp.arange(learner.rows.tasks, dtype=jnp.int32) == clock.task


def seen_tasks(learner: Learner, clock: Clock) -> Array:
    """The tasks seen so far, `[T]` bool."""
    return jnp.arange(learner.rows.tasks, dtype=jnp.int32) <= clock.newest


def update_masks(learner: Learner, tasks: Array, shared: Array | bool) -> tuple[Tree, Tree]:
    """The update masks that train some tasks' rows of the stacked leaves, `[T]` bool, and perhaps what is shared.

    A leaf that belongs to the task and is not stacked is trained.
    """

    def one(path: str, leaf: Array) -> Array:
        if task_params.ends_with(path, learner.rows.stacked):
            return tasks.astype(jnp.float32).reshape(-1, *(1,) * (leaf.ndim - 1))
        return jnp.float32(1.0) if task_params.has_rows(path, learner.rows) else jnp.asarray(shared, jnp.float32)

    return task_params.map_leaves(one, learner.params), task_params.map_leaves(one, learner.collections)


def everything(tree: Tree) -> Tree:
    """The update mask that freezes nothing: a scalar 1 for each leaf."""
    return jax.tree.map(lambda leaf: jnp.float32(1.0), tree)


def stop_shared(params: Tree, learner: Learner) -> Tree:
    """The parameters, those that tasks share being constants."""
    stop = lambda path, leaf: leaf if task_params.has_rows(path, learner.rows) else lax.stop_gradient(leaf)
    return task_params.map_leaves(stop, params)


def outputs_of(clock: Clock, tasks: Array) -> Array:
    """The outputs of some tasks, `[T]` bool, in the one growing head, `[T * K]` bool."""
    return (clock.classes & tasks[:, None]).reshape(-1)


def one_head_labels(batch: Batch, clock: Clock) -> Array:
    """The labels as those of one growing head: `[B]` int32; of several labels an example, `[B, T * K]` float32."""
    if batch.labels.ndim == 2:
        return place_labels(batch, clock)
    outputs = clock.classes.shape[1]
    places, known = losses.known_labels(batch.labels, outputs)
    return jnp.where(known, batch.tasks * outputs + places, -1)


def place_labels(batch: Batch, clock: Clock) -> Array:
    """The labels as targets of one growing head: `[B, T * K]` float32, 0 outside the own task's block.

    Where a label is no class, all are NaN, and so will the loss be.
    """
    tasks, outputs = clock.classes.shape
    labels = batch.labels
    if labels.ndim == 1:
        places, known = losses.known_labels(labels, outputs)
        labels = jnp.where(known[:, None], jax.nn.one_hot(places, outputs, dtype=jnp.float32), jnp.nan)
    placed = jax.nn.one_hot(batch.tasks, tasks, dtype=jnp.float32)[:, :, None] * labels[:, None, :].astype(jnp.float32)
    return placed.reshape(-1, tasks * outputs)


def warm_up_phases(method: str, fraction: float, network: Network, then: str = "train") -> tuple[Phase, ...]:
    """The phases of a visit: first, after the first task, a new task's own leaves alone; then all that is trained.

    Args:
      method: whose name an error gives.
      fraction: the warm-up's part of a visit's epochs; the optimizer's state is kept after it.
      network: where nothing belongs to a task there is no warm-up.
      then: the name of the second phase.

    Returns:
      Two phases, or the second alone.

    Raises:
      ValueError: for a fraction out of range.

    Example:
      >>> from cljax import networks
      >>> [phase.name for phase in warm_up_phases('lwf', 0.25, networks.mlp((8, 8, 1), 2), 'joint')]
      ['warm-up', 'joint']
    """
    fraction = real(f"{method}'s warm_up", fraction, least=0, below=1)
    if not fraction or not network.per_task:
        return (Phase(then),)
    return Phase("warm-up", fraction, skip_first_task=True), Phase(then, 1 - fraction, fresh_optimizer=False)


def scheduled(method: str, option: str, given: float | Sequence[float], **bounds: float) -> dict[str, float]:
    """An option with a number for each of the first tasks, the last for all further ones, as hyper-parameters by name.

    Args:
      method: whose name an error gives.
      option: likewise, and the hyper-parameter's name.
      given: a number, or a sequence of them.
      bounds: of `numbers.real`.

    Returns:
      `{option: number}`, or of a sequence `{option_0: number, option_1: ...}`; for `number_of_task`.

    Raises:
      ValueError: for a number out of range, or none.

    Example:
      >>> scheduled('tfm', 'growth', (0.5, 0.25), least=0), scheduled('tfm', 'growth', 0.5)
      ({'growth_0': 0.5, 'growth_1': 0.25}, {'growth': 0.5})
    """
    numbers = [real(f"{method}'s {option}", one, **bounds) for one in (given if is_list(given) else [given])]
    if not numbers:
        raise ValueError(f"{method}'s {option} has no number; give one, or one for each of the first tasks.")
    names = [option] if len(numbers) == 1 else [f"{option}_{task}" for task in range(len(numbers))]
    return dict(zip(names, numbers, strict=True))


def number_of_task(hyper: dict[str, Array], names: Iterable[str], task: Array) -> Array:
    """A task's number of those of `scheduled`.

    Example:
      >>> hyper = {'growth_0': jnp.float32(0.5), 'growth_1': jnp.float32(0.25)}
      >>> [float(number_of_task(hyper, list(hyper), task)) for task in (0, 1, 2)]
      [0.5, 0.25, 0.25]
    """
    numbers = jnp.stack([hyper[name] for name in names])
    return numbers[jnp.minimum(task, len(numbers) - 1)]


def is_warm_up(phases: tuple[Phase, ...], clock: Clock) -> Array:
    """Whether it is the warm-up of a first visit, of `warm_up_phases`."""
    return jnp.bool_(len(phases) > 1 and phases[0].skip_first_task) & clock.first & (clock.phase == 0)


def unchanged(learner: Learner, clock: Clock, fold: Fold, key: Array) -> Learner:
    """The hook that does nothing."""
    del clock, fold, key
    return learner


def check_network(network: Any) -> None:
    """Raises: TypeError, where it is no network."""
    if not isinstance(network, Network):
        raise TypeError(
            f"The network is {show(network)}, but must be one of cljax.networks, built: networks.mlp(...), "
            f"networks.cnn(...); networks.from_linen(...) and from_nnx(...) make one of a Flax module."
        )


def require_own_leaves(name: str, network: Network) -> None:
    """Raises a `ValueError` where a network has no leaves that belong to a task."""
    if not network.per_task:
        raise ValueError(
            f"{name} needs leaves that belong to a task, but this network's per_task is empty (a shared head, as in "
            f"the domain-incremental scenario). Name some, for example "
            f"network._replace(per_task=('head/kernel', 'head/bias')), or choose another method."
        )


def depends_on_own(network: Network, read: Callable[[Output], Tree]) -> bool:
    """Whether something of a forward pass in training mode depends on the leaves that belong to a task.

    Args:
      network: an ordinary network.
      read: takes the thing from the `Output`.

    Example:
      >>> from cljax import networks
      >>> network = networks.mlp((8, 8, 1), 2)
      >>> [depends_on_own(network, read) for read in (lambda out: out.logits, lambda out: out.features)]
      [True, False]
    """
    return any(task_params.ends_with(path, network.per_task) for path in leaves_read(network, read))


def leaves_read(network: Network, read: Callable[[Output], Tree]) -> set[str]:
    """The leaves of params and collections that something of a forward pass in training mode depends on.

    Args:
      network: an ordinary network.
      read: takes the thing from the `Output`.

    Example:
      >>> from cljax import networks
      >>> sorted(leaves_read(networks.mlp((8, 8, 1), 2, hidden=(4,)), lambda output: output.features))
      ['dense_0/bias', 'dense_0/kernel', 'gates/dense_0']
    """
    params, collections = network.shapes
    paths = [path for tree in (params, collections) for path in task_params.by_path(tree)]
    one = lambda params, collections, inputs: read(network.apply(params, collections, inputs, key=jax.random.key(0)))
    inputs = jax.ShapeDtypeStruct((2, *network.inputs), jnp.float32)
    traced = jax.make_jaxpr(one)(params, collections, inputs).jaxpr
    given = [frozenset([path]) for path in paths] + [frozenset[str]()]
    return set().union(*_reach(traced, given))


def _reach(jaxpr: Any, given: Sequence[frozenset[str]]) -> list[frozenset[str]]:
    """On which of the names that the inputs of a jaxpr are given its outputs depend."""
    known = dict(zip(jaxpr.invars, given, strict=True))
    of = lambda atom: frozenset[str]() if isinstance(atom, core.Literal) else known.get(atom, frozenset[str]())
    for equation in jaxpr.eqns:
        names = [*map(of, equation.invars)]
        found = [frozenset[str]().union(*names)] * len(equation.outvars)
        inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
        inner = inner.jaxpr if isinstance(inner, core.ClosedJaxpr) else inner
        if equation.effects:  # what is written into a reference
            known |= {atom: frozenset().union(*names) for atom in equation.invars if not isinstance(atom, core.Literal)}
        elif isinstance(inner, core.Jaxpr) and equation.primitive.name not in ("scan", "while"):
            alike = len(inner.invars) == len(names) and len(inner.outvars) == len(found)
            found = _reach(inner, names) if alike else found
        known |= dict(zip(equation.outvars, found, strict=True))
    return [*map(of, jaxpr.outvars)]
