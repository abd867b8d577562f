"""Random keys of runs and streams, whose numbers depend on the seed alone and on none of JAX's global settings.

They are threefry keys, hashed counter by counter as JAX does by default (`jax_threefry_partitionable`): the same bits,
with any `jax_default_prng_impl`, on any device, and for seeds side by side under `vmap` as for seeds in turn.
`jax.random.poisson` refuses them: it takes JAX's own.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.random import define_prng_impl, threefry2x32_p, threefry_prng_impl

from cljax.numbers import show, whole
from cljax.types import Array

LARGEST_SEED = 2**63 - 1
_ROTATIONS = (13, 15, 26, 6), (17, 29, 16, 24)


def _places(shape: tuple[int, ...]) -> Array:
    """The number of each place of an array."""
    size = math.prod(shape)
    if size > 2**32:
        raise ValueError(f"An array of shape {shape} needs more than 2**32 random numbers. Draw it in parts.")
    return lax.iota(jnp.uint32, size).reshape(shape)


def _by_loop(key: Array, low: Array) -> tuple[Array, Array]:
    """By JAX's loop, where numbers have many users: rounds that are written out are compiled into each of them."""
    return tuple(threefry2x32_p.bind(key[0], key[1], jnp.zeros_like(low), low))


def _split(key: Array, shape: tuple[int, ...]) -> Array:
    return jnp.stack(_by_loop(key, _places(shape)), axis=-1)


@jax.jit
def _threefry(key: Array, low: Array) -> tuple[Array, Array]:
    """Threefry-2x32 of 20 rounds, of counters whose high words are 0 (Salmon et al. 2011, section 3.3).

    JAX's own is a loop on CPU, which compiles up to ten times as long, and runs up to four times as long.
    """
    words = key[0], key[1], key[0] ^ key[1] ^ jnp.uint32(0x1BD11BDA)
    left, right = jnp.broadcast_to(words[0], low.shape), low + words[1]
    for turn in range(1, 6):
        for bits in _ROTATIONS[1 - turn % 2]:
            left = left + right
            right = left ^ (right << bits | right >> (32 - bits))
        left, right = left + words[turn % 3], right + (words[(turn + 1) % 3] + jnp.uint32(turn))
    return left, right


def _random_bits(key: Array, width: int, shape: tuple[int, ...]) -> Array:
    hashed = _by_loop if width == 8 else _threefry  # as float8, the other did not compile in a minute (jaxlib 0.12)
    first, second = hashed(key, _places(shape))
    if width == 64:
        return (first.astype(jnp.uint64) << jnp.uint64(32)) | second.astype(jnp.uint64)
    return (first ^ second).astype({8: jnp.uint8, 16: jnp.uint16, 32: jnp.uint32}[width])


_IMPL: Any = define_prng_impl(
    key_shape=(2,),
    seed=threefry_prng_impl.seed,
    split=_split,
    random_bits=_random_bits,
    fold_in=threefry_prng_impl.fold_in,
    name="cljax_threefry2x32",
    tag="cljax",
)


def make_key(seed: int) -> Array:
    """The key of a seed: for seeds below 2**32 the numbers of `jax.random.key(seed, impl='threefry2x32')`.

    Args:
      seed: from 0 to 2**63 - 1; all give different keys, with `jax_enable_x64` or without.

    Raises:
      ValueError: for any other.

    Example:
      >>> import jax
      >>> from cljax.keys import make_key
      >>> jax.random.key_data(make_key(3)).tolist(), jax.random.key_data(make_key(3 + 2**32)).tolist()
      ([0, 3], [1, 3])
    """
    high, low = divmod(whole("seed", seed, most=LARGEST_SEED), 2**32)
    return jax.random.wrap_key_data(jnp.asarray(np.array([high, low], np.uint32), jnp.uint32), impl=_IMPL)


def as_own(key: Array) -> Array:
    """Any key as one of these: threefry keys keep their numbers, and so do those that JAX made of a seed.

    Args:
      key: a scalar key, of `make_key`, of JAX or the older uint32 array.

    Raises:
      ValueError: a key of neither two nor four words.

    Example:
      >>> import jax
      >>> from cljax.keys import as_own
      >>> [jax.random.key_data(as_own(jax.random.key(3, impl=name))).tolist() for name in ("threefry2x32", "rbg")]
      [[0, 3], [0, 3]]
    """
    if not hasattr(key, "dtype"):
        raise ValueError(f"A run needs one key, such as jax.random.key(0), not {show(key)}.")
    words = jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key
    if words.shape not in ((2,), (4,)) or words.dtype != jnp.uint32:
        raise ValueError(f"A run needs one key, such as jax.random.key(0), not {key.dtype} of shape {key.shape}.")
    first = words[:2]
    if words.shape == (4,):  # RBG's: those of a seed are its two words twice, others are hashed
        more = words[2:] ^ first
        folded = jax.random.wrap_key_data(first, impl=_IMPL)
        for word in more:
            folded = jax.random.fold_in(folded, word)
        first = jnp.where(jnp.all(more == 0), first, jax.random.key_data(folded))
    return jax.random.wrap_key_data(first, impl=_IMPL)
