"""The same run for examples that are read as it goes on: an epoch in chunks of steps, all else by callbacks.

Orders, keys, labels, permutations and exemplars stay on the device; only images travel. Grain's threads read some
chunks ahead, two are on the device before they are asked for, and the device has a chunk to do while the next one is
handed over. What folds over examples at a phase's or visit's end calls back for each batch.

Where several devices share each batch, a chunk is spread over them, each calls back for its own part of a batch, and
what a process reads is what its own devices need.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback
from jax.sharding import Mesh, NamedSharding, Sharding
from jax.sharding import PartitionSpec as Spec

from cljax.data.on_demand import Images, ReadError, batches
from cljax.streams import BATCH_AXIS
from cljax.streams.sampling import batch_parts
from cljax.training import mesh
from cljax.training.engine import Epoch
from cljax.training.loop import Entry, Programs, Run
from cljax.training.programs import Compiled, Program
from cljax.training.state import Settings
from cljax.trees import pick
from cljax.types import Array, HostArray, Table, Tables, Tree

STEPS, BYTES = 8, 2**23
"""The most steps of a chunk, and the bytes after which a chunk takes no further step."""
AHEAD = 2
"""Chunks that may be under way on the device before the host waits for the first of them."""


class Chunk(NamedTuple):
    """Stands for a stream's examples in a program that gets those of some steps, `inputs [steps, B, ...]`."""

    inputs: Array
    first: HostArray

    def of_step(self, index: Array) -> Given:
        """The examples of a step."""
        return Given(pick(self.inputs, index - self.first))


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
      answer: a method, `(part, rows [B]) -> [B, ...]`, NumPy arrays. It is held weakly: what a program is traced for is
        kept by JAX, out of sight of Python's collector, and would keep its feed with all programs.
    """

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype, answer: Callable[[Any, Any], np.ndarray]) -> None:
        self.shape, self.dtype, self._answer = shape, dtype, weakref.WeakMethod(answer)

    def read(self, rows: Array) -> Array:
        """Reads the examples at these rows `[B]`, when the program comes to it; each device those of its part."""
        if (count := batch_parts()) == 1:
            return self._call(jnp.int32(0), rows)
        parts = jnp.pad(rows, (0, -len(rows) % count), constant_values=-1)
        own = lambda rows: self._call(jax.lax.axis_index(BATCH_AXIS), rows)
        options: dict[str, Any] = {"axis_names": {BATCH_AXIS}, "check_vma": False}
        found = jax.shard_map(own, in_specs=Spec(BATCH_AXIS), out_specs=Spec(BATCH_AXIS), **options)(parts)
        return found[: len(rows)]

    def _call(self, part: Array, rows: Array) -> Array:
        result = jax.ShapeDtypeStruct((*rows.shape, *self.shape[1:]), self.dtype)
        return io_callback(self._ask, result, part, rows)

    def _ask(self, part: Any, rows: Any) -> np.ndarray:
        answer = self._answer()
        assert answer is not None
        return answer(part, rows)


class Feed:
    """Reads a stream's examples for programs, and measures for how long they had to wait.

    Args:
      where: how a chunk is spread over devices, perhaps of several processes; None: one device.

    Attributes:
      running: seconds in programs that get examples, without compilation.
      waiting: seconds in which a device had nothing to do but to wait for examples; at most, as what ends within such
        a wait is counted from the wait's beginning.
    """

    def __init__(self, where: Sharding | None = None) -> None:
        self.running, self.waiting, self._lock = 0.0, 0.0, threading.Lock()
        self._devices = 1 if where is None else len(where.addressable_devices)  # of this process
        self._alone = where is None or where.is_fully_addressable
        self._images: Any = None
        self._asked: Asked | None = None
        self._under_way: deque[Any] = deque()
        self._sequences: Sequence[np.ndarray] = ()
        self._open: dict[int, tuple[np.ndarray, int, Generator[Any]]] = {}
        self._error: Exception | None = None

    def take(self, rows: np.ndarray) -> np.ndarray:
        """The examples at some rows, each read once; zeros for negative ones, which stand for exemplars and padding."""
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

    def chunks(self, rows: np.ndarray, where: Sharding) -> Generator[Array]:
        """Examples on the devices of this process, those that each is to have of a chunk `[steps, B, ...]`.

        `started` is told of each program that got some.

        Args:
          rows: `[chunks, steps, B]`.
          where: of a chunk.
        """
        self._under_way.clear()
        shape = (*rows.shape[1:], *self._images.shape[1:])
        parts = where.addressable_devices_indices_map(shape)
        read = lambda rows: [self.take(rows[part[:2]]) for part in parts.values() if part]
        spread = lambda found: jax.make_array_from_single_device_arrays(
            shape, where, jax.device_put(found, list(parts))
        )
        with contextlib.closing(batches(read, rows, ahead=spread)) as source:
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
    def measured(self, program: Program) -> Iterator[None]:
        """While a program runs, whose compilation does not count."""
        begun = time.perf_counter() - program.seconds
        yield
        self.running += time.perf_counter() - program.seconds - begun

    @contextlib.contextmanager
    def answering(self, sequences: Sequence[np.ndarray]) -> Iterator[None]:
        """While a program runs that calls back, usually for the batches of one of these sequences in turn.

        Raises:
          Exception: what reading raised, which cannot pass through a program.
          ReadError: it raised in another process; what the program has computed is of no use here either.
        """
        self._sequences, self._error = sequences, None
        try:
            yield
        finally:
            for part in list(self._open):
                self._close(part)
        failed = self._error is not None
        if not self._alone:
            failed = mesh.anywhere(failed)
        if failed:
            raise self._error or ReadError("Another process could not read an example: its own message names it.")

    def _answer(self, part: Any, rows: Any) -> np.ndarray:
        """Called by a program for a device's part of a batch; the device has nothing to do meanwhile."""
        begun = time.perf_counter()
        wanted: np.ndarray = np.asarray(rows)
        try:
            return np.asarray(self._next(int(part), wanted))
        except Exception as error:
            self._error = self._error or error
            return np.zeros((len(wanted), *self._images.shape[1:]), self._images.dtype)
        finally:
            with self._lock:  # devices call side by side
                self.waiting += (time.perf_counter() - begun) / self._devices

    def _next(self, part: int, wanted: np.ndarray) -> Any:
        """The wanted examples: the next batch of the sequence that is open, or the first of another, or read alone."""
        if self._error is not None:
            raise self._error
        if part in self._open:
            sequence, step, source = self._open[part]
            if step < len(sequence) and np.array_equal(sequence[step], wanted):
                self._open[part] = (sequence, step + 1, source)
                return next(source)
        for whole in self._sequences:
            sequence = whole[:, part * len(wanted) : (part + 1) * len(wanted)]
            if len(sequence) and np.array_equal(sequence[0], wanted):
                self._close(part)
                self._open[part] = (sequence, 1, source := batches(self.take, sequence))
                return next(source)
        return self.take(wanted)

    def _close(self, part: int) -> None:
        if part in self._open:
            self._open.pop(part)[2].close()


class Asking(Program):
    """A program that calls back for examples, if it is given tables whose examples are `data.Images`.

    Args:
      feed: what reads them.
      batch_size: of folds and evaluation, which go through a task in the order of its table.
      parts: among how many devices a batch is shared.
      of: as of `Program`.
    """

    def __init__(self, feed: Feed, batch_size: int, parts: int, *of: Any) -> None:
        super().__init__(*of)
        self._feed, self._batch_size, self._padding = feed, batch_size, -batch_size % parts  # as of `Asked.read`

    def shape(self, *arguments: Tree) -> Tree:
        """As of `Program`."""
        return super().shape(*map(self._given, arguments))

    def __call__(self, *arguments: Tree) -> Any:
        """Calls the function."""
        tables = next((one for one in arguments if self._given(one) is not one), None)
        if tables is None:
            return super().__call__(*arguments)
        splits, tasks = (tables.train, tables.validation, tables.test), range(tables.classes.shape[0])
        orders = [sequence(table, task, self._batch_size) for table in splits for task in tasks]
        orders = [np.pad(rows, ((0, 0), (0, self._padding)), constant_values=-1) for rows in orders]
        with self._feed.measured(self), self._feed.answering(orders):
            return jax.block_until_ready(super().__call__(*map(self._given, arguments)))

    def _given(self, argument: Tree) -> Tree:
        return self._feed.asking(argument) if isinstance(argument, Tables) and is_streamed(argument) else argument


class Streamed(Compiled):
    """The programs of a run over `data.Images`, one seed at a time.

    Args:
      programs: of `make_programs`.
      settings: of the run.
      devices: of `mesh.make_mesh`, that share each batch; None: one device.
    """

    def __init__(self, programs: Programs, settings: Settings, devices: Mesh | None = None) -> None:
        assert settings.evaluation_batch is not None, "settled by drive"
        self._where = None if devices is None else NamedSharding(devices, Spec(None, BATCH_AXIS))
        self._feed, self._batch_size = Feed(self._where), settings.batch_size
        self.make = functools.partial(Asking, self._feed, settings.evaluation_batch, mesh.shares(devices)[1])
        super().__init__(programs, devices=devices)

        def open(run: Run, entry: Entry, tables: Tables, key: Array) -> tuple[Epoch, Array]:
            epoch = programs.open(run, entry, tables, key)
            index = jnp.asarray(tables.train.index)
            held = epoch.order < index.shape[0]
            return epoch, jnp.where(held, jnp.take(index, epoch.order, mode="clip"), -1)

        def steps(run: Run, epoch: Epoch, tables: Tables, stop: Array) -> tuple[Run, Array]:
            run = programs.steps(run, epoch, tables, stop)
            return run, run.state.progress.weight + 0

        self._open, self._steps = self.program(open), self.program(steps, donate=(0,))
        self._close = self.program(programs.close, donate=(0,))

    @property
    def reading(self) -> np.ndarray:
        """As of `Compiled`."""
        return np.array([self._feed.waiting, self._feed.running])

    def epoch(self, run: Run, entry: Entry, tables: Tables, key: Array, pause: Callable[[Run], None]) -> Run:
        """As of `Programs`; `pause(run)` is called after each chunk, and has the run until it returns."""
        size, bare = self._batch_size, tables._replace(examples=None)
        self._feed.asking(tables)
        epoch, order = self._open(run, entry, bare, key)
        steps = max(1, min(STEPS, BYTES // (size * tables.examples[:1].nbytes)))
        first, last = int(run.state.progress.step), int(epoch.steps)
        rows = wrap(np.asarray(order)[: int(epoch.examples)], first, last, size)
        rows = np.pad(rows, ((0, -len(rows) % steps), (0, 0)), constant_values=-1).reshape(-1, steps, size)
        where = self._where or order.sharding
        with self._feed.measured(self._steps), contextlib.closing(self._feed.chunks(rows, where)) as source:
            for place, inputs in zip(range(first, last, steps), source, strict=True):
                given = bare._replace(examples=Chunk(inputs, np.int32(place)))
                run, under_way = self._steps(run, epoch, given, jnp.int32(place + steps))  # no length known to Python
                self._feed.started(under_way)
                pause(run)
            jax.block_until_ready(run)
        return self._close(run, epoch, entry, tables)


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
