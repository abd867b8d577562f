"""A whole stream in one program: the programs of a run, scanned over its agenda."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from cljax import streams
from cljax.keys import as_own
from cljax.training.checks import check, check_in_memory, check_optimizer, raise_failure
from cljax.training.engine import changing, make_engine
from cljax.training.evaluation import Evaluation
from cljax.training.loop import Entry, agenda, make_programs
from cljax.training.loop import Run as State
from cljax.training.start import NOTHING, Start
from cljax.training.state import EpochLog, Failure, Settings, debugging, reveal
from cljax.training.step import TrainStep
from cljax.types import Array, Learner, Method, Stream, Tables


class Result(NamedTuple):
    """What a run gives.

    Attributes:
      learner: at rest, after the last round.
      evaluation: `Evaluation` of `[R, T]`: after each round, on the test split; accuracy NaN (fingerprint 0) for rounds
        that the schedule does not evaluate, and from the round on in which the learner diverged.
      epochs: `EpochLog` of `[R, P, E]`, NaN where no epoch was trained.
      curves: `[R, P, E // every, T]` accuracy on all tasks after every `curves_every`-th epoch; None without.
      failure: where the learner diverged, all -1 if it did not.
    """

    learner: Learner
    evaluation: Evaluation
    epochs: EpochLog
    curves: Array | None
    failure: Failure


class Run(NamedTuple):
    """A run, compiled at its first call.

    Attributes:
      run: `(key, tables, params={}) -> Result`, pure and jitted. Under `jax_debug_nans` it returns float32's largest
        number for what is not measured, where it otherwise returns NaN; calling `Run` itself gives NaN.
      step: its train step; `step.traces` counts traces.
      method: the method.
    """

    run: Callable[..., Result]
    step: TrainStep
    method: Method

    def __call__(self, key: Array, tables: Tables, params: Mapping[str, Any] | None = None) -> Result:
        """Carries out the run; vmap this over keys, and over the tables that differ by seed.

        Args:
          key: PRNG key.
          tables: the stream's.
          params: trained ones that task 0 begins with, of `training.given_params`; None: random ones.

        Raises:
          NonFiniteLoss: naming task, phase and step. Under `vmap` or `jit` nothing can be raised: the accuracies of the
            learners that diverged are NaN; `raise_failure` of the result's `failure` names them.
        """
        result = self.run(as_own(key), tables, dict(params or {}))
        if not isinstance(result.failure.round, jax.core.Tracer):
            raise_failure(result.failure, self.method)
            if debugging("debug_nans"):
                shown = jax.tree.map(reveal, (result.evaluation, result.epochs, result.curves))
                return result._replace(evaluation=shown[0], epochs=shown[1], curves=shown[2])
        return result


def make_run(
    method: Method, optimizer: optax.GradientTransformation, stream: Stream, settings: Settings | None = None
) -> Run:
    """Makes a run of a method over a stream: every round, phase, epoch and evaluation, in one program.

    Args:
      method: the method.
      optimizer: an Optax transformation at unit rate, such as `optax.sgd(1.0, momentum=0.9)`.
      stream: gives the schedule, the scenario and bounds on the sizes; its tables are an argument of the run, so that
        other seeds' tables (see `streams.align`) run through the same program.
      settings: how the run is carried out.

    Returns:
      `run(key, tables) -> Result`; under `vmap` over keys every seed stops on its own.

    Raises:
      ValueError: where the method, the stream and the settings do not fit together, before anything is compiled.
    """
    settings = settings or Settings()
    check(method, stream, settings)
    check_in_memory(stream)
    check_optimizer(method, optimizer)
    most = streams.max_examples(stream.tables)
    engine = make_engine(method, optimizer, settings, scenario=stream.scenario, max_examples=most)
    programs = make_programs(method, engine, stream.schedule)

    def train(run: State, entry: Entry, tables: Tables, key: Array) -> State:
        """All epochs of a phase; only what they change is carried."""
        whole = run.state

        def full(carry: State) -> State:
            state = carry.state
            learner = whole.learner._replace(**state.learner)
            return run._replace(state=state._replace(learner=learner, mask=whole.mask), visit=carry.visit)

        def thin(run: State) -> State:
            state = run.state._replace(learner=changing(run.state.learner), mask=None)
            return State(state, run.visit, None, None, None)  # type: ignore[arg-type]

        def body(carry: State) -> State:
            after = programs.epoch(full(carry), entry, tables, key)
            if settings.curves_every:
                due = after.state.epoch % settings.curves_every == 0
                after = lax.cond(due, lambda run: programs.observe(run, entry, tables), lambda run: run, after)
            return thin(after)

        unfinished = lambda carry: (carry.state.epoch < entry.epochs) & ~carry.state.done
        return full(lax.while_loop(unfinished, body, thin(run)))

    def run(key: Array, tables: Tables, params: dict[str, Array]) -> Result:
        start = programs.start(key, tables, Start({}, params))
        candidates = 0 if start.search is None else start.search.scores.shape[0]
        entries = np.asarray(agenda(method, stream.schedule, candidates), np.int32)
        pairs = Entry(*jnp.asarray(entries[:-1].T)), Entry(*jnp.asarray(entries[1:].T))

        def one(run: State, pair: tuple[Entry, Entry]) -> tuple[State, None]:
            return programs.turn(train(run, pair[0], tables, key), *pair, tables, key), None

        end, _ = lax.scan(one, start, pairs)
        return Result(programs.rest(end), end.evaluation, *end.visits, end.state.failure)

    jitted = jax.jit(lambda key, tables, params, debug: run(key, tables, params), static_argnums=3)
    whole = lambda key, tables, params=NOTHING.params: jitted(key, tables, params, debugging("debug_nans"))
    return Run(whole, engine.step, method)
