"""The plan of a run: the clock of each round, the epochs of each phase, and the key of each moment."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from cljax.keys import as_own
from cljax.types import Array, Clock, Method, Scenario, Schedule, Tables

INIT = np.uint32(2**32 - 1)
"""Folded into the run's key for the initialisation: a number that no round has."""


def clocks(schedule: Schedule) -> Clock:
    """The clocks at the beginning of each round, `[R]` NumPy leaves.

    Example:
      >>> clocks(Schedule(np.array([0, 1, 0]), np.array([1, 1, 1]), None)).first.tolist()
      [True, True, False]
    """
    task = np.asarray(schedule.task, np.int32)
    rounds = np.arange(len(task), dtype=np.int32)
    newest = np.maximum.accumulate(task)
    first = np.zeros(len(task), np.bool_)
    first[np.unique(task, return_index=True)[1]] = True
    zero = np.zeros_like(task)
    return Clock(rounds, task, zero, zero, zero.astype(np.float32), newest.astype(np.int32), first)


def in_stream(clock: Clock, tables: Tables, scenario: str) -> Clock:
    """The clock with what a stream says of its tasks, as every hook is given it.

    Example:
      >>> from cljax.types import make_clock
      >>> class Two: classes, single_label = np.ones((2, 3), np.bool_), None
      >>> clock = in_stream(make_clock(), Two, 'class')
      >>> clock.classes.shape, clock.scenario
      ((2, 3), 'class')
    """
    single = None if tables.single_label is None else jnp.asarray(tables.single_label)
    return clock._replace(classes=jnp.asarray(tables.classes), single_label=single, scenario=Scenario(scenario))


def epoch_table(method: Method, schedule: Schedule) -> np.ndarray:
    """How many epochs each phase of each round gets: fractions of the round's epochs, by largest remainders.

    Returns:
      `[R, P]` int32; -1 where a phase does not run at all (`skip_first_task`), its fraction going to the others.

    Example:
      >>> from cljax.types import Phase
      >>> class Two: phases = (Phase('warm-up', .25, skip_first_task=True), Phase('joint', .75))
      >>> epoch_table(Two, Schedule(np.array([0, 1]), np.array([8, 8]), None)).tolist()
      [[-1, 8], [2, 6]]
    """
    table = np.full((len(schedule.task), len(method.phases)), -1, np.int32)
    for round, (task, epochs) in enumerate(zip(schedule.task, schedule.epochs, strict=True)):
        runs = [index for index, phase in enumerate(method.phases) if task > 0 or not phase.skip_first_task]
        fractions = np.array([method.phases[index].fraction for index in runs], np.float64)
        exact = epochs * fractions / fractions.sum()
        counts = np.floor(exact + 1e-9).astype(np.int32)
        for index in np.argsort(counts - exact, kind="stable")[: epochs - counts.sum()]:
            counts[index] += 1
        table[round, runs] = counts
    return table


def init_key(key: Array) -> Array:
    """The key of the initialisation."""
    return jax.random.fold_in(as_own(key), INIT)


def epoch_key(key: Array, clock: Clock) -> Array:
    """The key of an epoch, from the run's key and the clock alone: nothing is carried, so a run resumes anywhere."""
    key = as_own(key)
    for number in (clock.round, clock.phase, clock.epoch):
        key = jax.random.fold_in(key, number)
    return key


def visit_key(key: Array, clock: Clock, purpose: int) -> Array:
    """The key of a hook outside the epochs: `begin_task` (purpose 0) or `end_phase` (1)."""
    return jax.random.fold_in(epoch_key(key, clock._replace(epoch=jnp.int32(-1))), purpose)
