"""Random numbers are of the seed alone: whatever JAX's settings, compiled or not, in turn or side by side."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cljax import data, keys, methods, networks, streams, training
from cljax.training.driver import drive
from cljax.training.plan import clocks
from cljax.types import Schedule
from tests.shared import assert_close

DRAWS = [
    lambda key: jax.random.permutation(key, 17),
    lambda key: jax.random.normal(key, (3, 5)),
    lambda key: jax.random.bits(key, (7,), jnp.uint8),
    lambda key: jax.random.bits(key, (), jnp.uint16),
    lambda key: jax.random.key_data(jax.random.split(key, (2, 3))),
    lambda key: jax.random.uniform(jax.random.fold_in(key, 5), (2, 2)),
    lambda key: jax.random.bits(key, (0,)),
    lambda key: jax.random.bits(key, (2, 3, 130)),
]


@contextlib.contextmanager
def other_settings(impl="rbg", partitionable=False):
    with jax.default_prng_impl(impl), jax.threefry_partitionable(partitionable):
        yield


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_numbers_are_jax_s_own_by_default_and_the_same_by_any_setting(impl):
    for seed in (0, 7, 2**32 - 1):
        plain = jax.random.key(seed, impl="threefry2x32")
        wanted = [np.asarray(one(plain)) for one in DRAWS]
        for partitionable in (True, False):
            with other_settings(impl, partitionable):
                found = [one(keys.make_key(seed)) for one in DRAWS]
            for one, other in zip(found, wanted, strict=True):
                np.testing.assert_array_equal(one, other)


def test_side_by_side_is_in_turn_and_compiled_is_plain():
    with other_settings():
        several = jax.random.split(keys.make_key(7), 3)
        together = jax.jit(jax.vmap(lambda key: [one(key) for one in DRAWS]))(several)
        for number in range(3):
            for one, all_of_them in zip(DRAWS, together, strict=True):
                np.testing.assert_array_equal(all_of_them[number], one(several[number]))


def test_wide_numbers_and_keys_are_those_of_64_bits():
    with jax.enable_x64(True):
        plain = jax.random.key(3 + 2**32, impl="threefry2x32")
        np.testing.assert_array_equal(
            jax.random.bits(keys.make_key(3 + 2**32), (5,), jnp.uint64), jax.random.bits(plain, (5,), jnp.uint64)
        )


def test_seeds_are_different_keys_and_others_are_refused():
    seeds = (3, 3 + 2**32, 3 + 2**62, 2**63 - 1, 0)
    assert len({tuple(jax.random.key_data(keys.make_key(seed)).tolist()) for seed in seeds}) == len(seeds)
    for wrong in (-1, 2**63, 2**64, 1.5, 2.0, None, float("nan"), True, "3"):
        with pytest.raises(ValueError, match=r"seed is .*, but must be a whole number from 0"):
            keys.make_key(wrong)


def test_keys_of_others_are_taken_over():
    words = lambda key: jax.random.key_data(keys.as_own(key)).tolist()
    for impl in ("threefry2x32", "rbg", "unsafe_rbg"):
        assert words(jax.random.key(7, impl=impl)) == [0, 7]
    assert words(jax.random.PRNGKey(7)) == [0, 7]
    made = keys.make_key(2**40)
    assert words(made) == jax.random.key_data(made).tolist()
    four = [jax.random.wrap_key_data(jnp.array([1, 2, *more], jnp.uint32), impl="rbg") for more in ((3, 4), (4, 3))]
    assert len({tuple(words(key)) for key in four} | {(1, 2)}) == 3
    assert words(four[0]) == jax.jit(lambda key: jax.random.key_data(keys.as_own(key)))(four[0]).tolist()
    for wrong in (jax.random.split(made, 2), jnp.zeros(3, jnp.uint32), jnp.zeros(2)):
        with pytest.raises(ValueError, match="A run needs one key"):
            keys.as_own(wrong)


def few():
    images = np.random.default_rng(0).integers(0, 256, (24, 2, 2, 1)).astype(np.uint8)
    return data.from_arrays(images, np.arange(24) % 4, images, np.arange(24) % 4)


def test_a_run_and_its_stream_are_the_same_by_any_setting():
    """With dropout; the seeds in turn, each in one program, by default, against side by side under other settings."""
    optimizer, settings = optax.sgd(1.0), training.Settings(batch_size=4, learning_rate=0.1)

    def make(seed):
        stream = streams.permuted(few(), tasks=2, seed=seed, epochs=2)
        network = networks.mlp((2, 2, 1), 4, hidden=(5,), dropout=0.5, mean=stream.mean, std=stream.std)
        return methods.finetune(network), stream

    def in_turn():
        (method, stream), (_, other) = make(3), make(5)
        run = training.make_run(method, optimizer, stream, settings)
        return [run(jax.random.key(seed), one.tables) for seed, one in ((3, stream), (5, other))]

    plain = in_turn()
    with other_settings():
        again = in_turn()
        both = drive(make(3)[0], optimizer, [(seed, make(seed)[1]) for seed in (3, 5)], settings, vectorize=True)
    for one, other, loss, learner in zip(plain, again, both.epochs.loss, both.learners, strict=True):
        jax.tree.map(np.testing.assert_array_equal, other.learner.params, one.learner.params)
        np.testing.assert_allclose(loss, one.epochs.loss, rtol=1e-5)
        assert_close(learner.params, one.learner.params, rtol=1e-4, atol=1e-6)
    assert abs(plain[0].epochs.loss - plain[1].epochs.loss).max() > 1e-3


def test_clocks_of_many_rounds_take_no_time():
    rounds = np.arange(200_000) % 1000
    found = clocks(Schedule(rounds, np.ones_like(rounds), np.ones_like(rounds)))
    np.testing.assert_array_equal(np.flatnonzero(found.first), np.arange(1000))
