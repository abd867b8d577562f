"""A whole stream in one program."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from cljax import streams
from cljax.keys import as_own
from cljax.training.checks import check, check_in_memory, check_optimizer, raise_failure
from cljax.training.engine import make_engine
from cljax.training.evaluation import Evaluation, lost_logits
from cljax.training.fit import FitLog, make_fit, search
from cljax.training.plan import clocks, epoch_table
from cljax.training.state import Failure, Settings, debugging, earlier, no_failure, reveal, unknown
from cljax.training.step import TrainStep
from cljax.types import Array, Clock, Learner, Method, Stream, Tables


class Result(NamedTuple):
    """What a run gives.

    Attributes:
      learner: at rest, after the last round.
      evaluation: `Evaluation` of `[R, T]`: after each round, on the test split; accuracy NaN (fingerprint 0) for rounds
        that the schedule does not evaluate, and from the round on in which the learner diverged.
      log: `FitLog` with a leading axis of rounds.
      failure: where the learner diverged, all -1 if it did not.
    """

    learner: Learner
    evaluation: Evaluation
    log: FitLog
    failure: Failure


class Run(NamedTuple):
    """A run, compiled at its first call.

    Attributes:
      run: `(key, tables) -> Result`, pure and jitted. Under `jax_debug_nans` it returns float32's largest number for
        what is not measured, where it otherwise returns NaN; calling `Run` itself gives NaN.
      step: its train step; `step.traces` counts traces.
      method: the method.
    """

    run: Callable[[Array, Tables], Result]
    step: TrainStep
    method: Method

    def __call__(self, key: Array, tables: Tables) -> Result:
        """Carries out the run; vmap this over keys, and over the tables that differ by seed.

        Raises:
          NonFiniteLoss: naming task, phase and step. Under `vmap` or `jit` nothing can be raised: the accuracies of the
            learners that diverged are NaN; `raise_failure` of the result's `failure` names them.
        """
        result = self.run(as_own(key), tables)
        if not isinstance(result.failure.round, jax.core.Tracer):
            raise_failure(result.failure, self.method)
            if debugging("debug_nans"):
                shown = jax.tree.map(reveal, (result.evaluation, result.log))
                return result._replace(evaluation=shown[0], log=shown[1])
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
    engine = make_engine(
        method, optimizer, settings, scenario=stream.scenario, max_examples=streams.max_examples(stream.tables)
    )
    schedule, table = stream.schedule, epoch_table(method, stream.schedule)
    fit = make_fit(engine, settings, longest=int(table.max()))
    if method.search is not None:
        fit = search(fit, method.search.candidates, engine.choose, phases=method.phases)

    def run(key: Array, tables: Tables) -> Result:
        tasks = tables.classes.shape[0]

        def one_round(carry: tuple[Learner, Failure], entry: tuple[Clock, Array, Array]):
            (learner, failure), (clock, epochs, evaluated) = carry, entry
            learner, log = fit(learner, clock, tables, key, epochs)
            failure = earlier(failure, log.failure)
            none = jnp.full(tasks, unknown(), jnp.float32)
            missing = Evaluation(none, none, none, jnp.zeros(tasks, jnp.uint32))
            evaluation = lax.cond(evaluated, lambda: engine.evaluate(learner, clock, tables), lambda: missing)
            failure = earlier(failure, lost_logits(evaluation, clock, evaluated))
            known = lambda accuracy: jnp.where(failure.round < 0, accuracy, jnp.nan)
            shown = {name: known(getattr(evaluation, name)) for name in ("accuracy", "task_il_accuracy", "top5")}
            kept = evaluation._replace(**shown)
            return (learner, failure), (kept, log)

        start = engine.init(key, tables), no_failure()
        entries = jax.tree.map(jnp.asarray, (clocks(schedule), table, np.asarray(schedule.evaluate, np.bool_)))
        (learner, failure), (evaluation, log) = lax.scan(one_round, start, entries)
        return Result(learner, evaluation, log, failure)

    jitted = jax.jit(lambda key, tables, debug: run(key, tables), static_argnums=2)
    return Run(lambda key, tables: jitted(key, tables, debugging("debug_nans")), engine.step, method)
