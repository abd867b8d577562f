"""Streams of single-label and multi-label tasks: each has its own loss, distillation and measure, through one trace."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cljax import losses, methods, metrics, streams, training
from cljax.methods.lwf import lwf
from cljax.methods.replay import group_of
from cljax.types import make_clock, single_label_of
from tests import conformance, shared

SETTINGS = training.Settings(batch_size=16, learning_rate=0.05)
small = functools.partial(shared.small, hidden=(8,))
OPTIMIZER = optax.sgd(1.0, momentum=0.9)


def mixed(*, first_single=True, **options):
    """Which of three digits it is, and what holds of it: two tasks of the same images, one of each kind."""
    data = conformance.digits()
    chosen = data.train_labels < 3, data.test_labels < 3
    images, labels = data.train_images[chosen[0]], data.train_labels[chosen[0]]
    test_images, test_labels = data.test_images[chosen[1]], data.test_labels[chosen[1]]
    facts = lambda digit: np.stack([digit % 2 == 0, digit > 0], 1).astype(np.float32)
    tasks = [(images, labels, test_images, test_labels), (images, facts(labels), test_images, facts(test_labels))]
    return streams.from_tasks(tasks if first_single else tasks[::-1], validation=0.0, **options)


def run(method, stream, key=0):
    made = training.make_run(method, OPTIMIZER, stream, SETTINGS)
    result = made(jax.random.key(key), stream.tables)
    assert made.step.traces == 1
    return result


def test_labels_are_one_hot_where_a_task_is_single_label():
    tables = mixed().tables
    assert tables.single_label.tolist() == [True, False]
    single, several = np.split(np.asarray(tables.train.labels), [tables.train.size[0]])
    digits = conformance.digits().train_labels
    np.testing.assert_array_equal(single, np.eye(3, dtype=np.float32)[digits[digits < 3]])
    assert several.shape == single.shape
    assert not several[:, 2].any()
    turned = mixed(schedule=streams.visits([(1, 1), (0, 1)])).tables
    assert turned.single_label.tolist() == [False, True]
    data = conformance.digits()
    shared = streams.relabelled(data, [np.minimum(data.labels, 2), np.ones((340, 2), np.float32)], validation=0)
    assert shared.tables.single_label.tolist() == [True, False]
    np.testing.assert_array_equal(shared.tables.test.labels[:100].argmax(1), np.minimum(data.test_labels, 2))


def test_loss_and_accuracy_of_float_labels_by_hand():
    logits = np.array([[0, 0, 9], [2, 0, 9]], np.float32)
    labels, classes = np.array([[0, 1, 0]] * 2, np.float32), np.array([True, True, False])
    of = jax.jit(lambda logits, single: losses.cross_entropy(logits, labels, classes=classes, single_label=single))
    loss = lambda single: of(logits, np.array(single))
    of_one = [np.log(2), np.log(1 + np.exp(2))]
    of_several = [2 * np.log(2), np.log(1 + np.exp(2)) + np.log(2)]
    np.testing.assert_allclose(loss(True), of_one, rtol=1e-6)
    np.testing.assert_allclose(loss(False), of_several, rtol=1e-6)
    np.testing.assert_allclose(loss([True, False]), [of_one[0], of_several[1]], rtol=1e-6)
    whole = jax.jit(lambda logits: losses.cross_entropy(logits, np.array([1, 1]), classes=classes))(logits)
    np.testing.assert_allclose(loss(True), whole, rtol=1e-6)
    slope = jax.jit(jax.grad(lambda logits: jnp.sum(of(logits, np.array(True)))))
    expected = np.exp(logits[:, :2]) / np.exp(logits[:, :2]).sum(1, keepdims=True) - labels[:, :2]
    np.testing.assert_allclose(slope(logits), np.pad(expected, ((0, 0), (0, 1))), atol=1e-6)
    correct = jax.jit(lambda single: metrics.correct(-logits, labels, classes, single_label=single))
    right = lambda single: correct(np.array(single)).tolist()
    assert (right(True), right(False)) == ([0, 1], [0.5, 0.5])


@pytest.mark.parametrize("build", [methods.finetune, methods.joint, lwf], ids=lambda build: build.__name__)
def test_a_single_label_task_is_learned_as_in_a_stream_of_its_own_kind(build):
    both, plain = mixed(epochs=3), conformance.digits()
    chosen = plain.train_labels < 3, plain.test_labels < 3
    task = (plain.train_images[chosen[0]], plain.train_labels[chosen[0]])
    task = (*task, plain.test_images[chosen[1]], plain.test_labels[chosen[1]])
    alone = streams.from_tasks([task] * 2, validation=0.0, epochs=3, schedule=streams.visits([(0, 3)]))
    found = run(build(small(both)), both._replace(schedule=alone.schedule))
    expected = run(build(small(both)), alone)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        found.learner.params,
        expected.learner.params,
    )
    assert found.evaluation.accuracy[0, 0] == expected.evaluation.accuracy[0, 0]


@pytest.mark.parametrize("build", [methods.joint, methods.clnp, methods.tfm, lwf], ids=lambda build: build.__name__)
def test_both_kinds_are_learned(build):
    """By one program, whichever comes first."""
    made = [mixed(first_single=first_single, epochs=10) for first_single in (False, True)]
    if build in (methods.clnp, methods.tfm):  # which choose by validation
        made = [stream._replace(tables=stream.tables._replace(validation=stream.tables.train)) for stream in made]
    method = build(small(made[0]))
    run = training.make_run(method, OPTIMIZER, made[0], SETTINGS)
    for several, stream in enumerate(made):
        result = run(jax.random.key(0), stream.tables)
        assert np.diag(result.evaluation.accuracy).min() > 0.85
        precision = training.evaluate_precision(method, result.learner, stream.tables)
        assert np.isnan(precision[1 - several])
        assert precision[several] > 0.9
    assert run.step.traces == 1


def test_old_heads_are_distilled_by_their_own_kind():
    """The response of a three-task stream is the sum of a softmax head's and a sigmoid head's."""
    data = conformance.digits()
    images, labels = data.train_images[:8], data.train_labels[:8] % 3
    several = np.tri(3, dtype=np.float32)[labels]
    task = lambda labels: (images, labels, images, labels)
    stream = streams.from_tasks([task(labels), task(several), task(labels)], validation=0.0)
    network, tables = small(stream), stream.tables
    clock = make_clock(2, 2, 1, newest=2, classes=tables.classes, single_label=tables.single_label)
    method = lwf(network)
    make = lambda key: training.make_learner(method, OPTIMIZER, stream.tables, 0.1, key)
    learner, other = (jax.jit(make)(jax.random.key(number)) for number in range(2))
    learner = learner._replace(
        method_state=learner.method_state._replace(teacher={"params": other.params, "collections": other.collections})
    )
    assert single_label_of(clock, jnp.array([0, 1])).tolist() == [True, False]
    batch = shared.sequential(stream.tables, stream.tables.train, 2, 0, 8)
    found = jax.jit(lambda learner: method.loss(learner.params, learner, clock, batch, None)[1][1])(learner)

    @jax.jit
    def by_head(learner, other):
        of = lambda one: [method.predict(one, images, jnp.int32(task)) for task in range(3)]
        logits, target = of(learner), of(other)
        softmax = losses.distillation(logits[0], target[0], temperature=2.0)
        binary = losses.sigmoid_distillation(logits[1], target[1], temperature=2.0)
        return softmax + binary, losses.cross_entropy(logits[2], labels)

    response, whole = by_head(learner, other)
    np.testing.assert_allclose(found["response"], np.mean(response), rtol=1e-5)
    np.testing.assert_allclose(found["classification"], np.mean(whole), rtol=1e-5)
    with pytest.raises(ValueError, match=r"each needs a head of its own.*scope at 'per_task'"):
        jax.eval_shape(lwf(network, scope="concatenated").loss, learner.params, learner, clock, batch, None)


def test_exemplars_of_a_single_label_task_are_grouped_by_class_where_others_have_several_labels():
    here = make_clock(classes=np.ones((2, 3), bool), single_label=jnp.array([True, False]))
    labels = jnp.array([[0, 0, 1], [1, 0, 0], [0, 1, 1], [1, 0, 1]], jnp.float32)
    assert group_of(labels, jnp.array([0, 0, 1, 1]), here).tolist() == [2, 0, 3, 3]
