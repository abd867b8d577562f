"""One visit to a task inside a program: its phases and epochs as loops, and the search over candidates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cljax.training.engine import Engine, changing
from cljax.training.state import EpochLog, Failure, PhaseState, Settings, no_failure, unknown
from cljax.types import Array, Clock, Learner, Phase, Tables, Tree


class FitLog(NamedTuple):
    """What a visit leaves.

    Attributes:
      epochs: `EpochLog` of `[P, E]`, NaN where no epoch was trained.
      curves: `[P, E, T]` accuracy on all tasks after an epoch, NaN between the cadence's points; E = 0 without.
      trained: `[P]` int32, the number of epochs each phase took.
      score: float32, accuracy on the task's validation split at the end, NaN if it is empty.
      failure: where the learner diverged.
    """

    epochs: EpochLog
    curves: Array
    trained: Array
    score: Array
    failure: Failure


class Fit(Protocol):
    """`fit(learner, clock, tables, key, epochs) -> (learner, FitLog)`: one visit, on the learner at rest."""

    def __call__(
        self, learner: Learner, clock: Clock, tables: Tables, key: Array, epochs: Array, *, begins: bool = True
    ) -> tuple[Learner, FitLog]:
        """Visits `clock.task`; `epochs` `[P]` int32 is a row of `epoch_table`; if not `begins`, a visit goes on."""
        ...


def make_fit(engine: Engine, settings: Settings, *, longest: int) -> Fit:
    """Makes the function that carries out one visit to a task, all phases and epochs, inside a program.

    Epochs end on their count or by patience, in a `while` loop: under `vmap` it runs until the last seed stops.

    Args:
      engine: of `make_engine`.
      settings: those the engine was made with.
      longest: static, the largest number of epochs of a phase.

    Returns:
      `fit(learner, clock, tables, key, epochs) -> (learner, FitLog)`.
    """
    cadence = settings.curves_every

    def fit(
        learner: Learner, clock: Clock, tables: Tables, key: Array, epochs: Array, *, begins: bool = True
    ) -> tuple[Learner, FitLog]:
        tasks = tables.classes.shape[0]
        missing = jnp.full(longest, unknown(), jnp.float32)
        no_curves = jnp.full((longest if cadence else 0, tasks), unknown(), jnp.float32)
        focused = engine.begin_visit(learner, clock if begins else going_on(clock), tables, key)

        def run_phase(learner: Learner, now: Clock, count: Array):
            start = engine.begin_phase(learner, now, tables, key)
            constant = start.learner

            def full(state: PhaseState) -> PhaseState:
                return state._replace(learner=constant._replace(**state.learner), mask=start.mask)

            def thin(state: PhaseState) -> PhaseState:
                return state._replace(learner=changing(state.learner), mask=None)

            def body(carry):
                state, log, curves = carry
                place = state.epoch
                state, entry = engine.epoch(full(state), now, tables, key)
                log = jax.tree.map(lambda values, value: values.at[place].set(value), log, entry)
                if cadence:

                    def observe(values: Array) -> Array:
                        resting = engine.end_visit(state.learner, now)
                        found = engine.evaluate(resting, now, tables).accuracy
                        return values.at[place].set(jnp.where(state.failure.round < 0, found, jnp.nan))

                    curves = lax.cond((place + 1) % cadence == 0, observe, lambda values: values, curves)
                return thin(state), log, curves

            carry = (thin(start), EpochLog(missing, missing, missing), no_curves)
            state, log, curves = lax.while_loop(lambda c: (c[0].epoch < count) & ~c[0].done, body, carry)
            learner, failure = engine.end_phase(full(state), now, tables, key)
            return learner, (log, curves, state.epoch, failure)

        def skip_phase(learner: Learner, now: Clock, count: Array):
            return learner, (EpochLog(missing, missing, missing), no_curves, jnp.int32(0), no_failure())

        def one_phase(learner: Learner, entry: tuple[Array, Array]):
            phase, count = entry
            return lax.cond(count >= 0, run_phase, skip_phase, learner, clock._replace(phase=phase), count)

        phases = jnp.arange(epochs.shape[0], dtype=jnp.int32)
        focused, (log, curves, trained, failures) = lax.scan(one_phase, focused, (phases, epochs))
        score = engine.validate(focused, clock, tables)
        return engine.end_visit(focused, clock), FitLog(log, curves, trained, score, first_failure(failures))

    return fit


def first_failure(failures: Failure) -> Failure:
    """The first of several failures `[n]`, or all -1."""
    index = jnp.argmax(failures.round >= 0)
    return jax.tree.map(lambda leaf: leaf[index], failures)


def search(
    fit: Fit,
    candidates: Callable[[Learner, Clock], dict[str, Array]],
    choose: Callable[[tuple[Array, Learner], Clock, Tables, Array], tuple[Array, Learner]],
    *,
    phases: Sequence[Phase] = (Phase(),),
    vectorize: bool = False,
) -> Fit:
    """Makes a fit that tries candidates of hyper-parameters on one task and keeps the learner chosen.

    Each candidate starts from the same learner, with some numbers of `hyper` replaced: growth, sparsity, strength. The
    one chosen goes on with the phases that are not searched.

    Args:
      fit: of `make_fit`.
      candidates: `(learner, clock) -> hyper` whose leaves have a leading axis `[C]`.
      choose: an engine's: `((scores [C], learners [C, ...]), clock, tables, key) -> (int32, learner)`, at
        rest, from the accuracies on the task's validation split; a candidate that diverged has -1.
      phases: the method's.
      vectorize: whether the candidates run side by side (`vmap`) or in turn (`lax.map`).

    Returns:
      A fit of the same signature; the log is that of the chosen candidate.
    """
    tried = np.array([phase.searched for phase in phases])

    def searched(
        learner: Learner, clock: Clock, tables: Tables, key: Array, epochs: Array, *, begins: bool = True
    ) -> tuple[Learner, FitLog]:
        def attempt(hyper: dict[str, Array]) -> tuple[Learner, FitLog]:
            one = learner._replace(hyper={**learner.hyper, **hyper})
            return fit(one, clock, tables, key, jnp.where(tried, epochs, -1), begins=begins)

        options = candidates(learner, clock)
        learners, logs = jax.vmap(attempt)(options) if vectorize else lax.map(attempt, options)
        index, learner = choose((sound_scores(logs.score, logs.failure), learners), clock, tables, key)
        log = pick(logs, index)
        if tried.all():
            return learner, log
        learner, rest = fit(learner, clock, tables, key, jnp.where(tried, -1, epochs), begins=False)
        by_phase = lambda one, other: jnp.where(tried.reshape(-1, *[1] * (one.ndim - 1)), one, other)
        epochs_log, curves, trained = jax.tree.map(by_phase, log[:3], rest[:3])
        failures = jax.tree.map(lambda *leaves: jnp.stack(leaves), log.failure, rest.failure)
        return learner, FitLog(epochs_log, curves, trained, rest.score, first_failure(failures))

    return searched


def sound_scores(scores: Array, failures: Failure) -> Array:
    """The scores, -1 in place of those of learners that diverged, so that any other is better."""
    return jnp.where(jnp.isnan(scores) | (failures.round >= 0), jnp.float32(-1.0), scores)


def going_on(clock: Clock) -> Clock:
    """The clock with which `begin_visit` only focuses, for a visit that has begun and goes on."""
    return clock._replace(first=jnp.bool_(False))


def pick(tree: Tree, index: Array) -> Tree:
    """The entry `index` of a tree whose leaves have a leading axis."""
    return jax.tree.map(lambda leaf: lax.dynamic_index_in_dim(leaf, index, keepdims=False), tree)


__all__ = ["Fit", "FitLog", "make_fit", "pick", "search"]
