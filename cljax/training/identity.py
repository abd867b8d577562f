"""What tells a run from others: whatever changes a bit of its result, as JSON has it.

A checkpoint of another run is not taken up. Optimizer, network, method and augmentation are functions; what they
compute is known by a digest of their jaxprs and of all constants in these.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from cljax.data.on_demand import Images
from cljax.keys import make_key
from cljax.training.loop import Entry, Programs
from cljax.training.start import NOTHING
from cljax.training.state import Settings
from cljax.types import Method, Stream, Tables, Tree

SAMPLE = 64
"""How many images, evenly spaced, stand for all where they are read on demand."""


def facts_of(
    method: Method, settings: Settings, stream: Stream, programs: Programs, *, streamed: bool
) -> dict[str, Any]:
    """What the seeds of a drive share: versions, device, digests of what is computed and of the examples.

    Args:
      method: the method.
      settings: of the run.
      stream: for shapes, examples, the schedule.
      programs: of the run.
      streamed: whether its examples are read as it goes on.
    """
    return {
        "method": method.name,
        "streamed": streamed,
        "settings": {name: value for name, value in settings._asdict().items() if not callable(value)},
        "schedule": {name: np.asarray(value).tolist() for name, value in stream.schedule._asdict().items()},
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "jaxlib")},
        "device": jax.devices()[0].device_kind,
        "computation": computation(programs, stream.tables),
        "examples": examples(stream.tables.examples),
    }


def computation(programs: Programs, tables: Tables) -> str:
    """A digest of all that a run computes: its programs, traced but not compiled."""
    images = jax.ShapeDtypeStruct(tables.examples.shape, tables.examples.dtype)
    rest = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, tables._replace(examples=None)))
    tables, key = rest._replace(examples=images), jax.eval_shape(lambda: make_key(0))
    entry = jax.eval_shape(lambda: Entry(*[jnp.int32(0)] * len(Entry._fields)))
    digest = hashlib.sha256()

    def trace(function: Any, *arguments: Tree) -> Tree:
        traced = jax.jit(function).trace(*arguments)
        digest.update(_digest(traced.jaxpr, {}))
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), traced.out_info)

    run = trace(programs.start, key, tables, NOTHING)
    trace(programs.epoch, run, entry, tables, key)
    trace(programs.turn, run, entry, entry, tables, key)
    return digest.hexdigest()[:16]


def examples(values: Any) -> str:
    """A digest of the examples: of all that are in memory; of some, evenly spaced, that are read on demand."""
    return sample(values) if isinstance(values, Images) else _of_arrays([values])


def sample(values: Any) -> str:
    """A digest of some examples, evenly spaced, and of how many there are: the same of an array and of `Images`."""
    rows = np.unique(np.linspace(0, len(values) - 1, min(SAMPLE, len(values))).astype(np.int64))
    return f"{_of_arrays([np.asarray(values[rows])])} of {len(values)}"


def tree(values: Tree) -> str:
    """A digest of the arrays of a tree."""
    return _of_arrays(jax.tree.leaves(values))


def division(tables: Tables) -> str:
    """A digest of a stream's labels, division among tasks, permutations."""
    return tree(tables._replace(examples=None))


def parameters(given: Mapping[str, Any]) -> str | None:
    """A digest of given parameters, whose paths are part of it; None where there are none."""
    if not given:
        return None
    return _of_arrays(
        [part for name in sorted(given) for part in (np.frombuffer(name.encode(), np.uint8), given[name])]
    )


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
