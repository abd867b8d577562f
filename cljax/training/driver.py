"""A run from Python: its programs called one epoch at a time, with progress, checkpoints, and an end at a failure."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from cljax import streams as stream_tables
from cljax.keys import make_key
from cljax.numbers import check_kind, show
from cljax.storage.checkpoints import Saving
from cljax.streams.building import check_stream
from cljax.training import identity, mesh
from cljax.training.bounds import available_memory, settle
from cljax.training.checks import check, check_optimizer, raise_failure
from cljax.training.cost import step_flops
from cljax.training.engine import make_engine
from cljax.training.loop import Entry, Run, agenda, make_programs, span_entries, span_of
from cljax.training.outcome import Event, Outcome, Results, curve_epochs, curves_at
from cljax.training.plan import epoch_table
from cljax.training.programs import Compiled, Watch
from cljax.training.resume import Checkpoints
from cljax.training.start import Past, Start, check_given
from cljax.training.state import Settings, origin, reveal
from cljax.training.streaming import Streamed, is_streamed
from cljax.training.together import fitting, possible
from cljax.trees import pick
from cljax.types import Array, Learner, Method, Schedule, Stream, Tables, Tree


class Seeds(NamedTuple):
    """One seed, or several side by side: their numbers; keys, what they are given, and tables, then stacked."""

    numbers: list[int]
    key: Array
    given: Start
    tables: Tables


def drive(
    method: Method,
    optimizer: optax.GradientTransformation,
    seeds: Sequence[tuple[int, Stream]],
    settings: Settings | None = None,
    *,
    hypers: Sequence[Mapping[str, float]] | None = None,
    starts: Sequence[Mapping[str, Any]] | None = None,
    past: Outcome | Sequence[Past] | None = None,
    rounds: int | None = None,
    vectorize: bool | int = False,
    devices: int = 1,
    report: Callable[[Event], None] | None = None,
    visited: Callable[[list[int], int, Results], None] | None = None,
    checkpoints: Saving | None = None,
) -> Outcome:
    """Drives a method over a stream from Python, for several seeds through the same compiled programs.

    Args:
      method: the method.
      optimizer: an Optax transformation with its own learning rate, or at unit rate where `settings` has one.
      seeds: pairs of a seed and its stream; the streams differ in order and division of the data only. Where their
        examples are `data.Images` they are read as the run goes on: see `training.streaming`.
      settings: how the run is carried out.
      hypers: numbers in place of some of `learner.hyper`, a mapping for each pair of `seeds`, all of the same names: a
        sweep is the same seeds once more for every value, through the same programs.
      starts: trained parameters that task 0 begins with, for each pair of `seeds`, in any form that
        `training.given_params` takes: see `training.start_from`.
      past: what the first rounds of the schedule have left, the outcome of an earlier drive of the same seeds, or one
        `Past` for each pair of `seeds`: the run goes on after them. Its stream may have had fewer tasks: see
        `streams.append` and `training.extend`.
      rounds: how many rounds of the schedule are behind in the end; None: all.
      vectorize: whether the seeds run side by side (`vmap`: faster on GPU and TPU, slower on CPU), as many at a time as
        the compiled programs leave memory for, or in turn; or how many at a time, a number that divides theirs.
      devices: how many share the work: the seeds that run side by side, and each batch where there are more devices; as
        of `training.mesh.share_devices`. A checkpoint can be taken up on another number of them. They may be those of
        several processes (`jax.distributed`), all of them: each calls this with the same arguments, and gets all. Of
        examples that are read as the run goes on each process reads those that its own devices need.
      report: called after every epoch.
      visited: called after every visit, with the seeds that run side by side, the number of the round and their results
        so far: see `cljax.report.tensorboard`.
      checkpoints: where and how often to save. A drive of the same arguments takes up what is there, and ends with the
        bits of one that was never interrupted. What is there of another run is left as it is, and an error: of other
        data, seeds, schedule or settings, of a method, network, optimizer or augmentation that computes something
        else, of another version of JAX or another device.

    Returns:
      The outcome.

    Raises:
      ValueError: where the method, the stream and the settings do not fit together, before anything is compiled.
      NonFiniteLoss: where all learners diverged, their loss or weights being NaN or infinite, naming task, phase and
        step. Where only some did, the others go on, and the outcome's `failure` tells.
      CheckpointError: there are checkpoints, but none that can be taken up. OSError: they cannot be read or written.

    Example:
      >>> import optax
      >>> from cljax import data, methods, networks, streams, training
      >>> stream = streams.split(data.load('digits'), tasks=2, epochs=1)
      >>> method = methods.finetune(networks.mlp((8, 8, 1), 5, hidden=(4,)))
      >>> outcome = training.drive(
      ...     method, optax.adam(1e-2), [(0, stream), (1, stream)], report=lambda event: print(event.seed, event.task)
      ... )
      0 0
      0 1
      1 0
      1 1
    """
    for name, function in (("report", report), ("visited", visited)):
        if not (function is None or callable(function)):
            raise ValueError(f"{name} is {show(function)}, but must be a function, or None.")
    if checkpoints is not None:
        check_kind("checkpoints", checkpoints, Saving, "storage.checkpoints.Saving(folder), or None")
    if not (
        isinstance(seeds, Sequence) and seeds and all(isinstance(one, Sequence) and len(one) == 2 for one in seeds)
    ):
        raise ValueError(
            f"seeds is {show(seeds) if seeds else 'empty'}, but must be pairs of a seed and its stream, at least one: "
            f"[(0, stream)]."
        )
    for _, stream in seeds:
        check_stream(stream)
    settings = settle(settings, seeds[0][1])
    pasts = past_of(past, seeds)
    span = span_of(pasts, rounds, seeds[0][1])
    for _, stream in seeds:
        check(method, stream, settings, span)
    given = check_given(method, seeds, hypers, starts, pasts)
    check_optimizer(method, optimizer, given[0].hyper.get("learning_rate", settings.learning_rate))
    aligned = stream_tables.align([stream for _, stream in seeds])
    bounds = [stream_tables.max_examples(stream.tables) for stream in aligned]
    most = {split: max(bound[split] for bound in bounds) for split in bounds[0]}
    first = aligned[0]
    engine = make_engine(method, optimizer, settings, scenario=first.scenario, max_examples=most)
    programs = make_programs(method, engine, first.schedule)
    streamed = is_streamed(first.tables)
    if streamed and vectorize:
        raise ValueError(
            "Examples that are read as the run goes on are handed to the device for one seed at a time, so that seeds "
            "cannot run side by side. Run them in turn (vectorize=False, or --vectorize no)."
        )
    sizes, shared, spent = possible(vectorize, len(seeds), checkpoints), None, 0.0
    if devices != 1:
        shared = mesh.make_mesh(devices, sizes[0] or 1, settings.batch_size)
        sizes = [size for size in sizes if size % mesh.shares(shared)[0] == 0]
    counts = {count for stream in aligned for count in np.asarray(stream.tables.train.size).tolist()}
    even = counts.pop() if len(counts) == 1 else None
    examples = first.tables.examples if streamed else mesh.place(first.tables.examples, shared)
    entries = [Entry(*map(np.int32, entry)) for entry in span_entries(agenda(method, first.schedule), *span)]
    while True:
        groups, axes = divide([number for number, _ in seeds], aligned, given, sizes[0])
        placed = functools.partial(place, examples=examples, shared=shared, axes=axes)
        compiled: Compiled = (
            Streamed(programs, settings, shared) if streamed else Compiled(programs, axes, shared, even)
        )
        if len(sizes) == 1:
            break
        here = placed(groups[0])
        needed, kept = compiled.needs(here.key, here.tables, here.given, entries[0])
        size = mesh.agreed(fitting(sizes, len(seeds), needed, kept, available_memory()))
        if size == sizes[0]:
            break
        sizes, spent = sizes[sizes.index(size) :], spent + compiled.seconds
    what = (method, settings, first, programs)
    facts = functools.cache(lambda: {**identity.facts_of(*what, streamed=streamed), "rounds": list(span)})
    parts = []
    for number, group in enumerate(groups):
        saved = None
        if checkpoints is not None:
            bits_of = [*mesh.shares(shared), mesh.machine()]
            saved = Checkpoints(checkpoints, number, functools.partial(identity_of, group, facts), bits_of)
        places = settings.curves_every, number * len(group.numbers), len(seeds)
        here = placed(group)
        driven = Driven(method, first.schedule, compiled, here, span, entries, *places)
        parts.append(driven.run(report, visited, saved))
    learners, results, seconds, waits = zip(*parts, strict=True)
    joined: Results = jax.tree.map(lambda *arrays: np.concatenate(arrays), *results)
    if (joined.failure.round >= 0).all():
        values = [", ".join(f"{name} {float(value):g}" for name, value in entry.hyper.items()) for entry in given]
        called = [f"seed {seed}, {text}".removesuffix(", ") for (seed, _), text in zip(seeds, values, strict=True)]
        raise_failure(joined.failure, method, called)
    leading = 0 if axes is None else 1  # axes of seeds
    shapes = compiled.start.shape(here.key, here.tables, here.given, entries[0]).state
    state = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[leading:], leaf.dtype), shapes)
    points = curve_epochs(epoch_table(method, first.schedule), settings.curves_every)
    return Outcome(
        learners=[learner for part in learners for learner in part],
        **joined._replace(curves=curves_at(joined, points, settings.curves_every))._asdict(),
        curve_epochs=points,
        seconds=np.concatenate(seconds),
        compile_seconds=spent + compiled.seconds,
        traces=engine.step.traces,
        flops=step_flops(engine, first, state),
        share_waiting=np.concatenate(waits) if streamed else None,
        shares=mesh.shares(shared),
        origin=origin(method, settings, seeds, span[1]),
    )


def divide(
    numbers: list[int], streams: list[Stream], given: list[Start], size: int
) -> tuple[list[Seeds], Tables | None]:
    """The seeds that go side by side, so many at a time, and the `vmap` axes of their tables; 0: each alone, None."""
    keys = [make_key(number) for number in numbers]
    if not size:
        alone = zip(numbers, keys, given, streams, strict=True)
        return [Seeds([number], key, own, stream.tables) for number, key, own, stream in alone], None
    tables, axes = stream_tables.stack(streams)  # of all, for programs that serve all
    bare, groups = tables._replace(examples=None), []
    for start in range(0, len(numbers), size):
        part = slice(start, start + size)
        cut = lambda axis, leaf, part=part: leaf if axis is None else leaf[part]
        own = jax.tree.map(cut, axes, bare, is_leaf=lambda axis: axis is None)._replace(examples=tables.examples)
        together = jax.tree.map(lambda *leaves: jnp.stack(leaves), *given[part])
        groups.append(Seeds(numbers[part], jnp.stack(keys[part]), together, own))
    return groups, axes


def place(seeds: Seeds, examples: Any, shared: Mesh | None, axes: Tables | None) -> Seeds:
    """Puts seeds on the devices, where the examples are already."""
    tables = mesh.place(seeds.tables._replace(examples=None), shared, axes)._replace(examples=examples)
    seeds = seeds._replace(tables=tables)
    if shared is None:
        return seeds
    own = None if axes is None else 0
    return seeds._replace(key=mesh.place(seeds.key, shared, own), given=mesh.place(seeds.given, shared, own))


class Driven(NamedTuple):
    """Drives the seeds that run side by side, or a single one, through their agenda.

    Attributes:
      method: the method.
      schedule: the rounds.
      compiled: the programs.
      seeds: with tables on the device.
      span: the first round, and that at which it ends.
      entries: of the agenda, in this span.
      cadence: `settings.curves_every`.
      before: how many seeds have been driven already.
      total: how many there are in all.
    """

    method: Method
    schedule: Schedule
    compiled: Compiled
    seeds: Seeds
    span: tuple[int, int]
    entries: list[Entry]
    cadence: int
    before: int
    total: int

    @property
    def batched(self) -> bool:
        """Whether arrays have an axis of seeds."""
        return self.seeds.key.ndim == 1

    def run(
        self,
        report: Callable[[Event], None] | None,
        visited: Callable[[list[int], int, Results], None] | None,
        saved: Checkpoints | None,
    ) -> tuple[list[Learner], Results, np.ndarray, np.ndarray]:
        """From the beginning or from a checkpoint to the end: learners, results, seconds, fractions of waiting."""
        (numbers, key, given, tables), compiled = self.seeds, self.compiled
        watch, before = Watch(compiled), compiled.reading
        found = self._take_up(saved, watch) if saved else None
        entries = self.entries
        place, run = found or (0, compiled.start(key, tables, given, entries[0]))
        begin, earlier = int(entries[place].round), None
        if saved and not begin:  # nothing was evaluated on other devices
            saved.compared = saved.shares
        if saved and saved.compared != saved.shares:
            earlier = compiled.rest(run)
        ahead = np.cumsum([entry.epochs for entry in entries[::-1]])[::-1]  # epochs from here to the end
        while place < len(entries) - 1:
            entry, following = entries[place], entries[place + 1]

            def pause(run: Run, place: int = place) -> None:
                if saved:
                    saved.offer(place, run, watch, ended=False)

            while _epochs(run) < entry.epochs and not np.all(mesh.host(run.state.done)):
                run = compiled.epoch(run, entry, tables, key, pause)
                if self.cadence and _epochs(run) % self.cadence == 0:
                    run = compiled.observe(run, entry, tables)
                if report:
                    self._tell(report, run, entry, ahead[place], ahead[0])
                pause(run)
            run, place = compiled.turn(run, entry, following, tables, key), place + 1
            ended = following.round > entry.round
            if saved and earlier is not None and ended and self.schedule.evaluate[entry.round]:
                run, earlier = self._compare_with_checkpoint(run, earlier, begin, int(following.round)), None
                saved.compared = saved.shares
            if ended and visited:
                visited(numbers, int(entry.round), self._read(run))
            if saved:
                saved.offer(place, run, watch, ended=ended or following.candidate > entry.candidate)
            if ended and np.all(mesh.host(run.state.failure.round) >= 0):
                break
        learner, results = jax.block_until_ready(compiled.rest(run)), self._read(run)
        del run  # there may be no room for it beside a copy of the learners
        results = self._compare_with_past(results, learner)
        learner = mesh.gathered(learner)
        seconds = np.full(len(numbers), watch.tick() / len(numbers))
        learners = [pick(learner, jnp.int32(index)) for index in range(len(numbers))] if self.batched else [learner]
        waiting, running = compiled.reading - before
        return learners, results, seconds, np.full(len(numbers), waiting / max(running, 1e-9))

    def _compare_with_past(self, results: Results, learner: Learner) -> Results:
        """Gives the last past round the end's fingerprint, of tasks whose logits have kept their bits, else another.

        Without a past, or an evaluation after it, there is nothing to compare.
        """
        (_, key, given, tables), (begin, end) = self.seeds, self.span
        if not begin or not np.any(self.schedule.evaluate[begin:end]):
            return results
        pair = self._lead(self.compiled.compare(learner, key, tables, given))
        found = self._joined(results.evaluation.fingerprint, begin, end, pair)
        return results._replace(evaluation=results.evaluation._replace(fingerprint=found))

    def _compare_with_checkpoint(self, run: Run, earlier: Learner, begin: int, end: int) -> Run:
        """The same for the rounds before a checkpoint of another machine, or of other shares, whose bits may differ."""
        (_, key, given, tables), known = self.seeds, run.evaluation.fingerprint
        start = Start(given.hyper, {}, Past(earlier, run.evaluation))
        pair = self._lead(self.compiled.compare_again(self.compiled.rest(run), key, tables, start))
        found = rebase(self._lead(known), begin, self._joined(self._lead(known), begin, end, pair)[:, begin - 1])
        known = mesh.put(found.reshape(known.shape), known.sharding)
        return run._replace(evaluation=run.evaluation._replace(fingerprint=known))

    def _joined(self, fingerprint: np.ndarray, begin: int, end: int, pair: np.ndarray) -> np.ndarray:
        """Fingerprints `[S, R, T]`, those of round `begin - 1` made comparable, by a pair of others `[S, 2, T]`."""
        found, (then, now) = np.array(fingerprint), np.moveaxis(pair, 1, 0)
        evaluated = begin + np.flatnonzero(self.schedule.evaluate[begin:end])
        visited = np.isin(np.arange(found.shape[-1]), self.schedule.task[begin:end])
        found[:, begin - 1] = np.where(visited, found[:, evaluated[0]], found[:, evaluated[-1]] ^ (then != now))
        return found

    def _take_up(self, saved: Checkpoints, watch: Watch) -> tuple[int, Run] | None:
        (numbers, key, given, tables), entries = self.seeds, self.entries
        like = self.compiled.start.shape(key, tables, given, entries[0])
        found = saved.take_up(like, watch, len(entries))
        if found and found[0] < len(entries) - 1:
            (place, run), rounds = found, len(self.schedule.task)
            entry, epoch = entries[place], _epochs(run)
            after = f", after epoch {epoch} of phase {entry.phase + 1}"
            saved.say(
                f"Taking up {self.method.name}, seed {numbers[0]}, in round {entry.round + 1} of {rounds}{after}."
            )
        return found

    def _lead(self, tree: Tree) -> Tree:
        """On the host, with a leading axis of seeds."""
        found = jax.tree.map(lambda leaf: reveal(mesh.host(leaf)), tree)
        return found if self.batched else jax.tree.map(lambda leaf: leaf[None], found)

    def _read(self, run: Run) -> Results:
        tried = run.search and run.search.tried
        return Results(*self._lead((run.evaluation, *run.visits, run.state.failure, tried, run.untrained)))

    def _tell(self, report: Callable[[Event], None], run: Run, entry: Entry, ahead: int, whole: int) -> None:
        failed = self._lead(run.state.failure.round) >= 0
        if failed.all():
            return
        count, size = _epochs(run), len(self.seeds.numbers)
        values = (run.visit.epochs.loss, run.visit.epochs.validation_accuracy)
        last = (np.where(failed, np.nan, self._lead(value)[:, entry.phase, count - 1]) for value in values)
        task, phase = int(self.schedule.task[entry.round]), self.method.phases[entry.phase].name
        here = (self.method.name, self.seeds.numbers[0], size, task, phase, count, int(entry.epochs))
        done = int(self.before // size * whole + whole - ahead + count)
        loss, accuracy = map(_mean, last)
        report(Event(*here, loss, accuracy, done, int(whole * self.total // size)))


def past_of(past: Any, seeds: Sequence[tuple[int, Stream]]) -> list[Past] | None:
    """What each seed goes on from, of `drive`'s argument.

    Raises:
      ValueError: another number of learners than of seeds; an outcome of other seeds, or of another scenario.
    """
    if isinstance(past, Outcome):
        (numbers, streams), origin = zip(*seeds, strict=True), past.origin
        was, now = (list(origin.seeds), origin.scenario), (list(numbers), streams[0].scenario)
        if was != now:
            raise ValueError(
                f"past is of the seeds {was[0]} in the {was[1]}-incremental scenario, but this run of {now[0]} in the "
                f"{now[1]}-incremental one. Give the same, in the same order."
            )
        evaluation = past.evaluation
        behind = lambda seed: jax.tree.map(lambda leaf: leaf[seed, : origin.rounds], evaluation)
        past = [Past(one, behind(seed)) for seed, one in enumerate(past.learners)]
    listed = isinstance(past, Sequence) and all(isinstance(one, Past) for one in past)
    if past is not None and not listed:
        raise ValueError(f"past is {show(past)}, but must be an outcome of drive, or a Past for each pair of seeds.")
    if past is not None and len(past) != len(seeds):
        raise ValueError(
            f"past has {len(past)} learners, but there are {len(seeds)} pairs of seeds: give one for each."
        )
    return past if past is None else list(past)


def rebase(fingerprint: np.ndarray, begin: int, row: np.ndarray) -> np.ndarray:
    """Fingerprints of the rounds before `begin` as of another program: equal and different ones stay so.

    Args:
      fingerprint: `[S, R, T]`; rounds that were not evaluated have 0, and keep it.
      begin: the round.
      row: `[S, T]`, what the other program gives for the last of these rounds that was evaluated.

    Example:
      >>> found = np.array([[[5, 0], [0, 0], [6, 7], [9, 9]]], np.uint32)
      >>> rebase(found, 3, np.array([[1, 8]], np.uint32)).tolist()
      [[[2, 15], [0, 0], [1, 8], [9, 9]]]
    """
    found = fingerprint.copy()
    evaluated = np.flatnonzero(found[:, :begin].any(axis=(0, 2)))
    if evaluated.size:
        found[:, evaluated] ^= (found[:, evaluated[-1]] ^ row)[:, None]
    return found


def identity_of(seeds: Seeds, facts: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """What tells a run from others, as JSON has it: a checkpoint of another one is not taken up."""
    own = {
        "seeds": seeds.numbers,
        "division": identity.division(seeds.tables),
        "hyper": {name: jnp.ravel(value).tolist() for name, value in seeds.given.hyper.items()},
        "start": identity.parameters(seeds.given.params),
        "past": None if seeds.given.past is None else identity.tree(seeds.given.past),
    }
    return json.loads(json.dumps({**own, **facts()}, default=str))


def _epochs(run: Run) -> int:
    """How many epochs of the phase are finished, of the seed that is ahead."""
    return int(np.max(mesh.host(run.state.epoch)))


def _mean(values: np.ndarray) -> float:
    """The mean of the values there are; NaN if there are none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
