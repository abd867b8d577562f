"""The five baselines: what each trains, and what each leaves alone."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cljax import methods, networks, streams, task_params, training
from cljax.methods.common import forward
from cljax.training.step import make_train_step
from cljax.types import Scenario, make_clock
from tests import conformance, shared
from tests.plain import make_visit
from tests.regression import learner_of

SGD = optax.sgd(1.0)
small = functools.partial(shared.small, hidden=(8, 6))
SETTINGS = training.Settings(batch_size=16, learning_rate=0.05, evaluation_batch=32)


def engine_and_learner(method, stream, seed=0):
    engine = training.make_engine(
        method, SGD, SETTINGS, scenario="task", max_examples=streams.max_examples(stream.tables)
    )
    return engine, jax.jit(engine.init)(jax.random.key(seed), stream.tables)


def loss_of(method, learner, clock, batch):
    return lambda params: method.loss(params, learner, clock, batch, None)[0]


def log_softmax(values):
    shifted = values - values.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def test_fine_tuning_s_loss_is_cross_entropy_over_the_task_s_classes_and_weights():
    stream = conformance.stream()
    method = methods.finetune(small(stream))
    _, learner = engine_and_learner(method, stream)
    clock = make_clock(task=1, newest=1, classes=stream.tables.classes)
    focused = shared.focus(learner, clock.task)
    batch = shared.sequential(stream.tables, stream.tables.train, clock.task, 2, 16)
    assert 0 < np.sum(batch.weights) < 16
    value = jax.jit(loss_of(method, focused, clock, batch))(focused.params)
    logits = np.asarray(jax.jit(method.predict)(learner, batch.inputs, clock.task))[:, :2]
    each = -log_softmax(logits)[np.arange(16), batch.labels]
    np.testing.assert_allclose(value, np.average(each, weights=batch.weights), rtol=1e-5)


def test_joint_training_s_loss_and_gradient_are_the_sum_over_each_example_s_own_head():
    stream = conformance.stream()
    network = small(stream)
    method = methods.joint(network)
    _, learner = engine_and_learner(method, stream)
    clock = make_clock(task=2, newest=2, classes=stream.tables.classes)
    table = stream.tables.train
    batch = shared.gather(stream.tables, table, np.asarray([0, 1, *(table.start[1:] + 1), *table.start[1:]]))
    focused = shared.focus(learner, clock.task)
    tasks = np.asarray(batch.tasks)

    def slow(params):
        total = 0.0
        for index, task in enumerate(tasks):
            own = {**params, "head": jax.tree.map(lambda leaf, task=task: leaf[task], params["head"])}
            logits = network.apply(own, learner.collections, batch.inputs[index : index + 1]).logits[0]
            kept = logits[: int(stream.tables.classes[task].sum())]
            total = total - jax.nn.log_softmax(kept)[batch.labels[index]]
        return total / 6

    found = jax.jit(jax.value_and_grad(loss_of(method, focused, clock, batch)))(focused.params)
    expected = jax.jit(jax.value_and_grad(slow))(learner.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), found, expected)


def test_joint_training_by_one_softmax_over_all_classes_seen():
    """The class of an example of the first task is told from those of the second, and from none of the third."""
    stream = conformance.stream(scenario="class")
    network = small(stream)
    method = methods.joint(network, scope="concatenated")
    _, learner = engine_and_learner(method, stream)
    clock = make_clock(task=1, newest=1, classes=stream.tables.classes)
    table = stream.tables.train
    batch = shared.gather(stream.tables, table, np.asarray([0, 1, *(table.start[1] + np.arange(3))]))
    focused = shared.focus(learner, clock.task)
    params = focused.params

    def slow(head):
        of = lambda task: (
            network.apply(
                {**params, "head": jax.tree.map(lambda leaf: leaf[task], head)}, learner.collections, batch.inputs
            ).logits
        )
        logits = [of(0), of(1)[:, :2]]
        place = jnp.asarray(3 * batch.tasks + batch.labels)
        logs = jax.nn.log_softmax(jnp.concatenate(logits, axis=1))
        return -jnp.take_along_axis(logs, place[:, None], axis=1).mean()

    by_head = lambda head: method.loss({**params, "head": head}, focused, clock, batch, None)[0]
    found, expected = (jax.jit(jax.value_and_grad(each))(params["head"]) for each in (by_head, slow))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), found, expected)

    def value(scope, scenario):
        there = clock._replace(scenario=Scenario(scenario))
        return float(jax.jit(loss_of(methods.joint(network, scope=scope), focused, there, batch))(params))

    whole, own = value("concatenated", "task"), value("per_task", "class")
    assert abs(whole - own) > 0.1
    assert [value("auto", scenario) for scenario in ("task", "domain", "class")] == [own, own, whole]
    for name in ("sampling", "scope"):
        with pytest.raises(ValueError, match=f"joint's {name} is 'all', but must be one of"):
            methods.joint(network, **{name: "all"})
    with pytest.raises(ValueError, match="joint with one softmax over all tasks' heads needs leaves that belong"):
        methods.joint(network._replace(per_task=()), scope="concatenated")
    mixed = clock._replace(single_label=jnp.array([True, False, True]))
    with pytest.raises(ValueError, match="choose scope='per_task'"):
        method.loss(params, focused, mixed, batch, None)


def test_fine_tuning_of_all_outputs_seen():
    """The old head is among the classes, and trains, but for the warm-up; the head of a task to come does neither."""
    stream = conformance.stream()
    network = small(stream)
    method = methods.finetune(network, scope="concatenated", warm_up=0.5)
    _, learner = engine_and_learner(method, stream)
    clock = make_clock(task=1, phase=1, classes=stream.tables.classes)
    learner = shared.focus(learner, clock.task)
    batch = shared.sequential(stream.tables, stream.tables.train, clock.task, 0, 8)
    value, gradients = jax.jit(jax.value_and_grad(loss_of(method, learner, clock, batch)))(learner.params)
    kernel, bias = (np.asarray(learner.params["head"][name]) for name in ("kernel", "bias"))
    body = {**learner.params, "head": {"kernel": kernel[0], "bias": bias[0]}}
    features = np.asarray(jax.jit(network.apply)(body, learner.collections, batch.inputs).features)
    logits = np.concatenate([features @ kernel[0] + bias[0], (features @ kernel[1] + bias[1])[:, :2]], axis=1)
    logs, place = log_softmax(logits), 3 + np.asarray(batch.labels)
    np.testing.assert_allclose(value, -logs[np.arange(8), place].mean(), rtol=1e-5)
    slopes = features.T @ (np.exp(logs) - np.eye(5)[place]) / 8
    found = np.asarray(gradients["head"]["kernel"])
    np.testing.assert_allclose(found[0], slopes[:, :3], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found[1][:, :2], slopes[:, 3:], rtol=1e-4, atol=1e-6)
    assert not found[2].any()
    trained = jax.jit(lambda clock: method.update_mask(learner, clock)[0]["head"]["bias"])
    assert [np.ravel(trained(make_clock(task=1, phase=phase))).tolist() for phase in (0, 1)] == [[0, 1, 0], [1, 1, 0]]
    assert methods.finetune(network).stacked == ()
    with pytest.raises(ValueError, match="finetune's scope is 'all', but must be one of auto, per_task, concatenated"):
        methods.finetune(network, scope="all")
    with pytest.raises(ValueError, match="finetune with one softmax over all tasks' heads needs leaves that belong"):
        methods.finetune(network._replace(per_task=()), scope="concatenated")


@pytest.mark.parametrize("name", ["adamw", "momentum"])
def test_joint_training_leaves_heads_of_tasks_not_yet_visited_alone(name):
    """Weight decay would shrink them."""
    stream = conformance.stream()
    method = methods.joint(small(stream))
    optimizer, _ = conformance.OPTIMIZERS[name]
    make = lambda key: training.make_learner(method, optimizer, stream.tables, 0.1, key)
    learner = jax.jit(make)(jax.random.key(0))
    clock = make_clock(task=1, classes=stream.tables.classes)
    focused = shared.focus(learner, clock.task)
    batch = shared.gather(stream.tables, stream.tables.train, np.asarray([0, stream.tables.train.start[1]]))
    step = make_train_step(method, optimizer)
    after, _, _ = step(focused, method.update_mask(focused, clock), clock, batch, jax.random.key(0))
    for leaves in zip(*(jax.tree.leaves(each.params["head"]) for each in (focused, after)), strict=True):
        old, new = map(np.asarray, leaves)
        assert old[2].tobytes() == new[2].tobytes()
        assert (old[:2] != new[:2]).any()


STACKED = {
    "joint": methods.joint,
    "lwf": methods.lwf,
    "lwf_mc": functools.partial(methods.lwf_mc, push_unseen=False),
    "lwm": methods.lwm,
}


@pytest.mark.parametrize("name", STACKED)
def test_stacked_rows_and_their_statistics_train_for_tasks_seen_alone(name):
    """The update masks of the head, and of the statistics that belong to a task, by a step."""
    stream = conformance.stream()
    own = ("head/kernel", "head/bias", "batch_stats/norm_0/mean")
    network = small(stream, hidden=(6,), normalization="batch")._replace(per_task=own)
    if name == "lwm":
        network = networks.cnn((8, 8, 1), 3, channels=((4,),), dense=(), pooled=True)
    method, clock = STACKED[name](network), make_clock(task=1, phase=1, classes=stream.tables.classes)
    make = lambda key: training.make_learner(method, SGD, stream.tables, 0.1, key)
    focused = shared.focus(jax.jit(make)(jax.random.key(0)), clock.task)
    mask = method.update_mask(focused, clock)
    assert [leaf.reshape(-1).tolist() for leaf in mask[0]["head"].values()] == [[1, 1, 0]] * 2
    if name != "lwm":
        batch = shared.sequential(stream.tables, stream.tables.train, clock.task, 0, 8)
        after, _, _ = make_train_step(method, SGD)(focused, mask, clock, batch, jax.random.key(0))
        old, new = (np.asarray(each.collections["batch_stats"]["norm_0"]["mean"]) for each in (focused, after))
        assert (old != new).any(axis=-1).tolist() == [True, True, False]


def test_joint_training_reads_all_heads_with_one_encoding():
    stream = conformance.stream()
    network = small(stream, normalization="batch", dropout=0.5)
    method = methods.joint(network)
    _, learner = engine_and_learner(method, stream)
    images = stream.tables.examples[:5]
    read = lambda params: (
        forward(network, method.view, params, learner, make_clock(), images, key=jax.random.key(0)).logits
    )
    products = str(jax.make_jaxpr(read)(learner.params)).count("dot_general")
    assert products == 3, "two hidden layers once, and one batched product for all heads"


def test_joint_training_sees_only_tasks_up_to_now():
    """With the last task's examples made useless, the learner after the second task keeps every bit."""
    stream = conformance.stream(schedule=streams.lifelong(3, 1))
    other = stream.tables.train.labels.copy()
    other[stream.tables.train.start[2] :] = 0
    tables = stream.tables._replace(train=stream.tables.train._replace(labels=other))
    run = training.make_run(methods.joint(small(stream, hidden=(8,))), SGD, stream, SETTINGS)
    prints = [np.asarray(run(jax.random.key(0), given).evaluation.fingerprint) for given in (stream.tables, tables)]
    np.testing.assert_array_equal(prints[0][:2], prints[1][:2])
    assert (prints[0][2] != prints[1][2]).all()


@pytest.mark.parametrize("normalization", [None, "batch", "feature"])
def test_freezing_trains_own_leaves_only_after_the_first_task(normalization):
    stream = conformance.stream()
    method = methods.freezing(small(stream, hidden=(8,), normalization=normalization, dropout=0.5))
    optimizer, learning_rate = conformance.OPTIMIZERS["adamw"]
    settings = SETTINGS._replace(learning_rate=learning_rate)
    max_examples = streams.max_examples(stream.tables)
    engine = training.make_engine(method, optimizer, settings, scenario="task", max_examples=max_examples)
    fit = jax.jit(make_visit(engine, longest=1))
    key = jax.random.key(0)
    learner, after = jax.jit(engine.init)(key, stream.tables), []
    for task in range(3):
        learner, _ = fit(learner, make_clock(round=task, task=task), stream.tables, key, jnp.asarray([1]))
        after.append({"params": learner.params, **learner.collections})
    paths = task_params.leaf_paths(after[0])
    assert any("head" in path for path in paths)
    leaves = (map(np.asarray, jax.tree.leaves(tree)) for tree in (after[0], after[2]))
    for path, first, last in zip(paths, *leaves, strict=True):
        if "head" in path:
            assert last[0].tobytes() == first[0].tobytes()
            assert (last[1:] != first[1:]).any()
        else:
            assert last.tobytes() == first.tobytes(), path


def test_freezing_gives_a_task_s_own_statistics_those_of_the_first():
    """No others are estimated; weights of a task's own are drawn."""
    stream = conformance.stream()
    network = networks.mlp((8, 8, 1), 3, hidden=(5, 4), normalization="batch")
    method = methods.freezing(networks.own_last_layers(network, 1))
    learner = training.make_learner(method, optax.sgd(1.0), stream.tables, 0.1, jax.random.key(0))
    first = shared.focus(learner, 0)
    raised = lambda leaf: leaf + 3 if leaf.dtype == jnp.float32 else leaf
    first = first._replace(collections=jax.tree.map(raised, first.collections))
    here = shared.focus(task_params.write_back(first, jnp.int32(0)), 1)
    begun = method.begin_task(here, make_clock(task=1), None, jax.random.key(0))
    assert begun.collections["batch_stats"]["norm_1"]["mean"].tolist() == [3] * 4
    assert begun.collections["batch_stats"]["norm_0"]["mean"].tolist() == [3] * 5, "which all tasks share"
    np.testing.assert_array_equal(begun.params["dense_1"]["kernel"], learner.params["dense_1"]["kernel"][1])


def test_freezing_and_others_need_something_to_learn():
    shared = networks.mlp((8, 8, 1), 3)._replace(per_task=())
    with pytest.raises(ValueError, match="freezing needs leaves that belong to a task"):
        methods.freezing(shared)
    with pytest.raises(ValueError, match="Choose from 1 to 1"):
        methods.hard_sharing(networks.mlp((8, 8, 1), 3), own_layers=2)


def test_single_task_learning_does_not_know_of_the_other_tasks():
    stream = conformance.stream()
    method = methods.single_task(small(stream, hidden=(8,), normalization="batch"))
    run = training.make_run(method, SGD, stream, SETTINGS)
    table = stream.tables.train
    other = table.labels.copy()
    other[: table.start[1]] = 0
    scrambled = stream.tables._replace(train=table._replace(labels=other))
    found = [np.asarray(run(jax.random.key(0), tables).evaluation.fingerprint) for tables in (stream.tables, scrambled)]
    np.testing.assert_array_equal(found[0][-1] == found[1][-1], [False, True, True])


def test_hard_sharing_gives_each_task_its_last_layers_with_their_statistics():
    like = conformance.stream()
    network = small(like, normalization="batch")
    assert set(methods.hard_sharing(network).per_task) == {
        "dense_1/kernel",
        "dense_1/bias",
        "norm_1/scale",
        "norm_1/bias",
        "head/kernel",
        "head/bias",
        "batch_stats/norm_1/mean",
        "batch_stats/norm_1/var",
    }


def test_bytes_per_task_are_those_of_the_rows():
    from cljax.report.record import packed_bytes_per_task
    from cljax.training.cost import bytes_per_task

    stream = conformance.stream()
    network = small(stream)
    sizes = {"head": 4 * (6 * 3 + 3), "dense_1": 4 * (8 * 6 + 6), "dense_0": 4 * (64 * 8 + 8)}
    gates = 4 * (8 + 6)
    expected = {
        "finetune": sizes["head"],
        "freezing": sizes["head"],
        "joint": sizes["head"],
        "hard_sharing": sizes["head"] + sizes["dense_1"],
        "single_task": sum(sizes.values()) + gates,
    }

    def shapes(method):
        make = lambda key: training.make_learner(method, SGD, stream.tables, 0.05, key)
        return jax.eval_shape(make, jax.random.key(0))

    for name, size in expected.items():
        learner = shapes(getattr(methods, name)(network))
        assert bytes_per_task(learner, network) == size, name
        assert packed_bytes_per_task(learner, network) is None
    packed = packed_bytes_per_task(shapes(methods.tfm(small(stream))), network)
    assert packed == sizes["head"] + 11 / 3  # 14 features of 2 bits for each of 3 tasks are 11 bytes


NUMBERS = {
    "clnp": {
        "l1": -1.0,
        "margin": -0.1,
        "thresholds": (-1.0,),
        "fine_tune": 1.0,
        "fine_tune_factor": -1.0,
    },
    "den": {
        "initial": 1.5,
        "expansion": -1,
        "loss_threshold": -1.0,
        "drift_threshold": -1.0,
        "l1": -1.0,
        "group_lasso": -1.0,
        "drift_penalty": -1.0,
    },
    "feature_extraction": {"hidden": 0, "learning_rate_factor": 0.0, "dropout": 1.0},
    "finetune": {"shared_learning_rate": 1.5, "warm_up": 1.0},
    "hard_sharing": {"own_layers": 1.5},
    "hat": {"strength": -1.0, "max_scale": 0.0},
    "icarl": {"memory_size": 0},
    "l2_constraint": {"strength": -1.0, "warm_up": -0.5},
    "lwf": {"temperature": 0.0, "strength": -1.0, "warm_up": 1.0, "own_layers": -1},
    "lwm": {"beta": -1.0, "gamma": -1.0},
    "network_expansion": {"growth": 1.5, "layers": 0, "warm_up": 1.0},
    "progressive": {"reduction": 0.0},
    "packnet": {"prune": 1.5, "retrain": 1.0, "retrain_factor": -1.0},
    "tensor_factorization": {"ranks": 0.0},
    "tfm": {"margin": -0.1, "growth": 1.5},
}
"""For each method its numbers, each with a value out of range."""


@pytest.mark.parametrize(("name", "option"), [(name, option) for name, given in NUMBERS.items() for option in given])
def test_numbers_out_of_range_are_refused_by_name(name, option):
    network = networks.cnn((8, 8, 1), 2, channels=((4,),), dense=(6, 6))
    for wrong in (NUMBERS[name][option], float("nan"), float("inf"), -float("inf"), 1e39, "1"):
        with pytest.raises(ValueError, match=f"{name}'s {option.removesuffix('s')}") as error:
            getattr(methods, name)(network, **{option: (wrong,) if option == "thresholds" else wrong})
        assert "\n" not in str(error.value)


def test_numbers_in_lists_and_of_a_phase_s_rate():
    network = networks.mlp((8, 8, 1), 2, hidden=(6,))
    for l1, learning_rate, words in (
        (float("nan"), 0.1, "clnp's l1 is nan"),
        (1e-5, -0.1, "clnp's candidate .* is -0.1"),
    ):
        with pytest.raises(ValueError, match=words):
            methods.clnp(network, candidates=[(l1, learning_rate)])
    with pytest.raises(ValueError, match=r"clnp's l1 is -1"):
        methods.clnp(network, l1=(1e-5, -1.0))


@pytest.mark.parametrize("shared", [False, True])
def test_a_traced_task_that_does_not_exist_has_nan_for_logits(shared):
    stream = conformance.stream()
    method = methods.finetune(small(stream, **({"per_task": ()} if shared else {})))
    _, learner = engine_and_learner(method, stream)
    images = stream.tables.examples[:2]
    tasks = np.array([-1, 0, 2, 3], np.int32)
    found = np.asarray(jax.jit(jax.vmap(lambda task: method.predict(learner, images, task)))(tasks))
    assert np.isnan(found).all(axis=(1, 2)).tolist() == [True, False, False, True]
    assert np.isfinite(found[1:3]).all()
    with pytest.raises(ValueError, match="task is 3, but must be a whole number from 0 to 2"):
        method.predict(learner, images, 3)


@pytest.mark.parametrize(
    "build", [methods.freezing, functools.partial(methods.feature_extraction, hidden=5, dropout=0.0)]
)
def test_what_is_frozen_runs_in_evaluation_mode_from_the_second_task_on(build):
    stream = conformance.stream()
    network = small(stream, normalization="batch", dropout=0.5)
    method = build(network)
    learner = learner_of(method)
    batch = shared.sequential(stream.tables, stream.tables.train, 1, 0, 8)
    here = make_clock(task=1, classes=stream.tables.classes)
    body = {name: leaf for name, leaf in learner.params.items() if name != "added_classifier"}
    output = network.apply(body, learner.collections, batch.inputs)
    logits = np.asarray(output.logits)
    if "added_classifier" in learner.params:
        layers = jax.tree.map(np.asarray, learner.params["added_classifier"])
        hidden = np.maximum(np.asarray(output.features) @ layers["hidden"]["kernel"] + layers["hidden"]["bias"], 0)
        logits = hidden @ layers["output"]["kernel"] + layers["output"]["bias"]
    own = logits[:, :2]
    expected = (np.log(np.exp(own).sum(1)) - own[np.arange(8), np.asarray(batch.labels)]).mean()
    for key in (None, jax.random.key(0)):
        value = method.loss(learner.params, learner, here, batch, key)[0]
        np.testing.assert_allclose(value, expected, rtol=1e-5)
