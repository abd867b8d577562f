"""What a method is, a tuple of pure functions, and what they are given: the learner and the clock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax.numpy as jnp

from cljax.types.data import Array, Batch, HostArray, Memory, Tree
from cljax.types.network import Network


class Clock(NamedTuple):
    """Where a run stands. Traced scalars; `task` and `phase` are never batched, so `lax.switch` stays a branch.

    Attributes:
      round: int32, index into the stream's schedule.
      task: int32, the task of this round. Tasks are numbered by first visit.
      phase: int32, index into the method's phases.
      epoch: int32, epoch within the phase.
      progress: float32 in [0, 1], how far through the epoch.
      newest: int32, the largest task visited so far (this round included).
      first: bool, whether this round is the task's first visit.
    """

    round: HostArray
    task: HostArray
    phase: HostArray
    epoch: HostArray
    progress: HostArray
    newest: HostArray
    first: HostArray


def make_clock(
    round: int = 0,
    task: int = 0,
    phase: int = 0,
    epoch: int = 0,
    progress: float = 0.0,
    newest: int | None = None,
    first: bool = True,
) -> Clock:
    """Makes a clock from Python numbers.

    Example:
      >>> make_clock(task=2).newest
      Array(2, dtype=int32)
    """
    newest = task if newest is None else newest
    round, task, phase, epoch, newest = (jnp.int32(value) for value in (round, task, phase, epoch, newest))
    return Clock(round, task, phase, epoch, jnp.float32(progress), newest, jnp.bool_(first))


def constant_learning_rate(clock: Clock) -> Array:
    """The learning-rate factor of a phase that leaves the rate as it is: 1."""
    del clock
    return jnp.float32(1.0)


class Phase(NamedTuple):
    """A stage of a visit to a task, such as LwF's warm-up.

    Attributes:
      name: shown in progress and errors.
      fraction: the part of the round's epochs that this phase gets (fractions are normalised over the phases that run).
      learning_rate: `clock -> factor` on the learning rate.
      fresh_optimizer: whether the optimizer's state starts anew at the phase's begin, at a first visit.
      skip_first_task: whether the phase does not run on task 0.
      searched: whether every candidate of a search runs it. Those that are not come last: only the one chosen does.
    """

    name: str = "train"
    fraction: float = 1.0
    learning_rate: Callable[[Clock], Array] = constant_learning_rate
    fresh_optimizer: bool = True
    skip_first_task: bool = False
    searched: bool = True


class Learner(NamedTuple):
    """Everything that changes in a run, one pytree: jit it, vmap it over seeds, shard it, checkpoint it.

    At rest, leaves that belong to a task have rows `[T, ...]`. During a visit the learner is focused: those leaves
    are the task's row, and the stacks are in `rows` (see `cljax.task_params`).

    Attributes:
      params, collections: as of `Network.init`, plus what a method adds.
      opt_state: of the Optax transformation.
      method_state: what a method keeps: a teacher, Fisher information, ownership.
      hyper: `{name: float32 scalar}`; `hyper['learning_rate']` is the learning rate, the loop's.
      memory: `Memory`, or None at size 0.
      classes: `[T, K]` bool, which logits a task's head uses.
      rows: `cljax.task_params.Rows`.
      single_label: as of `Tables`.
    """

    params: Tree
    collections: Tree
    opt_state: Tree
    method_state: Tree
    hyper: dict[str, Array]
    memory: Memory | None
    classes: Array
    rows: Any
    single_label: Array | None = None


def single_label_of(learner: Learner, tasks: Array) -> Array | None:
    """Which of these tasks are single-label, in a stream of both kinds; None where all are of one kind."""
    return None if learner.single_label is None else learner.single_label[tasks]


class Fold(Protocol):
    """`fold(fn, carry, split='train')` runs `fn(carry, batch) -> carry` over the examples of the visited task.

    In order of position, once, without augmentation; `max_examples[split]` is a static bound on a task's size, for
    arrays with a place per example (`batch.position`). Where `fn` writes by position, surplus examples (weight 0) must
    be dropped, for they repeat others.
    """

    max_examples: dict[str, int]

    def __call__(self, fn: Callable[[Any, Batch], Any], carry: Any, split: str = "train") -> Any:
        """Folds `fn` over the batches."""
        ...


class Part(NamedTuple):
    """A loss that takes an update of its own; see `Method.parts`.

    Attributes:
      loss: as `Method.loss`.
      trains: `(learner, clock) -> tree` like params, leaves 0 or 1 that broadcast to the parameter's shape. Where it is
        0, this part's update changes neither the parameter nor what the optimizer keeps for it.
    """

    loss: Callable[[Tree, Learner, Clock, Batch, Array | None], tuple[Array, tuple[Tree, dict[str, Array]]]]
    trains: Callable[[Learner, Clock], Tree]


class Method(NamedTuple):
    """A continual-learning method: a tuple of pure functions. `methods.finetune` fills every field.

    Every hook but `predict` gets the focused learner.

    Attributes:
      name: as the command knows it.
      init: `key -> (params, collections, method_state, hyper)`, of a single task; the loop makes the rows.
      allocate: `(method_state, tasks, max_examples) -> method_state`, once at the start, with rows made: for state
        whose shape depends on the number of tasks or on `max_examples[split]`, a bound on a task's examples.
      begin_task: `(learner, clock, fold, key) -> learner`, at a first visit only.
      loss: `(params, learner, clock, batch, key) -> (scalar, (collections, metrics))`; key None: evaluation mode.
      parts: empty, for one update a batch; or losses that add up to `loss`, each of which then takes an update of its
        own on the same batch, in turn, with gradients, optimizer and `after_step` as for a whole step.
      adjust_gradients: `(gradients, learner, clock, batch) -> gradients`.
      update_mask: `(learner, clock) -> tree` like params, leaves in [0, 1] that broadcast to the parameter's shape;
        built once a phase. Where it is 0, not a bit moves.
      after_step: `(previous, learner, clock, batch, gradients) -> learner`.
      end_phase: `(learner, clock, fold, key) -> learner`.
      predict: `(learner, inputs, task) -> logits [B, K]`; the resting learner. A task that does not exist is refused; a
        traced one gives NaN.
      phases: at least one.
      per_task: leaf paths with rows `[T, ...]`: of params, collections, opt_state, method_state, whole suffixes.
      stacked: those of `per_task` that stay stacked during a visit and train whole.
      train_on: 'current', 'seen' or 'all' tasks' examples, or those seen 'balanced' (see `streams.epoch_order`).
      memory_size: number of exemplars in memory; 0 means exemplar-free, and then the loop hands over nothing else.
      zero_forgetting: whether old tasks' logits keep every bit; the runner checks it.
      candidates: None, or `(learner, clock) -> hyper` whose leaves have a leading axis of candidates: each visit's
        searched phases are then run once a candidate, and `choose` keeps one (see `training.search`).
      choose: `(scores [C], learners [C, ...], clock, fold) -> (int32, learners)`, from validation accuracies, once all
        candidates are trained: which one is kept, and the learners, as they are or changed in what only the comparison
        can tell.
      network: the network it was made for; its shapes are checked against the stream's.
    """

    name: str
    init: Callable[[Array], tuple[Tree, Tree, Tree, dict[str, Array]]]
    allocate: Callable[[Tree, int, dict[str, int]], Tree]
    begin_task: Callable[[Learner, Clock, Fold, Array], Learner]
    loss: Callable[[Tree, Learner, Clock, Batch, Array | None], tuple[Array, tuple[Tree, dict[str, Array]]]]
    parts: tuple[Part, ...]
    adjust_gradients: Callable[[Tree, Learner, Clock, Batch], Tree]
    update_mask: Callable[[Learner, Clock], Tree]
    after_step: Callable[[Learner, Learner, Clock, Batch, Tree], Learner]
    end_phase: Callable[[Learner, Clock, Fold, Array], Learner]
    predict: Callable[[Learner, Array, Array], Array]
    phases: tuple[Phase, ...]
    per_task: tuple[str, ...]
    stacked: tuple[str, ...]
    train_on: str
    memory_size: int
    zero_forgetting: bool
    candidates: Callable[[Learner, Clock], dict[str, Array]] | None
    choose: Callable[[Array, Learner, Clock, Fold], tuple[Array, Learner]]
    network: Network
