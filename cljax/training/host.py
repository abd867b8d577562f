"""Programs for data that do not fit on the device: the engine's own steps, fed batch by batch from the host.

Orders, keys, labels, permutations and exemplars stay on the device; only images travel. Grain's threads read some
batches ahead, two are on the device before they are asked for, and the device has a step to do while the next is
handed over. Hooks that fold over a task's examples are programs that call back for each batch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cljax import streams
from cljax.training.bounds import available_memory
from cljax.training.engine import Engine, Epoch, Progress, begin_progress
from cljax.training.evaluation import Evaluation, judge, no_answers
from cljax.training.feed import Feed, Given, Streamed, StreamedEpoch, sequence, wrap
from cljax.training.programs import Program
from cljax.training.state import EpochLog, Partial, PhaseState, unknown
from cljax.types import Array, Batch, Clock, Learner, Method, Table, Tables


def make_programs(method: Method, engine: Engine, table_axes: Tables | None) -> Mapping[str, Callable]:
    """The engine's functions for examples that are read as the run goes on; for `drive(programs_of=make_programs)`.

    They take the same steps on the same batches with the same keys as those of `training.programs`. The tables they
    are called with are on the device but for `examples`: `data.Images`, or a NumPy array. Each program is compiled
    once a stream.

    Args:
      method: the method.
      engine: of `make_engine`.
      table_axes: None: the seeds run in turn.

    Returns:
      As `training.programs.make_programs`; `epoch(state, clock, tables, key, partial=None, pause=None)` can go on from
      a `Partial`, and calls `pause(state, partial)` after every step. Both are the pause's only until it returns, for
      the next step overwrites them.

    Raises:
      ValueError: seeds side by side.
    """
    if table_axes is not None:
        raise ValueError(
            "The host driver hands the device one seed's batches at a time, so that seeds cannot run side by side. Run "
            "them in turn (vectorize=False, or --vectorize no)."
        )
    feed, settings, parts = Feed(), engine.settings, engine.parts
    size = settings.evaluation_batch

    def begin(state: PhaseState, clock: Clock, tables: Tables, key: Array) -> tuple[Epoch, Array]:
        epoch = parts.begin(state, clock, tables, key)
        index = jnp.asarray(tables.train.index)
        held = epoch.order < index.shape[0]
        return epoch, jnp.where(held, jnp.take(index, epoch.order, mode="clip"), -1)

    def train(
        progress: Progress, state: PhaseState, epoch: Epoch, tables: Tables, index: Array, inputs: Array
    ) -> tuple[Progress, Array]:
        progress = parts.train(state, epoch, tables._replace(examples=Given(inputs)), index, progress)
        return progress, progress.weight

    def end(progress: Progress, state: PhaseState, epoch: Epoch, loss: Array, accuracy: Array):
        return parts.end(state, epoch, progress, loss, accuracy)

    def gather(tables: Tables, table: Table, task: Array, step: Array, inputs: Array) -> Batch:
        return streams.sequential(tables._replace(examples=Given(inputs)), table, task, step, size)

    def add_loss(sums: tuple, learner: Learner, clock: Clock, batch: Batch) -> tuple:
        return parts.add_loss(learner, clock, sums, batch)

    def add_answers(
        answers: tuple, learner: Learner, clock: Clock, tables: Tables, task: Array, step: Array, batch: Batch
    ) -> tuple:
        return parts.add_answers(learner, clock, tables, task, step, answers, batch)

    begin_program, train_program, end_program = feed.program(begin), feed.program(train, (0,)), feed.program(end, (0,))
    gather_of = {split: feed.program(gather) for split in ("validation", "test")}
    loss_program, answers_program = feed.program(add_loss), feed.program(add_answers)
    init, begin_phase = feed.program(engine.init), feed.program(engine.begin_phase, (0,))
    write_back = feed.program(engine.end_visit)

    def read(tables: Tables, split: str, tasks: list[int]) -> Iterator[tuple[int, np.int32, Batch]]:
        """The batches of tasks, with their tasks and numbers."""
        table, bare = getattr(tables, split), feed.bare(tables)
        parts = [sequence(table, task, size) for task in tasks]
        places = [(task, np.int32(step)) for task, part in zip(tasks, parts, strict=True) for step in range(len(part))]
        with contextlib.closing(feed.batches(np.concatenate(parts))) as source:
            for (task, step), inputs in zip(places, source, strict=True):
                yield task, step, gather_of[split](bare, table, np.int32(task), step, inputs)

    def epoch(
        state: PhaseState,
        clock: Clock,
        tables: Tables,
        key: Array,
        partial: Partial | None = None,
        pause: Callable[[PhaseState, Partial], Any] | None = None,
    ) -> tuple[PhaseState, EpochLog]:
        bare = feed.bare(tables)
        now, order = begin_program(state, clock, bare, key)
        steps, first = int(now.steps), 0
        progress = begin_progress(state.learner)
        if partial is not None:
            first = int(partial.step)
            sums = (jnp.asarray(leaf, kept.dtype) for leaf, kept in zip(partial[1:], progress[1:], strict=True))
            progress = Progress(progress.trained, *sums)
        constant = state.learner._replace(**dict.fromkeys(progress.trained))
        thin = state._replace(learner=constant)
        numbers = wrap(np.asarray(order)[: int(now.examples)], first, steps, settings.batch_size)
        with contextlib.closing(feed.batches(numbers)) as source:
            for index, inputs in enumerate(source, first):
                progress, under_way = train_program(progress, thin, now, bare, np.int32(index), inputs)
                feed.started(under_way)
                if pause is not None:
                    whole = state._replace(learner=constant._replace(**progress.trained))
                    pause(whole, Partial(np.int32(index + 1), *progress[1:]))
        learner = constant._replace(**progress.trained)
        loss = accuracy = jnp.asarray(unknown())
        if settings.validate or settings.stopping:
            loss = validation_loss(learner, now.clock, tables)
        if settings.validate:
            accuracy = validate(learner, now.clock, tables)
        return end_program(progress, thin, now, loss, accuracy)

    def validation_loss(learner: Learner, clock: Clock, tables: Tables) -> Array:
        tasks = [int(clock.task)]
        if method.train_on != "current":
            tasks = list(range(tables.classes.shape[0] if method.train_on == "all" else int(clock.newest) + 1))
        sums = (jnp.float32(0.0), jnp.float32(0.0))
        for _, _, batch in read(tables, "validation", tasks):
            sums = loss_program(sums, learner, clock, batch)
            feed.started(sums[0])
        return jnp.where(sums[1] > 0, sums[0] / jnp.maximum(sums[1], 1.0), unknown())

    def evaluate_tasks(learner: Learner, clock: Clock, tables: Tables, split: str, tasks: list[int]) -> Evaluation:
        found, bare = {task: no_answers() for task in tasks}, feed.bare(tables)
        for task, step, batch in read(tables, split, tasks):
            found[task] = answers_program(found[task], learner, clock, bare, np.int32(task), step, batch)
            feed.started(found[task][0])
        sizes = jnp.asarray(getattr(tables, split).size)[np.asarray(tasks)]
        return judge(jax.tree.map(lambda *values: jnp.stack(values), *found.values()), sizes)

    def validate(learner: Learner, clock: Clock, tables: Tables) -> Array:
        resting = write_back(learner, clock)
        return evaluate_tasks(resting, clock, tables, "validation", [int(clock.task)]).accuracy[0]

    def evaluate(learner: Learner, clock: Clock, tables: Tables) -> Evaluation:
        return evaluate_tasks(learner, clock, tables, "test", list(range(tables.classes.shape[0])))

    def hook(function: Callable, donate: tuple[int, ...] = ()) -> Streamed:
        program = feed.program(function, donate)

        def call(given: Any, clock: Clock, tables: Tables, key: Array) -> Any:
            splits = (tables.train, tables.validation, tables.test)
            with feed.answering([sequence(table, int(clock.task), size) for table in splits]):
                return jax.block_until_ready(program(given, clock, feed.asking(tables), key))

        return Streamed(call, feed)

    programs: dict[str, Callable] = {
        "init": lambda key, tables: init(key, feed.asking(tables)),
        "begin_visit": hook(engine.begin_visit),
        "begin_phase": lambda learner, clock, tables, key: begin_phase(learner, clock, feed.bare(tables), key),
        "epoch": StreamedEpoch(epoch, feed),
        "end_phase": hook(engine.end_phase, (0,)),
        "end_visit": lambda learner, clock: write_back(learner, clock),
        "evaluate": Streamed(evaluate, feed),
        "validate": Streamed(validate, feed),
    }
    if method.search is not None:
        programs |= {"candidates": Program(method.search.candidates), "choose": hook(engine.choose)}
    return programs


__all__ = ["available_memory", "make_programs"]
