"""A run from Python, epoch by epoch: the engine of `make_run` with progress, checkpoints, and an end at a failure."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cljax import streams as stream_tables
from cljax.checkpoints import Saving
from cljax.keys import make_key
from cljax.numbers import whole
from cljax.training.checks import check, check_hypers, check_in_memory, check_optimizer, raise_failure
from cljax.training.cost import step_cost
from cljax.training.engine import Engine, make_engine
from cljax.training.evaluation import Evaluation
from cljax.training.group import Event, Group, Plan, Results, curve_epochs
from cljax.training.identity import facts_of
from cljax.training.keeper import Keeper
from cljax.training.plan import epoch_table
from cljax.training.programs import compile_seconds, make_programs, share_waiting, waited
from cljax.training.state import EpochLog, Failure, Settings
from cljax.types import Array, Learner, Method, Stream, Tables


class Outcome(NamedTuple):
    """What driving a method over some seeds gives; NumPy arrays with a leading axis of seeds S.

    Attributes:
      learners: a list, one learner at rest a seed.
      evaluation: `Evaluation` of `[S, R, T]`; accuracy NaN where the schedule does not evaluate, and from the round on
        in which a learner diverged.
      epochs: `EpochLog` of `[S, R, P, E]`, NaN where no epoch was trained.
      curves: `[S, C, T]` accuracy on all tasks after the epochs of `curve_epochs`; NaN where patience stopped earlier.
      failure: `[S]`, where a learner diverged, which then went no further; all -1 of one that did not. See
        `checks.diverged`.
      curve_epochs: `[C, 3]` int, round, phase and epoch (from 1): every `curves_every`-th epoch of each phase.
      seconds: `[S]` of training and evaluation, without compilation and checkpoints, over all processes of the run.
      compile_seconds: of all programs, in this process.
      traces: how often the train step was traced.
      flops, step_bytes: of one step, by the compiler; None where it does not tell.
      share_waiting: `[S]` of the time in this process, the part in which the device waited for examples to be read, at
        most; None where all are on the device.
    """

    learners: list[Learner]
    evaluation: Evaluation
    epochs: EpochLog
    curves: np.ndarray
    failure: Failure
    curve_epochs: np.ndarray
    seconds: np.ndarray
    compile_seconds: float
    traces: int
    flops: float | None
    step_bytes: int | None
    share_waiting: np.ndarray | None


def drive(
    method: Method,
    optimizer: optax.GradientTransformation,
    seeds: Sequence[tuple[int, Stream]],
    settings: Settings | None = None,
    *,
    hypers: Sequence[Mapping[str, float]] | None = None,
    vectorize: bool | int = False,
    report: Callable[[Event], None] | None = None,
    visited: Callable[[list[int], int, Results], None] | None = None,
    checkpoints: Saving | None = None,
    programs_of: Callable[[Method, Engine, Tables | None], Mapping[str, Callable]] = make_programs,
) -> Outcome:
    """Drives a method over a stream from Python, for several seeds through the same compiled programs.

    Args:
      method: the method.
      optimizer: an Optax transformation at unit rate.
      seeds: pairs of a seed and its stream; the streams differ in order and division of the data only.
      settings: how the run is carried out.
      hypers: numbers in place of some of `learner.hyper`, a mapping for each pair of `seeds`, all of the same names: a
        sweep is the same seeds once more for every value, through the same programs.
      vectorize: whether the seeds run side by side (`vmap`: faster on GPU and TPU, slower on CPU) or in turn; a number
        above 1, which divides theirs: so many at a time.
      report: called after every epoch.
      visited: called after every visit, with the seeds that run side by side, the number of the round and their results
        so far: see `cljax.report.tensorboard`.
      checkpoints: where and how often to save. A drive of the same arguments takes up what is there, and ends with the
        bits of one that was never interrupted. What is there of another run is left as it is, and an error: of other
        data, seeds, schedule or settings, of a method, network, optimizer or augmentation that computes something
        else, of another version of JAX or another device.
      programs_of: what makes the programs; see `make_programs`. `training.host.make_programs` is for examples that do
        not fit on the device.

    Returns:
      The outcome.

    Raises:
      ValueError: where the method, the stream and the settings do not fit together, before anything is compiled.
      NonFiniteLoss: where all learners diverged, their loss or weights being NaN or infinite, naming task, phase and
        step. Where only some did, the others go on, and the outcome's `failure` tells.
      CheckpointError: there are checkpoints, but none that can be taken up. OSError: they cannot be read or written.
    """
    settings = settings or Settings()
    if not seeds:
        raise ValueError("seeds is empty, but must be pairs of a seed and its stream, at least one.")
    for _, stream in seeds:
        check(method, stream, settings)
    check_optimizer(method, optimizer)
    aligned = stream_tables.align([stream for _, stream in seeds])
    sizes = [stream_tables.max_examples(stream.tables) for stream in aligned]
    max_examples = {split: max(size[split] for size in sizes) for split in sizes[0]}
    engine = make_engine(method, optimizer, settings, scenario=aligned[0].scenario, max_examples=max_examples)
    keys = [make_key(seed) for seed, _ in seeds]
    numbers = [seed for seed, _ in seeds]
    given = check_hypers(method, seeds, hypers)
    members: list[tuple[list[int], Array, dict[str, Array], Tables]] = []
    axes = None
    if vectorize:
        size = len(seeds) if vectorize is True else whole("vectorize", vectorize, least=1)
        if len(seeds) % size:
            raise ValueError(f"{len(seeds)} seeds cannot run {size} at a time: vectorize must divide their number.")
        for start in range(0, len(seeds), size):
            part = slice(start, start + size)
            tables, axes = stream_tables.stack(aligned[part])
            values = jax.tree.map(lambda *leaves: jnp.stack(leaves), *given[part])
            members.append((numbers[part], jnp.stack(keys[part]), values, tables))
    else:
        for number, key, values, stream in zip(numbers, keys, given, aligned, strict=True):
            members.append(([number], key, values, stream.tables))
    programs = programs_of(method, engine, axes)
    facts = functools.cache(lambda: facts_of(method, engine, aligned[0], keys[0]))
    plan = Plan(method, settings, aligned[0].schedule, engine, programs, len(seeds), report, visited, facts)
    examples = aligned[0].tables.examples
    if not getattr(programs["epoch"], "streams", False):
        check_in_memory(aligned[0])
        examples = jax.device_put(examples)
    parts, waits = [], [waited(programs)]
    for number, (names, key, values, tables) in enumerate(members):
        on_device = jax.device_put(tables._replace(examples=None))._replace(examples=examples)
        parts.append(drive_group(Group(plan, names, key, values, on_device, number), plan, checkpoints, number))
        waits.append(waited(programs))
    learners, results = zip(*parts, strict=True)
    joined = jax.tree.map(lambda *arrays: np.concatenate(arrays), *results)
    if (joined.failure.round >= 0).all():
        values = [", ".join(f"{name} {float(value):g}" for name, value in entry.items()) for entry in given]
        called = [f"seed {number}, {text}".removesuffix(", ") for number, text in zip(numbers, values, strict=True)]
        raise_failure(joined.failure, method, called)
    flops, step_bytes = step_cost(engine, settings, aligned[0])
    return Outcome(
        [learner for part in learners for learner in part],
        joined.evaluation,
        joined.epochs,
        joined.curves,
        joined.failure,
        curve_epochs(epoch_table(method, aligned[0].schedule), settings.curves_every),
        joined.seconds,
        compile_seconds(programs),
        engine.step.traces,
        flops,
        step_bytes,
        share_waiting(waits),
    )


def drive_group(group: Group, plan: Plan, saving: Saving | None, number: int) -> tuple[list[Learner], Results]:
    """Drives the seeds that run side by side, or a single one, from where a checkpoint says or from the beginning."""
    here, offer = group.begin(), None
    if saving is not None:
        keeper = Keeper(saving, plan, group, number)
        here, offer = keeper.take_up() or here, keeper.offer
    while here[0].round < group.rounds:
        here = group.step(*here, offer)
        if offer:
            offer(*here)
    return group.finish(here[1])


def members(outcome: Outcome, which: Sequence[int]) -> Outcome:
    """The outcome of some of the seeds, with their share of the compilation."""
    cut = lambda leaf: leaf[np.asarray(which, int)]
    return outcome._replace(
        learners=[outcome.learners[number] for number in which],
        evaluation=jax.tree.map(cut, outcome.evaluation),
        epochs=jax.tree.map(cut, outcome.epochs),
        curves=cut(outcome.curves),
        failure=jax.tree.map(cut, outcome.failure),
        seconds=cut(outcome.seconds),
        compile_seconds=outcome.compile_seconds * len(which) / len(outcome.learners),
        share_waiting=None if outcome.share_waiting is None else cut(outcome.share_waiting),
    )


__all__ = ["Event", "Outcome", "drive", "drive_group", "make_programs", "members"]
