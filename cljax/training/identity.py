"""What tells a run from others: whatever changes a bit of its result, as JSON has it.

A checkpoint of another run is not taken up. Optimizer, network, method and augmentation are functions; what they
compute is known by a digest of their jaxprs and of all constants in these.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from cljax.data.streaming import Images
from cljax.training.engine import Engine
from cljax.training.plan import in_stream
from cljax.types import Array, Method, Stream, Tables, Tree, make_clock

SAMPLE = 64
"""How many images, evenly spaced, stand for all where they are read on demand."""


def facts_of(method: Method, engine: Engine, stream: Stream, key: Array) -> dict[str, Any]:
    """What the seeds of a drive share: versions, device, digests of what is computed and of the examples.

    Args:
      method: the method.
      engine: its engine.
      stream: for shapes, and examples.
      key: of a run, for its kind.
    """
    versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib")}
    device = jax.devices()[0].device_kind
    return {
        "versions": versions,
        "device": device,
        "computation": computation(method, engine, stream, key),
        "examples": examples(stream.tables.examples),
    }


def computation(method: Method, engine: Engine, stream: Stream, key: Array) -> str:
    """A digest of all that a run computes: every function of the engine, traced but not compiled."""
    given = stream.tables
    images = jax.ShapeDtypeStruct(given.examples.shape, given.examples.dtype)
    tables = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, given._replace(examples=None)))._replace(examples=images)
    key, clock = jax.eval_shape(lambda: key), jax.eval_shape(make_clock)
    digest = hashlib.sha256()

    def trace(function: Any, *arguments: Tree) -> Tree:
        traced = jax.jit(function).trace(*arguments)
        digest.update(_digest(traced.jaxpr, {}))
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), traced.out_info)

    clock = jax.eval_shape(in_stream, clock, tables)
    learner = trace(engine.init, key, tables)
    focused = trace(engine.begin_visit, learner, clock, tables, key)
    state = trace(engine.begin_phase, focused, clock, tables, key)
    state, _ = trace(engine.epoch, state, clock, tables, key)
    trace(engine.end_phase, state, clock, tables, key)
    resting = trace(engine.end_visit, focused, clock)
    if np.any(stream.schedule.evaluate) or engine.settings.curves_every:
        trace(engine.evaluate, resting, clock, tables)
    if method.search is not None:
        trace(engine.validate, focused, clock, tables)
        options = jax.tree.leaves(trace(method.search.candidates, resting, clock))
        count = options[0].shape[0]
        stack = lambda leaf: jax.ShapeDtypeStruct((count, *leaf.shape), leaf.dtype)
        tried = jax.ShapeDtypeStruct((count,), jnp.float32), jax.tree.map(stack, resting)
        trace(engine.choose, tried, clock, tables, key)
    return digest.hexdigest()[:16]


def examples(values: Any) -> str:
    """A digest of the examples: of all that are in memory; of some, evenly spaced, that are read on demand."""
    if isinstance(values, Images):
        rows = np.unique(np.linspace(0, len(values) - 1, min(SAMPLE, len(values))).astype(np.int64))
        return f"{_of_arrays([values.take(rows)])} of {len(values)}"
    return _of_arrays([values])


def division(tables: Tables) -> str:
    """A digest of a stream's labels, division among tasks, permutations."""
    return _of_arrays(jax.tree.leaves(tables._replace(examples=None)))


def _of_arrays(leaves: list[Any]) -> str:
    digest = hashlib.sha256()
    for leaf in leaves:
        digest.update(_bytes(leaf))
    return digest.hexdigest()[:16]


def _bytes(value: Any) -> bytes:
    """An array's dtype, shape and values."""
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    array = np.asarray(value)
    return repr((str(array.dtype), array.shape)).encode() + array.tobytes()


def _digest(jaxpr: Any, known: dict[int, bytes]) -> bytes:
    """A digest of a jaxpr, the same in every process: its primitives, their parameters and types, its constants."""
    if id(jaxpr) in known:
        return known[id(jaxpr)]
    closed = isinstance(jaxpr, core.ClosedJaxpr)
    inner = jaxpr.jaxpr if closed else jaxpr
    digest = hashlib.sha256()
    numbers: dict[Any, int] = {}
    for constant in jaxpr.consts if closed else ():
        digest.update(_bytes(constant))

    def named(variable: Any) -> str:
        if isinstance(variable, core.Literal):
            return f"{variable.aval} {_bytes(variable.val)!r}"
        return f"{numbers.setdefault(variable, len(numbers))}:{variable.aval}"

    def shown(value: Any) -> str:
        if isinstance(value, core.ClosedJaxpr | core.Jaxpr):
            return _digest(value, known).hex()
        if isinstance(value, np.ndarray | jax.Array):
            return repr(_bytes(value))
        if type(value) in (tuple, list):
            return f"({','.join(map(shown, value))})"
        return re.sub("0x[0-9a-f]+", "", str(value))

    digest.update(",".join(map(named, [*inner.constvars, *inner.invars])).encode())
    for equation in inner.eqns:
        parameters = {name: shown(value) for name, value in sorted(equation.params.items())}
        variables = [*map(named, equation.invars), *map(named, equation.outvars)]
        digest.update(f"{equation.primitive} {parameters} {variables}\n".encode())
    digest.update(",".join(map(named, inner.outvars)).encode())
    known[id(jaxpr)] = digest.digest()
    return known[id(jaxpr)]


__all__ = ["computation", "division", "examples", "facts_of"]
