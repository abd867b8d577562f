"""What a method is, a tuple of pure functions, and what they are given: the learner and the clock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from cljax.text import brief
from cljax.types.data import Array, Batch, HostArray, Memory, Tree
from cljax.types.network import Network, Output


@jax.tree_util.register_static
class Scenario(str):
    """How a stream's logits are read: 'task', 'class' or 'domain'. A word, never a traced value.

    Example:
      >>> from cljax.types import Scenario, make_clock
      >>> make_clock(scenario='class').scenario == Scenario('class')
      True
    """

    __slots__ = ()


class Clock(NamedTuple):
    """Where a run stands, and what its tasks are. `task` and `phase` are never batched: `lax.switch` stays a branch.

    Attributes:
      round: int32 scalar, index into the stream's schedule.
      task: int32 scalar, the task of this round. Tasks are numbered by first visit.
      phase: int32 scalar, index into the method's phases.
      epoch: int32 scalar, epoch within the phase.
      progress: float32 scalar in [0, 1], how far through the epoch.
      newest: int32 scalar, the largest task visited so far (this round included).
      first: bool scalar, whether this round is the task's first visit.
      classes: `[T, K]` bool, which logits a task's head uses. Every hook is given it; before, None.
      single_label: `[T]` bool where tasks are of both kinds, as of `Tables`; else None.
      scenario: the stream's, which is static: Python's `if` may ask it.

    Example:
      >>> from cljax.types import make_clock
      >>> clock = make_clock(round=4, task=1, newest=3, first=False)  # the second task comes again
      >>> int(clock.task), int(clock.newest), bool(clock.first)
      (1, 3, False)
    """

    round: HostArray
    task: HostArray
    phase: HostArray
    epoch: HostArray
    progress: HostArray
    newest: HostArray
    first: HostArray
    classes: HostArray = None
    single_label: HostArray | None = None
    scenario: Scenario = Scenario("task")


def make_clock(
    round: int = 0,
    task: int = 0,
    phase: int = 0,
    epoch: int = 0,
    progress: float = 0.0,
    newest: int | None = None,
    first: bool = True,
    *,
    classes: HostArray | None = None,
    single_label: HostArray | None = None,
    scenario: str = "task",
) -> Clock:
    """Makes a clock from Python numbers, and what the stream says of its tasks where hooks need it.

    Example:
      >>> from cljax.types import make_clock
      >>> make_clock(task=2).newest
      Array(2, dtype=int32)
    """
    newest = task if newest is None else newest
    round, task, phase, epoch, newest = (jnp.int32(value) for value in (round, task, phase, epoch, newest))
    classes, single_label = (
        None if value is None else jnp.asarray(value, jnp.bool_) for value in (classes, single_label)
    )
    stream = classes, single_label, Scenario(scenario)
    return Clock(round, task, phase, epoch, jnp.float32(progress), newest, jnp.bool_(first), *stream)


class Sizes(NamedTuple):
    """How large a run is: static numbers, for state whose shapes depend on them.

    Attributes:
      tasks: T, the number of tasks.
      classes: K, the number of logits of a head.
      max_examples: `{split: the most examples of a task}`.

    Example:
      >>> from cljax.types import Sizes
      >>> Sizes(tasks=5, classes=2, max_examples={'train': 300, 'validation': 50}).max_examples['train']
      300
    """

    tasks: int
    classes: int
    max_examples: dict[str, int]


@brief
class Learner(NamedTuple):
    """Everything that changes in a run, one pytree: jit it, vmap it over seeds, shard it, checkpoint it.

    At rest, leaves that belong to a task have rows `[T, ...]`. During a visit the learner is focused: those leaves
    are the task's row, and the stacks are in `rows` (see `cljax.task_params`).

    Attributes:
      params, collections: as of `Network.init`, plus what a method adds.
      opt_state: of the Optax transformation.
      method_state: what a method keeps: a teacher, Fisher information, ownership.
      hyper: `{name: float32 scalar}`; `hyper['learning_rate']` is the loop's.
      memory: `Memory`, or None where a method has none.
      rows: `cljax.task_params.Rows`; `rows.tasks` is the number of tasks, static.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax import task_params
      >>> from cljax.types import Learner
      >>> params = {'dense': jnp.ones((4, 3)), 'head': jnp.zeros((2, 3, 5))}  # two tasks have a head each
      >>> learner = Learner(params, {}, (), {}, {}, None, task_params.resting(['head'], tasks=2))
      >>> task_params.focus(learner, jnp.int32(1)).params['head'].shape
      (3, 5)
    """

    params: Tree
    collections: Tree
    opt_state: Tree
    method_state: Tree
    hyper: dict[str, Array]
    memory: Memory | None
    rows: Any


def single_label_of(clock: Clock, tasks: Array) -> Array | None:
    """Which of these tasks are single-label, in a stream of both kinds; None where all are of one kind.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.types import make_clock, single_label_of
      >>> clock = make_clock(single_label=jnp.array([True, False, True]))
      >>> single_label_of(clock, jnp.array([1, 2])).tolist()
      [False, True]
    """
    return None if clock.single_label is None else clock.single_label[tasks]


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


class Init(Protocol):
    """`(key, sizes) -> (params, collections, method_state, hyper)`: the learner of a single task.

    The loop repeats it for each task with a key of its own, stacks the leaves that `per_task` names, and takes all
    others as those of task 0. `hyper` are numbers, which a run may replace.
    """

    def __call__(self, key: Array, sizes: Sizes, /) -> tuple[Tree, Tree, Tree, dict[str, Array]]:
        """Makes the parts of a learner."""
        ...


class Hook(Protocol):
    """`(learner, clock, fold, key) -> learner`, the focused learner: `begin_task` and `end_phase`."""

    def __call__(self, learner: Learner, clock: Clock, fold: Fold, key: Array, /) -> Learner:
        """Changes values of the learner, never its structure, shapes or dtypes."""
        ...


class View(Protocol):
    """`(params, collections, method_state, task, newest) -> (params, collections)`: what a task is computed with.

    The trees that it gets have a single row of what belongs to a task: that task's. Those it returns go into the
    network: with gates that hide features, weights masked, kernels synthesised. `newest` is the clock's in training,
    and None where the learner only predicts.
    """

    def __call__(
        self, params: Tree, collections: Tree, method_state: Tree, task: Array, newest: Array | None, /
    ) -> tuple[Tree, Tree]:
        """Shows the learner as the task sees it."""
        ...


class Loss(Protocol):
    """`(params, learner, clock, batch, key) -> (scalar, (output, metrics))`; key None: evaluation mode.

    The scalar is the mean over the batch, in nats. `output` is the network's, for the current task; where leaves are
    stacked its logits, features, maps and activations are those of all tasks, `[T, B, ...]`: only then can examples of
    other tasks (`batch.tasks`) be read by heads of their own. The loop keeps `output.collections`, shaped as the
    learner's. `metrics` are scalars by name, which a train step returns; a run keeps the loss alone.
    """

    def __call__(
        self, params: Tree, learner: Learner, clock: Clock, batch: Batch, key: Array | None, /
    ) -> tuple[Array, tuple[Output, dict[str, Array]]]:
        """Computes the loss of a batch."""
        ...


class AdjustGradients(Protocol):
    """`(gradients, learner, clock, batch) -> gradients`, of the same shapes, before the optimizer sees them.

    The batch is the step's, augmented.
    """

    def __call__(self, gradients: Tree, learner: Learner, clock: Clock, batch: Batch, /) -> Tree:
        """Adjusts the gradients of a step."""
        ...


class UpdateMask(Protocol):
    """`(learner, clock) -> (mask of params, mask of collections)`, made once a phase.

    Trees like the learner's, leaves in [0, 1] that broadcast to a leaf's shape. Where a mask is 0, not a bit of the
    leaf moves in any step, whatever the optimizer, the network and `after_step` do. Between 0 and 1 it scales a
    parameter's update; collections take the new value as it is.
    """

    def __call__(self, learner: Learner, clock: Clock, /) -> tuple[Tree, Tree]:
        """Says what a phase trains."""
        ...


class AfterStep(Protocol):
    """`(previous, learner, clock, batch, gradients) -> learner`, after every step.

    What it changes of parameters, collections and `method_state` is kept. The gradients are the loss's, before
    `adjust_gradients`; the batch is the step's, augmented. Where chance is needed, a key can be kept in `method_state`
    and folded with the clock.
    """

    def __call__(self, previous: Learner, learner: Learner, clock: Clock, batch: Batch, gradients: Tree, /) -> Learner:
        """Changes values of the learner after a step."""
        ...


class Predict(Protocol):
    """`(learner, inputs, task) -> logits [B, K]`, of the resting learner with all its rows.

    A task that does not exist is refused; a traced one gives NaN.
    """

    def __call__(self, learner: Learner, inputs: HostArray, task: HostArray, /) -> Array:
        """Computes a task's logits; inputs may be NumPy's, and the task a number."""
        ...


class Candidates(Protocol):
    """`(learner, clock, scores) -> hyper`, leaves `[C]`: the numbers that C candidates have in place of the learner's.

    Asked before each candidate. `scores`, `[C]`, are those of `Choose` so far, -1 where there is none yet: numbers may
    follow from the scores of the candidates before. A candidate with the numbers of one before it would be the same by
    bits: it is not trained, and its score is -1.
    """

    def __call__(self, learner: Learner, clock: Clock, scores: Array, /) -> dict[str, Array]:
        """Offers the candidates of a visit; the learner is at rest."""
        ...


class Choose(Protocol):
    """`(scores [C], learners [C, ...], clock, fold) -> (int32, learners)`, once all candidates are trained.

    Scores are validation accuracies, -1 for a candidate that diverged or was not trained. It says which candidate is
    kept, and returns the learners, focused, as they are or changed in what only the comparison can tell.
    """

    def __call__(self, scores: Array, learners: Learner, clock: Clock, fold: Fold, /) -> tuple[Array, Learner]:
        """Chooses a candidate."""
        ...


class Search(NamedTuple):
    """Has each visit run its searched phases once a candidate, and keeps one.

    Attributes:
      candidates: see `Candidates`.
      choose: see `Choose`.
      size: C, how many candidates there are, at least 1.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.types import Search
      >>> def candidates(learner, clock, scores):
      ...     return {'strength': jnp.array([0.1, 1.0])}
      >>> def choose(scores, learners, clock, fold):
      ...     return jnp.argmax(scores).astype(jnp.int32), learners
      >>> search = Search(candidates, choose, size=2)
      >>> int(search.choose(jnp.array([0.8, 0.9]), None, None, None)[0])
      1
    """

    candidates: Candidates
    choose: Choose
    size: int


def constant_learning_rate(clock: Clock) -> Array:
    """The learning-rate factor of a phase that leaves the rate as it is: 1.

    Example:
      >>> from cljax.types import constant_learning_rate, make_clock
      >>> float(constant_learning_rate(make_clock()))
      1.0
    """
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

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.types import Phase, make_clock
      >>> slow = Phase('warm-up', fraction=0.25, learning_rate=lambda clock: jnp.float32(0.1), skip_first_task=True)
      >>> float(slow.learning_rate(make_clock()))
      0.1...
    """

    name: str = "train"
    fraction: float = 1.0
    learning_rate: Callable[[Clock], Array] = constant_learning_rate
    fresh_optimizer: bool = True
    skip_first_task: bool = False
    searched: bool = True


@brief
class Method(NamedTuple):
    """A continual-learning method: a tuple of pure functions. `methods.finetune` fills every field.

    Every hook but `predict` gets the focused learner.

    Attributes:
      name: as the command knows it.
      network: the network it was made for; its shapes are checked against the stream's.
      init: see `Init`.
      begin_task: see `Hook`; at a first visit only.
      view: see `View`.
      loss: see `Loss`.
      adjust_gradients: see `AdjustGradients`.
      update_mask: see `UpdateMask`.
      after_step: see `AfterStep`.
      end_phase: see `Hook`.
      predict: see `Predict`.
      phases: at least one.
      per_task: leaf paths with rows `[T, ...]`: of params, collections, opt_state, method_state, whole suffixes.
      stacked: those of `per_task` that stay stacked during a visit, so that all tasks' rows can train.
      train_on: 'current', 'seen' or 'all' tasks' examples, those seen 'balanced', or in given numbers of each task, a
        tuple (see `streams.epoch_order`).
      memory_size: number of exemplars in memory; 0 means exemplar-free, and then the loop hands over nothing else.
      zero_forgetting: whether old tasks' logits keep every bit, which every result's record says (`report.runs`).
      search: None, or the search that each visit makes.
      strengths: names, in `hyper`, of the numbers that weigh what keeps earlier tasks: where all are 0 nothing does. Of
        a method without such a number none.

    Example:
      >>> from cljax import methods, networks
      >>> method = methods.finetune(networks.mlp((8, 8, 1), 2))
      >>> method._replace(name='mine', train_on='seen').train_on  # a method of one's own: a few fields replaced
      'seen'
    """

    name: str
    network: Network
    init: Init
    begin_task: Hook
    view: View
    loss: Loss
    adjust_gradients: AdjustGradients
    update_mask: UpdateMask
    after_step: AfterStep
    end_phase: Hook
    predict: Predict
    phases: tuple[Phase, ...]
    per_task: tuple[str, ...]
    stacked: tuple[str, ...]
    train_on: str | tuple[int, ...]
    memory_size: int
    zero_forgetting: bool
    search: Search | None
    strengths: tuple[str, ...]
