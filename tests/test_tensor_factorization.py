"""Tensor factorisation: the published sizes, kernels by their sums, who owns what, trained models as a beginning."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cljax import filters, methods, networks, task_params, training, tucker
from cljax.training.loop import span_of
from cljax.training.start import begin_with
from cljax.training.step import make_learner
from cljax.types import Batch, Tables, make_clock
from tests import conformance

TASKS, CLASSES = 3, 2
NETWORK = networks.cnn((4, 4, 2), CLASSES, channels=((4, 3),), dense=(5,))
PATHS = ("conv_0_0", "conv_0_1")


def maker(method, tasks=TASKS):
    """`key -> learner`."""
    tables = Tables(*(None,) * 5, np.ones((tasks, method.network.outputs), bool))
    return lambda key: make_learner(method, optax.sgd(1.0), tables, 0.1, key)


def learner_of(method, tasks=TASKS):
    """The shapes of a learner."""
    return jax.eval_shape(maker(method, tasks), jax.random.key(0))


def numbers(method, seed=0):
    """A learner of random numbers, not of the method's own."""
    shapes, drawn = learner_of(method), np.random.default_rng(seed)
    draw = lambda leaf: jnp.asarray(drawn.normal(size=leaf.shape), leaf.dtype)
    ones = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), shapes.collections)
    return shapes._replace(params=jax.tree.map(draw, shapes.params), collections=ones, hyper={})


@pytest.mark.parametrize(
    ("data", "tasks", "total", "printed"),
    [
        ("mnist", 10, 1_531_905, "1.5M"),
        ("mnist", 5, 769_025, "0.8M"),
        ("cifar", 10, 3_295_925, "3.3M"),
        ("cifar", 5, 1_656_095, "1.7M"),
    ],
)
def test_parameter_counts_are_those_of_the_df_cnn_paper(data, tasks, total, printed):
    """Binary tasks, two logits each; full ranks: a core as large as all kernels, and its factors."""
    learner = learner_of(methods.tensor_factorization(networks.df_cnn_base(data, 2)), tasks)
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(learner.params))
    assert (count, f"{count / 1e6:.1f}M") == (total, printed)


def made(ranks=0.5):
    method = methods.tensor_factorization(NETWORK, ranks=ranks)
    return method, numbers(method)


def test_a_task_owns_its_row_and_all_but_the_core_and_the_other_factors():
    _, learner = made()
    leaves = dict(zip(task_params.leaf_paths(learner.params), jax.tree.leaves(learner.params), strict=True))
    shared = {path for path in leaves if not task_params.has_rows(path, learner.rows)}
    assert shared == {
        f"{layer}/kernel/{name}" for layer in PATHS for name in ("core", "height", "width", "inputs", "outputs")
    }
    shapes = {name: leaf.shape for name, leaf in learner.params["conv_0_1"]["kernel"].items()}
    assert shapes == {
        "core": (2, 2, 2, 2, 2),
        "height": (3, 2),
        "width": (3, 2),
        "inputs": (4, 2),
        "outputs": (3, 2),
        "task": (3, 2),
    }


def test_a_task_s_kernels_are_sums_over_the_core():
    method, learner = made()
    for task in range(TASKS):
        own = task_params.take_row(learner.params, jnp.int32(task), learner.rows)
        shown, _ = method.view(own, {}, {}, jnp.int32(task), None)
        for layer in PATHS:
            parts = {name: np.asarray(leaf, np.float64) for name, leaf in learner.params[layer]["kernel"].items()}
            factors = [parts[name] for name in filters.TUCKER]
            expected = np.einsum("abcde,ha,wb,ic,od,te->thwio", parts["core"], *factors)[task]
            np.testing.assert_allclose(shown[layer]["kernel"], expected, rtol=1e-4, atol=1e-4)


def test_a_step_trains_the_shared_factors_and_the_task_s_row_alone():
    method, learner = made()
    focused = task_params.focus(learner, jnp.int32(1))
    labels, ones = jnp.array([0, 1], jnp.int32), jnp.ones(2, jnp.int32)
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 4, 2)), jnp.float32)
    batch = Batch(images, labels, ones, jnp.ones(2, jnp.float32), ones)
    clock = make_clock(task=1, newest=1, classes=np.ones((TASKS, CLASSES), bool))
    gradients = jax.jit(jax.grad(lambda params: method.loss(params, focused, clock, batch, None)[0]))(focused.params)
    mask, _ = method.update_mask(focused, clock)
    assert all(np.all(leaf == 1) for leaf in jax.tree.leaves(mask))
    kernel = gradients["conv_0_0"]["kernel"]
    assert all(np.any(leaf != 0) for leaf in kernel.values())
    assert kernel["task"].shape == (2,)
    plain, _ = method.view(focused.params, {}, {}, clock.task, None)
    whole = lambda params: NETWORK.apply(params, focused.collections, images).logits
    cross = lambda params: -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(whole(params)), labels[:, None], 1))
    by_kernel = np.asarray(jax.jit(jax.grad(cross))(plain)["conv_0_0"]["kernel"], np.float64)
    parts = {name: np.asarray(leaf, np.float64) for name, leaf in focused.params["conv_0_0"]["kernel"].items()}
    four = [parts[name] for name in filters.TUCKER[:-1]]
    expected = np.einsum("abcde,ha,wb,ic,od,hwio->e", parts["core"], *four, by_kernel)
    np.testing.assert_allclose(kernel["task"], expected, rtol=1e-4, atol=1e-4 * np.max(np.abs(expected)))


def test_random_kernels_are_as_large_as_the_network_s_own_and_differ_by_task():
    network = networks.cnn((4, 4, 16), CLASSES, channels=((32,),), dense=())
    method = methods.tensor_factorization(network, ranks=0.5)
    learner = jax.jit(maker(method, 8))(jax.random.key(0))
    rows = [task_params.take_row(learner.params, jnp.int32(task), learner.rows) for task in range(8)]
    kernels = np.stack([method.view(own, {}, {}, None, None)[0]["conv_0_0"]["kernel"].ravel() for own in rows])
    np.testing.assert_allclose(np.mean(kernels), 0, atol=2e-3)
    np.testing.assert_allclose(np.std(kernels, axis=1), math.sqrt(1 / (9 * 16)), rtol=0.15)
    alike = np.corrcoef(kernels)[np.triu_indices(8, 1)]
    assert np.max(np.abs(alike)) < 0.98


def test_with_full_ranks_it_begins_as_the_trained_models():
    single = methods.single_task(NETWORK)
    trained = numbers(single, 1)
    method, learner = made(1.0)
    begun = jax.jit(methods.start_from_models)(learner, trained)
    images = jnp.asarray(np.random.default_rng(0).normal(size=(4, 4, 4, 2)), jnp.float32)
    for task in range(TASKS):
        expected = single.predict(trained, images, jnp.int32(task))
        found = method.predict(begun, images, jnp.int32(task))
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.max(np.abs(expected)))
    for name in ("dense_0", "head"):
        assert jax.tree.all(jax.tree.map(np.array_equal, begun.params[name], trained.params[name]))
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), begun) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), learner
    )


def test_with_ranks_found_in_trained_kernels_it_begins_near_them():
    trained = numbers(methods.single_task(NETWORK), 1)
    ranks = {f"{layer}/kernel": (2, 3, 2, 3, 2) for layer in PATHS}
    begun = methods.start_from_models(made(ranks)[1], trained)
    for layer in PATHS:
        tensor = jnp.moveaxis(trained.params[layer]["kernel"], 0, -1)
        near = tucker.product(*tucker.decompose(tensor, ranks[f"{layer}/kernel"]))
        parts = begun.params[layer]["kernel"]
        found = tucker.product(parts["core"], [parts[name] for name in filters.TUCKER])
        np.testing.assert_allclose(found, near, atol=1e-5)
        assert parts["core"].shape == (2, 3, 2, 3, 2)


def test_a_run_goes_on_from_it_as_from_a_past_of_no_rounds():
    method, begun = made()
    none = training.Evaluation(*(np.zeros((0, TASKS), kind) for kind in [np.float32] * 3 + [np.uint32]))
    past = training.Past(begun._replace(params=jax.tree.map(jnp.ones_like, begun.params)), none)
    found = begin_with(method, begun, training.Start({}, {}, past))
    assert jax.tree.all(jax.tree.map(lambda leaf: bool(np.all(leaf == 1)), found.params))
    assert span_of([past], None, conformance.stream())[0] == 0


@pytest.mark.parametrize(
    ("ranks", "words"),
    [
        (
            {"conv_9/kernel": (1,) * 5},
            "which is no convolution kernel of the network. Its kernels are: conv_0_0/kernel",
        ),
        ({"conv_0_0/kernel": (1, 1)}, "one number for each of height, width, inputs, outputs, task"),
        ({"conv_0_0/kernel": (4, 1, 1, 1, 1)}, "is 4, but must be a whole number from 1 to 3"),
        (0.0, "tensor_factorization's ranks is 0"),
        (1.5, "tensor_factorization's ranks is 1.5"),
    ],
)
def test_ranks_that_do_not_fit_are_refused(ranks, words):
    with pytest.raises(ValueError, match=words):
        methods.tensor_factorization(NETWORK, ranks=ranks)


def test_ranks_are_no_more_than_a_tensor_has():
    """Of `[1, 1, 2, 7]` and two tasks the outputs' unfolding has rank 4 at most."""
    network = networks.cnn((4, 4, 2), CLASSES, channels=((7,),), kernel=1, dense=())
    learner = learner_of(methods.tensor_factorization(network), 2)
    assert learner.params["conv_0_0"]["kernel"]["core"].shape == (1, 1, 2, 4, 2)


def test_a_network_without_convolutions_is_refused():
    with pytest.raises(ValueError, match="this network has none"):
        methods.tensor_factorization(networks.mlp((3,), 2))
