"""Fine-tuning: train on each task in turn, do nothing against forgetting. The default that all methods amend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from cljax import losses, rows
from cljax.numbers import real, show
from cljax.types import Array, Batch, Clock, Fold, Learner, Method, Network, Output, Phase, Tree, single_label_of


def finetune(network: Network, *, shared_learning_rate: float | None = None, warm_up: float = 0.0) -> Method:
    r"""Fine-tuning: cross-entropy on the current task alone.

    $$ \theta \leftarrow \arg\min_\theta \mathbb{E}_{(x, y) \sim D_t} \left[ -\log \mathrm{softmax}(z_t(x))_y \right] $$

    Args:
      network: an ordinary network; its `per_task` leaves (the head) belong to a task, all others are shared.
      shared_learning_rate: from the second task on, the rate of shared parameters relative to the others', in [0, 1];
        kept as `hyper['shared_learning_rate']`. The paper's table has 0.1. None: the same rate for all.
      warm_up: fraction of a visit's epochs, in [0, 1), in which a new task's own leaves are trained alone.

    Returns:
      The method, every field filled. Other methods are this one with a few fields replaced.

    Raises:
      ValueError: for a number out of range.

    Example:
      >>> from cljax import networks
      >>> method = finetune(networks.mlp((8, 8, 1), 2))
      >>> method.name, method.memory_size, method.train_on
      ('finetune', 0, 'current')

    Reference: the baseline of Li and Hoiem, Learning without Forgetting, 2016, section 2; with
    `shared_learning_rate`, table 2(d). Their code starts it from a warm-up, of which the paper says nothing.
    """
    check_network(network)
    if shared_learning_rate is not None:
        shared_learning_rate = real("finetune's shared_learning_rate", shared_learning_rate, least=0, most=1)
    phases = warm_up_phases("finetune", warm_up, network)

    def init(key: Array) -> tuple[Tree, Tree, Tree, dict[str, Array]]:
        params, collections = network.init(key)
        return (
            params,
            collections,
            {},
            {} if shared_learning_rate is None else {"shared_learning_rate": jnp.float32(shared_learning_rate)},
        )

    def loss(params: Tree, learner: Learner, clock: Clock, batch: Batch, key: Array | None):
        output = network.apply(params, learner.collections, batch.inputs, key=key)
        value = task_loss(output.logits, learner, clock, batch)
        collections = output.collections
        if len(phases) > 1:
            moves = lambda path, leaf: jnp.bool_(rows.has_rows(path, learner.rows)) | ~is_warm_up(phases, clock)
            moved = rows.map_leaves(moves, collections)
            collections = jax.tree.map(jnp.where, moved, collections, learner.collections)
        return value, (collections, {})

    def update_mask(learner: Learner, clock: Clock) -> Tree:
        if shared_learning_rate is None and len(phases) == 1:
            return train_everything(learner, clock)
        shared = jnp.where(clock.newest > 0, learner.hyper.get("shared_learning_rate", jnp.float32(1.0)), 1.0)
        shared = jnp.where(is_warm_up(phases, clock), 0.0, shared)
        one = lambda path, leaf: jnp.float32(1.0) if rows.has_rows(path, learner.rows) else shared
        return rows.map_leaves(one, learner.params)

    def predict(learner: Learner, inputs: Array, task: Array) -> Array:
        tasks = learner.classes.shape[0]
        rows.check_task(task, tasks)  # also where nothing belongs to a task
        params = rows.take_row(learner.params, task, learner.rows)
        collections = rows.take_row(learner.collections, task, learner.rows)
        return rows.of_task(network.apply(params, collections, inputs).logits, task, tasks)

    return Method(
        name="finetune",
        init=init,
        allocate=lambda method_state, tasks, max_examples: method_state,
        begin_task=unchanged,
        loss=loss,
        parts=(),
        adjust_gradients=lambda gradients, learner, clock, batch: gradients,
        update_mask=update_mask,
        after_step=lambda previous, learner, clock, batch, gradients: learner,
        end_phase=unchanged,
        predict=predict,
        phases=phases,
        per_task=network.per_task,
        stacked=(),
        train_on="current",
        memory_size=0,
        zero_forgetting=False,
        candidates=None,
        choose=lambda scores, learners, clock, fold: (jnp.argmax(scores).astype(jnp.int32), learners),
        network=network,
    )


def check_network(network: Any) -> None:
    """Raises: TypeError, where it is no network."""
    if not isinstance(network, Network):
        raise TypeError(
            f"The network is {show(network)}, but must be one of cljax.networks, built: networks.mlp(...), "
            f"networks.cnn(...); networks.from_linen(...) and from_nnx(...) make one of a Flax module."
        )


def warm_up_phases(method: str, fraction: float, network: Network, then: str = "train") -> tuple[Phase, ...]:
    """The phases of a visit: first, after the first task, a new task's own leaves alone; then all that is trained.

    Args:
      method: whose name an error gives.
      fraction: the warm-up's fraction of a visit's epochs; the optimizer's state is kept after it.
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


def is_warm_up(phases: tuple[Phase, ...], clock: Clock) -> Array:
    """Whether it is the warm-up of a first visit, of `warm_up_phases`."""
    return jnp.bool_(len(phases) > 1) & clock.first & (clock.phase == 0)


def unchanged(learner: Learner, clock: Clock, fold: Fold, key: Array) -> Learner:
    """The hook that does nothing."""
    del clock, fold, key
    return learner


def train_everything(learner: Learner, clock: Clock) -> Tree:
    """The update mask that freezes nothing: a scalar 1 for each leaf."""
    del clock
    return jax.tree.map(lambda leaf: jnp.float32(1.0), learner.params)


mean = losses.weighted_mean


def task_loss(logits: Array, learner: Learner, clock: Clock, batch: Batch) -> Array:
    """The mean cross-entropy (nats) of the current task's logits `[B, K]`, over its classes."""
    classes, single = learner.classes[clock.task], single_label_of(learner, clock.task)
    return mean(losses.cross_entropy(logits, batch.labels, classes=classes, single_label=single), batch.weights)


def apply_kept(network: Network, learner: Learner, params: Tree, inputs: Array, *, key: Array | None) -> Output:
    """Applies a network whose kept leaves (`stacked`) are stacks `[T, ...]`: the logits of all tasks.

    What does not depend on a kept leaf, the encoder usually, is computed once.

    Returns:
      `Output` with logits `[T, B, K]`; features, maps and activations are those of a task each, `[T, ...]`.
    """
    axes = tuple(rows.row_axes(tree, learner.rows) for tree in (params, learner.collections))

    def one(params: Tree, collections: Tree) -> Output:
        return network.apply(params, collections, inputs, key=key)

    out = Output(0, 0, 0, 0, axes[1])  # type: ignore[arg-type]
    tasks = learner.classes.shape[0]
    return jax.vmap(one, in_axes=axes, out_axes=out, axis_size=tasks)(params, learner.collections)


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
    params, collections = jax.eval_shape(network.init, jax.random.key(0))
    own = lambda path: rows.ends_with(path, network.per_task)
    axes = [rows.map_leaves(lambda path, leaf: 0 if own(path) else None, tree) for tree in (params, collections)]
    one = lambda params, collections, inputs: read(network.apply(params, collections, inputs, key=jax.random.key(0)))
    every = jax.vmap(one, in_axes=(*axes, None), out_axes=None, axis_size=2)
    twice = lambda leaf, axis: leaf if axis is None else jax.ShapeDtypeStruct((2, *leaf.shape), leaf.dtype)
    stacked = [
        jax.tree.map(lambda axis, leaf: twice(leaf, axis), axis, tree, is_leaf=lambda leaf: leaf is None)
        for axis, tree in zip(axes, (params, collections), strict=True)
    ]
    try:
        jax.eval_shape(every, *stacked, jax.ShapeDtypeStruct((2, *network.inputs), jnp.float32))
    except ValueError as error:
        if "out_axes" not in str(error):
            raise
        return True
    return False
