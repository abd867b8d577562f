"""Elastic weight consolidation and less-forgetting learning: reference values, gradients in closed form, what moves."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cljax import importance, methods, streams, task_params, training
from cljax.types import Batch, make_clock
from tests import conformance, shared
from tests.plain import make_visit
from tests.regression import (
    FIRST,
    INPUTS,
    KERNEL,
    SECOND,
    Fold,
    batch_of,
    enumerated,
    gradient_of,
    learner_of,
    softmax_regression,
)

SETTINGS = training.Settings(batch_size=16, learning_rate=0.05, evaluation_batch=32)
SGD = optax.sgd(1.0, momentum=0.9)
small = functools.partial(shared.small, hidden=(8, 6))

REFERENCE = {  # spec 8, transposed: an input's row, a class's column
    "exact": [[1 / 6, 1 / 6, 1 / 6], [1 / 6, 1 / 6, 1 / 6]],
    "empirical": [[1 / 4, 1 / 12, 1 / 6], [1 / 6, 1 / 6, 1 / 6]],
    "batched": enumerated("batched", np.zeros([2, 3])),
}


@pytest.mark.parametrize("kind", REFERENCE)
def test_the_fisher_information_of_reference_and_its_penalty_and_gradient(kind):
    np.testing.assert_allclose(enumerated(kind, np.zeros([2, 3])), REFERENCE[kind])
    method = methods.ewc(softmax_regression(), strength=6.0, fisher=kind, chunk=2)
    learner = method.end_phase(learner_of(method), FIRST, Fold(), jax.random.key(0))
    found = learner.method_state.terms["ewc"]["importance"]["kernel"]
    np.testing.assert_allclose(found, REFERENCE[kind], rtol=1e-6)
    moved = learner._replace(params={**learner.params, "kernel": KERNEL})
    value, gradients = gradient_of(method, moved, SECOND, batch_of())
    plain, slopes = gradient_of(methods.finetune(method.network), moved, SECOND, batch_of())
    fisher = np.asarray(REFERENCE[kind])
    np.testing.assert_allclose(value - plain, 3.0 * (fisher * KERNEL**2).sum(), rtol=1e-5)
    np.testing.assert_allclose(gradients["kernel"] - slopes["kernel"], 6.0 * fisher * KERNEL, atol=1e-6)
    again = method.end_phase(moved, SECOND, Fold(), jax.random.key(0))
    second = again.method_state.terms["ewc"]["importance"]["kernel"] - fisher
    np.testing.assert_allclose(second, enumerated(kind, KERNEL), rtol=1e-5)
    assert (again.method_state.teacher["params"]["kernel"] == KERNEL).all(), "the anchor moves"


def test_what_was_measured_before_decays():
    """To 1/4 of the first task's at the second; a sweep's number takes the place of the option's."""
    method = methods.ewc(softmax_regression(), fisher="empirical", decay=0.5)
    learner = method.end_phase(learner_of(method), FIRST, Fold(), jax.random.key(0))
    moved = learner._replace(params={**learner.params, "kernel": KERNEL})
    for decay in (0.5, 0.25):
        given = moved._replace(hyper={**moved.hyper, "decay": jnp.float32(decay)})
        after = method.end_phase(given, SECOND, Fold(), jax.random.key(0))
        expected = decay * np.asarray(REFERENCE["empirical"]) + enumerated("empirical", KERNEL)
        np.testing.assert_allclose(after.method_state.terms["ewc"]["importance"]["kernel"], expected, rtol=1e-5)
    assert float(moved.hyper["decay"]) == 0.5


def test_separate_penalties_have_an_anchor_each_and_a_further_visit_replaces_its_own():
    method = methods.ewc(softmax_regression(), strength=6.0, penalty="separate")
    base, end = methods.finetune(method.network), jax.jit(lambda *args: method.end_phase(*args[:2], Fold(), args[2]))
    learner, kernels = learner_of(method), {}
    for task, kernel in ((0, KERNEL), (1, -KERNEL), (0, 2 * KERNEL)):
        clock = make_clock(task=task, newest=min(len(kernels), 1), classes=SECOND.classes)
        learner = end(learner._replace(params={**learner.params, "kernel": kernel}), clock, jax.random.key(0))
        kernels[task] = np.asarray(kernel)
        state = learner.method_state.terms["ewc"]
        for seen, anchor in kernels.items():
            np.testing.assert_array_equal(state["anchors"]["kernel"][seen], anchor)
            np.testing.assert_allclose(state["importance"]["kernel"][seen], enumerated("exact", anchor), rtol=1e-5)
        if len(kernels) == 1:
            assert not np.asarray(state["importance"]["kernel"][1]).any()
    assert learner.method_state.teacher is None
    for task in (0, 1):  # of two tasks seen, the other one holds
        clock = make_clock(task=task, newest=1, classes=SECOND.classes)
        (value, gradients), (plain, slopes) = (gradient_of(one, learner, clock, batch_of()) for one in (method, base))
        fisher, way = enumerated("exact", kernels[1 - task]), np.asarray(learner.params["kernel"]) - kernels[1 - task]
        np.testing.assert_allclose(value - plain, 3 * (fisher * way**2).sum(), rtol=1e-4)
        np.testing.assert_allclose(gradients["kernel"] - slopes["kernel"], 6 * fisher * way, atol=1e-5)
    with pytest.raises(ValueError, match=r"ewc's decay is 0\.5, but separate penalties have none"):
        methods.ewc(softmax_regression(), penalty="separate", decay=0.5)


def test_fisher_of_sampled_labels_is_by_the_visit_s_key():
    method = methods.ewc(softmax_regression(), fisher="sampled")
    end = lambda seed: method.end_phase(learner_of(method), FIRST, Fold(), jax.random.key(seed))
    one, same, other = (end(seed).method_state.terms["ewc"]["importance"]["kernel"] for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


def test_several_labels_an_example_have_no_softmax():
    method = methods.ewc(softmax_regression())

    def fold(fn, carry, split="train"):
        return fn(carry, batch_of(labels=jnp.ones([4, 3])))

    with pytest.raises(ValueError, match="ewc's Fisher information is of a softmax"):
        method.end_phase(learner_of(method), SECOND, fold, jax.random.key(0))
    with pytest.raises(ValueError, match="ewc's fisher is 'true', but must be one of exact, sampled"):
        methods.ewc(softmax_regression(), fisher="true")


def test_anchor_and_fisher_are_those_of_the_last_task_at_the_third_too():
    """State baked into the program at the first trace would still anchor to the first task. Heads have no part."""
    stream = conformance.stream(epochs=2)
    method = methods.ewc(small(stream), strength=10.0)
    engine = training.make_engine(
        method, SGD, SETTINGS, scenario="task", max_examples=streams.max_examples(stream.tables)
    )
    fit, key = jax.jit(make_visit(engine, longest=2)), jax.random.key(0)
    learner, sums = jax.jit(engine.init)(key, stream.tables), []
    for task in range(3):
        learner, _ = fit(learner, make_clock(round=task, task=task), stream.tables, key, jnp.asarray([2]))
        state = learner.method_state
        np.testing.assert_array_equal(state.teacher["params"]["dense_0"]["kernel"], learner.params["dense_0"]["kernel"])
        assert state.terms["ewc"]["importance"]["head"] == {"bias": None, "kernel": None}
        sums.append(np.asarray(state.terms["ewc"]["importance"]["dense_1"]["kernel"]))
    assert all((new >= old).all() for old, new in itertools.pairwise(sums))
    assert 0 < sums[0].sum() < sums[1].sum() < sums[2].sum()
    assert engine.step.traces == 1


# Less-forgetting learning


def test_lfl_is_half_the_squared_way_of_the_features_and_so_is_its_gradient():
    method = methods.lfl(softmax_regression(), strength=0.5)
    learner = learner_of(method, scale=jnp.array([1.5, 0.5]), kernel=KERNEL)  # the teacher's are one
    value, gradients = gradient_of(method, learner, SECOND, batch_of((1.0, 1.0, 1.0, 0.0)))
    plain, slopes = gradient_of(methods.finetune(method.network), learner, SECOND, batch_of((1.0, 1.0, 1.0, 0.0)))
    way = np.asarray(INPUTS)[:3] * np.array([0.5, -0.5])
    np.testing.assert_allclose(value - plain, 0.25 * (way**2).sum(1).mean(), rtol=1e-5)
    expected = 0.5 * (way * np.asarray(INPUTS)[:3]).mean(0)
    np.testing.assert_allclose(gradients["scale"] - slopes["scale"], expected, rtol=1e-4)
    np.testing.assert_allclose(gradients["kernel"], slopes["kernel"], rtol=1e-5)
    np.testing.assert_allclose(
        gradient_of(method, learner, FIRST, batch_of())[0],
        gradient_of(methods.finetune(method.network), learner, FIRST, batch_of())[0],
        rtol=1e-6,
    )


@pytest.mark.parametrize("build", [methods.lfl, lambda network: methods.build("ewc+lfl", network)])
def test_a_shared_head_s_boundary_is_frozen_after_the_first_task_and_own_heads_are_not(build):
    """By the method and by the term, as long as it has a strength."""
    shared = build(softmax_regression())
    learner = learner_of(shared)
    name = "strength" if "lfl.strength" not in learner.hyper else "lfl.strength"
    off = learner._replace(hyper={**learner.hyper, name: jnp.float32(0)})
    for newest, one, trained in ((0, learner, 1), (1, learner, 0), (1, off, 1)):
        masks, _ = shared.update_mask(one, make_clock(task=newest, newest=newest))
        assert (float(masks["scale"]), float(masks["kernel"])) == (1, trained)
    stream = conformance.stream()
    own = build(small(stream))
    learner = learner_of(own)
    masks, _ = own.update_mask(learner, make_clock(task=1))
    assert {float(leaf) for leaf in jax.tree.leaves(masks)} == {1}
    normed = small(stream, normalization="feature")._replace(per_task=("norm_0/scale", "norm_0/bias"))
    mixed = build(normed)
    masks, _ = mixed.update_mask(learner_of(mixed), make_clock(task=1))
    held = {path for path, leaf in task_params.by_path(masks).items() if float(leaf) == 0}
    assert held == {"head/kernel", "head/bias"}, "the head is shared, though a norm is not"


def test_the_teacher_s_features_are_of_evaluation_mode_and_the_student_s_of_training():
    """With dropout and batch normalisation the two differ though the parameters are the same, and a gradient flows."""
    stream = conformance.stream()
    method = methods.lfl(small(stream, normalization="batch", dropout=0.5))
    learner = learner_of(method)
    tables = jax.device_put(stream.tables)
    batch = streams.sequential(tables, tables.train, jnp.int32(1), jnp.int32(0), 16)
    clock = make_clock(task=1, classes=stream.tables.classes)

    @jax.jit
    def kept(params, key):
        return method.loss(params, learner, clock, batch, key)[1][1]["features"]

    assert kept(learner.params, None) < 1e-10
    network, found = method.network, kept(learner.params, jax.random.key(0))
    respond = lambda key: network.apply(learner.params, learner.collections, batch.inputs, key=key).features
    way = np.asarray(jax.jit(respond)(jax.random.key(0))) - np.asarray(jax.jit(lambda: respond(None))())
    np.testing.assert_allclose(found, 0.5 * np.square(way).sum(-1).mean(), rtol=1e-4)
    assert found > 0.01
    slopes = jax.grad(kept)(learner.params, jax.random.key(0))
    assert np.abs(slopes["dense_0"]["kernel"]).max() > 1e-4
    assert not np.asarray(slopes["head"]["kernel"]).any()


@pytest.mark.parametrize("name", ["ewc", "imm", "mas"])
def test_what_is_measured_at_the_end_of_a_visit_is_of_evaluation_mode(name):
    """By Jacobians of the network without dropout, and with its stored statistics."""
    stream = conformance.stream()
    network = small(stream, hidden=(5,), normalization="batch", dropout=0.5)
    method = getattr(methods, name)(network)
    learner = learner_of(method)
    batch = shared.sequential(stream.tables, stream.tables.train, 0, 0, 6)
    fold = lambda fn, carry, split="train": fn(carry, batch)
    state = jax.jit(lambda key: method.end_phase(learner, FIRST, fold, key))(jax.random.key(3)).method_state
    found = state.base.precisions if name == "imm" else state.terms[name]["importance"]
    found = np.asarray(found["dense_0"]["kernel"])[0 if name == "imm" else ...]

    def outputs(kernel):
        params = {**learner.params, "dense_0": {**learner.params["dense_0"], "kernel": kernel}}
        logits = network.apply(params, learner.collections, batch.inputs).logits
        return jnp.sum(logits**2, axis=1) if name == "mas" else jax.nn.log_softmax(logits)

    kernel = learner.params["dense_0"]["kernel"]
    slopes, logs = np.asarray(jax.jacobian(outputs)(kernel)), np.asarray(outputs(kernel))
    expected = np.abs(slopes).mean(0) if name == "mas" else np.einsum("bk,bkij->ij", np.exp(logs), slopes**2) / 6
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6)


def test_labels_are_sampled_anew_for_each_example_and_each_batch():
    """Uniform over three classes, an input of 1: the mean of (1 - 1/3)^2 once and (1/3)^2 twice in three times, 2/9."""
    method = methods.ewc(softmax_regression(), fisher="sampled")
    ones = jnp.ones(4, jnp.int32)
    batch = Batch(
        jnp.tile(jnp.array([[1.0, 0.0]]), (4, 1)), 0 * ones, 0 * ones, jnp.arange(4), jnp.array([1.0, 0, 0, 0])
    )
    fold = lambda fn, carry, split="train": jax.lax.fori_loop(0, 400, lambda _, carry: fn(carry, batch), carry)
    end = jax.jit(lambda key: method.end_phase(learner_of(method), FIRST, fold, key))
    found = end(jax.random.key(0)).method_state.terms["ewc"]["importance"]["kernel"]
    np.testing.assert_allclose(found[0], np.full(3, 2 / 9), atol=0.04)
    log_prob = lambda weight, inputs: jax.nn.log_softmax(inputs @ weight)
    found = importance.fisher(log_prob, jnp.zeros([1, 3]), jnp.ones([400, 1]), kind="sampled", key=jax.random.key(0))
    np.testing.assert_allclose(found[0], np.full(3, 2 / 9), atol=0.04)
