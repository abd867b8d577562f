"""Programs for data that do not fit on the device: the engine's own steps, fed batch by batch from the host.

Orders, keys, labels, permutations and exemplars stay on the device; only images travel. Grain's threads read some
batches ahead, two are on the device before they are asked for, and the device has a step to do while the next is
handed over. Hooks that fold over a task's examples are programs that call back for each batch.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback

from cljax import streams
from cljax.data.streaming import Images, batches
from cljax.training.engine import Engine, Epoch, Progress, begin_progress
from cljax.training.evaluation import Evaluation, judge, no_answers
from cljax.training.fit import pick
from cljax.training.programs import Program
from cljax.training.state import EpochLog, Partial, PhaseState
from cljax.types import Array, Batch, Clock, Learner, Method, Table, Tables

AHEAD = 2
"""Steps that may be under way on the device before the host waits for the first of them."""


class Given(NamedTuple):
    """Stands for a stream's examples in a program that gets a batch of them, `inputs [B, ...]`, already gathered."""

    inputs: Array

    def read(self, rows: Array) -> Array:
        """The batch."""
        del rows
        return self.inputs


@jax.tree_util.register_static
class Asked:
    """Stands for a stream's examples in a program that calls back for those it needs.

    Args:
      shape: of all examples.
      dtype: theirs.
      answer: `rows [B] -> [B, ...]`, NumPy arrays.
    """

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype, answer: Callable[[Any], np.ndarray]) -> None:
        self.shape, self.dtype, self._answer = shape, dtype, answer

    def read(self, rows: Array) -> Array:
        """Reads the examples at these rows, when the program comes to it."""
        result = jax.ShapeDtypeStruct((*rows.shape, *self.shape[1:]), self.dtype)
        return io_callback(self._answer, result, rows)


class Feed:
    """Reads a stream's examples for programs, and measures for how long they had to wait.

    Attributes:
      waiting: seconds in which the device had nothing to do but to wait for a batch; at most, as what ends within such
        a wait is counted from the wait's beginning.
      running: seconds in functions that read, without compilation.
      programs: those made for them.
    """

    def __init__(self) -> None:
        self.waiting = self.running = 0.0
        self.programs: list[Program] = []
        self._images: Any = None
        self._asked: Asked | None = None
        self._under_way: deque[Any] = deque()
        self._sequences: list[np.ndarray] = []
        self._open: tuple[np.ndarray, int, Generator[Any]] | None = None
        self._error: Exception | None = None

    def program(self, function: Callable, donate: tuple[int, ...] = ()) -> Program:
        """Makes a program."""
        self.programs.append(Program(function, donate))
        return self.programs[-1]

    @property
    def compiling(self) -> float:
        """Seconds spent compiling the programs."""
        return sum(program.seconds for program in self.programs)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """The examples at some rows `[B]`, each read once; zeros for negative ones, which stand for exemplars."""
        if not isinstance(self._images, Images):
            return self._images[rows]  # of exemplars, any
        distinct, places = np.unique(rows, return_inverse=True)
        found = np.zeros((len(distinct), *self._images.shape[1:]), self._images.dtype)
        first = int(distinct[0] < 0)
        found[first:] = self._images.take(distinct[first:])
        return found[places]

    def bare(self, tables: Tables) -> Tables:
        """The tables without examples, for programs that get them batch by batch."""
        self._images = tables.examples
        return tables._replace(examples=None)

    def asking(self, tables: Tables) -> Tables:
        """The tables for programs that call back for examples."""
        examples = self._images = tables.examples
        if self._asked is None:
            self._asked = Asked(examples.shape, np.dtype(examples.dtype), self._answer)
        return tables._replace(examples=self._asked)

    def batches(self, rows: np.ndarray) -> Generator[Array]:
        """Batches on the device, for rows `[steps, B]`; `started` is told of each program that got one."""
        self._under_way.clear()
        with contextlib.closing(batches(self.take, rows, ahead=jax.device_put)) as source:
            for _ in rows:
                begun = time.perf_counter()
                batch = next(source)
                if not self._under_way or self._under_way[-1].is_ready():
                    self.waiting += time.perf_counter() - begun
                yield batch

    def started(self, result: Array) -> None:
        """Notes a program under way by a result of it that is not given away, and waits where there are too many."""
        self._under_way.append(result)
        if len(self._under_way) >= AHEAD:
            self._under_way.popleft().block_until_ready()

    @contextlib.contextmanager
    def answering(self, sequences: list[np.ndarray]) -> Iterator[None]:
        """While a program runs that calls back, usually for the batches of one of these sequences in turn.

        Raises:
          Exception: what reading raised, which cannot pass through a program.
        """
        self._sequences, self._error = sequences, None
        try:
            yield
        finally:
            self._close()
        if self._error is not None:
            raise self._error

    def _answer(self, rows: Any) -> np.ndarray:
        """Called by a program, which has nothing to do meanwhile."""
        begun = time.perf_counter()
        wanted: np.ndarray = np.asarray(rows)
        try:
            return np.asarray(self._next(wanted))
        except Exception as error:
            self._error = self._error or error
            return np.zeros((len(wanted), *self._images.shape[1:]), self._images.dtype)
        finally:
            self.waiting += time.perf_counter() - begun

    def _next(self, wanted: np.ndarray) -> Any:
        """The wanted examples: the next batch of the sequence that is open, or the first of another, or read alone."""
        if self._error is not None:
            raise self._error
        if self._open is not None:
            sequence, step, source = self._open
            if step < len(sequence) and np.array_equal(sequence[step], wanted):
                self._open = (sequence, step + 1, source)
                return next(source)
        for sequence in self._sequences:
            if len(sequence) and np.array_equal(sequence[0], wanted):
                self._close()
                self._open = (sequence, 1, batches(self.take, sequence))
                return next(self._open[2])
        return self.take(wanted)

    def _close(self) -> None:
        if self._open is not None:
            self._open[2].close()
            self._open = None


class Streamed:
    """A function made of programs that are fed as they run.

    Attributes:
      streams: True, which tells the driver.
    """

    streams = True

    def __init__(self, function: Callable, feed: Feed) -> None:
        self._function, self._feed = function, feed

    def __call__(self, *arguments: Any) -> Any:
        """Calls the function."""
        begun, compiled = time.perf_counter(), self._feed.compiling
        result = jax.block_until_ready(self._function(*arguments))
        self._feed.running += time.perf_counter() - begun - (self._feed.compiling - compiled)
        return result


class StreamedEpoch(Streamed):
    """The function that trains an epoch; it answers for the feed of all functions.

    Attributes:
      seconds: spent compiling.
      waiting, running: see `Feed`.
    """

    @property
    def seconds(self) -> float:
        """Spent compiling."""
        return self._feed.compiling

    @property
    def waiting(self) -> float:
        """Seconds in which the device waited for a batch, at most."""
        return self._feed.waiting

    @property
    def running(self) -> float:
        """Seconds in functions that read."""
        return self._feed.running


def sequence(table: Table, task: int, batch_size: int) -> np.ndarray:
    """The rows of a task's examples in the order of its table, `[steps, B]`, as `streams.sequential` has them.

    Example:
      >>> table = Table(np.array([4, 2, 0, 1, 3]), np.zeros(5), np.array([0, 2]), np.array([2, 3]))
      >>> sequence(table, 1, 2).tolist()
      [[0, 1], [3, 0]]
    """
    start, size = int(table.start[task]), int(table.size[task])
    return wrap(np.asarray(table.index)[start : start + size], 0, -(-size // batch_size), batch_size)


def wrap(rows: np.ndarray, first: int, steps: int, batch_size: int) -> np.ndarray:
    """The rows of batches `first` to `steps - 1`, a last partial one wrapping around: `[steps - first, B]`.

    Example:
      >>> wrap(np.array([7, 8, 9]), 1, 2, 2).tolist()
      [[9, 7]]
    """
    numbers = np.arange(first * batch_size, steps * batch_size)
    return rows[numbers % max(len(rows), 1)].reshape(-1, batch_size)


def available_memory() -> int | None:
    """Bytes of memory: of the device; of the machine, as far as it is free, where that is the device; None: unknown."""
    device = jax.local_devices()[0]
    if device.platform != "cpu":
        return (device.memory_stats() or {}).get("bytes_limit")
    try:
        lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


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

    def add_answers(answers: tuple, learner: Learner, clock: Clock, task: Array, step: Array, batch: Batch) -> tuple:
        return parts.add_answers(learner, clock, task, step, answers, batch)

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
        loss = accuracy = jnp.float32(jnp.nan)
        if settings.validate or settings.stopping:
            loss = validation_loss(learner, now.clock, tables)
        if settings.validate:
            accuracy = validate(learner, now.clock, tables)
        return end_program(progress, thin, now, loss, accuracy)

    def validation_loss(learner: Learner, clock: Clock, tables: Tables) -> Array:
        tasks = [int(clock.task)]
        if method.draws_from != "current":
            tasks = list(range(tables.classes.shape[0] if method.draws_from == "all" else int(clock.newest) + 1))
        sums = (jnp.float32(0.0), jnp.float32(0.0))
        for _, _, batch in read(tables, "validation", tasks):
            sums = loss_program(sums, learner, clock, batch)
            feed.started(sums[0])
        return sums[0] / sums[1]

    def evaluate_tasks(learner: Learner, clock: Clock, tables: Tables, split: str, tasks: list[int]) -> Evaluation:
        found = {task: no_answers() for task in tasks}
        for task, step, batch in read(tables, split, tasks):
            found[task] = answers_program(found[task], learner, clock, np.int32(task), step, batch)
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
    if method.candidates is not None:
        programs |= {"candidates": Program(method.candidates), "choose": Program(method.choose), "pick": Program(pick)}
    return programs


__all__ = ["Feed", "available_memory", "make_programs"]
