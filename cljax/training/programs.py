"""A compiled program, and how long its compilation took."""

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
        self._compiled: Any = None
        self.seconds = 0.0

    def __call__(self, *arguments: Tree) -> Any:
        """Calls the function."""
        if debugging("debug_nans", "debug_infs", "disable_jit"):
            return self._jitted(*arguments)  # which these modes take apart, as they cannot what is compiled ahead
        if self._compiled is None:
            traced, start = self._trace(*arguments), time.perf_counter()
            self._compiled, self._traced = traced.lower().compile(), None
            self.seconds += time.perf_counter() - start
        return self._compiled(*arguments)

    def shape(self, *arguments: Tree) -> Tree:
        """Structure, shapes, dtypes and sharding of the result."""
        shape = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=self._sharding)
        return jax.tree.map(shape, self._trace(*arguments).out_info)

    def _trace(self, *arguments: Tree) -> Any:
        if self._traced is None:
            start = time.perf_counter()
            self._traced = self._jitted.trace(*arguments)
            self.seconds += time.perf_counter() - start
        return self._traced
