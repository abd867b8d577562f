"""iCaRL: its targets, its exemplars and its classifier beside plain NumPy; its ablations."""

from __future__ import annotations

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cljax import methods, networks, streams, task_params, training
from cljax.training.engine import TaskFold
from cljax.types import make_clock
from tests import conformance
from tests.shared import focus, sequential

SGD = optax.sgd(1.0)


def network_for(stream):
    return networks.mlp((8, 8, 1), 3, hidden=(6,), mean=stream.mean, std=stream.std)


def learner_of(method, stream, task):
    make = lambda key: training.make_learner(method, SGD, stream.tables, 0.1, key, streams.max_examples(stream.tables))
    learner = jax.jit(make)(jax.random.key(0))
    return focus(learner, task)


@functools.partial(jax.jit, static_argnums=0)
def features_of(network, params, collections, inputs):
    """They do not depend on the head."""
    own = {**params, "head": jax.tree.map(lambda leaf: leaf[0], params["head"])}
    return network.apply(own, collections, inputs).features


def sigmoid(values):
    return 1 / (1 + np.exp(-values))


@pytest.mark.parametrize("push_unseen", [True, False])
@pytest.mark.parametrize("distillation", [True, False])
def test_the_loss_and_its_gradient_are_those_of_the_targets(distillation, push_unseen):
    """Old outputs have the teacher's scores as targets, or the exemplars' labels; those to come 0, or none."""
    stream = conformance.stream()
    method = methods.icarl(network_for(stream), memory_size=20, distillation=distillation, push_unseen=push_unseen)
    learner = learner_of(method, stream, 1)
    parts = [sequential(stream.tables, stream.tables.train, task, 0, 6) for task in (1, 0)]
    batch = jax.tree.map(lambda new, old: np.concatenate([new, np.asarray(old)[:3]]), *parts)
    clock = make_clock(task=1, classes=stream.tables.classes, scenario="class")
    if distillation:
        other = jax.tree.map(lambda leaf: np.asarray(leaf) + np.float32(0.3), learner.params)
        learner = learner._replace(
            method_state=learner.method_state._replace(teacher={**learner.method_state.teacher, "params": other})
        )
    of = lambda params: method.loss(params, learner, clock, batch, None)[0]
    value, gradients = jax.jit(jax.value_and_grad(of))(learner.params)

    def scores(params):
        features = np.asarray(features_of(method.network, params, learner.collections, batch.inputs))
        kernel, bias = (np.asarray(params["head"][name]) for name in ("kernel", "bias"))
        return features, np.einsum("bd,tdk->btk", features, kernel) + bias[None]

    features, logits = scores(learner.params)
    targets = np.zeros((9, 3, 3))
    targets[np.arange(9), np.asarray(batch.tasks), np.asarray(batch.labels)] = 1
    if distillation:
        targets[:, 0] = sigmoid(scores(other)[1])[:, 0]
    used = np.array(stream.tables.classes, np.float64)
    used[2] *= push_unseen
    each = -(targets * np.log(sigmoid(logits)) + (1 - targets) * np.log(sigmoid(-logits)))
    np.testing.assert_allclose(value, (each * used).sum((1, 2)).mean(), rtol=1e-5)
    slopes = np.einsum("bd,btk->tdk", features, (sigmoid(logits) - targets) * used) / 9
    np.testing.assert_allclose(gradients["head"]["kernel"], slopes, rtol=1e-4, atol=1e-6)


def plain_herding(unit, count):
    picks = []
    for size in range(1, min(count, len(unit)) + 1):
        left = [index for index in range(len(unit)) if index not in picks]
        far = [np.linalg.norm(unit.mean(0) - unit[[*picks, index]].sum(0) / size) for index in left]
        picks.append(left[int(np.argmin(far))])
    return picks


@functools.cache
def visited():
    """A learner, untrained, after the visits to all three tasks; its method and stream."""
    stream = conformance.stream(scenario="class")
    method = methods.icarl(network_for(stream), memory_size=20)
    most = streams.max_examples(stream.tables)

    @jax.jit
    def end(learner, task, key):
        clock = make_clock(task=0, classes=stream.tables.classes)._replace(task=task, newest=task)
        tables = jax.device_put(stream.tables)
        return method.end_phase(learner, clock, TaskFold(tables, task, most, 32), key)

    learner = learner_of(method, stream, 0)
    for task in range(3):
        learner = end(learner, jnp.int32(task), jax.random.key(task))
    return task_params.write_back(learner, jnp.int32(0)), method, stream


def units(learner, method, images):
    features = np.asarray(features_of(method.network, learner.params, learner.collections, images), np.float64)
    return features / np.linalg.norm(features, axis=1, keepdims=True)


PAIRS = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (2, 0), (2, 1)]


def examples_of(stream, task, label):
    table = stream.tables.train
    mine = slice(table.start[task], table.start[task] + table.size[task])
    return table.index[mine][table.labels[mine] == label]


def test_the_exemplars_are_herded_class_by_class_and_no_class_has_two_more_than_another():
    learner, method, stream = visited()
    memory = jax.tree.map(np.asarray, learner.memory)
    assert memory.valid.all()
    images = stream.tables.examples
    every = units(learner, method, images)
    for task, label in PAIRS:
        mine = (memory.tasks == task) & (memory.labels == label)
        assert mine.sum() in (2, 3)
        examples = examples_of(stream, task, label)
        picks = plain_herding(every[examples], mine.sum())
        np.testing.assert_array_equal(memory.inputs[mine], images[examples[picks]])


@pytest.mark.parametrize("flips", [True, False])
def test_a_class_is_the_nearest_mean_of_its_exemplars_and_their_mirror_images(flips):
    learner, method, stream = visited()
    if not flips:
        plain = methods.icarl(method.network, memory_size=20, flips=False)
        clock = make_clock(task=2, classes=stream.tables.classes)
        fold = TaskFold(jax.device_put(stream.tables), jnp.int32(2), streams.max_examples(stream.tables), 32)
        again = jax.jit(lambda learner: plain.end_phase(learner, clock, fold, jax.random.key(2)))(focus(learner, 2))
        learner = task_params.write_back(again, jnp.int32(2))
    memory, images = jax.tree.map(np.asarray, learner.memory), stream.tables.examples[-40:]
    asked, kept, mirrored = (
        units(learner, method, inputs) for inputs in (images, memory.inputs, memory.inputs[:, :, ::-1])
    )
    predict = jax.jit(method.predict)
    for task, label in PAIRS:
        mine = (memory.tasks == task) & (memory.labels == label)
        mean = kept[mine].mean(0)
        if flips:
            mean = (mean + mirrored[mine].mean(0)) / 2
        distance = ((asked - mean / np.linalg.norm(mean)) ** 2).sum(1)
        found = np.asarray(predict(learner, images, jnp.int32(task)))
        np.testing.assert_allclose(found[:, label], -distance, rtol=1e-4, atol=1e-5)
        assert np.isneginf(found[:, 2]).all() == (task > 0)  # tasks of two classes
    assert np.isnan(predict(learner, images, jnp.int32(3))).all()


def test_hybrid1_predicts_by_the_network_and_without_a_memory_it_is_lwf_mc():
    _, method, stream = visited()
    network = method.network
    one = methods.icarl(network, memory_size=0, classifier="network")
    other = methods.lwf_mc(network)
    learners = [learner_of(each, stream, 1) for each in (one, other)]
    batch = sequential(stream.tables, stream.tables.train, 1, 0, 8)
    clock = make_clock(task=1, classes=stream.tables.classes)
    losses = [
        jax.jit(lambda learner, each=each: each.loss(learner.params, learner, clock, batch, None)[0])(made)
        for each, made in zip((one, other), learners, strict=True)
    ]
    assert losses[0] == losses[1]
    hybrid = methods.icarl(network, memory_size=20, classifier="network")
    resting = task_params.write_back(learners[1], jnp.int32(1))
    expected = jax.jit(other.predict)(resting, batch.inputs, jnp.int32(1))
    for each in (one, hybrid, other):
        state = learner_of(each, stream, 1).method_state
        logits = jax.jit(each.predict)(resting._replace(method_state=state), batch.inputs, jnp.int32(1))
        np.testing.assert_array_equal(logits, expected)


def test_what_it_refuses():
    network = network_for(conformance.stream())
    with pytest.raises(ValueError, match="icarl's memory_size is 0"):
        methods.icarl(network, memory_size=0)
    with pytest.raises(ValueError, match="icarl's classifier is 'svm', but must be one of nearest_mean, network"):
        methods.icarl(network, classifier="svm")
    with pytest.raises(ValueError, match="per_task is empty"):
        methods.icarl(network._replace(per_task=()))
    with pytest.raises(ValueError, match="leaves below them belong to a task: dense_1/bias, dense_1/kernel, head/bias"):
        methods.icarl(networks.own_last_layers(networks.mlp((8, 8, 1), 3, hidden=(6, 5)), 1))


def test_exemplars_in_several_chunks_have_the_features_of_one(monkeypatch):
    """Twenty, in parts of six: the last one is filled up, and cut."""
    learner, method, stream = visited()
    fold = TaskFold(jax.device_put(stream.tables), jnp.int32(2), streams.max_examples(stream.tables), 32)
    here, focused, found = make_clock(task=2, classes=stream.tables.classes), focus(learner, 2), []
    for chunk in (256, 6):
        monkeypatch.setattr(sys.modules["cljax.methods.icarl"], "CHUNK", chunk)
        end = jax.jit(lambda learner: method.end_phase(learner, here, fold, jax.random.key(2)))
        found.append(end(focused).method_state.terms["icarl"]["vectors"])
    assert found[1].shape == (20, 6)
    np.testing.assert_allclose(*found, rtol=1e-5, atol=1e-6)
