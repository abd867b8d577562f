"""Several devices: seeds side by side are shared among them, and so is each batch.

A mesh has two axes. Over `seed` each device runs its own seeds, by `shard_map`: nothing passes between them, and each
stops where it stops. Over `batch` a device has its part of every batch (`streams.split_batch`, where it is drawn), all
else is there on each, and the compiler adds what must be summed: the step is that of one device, up to rounding.
"""

from __future__ import annotations

import functools
import math
import os
import pathlib
import platform
import re
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as Spec

from cljax.numbers import whole
from cljax.streams import BATCH_AXIS
from cljax.types import Tree

SEED_AXIS = "seed"


def share_devices(devices: int, seeds: int, batch_size: int, *, fewer: bool = False) -> tuple[int, int]:
    """Among how many devices the seeds, and each batch, are shared: of the ways there are, the most for the seeds.

    Args:
      devices: how many there are.
      seeds: that run side by side; the first number divides theirs.
      batch_size: the second number divides it.
      fewer: whether some devices may be left without work.

    Raises:
      ValueError: all are to have work, and cannot.

    Example:
      >>> share_devices(8, 4, 32), share_devices(8, 5, 32, fewer=True), share_devices(8, 1, 12, fewer=True)
      ((4, 2), (5, 1), (1, 6))
      >>> share_devices(8, 5, 12)
      Traceback (most recent call last):
      ...
      ValueError: 8 devices cannot share batches of 12 examples and 5 seeds, but 6 can: ...
    """
    count = whole("devices", devices, least=1)
    splits = [(one, range(1, count // one + 1)) for one in range(1, count + 1) if seeds % one == 0]
    found = [(one, other) for one, others in splits for other in others if batch_size % other == 0]
    exact = [pair for pair in found if fewer or math.prod(pair) == count]
    if not exact:
        most = max(map(math.prod, found))
        raise ValueError(
            f"{devices} devices cannot share batches of {batch_size} examples{f' and {seeds} seeds' * (seeds > 1)}, "
            f"but {most} can: a part of their number must divide that of the seeds side by side, the rest the batch "
            f"size. Ask for {most}, or for another batch size."
        )
    return max(exact)


def make_mesh(devices: int, seeds: int = 1, batch_size: int = 1) -> Mesh:
    """The mesh of so many devices, the first that JAX has, as `share_devices` shares them.

    Raises:
      ValueError: there are not so many, they cannot share the work, or a process would have none.

    Example:
      >>> dict(make_mesh(1).shape)
      {'seed': 1, 'batch': 1}
    """
    there = jax.devices()
    if whole("devices", devices, least=1) > len(there):
        raise ValueError(
            f"devices is {devices}, but JAX has {len(there)} here ({there[0].device_kind}). Ask for at most so many."
        )
    if jax.process_count() > 1 and devices < len(there):
        raise ValueError(
            f"devices is {devices}, but there are {len(there)} in {jax.process_count()} processes, which must all have "
            f"a part: ask for {len(there)}."
        )
    shape = share_devices(devices, seeds, batch_size)
    axes = (AxisType.Auto,) * 2
    return jax.make_mesh(shape, (SEED_AXIS, BATCH_AXIS), axis_types=axes, devices=there[:devices])


def shares(mesh: Mesh | None) -> tuple[int, int]:
    """Among how many devices seeds, and batches, are shared."""
    return (1, 1) if mesh is None else (mesh.shape[SEED_AXIS], mesh.shape[BATCH_AXIS])


def across(function: Callable, mesh: Mesh, axes: Any = None) -> Callable:
    """A function that each device computes for its own seeds, with its part of every batch; to be jitted.

    Args:
      function: under `vmap` over seeds, if any.
      mesh: of `make_mesh`.
      axes: of that `vmap`, one or None for each argument, or for each of its leaves; None: there is no `vmap`.
    """
    given, out = (Spec(), Spec()) if axes is None else (_specs(axes), Spec(SEED_AXIS))
    options: dict[str, Any] = {"axis_names": {SEED_AXIS}, "check_vma": False}
    return jax.shard_map(function, mesh=mesh, in_specs=given, out_specs=out, **options)


def sharding(mesh: Mesh, *, seeds: bool) -> NamedSharding:
    """Where arrays are: those with a leading axis of seeds by seed, others on every device."""
    return NamedSharding(mesh, Spec(SEED_AXIS) if seeds else Spec())


def place(tree: Tree, mesh: Mesh | None, axes: Any = None) -> Tree:
    """Puts a tree on a mesh, or on JAX's usual device; `axes` as of `across`, or None: all of it on each device.

    Where there are several processes, all of them call this with the same values.
    """
    if mesh is None:
        return jax.device_put(tree)
    whole = lambda spec, part: jax.tree.map(lambda leaf: put(leaf, NamedSharding(mesh, spec)), part)
    return jax.tree.map(whole, _specs(axes), tree)


def put(leaf: Any, where: jax.sharding.Sharding) -> jax.Array:
    """Puts an array, or PRNG keys, on the devices of one process or of several, which all have its values."""
    if where.is_fully_addressable:
        return jax.device_put(leaf, where)
    keys = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    values = np.asarray(jax.random.key_data(leaf) if keys else leaf)
    found = jax.make_array_from_callback(values.shape, where, lambda part: values[part])
    return jax.random.wrap_key_data(found, impl=jax.random.key_impl(leaf)) if keys else found


def host(leaf: Any) -> np.ndarray:
    """An array on this host, from all processes that have parts of it; they call this together."""
    if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
        from jax.experimental import multihost_utils

        return multihost_utils.process_allgather(leaf, tiled=True)
    return np.asarray(leaf)


@functools.cache
def machine() -> int:
    """A number that tells processors apart, by which compilers choose instructions, and so bits; of the first process.

    0 where the device is none: the kinds of others are in a run's identity.
    """
    if jax.default_backend() != "cpu":
        return 0
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = [platform.machine(), platform.processor()]
    told = sorted({line for line in lines if re.match("vendor|cpu family|model|flags|Features|CPU", line)} or lines)
    return agreed(zlib.crc32(f"{os.cpu_count()} {told}".encode()) >> 1)


def agreed(value: int, after: Tree = ()) -> int:
    """What the first process says, on all of them; they call this together.

    Args:
      value: of this process.
      after: is computed first: processes that begin with what they pass on in another order wait for ever.
    """
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    jax.block_until_ready(after)
    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def anywhere(condition: bool) -> bool:
    """Whether a condition holds in any process; they call this together."""
    from jax.experimental import multihost_utils

    return bool(multihost_utils.process_allgather(np.int32(condition)).any())


def gathered(tree: Tree) -> Tree:
    """The tree, of any devices, on JAX's usual one, and in every process."""
    alone = lambda leaf: leaf if len(leaf.sharding.device_set) == 1 else jnp.asarray(host(leaf))
    return jax.tree.map(alone, tree)


def _specs(axes: Any) -> Any:
    spec = lambda axis: Spec() if axis is None else Spec(SEED_AXIS)
    return jax.tree.map(spec, axes, is_leaf=lambda axis: axis is None)
