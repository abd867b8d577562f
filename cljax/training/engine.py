"""The engine: the pure functions of which every driver is made.

A run is rounds, a round is a visit to a task, a visit is phases, a phase is epochs, an epoch is steps. `make_run`
composes these functions into one program for a whole stream; `drive` calls them from Python and shows progress; where
examples are read as the run goes on, `cljax.training.streaming` takes an epoch apart into its batches. All take the
same steps on the same batches with the same keys.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from cljax import streams, task_params
from cljax.augmentation import augment_batch
from cljax.numbers import FLOAT32
from cljax.training.evaluation import Evaluation, evaluate, evaluate_task, number_of_batches, over_task
from cljax.training.looking import make_look
from cljax.training.plan import epoch_key, in_stream, init_key, visit_key
from cljax.training.state import (
    EVALUATION_BATCH,
    EpochLog,
    Failure,
    PhaseState,
    Progress,
    Settings,
    earlier,
    failure_at,
    no_failure,
    no_progress,
    unknown,
)
from cljax.training.step import (
    TrainStep,
    keep_signature,
    make_learner,
    make_train_step,
    phase_learning_rate,
    strengthen,
)
from cljax.training.stopping import snapshot, wait
from cljax.trees import pick, select
from cljax.types import Array, Batch, Clock, Learner, Method, Tables, Tree


class Epoch(NamedTuple):
    """What is fixed through an epoch.

    Attributes:
      clock: at the epoch's beginning.
      key: the epoch's.
      learning_rate: float32, the learning rate by the state of patience.
      order, examples: of `streams.epoch_order`: positions, and how many of them count.
      steps: int32, the number of batches.
    """

    clock: Clock
    key: Array
    learning_rate: Array
    order: Array
    examples: Array
    steps: Array


class Engine(NamedTuple):
    """The pure functions of a run; key is the run's key throughout, and the clock says where it stands.

    Attributes:
      init: `(key, tables) -> learner`, at rest.
      begin_visit: `(learner, clock, tables, key) -> learner`, focused, `begin_task` done at a first visit.
      begin_phase: `(learner, clock, tables, key) -> PhaseState`.
      epoch: `(state, clock, tables, key) -> (state, EpochLog)`; the epoch's number is the state's.
      end_phase: `(state, clock, tables, key) -> (learner, failure)`, focused.
      end_visit: `(learner, clock) -> learner`, at rest.
      evaluate: `(learner, clock, tables) -> Evaluation` of the learner at rest, on the test split.
      validate: `(learner, clock, tables) -> accuracy` of the focused learner on its task's validation split.
      choose: `((scores [C], learners [C, ...]), clock, tables) -> (index, learner)`, all at rest: the candidate
        that the method keeps.
      begin_epoch: `(state, clock, tables, key) -> Epoch`.
      train: `(state, epoch, tables, stop) -> state`: the steps from where the epoch is to before step `stop`, or its
        end. Where `tables.examples` has `of_step`, it gives the examples of a step.
      end_epoch: `(state, epoch, tables) -> (state, EpochLog)`: validation, patience.
      look: of `make_look`, for the `attention` of the evaluation after a round; None without.
      step: the train step, for its cost and number of traces.
      settings: those the engine was made with.
      scenario: the stream's.
    """

    init: Callable[[Array, Tables], Learner]
    begin_visit: Callable[[Learner, Clock, Tables, Array], Learner]
    begin_phase: Callable[[Learner, Clock, Tables, Array], PhaseState]
    epoch: Callable[[PhaseState, Clock, Tables, Array], tuple[PhaseState, EpochLog]]
    end_phase: Callable[[PhaseState, Clock, Tables, Array], tuple[Learner, Failure]]
    end_visit: Callable[[Learner, Clock], Learner]
    evaluate: Callable[[Learner, Clock, Tables], Evaluation]
    validate: Callable[[Learner, Clock, Tables], Array]
    choose: Callable[[tuple[Array, Learner], Clock, Tables], tuple[Array, Learner]]
    begin_epoch: Callable[[PhaseState, Clock, Tables, Array], Epoch]
    train: Callable[[PhaseState, Epoch, Tables, Array], PhaseState]
    end_epoch: Callable[[PhaseState, Epoch, Tables], tuple[PhaseState, EpochLog]]
    look: Callable[[Learner, Tables], Array] | None
    step: TrainStep
    settings: Settings
    scenario: str


class TaskFold:
    """The `Fold` of a program: a loop over the visited task's batches, traced into it."""

    def __init__(self, tables: Tables, task: Array, max_examples: dict[str, int], batch_size: int) -> None:
        self._tables, self._task, self._batch_size = tables, task, batch_size
        self.max_examples = max_examples

    def __call__(self, fn: Callable[[Any, Batch], Any], carry: Any, split: str = "train") -> Any:
        """Folds `fn` over the task's examples, in order of position."""
        return over_task(fn, carry, self._tables, getattr(self._tables, split), self._task, self._batch_size)


def make_engine(
    method: Method,
    optimizer: optax.GradientTransformation,
    settings: Settings,
    *,
    scenario: str,
    max_examples: dict[str, int],
) -> Engine:
    """Makes the engine of a method.

    Args:
      method: the method.
      optimizer: an Optax transformation at unit rate.
      settings: how the run is carried out.
      scenario: 'task', 'class' or 'domain': how logits are read.
      max_examples: of `streams.max_examples`, at least that of any stream the engine will see.

    Returns:
      The engine: pure functions, to be jitted, scanned or vmapped.

    Example:
      >>> import optax
      >>> from cljax import methods, networks, training
      >>> method = methods.finetune(networks.mlp((8, 8, 1), 2, hidden=(4,)))
      >>> most = {'train': 300, 'validation': 30, 'test': 80}
      >>> engine = training.make_engine(method, optax.sgd(1.0), training.Settings(), scenario='task', max_examples=most)
      >>> engine.scenario, engine.settings.batch_size
      ('task', 32)
    """
    step, look = make_train_step(method, optimizer), make_look(method, settings.attention_images)
    stopping, batch_size = settings.stopping, settings.batch_size
    many = settings.evaluation_batch or EVALUATION_BATCH
    fresh = np.array([phase.fresh_optimizer for phase in method.phases])

    def make_fold(tables: Tables, clock: Clock) -> TaskFold:
        return TaskFold(tables, clock.task, max_examples, many)

    def begin_visit(learner: Learner, clock: Clock, tables: Tables, key: Array) -> Learner:
        learner, clock = task_params.focus(learner, clock.task), in_stream(clock, tables, scenario)

        def begin(learner: Learner) -> Learner:
            after = method.begin_task(learner, clock, make_fold(tables, clock), visit_key(key, clock, 0))
            return keep_signature(learner, after, f"begin_task of {method.name}")

        return lax.cond(clock.first, begin, lambda learner: learner, learner)

    def begin_phase(learner: Learner, clock: Clock, tables: Tables, key: Array) -> PhaseState:
        del key
        clock = in_stream(clock, tables, scenario)
        if fresh.any():
            renew = clock.first & jnp.asarray(fresh)[clock.phase]
            anew = learner._replace(opt_state=optimizer.init(learner.params))
            anew = keep_signature(learner, anew, "the optimizer's init")
            learner = learner._replace(opt_state=select(renew, anew.opt_state, learner.opt_state))
        mask = strengthen(method.update_mask(learner, clock))
        best = snapshot(learner) if stopping else None
        zero, false = jnp.int32(0), jnp.bool_(False)
        patience = jnp.int32(stopping.patience if stopping else 0)
        one, worst = jnp.float32(1.0), jnp.float32(FLOAT32)
        return PhaseState(learner, mask, one, best, worst, patience, zero, no_progress(), false, no_failure())

    def begin_epoch(state: PhaseState, clock: Clock, tables: Tables, key: Array) -> Epoch:
        clock = in_stream(clock._replace(epoch=state.epoch), tables, scenario)
        key = epoch_key(key, clock)
        order, count = streams.epoch_order(
            tables.train,
            clock,
            jax.random.fold_in(key, 0),
            train_on=method.train_on,
            max_examples=max_examples["train"],
            memory=state.learner.memory,
        )
        learning_rate, sizes = state.learner.hyper["learning_rate"] * state.factor, tables.train.size
        own = method.train_on == "current" and not method.memory_size
        known = own and isinstance(sizes, np.ndarray) and (sizes == sizes[0]).all()  # see `with_even_size`
        steps = number_of_batches(np.int32(sizes[0]) if known else count, batch_size)
        return Epoch(clock, key, learning_rate, order, count, steps)

    def train(state: PhaseState, epoch: Epoch, tables: Tables, stop: Array) -> PhaseState:
        learner, examples = state.learner, tables.examples
        last = jnp.maximum(epoch.steps - 1, 1).astype(jnp.float32)

        def one(index: Array, carry: tuple[dict[str, Tree], Progress]) -> tuple[dict[str, Tree], Progress]:
            (trained, progress), index = carry, jnp.asarray(index, jnp.int32)
            now = epoch.clock._replace(progress=index.astype(jnp.float32) / last)
            given = tables
            if hasattr(examples, "of_step"):
                given = tables._replace(examples=examples.of_step(index))
            batch = streams.draw(
                given, tables.train, epoch.order, epoch.examples, index, batch_size, memory=learner.memory
            )
            step_key = jax.random.fold_in(epoch.key, index + 1)
            batch = augment_batch(settings.augment, batch, step_key)
            slowed = learner._replace(hyper={**learner.hyper, "learning_rate": epoch.learning_rate}, **trained)
            slowed, loss, _ = step(slowed, state.mask, now, batch, step_key)
            count = jnp.sum(batch.weights)
            failed = jnp.where((progress.failed < 0) & ~jnp.isfinite(loss), index, progress.failed)
            total = progress.total + count * loss.astype(jnp.float32)
            return changing(slowed), Progress(index + 1, total, progress.weight + count, failed)

        begin, end = state.progress.step, jnp.minimum(stop, epoch.steps)
        if isinstance(stop, np.integer):  # an epoch of a known number of steps
            begin, end = np.int32(0), np.int32(stop)
        trained, progress = lax.fori_loop(begin, end, one, (changing(learner), state.progress))
        return state._replace(learner=learner._replace(**trained), progress=progress)

    def end_epoch(state: PhaseState, epoch: Epoch, tables: Tables) -> tuple[PhaseState, EpochLog]:
        learner, clock, progress = state.learner, epoch.clock, state.progress
        loss = validation_loss(learner, clock, tables) if settings.validate or stopping else unknown()
        accuracy = validate(learner, clock, tables) if settings.validate else unknown()
        log = EpochLog(progress.total / jnp.maximum(progress.weight, 1.0), jnp.asarray(loss), jnp.asarray(accuracy))
        state = state._replace(epoch=state.epoch + 1, progress=no_progress())
        if stopping:
            learning_rate = learner.hyper["learning_rate"] * phase_learning_rate(method, clock)
            state = wait(state, log.validation_loss, learning_rate, stopping)
        failed, leaf = progress.failed, first_not_finite((learner.params, learner.collections))
        broken = (failed >= 0) | (leaf >= 0)
        where = jnp.where(failed >= 0, failed, epoch.steps - 1), jnp.where(failed >= 0, -1, leaf)
        here = select(broken, failure_at(clock, *where), no_failure())
        return state._replace(failure=earlier(state.failure, here), done=state.done | broken), log

    def validation_loss(learner: Learner, clock: Clock, tables: Tables) -> Array:
        def add(sums: tuple[Array, Array], batch: Batch) -> tuple[Array, Array]:
            loss, _ = method.loss(learner.params, learner, clock, batch, None)
            examples = jnp.sum(batch.weights)
            return sums[0] + loss.astype(jnp.float32) * examples, sums[1] + examples

        zero = (jnp.float32(0.0), jnp.float32(0.0))
        if method.train_on == "current":
            total, weight = make_fold(tables, clock)(add, zero, "validation")
        else:

            def add_task(task: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
                table, size = tables.validation, many
                drawn = jnp.where((task <= clock.newest) | (method.train_on == "all"), streams.size_of(table, task), 0)
                read = lambda step, carry: add(carry, streams.sequential(tables, table, task, step, size))
                return lax.fori_loop(0, number_of_batches(drawn, size), read, carry)

            total, weight = lax.fori_loop(0, tables.classes.shape[0], add_task, zero)
        return jnp.where(weight > 0, total / jnp.maximum(weight, 1.0), unknown())

    def validate(learner: Learner, clock: Clock, tables: Tables) -> Array:
        resting, newest = task_params.write_back(learner, clock.task), clock.newest
        options: dict[str, Any] = {"split": "validation", "scenario": scenario, "newest": newest, "batch_size": many}
        return evaluate_task(method, resting, tables, clock.task, **options).accuracy

    def epoch(state: PhaseState, clock: Clock, tables: Tables, key: Array) -> tuple[PhaseState, EpochLog]:
        now = begin_epoch(state, clock, tables, key)
        return end_epoch(train(state, now, tables, now.steps), now, tables)

    def end_phase(state: PhaseState, clock: Clock, tables: Tables, key: Array) -> tuple[Learner, Failure]:
        clock = in_stream(clock, tables, scenario)
        learner = state.learner if state.best is None else state.learner._replace(**state.best)
        after = method.end_phase(learner, clock, make_fold(tables, clock), visit_key(key, clock, 1))
        after = keep_signature(learner, after, f"end_phase of {method.name}")
        leaf = first_not_finite((after.params, after.collections))
        here = select(leaf >= 0, failure_at(clock, -1, leaf), no_failure())
        return after, earlier(state.failure, here)

    def choose(tried: tuple[Array, Learner], clock: Clock, tables: Tables) -> tuple[Array, Learner]:
        scores, learners = tried
        focused = jax.vmap(lambda learner: task_params.focus(learner, clock.task))(learners)
        assert method.search is not None
        clock = in_stream(clock, tables, scenario)
        index, after = method.search.choose(scores, focused, clock, make_fold(tables, clock))
        after = keep_signature(focused, after, f"choose of {method.name}")
        return index, task_params.write_back(pick(after, index), clock.task)

    def end_visit(learner: Learner, clock: Clock) -> Learner:
        return task_params.write_back(learner, clock.task)

    def evaluate_all(learner: Learner, clock: Clock, tables: Tables) -> Evaluation:
        return evaluate(method, learner, tables, scenario=scenario, newest=clock.newest, batch_size=many)

    def init(key: Array, tables: Tables) -> Learner:
        return make_learner(method, optimizer, tables, settings.learning_rate or 1.0, init_key(key), max_examples)

    functions = (init, begin_visit, begin_phase, epoch, end_phase, end_visit, evaluate_all, validate, choose)
    return Engine(*functions, begin_epoch, train, end_epoch, look, step, settings, scenario)


def with_even_size(tables: Tables, size: int | None) -> Tables:
    """The tables with what is known of them when a program is made: that each task has so many training examples.

    Then the steps of an epoch are a number of the program, and an accelerator need not ask after each whether to go on.
    """
    sizes = None if size is None else np.full(tables.classes.shape[-2], size, np.int32)
    return tables if sizes is None else tables._replace(train=tables.train._replace(size=sizes))


def changing(learner: Learner) -> dict[str, Tree]:
    """The parts of a learner that a step changes."""
    return {part: getattr(learner, part) for part in task_params.PARTS}


def first_not_finite(tree: Tree) -> Array:
    """The number of the first leaf that is NaN or infinite somewhere, int32; -1 where there is none.

    Example:
      >>> int(first_not_finite([jnp.zeros([2]), jnp.arange(3), jnp.array([0.0, jnp.inf])]))
      2
    """
    inexact = lambda leaf: jnp.issubdtype(leaf.dtype, jnp.inexact)
    finite = [jnp.all(jnp.isfinite(leaf)) if inexact(leaf) else jnp.bool_(True) for leaf in jax.tree.leaves(tree)]
    found = ~jnp.stack([*finite, jnp.bool_(True)])
    return jnp.where(jnp.any(found), jnp.argmax(found).astype(jnp.int32), jnp.int32(-1))
