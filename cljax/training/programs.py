"""Compiled programs: how long their compilation took, and how much memory they need."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, Sharding

from cljax.training import mesh
from cljax.training.cost import tree_bytes
from cljax.training.engine import with_even_size
from cljax.training.loop import Entry, Programs, Run
from cljax.training.start import Start
from cljax.training.state import debugging
from cljax.trees import select
from cljax.types import Array, Tables, Tree


class Program:
    """A jitted function, traced and compiled once, which is timed apart. Arguments have the same shapes at every call.

    Args:
      function: to be jitted.
      donate: the numbers of the arguments that are given away.
      sharding: of all results, where there are several devices.

    Attributes:
      seconds: spent tracing and compiling.
    """

    def __init__(self, function: Callable, donate: tuple[int, ...] = (), sharding: Sharding | None = None) -> None:
        self._jitted, self._sharding = jax.jit(function, donate_argnums=donate, out_shardings=sharding), sharding
        self._traced: Any = None
        self._shape: Tree = None
        self._compiled: Any = None
        self.seconds = 0.0

    def __call__(self, *arguments: Tree) -> Any:
        """Calls the function."""
        if is_taken_apart():
            return self._jitted(*arguments)
        self._compile(*arguments)
        return self._compiled(*arguments)

    def shape(self, *arguments: Tree) -> Tree:
        """Structure, shapes, dtypes and sharding of the result."""
        if self._shape is None:
            self._trace(*arguments)
        return self._shape

    def needs(self, *arguments: Tree) -> int:
        """The bytes of memory that it needs while it runs, arguments or their shapes included; 0 if that is unknown."""
        if is_taken_apart():
            return 0
        self._compile(*arguments)
        if (found := self._compiled.memory_analysis()) is None:
            return 0
        ends = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
        return ends + found.temp_size_in_bytes

    def _trace(self, *arguments: Tree) -> Any:
        if self._traced is None:
            start = time.perf_counter()
            self._traced = self._jitted.trace(*arguments)
            shape = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=self._sharding)
            self._shape = jax.tree.map(shape, self._traced.out_info)
            self.seconds += time.perf_counter() - start
        return self._traced

    def _compile(self, *arguments: Tree) -> None:
        if self._compiled is None:
            traced, start = self._trace(*arguments), time.perf_counter()
            self._compiled, self._traced = traced.lower().compile(), None
            self.seconds += time.perf_counter() - start


class Compiled:
    """The programs of a run, compiled at their first call, its examples on the device.

    Args:
      programs: of `make_programs`.
      axes: None: one seed; or the `vmap` axes of the tables, several seeds side by side.
      devices: of `mesh.make_mesh`; None: one device.
      size: how many training examples every task of every seed has, where it is one number; else None.

    Attributes:
      start: as of `Programs`.
      observe: as of `Programs`.
      turn: as of `Programs`.
      rest: as of `Programs`.
      compare: as of `Programs`.
      compare_again: the same, of what a checkpoint had.
    """

    def __init__(
        self, programs: Programs, axes: Tables | None = None, devices: Mesh | None = None, size: int | None = None
    ) -> None:
        self._axes, self._devices, self._made = axes, devices, list[Program]()

        def epoch(run: Run, entry: Entry, tables: Tables, key: Array) -> Run:
            after = programs.epoch(run, entry, with_even_size(tables, size), key)
            if axes is None:
                return after  # side by side, one that is done waits for the others
            state, visit = select(run.state.done, (run.state, run.visit), (after.state, after.visit))
            return run._replace(state=state, visit=visit)

        self.start = self.program(programs.start, (0, axes, 0, None))
        self.turn = self.program(programs.turn, (0, None, None, axes, 0), (0,))
        self.rest = self.program(programs.rest, (0,))
        self.observe = self.program(programs.observe, (0, None, axes), (0,))
        self.compare = self.program(programs.compare, (0, 0, axes, 0))
        self.compare_again = self.program(programs.compare, (0, 0, axes, 0))
        self._epoch = self.program(epoch, (0, None, axes, 0), (0,))

    def program(self, function: Callable, axes: tuple = (), donate: tuple[int, ...] = ()) -> Program:
        """A program of the run.

        Args:
          function: what it computes for one seed.
          axes: of its arguments, where several go side by side.
          donate: the numbers of the arguments that are given away.
        """
        mapped = function if self._axes is None else jax.vmap(function, in_axes=axes)
        where = None
        if self._devices is not None:
            mapped = mesh.across(mapped, self._devices, None if self._axes is None else axes)
            where = mesh.sharding(self._devices, seeds=self._axes is not None)
        self._made.append(self.make(mapped, donate, where))
        return self._made[-1]

    make: Callable[..., Program] = Program
    """Of what kind its programs are."""

    @property
    def seconds(self) -> float:
        """Spent compiling."""
        return sum(program.seconds for program in self._made)

    @property
    def reading(self) -> np.ndarray:
        """Seconds in which the device waited for examples, at most, and all in programs that get them as they run."""
        return np.zeros(2)

    def needs(self, key: Array, tables: Tables, given: Start, entry: Entry) -> tuple[int, int]:
        """Bytes that a device needs for such a start beside the examples, and those of the learners in the end.

        What every run calls is compiled.
        """
        run = self.start.shape(key, tables, given, entry)
        sizes = (
            self.start.needs(key, tables, given, entry),
            self._epoch.needs(run, entry, tables, key),
            self.turn.needs(run, entry, entry, tables, key),
            self.rest.needs(run),
        )
        return max(max(sizes) - tree_bytes(tables.examples), 0), tree_bytes(self.rest.shape(run))

    def epoch(self, run: Run, entry: Entry, tables: Tables, key: Array, pause: Callable[[Run], None]) -> Run:
        """As of `Programs`; `pause` is for epochs in chunks."""
        del pause
        return self._epoch(run, entry, tables, key)


class Watch:
    """Counts the seconds of a run, without compilation and what is left out."""

    def __init__(self, compiled: Any) -> None:
        self._compiled, self._seconds = compiled, 0.0
        self._mark, self._apart = time.perf_counter(), compiled.seconds

    def tick(self) -> float:
        """The seconds so far."""
        now, apart = time.perf_counter(), self._compiled.seconds
        self._seconds += now - self._mark - (apart - self._apart)
        self._mark, self._apart = now, apart
        return self._seconds

    def begin(self, seconds: float) -> None:
        """Sets the seconds so far: what has gone by until now does not count."""
        self._seconds, self._mark, self._apart = seconds, time.perf_counter(), self._compiled.seconds


def is_taken_apart() -> bool:
    """Whether JAX is in a mode that takes programs apart, as it cannot what is compiled ahead."""
    return debugging("debug_nans", "debug_infs", "disable_jit")
