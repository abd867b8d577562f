"""The engine: the six pure functions of which every driver is made.

A run is rounds, a round is a visit to a task, a visit is phases, a phase is epochs, an epoch is steps. `make_run`
composes these functions into one program for a whole stream; `drive` calls them from Python and shows progress. Both
take the same steps on the same batches with the same keys.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from cljax import rows, streams
from cljax.training.evaluation import Evaluation, evaluate, evaluate_task, number_of_batches
from cljax.training.step import TrainStep, keep_signature, make_learner, make_train_step, phase_rate, strengthen
from cljax.types import Array, Batch, Clock, Learner, Method, Schedule, Stream, Tables, Tree


class Patience(NamedTuple):
    r"""Epochs that end by patience: the schedule of HAT and TFM.

    After each epoch the validation loss is compared to the best so far. Where it improves, a copy is kept and patience
    is renewed; after `patience` epochs without improvement the rate is divided by `factor`, and training stops once
    the rate is below `minimum_rate`. In the end the best copy is restored, normalisation statistics included.

    Attributes:
      patience: epochs without improvement before the rate drops.
      factor: by which the rate is divided.
      minimum_rate: training stops below it.
      restore_at_drop: whether the best copy is also restored whenever the rate drops (FACIL does, HAT does not).
    """

    patience: int = 5
    factor: float = 3.0
    minimum_rate: float = 1e-4
    restore_at_drop: bool = False


class Failure(NamedTuple):
    """Where the loss first turned non-finite: int32 scalars, all -1 while it has not."""

    round: Array
    task: Array
    phase: Array
    epoch: Array
    step: Array


class EpochLog(NamedTuple):
    """What an epoch leaves: mean training loss; validation loss (nats) and accuracy (fraction), NaN if not asked for."""

    loss: Array
    validation_loss: Array
    validation_accuracy: Array


class PhaseState(NamedTuple):
    """What changes during a phase.

    Attributes: learner (focused); mask, the update mask; factor, of the rate by patience; best, the copy to restore
    (params, collections, method_state), or None; best_loss; patience, epochs left; epoch; done; failure.
    """

    learner: Learner
    mask: Tree
    factor: Array
    best: Tree
    best_loss: Array
    patience: Array
    epoch: Array
    done: Array
    failure: Failure


class Engine(NamedTuple):
    """The pure functions of a run; key is the run's key throughout, and the clock says where it stands.

    Attributes:
      init: `(key, tables) -> learner`, at rest.
      begin_visit: `(learner, clock, tables, key) -> learner`, focused, `begin_task` done at a first visit.
      begin_phase: `(learner, clock, tables, key) -> PhaseState`.
      epoch: `(state, clock, tables, key) -> (state, EpochLog)`; the epoch's number is the state's.
      end_phase: `(state, clock, tables, key) -> learner`, focused.
      end_visit: `(learner, clock) -> learner`, at rest.
      evaluate: `(learner, clock, tables) -> Evaluation` of the learner at rest, on the test split.
      validate: `(learner, clock, tables) -> accuracy` of the focused learner on its task's validation split.
      step: the train step, for its cost and number of traces.
    """

    init: Callable[[Array, Tables], Learner]
    begin_visit: Callable[[Learner, Clock, Tables, Array], Learner]
    begin_phase: Callable[[Learner, Clock, Tables, Array], PhaseState]
    epoch: Callable[[PhaseState, Clock, Tables, Array], tuple[PhaseState, EpochLog]]
    end_phase: Callable[[PhaseState, Clock, Tables, Array], Learner]
    end_visit: Callable[[Learner, Clock], Learner]
    evaluate: Callable[[Learner, Clock, Tables], Evaluation]
    validate: Callable[[Learner, Clock, Tables], Array]
    step: TrainStep


class Settings(NamedTuple):
    """How a run is carried out.

    Attributes:
      batch_size: of training steps.
      rate: the learning rate.
      stopping: None, epochs by the schedule's count; or `Patience`, the count then being the maximum.
      validate: whether each epoch measures validation loss and accuracy.
      evaluation_batch: of folds, validation and evaluation.
      curves_every: 0, or the number of epochs between evaluations on all tasks.
    """

    batch_size: int = 32
    rate: float = 0.05
    stopping: Patience | None = None
    validate: bool = False
    evaluation_batch: int = 256
    curves_every: int = 0


class TaskFold:
    """The `Fold` of a program: a loop over the visited task's batches, traced into it."""

    def __init__(self, tables: Tables, task: Array, capacity: dict[str, int], batch_size: int) -> None:
        self._tables, self._task, self._batch_size = tables, task, batch_size
        self.capacity = capacity

    def __call__(self, fn: Callable[[Any, Batch], Any], carry: Any, split: str = "train") -> Any:
        """Folds `fn` over the task's examples, in order of position."""
        table = getattr(self._tables, split)

        def body(step: Array, carry: Any) -> Any:
            batch = streams.sequential(self._tables, table, self._task, step, self._batch_size)
            return fn(carry, batch)

        return lax.fori_loop(0, number_of_batches(table.size[self._task], self._batch_size), body, carry)


def epoch_table(method: Method, schedule: Schedule) -> np.ndarray:
    """How many epochs each phase of each round gets: shares of the round's epochs, by largest remainders.

    Returns:
      `[R, P]` int32; -1 where a phase does not run at all (`skip_first_task`), its share going to the others.

    Example:
      >>> from cljax.types import Phase
      >>> class Two: phases = (Phase('warm-up', .25, skip_first_task=True), Phase('joint', .75))
      >>> epoch_table(Two, Schedule(np.array([0, 1]), np.array([8, 8]), None)).tolist()
      [[-1, 8], [2, 6]]
    """
    table = np.full((len(schedule.task), len(method.phases)), -1, np.int32)
    for round, (task, epochs) in enumerate(zip(schedule.task, schedule.epochs, strict=True)):
        runs = [index for index, phase in enumerate(method.phases) if task > 0 or not phase.skip_first_task]
        shares = np.array([method.phases[index].share for index in runs], np.float64)
        exact = epochs * shares / shares.sum()
        counts = np.floor(exact + 1e-9).astype(np.int32)
        for index in np.argsort(counts - exact, kind="stable")[: epochs - counts.sum()]:
            counts[index] += 1
        table[round, runs] = counts
    return table


def clocks(schedule: Schedule) -> Clock:
    """The clocks at the beginning of each round, `[R]` NumPy leaves.

    Example:
      >>> clocks(Schedule(np.array([0, 1, 0]), np.array([1, 1, 1]), None)).first.tolist()
      [True, True, False]
    """
    task = np.asarray(schedule.task, np.int32)
    rounds = np.arange(len(task), dtype=np.int32)
    newest = np.maximum.accumulate(task)
    first = np.array([index == int(np.argmax(task == value)) for index, value in enumerate(task)], np.bool_)
    zero = np.zeros_like(task)
    return Clock(rounds, task, zero, zero, zero.astype(np.float32), newest.astype(np.int32), first)


def make_engine(
    method: Method,
    optimizer: optax.GradientTransformation,
    settings: Settings,
    *,
    scenario: str,
    capacity: dict[str, int],
) -> Engine:
    """Makes the engine of a method.

    Args:
      method: the method.
      optimizer: an Optax transformation at unit rate.
      settings: how the run is carried out.
      scenario: 'task', 'class' or 'domain': how logits are read.
      capacity: of `streams.capacity`, at least that of any stream the engine will see.

    Returns:
      The engine: pure functions, to be jitted, scanned or vmapped.
    """
    step = make_train_step(method, optimizer)
    stopping, batch_size = settings.stopping, settings.batch_size
    fresh = np.array([phase.fresh_optimizer for phase in method.phases])

    def make_fold(tables: Tables, clock: Clock) -> TaskFold:
        return TaskFold(tables, clock.task, capacity, settings.evaluation_batch)

    def begin_visit(learner: Learner, clock: Clock, tables: Tables, key: Array) -> Learner:
        learner = rows.focus(learner, clock.task)

        def begin(learner: Learner) -> Learner:
            after = method.begin_task(learner, clock, make_fold(tables, clock), visit_key(key, clock, 0))
            return keep_signature(learner, after, f"begin_task of {method.name}")

        return lax.cond(clock.first, begin, lambda learner: learner, learner)

    def begin_phase(learner: Learner, clock: Clock, tables: Tables, key: Array) -> PhaseState:
        del tables, key
        if fresh.any():
            renew = clock.first & jnp.asarray(fresh)[clock.phase]
            start = lambda learner: learner._replace(opt_state=optimizer.init(learner.params))
            renewed = keep_signature(learner, start(learner), "the optimizer's init")
            learner = jax.tree.map(lambda new, old: jnp.where(renew, new, old), renewed, learner)
        mask = strengthen(method.update_mask(learner, clock))
        best = snapshot(learner) if stopping else None
        zero, false, none = jnp.int32(0), jnp.bool_(False), jnp.int32(-1)
        patience = jnp.int32(stopping.patience if stopping else 0)
        failure = Failure(none, none, none, none, none)
        return PhaseState(
            learner, mask, jnp.float32(1.0), best, jnp.float32(jnp.inf), patience, zero, false, failure
        )

    def train_epoch(
        learner: Learner, mask: Tree, clock: Clock, tables: Tables, key: Array
    ) -> tuple[Learner, Array, Array]:
        """One pass over the training examples; returns the learner, the mean loss and the first non-finite step."""
        order, count = streams.epoch_order(
            tables.train,
            clock,
            jax.random.fold_in(key, 0),
            draws_from=method.draws_from,
            capacity=capacity["train"],
            memory=learner.memory,
        )
        steps = number_of_batches(count, batch_size)
        constant = learner

        def body(index: Array, carry: tuple) -> tuple:
            trained, total, weight, failed = carry
            now = clock._replace(progress=index.astype(jnp.float32) / jnp.maximum(steps - 1, 1).astype(jnp.float32))
            batch = streams.draw(tables, tables.train, order, count, index, batch_size, memory=constant.memory)
            learner, loss, _ = step(
                constant._replace(**trained), mask, now, batch, jax.random.fold_in(key, index + 1)
            )
            examples = jnp.sum(batch.weights)
            failed = jnp.where((failed < 0) & ~jnp.isfinite(loss), index, failed)
            return changing(learner), total + examples * loss.astype(jnp.float32), weight + examples, failed

        start = (changing(learner), jnp.float32(0.0), jnp.float32(0.0), jnp.int32(-1))
        trained, total, weight, failed = lax.fori_loop(0, steps, body, start)
        return learner._replace(**trained), total / jnp.maximum(weight, 1.0), failed

    def validation_loss(learner: Learner, clock: Clock, tables: Tables) -> Array:
        def add(carry: tuple[Array, Array], batch: Batch) -> tuple[Array, Array]:
            loss, _ = method.loss(learner.params, learner, clock, batch, None)
            examples = jnp.sum(batch.weights)
            return carry[0] + loss.astype(jnp.float32) * examples, carry[1] + examples

        zero = (jnp.float32(0.0), jnp.float32(0.0))
        if method.draws_from == "current":
            total, weight = make_fold(tables, clock)(add, zero, "validation")
        else:

            def add_task(task: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
                table, size = tables.validation, settings.evaluation_batch
                drawn = jnp.where((task <= clock.newest) | (method.draws_from == "all"), table.size[task], 0)
                read = lambda step, carry: add(carry, streams.sequential(tables, table, task, step, size))
                return lax.fori_loop(0, number_of_batches(drawn, size), read, carry)

            total, weight = lax.fori_loop(0, tables.classes.shape[0], add_task, zero)
        return total / weight

    def validate(learner: Learner, clock: Clock, tables: Tables) -> Array:
        resting = rows.write_back(learner, clock.task)
        return evaluate_task(
            method,
            resting,
            tables,
            clock.task,
            split="validation",
            scenario=scenario,
            newest=clock.newest,
            batch_size=settings.evaluation_batch,
        ).accuracy

    def epoch(state: PhaseState, clock: Clock, tables: Tables, key: Array) -> tuple[PhaseState, EpochLog]:
        clock = clock._replace(epoch=state.epoch)
        learner = state.learner
        base = learner.hyper["rate"]
        slowed = learner._replace(hyper={**learner.hyper, "rate": base * state.factor})
        learner, loss, failed = train_epoch(slowed, state.mask, clock, tables, epoch_key(key, clock))
        learner = learner._replace(hyper={**learner.hyper, "rate": base})
        nan = jnp.float32(jnp.nan)
        log = EpochLog(loss, nan, nan)
        if settings.validate or stopping:
            log = log._replace(validation_loss=validation_loss(learner, clock, tables))
        if settings.validate:
            log = log._replace(validation_accuracy=validate(learner, clock, tables))
        state = state._replace(learner=learner, epoch=state.epoch + 1)
        if stopping:
            state = wait(state, log.validation_loss, base * phase_rate(method, clock), stopping)
        broken = failed >= 0
        here = Failure(clock.round, clock.task, clock.phase, clock.epoch, failed)
        failure = jax.tree.map(lambda new, old: jnp.where(broken, new, old), here, state.failure)
        return state._replace(failure=failure, done=state.done | broken), log

    def end_phase(state: PhaseState, clock: Clock, tables: Tables, key: Array) -> Learner:
        learner = state.learner if state.best is None else state.learner._replace(**state.best)
        after = method.end_phase(learner, clock, make_fold(tables, clock), visit_key(key, clock, 1))
        return keep_signature(learner, after, f"end_phase of {method.name}")

    def end_visit(learner: Learner, clock: Clock) -> Learner:
        return rows.write_back(learner, clock.task)

    def evaluate_all(learner: Learner, clock: Clock, tables: Tables) -> Evaluation:
        return evaluate(
            method,
            learner,
            tables,
            scenario=scenario,
            newest=clock.newest,
            batch_size=settings.evaluation_batch,
        )

    def init(key: Array, tables: Tables) -> Learner:
        return make_learner(method, optimizer, tables, settings.rate, key)

    return Engine(init, begin_visit, begin_phase, epoch, end_phase, end_visit, evaluate_all, validate, step)


def changing(learner: Learner) -> dict[str, Tree]:
    """The parts of a learner that a step changes."""
    return {part: getattr(learner, part) for part in rows.PARTS}


def snapshot(learner: Learner) -> dict[str, Tree]:
    """The parts of a learner that are restored from the best epoch: all that a step changes but the optimizer's."""
    return {"params": learner.params, "collections": learner.collections, "method_state": learner.method_state}


def wait(state: PhaseState, loss: Array, rate: Array, stopping: Patience) -> PhaseState:
    """The patience schedule, after an epoch with this validation loss at this undiminished rate."""
    improved = loss < state.best_loss
    best = jax.tree.map(lambda new, old: jnp.where(improved, new, old), snapshot(state.learner), state.best)
    patience = jnp.where(improved, jnp.int32(stopping.patience), state.patience - 1)
    drop = patience <= 0
    factor = jnp.where(drop, state.factor / stopping.factor, state.factor)
    learner = state.learner
    if stopping.restore_at_drop:
        restored = learner._replace(**best)
        learner = jax.tree.map(lambda new, old: jnp.where(drop, new, old), restored, learner)
    return state._replace(
        learner=learner,
        best=best,
        best_loss=jnp.where(improved, loss, state.best_loss),
        patience=jnp.where(drop, jnp.int32(stopping.patience), patience),
        factor=factor,
        done=drop & (rate * factor < stopping.minimum_rate),
    )


def epoch_key(key: Array, clock: Clock) -> Array:
    """The key of an epoch, from the run's key and the clock alone: nothing is carried, so a run resumes anywhere."""
    for number in (clock.round, clock.phase, clock.epoch):
        key = jax.random.fold_in(key, number)
    return key


def visit_key(key: Array, clock: Clock, purpose: int) -> Array:
    """The key of a hook outside the epochs: `begin_task` (purpose 0) or `end_phase` (1)."""
    return jax.random.fold_in(epoch_key(key, clock._replace(epoch=jnp.int32(-1))), purpose)
