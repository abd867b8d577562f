"""Average precision by VOC's protocols: cases worked out by hand, the development kit's loops, a learner's own."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cljax import methods, metrics, networks, training
from tests import test_hard_cases

MODES = ("area", "eleven_points")


def kit(scores, labels, mode):
    """Average precision of one class as VOC's development kit computes it, with its loops."""
    order = np.argsort(-scores, kind="stable")
    right, wrong = np.cumsum(labels[order]), np.cumsum(1 - labels[order])
    recall, precision = right / labels.sum(), right / (right + wrong)
    if mode == "eleven_points":
        points = [precision[right * 10 >= tenth * labels.sum()] for tenth in range(11)]
        return sum(point.max() if point.size else 0 for point in points) / 11
    recall, precision = np.concatenate([[0], recall, [1]]), np.concatenate([[0], precision, [0]])
    for index in range(precision.size - 2, -1, -1):
        precision[index] = max(precision[index], precision[index + 1])
    steps = np.flatnonzero(recall[1:] != recall[:-1]) + 1
    return ((recall[steps] - recall[steps - 1]) * precision[steps]).sum()


BY_HAND = [  # labels in the order of falling scores, the area, the mean of eleven points
    ([1, 1, 0, 0], 1.0, 1.0),
    ([0, 1], 1 / 2, 1 / 2),
    ([1, 0, 1, 0], (1 + 2 / 3) / 2, (6 + 5 * 2 / 3) / 11),
    ([0, 0, 1, 1], 1 / 2, 1 / 2),  # precision 1/3, then 1/2: the curve takes the later, larger one
    ([1, 0, 0, 1, 1], (1 + 3 / 5 + 3 / 5) / 3, (4 + 7 * 3 / 5) / 11),
    ([1, *[0] * 9, *[1] * 9], (1 + 9 * 10 / 19) / 10, (2 + 9 * 10 / 19) / 11),  # a recall of exactly 1/10
]


def test_by_hand():
    length = max(len(ranked) for ranked, _, _ in BY_HAND)
    labels = np.stack([np.pad(ranked, (0, length - len(ranked))) for ranked, _, _ in BY_HAND], axis=1)
    weights = np.stack([np.arange(length) < len(ranked) for ranked, _, _ in BY_HAND], axis=1)
    scores = np.broadcast_to(-np.arange(length)[:, None], labels.shape)
    for place, mode in enumerate(MODES, start=1):
        found = metrics.average_precision(scores, labels, interpolation=mode, weights=weights)
        np.testing.assert_allclose(found, [case[place] for case in BY_HAND], rtol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_it_is_the_development_kit_s(mode):
    generator = np.random.default_rng(0)
    scores = generator.integers(0, 40, [60, 5]).astype(np.float32)  # with ties
    labels = (generator.random([60, 5]) < [0.05, 0.2, 0.5, 0.8, 1.0]).astype(np.float32)
    labels[0] = 1
    found = metrics.average_precision(scores, labels, interpolation=mode)
    expected = [kit(scores[:, k], labels[:, k], mode) for k in range(5)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(metrics.mean_average_precision(scores, labels, interpolation=mode), np.mean(expected))


@pytest.mark.parametrize("mode", MODES)
def test_examples_of_no_weight_and_classes_without_examples_do_not_count(mode):
    scores, labels = np.array([[4.0, 4], [3, 3], [2, 2], [1, 1]]), np.array([[0.0, 0], [1, 0], [0, 0], [1, 0]])
    weights = np.array([0.0, 1, 1, 1])
    expected = kit(scores[1:, 0], labels[1:, 0], mode)
    found = metrics.average_precision(scores, labels, interpolation=mode, weights=weights)
    np.testing.assert_allclose(found, [expected, np.nan], rtol=1e-6)
    mean = jax.jit(lambda **given: metrics.mean_average_precision(scores, labels, interpolation=mode, **given))
    np.testing.assert_allclose(mean(weights=weights), expected, rtol=1e-6)
    each = np.ones([4, 2])
    each[0, 0] = 0  # difficult for the first class alone
    np.testing.assert_allclose(mean(weights=each), expected, rtol=1e-6)
    assert np.isnan(mean(classes=np.array([False, True])))
    with pytest.raises(ValueError, match="interpolation is 'voc', but must be one of area, eleven_points"):
        metrics.average_precision(scores, labels, interpolation="voc")


def test_of_a_learner_on_tasks_of_several_labels():
    """Of the test images alone, over the classes a task has, whatever the batches."""
    stream = test_hard_cases.multi_label()
    method = methods.finetune(networks.mlp((8, 8, 1), 3, hidden=(8,), mean=stream.mean, std=stream.std))
    learner = jax.jit(lambda key: training.make_learner(method, optax.sgd(1.0), stream.tables, 0.1, key))
    learner = learner(jax.random.key(0))
    found = training.evaluate_precision(method, learner, stream.tables, batch_size=64)
    table = stream.tables.test
    for task, width in enumerate((3, 2)):
        places = slice(table.start[task], table.start[task] + table.size[task])
        images = stream.tables.examples[table.index[places]]
        scores = np.asarray(method.predict(learner, images, jnp.int32(task)))
        each = [kit(scores[:, k], table.labels[places, k], "area") for k in range(width)]
        np.testing.assert_allclose(found[task], np.mean(each), rtol=1e-5)
    single = test_hard_cases.conformance.stream()
    with pytest.raises(ValueError, match="needs several labels an example"):
        training.evaluate_precision(method, learner, single.tables)


def test_lists_are_taken():
    found = metrics.average_precision([[3.0], [2.0], [1.0]], [[0], [1], [0]], weights=[0, 1, 1])
    assert found.tolist() == [1]
