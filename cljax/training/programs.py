"""Compiled programs: how long their compilation took, and how much memory they need."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax

from cljax.training.state import debugging
from cljax.types import Tree


class Program:
    """A jitted function, traced and compiled once, which is timed apart. Arguments have the same shapes at every call.

    Args:
      function: to be jitted.
      donate: the numbers of the arguments that are given away.
      sharding: of all results, where there are several devices.

    Attributes:
      seconds: spent tracing and compiling.
    """

    def __init__(
        self, function: Callable, donate: tuple[int, ...] = (), sharding: jax.sharding.Sharding | None = None
    ) -> None:
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
