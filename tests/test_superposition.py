"""Superposition: a kernel's rows times the context are the inputs times it, and contexts never change."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from cljax import networks
from cljax.methods.superposition import superposition
from cljax.types import Batch, Sizes, make_clock
from tests.zero_forgetting import single

KEY = jax.random.key(0)


def bound(method, learner, task=1):
    return method.view(learner.params, learner.collections, learner.method_state, jnp.int32(task), None)


def signs(learner, name):
    return np.where(learner.collections["context"][name]["kernel"], 1, -1).astype(np.float32)


@pytest.mark.parametrize("shared_head", [False, True])
def test_a_perceptron_computes_with_its_inputs_times_the_context_pixels_included(shared_head):
    network = networks.mlp((5, 4, 1), 3, hidden=(6, 4), **({"per_task": ()} if shared_head else {}))
    method = superposition(network)
    learner = single(method, network)
    inputs = jax.random.normal(KEY, (7, 5, 4, 1))
    shown, collections = bound(method, learner)
    values = np.asarray(inputs).reshape(7, -1)
    for name in ("dense_0", "dense_1"):
        layer, context = learner.params[name], signs(learner, name)
        exact = jnp.asarray(values * context) @ layer["kernel"]
        np.testing.assert_array_equal(exact, jnp.asarray(values) @ shown[name]["kernel"], "by bits")
        values = np.maximum(np.asarray(exact) + np.asarray(layer["bias"]), 0)
    values = values * signs(learner, "head") if shared_head else values
    logits = values @ np.asarray(learner.params["head"]["kernel"]) + np.asarray(learner.params["head"]["bias"])
    np.testing.assert_allclose(network.apply(shown, collections, inputs).logits, logits, rtol=1e-5, atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, bound(method, learner, task=0)[0], learner.params)
    contexts = jax.tree.leaves(learner.collections["context"])
    assert [leaf.shape for leaf in contexts] == [(20,), (6,), *([(4,)] if shared_head else [])]
    assert method.per_task[len(network.per_task) :][:2] == ("context/dense_0/kernel", "context/dense_1/kernel")


def test_a_convolution_computes_with_its_patches_times_the_context():
    network = networks.cnn((6, 6, 2), 3, channels=((4,),), dense=())
    method = superposition(network)
    learner = single(method, network)
    inputs, context = jax.random.normal(KEY, (3, 6, 6, 2)), signs(learner, "conv_0_0")
    assert context.shape == (3, 3, 2), "a sign for each place of the window and channel"
    assert 4 < (context > 0).sum() < 14
    patches = lax.conv_general_dilated_patches(
        inputs, (3, 3), (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    patches = (
        np.asarray(patches).reshape(3, 6, 6, 2, 3, 3).transpose(0, 1, 2, 4, 5, 3)
    )  # channels come first in a patch
    layer = learner.params["conv_0_0"]
    expected = np.einsum("nxyhwc,hwco->nxyo", patches * context, np.asarray(layer["kernel"])) + np.asarray(
        layer["bias"]
    )
    expected = np.maximum(expected, 0).reshape(3, 3, 2, 3, 2, 4).max((2, 4))
    np.testing.assert_allclose(network.apply(*bound(method, learner), inputs).maps, expected, rtol=1e-5, atol=1e-5)


def test_what_a_task_puts_in_it_reads_by_bits_and_what_others_put_in_is_noise_of_mean_zero():
    """The weights of eight tasks in one kernel: one task reads its own, and of each other seven a random part."""
    network = networks.mlp((400,), 2, hidden=(50,))
    method = superposition(network)
    tasks = jax.vmap(lambda key: method.init(key, Sizes(8, 2, {}))[:2])(jax.random.split(KEY, 8))
    weights, contexts = tasks[0]["dense_0"]["kernel"], tasks[1]["context"]["dense_0"]["kernel"]
    sign = np.where(contexts, 1, -1)[..., None]
    assert len({row.tobytes() for row in np.asarray(contexts)}) == 8, "each task has a context of its own"
    read = lambda stored, task: np.where(np.asarray(contexts)[task][:, None], stored, -stored)
    np.testing.assert_array_equal(read(read(np.asarray(weights)[3], 3), 3), np.asarray(weights)[3])
    stored = np.sum(sign * np.asarray(weights), axis=0)
    noise = read(stored, 3) - np.asarray(weights)[3]
    variance = np.asarray(weights).var()
    np.testing.assert_allclose(noise.var(), 7 * variance, rtol=0.05)
    assert abs(noise.mean()) < 3 * np.sqrt(7 * variance / noise.size)
    inputs = np.asarray(jax.random.normal(KEY, (100, 400)))
    clean, noisy = inputs @ np.asarray(weights)[3], inputs @ noise
    assert abs(np.corrcoef(clean.ravel(), noisy.ravel())[0, 1]) < 0.05


def test_a_step_s_gradient_is_that_of_the_bound_kernel_times_the_context_and_contexts_stay():
    network = networks.mlp((5,), 2, hidden=(4,))
    method = superposition(network)
    learner = single(method, network)
    ones = jnp.ones(6, jnp.int32)
    batch = Batch(jax.random.normal(KEY, (6, 5)), jnp.array([0, 1, 1, 0, 1, 0]), ones, ones, jnp.ones(6))
    clock = make_clock(task=1, classes=np.ones([2, 2], bool))
    plain = lambda params: method.loss(params, learner, clock, batch, KEY)
    gradients, (output, _) = jax.grad(plain, has_aux=True)(learner.params)
    shown, collections = bound(method, learner)

    def unbound(params):
        logits = network.apply(params, collections, batch.inputs, key=KEY).logits
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), batch.labels[:, None], axis=1))

    expected = jax.grad(unbound)(shown)
    context = signs(learner, "dense_0")[:, None]
    np.testing.assert_allclose(
        gradients["dense_0"]["kernel"], context * expected["dense_0"]["kernel"], rtol=1e-5, atol=1e-7
    )
    np.testing.assert_allclose(gradients["dense_0"]["bias"], expected["dense_0"]["bias"], rtol=1e-5, atol=1e-7)
    jax.tree.map(np.testing.assert_array_equal, output.collections["context"], learner.collections["context"])


def test_a_network_whose_tasks_share_no_kernel_is_refused():
    network = networks.mlp((5,), 2, hidden=(4,))
    with pytest.raises(ValueError, match=r"context to every kernel that tasks share.*Give it a hidden layer"):
        superposition(network._replace(per_task=(*network.per_task, "dense_0/kernel")))
