"""A run from Python, epoch by epoch: the same engine as `make_run`, with progress, and stopping at a failure."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cljax import streams as stream_tables
from cljax.training.checks import check, raise_failure
from cljax.training.cost import step_cost
from cljax.training.engine import Engine, make_engine
from cljax.training.evaluation import Evaluation
from cljax.training.fit import pick
from cljax.training.plan import clocks, epoch_table
from cljax.training.state import EpochLog, Settings
from cljax.types import Array, Clock, Learner, Method, Schedule, Stream, Tables, Tree


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


class Outcome(NamedTuple):
    """What driving a method over some seeds gives; NumPy arrays with a leading axis of seeds S.

    Attributes:
      learners: a list, one learner at rest a seed.
      evaluation: `Evaluation` of `[S, R, T]`; accuracy NaN where the schedule does not evaluate.
      epochs: `EpochLog` of `[S, R, P, E]`, NaN where no epoch was trained.
      curves: `[S, C, T]` accuracy on all tasks after the epochs of `curve_epochs`; NaN where patience stopped earlier.
      curve_epochs: `[C, 3]` int, round, phase and epoch (from 1): every `curves_every`-th epoch of each phase.
      seconds: `[S]` of training and evaluation, without compilation.
      compile_seconds: of all programs.
      traces: how often the train step was traced.
      flops, step_bytes: of one step, by the compiler; None where it does not tell.
    """

    learners: list[Learner]
    evaluation: Evaluation
    epochs: EpochLog
    curves: np.ndarray
    curve_epochs: np.ndarray
    seconds: np.ndarray
    compile_seconds: float
    traces: int
    flops: float | None
    step_bytes: int | None


class Program:
    """A jitted function, compiled at its first call, which is timed apart."""

    def __init__(self, function: Callable, donate: tuple[int, ...] = ()) -> None:
        self._jitted = jax.jit(function, donate_argnums=donate)
        self._compiled: Any = None
        self.seconds = 0.0

    def __call__(self, *arguments: Tree) -> Any:
        """Calls the function; arguments have the same shapes at every call."""
        if self._compiled is None:
            start = time.perf_counter()
            self._compiled = self._jitted.lower(*arguments).compile()
            self.seconds = time.perf_counter() - start
        return self._compiled(*arguments)


def make_programs(method: Method, engine: Engine, table_axes: Tables | None) -> dict[str, Program]:
    """The engine's functions, compiled: one seed each, or side by side where the tables' vmap axes are given."""

    def program(function: Callable, axes: tuple, donate: tuple[int, ...] = ()) -> Program:
        return Program(function if table_axes is None else jax.vmap(function, in_axes=axes), donate)

    def epoch(state, clock, tables, key):
        nothing = EpochLog(*[jnp.full((), jnp.nan, jnp.float32)] * 3)
        go = lambda state: engine.epoch(state, clock, tables, key)
        return jax.lax.cond(state.done, lambda state: (state, nothing), go, state)

    during = (0, None, table_axes, 0)
    programs = {
        "init": program(engine.init, (0, table_axes)),
        "begin_visit": program(engine.begin_visit, during),
        "begin_phase": program(engine.begin_phase, during, (0,)),
        "epoch": program(epoch, during, (0,)),
        "end_phase": program(engine.end_phase, during, (0,)),
        "end_visit": program(engine.end_visit, (0, None)),
        "evaluate": program(engine.evaluate, (0, None, table_axes)),
        "validate": program(engine.validate, (0, None, table_axes)),
    }
    if method.candidates is not None:
        programs["candidates"] = program(method.candidates, (0, None))
        programs["choose"] = program(method.choose, (0, 0, None))
        programs["pick"] = program(pick, (0, 0))
    return programs


def drive(
    method: Method,
    optimizer: optax.GradientTransformation,
    seeds: Sequence[tuple[int, Stream]],
    settings: Settings | None = None,
    *,
    vectorize: bool = False,
    report: Callable[[Event], None] | None = None,
) -> Outcome:
    """Drives a method over a stream from Python, for several seeds through the same compiled programs.

    Args:
      method: the method.
      optimizer: an Optax transformation at unit rate.
      seeds: pairs of a seed and its stream; the streams differ in order and division of the data only.
      settings: how the run is carried out.
      vectorize: whether the seeds run side by side (`vmap`: faster on GPU and TPU, slower on CPU) or in turn.
      report: called after every epoch.

    Returns:
      The outcome.

    Raises:
      ValueError: where the method, the stream and the settings do not fit together, before anything is compiled.
      NonFiniteLoss: as soon as an epoch's loss is not finite, naming task, phase and step.
    """
    settings = settings or Settings()
    for _, stream in seeds:
        check(method, stream, settings)
    aligned = stream_tables.align([stream for _, stream in seeds])
    sizes = [stream_tables.capacity(stream.tables) for stream in aligned]
    capacity = {split: max(size[split] for size in sizes) for split in sizes[0]}
    engine = make_engine(method, optimizer, settings, scenario=aligned[0].scenario, capacity=capacity)
    keys = [jax.random.key(seed) for seed, _ in seeds]
    numbers = [seed for seed, _ in seeds]
    if vectorize:
        tables, axes = stream_tables.stack(aligned)
        groups = [(numbers, jnp.stack(keys), tables)]
    else:
        axes = None
        groups = [([number], key, stream.tables) for number, key, stream in zip(numbers, keys, aligned, strict=True)]
    programs = make_programs(method, engine, axes)
    plan = _Plan(method, settings, aligned[0].schedule, programs, len(seeds), report)
    examples = jax.device_put(aligned[0].tables.examples)
    parts = []
    for index, (members, key, tables) in enumerate(groups):
        on_device = jax.device_put(tables._replace(examples=None))._replace(examples=examples)
        parts.append(drive_group(plan, members, key, on_device, index))
    learners, evaluations, logs, curves, seconds = zip(*parts, strict=True)
    join = lambda *arrays: np.concatenate(arrays)
    flops, step_bytes = step_cost(engine, settings, aligned[0])
    return Outcome(
        [learner for part in learners for learner in part],
        jax.tree.map(join, *evaluations),
        jax.tree.map(join, *logs),
        np.concatenate(curves),
        _curve_epochs(epoch_table(method, aligned[0].schedule), settings.curves_every),
        np.concatenate(seconds),
        _compile_seconds(programs),
        engine.step.traces,
        flops,
        step_bytes,
    )


class _Plan(NamedTuple):
    """What all groups of a drive share."""

    method: Method
    settings: Settings
    schedule: Schedule
    programs: dict[str, Program]
    seeds: int
    report: Callable[[Event], None] | None


def drive_group(plan: _Plan, members: list[int], key: Array, tables: Tables, index: int):
    """Drives the seeds that run side by side, or a single one; everything returned has a leading axis of members."""
    method, settings, schedule, programs = plan.method, plan.settings, plan.schedule, plan.programs
    start, compiled = time.perf_counter(), _compile_seconds(programs)
    batched = len(members) > 1 or key.ndim == 1
    counts = epoch_table(method, schedule)
    rounds, phases = counts.shape
    log = EpochLog(*(np.full((len(members), rounds, phases, counts.max()), np.nan, np.float32) for _ in range(3)))
    evaluations: list[Evaluation] = []
    points = [tuple(point) for point in _curve_epochs(counts, settings.curves_every)]
    curves = np.full((len(members), len(points), tables.classes.shape[-2]), np.nan, np.float32)
    whole = int(np.maximum(counts, 0).sum())
    done = index * whole

    def lead(tree: Tree) -> Tree:
        return jax.tree.map(lambda leaf: np.asarray(leaf) if batched else np.asarray(leaf)[None], tree)

    def visit(learner: Learner, clock: Clock, counted: int) -> tuple[Learner, Array]:
        learner = programs["begin_visit"](learner, clock, tables, key)
        for phase in range(phases):
            count = int(counts[clock.round, phase])
            if count < 0:
                continue
            clock = clock._replace(phase=jnp.int32(phase))
            state = programs["begin_phase"](learner, clock, tables, key)
            for epoch in range(count):
                stopped = lead(state.done)
                state, entry = programs["epoch"](state, clock, tables, key)
                entry = lead(entry)
                raise_failure(state.failure, method)
                for values, value in zip(log, entry, strict=True):
                    values[:, clock.round, phase, epoch] = value
                if plan.report:
                    loss, accuracy = (_mean(value) for value in (entry.loss, entry.validation_accuracy))
                    name, task, total = method.phases[phase].name, int(clock.task), whole * plan.seeds // len(members)
                    at = (method.name, members[0], len(members), task, name, epoch + 1, count, loss, accuracy)
                    plan.report(Event(*at, counted + epoch + 1, total))
                if (point := (int(clock.round), phase, epoch + 1)) in points:
                    resting = programs["end_visit"](state.learner, clock)
                    found = programs["evaluate"](resting, clock, tables).accuracy
                    curves[:, points.index(point)] = np.where(stopped[:, None], np.nan, lead(found))
                if np.all(np.asarray(state.done)):
                    break
            counted += count
            learner = programs["end_phase"](state, clock, tables, key)
        score = programs["validate"](learner, clock, tables) if method.candidates else jnp.float32(0.0)
        return programs["end_visit"](learner, clock), score

    learner = programs["init"](key, tables)
    moments = clocks(schedule)
    for number in range(rounds):
        clock = jax.tree.map(lambda leaf, number=number: jnp.asarray(leaf[number]), moments)
        if method.candidates is None:
            learner, _ = visit(learner, clock, done)
        else:
            mine = [place for place, point in enumerate(points) if point[0] == number]
            written = [*((values, number) for values in log), (curves, mine)]
            visiting = functools.partial(visit, counted=done)
            learner = _search(programs, learner, clock, visiting, written, batched)
        done += int(np.maximum(counts[number], 0).sum())
        if schedule.evaluate[number]:
            evaluations.append(lead(programs["evaluate"](learner, clock, tables)))
        else:
            shape = (len(members), tables.classes.shape[-2])
            missing = np.full(shape, np.nan, np.float32)
            evaluations.append(Evaluation(missing, missing, np.zeros(shape, np.uint32)))
    jax.block_until_ready(learner)
    spent = time.perf_counter() - start - (_compile_seconds(programs) - compiled)
    evaluation = jax.tree.map(lambda *leaves: np.stack(leaves, axis=1), *evaluations)
    learners = [pick(learner, jnp.int32(seed)) for seed in range(len(members))] if batched else [learner]
    return learners, evaluation, log, curves, np.full(len(members), spent / len(members))


def _search(
    programs: dict[str, Program],
    learner: Learner,
    clock: Clock,
    visit: Callable,
    written: list[tuple[np.ndarray, Any]],
    batched: bool,
) -> Learner:
    """Tries the method's candidates in turn, as `training.search` does, and keeps the one chosen.

    `written` are the arrays and places `[:, place]` in which a visit leaves its log: the chosen one's stays there.
    """
    options = programs["candidates"](learner, clock)
    axis = 1 if batched else 0
    tried, logs = [], []
    for number in range(jax.tree.leaves(options)[0].shape[axis]):
        values = jax.tree.map(lambda leaf, number=number: jnp.take(leaf, number, axis=axis), options)
        for array, place in written:
            array[:, place] = np.nan
        tried.append(visit(learner._replace(hyper={**learner.hyper, **values}), clock))
        logs.append([array[:, place].copy() for array, place in written])
    learners, scores = jax.tree.map(lambda *leaves: jnp.stack(leaves, axis=axis), *tried)
    index = programs["choose"](scores, learners, clock)
    for member, chosen in enumerate(np.atleast_1d(np.asarray(index))):
        for (array, place), values in zip(written, logs[chosen], strict=True):
            array[member, place] = values[member]
    return programs["pick"](learners, index)


def _mean(values: np.ndarray) -> float:
    """The mean of the values there are; NaN if there are none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


def _curve_epochs(counts: np.ndarray, every: int) -> np.ndarray:
    """Round, phase and epoch (from 1) of every `every`-th planned epoch, `[C, 3]`; none if it is 0."""
    points = [
        (round, phase, epoch)
        for round, phases in enumerate(counts)
        for phase, count in enumerate(phases)
        for epoch in range(every, count + 1, max(every, 1))
        if every
    ]
    return np.asarray(points, np.int32).reshape(-1, 3)


def _compile_seconds(programs: dict[str, Program]) -> float:
    return sum(program.seconds for program in programs.values())
