"""The engine: stopping, search, evaluation, failures, keys, traces."""

from __future__ import annotations

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cljax import methods, networks, streams, task_params, training
from cljax.training import bounds, checks
from cljax.training.driver import drive
from cljax.training.evaluation import Evaluation, evaluate
from cljax.training.plan import epoch_table
from cljax.training.programs import Program
from cljax.training.state import Failure, PhaseState, no_failure, no_progress
from cljax.training.stopping import wait
from cljax.types import Batch, Learner, Phase, Schedule, Search, Sizes, Table, make_clock
from tests import conformance, shared
from tests.plain import make_visit
from tests.zero_forgetting import leaving

SETTINGS = training.Settings(batch_size=16, learning_rate=0.05, evaluation_batch=32)
VALIDATED = SETTINGS._replace(evaluation_batch=8, validate=True)
WHOLE = SETTINGS._replace(batch_size=64, evaluation_batch=64)
SGD = optax.sgd(1.0)
small = functools.partial(shared.small, hidden=(8,))


def engine_and_learner(method, stream):
    most = streams.max_examples(stream.tables)
    engine = training.make_engine(method, SGD, SETTINGS, scenario=stream.scenario, max_examples=most)
    return engine, jax.jit(engine.init)(jax.random.key(0), stream.tables)


def counting(network):
    """Fine-tuning that counts its steps per task, and adds up the positions and weights it saw."""
    base = methods.finetune(network)

    def init(key, sizes):
        params, collections, _, hyper = base.init(key, sizes)
        return params, collections, {"steps": jnp.zeros(20, jnp.int32), "seen": jnp.zeros((20, 200))}, hyper

    def after_step(previous, learner, clock, batch, gradients):
        state = learner.method_state
        seen = state["seen"].at[clock.task, batch.position].add(batch.weights)
        return learner._replace(method_state={"steps": state["steps"].at[clock.task].add(1), "seen": seen})

    return base._replace(name="counting", init=init, after_step=after_step)


def test_one_trace_and_each_task_s_own_epoch_length():
    data = conformance.digits()
    sizes = np.random.default_rng(0).integers(5, 60, 20)
    labels = [part % 2 for part in (data.train_labels, data.test_labels)]
    parts = [(data.train_images[:n], labels[0][:n], data.test_images[:9], labels[1][:9]) for n in sizes]
    stream = streams.from_tasks(parts, epochs=3, validation=0.0)
    run = training.make_run(counting(small(stream)), SGD, stream, SETTINGS)
    result = run(jax.random.key(0), stream.tables)
    assert run.step.traces == 1
    state = result.learner.method_state
    np.testing.assert_array_equal(state["steps"], 3 * np.ceil(sizes / 16))
    expected = np.where(np.arange(200)[None] < sizes[:, None], 3.0, 0.0)
    np.testing.assert_array_equal(state["seen"], expected)


def test_rounds_of_one_epoch_draw_new_batches():
    """Without the round in the key, one-epoch revisits would repeat their order."""
    stream = conformance.stream(schedule=streams.visits([(0, 1), (0, 1), (0, 2)]))
    network = small(stream)
    base = methods.finetune(network)

    def init(key, sizes):
        params, collections, _, hyper = base.init(key, sizes)
        return params, collections, jnp.full((4, 3, 16), -1, jnp.int32), hyper

    def after_step(previous, learner, clock, batch, gradients):
        steps = jnp.ceil(stream.tables.train.size[0] / 16) - 1
        index = jnp.round(clock.progress * steps).astype(jnp.int32)
        where = jnp.minimum(clock.round + clock.epoch, 3)
        return learner._replace(method_state=learner.method_state.at[where, index].set(batch.position, mode="drop"))

    run = training.make_run(base._replace(init=init, after_step=after_step), SGD, stream, SETTINGS)
    orders = np.asarray(run(jax.random.key(0), stream.tables).learner.method_state).reshape(4, -1)
    for first in range(4):
        for second in range(first):
            assert (orders[first] != orders[second]).any()


def patience_in_python(losses, *, patience, factor, learning_rate, minimum, most):
    """HAT's training loop, the slow plain way: epochs trained, the best epoch, the rates."""
    best, best_epoch, left, rates = np.inf, None, patience, []
    for epoch in range(most):
        rates.append(learning_rate)
        if losses[epoch] < best:
            best, best_epoch, left = losses[epoch], epoch, patience
        else:
            left -= 1
            if left <= 0:
                learning_rate /= factor
                if learning_rate < minimum:
                    return epoch + 1, best_epoch, rates
                left = patience
    return most, best_epoch, rates


@functools.cache
def scripted_fit(patience, most=12):
    """A fit whose validation loss follows a script, and whose params count the epochs."""
    stream = conformance.stream(epochs=most)
    base = methods.finetune(small(stream))

    def init(key, sizes):
        state = {"script": jnp.zeros(most), "rates": jnp.full(most, jnp.nan)}
        return {"epochs": jnp.zeros(())}, {}, state, {}

    def loss(params, learner, clock, batch, key):
        place = learner.params["epochs"].astype(jnp.int32) - 1
        value = learner.method_state["script"][place] if key is None else params["epochs"]
        return value, (leaving(learner.collections), {})

    def after_step(previous, learner, clock, batch, gradients):
        state = learner.method_state
        rates = state["rates"].at[clock.epoch].set(learner.hyper["learning_rate"])
        epochs = (clock.epoch + 1).astype(jnp.float32)
        return learner._replace(params={"epochs": epochs}, method_state={**state, "rates": rates})

    method = base._replace(
        init=init,
        loss=loss,
        after_step=after_step,
        per_task=(),
        predict=lambda learner, inputs, task: jnp.zeros((32, 3)),
    )
    settings = SETTINGS._replace(stopping=training.Patience(patience, 3.0, 0.004), learning_rate=0.1)
    engine = training.make_engine(
        method, SGD, settings, scenario="task", max_examples=streams.max_examples(stream.tables)
    )
    fit = make_visit(engine, longest=most)

    @jax.jit
    def run(script):
        learner = engine.init(jax.random.key(0), stream.tables)
        learner = learner._replace(method_state={**learner.method_state, "script": script})
        clock = make_clock(task=0)
        return fit(learner, clock, stream.tables, jax.random.key(0), jnp.asarray([most]))

    return run, jax.jit(jax.vmap(run))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from([0.5, 1.0, 1.5, 2.0, 3.0]), min_size=12, max_size=12), st.sampled_from([1, 2]))
def test_patience_is_hat_s_schedule_and_restores_the_best_copy(script, patience):
    run, _ = scripted_fit(patience)
    learner, log = run(jnp.asarray(script, jnp.float32))
    trained, best, rates = patience_in_python(
        script, patience=patience, factor=3, learning_rate=0.1, minimum=0.004, most=12
    )
    assert int(log.trained[0]) == trained
    assert float(learner.params["epochs"]) == best + 1
    found = np.asarray(learner.method_state["rates"])
    np.testing.assert_allclose(found[: best + 1], rates[: best + 1], rtol=1e-5)
    assert np.isnan(np.asarray(log.epochs.validation_loss[0, trained:])).all()
    np.testing.assert_array_equal(log.epochs.validation_loss[0, :trained], script[:trained])


def test_under_vmap_each_seed_stops_on_its_own():
    scripts = np.array([[1.0] * 12, np.linspace(2, 1, 12), [3, 2, 1] + [5] * 9], np.float32)
    run, side_by_side = scripted_fit(2)
    together = side_by_side(scripts)
    alone = [run(script) for script in scripts]
    assert len({int(log.trained[0]) for _, log in alone}) == 3
    for seed, (learner, log) in enumerate(alone):
        np.testing.assert_array_equal(log.trained, together[1].trained[seed])
        for one, many in zip(jax.tree.leaves((learner, log)), jax.tree.leaves(together), strict=True):
            np.testing.assert_allclose(one, many[seed], rtol=1e-6)


def test_epochs_are_shared_out_by_largest_remainders():
    class Method:
        phases = (Phase(fraction=0.2, skip_first_task=True), Phase(fraction=0.5), Phase(fraction=0.3))

    schedule = Schedule(np.array([0, 1, 0, 2]), np.array([7, 7, 1, 10]), None)
    table = epoch_table(Method, schedule)
    assert table.tolist() == [[-1, 4, 3], [1, 4, 2], [-1, 1, 0], [2, 5, 3]]


def broken(like, *, task, progress):
    """Fine-tuning whose loss turns infinite from some point of a task's epoch on."""
    base = methods.finetune(small(like))

    def loss(params, learner, clock, batch, key):
        value, rest = base.loss(params, learner, clock, batch, key)
        late = (clock.task == task) & (clock.progress >= progress) & (clock.epoch == 1)
        return jnp.where(late, jnp.inf, value), rest

    return base._replace(name="broken", loss=loss, phases=(Phase("first", 0.5), Phase("second", 0.5)))


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_place():
    stream = conformance.stream(epochs=4)
    method = broken(stream, task=1, progress=0.5)
    run = training.make_run(method, SGD, stream, SETTINGS)
    result = run.run(jax.random.key(0), stream.tables)
    steps = int(np.ceil(stream.tables.train.size[1] / 16))
    step = int(np.ceil(0.5 * (steps - 1)))
    where = f"task 1, phase 'first', epoch 1, step {step}"
    with pytest.raises(training.NonFiniteLoss, match=where):
        run(jax.random.key(0), stream.tables)
    assert np.isfinite(result.epochs.validation_loss[1, 0]).sum() <= 2
    assert int(result.failure.epoch) == 1
    events = []
    seeds, grid = [(0, stream), (1, stream)], [{"learning_rate": 0.05}] * 2
    with pytest.raises(
        training.NonFiniteLoss,
        match=f"2 of 2 .* seed 0, learning_rate 0.05: the .* {where}; seed 1, learning_rate 0.05",
    ):
        drive(method, SGD, seeds, SETTINGS, hypers=grid, report=events.append)
    assert [(event.task, event.phase, event.epoch) for event in events][-1] == (1, "first", 1)


def test_weights_that_are_not_finite_after_the_last_step_are_named():
    """A gradient of NaN behind a finite loss; statistics; what `end_phase` makes; logits of finite weights."""
    stream = conformance.stream(schedule=streams.visits([(0, 1)]))
    base, whole = methods.finetune(small(stream)), SETTINGS._replace(batch_size=256)

    def rooted(params, learner, clock, batch, key):
        value, rest = base.loss(params, learner, clock, batch, key)
        return value + jnp.sqrt(jnp.sum(params["dense_0"]["bias"] ** 2)), rest

    words = (
        "The leaf 'dense_0/bias' of finetune turned non-finite in round 0: task 0, phase 'train', epoch 0, step 0[.] A"
    )
    with pytest.raises(training.NonFiniteLoss, match=words):
        training.make_run(base._replace(loss=rooted), SGD, stream, whole)(jax.random.key(0), stream.tables)
    with pytest.raises(
        training.NonFiniteLoss, match=r"The output for test examples of finetune .* in round 0: task 0[.]"
    ):
        drive(base, SGD, [(0, stream)], whole._replace(learning_rate=1e30))

    def ended(method, learner):
        engine = training.make_engine(
            method, SGD, whole, scenario="task", max_examples=streams.max_examples(stream.tables)
        )
        clock, key = make_clock(), jax.random.key(0)
        _, failure = engine.end_phase(engine.begin_phase(learner, clock, stream.tables, key), clock, stream.tables, key)
        return training.diverged(failure, method)

    params, collections, *_ = base.init(jax.random.key(0), Sizes(1, 3, {}))
    learner = Learner(params, collections, SGD.init(params), {}, {}, None, task_params.resting(()))
    infinite = {"gates": {"dense_0": jnp.full(8, jnp.inf)}}
    broken = lambda learner, clock, fold, key: learner._replace(params=jax.tree.map(lambda leaf: leaf / 0, params))
    assert ended(base, learner) == {}
    place = "of finetune turned non-finite in round 0: task 0, at the end of phase 'train'"
    assert ended(base, learner._replace(collections=infinite)) == {0: f"the leaf 'gates/dense_0' {place}"}
    assert ended(base._replace(end_phase=broken), learner) == {0: f"the leaf 'dense_0/bias' {place}"}


def test_a_learner_that_diverges_is_named_and_the_others_go_on():
    """The same side by side, in turn and in a whole run under vmap."""
    stream = conformance.stream(schedule=streams.visits([(0, 1), (1, 2), (2, 1)]))
    base = methods.finetune(small(stream))

    def init(key, sizes):
        params, collections, state, hyper = base.init(key, sizes)
        return params, collections, state, {**hyper, "weight": jnp.float32(1.0)}

    def loss(params, learner, clock, batch, key):
        value, rest = base.loss(params, learner, clock, batch, key)
        heavy = jnp.where((clock.task == 1) & (clock.epoch == 1), learner.hyper["weight"], 1.0)
        return heavy * value, rest

    method, grid = base._replace(init=init, loss=loss), [{"weight": 1.0}, {"weight": 1e30}]
    settings = SETTINGS._replace(curves_every=1)
    rounds = [(drive(method, SGD, [(5, stream)] * 2, settings, hypers=grid, vectorize=many)) for many in (False, True)]
    for outcome in rounds:
        assert [values.tolist() for values in outcome.failure][:4] == [[-1, 1], [-1, 1], [-1, 0], [-1, 1]]
        assert training.diverged(outcome.failure, method).keys() == {1}
        known = np.isfinite(outcome.evaluation.accuracy).all(-1)
        assert known.tolist() == [[True, True, True], [True, False, False]]
        assert np.isfinite(outcome.epochs.loss[:, :, 0]).sum(-1).tolist()[0] == [1, 2, 1]
        assert np.isnan(outcome.epochs.loss[1, 2]).all()
        assert np.isfinite(outcome.curves).all(-1).tolist() == [[True] * 4, [True, True, False, False]]
        np.testing.assert_allclose(outcome.evaluation.accuracy[0], rounds[0].evaluation.accuracy[0], atol=0.05)
    np.testing.assert_array_equal(*(outcome.failure for outcome in rounds))
    heavy = method._replace(init=lambda key, sizes: (*init(key, sizes)[:3], {"weight": jnp.float32(1e30)}))
    together = jax.vmap(training.make_run(heavy, SGD, stream, SETTINGS), (0, None))(
        jax.random.split(jax.random.key(5)), stream.tables
    )
    assert np.isfinite(together.evaluation.accuracy).all(-1).tolist() == [[True, False, False]] * 2
    with pytest.raises(
        training.NonFiniteLoss,
        match=r"2 of 2 learners of finetune diverged. learner 0: the .*: task 1, .* epoch 1, step 1; learner 1: the",
    ):
        training.raise_failure(together.failure, heavy)


def test_search_keeps_the_learner_of_the_chosen_candidate():
    stream = conformance.stream(epochs=2)
    base = methods.finetune(small(stream))
    tried = jnp.array([1e-6, 0.05, 0.2, 1e30])  # the last diverges, and is not chosen

    def choose(scores, learners, clock, fold):
        wanted = jnp.asarray([1, 2, 0], jnp.int32)[clock.task]
        return jnp.where((scores[3] == -1) & (scores[:3] >= 0).all(), wanted, 3), learners

    method = base._replace(search=Search(lambda learner, clock, scores: {"learning_rate": tried}, choose, 4))
    found = training.make_run(method, SGD, stream, SETTINGS)(jax.random.key(0), stream.tables)
    assert float(found.learner.hyper["learning_rate"]) == float(tried[0])

    engine, learner = engine_and_learner(base, stream)
    fit = jax.jit(make_visit(engine, longest=2))
    for task, index in enumerate([1, 2, 0]):
        learner = learner._replace(hyper={"learning_rate": tried[index]})
        clock = make_clock(round=task, task=task)
        learner, _ = fit(learner, clock, stream.tables, jax.random.key(0), jnp.asarray([2]))
    for ours, plain in zip(jax.tree.leaves(found.learner), jax.tree.leaves(learner), strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1e-5, atol=1e-6)

    outcome = drive(method, SGD, [(0, stream)], SETTINGS)
    np.testing.assert_allclose(outcome.epochs.loss[0], found.epochs.loss, rtol=1e-4)
    assert found.search.chosen.tolist() == outcome.search.chosen[0].tolist() == [1, 2, 0]
    assert found.search.epochs.tolist() == outcome.search.epochs[0].tolist() == [[2, 2, 2, 1]] * 3
    np.testing.assert_array_equal(outcome.search.numbers["learning_rate"][0], [tried] * 3)
    np.testing.assert_allclose(outcome.search.scores[0], found.search.scores, rtol=1e-6)
    for ours, plain in zip(jax.tree.leaves(outcome.learners[0]), jax.tree.leaves(learner), strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("scenario", "newest"), [("task", 1), ("class", 1), ("class", 2)])
def test_evaluation_is_the_plain_way(scenario, newest):
    stream = conformance.stream(scenario=scenario)
    method = methods.finetune(small(stream))
    _, learner = engine_and_learner(method, stream)
    of = functools.partial(evaluate, method, scenario=scenario, newest=jnp.int32(newest), batch_size=8)
    found, predict = jax.jit(of)(learner, stream.tables), jax.jit(method.predict)
    table, classes = stream.tables.test, stream.tables.classes
    for task in range(3):
        picked = slice(table.start[task], table.start[task] + table.size[task])
        images, labels = stream.tables.examples[table.index[picked]], table.labels[picked]
        logits = [np.asarray(predict(learner, images, jnp.int32(other))) for other in range(3)]
        own = np.where(classes[task], logits[task], -np.inf).argmax(1) == labels
        np.testing.assert_allclose(found.task_il_accuracy[task], own.mean(), rtol=1e-6)
        seen = range(newest + 1) if scenario == "class" else [task]
        ranked = np.argsort(-np.concatenate([np.where(classes[i], logits[i], -np.inf) for i in seen], 1), axis=1)
        place = labels + (3 * task if scenario == "class" else 0)
        for top, accuracy in ((1, found.accuracy), (5, found.top5)):
            right = (ranked[:, :top] == place[:, None]).any(1) & (scenario == "task" or task <= newest)
            np.testing.assert_allclose(accuracy[task], right.mean(), rtol=1e-6)


def test_a_fingerprint_tells_the_smallest_change_of_one_logit():
    stream = conformance.stream()
    method = methods.finetune(small(stream))
    engine, learner = engine_and_learner(method, stream)
    look = jax.jit(lambda learner: engine.evaluate(learner, make_clock(), stream.tables).fingerprint)
    before = look(learner)
    bias = learner.params["head"]["bias"].at[1, 0].set(1e-7)
    params = {**learner.params, "head": {**learner.params["head"], "bias": bias}}
    after = look(learner._replace(params=params))
    np.testing.assert_array_equal(before == after, [True, False, True])
    np.testing.assert_array_equal(look(learner), before)


@functools.cache
def with_curves():
    """A run of which a visit has two points; its method, its stream, and a list that each batch evaluated adds to."""
    stream, asked = conformance.stream(epochs=4), []
    plain = methods.finetune(small(stream))

    def predict(learner, inputs, task):
        jax.debug.callback(lambda: asked.append(1))
        return plain.predict(learner, inputs, task)

    run = training.make_run(plain._replace(predict=predict), SGD, stream, SETTINGS._replace(curves_every=2))
    return run, plain, stream, asked


def test_curves_are_evaluations_at_the_cadence():
    run, method, stream, _ = with_curves()
    result = run(jax.random.key(0), stream.tables)
    curves = np.asarray(result.curves)[:, 0]
    assert curves.shape == (3, 2, 3)
    np.testing.assert_array_equal(curves[:, 1], result.evaluation.accuracy)
    outcome = drive(method, SGD, [(0, stream)], SETTINGS._replace(curves_every=2))
    np.testing.assert_array_equal(outcome.curves[0], curves.reshape(6, 3))
    never = training.make_run(method, SGD, stream, SETTINGS._replace(curves_every=5))
    assert jax.eval_shape(never.run, jax.random.key(0), stream.tables).curves.shape == (3, 1, 0, 3)


def test_an_optimizer_has_its_own_learning_rate_or_that_of_the_settings_and_not_both():
    stream = conformance.stream()
    method, plain = methods.finetune(small(stream)), SETTINGS._replace(learning_rate=None)
    own, given = (
        training.make_run(method, optax.adam(rate), stream, settings)(jax.random.key(0), stream.tables)
        for rate, settings in ((0.05, plain), (1.0, SETTINGS))
    )
    shared.assert_close(own.learner.params, given.learner.params, rtol=1e-5)
    for unit in (optax.adafactor(1.0), optax.lars(1.0), optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(1.0))):
        checks.check_optimizer(method, unit, 0.05)
    decayed = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.01))
    for limit in (1e-3, 1e-4, 1.0):
        assert training.checks.own_learning_rate(optax.chain(optax.clip_by_global_norm(limit), SGD)) == 1
    with pytest.raises(ValueError, match=r"a learning rate of its own, about 0.01, which the learning_rate 0.05 of"):
        checks.check_optimizer(method, decayed, 0.05)
    with pytest.raises(ValueError, match=r"a learning rate of its own, about 0.001, which the learning_rate 0.05 of"):
        training.make_run(method, optax.adam(1e-3), stream, SETTINGS)
    with pytest.raises(ValueError, match=r"a learning rate of its own, about 0.1, which the learning_rate 3 of"):
        drive(method, optax.sgd(0.1), [(0, stream)], plain, hypers=[{"learning_rate": 3.0}])
    with pytest.raises(ValueError, match=r"must know it: give settings a learning_rate"):
        drive(method, SGD, [(0, stream)], plain._replace(stopping=training.Patience(3)))


def test_tasks_of_one_size_have_a_counted_loop_of_steps_and_the_same_bits():
    stream = streams.permuted(conformance.digits(), tasks=2, epochs=2)
    count = int(stream.tables.train.size[0])
    method, steps = methods.finetune(small(stream)), -(-count // SETTINGS.batch_size)
    known, unknown = (
        training.make_run(method, SGD, stream, SETTINGS, max_examples=most) for most in (None, {"train": count})
    )
    loop = f"length={steps}"
    assert loop in str(jax.make_jaxpr(lambda key: known(key, stream.tables))(jax.random.key(0)))
    assert loop not in str(jax.make_jaxpr(lambda key: unknown(key, stream.tables))(jax.random.key(0)))
    of_any_size = jax.make_jaxpr(known)(jax.random.key(0), stream.tables)
    assert loop not in str(of_any_size)
    learned = [shared.bits(run(jax.random.key(0), stream.tables).learner.params) for run in (known, unknown)]
    assert learned[0] == learned[1]


def test_side_by_side_curves_cost_no_more_evaluations_than_in_turn():
    run, _, stream, asked = with_curves()
    asked.clear()
    jax.block_until_ready(run(jax.random.key(0), stream.tables))
    jax.effects_barrier()
    once, curves = len(asked), [run(jax.random.key(seed), stream.tables).curves for seed in range(2)]
    asked.clear()
    together = jax.vmap(lambda key: run(key, stream.tables))(jax.vmap(jax.random.key)(jnp.arange(2)))
    jax.effects_barrier()
    assert len(asked) == once
    np.testing.assert_allclose(together.curves, curves, rtol=1e-6)


@pytest.mark.parametrize("vectorize", [False, True])
def test_curves_under_patience_have_a_place_for_every_planned_epoch(vectorize):
    made = [(seed, conformance.stream(seed=seed, epochs=9)) for seed in range(2)]
    method = methods.finetune(small(made[0][1]))
    settings = SETTINGS._replace(stopping=training.Patience(1, 10.0, 0.01), curves_every=3, learning_rate=0.3)
    outcome = drive(method, SGD, made, settings, vectorize=vectorize)
    assert outcome.curve_epochs.tolist() == [[task, 0, epoch] for task in range(3) for epoch in (3, 6, 9)]
    trained = np.isfinite(outcome.epochs.loss)[:, :, 0].sum(-1)
    assert len(np.unique(trained)) > 1
    expected = np.array([[count >= epoch for count in counts for epoch in (3, 6, 9)] for counts in trained])
    np.testing.assert_array_equal(np.isfinite(outcome.curves[..., 0]), expected)


def test_seeds_side_by_side_are_the_seeds_in_turn():
    made = [(seed, conformance.stream(seed=seed, epochs=2)) for seed in range(2)]
    method = methods.finetune(small(made[0][1]))
    settings = SETTINGS._replace(validate=True)
    turn, together = (drive(method, SGD, made, settings, vectorize=vectorize) for vectorize in (False, True))
    np.testing.assert_allclose(turn.evaluation.accuracy, together.evaluation.accuracy, rtol=1e-6)
    for name in ("loss", "validation_loss", "validation_accuracy"):
        np.testing.assert_allclose(getattr(turn.epochs, name), getattr(together.epochs, name), rtol=1e-4)
    for one, many in zip(turn.learners, together.learners, strict=True):
        for first, second in zip(jax.tree.leaves(one), jax.tree.leaves(many), strict=True):
            np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda learner: learner._replace(method_state={"new": jnp.zeros(1)}), "changed the structure"),
        (
            lambda learner: learner._replace(collections={"gates": {"dense_0": jnp.zeros(1)}}),
            r"changed 'collections/gates",
        ),
        (
            lambda learner: learner._replace(hyper={"learning_rate": jnp.zeros((), jnp.bfloat16)}),
            "changed 'hyper/learning_rate' from float32",
        ),
    ],
)
def test_a_hook_that_changes_the_signature_is_named(change, message):
    stream = conformance.stream()
    base = methods.finetune(small(stream))
    method = base._replace(name="changer", end_phase=lambda learner, clock, fold, key: change(learner))
    with pytest.raises(TypeError, match=f"end_phase of changer {message}"):
        training.make_run(method, SGD, stream, SETTINGS)(jax.random.key(0), stream.tables)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("scenario", "tasks", "scenario 'tasks' is not one of task, class, domain"),
        ("schedule", Schedule(np.array([0, 5]), np.array([1, 1]), np.ones(2, bool)), "visits task 5, but"),
    ],
)
def test_streams_that_do_not_fit_are_refused(field, value, message):
    stream = conformance.stream()
    method = methods.finetune(small(stream))
    with pytest.raises(ValueError, match=message):
        training.make_run(method, SGD, stream._replace(**{field: value}), SETTINGS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (SETTINGS._replace(learning_rate=-1.0), "rate is -1.0"),
        (SETTINGS._replace(learning_rate=np.nan), "rate is nan"),
        (SETTINGS._replace(learning_rate=1e39), r"rate is 1e\+39, but must be a finite number above 0"),
        (SETTINGS._replace(batch_size=0), "batch_size is 0"),
        (SETTINGS._replace(batch_size=2.5), "batch_size is 2.5, but must be a whole number"),
        (SETTINGS._replace(batch_size=10**12), "batch_size is 1000000000000, but"),
        (SETTINGS._replace(batch_size=2**31 - 5), r"The run counts 21\d* rows of a split and of a batch"),
        (
            SETTINGS._replace(evaluation_batch=10**9),
            r"A batch takes 2.56e\+11 bytes or more, but there are .*batch_size",
        ),
        (SETTINGS._replace(evaluation_batch=True), "evaluation_batch is True"),
        (SETTINGS._replace(curves_every=-2), "curves_every is -2"),
        (SETTINGS._replace(stopping=5), "stopping is 5, but must be training.Patience"),
        (SETTINGS._replace(stopping=training.Patience(0)), "patience is 0, but must be a whole number from 1"),
        (SETTINGS._replace(stopping=training.Patience(2.0)), "patience is 2.0"),
        (SETTINGS._replace(stopping=training.Patience(factor=1)), "factor is 1, but must be a finite number above 1"),
        (SETTINGS._replace(stopping=training.Patience(minimum_learning_rate=np.inf)), "minimum_learning_rate is inf"),
        ({"learning_rate": 0.1}, "settings is {'learning_rate': 0.1}, but must be training.Settings"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    stream = conformance.stream()
    with pytest.raises(ValueError, match=message):
        training.make_run(methods.finetune(small(stream)), SGD, stream, settings)


def test_runs_too_large_for_numbers_or_memory_are_refused(monkeypatch):
    stream = conformance.stream()
    method = methods.single_task(small(stream))
    schedule = lambda epochs: stream._replace(schedule=stream.schedule._replace(epochs=np.full(3, epochs)))
    for long, words in (
        (10**9, "counts 3000000000 epochs"),
        (5 * 10**8, r"The log of all epochs takes 1.8e\+10 bytes"),
    ):
        monkeypatch.setattr(bounds, "available_memory", lambda: 10**10)
        with pytest.raises(ValueError, match=words):
            training.check(method, schedule(long), SETTINGS)
    size = 4 * 3 * (64 * 8 + 8 + 8 * 3 + 3 + 8)  # with a gate of 8
    monkeypatch.setattr(bounds, "available_memory", lambda: size - 1)
    with pytest.raises(ValueError, match="The learner of single_task takes"):
        training.check(method, stream, SETTINGS._replace(batch_size=1, evaluation_batch=1))


def test_arguments_of_a_drive_that_are_no_numbers_are_refused():
    stream = conformance.stream()
    method = methods.lwf(small(stream))
    for arguments, words in (
        ({"seeds": []}, "seeds is empty"),
        ({"vectorize": -1}, "vectorize is -1"),
        ({"vectorize": 1.5}, "vectorize is 1.5"),
        ({"hypers": [{"strength": float("nan")}]}, "lwf's strength is nan, but must be a finite number"),
        ({"hypers": [{"learning_rate": 0.0}]}, "rate is 0.0, but must be a finite number above 0"),
        ({"optimizer": 0.1}, "optimizer is 0.1, but must be an Optax transformation"),
    ):
        given = {"optimizer": SGD, "seeds": [(0, stream)], **arguments}
        with pytest.raises(ValueError, match=words):
            drive(method, settings=SETTINGS, **given)


@pytest.mark.parametrize(
    ("optimizer", "words"),
    [
        (optax.lbfgs(), "cannot train finetune: .* 'grad' and 'value_fn'.*not a function to search along a line"),
        (optax.contrib.schedule_free_sgd(), r"parameters of its own \(ScheduleFreeState\)"),
        (optax.chain(optax.clip(1.0), optax.contrib.mechanize(SGD)), r"of its own \(MechanicState\)"),
        (optax.lookahead(SGD, 5, 0.5), "cannot train finetune"),
        (optax.sgd, "optimizer is <function sgd"),
    ],
)
def test_optimizers_that_cannot_take_these_steps_are_refused(optimizer, words):
    with pytest.raises(ValueError, match=words):
        training.make_run(methods.finetune(small(conformance.stream())), optimizer, conformance.stream(), SETTINGS)


def linear(**fields):
    """A method whose loss is linear in two weights, for steps without a network."""
    base = methods.finetune(small(conformance.stream()))
    loss = lambda params, learner, clock, batch, key: (2.0 * jnp.sum(params["w"]), (leaving({}), {}))
    return base._replace(name="linear", loss=loss, **fields)


def one_step(method, optimizer, mask=1.0):
    params = {"w": jnp.array([3.0, 4.0])}
    hyper = {"learning_rate": jnp.float32(0.5)}
    learner = Learner(params, {}, optimizer.init(params), {}, hyper, None, task_params.resting(()))
    batch = Batch(*(jnp.zeros(1) for _ in Batch._fields))
    step = training.make_train_step(method, optimizer)
    return step(learner, ({"w": jnp.asarray(mask)}, {}), make_clock(), batch, jax.random.key(0))


def test_an_optimizer_that_asks_for_the_loss_gets_it():
    learner, loss, _ = one_step(linear(), optax.polyak_sgd(max_learning_rate=10.0))
    assert float(loss) == 14.0
    size = 14.0 / (2 * 2.0**2)  # the loss by the gradient's squared norm
    np.testing.assert_allclose(learner.params["w"], np.array([3.0, 4.0]) - 0.5 * size * 2.0, rtol=1e-6)


def test_what_after_step_does_to_a_frozen_weight_is_undone():
    moved = lambda previous, learner, clock, batch, gradients: learner._replace(params={"w": jnp.array([7.0, 8.0])})
    learner, *_ = one_step(linear(after_step=moved), SGD, mask=[0.0, 1.0])
    assert learner.params["w"].tolist() == [3.0, 8.0]


def test_the_tasks_of_a_balanced_draw_are_shuffled_apart():
    table = Table(jnp.arange(40), jnp.zeros(40, jnp.int32), jnp.array([0, 20]), jnp.array([20, 20]))
    clock = make_clock(task=1, newest=1)
    draw = jax.jit(functools.partial(streams.epoch_order, train_on="balanced", max_examples=20))
    order, count = draw(table, clock, jax.random.key(0))
    first, second = np.asarray(order).reshape(20, 2).T
    assert int(count) == 40
    assert sorted(first.tolist()) == sorted((second - 20).tolist()) == list(range(20))
    assert (first != second - 20).sum() > 10


@pytest.mark.parametrize(("learning_rate", "stops"), [(1.0, False), (0.99, True)])
def test_training_stops_below_the_minimum_rate_and_not_at_it(learning_rate, stops):
    empty = Learner({}, {}, (), {}, {}, None, None)
    best = {"params": {}, "collections": {}, "method_state": {}}
    state = PhaseState(
        empty,
        {},
        jnp.float32(1.0),
        best,
        jnp.float32(1.0),
        jnp.int32(1),
        jnp.int32(0),
        no_progress(),
        jnp.bool_(False),
        no_failure(),
    )
    after = wait(state, jnp.float32(2.0), jnp.float32(learning_rate), training.Patience(1, 2.0, 0.5))
    assert bool(after.done) == stops
    assert float(after.factor) == 0.5


@functools.cache
def without_modes():
    """A run of a linear network, evaluated at its end alone; its method, its stream, and what it finds."""
    schedule = streams.visits([(0, 1), (1, 1)])._replace(evaluate=np.array([False, True]))
    stream = conformance.stream(schedule=schedule)
    base = methods.finetune(small(stream, hidden=(3,)))
    run = training.make_run(base, SGD, stream, WHOLE)
    return run, base, stream, run(jax.random.key(5), stream.tables)


@pytest.mark.parametrize("modes", [("disable_jit",), ("debug_nans", "debug_infs")])
def test_the_modes_of_debugging_change_no_result(modes):
    """No run is ended by NaN that stands for what is not measured, and loops may be Python's."""
    run, base, stream, expected = without_modes()
    assert np.isnan(expected.evaluation.accuracy[0]).all()
    best = lambda scores, learners, clock, fold: (jnp.argmax(scores).astype(jnp.int32), learners)
    offer = lambda learner, clock, scores: {"learning_rate": jnp.array([0.05, 0.05])}
    searched = base._replace(search=Search(offer, best, 2))
    with contextlib.ExitStack() as stack:
        for mode in modes:
            stack.enter_context(getattr(jax, mode)(True))
        found = run(jax.random.key(5), stream.tables)
        assert int(Program(lambda value: value + 1)(jnp.int32(1))) == 2
        outcome = None if "disable_jit" in modes else drive(searched, SGD, [(5, stream)], WHOLE)
    measured = lambda result: jax.tree.leaves((result.learner, result.evaluation.accuracy, result.epochs))
    for ours, theirs in zip(measured(found), measured(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    if outcome is None:
        return
    np.testing.assert_allclose(outcome.evaluation.accuracy[0], expected.evaluation.accuracy, rtol=1e-6)
    np.testing.assert_allclose(outcome.epochs.loss[0], expected.epochs.loss, rtol=1e-4)
    assert np.isnan(outcome.epochs.validation_loss).all()
    assert (outcome.search.chosen == 0).all(), "the second candidate is the first again, and has no score"


def test_patience_without_validation_examples_is_refused():
    stream = streams.split(conformance.digits(), tasks=5, validation=0.0)
    settings = SETTINGS._replace(stopping=training.Patience())
    with pytest.raises(ValueError, match="Task 0 has no validation examples, which patience needs"):
        training.make_run(methods.finetune(small(stream)), SGD, stream, settings)


def test_networks_that_do_not_fit_the_stream_are_refused():
    stream = conformance.stream()
    with pytest.raises(ValueError, match=r"takes examples of shape \(28, 28, 1\).*have shape \(8, 8, 1\)"):
        training.make_run(methods.finetune(networks.mlp((28, 28, 1), 3)), SGD, stream, SETTINGS)
    with pytest.raises(ValueError, match=r"has 2 logits, but the largest task.*has 3 classes"):
        training.make_run(methods.finetune(networks.mlp((8, 8, 1), 2)), SGD, stream, SETTINGS)


def test_failures_of_several_seeds_are_named():
    failure = Failure(*np.array([[-1, 1], [-1, 1], [-1, 0], [-1, 0], [-1, 2], [-1, -1]]))
    with pytest.raises(
        training.NonFiniteLoss, match=r"1 of 2.*learner 1: the .*task 1, phase 'train', epoch 0, step 2"
    ):
        training.raise_failure(failure, methods.finetune(networks.mlp((8, 8, 1), 2)))


def test_evaluation_of_nothing_is_nan():
    stream = streams.split(conformance.digits(), tasks=5, validation=0.0)
    method = methods.finetune(small(stream))
    _, learner = engine_and_learner(method, stream)
    found: Evaluation = evaluate(method, learner, stream.tables, split="validation")
    assert np.isnan(np.asarray(found.accuracy)).all()
    assert task_params.leaf_paths(found) == ("accuracy", "task_il_accuracy", "top5", "fingerprint")


def test_a_schedule_that_is_not_numbered_by_first_visit_is_refused():
    stream = conformance.stream()
    method = conformance.build("tfm", stream)
    schedule = stream.schedule._replace(task=np.array([1, 0, 2], np.int32))
    with pytest.raises(ValueError, match="visits task 1 before task 0"):
        training.check(method, stream._replace(schedule=schedule), training.Settings())


@pytest.mark.parametrize("name", ["joint", "finetune"])
def test_validation_is_of_the_examples_and_classes_seen_so_far(name):
    """Joint training's loss is of all tasks seen; accuracy is of the current one, among the classes seen."""
    stream = conformance.stream(scenario="class")
    method = getattr(methods, name)(small(stream, hidden=(8,)))
    engine = training.make_engine(
        method, optax.sgd(1.0), VALIDATED, scenario="class", max_examples=streams.max_examples(stream.tables)
    )
    tables, key, here = jax.device_put(stream.tables), jax.random.key(0), make_clock(round=1, task=1)

    @jax.jit
    def measure(learner):
        state = engine.begin_phase(engine.begin_visit(learner, here, tables, key), here, tables, key)
        return engine.end_epoch(state, engine.begin_epoch(state, here, tables, key), tables)[1]

    resting = jax.jit(engine.init)(key, tables)
    head = {**resting.params["head"], "bias": resting.params["head"]["bias"].at[2].set(50.0)}  # the task to come
    resting = resting._replace(params={**resting.params, "head": head})
    log, table, classes = measure(resting), stream.tables.validation, stream.tables.classes
    losses = []
    for task in (0, 1):
        mine = slice(table.start[task], table.start[task] + table.size[task])
        images, labels = stream.tables.examples[table.index[mine]], table.labels[mine]
        assert len(labels) % 8, "the last batch is a partial one"
        logits = [np.where(classes[one], method.predict(resting, images, jnp.int32(one)), -np.inf) for one in (0, 1)]
        among = np.concatenate(logits, axis=1) if name == "joint" else logits[task]
        place = labels + (3 * task if name == "joint" else 0)
        losses.append(np.log(np.exp(among).sum(1)) - among[np.arange(len(labels)), place])
        right = np.concatenate(logits, axis=1).argmax(1) == 3 * task + labels
    expected = np.concatenate(losses) if name == "joint" else losses[1]
    np.testing.assert_allclose(log.validation_loss, expected.mean(), rtol=1e-5)
    np.testing.assert_allclose(log.validation_accuracy, right.mean(), rtol=1e-6)


@pytest.mark.parametrize("first", [True, False])
def test_momentum_begins_anew_at_a_first_visit_and_is_kept_at_a_further_one(first):
    stream = conformance.stream()
    method = methods.finetune(small(stream))
    engine = training.make_engine(
        method,
        optax.sgd(1.0, momentum=0.9),
        VALIDATED,
        scenario="task",
        max_examples=streams.max_examples(stream.tables),
    )
    tables, key, here = stream.tables, jax.random.key(0), make_clock(task=1, newest=1, first=first)
    learner = jax.jit(engine.init)(key, tables)
    learner = learner._replace(opt_state=jax.tree.map(lambda leaf: jnp.full_like(leaf, 0.25), learner.opt_state))
    state = engine.begin_phase(engine.begin_visit(learner, here, tables, key), here, tables, key)
    assert {float(value) for leaf in jax.tree.leaves(state.learner.opt_state) for value in np.ravel(leaf)} == {
        0.0 if first else 0.25
    }


@pytest.mark.parametrize(("restore", "patience", "weight"), [(True, 1, 1.0), (False, 1, 5.0), (True, 2, 5.0)])
def test_the_best_copy_is_restored_where_the_rate_drops_if_asked_for(restore, patience, weight):
    now = {"params": {"w": jnp.float32(5.0)}, "collections": {"m": jnp.float32(6.0)}, "method_state": {}}
    best = {"params": {"w": jnp.float32(1.0)}, "collections": {"m": jnp.float32(2.0)}, "method_state": {}}
    learner = Learner(now["params"], now["collections"], jnp.float32(7.0), {}, {}, None, None)
    one, zero = jnp.float32(1.0), jnp.int32(0)
    state = PhaseState(
        learner, {}, one, best, one, jnp.int32(patience), zero, no_progress(), jnp.bool_(False), no_failure()
    )
    after = wait(state, jnp.float32(2.0), one, training.Patience(patience, 2.0, 0.1, restore)).learner
    assert (float(after.params["w"]), float(after.collections["m"]), float(after.opt_state)) == (
        weight,
        weight + 1,
        7.0,
    )


@pytest.mark.parametrize(("factor", "stops"), [(0.1, True), (1.0, False)])
def test_the_rate_that_patience_compares_is_the_phase_s(factor, stops):
    """0.1 by the settings, halved: 0.05, or 0.005 in a phase of a tenth of the rate."""
    stream = conformance.stream()
    method = methods.finetune(small(stream))._replace(phases=(Phase(learning_rate=lambda clock: jnp.float32(factor)),))
    settings = VALIDATED._replace(learning_rate=0.1, stopping=training.Patience(1, 2.0, 0.02))
    engine = training.make_engine(
        method, optax.sgd(1.0), settings, scenario="task", max_examples=streams.max_examples(stream.tables)
    )
    tables, key, here = jax.device_put(stream.tables), jax.random.key(0), make_clock()

    @jax.jit
    def epoch(learner):
        state = engine.begin_phase(engine.begin_visit(learner, here, tables, key), here, tables, key)
        return engine.epoch(state._replace(best_loss=jnp.float32(-1.0)), here, tables, key)[0]

    after = epoch(engine.init(key, tables))
    assert (float(after.factor), bool(after.done)) == (0.5, stops)


def test_the_best_copy_s_statistics_and_state_are_restored_at_the_end_of_a_phase():
    stream = conformance.stream()
    method = methods.finetune(small(stream, normalization="batch"))
    settings = VALIDATED._replace(stopping=training.Patience(3))
    engine = training.make_engine(
        method, optax.sgd(1.0), settings, scenario="task", max_examples=streams.max_examples(stream.tables)
    )
    tables, key, here = stream.tables, jax.random.key(0), make_clock()
    state = engine.begin_phase(
        engine.begin_visit(jax.jit(engine.init)(key, tables), here, tables, key), here, tables, key
    )
    best = jax.tree.map(lambda leaf: leaf + 1 if leaf.dtype == jnp.float32 else leaf, state.best)
    learner, _ = engine.end_phase(state._replace(best=best), here, tables, key)
    for part in ("params", "collections", "method_state"):
        jax.tree.map(np.testing.assert_array_equal, getattr(learner, part), best[part])
    assert float(learner.collections["batch_stats"]["norm_0"]["mean"][0]) == 1.0


def test_the_training_loss_of_an_epoch_is_the_mean_over_its_examples():
    """The last batch, which is not full, counts by its examples; at a rate that moves nothing."""
    stream = conformance.stream()
    method = methods.finetune(small(stream, normalization=None))
    settings = VALIDATED._replace(learning_rate=1e-30)
    engine = training.make_engine(
        method, optax.sgd(1.0), settings, scenario="task", max_examples=streams.max_examples(stream.tables)
    )
    tables, key, here = jax.device_put(stream.tables), jax.random.key(0), make_clock(task=1)

    @jax.jit
    def epoch(learner):
        state = engine.begin_phase(engine.begin_visit(learner, here, tables, key), here, tables, key)
        return engine.epoch(state, here, tables, key)[1]

    learner, table = jax.jit(engine.init)(key, tables), stream.tables.train
    mine = slice(table.start[1], table.start[1] + table.size[1])
    labels, own = table.labels[mine], stream.tables.classes[1]
    assert len(labels) % settings.batch_size, "the last batch is a partial one"
    logits = np.asarray(method.predict(learner, stream.tables.examples[table.index[mine]], jnp.int32(1)))
    each = np.log(np.exp(logits[:, own]).sum(1)) - logits[np.arange(len(labels)), labels]
    np.testing.assert_allclose(epoch(learner).loss, each.mean(), rtol=1e-5)
