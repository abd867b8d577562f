"""The same run for examples that are read as it goes on: an epoch in chunks of steps, all else by callbacks.

Orders, keys, labels, permutations and exemplars stay on the device; only images travel. Grain's threads read some
chunks ahead, two are on the device before they are asked for, and the device has a chunk to do while the next one is
handed over. What folds over examples at a phase's or visit's end calls back for each batch.
"""

from __future__ import annotations

import contextlib
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback

from cljax.data.on_demand import Images, batches
from cljax.training.engine import Epoch
from cljax.training.loop import Entry, Programs, Run
from cljax.training.programs import Program
from cljax.training.start import Start
from cljax.training.state import Settings
from cljax.types import Array, HostArray, Learner, Table, Tables

STEPS, BYTES = 8, 2**23
"""The most steps of a chunk, and the bytes after which a chunk takes no further step."""
AHEAD = 2
"""Chunks that may be under way on the device before the host waits for the first of them."""


class Chunk(NamedTuple):
    """Stands for a stream's examples in a program that gets those of some steps, `inputs [steps * B, ...]`."""

    inputs: Array
    first: HostArray

    def of_step(self, index: Array, batch_size: int) -> Given:
        """The examples of a step."""
        begin = (index - self.first) * batch_size
        return Given(jax.lax.dynamic_slice_in_dim(self.inputs, begin, batch_size))


class Given(NamedTuple):
    """Stands for a stream's examples where a batch of them, `inputs [B, ...]`, is at hand."""

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
      answer: a method, `rows [B] -> [B, ...]`, NumPy arrays. It is held weakly: what a program is traced for is kept by
        JAX, out of sight of Python's collector, and would keep its feed with all programs.
    """

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype, answer: Callable[[Any], np.ndarray]) -> None:
        self.shape, self.dtype, self._answer = shape, dtype, weakref.WeakMethod(answer)

    def read(self, rows: Array) -> Array:
        """Reads the examples at these rows, when the program comes to it."""
        result = jax.ShapeDtypeStruct((*rows.shape, *self.shape[1:]), self.dtype)
        return io_callback(self._ask, result, rows)

    def _ask(self, rows: Any) -> np.ndarray:
        answer = self._answer()
        assert answer is not None
        return answer(rows)


class Feed:
    """Reads a stream's examples for programs, and measures for how long they had to wait.

    Attributes:
      waiting: seconds in which the device had nothing to do but to wait for examples; at most, as what ends within such
        a wait is counted from the wait's beginning.
    """

    def __init__(self) -> None:
        self.waiting = 0.0
        self._images: Any = None
        self._asked: Asked | None = None
        self._under_way: deque[Any] = deque()
        self._sequences: Sequence[np.ndarray] = ()
        self._open: tuple[np.ndarray, int, Generator[Any]] | None = None
        self._error: Exception | None = None

    def take(self, rows: np.ndarray) -> np.ndarray:
        """The examples at some rows `[B]`, each read once; zeros for negative ones, which stand for exemplars."""
        distinct, places = np.unique(rows, return_inverse=True)
        found = np.zeros((len(distinct), *self._images.shape[1:]), self._images.dtype)
        first = int(distinct[0] < 0)
        found[first:] = self._images.take(distinct[first:])
        return found[places]

    def asking(self, tables: Tables) -> Tables:
        """The tables for programs that call back for examples."""
        examples = self._images = tables.examples
        if self._asked is None:
            self._asked = Asked(examples.shape, np.dtype(examples.dtype), self._answer)
        return tables._replace(examples=self._asked)

    def chunks(self, rows: np.ndarray) -> Generator[Array]:
        """Examples on the device, for rows `[chunks, n]`; `started` is told of each program that got some."""
        self._under_way.clear()
        with contextlib.closing(batches(self.take, rows, ahead=jax.device_put)) as source:
            for _ in rows:
                begun = time.perf_counter()
                inputs = next(source)
                if not self._under_way or self._under_way[-1].is_ready():
                    self.waiting += time.perf_counter() - begun
                yield inputs

    def started(self, result: Array) -> None:
        """Notes a program under way by a result of it that is not given away, and waits where there are too many."""
        self._under_way.append(result)
        if len(self._under_way) >= AHEAD:
            self._under_way.popleft().block_until_ready()

    @contextlib.contextmanager
    def answering(self, sequences: Sequence[np.ndarray]) -> Iterator[None]:
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
    """The programs of a run over `data.Images`, one seed at a time; as `driver.Compiled`.

    Args:
      programs: of `make_programs`.
      settings: of the run.

    Attributes:
      running: seconds in programs that get examples, without compilation.
    """

    def __init__(self, programs: Programs, settings: Settings) -> None:
        self._feed, self._settings = Feed(), settings

        def open(run: Run, entry: Entry, tables: Tables, key: Array) -> tuple[Epoch, Array]:
            epoch = programs.open(run, entry, tables, key)
            index = jnp.asarray(tables.train.index)
            held = epoch.order < index.shape[0]
            return epoch, jnp.where(held, jnp.take(index, epoch.order, mode="clip"), -1)

        def steps(run: Run, epoch: Epoch, tables: Tables, stop: Array) -> tuple[Run, Array]:
            run = programs.steps(run, epoch, tables, stop)
            return run, run.state.progress.weight + 0

        self._start, self._open, self.rest = Program(programs.start), Program(open), Program(programs.rest)
        self._steps, self._close = Program(steps, (0,)), Program(programs.close, (0,))
        self._turn, self._observe = Program(programs.turn, (0,)), Program(programs.observe, (0,))
        self._compare = Program(programs.compare)
        self.running = 0.0

    def like(self, key: Array, tables: Tables, given: Start, entry: Entry | None = None) -> Run:
        """The structure, shapes and dtypes of every run of these programs."""
        return self._start.shape(key, self._feed.asking(tables), given, entry)

    @property
    def seconds(self) -> float:
        """Spent compiling."""
        programs = (self._start, self._open, self._steps, self._close, self._turn, self._observe, self._compare)
        return sum(program.seconds for program in (*programs, self.rest))

    @property
    def waiting(self) -> float:
        """Seconds in which the device waited for examples, at most."""
        return self._feed.waiting

    def start(self, key: Array, tables: Tables, given: Start, entry: Entry | None = None) -> Run:
        """As of `Programs`."""
        return self._answered(self._start, tables, key, tables, given, entry)

    def epoch(self, run: Run, entry: Entry, tables: Tables, key: Array, pause: Callable[[Run], None]) -> Run:
        """As of `Programs`; `pause(run)` is called after each chunk, and has the run until it returns."""
        size = self._settings.batch_size
        bare = tables._replace(examples=None)
        self._feed.asking(tables)
        epoch, order = self._open(run, entry, bare, key)
        steps = max(1, min(STEPS, BYTES // (size * tables.examples[:1].nbytes)))
        first, last = int(run.state.progress.step), int(epoch.steps)
        rows = wrap(np.asarray(order)[: int(epoch.examples)], first, last, size).reshape(-1)
        rows = np.pad(rows, (0, -len(rows) % (steps * size)), constant_values=-1)
        with self._measured(), contextlib.closing(self._feed.chunks(rows.reshape(-1, steps * size))) as source:
            for place, inputs in zip(range(first, last, steps), source, strict=True):
                given = bare._replace(examples=Chunk(inputs, np.int32(place)))
                run, under_way = self._steps(run, epoch, given, np.int32(place + steps))
                self._feed.started(under_way)
                pause(run)
            jax.block_until_ready(run)
        return self._answered(self._close, tables, run, epoch, entry, tables)

    def observe(self, run: Run, entry: Entry, tables: Tables) -> Run:
        """As of `Programs`."""
        return self._answered(self._observe, tables, run, entry, tables)

    def turn(self, run: Run, entry: Entry, following: Entry, tables: Tables, key: Array) -> Run:
        """As of `Programs`."""
        return self._answered(self._turn, tables, run, entry, following, tables, key)

    def compare(self, learner: Learner, key: Array, tables: Tables, given: Start) -> Array:
        """As of `Programs`."""
        return self._answered(self._compare, tables, learner, key, tables, given)

    def _answered(self, program: Program, tables: Tables, *arguments: Any) -> Any:
        """Calls a program that may call back for the examples of any task, in the order of its table."""
        size, tasks = self._settings.evaluation_batch, range(tables.classes.shape[0])
        assert size is not None, "settled by drive"
        parts = [
            sequence(table, task, size) for table in (tables.train, tables.validation, tables.test) for task in tasks
        ]
        asking = self._feed.asking(tables)
        given = [asking if argument is tables else argument for argument in arguments]
        with self._measured(), self._feed.answering(parts):
            return jax.block_until_ready(program(*given))

    @contextlib.contextmanager
    def _measured(self) -> Iterator[None]:
        begun = time.perf_counter() - self.seconds
        yield
        self.running += time.perf_counter() - self.seconds - begun


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


def is_streamed(tables: Tables) -> bool:
    """Whether a stream's examples are read as the run goes on."""
    return isinstance(tables.examples, Images)
