"""Numbers: what is none, or out of bounds, is named with what it must be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cljax import methods, networks
from cljax.numbers import check_dtype, real, show, whole
from cljax.streams import division
from cljax.training.step import init_shapes


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3), np.array(3), jnp.int32(3)])
def test_whole_numbers_of_every_kind(value):
    assert whole("tasks", value) == 3
    assert type(whole("tasks", value)) is int


@pytest.mark.parametrize(
    "value", [True, np.bool_(True), 2.0, float("nan"), None, "3", b"3", [3], np.array([1, 2]), 2**31, -1, 10**60]
)
def test_what_is_no_whole_number(value):
    with pytest.raises(ValueError, match=r"tasks is .*, but must be a whole number from 0 to 2147483647"):
        whole("tasks", value)


@pytest.mark.parametrize("value", [2, 2.0, np.float32(2), np.array(2.0), jnp.float32(2)])
def test_real_numbers_of_every_kind(value):
    assert real("rate", value, above=0) == 2.0
    assert type(real("rate", value)) is float


@pytest.mark.parametrize("value", [True, None, "2", float("inf"), float("nan"), 1e39, [1.0, 2.0], 0, 3.5])
def test_what_is_no_real_number(value):
    with pytest.raises(ValueError, match=r"rate is .*, but must be a finite number above 0 and of at most 3"):
        real("rate", value, above=0, most=3)


def test_each_bound():
    assert real("x", 0, least=0) == 0
    assert real("x", 1, most=1) == 1
    for bound in ({"least": 1}, {"above": 0}, {"most": -1}, {"below": 0}):
        with pytest.raises(ValueError, match="x is 0"):
            real("x", 0, **bound)


def test_a_traced_number_is_known_only_when_the_program_runs():
    assert jax.jit(lambda x: real("temperature", x, above=0) * 2)(jnp.float32(-1)) == -2


def test_a_long_number_is_not_printed():
    assert show(10**5000) == "a number of more than 50 digits"
    assert len(show("x" * 1000)) == 60


@pytest.mark.parametrize("value", [1e-46, -1e-40, 1e-38])
def test_what_float32_takes_for_nothing_is_refused(value):
    with pytest.raises(ValueError, match=r"rate is .*, which float32 cannot tell from 0"):
        real("rate", value, least=None)
    assert real("rate", 0) == 0.0


@pytest.mark.parametrize("value", [[1.5], "1", jax.eval_shape(jax.random.key, 0)])
def test_what_has_no_kind_is_no_array_of_whole_numbers(value):
    with pytest.raises(ValueError, match=r"labels is .*, but must be whole numbers"):
        check_dtype("labels", value, "int")


def test_one_number_in_an_array_is_one_number():
    network = networks.mlp((4,), 2, hidden=(8,))
    for make, option in ((methods.tfm, "growth"), (methods.packnet, "prune"), (methods.clnp, "l1")):
        hyper = init_shapes(make(network, **{option: np.array(0.5)}))[3]
        assert option in hyper
    assert division.fractions(np.array(0.5), 2) == [0.5, 0.5]
