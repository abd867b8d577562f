"""The compiled programs of which a drive is made."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cljax.training.engine import Engine
from cljax.training.state import EpochLog, debugging, unknown
from cljax.types import Method, Tables, Tree


class Program:
    """A jitted function, compiled at its first call, which is timed apart."""

    def __init__(self, function: Callable, donate: tuple[int, ...] = ()) -> None:
        self._jitted = jax.jit(function, donate_argnums=donate)
        self._compiled: Any = None
        self.seconds = 0.0

    def __call__(self, *arguments: Tree) -> Any:
        """Calls the function; arguments have the same shapes at every call."""
        if debugging("debug_nans", "debug_infs", "disable_jit"):
            return self._jitted(*arguments)  # which these modes take apart, as they cannot what is compiled ahead
        if self._compiled is None:
            start = time.perf_counter()
            self._compiled = self._jitted.lower(*arguments).compile()
            self.seconds = time.perf_counter() - start
        return self._compiled(*arguments)


def make_programs(method: Method, engine: Engine, table_axes: Tables | None) -> dict[str, Program]:
    """The engine's functions, compiled: one seed each, or side by side where the tables' vmap axes are given.

    Others may take their place in `drive`, any callables of the same names and arguments. One may have an attribute
    `seconds`, those it spent compiling. Where `epoch` has an attribute `streams` that is true, the tables' examples are
    not put on the device but handed over as the stream has them, and it is called with two arguments more,
    `epoch(state, clock, tables, key, partial, pause)`: None or the `Partial` of an epoch to go on with, and a function
    to be called with the state and the partial after every step, for a checkpoint in mid-epoch. It then has attributes
    `waiting` and `running`, the seconds for which programs waited for examples and ran.

    Returns:
      `init, begin_visit, begin_phase, epoch, end_phase, end_visit, evaluate, validate` as in `Engine`; for a method
      that searches, also `candidates` as in `Method` and `choose` as in `Engine`.
    """

    def program(function: Callable, axes: tuple, donate: tuple[int, ...] = ()) -> Program:
        return Program(function if table_axes is None else jax.vmap(function, in_axes=axes), donate)

    def epoch(state, clock, tables, key):
        nothing = EpochLog(*[jnp.asarray(unknown())] * 3)
        go = lambda state: engine.epoch(state, clock, tables, key)
        return jax.lax.cond(state.done, lambda state: (state, nothing), go, state)

    during = (0, None, table_axes, 0)
    programs = {
        "init": program(engine.init, (0, table_axes)),
        "begin_visit": program(engine.begin_visit, during),
        "begin_phase": program(engine.begin_phase, during, (0,)),
        "epoch": program(epoch, during, (0,)),
        "end_phase": program(engine.end_phase, during, (0,)),
        "end_visit": program(engine.end_visit, (0, None)),
        "evaluate": program(engine.evaluate, (0, None, table_axes)),
        "validate": program(engine.validate, (0, None, table_axes)),
    }
    if method.search is not None:
        programs["candidates"] = program(method.search.candidates, (0, None))
        programs["choose"] = program(engine.choose, during)
    return programs


def compile_seconds(programs: Mapping[str, Callable]) -> float:
    """What the programs spent compiling so far."""
    return sum(getattr(program, "seconds", 0.0) for program in programs.values())


def waited(programs: Mapping[str, Callable]) -> tuple[float, float] | None:
    """Seconds for which streamed programs have waited for examples so far, and ran in all; None without streaming."""
    epoch: Any = programs["epoch"]
    return (epoch.waiting, epoch.running) if getattr(epoch, "streams", False) else None


def share_waiting(waits: Sequence[tuple[float, float] | None]) -> np.ndarray | None:
    """The share of waiting between one measurement of `waited` and the next.

    Example:
      >>> share_waiting([(0.0, 0.0), (1.0, 10.0), (1.0, 30.0)]).tolist()
      [0.1, 0.0]
    """
    if any(wait is None for wait in waits):
        return None
    waiting, running = np.diff(np.asarray(waits), axis=0).T
    return waiting / np.maximum(running, 1e-9)
