"""The seeds that are driven together, as a machine of small steps: each ends where a run can be taken up again."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cljax import rows
from cljax.training.engine import Engine
from cljax.training.evaluation import Evaluation
from cljax.training.fit import going_on, pick, sound_scores
from cljax.training.plan import clocks, epoch_table
from cljax.training.programs import compile_seconds
from cljax.training.state import EpochLog, Failure, Partial, PhaseState, Settings, reveal
from cljax.types import Array, Clock, Learner, Method, Schedule, Tables, Tree


class Event(NamedTuple):
    """Where a driven run stands, after an epoch.

    Attributes: method, its name; seed; seeds, how many run side by side; task; phase, its name; epoch (from 1) of
    epochs; loss (nats); validation_accuracy (fraction, NaN without a validation part); done of total, in epochs.
    """

    method: str
    seed: int
    seeds: int
    task: int
    phase: str
    epoch: int
    epochs: int
    loss: float
    validation_accuracy: float
    done: int
    total: int


class Position(NamedTuple):
    """Where a group stands; Python numbers.

    Attributes:
      round: how many rounds are finished.
      tried: how many candidates of the next one are tried: 0 without a search; all while the chosen one goes on.
      phase: the phase under way, or -1: between visits.
      epoch: how many of its epochs are finished.
    """

    round: int = 0
    tried: int = 0
    phase: int = -1
    epoch: int = 0


class Results(NamedTuple):
    """What a group of S seeds leaves, NumPy arrays that are filled in place: see `Outcome`; seconds is of all seeds."""

    epochs: EpochLog
    evaluation: Evaluation
    curves: np.ndarray
    failure: Failure
    seconds: np.ndarray


class Attempt(NamedTuple):
    """A candidate's learner at rest and validation score, and its part of the results."""

    learner: Learner
    score: Array
    epochs: EpochLog
    curves: np.ndarray
    failure: Failure


class Work(NamedTuple):
    """All that a group has in hand, with its position all that a checkpoint needs.

    Attributes:
      learner: at rest, between visits; during one None, but for a search, whose candidates all start from it.
      state: of the phase under way, or None.
      partial: how far a streamed epoch is that was under way at a checkpoint, or None.
      tried: the round's candidates so far.
      results: so far.
    """

    learner: Learner | None
    state: PhaseState | None
    partial: Partial | None
    tried: tuple[Attempt, ...]
    results: Results


class Plan(NamedTuple):
    """What all groups of a drive share; `facts` tells it from other drives, see `identity`."""

    method: Method
    settings: Settings
    schedule: Schedule
    engine: Engine
    programs: Mapping[str, Callable]
    seeds: int
    report: Callable[[Event], None] | None
    visited: Callable[[list[int], int, Results], None] | None = None
    facts: Callable[[], dict[str, Any]] = dict


class Group:
    """One seed, or several side by side (their keys, given hyper-parameters and tables then stacked).

    Attributes:
      members: the seeds.
      tables: the data.
      rounds: of the schedule.
      hyper: the learner's at the begin, once begun.
    """

    def __init__(
        self, plan: Plan, members: list[int], key: Array, given: dict[str, Array], tables: Tables, number: int
    ) -> None:
        self._plan, self._key, self._given = plan, key, given
        self.members, self.tables, self._batched = members, tables, key.ndim == 1
        self._mark, self._apart = time.perf_counter(), compile_seconds(plan.programs)
        self._counts = epoch_table(plan.method, plan.schedule)
        self.rounds = len(self._counts)
        self._clocks = clocks(plan.schedule)
        self._points = [tuple(point) for point in curve_epochs(self._counts, plan.settings.curves_every)]
        self._whole = int(np.maximum(self._counts, 0).sum())
        self._before = number * self._whole
        searched = [phase.searched for phase in plan.method.phases]
        self._searched, self._candidates = sum(searched), 0

    def begin(self) -> tuple[Position, Work]:
        """The beginning; called once and first."""
        learner = self._call("init", self._key, self.tables)
        learner = learner._replace(hyper={**learner.hyper, **self._given})
        self.hyper: dict[str, Array] = learner.hyper
        self._resting: Learner = jax.eval_shape(lambda: learner)
        if self._plan.method.search is not None:
            offer: Any = lambda learner: self._plan.method.search.candidates(learner, self._clock(Position()))
            offered = jax.eval_shape(jax.vmap(offer) if self._batched else offer, self._resting)
            self._candidates = jax.tree.leaves(offered)[0].shape[int(self._batched)]
        return Position(), Work(learner, None, None, (), self._no_results())

    def step(
        self, at: Position, work: Work, pause: Callable[[Position, Work], None] | None = None
    ) -> tuple[Position, Work]:
        """Goes one step on: begins a visit with its first phase, or trains an epoch, or ends the phase.

        What ends a visit's last phase also ends the visit, and evaluates if it ends the round.

        Args:
          at: not the end.
          work: given away.
          pause: called after every step of a streamed epoch.
        """
        if at.phase < 0:
            at, work = self._begin_visit(at, work)
        elif at.epoch < self._counts[at.round, at.phase] and not np.all(np.asarray(self._state(work).done)):
            at, work = self._epoch(at, work, pause)
        else:
            learner, failure = self._call("end_phase", work.state, self._clock(at), self.tables, self._key)
            self._note(work.results, self._lead(failure))
            at, work = self._next_phase(at, work._replace(state=None), learner)
        self.tick(work)
        return at, work

    def tick(self, work: Work) -> None:
        """Adds the seconds since the last tick to the results, without compilation."""
        now, compiled = time.perf_counter(), compile_seconds(self._plan.programs)
        work.results.seconds[...] += now - self._mark - (compiled - self._apart)
        self._mark, self._apart = now, compiled

    def leave_out(self, seconds: float) -> None:
        """Has the next tick leave these seconds out."""
        self._mark += seconds

    def finish(self, work: Work) -> tuple[list[Learner], Results]:
        """The learners of all members, at rest, and the results with seconds `[S]`, shared equally."""
        learner = jax.block_until_ready(work.learner)
        self.tick(work)
        count = len(self.members)
        learners = [pick(learner, jnp.int32(index)) for index in range(count)] if self._batched else [learner]
        return learners, work.results._replace(seconds=np.full(count, work.results.seconds / count))

    def like(self, at: Position, partial: bool = False) -> Work:
        """What the work at a position looks like: shapes and dtypes of JAX arrays; NumPy arrays.

        Args:
          at: the position.
          partial: whether there is a `Work.partial`.

        Raises:
          ValueError: the run is never there.
        """
        self._check(at, partial)
        search, under_way = at.tried < self._candidates, at.phase >= 0
        results, state, far = self._no_results(), None, None
        if under_way:
            clock, begin_phase = self._clock(at), self._plan.engine.begin_phase
            begin: Any = lambda learner: begin_phase(rows.focus(learner, clock.task), clock, self.tables, self._key)
            state = jax.eval_shape(jax.vmap(begin) if self._batched else begin, self._resting)
        if partial:
            far = Partial(*(np.zeros((), dtype) for dtype in (np.int32, np.float32, np.float32, np.int32)))
        score: Any = jax.ShapeDtypeStruct((len(self.members),) if self._batched else (), jnp.float32)
        attempt = Attempt(self._resting, score, *self._of_round(results, at.round))
        learner = self._resting if search or not under_way else None
        return Work(learner, state, far, (attempt,) * at.tried * search, results)

    def _check(self, at: Position, partial: bool) -> None:
        """Raises ValueError where the run never stands at a position."""
        phases, chosen = self._counts.shape[1], 0 < self._candidates == at.tried
        first, last = (self._searched, phases) if chosen else (0, self._searched if self._candidates else phases)
        known = 0 <= at.round < self.rounds and 0 <= at.tried <= max(self._candidates - 1, 0) + chosen
        known = known and (first <= at.phase < last or (at.phase == -1 and not chosen))
        epochs = int(self._counts[at.round, at.phase]) if known and at.phase >= 0 else 0
        streamed = getattr(self._plan.programs["epoch"], "streams", False) and at.epoch < epochs
        if (at != Position(self.rounds) and not (known and 0 <= at.epoch <= epochs)) or (partial and not streamed):
            raise ValueError(f"it stands where this run never does: {at}.")

    def _call(self, name: str, *arguments: Any) -> Any:
        return self._plan.programs[name](*arguments)

    def _clock(self, at: Position) -> Clock:
        """The clock of a position; of the last round at the end."""
        number = min(at.round, self.rounds - 1)
        clock = jax.tree.map(lambda leaf: jnp.asarray(leaf[number]), self._clocks)
        return clock._replace(phase=jnp.int32(max(at.phase, 0)))

    def _begin_visit(self, at: Position, work: Work) -> tuple[Position, Work]:
        learner, clock = work.learner, self._clock(at)
        assert learner is not None
        if self._plan.method.search is None:
            work = work._replace(learner=None)
        else:
            options = self._call("candidates", learner, clock)
            axis = 1 if self._batched else 0
            values = jax.tree.map(lambda leaf: jnp.take(leaf, at.tried, axis=axis), options)
            learner = learner._replace(hyper={**learner.hyper, **values})
            self._clear(work.results, at.round)
        learner = self._call("begin_visit", learner, clock, self.tables, self._key)
        return self._next_phase(at, work, learner)

    def _next_phase(self, at: Position, work: Work, learner: Learner) -> tuple[Position, Work]:
        """Begins the next phase that runs in this round, with the focused learner; or ends the visit."""
        last = self._searched if at.tried < self._candidates else self._counts.shape[1]
        for phase in range(at.phase + 1, last):
            if self._counts[at.round, phase] >= 0:
                at = at._replace(phase=phase, epoch=0)
                state = self._call("begin_phase", learner, self._clock(at), self.tables, self._key)
                return at, work._replace(state=state)
        return self._end_visit(at, work, learner)

    def _epoch(self, at: Position, work: Work, pause: Callable[[Position, Work], None] | None) -> tuple[Position, Work]:
        program, clock, results = self._plan.programs["epoch"], self._clock(at), work.results
        streamed: tuple = ()
        if getattr(program, "streams", False):
            here = lambda state, partial: work._replace(state=state, partial=partial)
            streamed = work.partial, lambda *moment: pause and pause(at, here(*moment))
        stopped = self._lead(self._state(work).done)
        state, entry = program(work.state, clock, self.tables, self._key, *streamed)
        entry, sound = self._lead(entry), results.failure.round < 0
        for values, value in zip(results.epochs, entry, strict=True):
            values[sound, at.round, at.phase, at.epoch] = value[sound]
        self._note(results, self._lead(state.failure))
        at, sound = at._replace(epoch=at.epoch + 1), results.failure.round < 0
        if not sound.any():
            return self._end_visit(at, work._replace(state=None, partial=None), state.learner)
        self._report(at, EpochLog(*(np.where(sound, values, np.nan) for values in entry)))
        if (point := (at.round, at.phase, at.epoch)) in self._points:
            found = self._call("evaluate", self._call("end_visit", state.learner, clock), clock, self.tables).accuracy
            accuracy = np.where(stopped[:, None] | (results.failure.round >= 0)[:, None], np.nan, self._lead(found))
            results.curves[:, self._points.index(point)] = accuracy
        return at, work._replace(state=state, partial=None)

    def _end_visit(self, at: Position, work: Work, focused: Learner) -> tuple[Position, Work]:
        clock, results = self._clock(at), work.results
        learner = self._call("end_visit", focused, clock)
        if at.tried < self._candidates:
            failure = results.failure if self._batched else Failure(*(values[0] for values in results.failure))
            score = sound_scores(self._call("validate", focused, clock, self.tables), failure)
            part = jax.tree.map(np.copy, self._of_round(results, at.round))
            tried = (*work.tried, Attempt(learner, score, *part))
            if len(tried) < self._candidates:
                return Position(at.round, len(tried)), work._replace(tried=tried)
            begun = self._clock(Position(at.round))
            learner = self._choose(tried, begun, self._of_round(results, at.round))
            if (self._counts[at.round, self._searched :] >= 0).any() and (results.failure.round < 0).any():
                focused = self._call("begin_visit", learner, going_on(begun), self.tables, self._key)
                at = Position(at.round, len(tried), self._searched - 1)
                return self._next_phase(at, Work(None, None, None, (), results), focused)
        sound = results.failure.round < 0
        if self._plan.schedule.evaluate[at.round] and sound.any():
            found = self._lead(self._call("evaluate", learner, clock, self.tables))
            lost = np.isnan(found.accuracy[:, : int(clock.newest) + 1]).any(axis=1)
            place = (clock.round, clock.task, clock.phase, clock.epoch, -1, -1)
            self._note(results, Failure(*(np.where(lost, int(value), -1) for value in place)))
            sound = results.failure.round < 0
            for values, value in zip(results.evaluation, found, strict=True):
                values[sound, at.round] = value[sound]
        if self._plan.visited:
            self._plan.visited(self.members, at.round, results)
        return Position(at.round + 1 if sound.any() else self.rounds), Work(learner, None, None, (), results)

    def _choose(self, tried: tuple[Attempt, ...], clock: Clock, written: Tree) -> Learner:
        """The learner of the candidate that the method chooses, as `training.search` does; its log is written."""
        axis = 1 if self._batched else 0
        stack = lambda *leaves: jnp.stack(leaves, axis=axis)
        learners = jax.tree.map(stack, *(attempt.learner for attempt in tried))
        scores = stack(*(attempt.score for attempt in tried))
        index, learner = self._call("choose", (scores, learners), clock, self.tables, self._key)
        for member, chosen in enumerate(np.atleast_1d(np.asarray(index))):
            log = (tried[chosen].epochs, tried[chosen].curves, tried[chosen].failure)
            for values, value in zip(jax.tree.leaves(written), jax.tree.leaves(log), strict=True):
                values[member] = value[member]
        return learner

    def _report(self, at: Position, entry: EpochLog) -> None:
        plan, counts = self._plan, np.maximum(self._counts, 0)
        if plan.report is None:
            return
        done = self._before + counts[: at.round].sum() + counts[at.round, : at.phase].sum() + at.epoch
        count, size = int(counts[at.round, at.phase]), len(self.members)
        loss, accuracy = (_mean(value) for value in (entry.loss, entry.validation_accuracy))
        phase, task = plan.method.phases[at.phase].name, int(plan.schedule.task[at.round])
        here = (plan.method.name, self.members[0], size, task, phase, at.epoch, count, loss, accuracy)
        plan.report(Event(*here, int(done), self._whole * plan.seeds // size))

    def _no_results(self) -> Results:
        size, tasks = len(self.members), self.tables.classes.shape[-2]
        empty = lambda *shape: np.full((size, *shape), np.nan, np.float32)
        log = EpochLog(*(empty(*self._counts.shape, self._counts.max()) for _ in range(3)))
        marks: Any = np.zeros((size, self.rounds, tasks), np.uint32)
        accuracy, aware, top5 = (empty(self.rounds, tasks) for _ in range(3))
        evaluation = Evaluation(accuracy, aware, top5, marks)
        failure = Failure(*(np.full(size, -1, np.int32) for _ in Failure._fields))
        return Results(log, evaluation, empty(len(self._points), tasks), failure, np.zeros(()))

    def _note(self, results: Results, found: Failure) -> None:
        """Writes down who has diverged `[S]`, where it is not yet."""
        new = (found.round >= 0) & (results.failure.round < 0)
        for values, value in zip(results.failure, found, strict=True):
            values[new] = value[new]

    def _clear(self, results: Results, number: int) -> None:
        """Takes back what the last candidate of a round wrote."""
        log, curves, failure = self._of_round(results, number)
        for values in (*log, curves):
            values[...] = np.nan
        here = failure.round == number
        for values in failure:
            values[here] = -1

    def _of_round(self, results: Results, number: int) -> tuple[EpochLog, np.ndarray, Failure]:
        """Views of the results that a visit writes."""
        number = min(number, self.rounds - 1)
        mine = [place for place, point in enumerate(self._points) if point[0] == number]
        part = slice(mine[0], mine[-1] + 1) if mine else slice(0, 0)
        return EpochLog(*(values[:, number] for values in results.epochs)), results.curves[:, part], results.failure

    def _lead(self, tree: Tree) -> Tree:
        """On the host, with a leading axis of members."""
        return jax.tree.map(lambda leaf: reveal(leaf) if self._batched else reveal(leaf)[None], tree)

    def _state(self, work: Work) -> PhaseState:
        assert work.state is not None
        return work.state


def curve_epochs(counts: np.ndarray, every: int) -> np.ndarray:
    """Round, phase and epoch (from 1) of every `every`-th planned epoch, `[C, 3]`; none if it is 0.

    Example:
      >>> curve_epochs(np.array([[-1, 4], [1, 2]]), 2).tolist()
      [[0, 1, 2], [0, 1, 4], [1, 1, 2]]
    """
    points = [
        (round, phase, epoch)
        for round, phases in enumerate(counts)
        for phase, count in enumerate(phases)
        for epoch in range(every, count + 1, max(every, 1))
        if every
    ]
    return np.asarray(points, np.int32).reshape(-1, 3)


def _mean(values: np.ndarray) -> float:
    """The mean of the values there are; NaN if there are none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
