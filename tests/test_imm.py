"""Incremental moment matching: what is merged, by hand; what `predict` computes; what training goes on from."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cljax import importance, methods, networks, training
from cljax.types import make_clock
from tests import conformance
from tests.regression import (
    FIRST,
    INPUTS,
    KERNEL,
    LABELS,
    SECOND,
    Fold,
    batch_of,
    enumerated,
    gradient_of,
    learner_of,
    softmax_regression,
)

LAST = jnp.array([[0.5, 1.0, -0.3], [0.2, -0.6, 0.1]])


def ended(method, visits, fold=None, **hyper):
    """The learner after visits, each of which trained to the kernel that is given."""
    learner, seen = learner_of(method), -1
    learner = learner._replace(hyper={**learner.hyper, **{name: jnp.float32(one) for name, one in hyper.items()}})
    end = jax.jit(lambda learner, clock: method.end_phase(learner, clock, fold or Fold(), jax.random.key(0)))
    for task, kernel in visits:
        seen = max(seen, task)
        clock = make_clock(task=task, newest=seen, classes=SECOND.classes)
        learner = end(learner._replace(params={**learner.params, "kernel": kernel}), clock)
    return learner


def merged(learner):
    return learner.method_state.base.merged[0]["kernel"]


def test_the_mode_is_the_mean_by_fisher_information_and_predict_computes_with_it():
    method = methods.imm(softmax_regression())
    fisher = {name: enumerated("exact", kernel) for name, kernel in (("a", KERNEL), ("b", LAST), ("c", -KERNEL))}
    first = ended(method, [(0, KERNEL)])
    np.testing.assert_array_equal(merged(first), KERNEL)
    learner = ended(method, [(0, KERNEL), (1, LAST)])
    expected = (fisher["a"] * KERNEL + fisher["b"] * LAST) / (fisher["a"] + fisher["b"])
    np.testing.assert_allclose(merged(learner), expected, rtol=1e-5)
    for task in (0, 1):
        np.testing.assert_allclose(method.predict(learner, INPUTS, jnp.int32(task)), INPUTS @ expected, rtol=1e-5)
    assert (learner.params["kernel"] == LAST).all(), "training goes on from it"
    trained = method.after_step(learner, learner, SECOND, batch_of(), learner.params)
    np.testing.assert_allclose(method.predict(trained, INPUTS, jnp.int32(0)), INPUTS @ LAST, rtol=1e-5)
    params, _ = networks.export_task(method, learner, 0)
    np.testing.assert_array_equal(params["kernel"], merged(learner))
    again = ended(method, [(0, KERNEL), (1, LAST), (0, -KERNEL)])  # in the place of the first visit's
    expected = (fisher["c"] * -KERNEL + fisher["b"] * LAST) / (fisher["c"] + fisher["b"])
    np.testing.assert_allclose(merged(again), expected, rtol=1e-5)


def test_the_mean_and_the_mixing_of_the_task_just_visited():
    method = methods.imm(softmax_regression(), merge="mean")
    visits = [(0, KERNEL), (1, LAST)]
    np.testing.assert_allclose(merged(ended(method, visits)), (KERNEL + LAST) / 2, rtol=1e-6)
    np.testing.assert_allclose(merged(ended(method, visits, mixing=3)), (KERNEL + 3 * LAST) / 4, rtol=1e-6)
    np.testing.assert_array_equal(merged(ended(method, visits, mixing=0)), KERNEL)
    assert learner_of(method).method_state.base.precisions is None
    mode = ended(methods.imm(softmax_regression()), visits, mixing=3)
    one, other = enumerated("exact", KERNEL), 3 * enumerated("exact", LAST)
    np.testing.assert_allclose(merged(mode), (one * KERNEL + other * LAST) / (one + other), rtol=1e-5)


def test_where_no_task_has_information_the_parameter_stays_as_it_is():
    method = methods.imm(softmax_regression())
    fold = Fold(LABELS, INPUTS * jnp.array([[1.0, 0.0]]))
    learner = ended(method, [(0, KERNEL), (1, LAST)], fold)
    np.testing.assert_array_equal(merged(learner)[1], LAST[1])
    assert (merged(learner)[0] != LAST[0]).all()


def test_transfer_pulls_to_the_network_before_the_merge():
    method = methods.imm(softmax_regression(), strength=0.5)
    learner = ended(method, [(0, KERNEL), (1, LAST)])
    moved = learner._replace(params={**learner.params, "kernel": 2 * KERNEL})
    (value, slopes), (plain, bare) = (
        gradient_of(one, moved, SECOND, batch_of()) for one in (method, methods.finetune(method.network))
    )
    way = np.asarray(2 * KERNEL - LAST)
    np.testing.assert_allclose(value - plain, 0.25 * (way**2).sum(), rtol=1e-4)
    np.testing.assert_allclose(slopes["kernel"] - bare["kernel"], 0.5 * way, atol=1e-5)
    free, _ = gradient_of(method, moved, FIRST, batch_of())
    np.testing.assert_allclose(free, plain, rtol=1e-6)


def test_what_is_shared_is_merged_and_heads_stay_each_task_s_own():
    """Of a run; the statistics of batch normalisation are merged by the mean."""
    stream, settings = conformance.stream(), training.Settings(batch_size=16, learning_rate=0.05, evaluation_batch=32)
    network = networks.mlp((8, 8, 1), 3, hidden=(6,), normalization="batch", mean=stream.mean, std=stream.std)
    method = methods.imm(network, fisher="empirical")
    learner = training.make_run(method, optax.sgd(1.0), stream, settings)(jax.random.key(0), stream.tables).learner
    state = learner.method_state.base
    assert bool(state.current)
    params, collections = state.merged
    assert params["head"] == {"bias": None, "kernel": None}
    weights = np.asarray(state.precisions["dense_0"]["kernel"])
    rows = np.asarray(state.means[0]["dense_0"]["kernel"])
    known = weights.sum(0) > 0
    expected = np.where(known, (weights * rows).sum(0) / np.where(known, weights.sum(0), 1), rows[2])
    np.testing.assert_allclose(params["dense_0"]["kernel"], expected, rtol=1e-4, atol=1e-6)
    statistics = np.asarray(state.means[1]["batch_stats"]["norm_0"]["mean"])
    np.testing.assert_allclose(collections["batch_stats"]["norm_0"]["mean"], statistics.mean(0), rtol=1e-5, atol=1e-6)
    images = stream.tables.examples[:5]
    for task in range(3):
        shown = {**params, "head": jax.tree.map(lambda leaf, task=task: leaf[task], learner.params["head"])}
        batch_stats = {"batch_stats": collections["batch_stats"]}
        logits = network.apply(shown, {**learner.collections, **batch_stats}, images).logits
        np.testing.assert_allclose(method.predict(learner, images, jnp.int32(task)), logits, rtol=1e-4, atol=1e-5)


# The primitive


def test_moment_matching_and_its_gradients_by_hand():
    draw = np.random.default_rng(0)
    means, precisions = draw.normal(size=(3, 2, 4)).astype(np.float32), draw.random((3, 2, 4)).astype(np.float32)
    precisions[:, 0, 0] = 0
    precisions[1, 1, 1] = 0
    alpha = np.array([1.0, 0.5, 2.0], np.float32)
    other = np.full((2, 4), 7, np.float32)
    match = jax.jit(lambda means, precisions: importance.moment_matching(means, alpha, precisions, otherwise=other))
    share = alpha[:, None, None] * precisions
    total = np.where(share.sum(0) > 0, share.sum(0), 1)
    expected = np.where(share.sum(0) > 0, (share * means).sum(0) / total, 7)
    np.testing.assert_allclose(match(means, precisions), expected, rtol=1e-5)
    by_means, by_precisions = jax.jit(jax.grad(lambda *given: match(*given).sum(), (0, 1)))(means, precisions)
    np.testing.assert_allclose(by_means, share / total, rtol=1e-4, atol=1e-6)
    inside = share.sum(0) > 0
    slope = alpha[:, None, None] * (means - expected) / total
    np.testing.assert_allclose(np.asarray(by_precisions)[:, inside], slope[:, inside], rtol=1e-3, atol=1e-4)
    assert np.isfinite(by_precisions).all()
    mean = jax.jit(importance.moment_matching)(means, alpha)
    np.testing.assert_allclose(mean, np.average(means, axis=0, weights=alpha), rtol=1e-5, atol=1e-6)


def test_tiny_precisions_do_not_vanish_and_one_task_alone_keeps_its_bits():
    means, tiny = jnp.array([[1e-6], [3e-6]]), jnp.array([[1e-37], [3e-37]])
    np.testing.assert_allclose(importance.moment_matching(means, jnp.ones(2), tiny), [2.5e-6], rtol=1e-5)
    odd = jnp.array([[0.1], [0.0]])
    alone = importance.moment_matching(odd, jnp.array([0.3, 0.0]), jnp.array([[0.7], [0.9]]))
    assert np.asarray(alone).tobytes() == np.asarray(odd[0]).tobytes()


def test_words_and_numbers_out_of_range_are_refused():
    network = softmax_regression()
    for options, error in (
        ({"merge": "median"}, "imm's merge is 'median', but must be one of mode, mean"),
        ({"fisher": "true"}, "imm's fisher is 'true', but must be one of exact"),
        ({"mixing": -1}, "imm's mixing is -1"),
        ({"strength": -1}, "imm's strength is -1"),
        ({"chunk": 0}, "imm's chunk is 0"),
    ):
        with pytest.raises(ValueError, match=error):
            methods.imm(network, **options)
