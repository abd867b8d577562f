"""Networks that compute in bfloat16: by the network of rounded parameters, gradients in float32, bits of old tasks."""

from __future__ import annotations

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cljax import losses, methods, networks, report, streams, training
from cljax.training.step import init_shapes
from tests import conformance
from tests.shared import small

NETWORKS = {
    "mlp, feature": lambda: networks.mlp((4, 4, 1), 3, hidden=(5, 6), normalization="feature", dropout=0.5),
    "cnn, batch": lambda: networks.cnn((4, 4, 1), 3, channels=((3,), (4,)), dense=(5,), normalization="batch"),
    "resnet": lambda: networks.resnet((8, 8, 3), 3, blocks=(1, 1), channels=(3, 4)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_it_is_the_network_of_rounded_parameters_and_learns_in_float32(name):
    exact = NETWORKS[name]()
    rough = networks.in_bfloat16(exact)
    params, collections = jax.jit(rough.init)(jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    images = np.random.default_rng(1).uniform(size=(6, *exact.inputs)).astype(np.float32)
    key, labels = jax.random.key(2), np.arange(6) % 3

    def loss(params, network):
        output = network.apply(params, collections, images, key=key)
        return losses.cross_entropy(output.logits.astype(jnp.float32), labels).mean(), output

    compiled = functools.partial(jax.jit, static_argnums=1, compiler_options={"xla_allow_excess_precision": False})
    learn = compiled(jax.value_and_grad(loss, has_aux=True))
    (value, output), gradients = learn(params, rough)
    assert {leaf.dtype for leaf in jax.tree.leaves((gradients, output.logits, output.features, output.maps))} == {
        jnp.dtype("float32")
    }
    chex.assert_trees_all_equal_shapes_and_dtypes(output.collections, collections)
    rounded = jax.tree.map(lambda leaf: np.asarray(leaf).astype(jnp.bfloat16), params)
    (near, by_hand), wanted = learn(rounded, exact)
    assert by_hand.logits.dtype == jnp.bfloat16
    np.testing.assert_array_equal(output.logits, np.asarray(by_hand.logits, np.float32))
    for gate, values in output.activations.items():
        np.testing.assert_array_equal(values, np.asarray(by_hand.activations[gate], np.float32))
    assert value == near
    chex.assert_trees_all_equal(gradients, jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), wanted))


@pytest.mark.parametrize(
    "name", ["progressive", "hat", "df_cnn", "feature_extraction", "icarl", "tensor_factorization"]
)
def test_what_a_method_adds_is_in_float32_too(name):
    rough = networks.in_bfloat16(networks.cnn((8, 8, 1), 3, channels=((3,),), dense=(5,)))
    method = getattr(methods, name)(rough)
    assert "bfloat16" not in {str(leaf.dtype) for leaf in jax.tree.leaves(init_shapes(method, tasks=2))}
    batch = jax.ShapeDtypeStruct((2, 8, 8, 1), jnp.float32)
    make = lambda: training.make_learner(method, optax.sgd(1.0), conformance.stream().tables, 0.1, jax.random.key(0))
    logits = jax.eval_shape(lambda inputs: method.predict(make(), inputs, jnp.int32(1)), batch)
    assert logits.dtype == jnp.float32


def test_updates_smaller_than_bfloat16_resolves_are_not_lost_and_no_bit_of_old_logits_moves():
    stream = conformance.stream(schedule=streams.visits(((0, 1), (1, 1))))
    method = methods.tfm(networks.in_bfloat16(small(stream, normalization="feature")))
    settings = training.Settings(batch_size=32, learning_rate=1e-5)  # the weights' last bit in bfloat16 is about 1e-3
    outcome = training.drive(method, conformance.OPTIMIZERS["momentum"][0], [(0, stream)], settings)
    make = lambda key: training.make_learner(method, conformance.OPTIMIZERS["momentum"][0], stream.tables, 1e-5, key)
    start = jax.eval_shape(make, jax.random.key(0))
    learned = outcome.learners[0].params
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(learned))
    assert start.params["dense_0"]["kernel"].dtype == jnp.float32
    kernel = np.asarray(learned["dense_0"]["kernel"])
    assert (kernel != kernel.astype(jnp.bfloat16).astype(np.float32)).mean() > 0.9
    assert report.zero_forgetting(outcome.evaluation.fingerprint, stream.schedule.task)
