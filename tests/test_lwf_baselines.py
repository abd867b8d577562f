"""What Learning without Forgetting is compared to: values, what moves, what a new task begins with, who is drawn."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cljax import methods, streams, task_params, training
from cljax.training.cost import bytes_per_task
from cljax.training.step import make_train_step, phase_learning_rate
from cljax.types import Memory, Phase, Sizes, Table, make_clock
from tests import conformance
from tests.shared import bits, focus, sequential, small
from tests.test_lwf import SETTINGS, phases_of
from tests.test_methods import log_softmax

CLASSES = conformance.stream().tables.classes
SECOND = make_clock(task=1, classes=CLASSES)


@functools.cache
def learner_of(name, **options):
    """A method, its learner at rest and focused on the second of three tasks, and a batch of that task."""
    stream = conformance.stream()
    method = getattr(methods, name)(small(stream), **options)
    make = lambda key: training.make_learner(method, optax.sgd(1.0), stream.tables, 0.1, key, {"train": 120})
    learner = jax.jit(make)(jax.random.key(0))
    batch = sequential(stream.tables, stream.tables.train, 1, 0, 8)
    return method, learner, focus(learner, 1), batch


def log_likelihood(logits, batch):
    return log_softmax(np.asarray(logits)[:, :2])[np.arange(8), batch.labels].mean()


# Fine-tuning


def test_fine_tuning_has_one_phase_and_no_number_of_its_own_unless_asked_for():
    method, learner, _, _ = learner_of("finetune")
    assert method.phases == (Phase(),)
    assert set(learner.hyper) == {"learning_rate"}


def test_a_lowered_shared_rate_holds_from_the_second_task_on():
    """The gradient and the head's step are those of plain fine-tuning."""
    method, learner, focused, batch = learner_of("finetune", shared_learning_rate=0.25)
    steps = {}
    for number, one in enumerate((learner_of("finetune")[0], method)):
        step = make_train_step(one, optax.sgd(1.0))
        for clock in (SECOND, SECOND._replace(newest=jnp.int32(0))):
            after, _, _ = step(focused, one.update_mask(focused, clock), clock, batch, jax.random.key(0))
            steps[number, int(clock.newest)] = jax.tree.map(np.subtract, after.params, focused.params)
    assert float(learner.hyper["shared_learning_rate"]) == 0.25
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-7)
    jax.tree.map(close, steps[1, 0], steps[0, 0])
    jax.tree.map(close, steps[1, 1]["head"], steps[0, 1]["head"])
    jax.tree.map(lambda slow, fast: close(slow, 0.25 * fast), steps[1, 1]["dense_0"], steps[0, 1]["dense_0"])
    for wrong in (-0.1, 1.5):
        with pytest.raises(ValueError, match=f"shared_learning_rate is {wrong}, but must be a finite number of"):
            methods.finetune(method.network, shared_learning_rate=wrong)


@functools.cache
def constrained_visits():
    """With L2 constraint, whose phases are fine-tuning's: the learner along a first and a second visit."""
    method = methods.l2_constraint(small(conformance.stream(), normalization="batch"))
    engine, learner, begin_visit, phase = phases_of(method)
    focused = phase(begin_visit(learner, make_clock()), make_clock(phase=1))[2]
    begun = begin_visit(engine.end_visit(focused, make_clock()), SECOND)
    warmed = phase(begun, SECOND)[2]
    joined = phase(warmed, make_clock(task=1, phase=1))[2]
    again = phase(begin_visit(engine.end_visit(joined, SECOND), make_clock(newest=1, first=False)), SECOND)
    assert engine.step.traces == 1
    return method, begun, warmed, joined, again[0]


def test_the_warm_up_trains_the_head_alone_and_leaves_shared_statistics():
    method, begun, warmed, joined, _ = constrained_visits()
    assert [(phase.name, phase.fraction, phase.fresh_optimizer) for phase in method.phases] == [
        ("warm-up", 0.25, True),
        ("train", 0.75, False),
    ]
    others = lambda learner: ({**learner.params, "head": None}, learner.collections["batch_stats"])
    assert bits(others(warmed)) == bits(others(begun))
    assert bits(warmed.params["head"]) != bits(begun.params["head"])
    pairs = zip(jax.tree.leaves(others(warmed)), jax.tree.leaves(others(joined)), strict=True)
    assert all(np.any(np.asarray(old) != np.asarray(new)) for old, new in pairs)
    with pytest.raises(ValueError, match=r"finetune's warm_up is 1\.0"):
        methods.finetune(method.network, warm_up=1.0)
    assert len(methods.finetune(method.network._replace(per_task=()), warm_up=0.5).phases) == 1


# L2 constraint


def test_the_penalty_is_half_the_squared_way_of_shared_weights_and_biases():
    method, _, focused, batch = learner_of("l2_constraint", strength=0.4)
    focused = focused._replace(params=jax.tree.map(lambda leaf: np.asarray(leaf) + np.float32(0.01), focused.params))
    anchor = focused.method_state.teacher["params"]["dense_0"]

    @jax.jit
    def values(params, clock):
        of = lambda params: method.loss(params, focused, clock, batch, None)
        (value, (_, metrics)), gradients = jax.value_and_grad(of, has_aux=True)(params)
        return value, metrics, gradients

    clocks = SECOND, make_clock(task=1, newest=0, classes=CLASSES)
    (value, metrics, gradients), (plain, _, plain_gradients) = (
        jax.tree.map(np.asarray, values(focused.params, clock)) for clock in clocks
    )
    size = sum(leaf.size for leaf in jax.tree.leaves(anchor))
    np.testing.assert_allclose(metrics["penalty"], 0.5 * size * 0.01**2, rtol=1e-4)
    np.testing.assert_allclose(value - plain, 0.4 * metrics["penalty"], rtol=1e-3)
    np.testing.assert_allclose(plain, metrics["classification"], rtol=1e-6)
    for name, pull in (("dense_0", 0.4 * 0.01), ("head", 0.0)):
        for leaf in ("kernel", "bias"):
            np.testing.assert_allclose(gradients[name][leaf], plain_gradients[name][leaf] + pull, atol=1e-6)


def test_the_anchor_is_where_the_visit_began_revisits_too():
    _, begun, warmed, joined, again = constrained_visits()
    anchor = lambda learner: bits({**learner.method_state.teacher["params"], "head": None})
    shared = lambda learner: bits({**learner.params, "head": None})
    assert anchor(begun) == shared(begun) == anchor(warmed)
    assert anchor(joined) == shared(joined) == anchor(again)
    assert anchor(joined) != anchor(begun)


# Feature extraction


def test_a_new_task_s_logits_are_two_layers_on_the_first_task_s_features():
    method, learner, focused, batch = learner_of("feature_extraction", hidden=5, dropout=0.0)
    network, body = method.network, {name: leaf for name, leaf in focused.params.items() if name != "added_classifier"}
    apply, predict = jax.jit(network.apply), jax.jit(method.predict)
    features = np.asarray(apply(body, focused.collections, batch.inputs).features)
    layers = jax.tree.map(np.asarray, focused.params["added_classifier"])
    hidden = np.maximum(features @ layers["hidden"]["kernel"] + layers["hidden"]["bias"], 0)
    logits = hidden @ layers["output"]["kernel"] + layers["output"]["bias"]
    np.testing.assert_allclose(predict(learner, batch.inputs, jnp.int32(1)), logits, rtol=1e-5, atol=1e-6)
    of = jax.jit(
        jax.value_and_grad(lambda params, clock: method.loss(params, focused, clock, batch, jax.random.key(0))[0])
    )
    value, gradients = of(focused.params, SECOND)
    np.testing.assert_allclose(value, -log_likelihood(logits, batch), rtol=1e-5)
    assert all(np.abs(leaf).max() == 0 for name in body for leaf in gradients[name].values())
    assert all(np.abs(leaf).max() > 0 for layer in gradients["added_classifier"].values() for leaf in layer.values())
    first = task_params.take_row(learner.params, jnp.int32(0), learner.rows)
    own = apply({name: first[name] for name in body}, learner.collections, batch.inputs).logits
    np.testing.assert_allclose(predict(learner, batch.inputs, jnp.int32(0)), own, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("computed", ["bfloat16", "float32"])
def test_classifiers_have_the_dtype_of_the_features(computed):
    stream = conformance.stream()
    network, cast = small(stream), lambda tree, dtype: jax.tree.map(lambda leaf: leaf.astype(dtype), tree)
    narrow = network._replace(
        init=lambda key: cast(network.init(key), "bfloat16"),
        encode=lambda params, *rest, **options: network.encode(cast(params, computed), *rest, **options),
        decode=lambda params, *rest, **options: network.decode(cast(params, computed), *rest, **options),
    )
    method = methods.feature_extraction(narrow, hidden=5)
    run = training.make_run(method, optax.sgd(0.1), stream, training.Settings(batch_size=8))
    params = jax.eval_shape(run, jax.random.key(0), stream.tables).learner.params
    kinds = {name: {str(leaf.dtype) for leaf in jax.tree.leaves(layer)} for name, layer in params.items()}
    assert kinds == {"dense_0": {"bfloat16"}, "head": {"bfloat16"}, "added_classifier": {computed}}


def test_feature_extraction_trains_the_network_once_then_classifiers_five_times_faster():
    method, _, focused, _ = learner_of("feature_extraction", hidden=5, dropout=0.0)
    expected = {  # task, newest: body, head, classifier, rate
        (0, 0): (1, 1, 0, 1),
        (1, 1): (0, 0, 1, 5),
        (0, 1): (0, 1, 0, 1),
    }
    for (task, newest), trained in expected.items():
        clock = make_clock(task=task, newest=newest)
        mask = method.update_mask(focused, clock)[0]
        found = [jax.tree.leaves(mask[name]) for name in ("dense_0", "head", "added_classifier")]
        assert [{float(leaf) for leaf in leaves} for leaves in found] == [{value} for value in trained[:3]]
        assert phase_learning_rate(method, clock) == trained[3]


def test_dropout_is_of_the_hidden_layer_and_of_training_alone():
    method, _, focused, batch = learner_of("feature_extraction", hidden=2000, dropout=0.5)
    loss = jax.jit(lambda clock, key: method.loss(focused.params, focused, clock, batch, key)[0])
    whole = loss(SECOND, None)
    assert whole == loss(SECOND, None)
    dropped = [float(loss(SECOND, jax.random.key(seed))) for seed in range(8)]
    assert len(set(dropped)) == 8
    np.testing.assert_allclose(np.mean(dropped), whole, rtol=0.1)  # kept units are scaled up


def test_feature_extraction_refuses_what_it_cannot_do():
    network = small(conformance.stream(), hidden=(6, 5))
    with pytest.raises(ValueError, match="features depend on leaves that belong to a task: dense_1/kernel"):
        methods.feature_extraction(network._replace(per_task=("dense_1/kernel", "head/kernel")))
    with pytest.raises(ValueError, match="hidden is 0, but must be a whole number from 1"):
        methods.feature_extraction(network, hidden=0)
    with pytest.raises(ValueError, match="feature_extraction needs leaves that belong to a task"):
        methods.feature_extraction(network._replace(per_task=()))


# Duplicating


@pytest.mark.parametrize("source", ["first", "last"])
def test_a_copy_begins_as_an_earlier_task_s_network_with_a_new_head(source):
    method, learner, _, _ = learner_of("duplicate_and_finetune", source=source)
    begun = method.begin_task(focus(learner, 2), make_clock(task=2), None, None)
    row, rows = {"first": 0, "last": 1}[source], jax.tree.map(np.asarray, learner.params)
    for leaf in ("kernel", "bias"):
        assert bits(begun.params["dense_0"][leaf]) == bits(rows["dense_0"][leaf][row])
        assert bits(begun.params["head"][leaf]) == bits(rows["head"][leaf][2])
    assert bits(rows["dense_0"]["kernel"][0]) != bits(rows["dense_0"]["kernel"][1])
    first = focus(learner, 0)
    assert bits(method.begin_task(first, make_clock(), None, None).params) == bits(first.params)


def test_what_a_task_s_copy_takes_shows_in_its_bytes():
    sizes = {"head": 4 * (6 * 3 + 3), "body": 4 * (64 * 6 + 6), "gate": 4 * 6}
    classifier = 4 * (6 * 5 + 5 + 5 * 3 + 3)
    expected = {
        ("duplicate_and_finetune", ("source", "first")): sum(sizes.values()),
        ("feature_extraction", ("hidden", 5), ("dropout", 0.0)): sizes["head"] + classifier,
        ("l2_constraint", ("strength", 0.4)): sizes["head"] + sizes["body"] / 3,
    }
    for (name, *options), size in expected.items():
        method, learner, _, _ = learner_of(name, **dict(options))
        assert bytes_per_task(learner, method.network) == size, name
    with pytest.raises(ValueError, match="source is 'second', but must be one of first, last"):
        methods.duplicate_and_finetune(method.network, source="second")


# Joint training with balanced tasks


@functools.partial(jax.jit, static_argnames=("train_on", "max_examples"))
def order_of(table, clock, key, **options):
    order, count = streams.epoch_order(table, clock, key, **options)
    return order, streams.task_of(table, order), count


def drawn_of(sizes, clock, seed, **options):
    """An epoch's examples of tasks of so many, whose tasks they are, and where the tasks begin."""
    start = np.cumsum([0, *sizes[:-1]])
    table = Table(np.arange(sum(sizes)), np.zeros(sum(sizes), np.int32), start, np.asarray(sizes))
    order, tasks, count = map(np.asarray, order_of(table, clock, jax.random.key(seed), **options))
    return order[:count], tasks[:count], start


balanced = functools.partial(drawn_of, train_on="balanced")


@pytest.mark.parametrize(("task", "newest"), [(2, 2), (0, 0), (1, 3), (3, 3)])
def test_every_task_seen_gives_as_many_examples_as_the_current_one(task, newest):
    sizes = [9, 3, 5, 2]
    drawn, tasks, start = balanced(sizes, make_clock(task=task, newest=newest), 1, max_examples=9)
    turns = tasks.reshape(sizes[task], newest + 1)
    np.testing.assert_array_equal(turns, np.broadcast_to(np.arange(newest + 1), turns.shape))
    for each in range(newest + 1):
        mine = drawn[tasks == each] - start[each]
        times = np.bincount(mine, minlength=sizes[each])
        assert len(mine) == sizes[task]
        assert times.max() - times.min() <= 1, "without replacement, or again and again"
        assert mine[: sizes[each]].size == len(set(mine[: sizes[each]]))


def test_balanced_draws_are_new_each_epoch_and_do_not_depend_on_max_examples():
    clock, sizes = make_clock(task=2), [9, 3, 5, 2]
    one, _, _ = balanced(sizes, clock, 1, max_examples=9)
    other, _, _ = balanced(sizes, clock, 2, max_examples=9)
    assert (one != other).any()
    assert set(one[one < 9]) != set(other[other < 9]), "another part of a larger task"
    np.testing.assert_array_equal(balanced(sizes, clock, 1, max_examples=20)[0], one)
    memory = Memory(np.zeros([1, 1]), np.zeros(1, np.int32), np.zeros(1, np.int32), np.ones(1, bool))
    with pytest.raises(ValueError, match="'balanced', which draws from tasks' examples and not from a memory"):
        balanced(sizes, clock, 1, max_examples=9, memory=memory)


@pytest.mark.parametrize("newest", [0, 1, 3])
def test_a_turn_has_given_numbers_of_each_task_seen(newest):
    """Five of the first task, two of the second, one of each other, until one of them has too few left."""
    sizes, options = [47, 9, 8, 6], {"train_on": (5, 2, 1), "max_examples": 47}
    drawn, tasks, _ = drawn_of(sizes, make_clock(task=newest), 1, **options)
    turn = np.repeat(np.arange(4), (5, 2, 1, 1))[: (5, 7, 8, 9)[newest]]
    turns = (9, 4, 4, 4)[newest]
    np.testing.assert_array_equal(tasks, np.tile(turn, turns))
    assert len(set(drawn.tolist())) == len(drawn)
    assert (drawn_of(sizes, make_clock(task=newest), 2, **options)[0] != drawn).any()
    if newest == 0:
        drawn, _, _ = drawn_of([3, *sizes[1:]], make_clock(), 1, **options)  # fewer than five: one turn, some again
        assert len(drawn) == 5
        assert sorted(set(drawn.tolist())) == [0, 1, 2]
    with pytest.raises(ValueError, match="which draws from tasks' examples and not from a memory"):
        drawn_of(sizes, make_clock(), 0, memory=1, **options)


def test_the_batches_of_clnp_s_multi_task_training():
    """Ten tasks, the first ten times as large: of 140 examples 50 are its, and half of it is seen in an epoch."""
    drawn, tasks, _ = drawn_of([400, *[40] * 9], make_clock(task=9), 0, train_on=(5, 1), max_examples=400)
    assert len(drawn) == 4 * 140
    for batch in tasks.reshape(4, 140):
        assert np.bincount(batch).tolist() == [50, *[10] * 9]
    assert (drawn < 400).sum() == len(set(drawn[drawn < 400].tolist())) == 200


def test_joint_training_of_all_tasks_at_once():
    """One visit trains every head, the others take no epoch; what trains on its own task refuses such a schedule."""
    schedule = streams.together(3, 2)
    stream = conformance.stream(schedule=schedule)
    network = small(stream)
    method = methods.joint(network, shares=(2, 1))
    assert method.train_on == (2, 1)
    run = training.make_run(method, optax.sgd(1.0), stream, SETTINGS)
    result = run(jax.random.key(0), stream.tables)
    assert run.step.traces == 1
    assert np.isfinite(result.epochs.loss[:, 0]).tolist() == [[False, False], [False, False], [True, True]]
    assert np.isfinite(result.evaluation.accuracy).all(1).tolist() == [False, False, True]
    make = lambda key: training.make_learner(method, optax.sgd(1.0), stream.tables, 0.1, key).params["head"]["bias"]
    fresh, bias = jax.jit(make)(jax.random.key(0)), np.asarray(result.learner.params["head"]["bias"])
    assert (bias != fresh).any(axis=1).all()
    with pytest.raises(ValueError, match=r"no epoch in this schedule.*finetune trains on the task that it visits"):
        training.make_run(methods.finetune(network), optax.sgd(1.0), stream, SETTINGS)
    with pytest.raises(ValueError, match="joint's share is 0"):
        methods.joint(network, shares=(0,))
    with pytest.raises(ValueError, match="Round 2 of the schedule visits task 2 for 0 epochs"):
        streams.visits([(0, 0), (1, 3), (2, 0)])


def test_each_task_s_own_part_of_the_last_hidden_layer():
    """Seven units among three tasks: 3, 2 and 2. No other unit is read, none gets a gradient of another's examples."""
    stream = conformance.stream()
    method = methods.joint(small(stream, hidden=(5, 7)), own_part=True)
    make = lambda key: training.make_learner(method, optax.sgd(1.0), stream.tables, 0.1, key)
    learner = jax.jit(make)(jax.random.key(0))
    parts = np.asarray(learner.method_state["parts"])
    assert np.argmax(parts, axis=0).tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert (parts.sum(axis=0) == 1).all()
    task, clock = jnp.int32(1), make_clock(task=2, classes=stream.tables.classes)
    batch = sequential(stream.tables, stream.tables.train, task, 0, 6)

    @jax.jit
    def slope(learner):
        of = lambda params: method.loss(params, learner, clock, batch, None)[0]
        return jax.grad(of)(learner.params)["dense_1"]["bias"]

    focused = focus(learner, clock.task)
    found = np.asarray(slope(focused))
    assert not found[[0, 1, 2, 5, 6]].any()
    assert found[3:5].any()
    step, update_mask = make_train_step(method, optax.sgd(1.0)), jax.jit(method.update_mask)
    for _ in range(2):  # what a step leaves behind hides no unit
        focused, _, _ = step(focused, update_mask(focused, clock), clock, batch, jax.random.key(0))
    after, before = (np.asarray(each.params["dense_1"]["bias"]) for each in (focused, learner))
    assert (after != before)[3:5].any()
    assert np.asarray(slope(focused))[3:5].any()
    kernel, bias = (np.asarray(learner.params["head"][name])[1] for name in ("kernel", "bias"))
    own = {**learner.params, "head": {"kernel": kernel, "bias": bias}}
    output = jax.jit(method.network.apply)(own, learner.collections, batch.inputs)
    expected = np.asarray(output.features)[:, 3:5] @ kernel[3:5] + bias
    np.testing.assert_allclose(jax.jit(method.predict)(learner, batch.inputs, task), expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="divides 2 units among 3 tasks"):
        methods.joint(small(stream, hidden=(2,)), own_part=True).init(jax.random.key(0), Sizes(3, 3, {}))
    with pytest.raises(ValueError, match="names no such layer, or its head belongs to no task"):
        methods.joint(small(stream)._replace(wiring=()), own_part=True)


def test_joint_training_with_balanced_tasks():
    stream = conformance.stream()
    network = small(stream)
    method = methods.joint(network, sampling="balanced")
    assert (method.train_on, methods.joint(network).train_on) == ("balanced", "seen")
    run = training.make_run(method, optax.sgd(1.0), stream, SETTINGS)
    result = run(jax.random.key(0), stream.tables)
    assert run.step.traces == 1
    assert np.isfinite(np.asarray(result.epochs.loss)).all()
    fingerprint = np.asarray(result.evaluation.fingerprint)
    assert (fingerprint[2] != fingerprint[1]).all()
    with pytest.raises(ValueError, match="joint's sampling is 'equal', but must be one of pooled, balanced"):
        methods.joint(network, sampling="equal")
