"""Learning without Memorizing: an attention loss that trains, reference values through the method's loss, its parts."""

from __future__ import annotations

import functools
from typing import get_args

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cljax import losses, networks, report, streams, task_params, training
from cljax.attention import grad_cam, pooled_linear_cam
from cljax.methods import finetune
from cljax.methods.growing_head import Classification
from cljax.methods.lwf_mc import lwf_mc
from cljax.methods.lwm import lwm
from cljax.training.step import make_train_step
from cljax.types import Batch, Learner, Network, Sizes, make_clock
from tests import conformance, shared

TEACHER = np.array([[2, 1, 0], [0, 1, 3]], np.float32)
STUDENT = np.array([[1, 1, 1], [0, 2, 1]], np.float32)
OTHER = np.array([[0.5, -1, 2], [1, 0, -2]], np.float32)
ALL = np.ones([3, 3], bool)
SECOND = make_clock(task=1, classes=ALL[:2])
CONFIGURATIONS = {"C": (0.0, 0.0), "LwF-MC": (0.5, 0.0), "LwM": (0.5, 3.0), "attention alone": (0.0, 3.0)}


def table():
    """A pooled linear network of one map: `[1, W]` times the example's number; logits are `mean(map) * kernel`."""

    def init(key):
        return {"map": jnp.zeros(3), "head": {"kernel": jnp.zeros([2, 3])}}, {}

    def encode(params, collections, inputs, *, train, key):
        return inputs[:, None, None, :] * params["map"][None, None, :, None], {}, collections

    def decode(params, collections, maps, *, train, key):
        features = maps.mean((1, 2))
        return (features @ params["head"]["kernel"], features), {}, collections

    return Network(init, encode, decode, ("head/kernel",), (), (2,), 3)


def hyper_of(method):
    return jax.jit(lambda key: method.init(key, Sizes(3, 3, {}))[3])(jax.random.key(0))


def made(method, student, teacher):
    """A focused learner from `(map, kernels [T, 2, 3])` of student and teacher."""
    params, taught = (
        {"map": np.asarray(map, np.float32), "head": {"kernel": kernel}} for map, kernel in (student, teacher)
    )
    tasks = student[1].shape[0]
    _, _, state, hyper = method.init(jax.random.key(0), Sizes(tasks, 3, {}))
    state = state._replace(teacher={"params": taught, "collections": {}})
    resting = task_params.resting(method.per_task, method.stacked, tasks=tasks)
    return task_params.focus(Learner(params, {}, (), state, hyper, None, resting), jnp.int32(0))


def batch_of(task, labels=(0, 1)):
    ones = np.ones(2, np.float32)
    return Batch(np.eye(2, dtype=np.float32), np.asarray(labels), np.full(2, task, np.int32), np.arange(2), ones)


@functools.partial(jax.jit, static_argnums=0, static_argnames="of")
def evaluate(method, learner, clock, batch, of=()):
    """The loss and its metrics by name, and the gradients of those asked for; one program for a method's learners."""

    def values(params):
        value, (_, metrics) = method.loss(params, learner, clock, batch, None)
        return {"loss": value, **metrics}

    slopes = {name: jax.grad(lambda params, name=name: values(params)[name])(learner.params) for name in of}
    return values(learner.params), slopes


UNIT = [1.0, 1.0, 1.0]  # maps of mean 1: the logits are the kernel


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_reference_values_through_the_method_s_loss_in_every_configuration(configuration):
    """Distillation 1.773288; attention of maps (1, 2, 2) and (2, 1, 2), both of mean 5/3: 2/3."""
    beta, gamma = CONFIGURATIONS[configuration]
    method = lwm(table(), classification="ce_all", beta=beta, gamma=gamma)
    student, teacher = np.stack([STUDENT, OTHER]), np.stack([TEACHER, TEACHER])
    learner = made(method, ([1.0, 2.0, 2.0], 0.6 * student), ([2.0, 1.0, 2.0], 0.6 * teacher))
    metrics, _ = evaluate(method, learner, SECOND, batch_of(1))
    np.testing.assert_allclose(metrics["distillation"], 1.773288, rtol=2e-6)
    # Both examples' top old classes have positive kernels in the student and in the teacher.
    np.testing.assert_allclose(metrics["attention"], 2 / 3, rtol=2e-6)
    flat = np.concatenate([STUDENT, OTHER], axis=1)
    expected = -np.log(np.exp(flat[[0, 1], [3, 4]]) / np.exp(flat).sum(1)).mean()
    np.testing.assert_allclose(metrics["classification"], expected, rtol=1e-6)
    np.testing.assert_allclose(metrics["loss"], expected + beta * 1.773288 + gamma * 2 / 3, rtol=2e-6)


@pytest.mark.parametrize("classification", get_args(Classification))
def test_the_classification_losses_over_unequal_tasks_one_of_them_not_seen(classification):
    classes = np.array([[1, 1, 1], [1, 1, 0], [1, 1, 1]], bool)
    method = lwm(table(), classification=classification, beta=0.0, gamma=0.0)
    stacks = np.stack([STUDENT, OTHER, STUDENT])
    learner = made(method, (UNIT, stacks), (UNIT, np.stack([TEACHER, OTHER, OTHER])))
    clock = make_clock(task=1, classes=classes)
    metrics, slopes = evaluate(method, learner, clock, batch_of(1), of=("loss",))
    seen = np.concatenate([STUDENT, OTHER[:, :2]], axis=1)
    among, target = (seen, [3, 4]) if classification.endswith("all") else (seen[:, 3:], [0, 1])
    if classification.startswith("bce"):
        target, q = np.eye(among.shape[1])[target], 1 / (1 + np.exp(-among))
        expected = -(target * np.log(q) + (1 - target) * np.log(1 - q)).sum(1).mean()
    else:
        expected = -np.log(np.exp(among[[0, 1], target]) / np.exp(among).sum(1)).mean()
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-6)
    found = np.asarray(slopes["loss"]["head"]["kernel"])
    assert (np.abs(found[0]).max() > 1e-3) == classification.endswith("all")
    np.testing.assert_array_equal(found[2], 0)
    np.testing.assert_array_equal(found[1, :, 2], 0)
    assert np.ravel(method.update_mask(learner, clock)[0]["head"]["kernel"]).tolist() == [1, 1, 0]


def test_distillation_of_the_top_old_class_alone():
    """It is the student's: the first class for the first example, the second for the other; a new one is above both."""
    method = lwm(table(), distilled="top", gamma=0.0)
    student = np.array([[0.5, 0, -1], [0, 2, 1]], np.float32)
    learner = made(method, (UNIT, np.stack([student, 5 + OTHER])), (UNIT, np.stack([TEACHER, OTHER])))
    metrics, slopes = evaluate(method, learner, SECOND, batch_of(1), of=("distillation",))
    sigmoid = lambda logit: 1 / (1 + np.exp(-logit))
    p, q = sigmoid(np.array([2.0, 1.0])), sigmoid(np.array([0.5, 2.0]))
    np.testing.assert_allclose(metrics["distillation"], -(p * np.log(q) + (1 - p) * np.log(1 - q)).mean(), rtol=1e-6)
    found, expected = np.asarray(slopes["distillation"]["head"]["kernel"]), np.zeros([2, 2, 3])
    expected[0, [0, 1], [0, 1]] = (q - p) / 2
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def test_attention_by_squares():
    method = lwm(table(), distance="l2")
    student, teacher = np.stack([STUDENT, OTHER]), np.stack([TEACHER, TEACHER])
    learner = made(method, ([1.0, 2.0, 2.0], student), ([2.0, 1.0, 2.0], teacher))
    np.testing.assert_allclose(evaluate(method, learner, SECOND, batch_of(1))[0]["attention"], 2 / 9, rtol=2e-6)


@pytest.mark.parametrize("distance", ["l1", "l2"])
@pytest.mark.parametrize("attention_map", ["grad_cam", "activation"])
def test_classification_and_attention_alone_are_a_plain_computation_s_with_its_gradient(attention_map, distance):
    """L_C + L_AD, the ablation; the gradient by differences in double precision. The maps are `map` times the number.

    Every kernel is positive, so that the Grad-CAM is the map but for its length.
    """
    method = lwm(table(), classification="ce_all", beta=0.0, gamma=3.0, attention_map=attention_map, distance=distance)
    map, kernels = np.array([1.0, 2.0, 2.0]), np.stack([np.exp(STUDENT), np.exp(OTHER)]).astype(np.float64)
    taught = np.array([2.0, 1.0, 2.5])

    def look(map):
        squared = map**2 if attention_map == "activation" else map
        return squared / np.linalg.norm(squared)

    def plain(map, kernels):
        logits = map.mean() * np.concatenate([kernels[0], kernels[1]], axis=1)  # example n has channel n alone
        classified = np.log(np.exp(logits).sum(1)) - logits[[0, 1], [3, 4]]
        apart = look(map) - look(taught)
        return classified.mean() + 3 * (np.abs(apart).sum() if distance == "l1" else (apart**2).sum())

    learner = made(method, (map, kernels.astype(np.float32)), (taught, np.exp(np.stack([TEACHER, OTHER]))))
    metrics, slopes = evaluate(method, learner, SECOND, batch_of(1), of=("loss", "attention"))
    metrics = {name: float(value) for name, value in metrics.items()}
    np.testing.assert_allclose(metrics["loss"], plain(map, kernels), rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], metrics["classification"] + 3 * metrics["attention"], rtol=1e-6)

    def differences(values, of):
        steps = 1e-6 * np.eye(values.size).reshape(-1, *values.shape)
        return np.array([(of(values + step) - of(values - step)) / 2e-6 for step in steps]).reshape(values.shape)

    expected = differences(map, lambda map: plain(map, kernels))
    assert np.abs(slopes["attention"]["map"]).max() > 1e-2
    np.testing.assert_allclose(slopes["loss"]["map"], expected, rtol=1e-4, atol=1e-5)
    expected = differences(kernels, lambda kernels: plain(map, kernels))
    np.testing.assert_allclose(slopes["loss"]["head"]["kernel"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("classification", get_args(Classification))
def test_a_label_that_is_no_class_of_its_task_shows(classification):
    """Nor is it taken for another task's: in one head, -1 of the second task would be the first one's last class."""
    method = lwm(table(), classification=classification)
    learner = made(method, (UNIT, np.stack([STUDENT, OTHER])), (UNIT, np.stack([TEACHER, OTHER])))
    values = [evaluate(method, learner, SECOND, batch_of(1, (0, label)))[0]["loss"] for label in (-1, 3, 2)]
    assert [bool(np.isfinite(value)) for value in values] == [False, False, True]


def test_several_labels_an_example_are_binary_terms_over_all_classes_seen():
    labels = np.array([[1, 0, 1], [0, 0, 1]], np.float32)
    method = lwm(table(), classification="ce_all", beta=0.0, gamma=0.0)
    learner = made(method, (UNIT, np.stack([STUDENT, OTHER])), (UNIT, np.stack([TEACHER, OTHER])))
    targets = np.concatenate([np.zeros([2, 3], np.float32), labels], axis=1)
    expected = np.mean(jax.jit(losses.cross_entropy)(np.concatenate([STUDENT, OTHER], axis=1), targets))
    np.testing.assert_allclose(evaluate(method, learner, SECOND, batch_of(1, labels))[0]["loss"], expected, rtol=1e-6)


# A convolutional network on real digits.


@functools.cache
def digits_case(dense=()):
    """Method, a learner in task 2 whose student has moved away from its teacher, clock, and a batch."""
    stream = conformance.stream()
    network = networks.cnn(
        (8, 8, 1), 3, channels=((6,),), dense=dense, pooled=not dense, mean=stream.mean, std=stream.std
    )
    method = lwm(network)
    engine = training.make_engine(
        method,
        optax.sgd(1.0),
        training.Settings(batch_size=16, learning_rate=0.05),
        scenario="class",
        max_examples=streams.max_examples(stream.tables),
    )
    tables, clock = jax.tree.map(jnp.asarray, stream.tables), make_clock(task=2, classes=stream.tables.classes)
    begin = lambda key: engine.begin_visit(engine.init(key, tables), clock, tables, key)
    learner = jax.jit(begin)(jax.random.key(0))
    draw = np.random.default_rng(1)

    def move(path, leaf):
        way = (1.0 if path.startswith("head/") else 0.3) * draw.normal(size=leaf.shape)
        return np.asarray(leaf) + way.astype(np.float32)

    moved = learner._replace(params=task_params.map_leaves(move, learner.params))
    batch = shared.sequential(tables, tables.train, clock.task, 0, 16)
    return method, learner, moved, clock, batch


def test_without_attention_and_by_binary_terms_of_the_new_classes_it_is_lwf_mc():
    """By losses and steps; by update masks too, so that classes not yet seen keep their bits in both."""
    base, _, moved, clock, batch = digits_case()
    optimizer, learning_rate = conformance.OPTIMIZERS["momentum"]
    ends = []
    for method in (lwm(base.network, gamma=0.0), lwf_mc(base.network, push_unseen=False)):
        learner = moved._replace(
            hyper={**hyper_of(method), "learning_rate": jnp.float32(learning_rate)},
            opt_state=optimizer.init(moved.params),
        )
        step, mask, found = make_train_step(method, optimizer), method.update_mask(learner, clock), []
        for number in range(3):
            learner, loss, metrics = step(learner, mask, clock, batch, jax.random.key(number))
            found.append((loss, metrics["classification"], metrics["distillation"], learner.params))
        ends.append((found, mask))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *ends)
    for before, after in zip(*(jax.tree.leaves(params) for params in (moved.params, ends[0][0][2][3])), strict=True):
        assert np.abs(np.asarray(after) - before).max() > 1e-3


def norm(tree):
    return float(np.sqrt(sum(np.square(leaf).sum() for leaf in jax.tree.leaves(tree))))


def test_the_attention_loss_uses_the_student_s_top_old_class_for_both_networks():
    method, _, learner, clock, batch = digits_case()
    metrics, slopes = evaluate(method, learner, clock, batch, of=("loss", "attention"))

    @jax.jit
    def looked(params):
        own = task_params.take_row(params, clock.task, learner.rows)
        maps = method.network.encode(own, learner.collections, batch.inputs, train=False, key=None)[0]
        kernel = jnp.moveaxis(params["head"]["kernel"], 0, 1).reshape(6, 9)
        return maps, kernel, maps.mean((1, 2)) @ kernel + params["head"]["bias"].reshape(1, 9)

    found = [looked(params) for params in (learner.params, learner.method_state.teacher["params"])]
    cams = [functools.partial(pooled_linear_cam, maps, kernel) for maps, kernel, _ in found]
    logits = [np.asarray(each) for _, _, each in found]
    old = [0, 1, 2, 3, 4]  # three and two classes; the sixth output does not exist, the last task is the current one
    top, taught = (each[:, old].argmax(1) for each in logits)
    assert (logits[0].argmax(1) > 4).any(), "for some examples a new class is above all old ones"
    assert (top != taught).any(), "for some the two networks disagree"
    losses_of = jax.jit(lambda *classes: losses.attention_distillation(cams[0](classes[0]), cams[1](classes[1])).mean())
    np.testing.assert_allclose(metrics["attention"], losses_of(top, top), rtol=1e-5)
    assert abs(float(losses_of(top, taught)) - float(losses_of(top, top))) > 1e-3
    assert norm(slopes["attention"]) > 1e-2


@pytest.mark.parametrize("dense", [(), (5,)])
def test_the_attention_loss_trains_the_student_and_only_where_it_differs_from_the_teacher(dense):
    method, same, moved, clock, batch = digits_case(dense)
    look = lambda learner: evaluate(method, learner, clock, batch, of=("loss", "attention"))
    metrics, slopes = look(same)
    assert metrics["attention"] == 0
    assert norm(slopes["attention"]) == 0
    of = lambda params, learner: method.loss(params, learner, clock, batch, None)[1][1]["attention"]
    twice = jax.tree.map(lambda leaf: np.stack([leaf, leaf]), same)
    compiled = jax.jit(jax.vmap(jax.grad(of)))(twice.params, twice)
    assert norm(compiled) == 0, "where the two networks round differently"
    metrics, slopes = look(moved)
    found = slopes["attention"]
    assert metrics["attention"] > 0.01
    assert norm(found["conv_0_0"]) > 1e-2
    assert norm(found["head"]["kernel"]) > 1e-3, "the importances have a gradient too"
    strength = lambda gamma: moved._replace(hyper={**moved.hyper, "gamma": np.float32(gamma)})
    off, on = (look(strength(gamma))[1]["loss"] for gamma in (0.0, 1.0))
    difference = jax.tree.map(np.subtract, on, off)
    assert norm(difference) > 1e-2
    for first, second in zip(jax.tree.leaves(difference), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(first, second, rtol=1e-3, atol=1e-5)


def test_the_teacher_s_parameters_are_constants():
    method, _, moved, clock, batch = digits_case()

    def by_teacher(state):
        return method.loss(moved.params, moved._replace(method_state=state), clock, batch, None)[0]

    assert norm(jax.jit(jax.grad(by_teacher))(moved.method_state)) == 0


def test_positive_scaling_of_the_maps_does_not_move_the_attention_loss():
    method = lwm(table())
    kernels = np.stack([STUDENT, OTHER]), np.stack([TEACHER, TEACHER])
    found = []
    for scale in (1.0, 7.0):
        learner = made(method, (np.array([1, 2, 2]) * scale, kernels[0]), ([2.0, 1.0, 2.0], kernels[1]))
        metrics, slopes = evaluate(method, learner, SECOND, batch_of(1), of=("attention",))
        found.append(metrics["attention"])
        by_map = np.asarray(slopes["attention"]["map"])
        assert np.abs(by_map).max() > 1e-2
        np.testing.assert_allclose(by_map @ learner.params["map"], 0, atol=1e-6)
    np.testing.assert_allclose(found[0], found[1], rtol=1e-6)


def test_a_map_that_is_zero_everywhere_gives_zero_and_no_nan():
    method = lwm(table())
    learner = made(method, (np.zeros(3), np.stack([STUDENT, OTHER])), (UNIT, np.stack([TEACHER, OTHER])))
    metrics, slopes = evaluate(method, learner, SECOND, batch_of(1), of=("loss", "attention"))
    assert metrics["attention"] == 0
    for leaf in jax.tree.leaves(slopes):
        assert np.isfinite(leaf).all()


def test_on_the_first_task_there_is_classification_alone():
    method, _, moved, clock, batch = digits_case()
    first = make_clock(classes=clock.classes)
    batch = batch._replace(tasks=np.zeros_like(batch.tasks))
    metrics, slopes = evaluate(method, moved, first, batch, of=("distillation", "attention"))
    assert metrics["distillation"] == 0
    assert metrics["attention"] == 0
    assert metrics["loss"] == metrics["classification"]
    assert norm(slopes) == 0
    plain, softmax = finetune(method.network), lwm(method.network, classification="ce_new")
    value = jax.jit(lambda params: softmax.loss(params, moved, first, batch, None)[0])(moved.params)
    own = jax.tree.map(np.asarray, task_params.take_row(moved.params, first.task, moved.rows))
    focused = moved._replace(params=own, rows=task_params.resting(method.per_task, tasks=3))
    expected = jax.jit(lambda params: plain.loss(params, focused, first, batch, None)[0])(own)
    np.testing.assert_allclose(value, expected, rtol=1e-6)


def test_the_teacher_of_the_last_visit_was_the_student_before_it():
    """One program for the stream; both kept teachers are compared to the students that fewer rounds end with."""
    stream = conformance.stream(scenario="class")
    network = networks.cnn((8, 8, 1), 3, channels=((4,),), dense=(), pooled=True, mean=stream.mean, std=stream.std)
    base = lwm(network)

    def init(key, sizes):
        params, collections, state, hyper = base.init(key, sizes)
        return params, collections, state._replace(base={"previous": state.teacher}), hyper

    def end_phase(learner, clock, fold, key):
        state = learner.method_state._replace(base={"previous": learner.method_state.teacher})
        return base.end_phase(learner._replace(method_state=state), clock, fold, key)

    method, optimizer = base._replace(init=init, end_phase=end_phase), optax.sgd(1.0, momentum=0.9)
    settings = training.Settings(batch_size=16, learning_rate=0.05, attention_images=3)
    run = training.make_run(method, optimizer, stream, settings)
    shorter, result = (run(jax.random.key(0), stream.tables, rounds=(0, rounds)) for rounds in (2, 3))
    ends = [shorter.learner, result.learner]
    assert run.step.traces == 1
    state = ends[1].method_state
    chex.assert_trees_all_equal(state.teacher["params"], ends[1].params)
    chex.assert_trees_all_close(state.base["previous"]["params"], ends[0].params, rtol=1e-4, atol=1e-5)
    for before, after in zip(*(jax.tree.leaves(end.params) for end in ends), strict=True):
        assert np.abs(before - after).max() > 1e-3
    # Where it looks for the labels of the first, the middle and another of the first task's test images.
    images, labels = next(streams.experiences(stream)).test
    chosen = np.arange(3) * len(labels) // 3

    @jax.jit
    def looked(end):
        own = task_params.take_row(end.params, jnp.int32(0), end.rows)
        maps = network.encode(own, end.collections, images[chosen], train=False, key=None)[0]
        return pooled_linear_cam(maps, own["head"]["kernel"], labels[chosen])

    for end, found in zip(ends, np.asarray(result.evaluation.attention)[1:], strict=True):
        np.testing.assert_allclose(found, looked(end), rtol=1e-4, atol=1e-5)
    entry = report.runs(result)[0]["attention"]
    assert (entry["maps"]["shape"][:2], entry["images"]) == ([3, 3], None)


def test_networks_and_options_that_cannot_be_are_refused():
    for name in ("classification", "distilled", "distance"):
        with pytest.raises(ValueError, match=f"lwm's {name} is 'ce', but must be one of"):
            lwm(table(), **{name: "ce"})
    with pytest.raises(ValueError, match="a softmax over one class is always 1"):
        lwm(table()._replace(outputs=1), classification="ce_new")
    with pytest.raises(ValueError, match="per_task is empty"):
        lwm(table()._replace(per_task=()))
    with pytest.raises(ValueError, match=r"\[B, 12\]"):
        lwm(networks.mlp((8, 8, 1), 3, hidden=(12,)))
    network = networks.cnn((8, 8, 1), 3, channels=((4,),), dense=(), pooled=True, normalization="batch")
    own = "batch_stats/conv_norm_0_0/mean"
    with pytest.raises(ValueError, match=own):
        lwm(network._replace(per_task=(*network.per_task, own)))


def test_a_pooled_cnn_s_features_are_the_means_of_its_maps_and_its_head_reads_them():
    network = networks.cnn((8, 8, 1), 3, channels=((4,), (6,)), dense=(), pooled=True)
    params, collections = jax.jit(network.init)(jax.random.key(0))
    inputs = np.random.default_rng(1).uniform(size=(5, 8, 8, 1)).astype(np.float32)
    output = jax.jit(network.apply)(params, collections, inputs)
    assert output.maps.shape == (5, 2, 2, 6)
    np.testing.assert_allclose(output.features, np.asarray(output.maps).mean((1, 2)), rtol=1e-6)
    expected = np.asarray(output.features) @ np.asarray(params["head"]["kernel"]) + np.asarray(params["head"]["bias"])
    np.testing.assert_allclose(output.logits, expected, rtol=1e-5, atol=1e-6)
    wire = next(wire for wire in network.wiring if wire.path == "head/kernel")
    assert (wire.inputs, wire.repeat) == ("conv_1_0", 1)


def test_the_teacher_looks_with_its_own_statistics():
    """Behind the maps, in the dense layers' normalisation: a teacher and a student that differ in these alone."""
    stream = conformance.stream()
    shown = {"mean": stream.mean, "std": stream.std}
    network = networks.cnn((8, 8, 1), 3, channels=((4,),), dense=(5,), normalization="batch", **shown)
    method = lwm(network)
    make = lambda key: training.make_learner(method, optax.sgd(1.0), stream.tables, 0.1, key)
    learner = shared.focus(jax.jit(make)(jax.random.key(0)), 1)
    draw = np.random.default_rng(0)
    stats = learner.collections["batch_stats"]
    numbers = {"mean": draw.normal(size=5), "var": draw.uniform(0.1, 4, 5)}
    moved = {**stats, "dense_norm_0": {name: jnp.asarray(value, jnp.float32) for name, value in numbers.items()}}
    student = learner._replace(collections={**learner.collections, "batch_stats": moved})
    batch = shared.sequential(stream.tables, stream.tables.train, 1, 0, 8)
    here = make_clock(task=1, classes=stream.tables.classes)
    found = method.loss(student.params, student, here, batch, None)[1][1]["attention"]
    own = {**learner.params, "head": jax.tree.map(lambda leaf: leaf[0], learner.params["head"])}
    heads = [
        lambda maps, c=c: network.decode(own, c, maps, train=False, key=None)[0][0]
        for c in (student.collections, learner.collections)
    ]
    maps = network.encode(own, learner.collections, batch.inputs, train=False, key=None)[0]
    top = jnp.argmax(heads[0](maps), axis=1).astype(jnp.int32)
    expected = losses.attention_distillation(*(grad_cam(head, maps, top) for head in heads)).mean()
    assert expected > 0.01
    np.testing.assert_allclose(found, expected, rtol=1e-4)
