"""A whole stream in one program: the programs of a run, scanned over its agenda."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from cljax import streams
from cljax.keys import as_own
from cljax.numbers import check_kind, several, show, whole
from cljax.streams.building import check_stream
from cljax.text import brief
from cljax.training.bounds import settle
from cljax.training.checks import check, check_in_memory, check_network, check_optimizer, raise_failure
from cljax.training.engine import changing, make_engine, with_even_size
from cljax.training.evaluation import Evaluation
from cljax.training.loop import Entry, agenda, make_programs, span_of
from cljax.training.loop import Run as State
from cljax.training.search import Tried
from cljax.training.start import Past, Start
from cljax.training.state import EpochLog, Failure, Origin, Settings, debugging, origin, reveal
from cljax.training.step import TrainStep
from cljax.trees import pick, select
from cljax.types import Array, Learner, Method, Stream, Tables


@brief
class Result(NamedTuple):
    """What a run gives.

    Attributes:
      learner: at rest, after the last round.
      evaluation: `Evaluation` of `[R, T]`: after each round, on the test split; accuracy NaN (fingerprint 0) for rounds
        that the schedule does not evaluate, and from the round on in which the learner diverged.
      epochs: `EpochLog` of `[R, P, E]`, NaN where no epoch was trained.
      curves: `[R, P, E // every, T]` accuracy on all tasks after every `curves_every`-th epoch; None without.
      failure: where the learner diverged, all -1 if it did not.
      search: `Tried` of `[R, ...]`, what a method's search has tried and chosen; None without.
      untrained: `[T]` accuracy before the first round, for `metrics.forward_transfer`; None where tasks have heads
        of their own, in the class-incremental scenario, and where rounds are past.
      origin: what it is of: `report` takes a result as it is.

    Example:
      >>> import jax
      >>> import optax
      >>> from cljax import data, methods, networks, streams, training
      >>> stream = streams.split(data.load('digits'), tasks=2, epochs=1)
      >>> method = methods.finetune(networks.mlp((8, 8, 1), 5, hidden=(4,)))
      >>> result = training.make_run(method, optax.adam(1e-2), stream)(jax.random.key(0), stream.tables)
      >>> result.evaluation.accuracy.shape, result.epochs.loss.shape  # [after task, task]; [round, phase, epoch]
      ((2, 2), (2, 1, 1))
    """

    learner: Learner
    evaluation: Evaluation
    epochs: EpochLog
    curves: Array | None
    failure: Failure
    search: Tried | None
    untrained: Array | None
    origin: Origin


@brief
@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A run, compiled at its first call.

    Attributes:
      run: `(key, tables, params={}, past=None, rounds=None) -> Result`, pure and jitted. Under
        `jax_debug_nans` it returns float32's largest number for what is not measured, where it otherwise returns NaN;
        calling `Run` itself gives NaN.
      step: its train step; `step.traces` counts traces.
      method: the method.
      max_examples: `{split: the most examples of a task}` that it has room for.
    """

    run: Callable[..., Result]
    step: TrainStep
    method: Method
    max_examples: dict[str, int]

    def __call__(
        self,
        key: Array,
        tables: Tables,
        params: Mapping[str, Any] | None = None,
        past: Result | Past | None = None,
        rounds: tuple[int, int] | None = None,
    ) -> Result:
        """Carries out the run; vmap this over keys, and over the tables that differ by seed.

        Args:
          key: PRNG key.
          tables: the stream's.
          params: trained ones that task 0 begins with, of `training.given_params`; None: random ones.
          past: what earlier rounds have left, which the run goes on from.
          rounds: the rounds to be run, from the first to before the second; None: all that are not past. One program
            serves them all: where a stream has room for tasks to come (`streams.pad`), nothing is traced again.

        Raises:
          NonFiniteLoss: naming task, phase and step. Under `vmap` or `jit` nothing can be raised: the accuracies of the
            learners that diverged are NaN; `raise_failure` of the result's `failure` names them.
        """
        check_kind("tables", tables, Tables, "a stream's: stream.tables")
        if not (past is None or isinstance(past, Result | Past)):
            raise ValueError(f"past is {show(past)}, but must be a result of the run, a Past, or None.")
        if not (params is None or isinstance(params, Mapping)):
            raise ValueError(f"params is {show(params)}, but must be what training.given_params gives, or None.")
        check_network(self.method, tables, "the tables given")
        self._check_sizes(tables)
        past = None if past is None else Past(past.learner, past.evaluation)
        result = self.run(as_own(key), tables, dict(params or {}), past, rounds)
        if not isinstance(result.failure.round, jax.core.Tracer):
            raise_failure(result.failure, self.method)
            if debugging("debug_nans"):
                names = ("evaluation", "epochs", "curves", "untrained")
                return result._replace(**{name: jax.tree.map(reveal, getattr(result, name)) for name in names})
        return result

    def _check_sizes(self, tables: Tables) -> None:
        """Raises: ValueError, where a task has more examples than the run has room for, as far as sizes are known."""
        for split, most in self.max_examples.items():
            size = getattr(tables, split).size
            if not isinstance(size, jax.core.Tracer) and np.max(size) > most:
                raise ValueError(
                    f"Task {int(np.argmax(size))} has {int(np.max(size))} {split} examples, but the run has room for "
                    f"{most} of a task. Make it with max_examples={{{split!r}: {int(np.max(size))}}}."
                )


def check_max_examples(given: Any) -> dict[str, int]:
    """Room for examples, by split.

    Raises:
      ValueError: of another form.

    Example:
      >>> check_max_examples({"training": 5})
      Traceback (most recent call last):
      ...
      ValueError: max_examples is {'training': 5}, but must be numbers of train, validation or test, such as ...
    """
    if not isinstance(given, Mapping | None) or set(given or {}) - {"train", "validation", "test"}:
        such = "numbers of train, validation or test, such as {'train': 9}"
        raise ValueError(f"max_examples is {show(given)}, but must be {such}.")
    return {split: whole(f"max_examples of {split}", size) for split, size in (given or {}).items()}


def make_run(
    method: Method,
    optimizer: optax.GradientTransformation,
    stream: Stream,
    settings: Settings | None = None,
    *,
    max_examples: Mapping[str, int] | None = None,
) -> Run:
    """Makes a run of a method over a stream: every round, phase, epoch and evaluation, in one program.

    Args:
      method: the method.
      optimizer: an Optax transformation with its own learning rate, such as `optax.adam(1e-3)`; or at unit rate, such
        as `optax.sgd(1.0, momentum=0.9)`, where `settings` has one.
      stream: gives the schedule, the scenario and bounds on the sizes; its tables are an argument of the run, so that
        other seeds' tables (see `streams.align`) run through the same program.
      settings: how the run is carried out.
      max_examples: `{split: the most examples of a task}` where tables that the run will be given have larger tasks
        than the stream has; otherwise its own.

    Returns:
      `run(key, tables) -> Result`; under `vmap` over keys every seed stops on its own. `training.mesh.across` shares
      seeds and batches among devices.

    Raises:
      ValueError: where the method, the stream and the settings do not fit together, before anything is compiled.

    Example:
      >>> import jax
      >>> import optax
      >>> from cljax import data, methods, networks, streams, training
      >>> stream = streams.split(data.load('digits'), tasks=2, epochs=1)
      >>> method = methods.finetune(networks.mlp((8, 8, 1), 5, hidden=(4,)))
      >>> run = training.make_run(method, optax.adam(1e-2), stream)
      >>> result = run(jax.random.key(0), stream.tables)  # jax.vmap(run, (0, None)): several seeds
      >>> result.evaluation.accuracy.shape, run.step.traces
      ((2, 2), 1)
    """
    check_stream(stream)
    settings = settle(settings, stream)
    to_come = np.isin(stream.schedule.task, np.flatnonzero(~np.any(stream.tables.classes, axis=-1)))
    check(method, stream, settings, (0, int(np.argmax(np.append(to_come, True)))))
    check_in_memory(stream)
    check_optimizer(method, optimizer, settings.learning_rate)
    most = {**streams.max_examples(stream.tables), **check_max_examples(max_examples)}
    engine = make_engine(method, optimizer, settings, scenario=stream.scenario, max_examples=most)
    programs = make_programs(method, engine, stream.schedule)
    whence = origin(method, settings, [(0, stream)], len(stream.schedule.task))

    def train(run: State, entry: Entry, tables: Tables, key: Array, size: int | None) -> State:
        """All epochs of a phase; only what they change is carried."""
        whole, known = run.state, with_even_size(tables, size)

        def full(carry: State) -> State:
            state = carry.state
            learner = whole.learner._replace(**state.learner)
            return run._replace(state=state._replace(learner=learner, mask=whole.mask), visit=carry.visit)

        def thin(run: State) -> State:
            state = run.state._replace(learner=changing(run.state.learner), mask=None)
            return State(state, run.visit, None, None, None, None)  # type: ignore[arg-type]

        body = lambda carry: thin(programs.epoch(full(carry), entry, known, key))
        unfinished = lambda carry: (carry.state.epoch < entry.epochs) & ~carry.state.done
        cadence = settings.curves_every

        def observed(carry: State) -> State:
            """Epochs up to the next that is observed: side by side, seeds would otherwise be observed at each."""
            between = lambda now: unfinished(now) & ((now.state.epoch == carry.state.epoch) | ~is_due(now))
            after = lax.while_loop(between, body, carry)
            observe = lambda now: thin(programs.observe(full(now), entry, tables))
            return lax.cond(is_due(after), observe, lambda now: now, after)

        is_due = lambda carry: carry.state.epoch % cadence == 0
        points = run.visit.curves is not None and run.visit.curves.shape[1]
        return full(lax.while_loop(unfinished, observed if points else body, thin(run)))

    def run(key: Array, tables: Tables, given: Start, rounds: tuple[Array, Array], size: int | None) -> Result:
        listed = np.asarray(agenda(method, stream.schedule), np.int32)
        places = [jnp.sum(jnp.asarray(listed[:-1, 0]) < edge, dtype=jnp.int32) for edge in rounds]
        entries = Entry(*jnp.asarray(listed.T))
        start = programs.start(key, tables, given, pick(entries, places[0]))
        end = jax.tree.map(lambda leaf: leaf[-1], entries)

        def one(place: Array, run: State) -> State:
            entry = pick(entries, place)
            following = select(place + 1 < places[1], pick(entries, place + 1), end)
            return programs.turn(train(run, entry, tables, key, size), entry, following, tables, key)

        last: State = lax.fori_loop(places[0], places[1], one, start)
        tried = last.search and last.search.tried
        logs = (last.evaluation, *last.visits, last.state.failure, tried, last.untrained)
        return Result(programs.rest(last), *logs, whence)

    def check_rounds(rounds: Any) -> tuple[int, int]:
        count = len(stream.schedule.task)
        pair = several("rounds", rounds, "a pair: the first round, and that before which to end", least=2, most=2)
        begin = whole("The first of rounds", pair[0], most=count - 1)
        return begin, whole("The second of rounds", pair[1], least=begin + 1, most=count)

    jitted = jax.jit(lambda *arguments: run(*arguments[:-1]), static_argnums=(4, 5))

    def carry_out(
        key: Array,
        tables: Tables,
        params: dict[str, Array] | None = None,
        past: Past | None = None,
        rounds: tuple[int, int] | None = None,
    ) -> Result:
        begin, end = span_of(past and [past], None, stream) if rounds is None else check_rounds(rounds)
        span = np.int32(begin), np.int32(end)
        sizes = tables.train.size
        known = max_examples is None and not isinstance(sizes, jax.core.Tracer) and np.all(sizes == most["train"])
        size = most["train"] if known else None
        found = jitted(key, tables, Start({}, params or {}, past), span, size, debugging("debug_nans"))
        return found._replace(origin=dataclasses.replace(found.origin, rounds=end))

    return Run(carry_out, engine.step, method, most)
