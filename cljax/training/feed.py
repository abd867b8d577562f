"""Reading a stream's examples for programs as they run, and measuring for how long they had to wait."""

from __future__ import annotations

import contextlib
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import io_callback

from cljax.data.streaming import Images, batches
from cljax.training.programs import Program
from cljax.types import Array, Table, Tables

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
