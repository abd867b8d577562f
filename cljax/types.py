"""The vocabulary of the library: what flows through a training loop, and what a method is.

Everything that changes is in one pytree, the `Learner`; everything that is fixed is a tuple of pure functions, the
`Network` and the `Method`; the task is traced data, in the `Clock`. These types hold no logic.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

Array = jax.Array
Tree = Any
"""Any pytree of arrays."""

HostArray = Any
"""A NumPy array on the host, or the JAX array it becomes inside a program."""


class Batch(NamedTuple):
    """Examples of one step. A last partial batch wraps around, its surplus examples having weight 0.

    Attributes:
      inputs: `[B, ...]` uint8 or float32, as stored (the network scales and standardises them).
      labels: `[B]` int32, the class index within the example's task; or `[B, K]` float32 in [0, 1], multi-label.
      tasks: `[B]` int32, the task of each example.
      position: `[B]` int32, the place of the example in its task's table; memory's examples have -1.
      weights: `[B]` float32, 1 or 0.
    """

    inputs: Array
    labels: Array
    tasks: Array
    position: Array
    weights: Array


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


def constant_rate(clock: Clock) -> Array:
    """The learning-rate factor of a phase that leaves the rate as it is: 1."""
    del clock
    return jnp.float32(1.0)


class Phase(NamedTuple):
    """A stage of a visit to a task, such as LwF's warm-up.

    Attributes:
      name: shown in progress and errors.
      share: the part of the round's epochs that this phase gets (shares are normalised over the phases that run).
      rate: `clock -> factor` on the learning rate.
      fresh_optimizer: whether the optimizer's state starts anew at the phase's begin, at a first visit.
      skip_first_task: whether the phase does not run on task 0.
    """

    name: str = "train"
    share: float = 1.0
    rate: Callable[[Clock], Array] = constant_rate
    fresh_optimizer: bool = True
    skip_first_task: bool = False


class Wire(NamedTuple):
    """How a parameter leaf connects gates: its inputs' gate and its outputs' gate.

    Attributes:
      path: the leaf's path in `params`, such as `'conv_0/kernel'`.
      inputs: gate on its input features (the leaf's second-last axis); None where the inputs are the images, or for
        biases and normalisation affines, which have no input.
      outputs: gate on its output features (the leaf's last axis); None where the outputs are logits.
      repeat: how often the input gate repeats (`jnp.tile`): after flattening `[H, W, C]` it is `H * W`.
    """

    path: str
    inputs: str | None
    outputs: str | None
    repeat: int = 1


class Encode(Protocol):
    """`(params, collections, inputs, *, train, key) -> maps, activations, collections`."""

    def __call__(
        self, params: Tree, collections: Tree, inputs: Array, *, train: bool, key: Array | None
    ) -> tuple[Array, dict[str, Array], Tree]:
        """Maps raw inputs `[B, ...]` to the last feature maps and the gated activations of every gate."""
        ...


class Decode(Protocol):
    """`(params, collections, maps, *, train, key) -> (logits, features), activations, collections`."""

    def __call__(
        self, params: Tree, collections: Tree, maps: Array, *, train: bool, key: Array | None
    ) -> tuple[tuple[Array, Array], dict[str, Array], Tree]:
        """Maps the last feature maps to logits `[B, K]` and to the features `[B, D]` that enter the head."""
        ...


class Output(NamedTuple):
    """What a whole forward pass gives: logits `[B, K]`, features `[B, D]`, maps, activations and new collections."""

    logits: Array
    features: Array
    maps: Array
    activations: dict[str, Array]
    collections: Tree


class Network(NamedTuple):
    """An ordinary single-task network as pure functions; it knows nothing of tasks.

    Attributes:
      init: `key -> (params, collections)`, nested dicts. `collections` holds `batch_stats`, `gates` (`{name: [C]}`,
        ones) and `frozen` (`{name: [C]}` bool) where the network has them.
      encode: images to maps; see `Encode`.
      decode: maps to logits; see `Decode`. The seam is where Grad-CAM, herding and feature distillation cut.
      per_task: full leaf paths (of params, or of collections with the collection's name first) that belong to a task:
        the head, usually. Empty for a shared head.
      wiring: one `Wire` for each gated leaf of params; empty where gates are unknown.
      inputs: shape of one example, such as `(8, 8, 1)`.
      outputs: K, the number of logits of a head.
    """

    init: Callable[[Array], tuple[Tree, Tree]]
    encode: Encode
    decode: Decode
    per_task: tuple[str, ...]
    wiring: tuple[Wire, ...]
    inputs: tuple[int, ...]
    outputs: int

    def apply(self, params: Tree, collections: Tree, inputs: Array, *, key: Array | None = None) -> Output:
        """Encodes and decodes; in training mode where a key is given, in evaluation mode where it is None."""
        train = key is not None
        encode_key, decode_key = (None, None) if key is None else tuple(jax.random.split(key))
        maps, lower, collections = self.encode(params, collections, inputs, train=train, key=encode_key)
        (logits, features), upper, collections = self.decode(params, collections, maps, train=train, key=decode_key)
        return Output(logits, features, maps, {**lower, **upper}, collections)


class Memory(NamedTuple):
    """Exemplars kept from earlier tasks, in slots of fixed number M.

    Attributes: inputs `[M, ...]` as stored; labels `[M]` (or `[M, K]`); tasks `[M]` int32; valid `[M]` bool.
    """

    inputs: Array
    labels: Array
    tasks: Array
    valid: Array


class Learner(NamedTuple):
    """Everything that changes in a run, one pytree: jit it, vmap it over seeds, shard it, checkpoint it.

    At rest, leaves that belong to a task have rows `[T, ...]`. During a visit the learner is focused: those leaves
    are the task's row, and the stacks are in `rows` (see `cljax.rows`).

    Attributes:
      params, collections: as of `Network.init`, plus what a method adds.
      opt_state: of the Optax transformation.
      method_state: what a method keeps: a teacher, Fisher information, ownership.
      hyper: `{name: float32 scalar}`; `hyper['rate']` is the learning rate, the loop's.
      memory: `Memory`, or None at capacity 0.
      classes: `[T, K]` bool, which logits a task's head uses.
      rows: `cljax.rows.Rows`.
    """

    params: Tree
    collections: Tree
    opt_state: Tree
    method_state: Tree
    hyper: dict[str, Array]
    memory: Memory | None
    classes: Array
    rows: Any


class Fold(Protocol):
    """`fold(fn, carry, split='train')` runs `fn(carry, batch) -> carry` over the examples of the visited task.

    In order of position, once, without augmentation; `capacity[split]` is a static bound on a task's size, for arrays
    with a place per example (`batch.position`). Where `fn` writes by position, surplus examples (weight 0) must be
    dropped, for they repeat others.
    """

    capacity: dict[str, int]

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
      allocate: `(method_state, tasks, capacity) -> method_state`, once at the start, with rows made: for state whose
        shape depends on the number of tasks or on `capacity[split]`, a bound on the number of a task's examples.
      begin_task: `(learner, clock, fold, key) -> learner`, at a first visit only.
      loss: `(params, learner, clock, batch, key) -> (scalar, (collections, metrics))`; key None: evaluation mode.
      parts: empty, for one update a batch; or losses that add up to `loss`, each of which then takes an update of its
        own on the same batch, in turn, with gradients, optimizer and `after_step` as for a whole step.
      adjust_gradients: `(gradients, learner, clock, batch) -> gradients`.
      update_mask: `(learner, clock) -> tree` like params, leaves in [0, 1] that broadcast to the parameter's shape;
        built once a phase. Where it is 0, not a bit moves.
      after_step: `(previous, learner, clock, batch, gradients) -> learner`.
      end_phase: `(learner, clock, fold, key) -> learner`.
      predict: `(learner, inputs, task) -> logits [B, K]`; the resting learner.
      phases: at least one.
      per_task: leaf paths with rows `[T, ...]`: of params, collections, opt_state, method_state, whole suffixes.
      keeps_rows: those of `per_task` that stay stacked during a visit and train whole.
      draws_from: 'current', 'seen' or 'all' tasks' examples, or those seen 'balanced' (see `streams.epoch_order`).
      capacity: number of exemplars in memory; 0 means exemplar-free, and then the loop hands over nothing else.
      forgets_nothing: whether old tasks' logits keep every bit; the runner checks it.
      candidates: None, or `(learner, clock) -> hyper` whose leaves have a leading axis of candidates: each visit is
        then run once a candidate, and `choose` keeps one (see `training.search`).
      choose: `(scores [C], learners [C, ...], clock) -> int32`, from validation accuracies.
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
    keeps_rows: tuple[str, ...]
    draws_from: str
    capacity: int
    forgets_nothing: bool
    candidates: Callable[[Learner, Clock], dict[str, Array]] | None
    choose: Callable[[Array, Learner, Clock], Array]
    network: Network


class Table(NamedTuple):
    """One split of a stream: a flat index over shared examples, with a start and a size per task.

    Attributes: index `[N]` int32 rows of `Tables.examples`; labels `[N]` int32 or `[N, K]` float32, within the task;
    start, size `[T]` int32.
    """

    index: HostArray
    labels: HostArray
    start: HostArray
    size: HostArray


class Tables(NamedTuple):
    """A stream's data, one pytree: never a copy of the examples per task.

    Attributes: examples `[n, ...]` uint8 or float32, shared by all splits, tasks and seeds (or `data.Images`, which are
    read on demand; inside a program, also anything with `read(rows) -> [B, ...]`); train, validation, test:
    `Table`; permutation `[T, P]` int32 over an example's flattened elements, or None; classes `[T, K]` bool.
    """

    examples: HostArray
    train: Table
    validation: Table
    test: Table
    permutation: HostArray | None
    classes: HostArray


class Schedule(NamedTuple):
    """The rounds of a stream, as NumPy arrays: task `[R]` int32, epochs `[R]` int32, evaluate `[R]` bool.

    Tasks are numbered by first visit: the first visits, in order, are 0, 1, 2, ...
    """

    task: HostArray
    epochs: HostArray
    evaluate: HostArray


class Stream(NamedTuple):
    """What is learned and in which order: tables, schedule, and facts about the data (host side).

    Attributes:
      tables: NumPy or JAX arrays.
      schedule: the rounds.
      name: of the data, such as `'digits'`.
      scenario: how logits are read: `'task'`, `'class'` or `'domain'`-incremental.
      mean, std: per channel, of inputs scaled to [0, 1]; for the network's standardisation.
      facts: what a record should say: class order, permutation seed, split.
    """

    tables: Tables
    schedule: Schedule
    name: str
    scenario: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    facts: dict[str, Any]
