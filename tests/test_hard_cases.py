"""Streams and models that would break a narrower protocol, through the one unchanged loop."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cljax import methods, metrics, networks, report, streams, task_params, training
from cljax.keys import make_key
from cljax.training.driver import drive
from cljax.training.plan import init_key
from cljax.types import make_clock
from tests import conformance, shared

SGD = optax.sgd(1.0, momentum=0.9)
small = functools.partial(shared.small, hidden=(24,))
SETTINGS = training.Settings(batch_size=16, learning_rate=0.05, evaluation_batch=64)


def run(method, stream, settings=SETTINGS, seed=0, optimizer=SGD):
    made = training.make_run(method, optimizer, stream, settings)
    result = made(jax.random.key(seed), stream.tables)
    assert made.step.traces == 1
    return result


def test_a_task_that_recurs_and_first_visits_out_of_order():
    """Tasks are numbered by first visit; a second visit goes on, it does not begin the task again."""
    stream = conformance.stream(schedule=streams.visits([(2, 3), (0, 3), (2, 3), (1, 3)]))
    assert stream.schedule.task.tolist() == [0, 1, 0, 2]
    assert stream.facts["tasks"] == [2, 0, 1]
    assert stream.tables.classes.sum(1).tolist() == [2, 3, 2]
    base = methods.finetune(small(stream, hidden=(24, 16)))

    def init(key, sizes):
        params, collections, _, hyper = base.init(key, sizes)
        return params, collections, jnp.zeros(3, jnp.int32), hyper

    def begin_task(learner, clock, fold, key):
        return learner._replace(method_state=learner.method_state.at[clock.task].add(1))

    result = run(base._replace(init=init, begin_task=begin_task), stream)
    assert result.learner.method_state.tolist() == [1, 1, 1]
    accuracy = np.asarray(result.evaluation.accuracy)
    matrix = metrics.first_visits(jnp.asarray(accuracy), jnp.asarray(stream.schedule.task))
    np.testing.assert_array_equal(matrix, accuracy[[0, 2, 3]])
    assert (accuracy[[0, 1, 3], [0, 1, 2]] > 0.8).all()
    assert accuracy[2, 1] < accuracy[1, 1], "the second visit to task 0 was training, and task 1 paid for it"


def test_multi_task_training_with_a_random_task_each_epoch_is_like_joint_training():
    rounds = streams.multi_task(3, 45, seed=0, evaluate_every=45)
    stream = conformance.stream(schedule=rounds)
    accuracy = np.asarray(run(methods.finetune(small(stream)), stream).evaluation.accuracy)
    assert np.isnan(accuracy[:-1]).all()
    in_turn = conformance.stream(schedule=streams.lifelong(3, 15))
    forgotten = np.asarray(run(methods.finetune(small(in_turn)), in_turn).evaluation.accuracy)
    assert accuracy[-1].mean() > forgotten[-1].mean()


def multi_label(tasks=2):
    """Of each digit: is it even, is it greater than four, is it a multiple of three; the last task lacks the third."""
    data = conformance.digits()
    label = lambda digit: np.stack([digit % 2 == 0, digit > 4, digit % 3 == 0], 1).astype(np.float32)
    width = [3, 2]
    return streams.from_tasks(
        [
            (data.train_images, label(data.train_labels)[:, :k], data.test_images, label(data.test_labels)[:, :k])
            for k in width[:tasks]
        ],
        epochs=10,
    )


@pytest.mark.parametrize(
    "build", [methods.finetune, methods.joint, methods.freezing, methods.tfm], ids=lambda b: b.__name__
)
def test_tasks_with_several_labels_an_example(build):
    stream = multi_label()
    assert stream.tables.train.labels.dtype == np.float32
    normalization = "feature" if build is methods.tfm else None
    result = run(build(small(stream, normalization=normalization)), stream)
    own = np.diag(np.asarray(result.evaluation.accuracy))
    guess = [
        np.maximum(part.mean(0), 1 - part.mean(0))[:width].mean()
        for part, width in zip(
            np.split(np.asarray(stream.tables.test.labels), [stream.tables.test.size[0]]), (3, 2), strict=True
        )
    ]
    assert (own > np.array(guess) + 0.1).all()


def test_the_unused_logit_of_a_smaller_task_is_never_trained():
    """Tasks 1 and 2 have two classes: from before their visits to the end, in one program, the third keeps its bits."""
    stream = conformance.stream(epochs=2)
    run = training.make_run(methods.finetune(small(stream)), optax.sgd(1.0), stream, SETTINGS)
    before, after = (run(jax.random.key(0), stream.tables, rounds=(0, end)).learner.params["head"] for end in (1, 3))
    for name, leaf in after.items():
        assert shared.bits(leaf[1:, ..., 2]) == shared.bits(before[name][1:, ..., 2])
        assert (leaf[1:, ..., :2] != before[name][1:, ..., :2]).any()


class TheirModel(nn.Module):
    """Somebody's own model: batch normalisation, dropout, a name of its own for its head."""

    @nn.compact
    def __call__(self, images, train: bool):
        values = nn.Conv(8, (3, 3))(images)
        values = nn.BatchNorm(use_running_average=not train)(values)
        values = nn.relu(values)
        values = nn.max_pool(values, (2, 2), strides=(2, 2))
        values = values.reshape(values.shape[0], -1)
        values = nn.Dropout(0.2, deterministic=not train)(values)
        return nn.Dense(3, name="classifier")(values)


@pytest.mark.parametrize("build", [methods.finetune, methods.joint, methods.freezing, methods.single_task, methods.ewc])
def test_a_user_s_own_linen_model_unchanged(build):
    stream = conformance.stream(epochs=3)
    model = TheirModel()
    network = networks.from_linen(
        model,
        stream.tables.examples.shape[1:],
        outputs=3,
        per_task=("classifier/kernel", "classifier/bias"),
        mean=stream.mean,
        std=stream.std,
    )
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        result = run(build(network), stream)
        learner = result.learner
        task = jnp.int32(2)
        params = task_params.take_row(learner.params, task, learner.rows)
        collections = task_params.take_row(learner.collections, task, learner.rows)
        images = jnp.asarray(stream.tables.examples[:7])
        scaled = networks.standardize(images, stream.mean, stream.std)
        theirs = model.apply({"params": params, **collections}, scaled, train=False)
        ours = build(network).predict(learner, images, task)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    start = network.init(jax.random.key(0))[1]["batch_stats"]
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), start, collections["batch_stats"])
    assert all(jax.tree.leaves(moved))


def test_icarl_s_memory_never_exceeds_its_size_and_holds_real_examples_of_every_class():
    stream = conformance.stream(epochs=6, scenario="class")
    method = methods.icarl(small(stream), memory_size=20)
    result = run(method, stream)
    memory = result.learner.memory
    valid = np.asarray(memory.valid)
    assert valid.all()
    classes = [(int(task), int(label)) for task, label in zip(memory.tasks[valid], memory.labels[valid], strict=True)]
    every = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (2, 0), (2, 1)]
    assert sorted(classes.count(pair) for pair in every) == [2, 3, 3, 3, 3, 3, 3]
    table = stream.tables.train
    for image, task, label in zip(memory.inputs[valid], memory.tasks[valid], memory.labels[valid], strict=True):
        mine = slice(table.start[task], table.start[task] + table.size[task])
        own = stream.tables.examples[table.index[mine]][table.labels[mine] == label]
        assert (own == np.asarray(image)[None]).all((1, 2, 3)).any()


def test_a_memory_that_differs_by_seed_runs_side_by_side():
    """Which exemplars are valid, and so an epoch's length, is then a matter of each seed.

    They are chosen by chance: herding goes by features, which another program rounds otherwise.
    """
    made = [(seed, conformance.stream(seed=seed, epochs=2, scenario="class")) for seed in range(2)]
    method = methods.replay(small(made[0][1], hidden=(8,)), memory_size=14)
    turn, together = (drive(method, SGD, made, SETTINGS, vectorize=vectorize) for vectorize in (False, True))
    np.testing.assert_allclose(turn.evaluation.accuracy, together.evaluation.accuracy, atol=0.08)
    for one, many in zip(turn.learners, together.learners, strict=True):
        np.testing.assert_array_equal(one.memory.valid, many.memory.valid)
        np.testing.assert_array_equal(one.memory.tasks, many.memory.tasks)
        for first, second in zip(jax.tree.leaves(one.params), jax.tree.leaves(many.params), strict=True):
            np.testing.assert_allclose(first, second, rtol=1e-3, atol=1e-4)


def test_side_by_side_seeds_leave_a_branch_a_branch():
    """The task is not batched, so `lax.cond` runs one branch a step, not both of them and a selection."""
    stream = conformance.stream()
    method = methods.feature_extraction(small(stream), hidden=8)
    engine = training.make_engine(
        method, SGD, SETTINGS, scenario="task", max_examples=streams.max_examples(stream.tables)
    )
    tables = jax.tree.map(jnp.asarray, stream.tables)
    keys = jax.random.split(jax.random.key(0), 2)

    def step(key, clock):
        learner = engine.begin_visit(engine.init(key, tables), clock, tables, key)
        state = engine.begin_phase(learner, clock, tables, key)
        batch = streams.sequential(tables, tables.train, clock.task, jnp.int32(0), 8)
        return engine.step(state.learner, state.mask, clock, batch, key)[0].params

    side_by_side = lambda clock: jax.vmap(step, in_axes=(0, None))(keys, clock)
    now = make_clock(task=1, newest=1, classes=tables.classes)
    text = jax.jit(side_by_side).lower(now).as_text()
    assert text.count("stablehlo.case") >= 2, "that of the forward and of the backward pass"
    batched = lambda clock: jax.vmap(step, in_axes=(0, 0))(
        keys, jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), clock)
    )
    assert jax.jit(batched).lower(now).as_text().count("stablehlo.case") == 0


def test_growth_is_chosen_by_search_and_never_gives_a_feature_twice():
    stream, margins = conformance.stream(epochs=4), [{"margin": 0.0}, {"margin": 1.0}]
    method = methods.tfm(small(stream, normalization="feature"), candidates=(0.1, 0.3, 0.5))
    learners = drive(method, SGD, [(0, stream)] * 2, SETTINGS, hypers=margins, vectorize=False).learners
    best, least = (np.asarray(learner.method_state.owner["dense_0"]) for learner in learners)
    claimed = [(least == task).sum() for task in range(3)]
    assert claimed == [3, 3, 3], "a margin of 1 accepts the lowest growth: 10% of 24 features"
    assert (best <= 2).sum() >= 9


def test_class_incremental_accuracy_and_the_task_il_one_come_from_the_same_run():
    stream = conformance.stream(epochs=6, scenario="class")
    found = run(methods.finetune(small(stream)), stream).evaluation
    last = np.asarray(found.accuracy)[-1]
    assert (last <= np.asarray(found.task_il_accuracy)[-1] + 1e-6).all()
    assert last.mean() < np.asarray(found.task_il_accuracy)[-1].mean()
    np.testing.assert_array_equal(np.asarray(found.accuracy)[0, 1:], [0, 0])


def test_permuted_digits_domain_incremental_with_one_shared_head():
    data = conformance.digits()
    stream = streams.permuted(data, tasks=3, epochs=8)
    network = networks.mlp((8, 8, 1), 10, hidden=(32,), mean=stream.mean, std=stream.std, per_task=())
    for build in (methods.finetune, methods.joint):
        outcome = drive(build(network), SGD, [(0, stream)], SETTINGS)
        start = training.make_learner(build(network), SGD, stream.tables, 0.05, init_key(make_key(0)))
        np.testing.assert_array_equal(
            outcome.untrained[0], training.evaluate(build(network), start, stream.tables, batch_size=64).accuracy
        )
        ahead = np.array([outcome.evaluation.accuracy[0, task - 1, task] for task in (1, 2)])
        [found] = report.summarise(report.runs(outcome)[0])["forward_transfer"]
        np.testing.assert_allclose(found, (ahead - outcome.untrained[0, 1:]).mean(), rtol=1e-5)
        own = np.diag(outcome.evaluation.accuracy[0])
        assert (own > 0.7).all(), build
    assert outcome.evaluation.accuracy[0, -1].min() > 0.7, "joint training keeps all of them"


def test_what_is_no_network_method_stream_or_data_set_is_named():
    import optax

    from cljax import methods, networks, streams, training

    for name in methods.__all__:
        with pytest.raises(TypeError, match=r"network is <function mlp.*must be one of cljax.networks, built"):
            getattr(methods, name)(networks.mlp)
    with pytest.raises(ValueError, match=r"The method is 'finetune', but must be one of cljax.methods"):
        training.make_run("finetune", optax.sgd(1.0), conformance.stream())
    with pytest.raises(ValueError, match=r"The stream is None, but must be one of cljax.streams"):
        training.make_run(methods.finetune(networks.mlp((4,), 2)), optax.sgd(1.0), None)
    for make in (streams.split, streams.permuted):
        with pytest.raises(TypeError, match=r"dataset is str, but must be a data set"):
            make("digits", tasks=2)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"outputs": 0}, "outputs is 0"),
        ({"outputs": 2.0}, "outputs is 2.0"),
        ({"inputs": (-4, 4, 1)}, "A side of inputs is -4"),
        ({"inputs": "4"}, "inputs is '4', but must be the shape"),
        ({"widths": (0,)}, "A width is 0"),
        ({"widths": (2.5,)}, "A width is 2.5"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"dropout": float("nan")}, "dropout is nan"),
        ({"std": 0.0}, "std is 0.0"),
        ({"std": (1.0, float("nan"))}, "std is nan"),
        ({"mean": float("inf")}, "mean is inf"),
        ({"mean": (0.5, 0.5)}, r"mean has shape \(2,\), but the inputs have 1 channels"),
    ],
)
def test_networks_check_their_numbers(change, words):
    from cljax import networks

    given = {"inputs": (4, 4, 1), "outputs": 2, "widths": (3,), **change}
    inputs, outputs, widths = (given.pop(name) for name in ("inputs", "outputs", "widths"))
    for make in (
        lambda: networks.mlp(inputs, outputs, hidden=widths, **given),
        lambda: networks.cnn(inputs, outputs, channels=(widths,), **given),
    ):
        with pytest.raises(ValueError, match=words):
            make()


def test_adapted_networks_check_what_standardises_their_inputs():
    from flax import linen, nnx

    from cljax import networks

    for make in (
        lambda **given: networks.from_linen(linen.Dense(2), (3,), outputs=2, train_argument=None, **given),
        lambda **given: networks.from_nnx(lambda rngs: nnx.Linear(3, 2, rngs=rngs), (3,), outputs=2, **given),
    ):
        with pytest.raises(ValueError, match=r"std has shape \(2,\), but the inputs have 3 channels"):
            make(std=(1.0, 1.0))
        with pytest.raises(ValueError, match="std is 0"):
            make(std=0)
