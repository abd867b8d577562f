"""One run: a list of phases, one pytree that always has the same signature, and three pure programs.

The *agenda* lists every phase of a run in order: its round, the candidate of a search, the phase, its epochs at most.
A `Run` is all that changes. `start` makes it, `epoch` trains one epoch of a phase, and `turn` ends a phase and begins
the next one of the agenda, whatever lies between the two: the end of a visit, the choice among candidates, an
evaluation. A place in the agenda and a `Run` are a checkpoint.

`cljax.training.drive` calls the programs from Python, jitted, or vmapped over seeds; `make_run` scans the agenda inside
one program. Where examples are read as the run goes on, `drive` trains an epoch in chunks of steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cljax.numbers import whole
from cljax.training.engine import Engine, Epoch
from cljax.training.evaluation import Evaluation, lost_logits
from cljax.training.plan import clocks, epoch_table, in_stream
from cljax.training.search import Tried, offer, repeats, without_examples
from cljax.training.start import Past, Start, begin_with, put_corner
from cljax.training.state import EpochLog, Failure, PhaseState, earlier, no_failure, unknown
from cljax.trees import pick, put, select
from cljax.types import Array, Clock, HostArray, Learner, Method, Schedule, Stream, Tables


class Entry(NamedTuple):
    """A phase of the agenda.

    Attributes:
      round: int32, index into the schedule.
      candidate: int32, of a search, from 0; the number of candidates where the one chosen goes on; 0 without a search.
      phase: int32, index into the method's phases.
      epochs: int32, at most.
    """

    round: HostArray
    candidate: HostArray
    phase: HostArray
    epochs: HostArray


class VisitLog(NamedTuple):
    """What a visit leaves.

    Attributes:
      epochs: `EpochLog` of `[P, E]`, NaN where no epoch was trained.
      curves: `[P, E // every, T]` accuracy on all tasks after every `settings.curves_every`-th epoch, NaN where there
        was none; None without.
    """

    epochs: EpochLog
    curves: HostArray | None


class Visit(NamedTuple):
    """A visit that has ended: the learner at rest, where it diverged, the log."""

    learner: Learner
    failure: Failure
    log: VisitLog


class Candidates(NamedTuple):
    """A search among C candidates.

    Attributes:
      origin: the learner at rest that every candidate starts from.
      failure: where the origin diverged.
      tried: their numbers, and how they fared.
      learners: the candidates' learners at rest, `[C, ...]`.
      failures: where they diverged, `[C]`.
      logs: what their visits left, `[C, ...]`.
    """

    origin: Learner
    failure: Failure
    tried: Tried
    learners: Learner
    failures: Failure
    logs: VisitLog


class Run(NamedTuple):
    """All that changes in a run. Its structure, shapes and dtypes never do.

    Attributes:
      state: the phase under way.
      visit: the log of the visit under way.
      search: the candidates of a search, or None.
      visits: the logs of the rounds, `[R, ...]`.
      evaluation: `Evaluation` of `[R, T]`: after each round, on the test examples; NaN (fingerprint 0) where the
        schedule does not evaluate, and from the round on in which the learner diverged.
      untrained: `[T]` float32, the accuracies before the first round; None where tasks have leaves of their own, such
        as heads, or are told apart by their classes, and where rounds are past.
    """

    state: PhaseState
    visit: VisitLog
    search: Candidates | None
    visits: VisitLog
    evaluation: Evaluation
    untrained: HostArray | None


class Programs(NamedTuple):
    """The pure functions of a run: jit them, or vmap them over seeds first. `key` is the run's throughout.

    Attributes:
      start: `(key, tables, given, entry=None) -> Run`, at the beginning of an entry, of the agenda's first where it is
        None. `given` takes the place of some of the learner's hyper-parameters, and of task 0's parameters, or of all
        that earlier rounds have left.
      epoch: `(run, entry, tables, key) -> run`: `open`, all `steps`, `close`.
      open: `(run, entry, tables, key) -> Epoch`, what is fixed through an epoch.
      steps: `(run, epoch, tables, stop) -> run`: the steps that are still to be taken before step `stop`.
      close: `(run, epoch, entry, tables) -> run`: validation, patience, the log.
      observe: `(run, entry, tables) -> run`, where `settings.curves_every` is not 0, after an epoch whose number it
        divides: the accuracy on all tasks goes into the visit's curves.
      turn: `(run, entry, following, tables, key) -> run`. What follows the last entry is the agenda's end, beyond the
        last round: then the learner only rests.
      rest: `run -> learner`, at rest.
      compare: `(learner, key, tables, given) -> fingerprints`, `[2, T]`, of what `given.past` left and of the learner
        at rest, by the same operations: equal where no bit of a task's logits has changed.
    """

    start: Callable[..., Run]
    epoch: Callable[[Run, Entry, Tables, Array], Run]
    open: Callable[[Run, Entry, Tables, Array], Epoch]
    steps: Callable[[Run, Epoch, Tables, Array], Run]
    close: Callable[[Run, Epoch, Entry, Tables], Run]
    observe: Callable[[Run, Entry, Tables], Run]
    turn: Callable[[Run, Entry, Entry, Tables, Array], Run]
    rest: Callable[[Run], Learner]
    compare: Callable[[Learner, Array, Tables, Start], Array]


def agenda(method: Method, schedule: Schedule) -> list[Entry]:
    """Every phase of a run, in order, and an entry beyond the last round.

    Args:
      method: for its phases and its search.
      schedule: the rounds.

    Returns:
      Entries of Python numbers.

    Example:
      >>> from cljax.types import Phase
      >>> class Two: phases, search = (Phase('warm-up', .25, skip_first_task=True), Phase('joint', .75)), None
      >>> [tuple(entry) for entry in agenda(Two, Schedule(np.array([0, 1]), np.array([8, 8]), None))]
      [(0, 0, 1, 8), (1, 0, 0, 2), (1, 0, 1, 6), (2, 0, 0, 0)]
    """
    entries, candidates = [], method.search.size if method.search else 0
    for round, row in enumerate(epoch_table(method, schedule)):
        phases = [(phase, int(count)) for phase, count in enumerate(row) if count >= 0]
        tried = [(phase, count) for phase, count in phases if method.phases[phase].searched or not candidates]
        entries += [Entry(round, one, *phase) for one in range(max(candidates, 1)) for phase in tried]
        entries += [Entry(round, candidates, *phase) for phase in phases if phase not in tried]
    return [*entries, Entry(len(schedule.task), 0, 0, 0)]


def span_entries(entries: list[Entry], begin: int, end: int) -> list[Entry]:
    """The entries of some rounds, from `begin` to before `end`, and the agenda's end.

    Example:
      >>> span_entries([Entry(0, 0, 0, 9), Entry(1, 0, 0, 9), Entry(2, 0, 0, 9), Entry(3, 0, 0, 0)], 1, 2)
      [Entry(round=1, candidate=0, phase=0, epochs=9), Entry(round=3, candidate=0, phase=0, epochs=0)]
    """
    return [*(entry for entry in entries[:-1] if begin <= entry.round < end), entries[-1]]


def span_of(pasts: Sequence[Past] | None, rounds: int | None, stream: Stream) -> tuple[int, int]:
    """The first round that a run is to go through, and that before which it ends.

    Raises:
      ValueError: there is no such round.
    """
    count = len(stream.schedule.task)
    begin = max((np.shape(past.evaluation.accuracy)[-2] for past in pasts or ()), default=0)
    end = whole("rounds", count if rounds is None else rounds, least=1, most=count)
    if begin >= end:
        raise ValueError(
            f"There is nothing to go on with: {begin} rounds are behind, and the run is to end after {end}. Append "
            f"tasks to the stream (streams.append), or give it a longer schedule."
        )
    return begin, end


def make_programs(method: Method, engine: Engine, schedule: Schedule) -> Programs:
    """Makes the programs of a run.

    Args:
      method: the method.
      engine: of `make_engine`.
      schedule: the rounds.

    Returns:
      The programs.
    """
    table, settings = epoch_table(method, schedule), engine.settings
    rounds, cadence = len(schedule.task), settings.curves_every
    moments, evaluated = clocks(schedule), np.asarray(schedule.evaluate, np.bool_)
    first, search = agenda(method, schedule)[0], method.search

    def clock_of(entry: Entry) -> Clock:
        """The clock at a phase's beginning; beyond the last round that of a further visit to the last task."""
        clock = pick(moments, jnp.minimum(entry.round, rounds - 1))
        return clock._replace(phase=jnp.asarray(entry.phase, jnp.int32), first=clock.first & (entry.round < rounds))

    def no_log(tasks: int) -> VisitLog:
        phases, longest = table.shape[1], int(table.max())
        none = jnp.full((phases, longest), unknown(), jnp.float32)
        curves = jnp.full((phases, longest // cadence, tasks), unknown(), jnp.float32) if cadence else None
        return VisitLog(EpochLog(none, none, none), curves)

    def begin_visit(
        learner: Learner, found: Candidates | None, entry: Entry, tables: Tables, key: Array
    ) -> tuple[Learner, Candidates | None]:
        """Begins a visit with a candidate's hyper-parameters, or lets it go on with those of the one chosen."""
        clock = in_stream(clock_of(entry._replace(phase=0)), tables, engine.scenario)
        if search is not None and found is not None:
            numbers, offered = found.tried.numbers, (entry.round < rounds) & (entry.candidate < search.size)
            options = offer(method, learner, clock, pick(found.tried.scores, entry.round))
            given = pick(options, entry.candidate)
            hyper = select(offered, given, {name: learner.hyper[name] for name in given})
            learner = learner._replace(hyper={**learner.hyper, **hyper})
            clock = clock._replace(first=clock.first & offered)
            row = select(offered, options, pick(numbers, entry.round))
            found = found._replace(tried=found.tried._replace(numbers=put(numbers, row, entry.round)))
        return engine.begin_visit(learner, clock, tables, key), found

    def begin_phase(
        learner: Learner, failure: Failure, found: Candidates | None, entry: Entry, tables: Tables, key: Array
    ) -> PhaseState:
        state = engine.begin_phase(learner, clock_of(entry), tables, key)
        done = failure.round >= 0
        if found is not None:
            done |= repeats(pick(found.tried.numbers, entry.round), entry.candidate)
        return state._replace(failure=failure, done=done)

    def start(key: Array, tables: Tables, given: Start, entry: Entry | None = None) -> Run:
        entry = jax.tree.map(jnp.int32, first if entry is None else entry)
        learner = begin_with(method, engine.init(key, tables), given)
        tasks, lost, candidates = tables.classes.shape[0], no_failure(), None
        log = no_log(tasks)
        repeat = lambda tree, count: jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (count, *leaf.shape)), tree)
        if search is not None:
            clock = in_stream(clock_of(entry), tables, engine.scenario)
            scores = jnp.full((rounds, search.size), -1.0, jnp.float32)
            offered = offer(method, learner, clock, scores[0])
            if "learning_rate" in offered and settings.learning_rate is None:
                raise ValueError(
                    f"The search of {method.name} tries learning rates, by which the optimizer's would be multiplied: "
                    f"give settings a learning_rate, and an optimizer at unit rate, such as optax.sgd(1.0)."
                )
            numbers = repeat(jax.tree.map(jnp.zeros_like, offered), rounds)
            tried = Tried(numbers, scores, jnp.zeros(scores.shape, jnp.int32), jnp.full(rounds, -1, jnp.int32))
            candidates = Candidates(learner, lost, tried, *(repeat(tree, search.size) for tree in (learner, lost, log)))
        none = jnp.full((rounds, tasks), unknown(), jnp.float32)
        seen = engine.look and jnp.full((rounds, *jax.eval_shape(engine.look, learner, tables).shape), unknown())
        known = Evaluation(none, none, none, jnp.zeros((rounds, tasks), jnp.uint32), seen)
        if given.past is not None:  # bits are compared within a program only
            past = given.past.evaluation._replace(attention=seen)
            known = jax.tree.map(put_corner, known, past)._replace(fingerprint=known.fingerprint)
        shared = not method.network.per_task and engine.scenario != "class" and given.past is None
        untrained = engine.evaluate(learner, clock_of(entry), tables).accuracy if shared else None
        learner, candidates = begin_visit(learner, candidates, entry, tables, key)
        state = begin_phase(learner, lost, candidates, entry, tables, key)
        return Run(state, log, candidates, repeat(log, rounds), known, untrained)

    def open(run: Run, entry: Entry, tables: Tables, key: Array) -> Epoch:
        return engine.begin_epoch(run.state, clock_of(entry), tables, key)

    def steps(run: Run, epoch: Epoch, tables: Tables, stop: Array) -> Run:
        return run._replace(state=engine.train(run.state, epoch, tables, stop))

    def close(run: Run, epoch: Epoch, entry: Entry, tables: Tables) -> Run:
        place, (state, found) = run.state.epoch, engine.end_epoch(run.state, epoch, tables)
        log = run.visit._replace(epochs=put(run.visit.epochs, found, entry.phase, place))
        return run._replace(state=state, visit=log)

    def observe(run: Run, entry: Entry, tables: Tables) -> Run:
        state, clock, curves = run.state, clock_of(entry), run.visit.curves
        accuracy = engine.evaluate(engine.end_visit(state.learner, clock), clock, tables).accuracy
        known = jnp.where(state.failure.round < 0, accuracy, unknown())
        written = put(curves, known, entry.phase, (state.epoch - 1) // cadence)
        return run._replace(visit=run.visit._replace(curves=select(state.epoch % cadence == 0, written, curves)))

    def epoch(run: Run, entry: Entry, tables: Tables, key: Array) -> Run:
        now = open(run, entry, tables, key)
        return close(steps(run, now, tables, now.steps), now, entry, tables)

    def turn(run: Run, entry: Entry, following: Entry, tables: Tables, key: Array) -> Run:
        clock, own = clock_of(entry), tables
        if run.search is not None:
            tried = run.search.tried
            repeated = repeats(pick(tried.numbers, entry.round), entry.candidate)
            own = without_examples(tables, repeated)
            epochs = tried.epochs.at[entry.round, entry.candidate].add(run.state.epoch, mode="drop")
            run = run._replace(search=run.search._replace(tried=tried._replace(epochs=epochs)))
        focused, failure = engine.end_phase(run.state, clock, own, key)
        if run.search is not None:
            focused = select(repeated, run.state.learner, focused)
        logs = run._replace(state=None)  # type: ignore[arg-type]

        def another_visit() -> tuple[Learner, Failure, Run]:
            round_ends, candidates = following.round > entry.round, run.search
            visit, blank = Visit(engine.end_visit(focused, clock), failure, run.visit), no_log(tables.classes.shape[0])
            if candidates is not None:
                score = jnp.where(repeated, -1.0, engine.validate(focused, clock, own))
                visit, candidates = compare(visit, score, candidates, entry, tables)
            ended, same = lambda: end_round(visit, run, entry, tables), (visit.failure, run.visits, run.evaluation)
            lost, visits, evaluation = lax.cond(round_ends, ended, lambda: same)
            learner = visit.learner
            if candidates is not None:
                goes_on = ~round_ends & (following.candidate == candidates.tried.scores.shape[1])
                origin = candidates.origin, candidates.failure
                learner, lost = select(round_ends | goes_on, (learner, lost), origin)
                origin = select(round_ends, (learner, lost), origin)
                candidates = candidates._replace(origin=origin[0], failure=origin[1])
                blank = select(goes_on, visit.log, blank)
            learner, candidates = begin_visit(learner, candidates, following, tables, key)
            return learner, lost, logs._replace(visit=blank, search=candidates, visits=visits, evaluation=evaluation)

        ends = (following.round > entry.round) | (following.candidate > entry.candidate)
        learner, lost, run = lax.cond(ends, another_visit, lambda: (focused, failure, logs))
        return run._replace(state=begin_phase(learner, lost, run.search, following, tables, key))

    def compare(
        visit: Visit, score: Array, candidates: Candidates, entry: Entry, tables: Tables
    ) -> tuple[Visit, Candidates]:
        """Notes a candidate's visit; after the last one the visit is that of the candidate chosen."""
        tried, round = candidates.tried, entry.round
        score = jnp.where(jnp.isnan(score) | (visit.failure.round >= 0), jnp.float32(-1.0), score)
        tried = tried._replace(scores=tried.scores.at[round, entry.candidate].set(score, mode="drop"))
        learners, failures, logs = put(candidates[3:], tuple(visit), entry.candidate)

        def decide() -> tuple[Visit, Array]:
            clock = clock_of(entry._replace(phase=0))
            index, learner = engine.choose((pick(tried.scores, round), learners), clock, tables)
            return Visit(learner, *pick((failures, logs), index)), tried.chosen.at[round].set(index)

        last = entry.candidate == tried.scores.shape[1] - 1
        visit, chosen = lax.cond(last, decide, lambda: (visit, tried.chosen))
        tried = tried._replace(chosen=chosen)
        return visit, Candidates(candidates.origin, candidates.failure, tried, learners, failures, logs)

    def end_round(visit: Visit, run: Run, entry: Entry, tables: Tables) -> tuple[Failure, VisitLog, Evaluation]:
        """Writes the round's log, and evaluates where the schedule says so."""
        clock, asked = clock_of(entry), pick(evaluated, entry.round)
        row, learner = pick(run.evaluation, entry.round), visit.learner

        def evaluate() -> Evaluation:
            attention = engine.look and engine.look(learner, tables)
            return engine.evaluate(learner, clock, tables)._replace(attention=attention)

        found = lax.cond(asked, evaluate, lambda: row)
        failure = earlier(visit.failure, lost_logits(found, clock, asked, tables))
        evaluation = put(run.evaluation, select(failure.round < 0, found, row), entry.round)
        return failure, put(run.visits, visit.log, entry.round), evaluation

    def rest(run: Run) -> Learner:
        return engine.end_visit(run.state.learner, pick(moments, jnp.int32(rounds - 1)))

    def compare_with_past(learner: Learner, key: Array, tables: Tables, given: Start) -> Array:
        pair = begin_with(method, engine.init(key, tables), given), learner
        clock = pick(moments, jnp.int32(rounds - 1))
        of = lambda one: engine.evaluate(one, clock, tables).fingerprint
        return lax.map(of, jax.tree.map(lambda *leaves: jnp.stack(leaves), *pair))

    return Programs(start, epoch, open, steps, close, observe, turn, rest, compare_with_past)
