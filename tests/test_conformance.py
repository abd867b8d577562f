"""Every method of the table has every property of the protocol, through the one unchanged loop."""

from __future__ import annotations

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint
import pytest

from cljax import rows, streams, training
from cljax.training.driver import drive
from cljax.training.engine import clocks, epoch_table, make_engine
from cljax.training.fit import make_fit
from cljax.types import make_clock
from tests import conformance

SETTINGS = training.Settings(batch_size=16, rate=0.05, evaluation_batch=32)
every_method = pytest.mark.parametrize("name", conformance.TABLE)


def bits(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def assert_close(first, second, rtol=1e-5, atol=1e-6):
    chex.assert_trees_all_equal_structs(first, second)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), first, second)


def signature(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.weak_type), jax.eval_shape(lambda: tree))


@functools.cache
def engine_of(name, optimizer="momentum"):
    stream = conformance.stream()
    method = conformance.build(name, stream)
    settings = SETTINGS._replace(rate=conformance.OPTIMIZERS[optimizer][1])
    capacity = streams.capacity(stream.tables)
    engine = make_engine(
        method, conformance.OPTIMIZERS[optimizer][0], settings, scenario=stream.scenario, capacity=capacity
    )
    return method, engine, settings


@functools.cache
def fit_of(name):
    method, engine, settings = engine_of(name)
    fit = make_fit(engine, settings, longest=2)
    if method.candidates is not None:
        fit = training.search(fit, method.candidates, method.choose)
    return method, engine, jax.jit(fit)


def visit(fit, method, stream, learner, number, key):
    clock = jax.tree.map(lambda leaf: jnp.asarray(leaf[number]), clocks(stream.schedule))
    epochs = jnp.asarray(epoch_table(method, stream.schedule)[number])
    return fit(learner, clock, stream.tables, key, epochs)[0]


@every_method
def test_a_visit_is_a_fixed_point_of_the_signature_and_a_checkpoint_goes_on_by_bits(name, tmp_path):
    stream = conformance.stream(epochs=2)
    method, engine, fit = fit_of(name)
    key = jax.random.key(3)
    start = jax.jit(engine.init)(key, stream.tables)
    first = visit(fit, method, stream, start, 0, key)
    assert signature(first) == signature(start)

    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "learner", first)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "learner", jax.eval_shape(lambda: first))
    assert bits(restored) == bits(first)
    ends = [visit(fit, method, stream, learner, 1, key) for learner in (first, restored)]
    assert bits(ends[0]) == bits(ends[1])
    assert bits(ends[0].params) != bits(first.params)


@every_method
def test_one_trace_over_three_tasks_and_over_random_rounds_and_both_drivers_agree(name):
    optimizer, rate = conformance.OPTIMIZERS["momentum"]
    settings = SETTINGS._replace(rate=rate)
    schedules = [streams.lifelong(3, 2), streams.multi_task(3, 7, seed=1)]
    for schedule in schedules:
        stream = conformance.stream(schedule=schedule)
        method = conformance.build(name, stream)
        run = training.make_run(method, optimizer, stream, settings)
        result = run(jax.random.key(5), stream.tables)
        training.raise_failure(result.failure, method)
        assert run.step.traces == 1
    outcome = drive(method, optimizer, [(5, stream)], settings)
    assert outcome.traces == 1
    np.testing.assert_array_equal(outcome.evaluation.accuracy[0], result.evaluation.accuracy)
    parts = [(learner.params, learner.collections, learner.method_state) for learner in (outcome.learners[0], result.learner)]
    assert_close(*parts, rtol=1e-4, atol=1e-5)
    if result.learner.memory is not None:
        assert bits(outcome.learners[0].memory) == bits(result.learner.memory)


def one_step(engine, stream, learner, key, index=0, clock=None):
    """The focused learner after one train step on the task's first batches."""
    clock = make_clock(task=1, newest=1) if clock is None else clock
    focused = engine.begin_visit(learner, clock, stream.tables, key)
    state = engine.begin_phase(focused, clock, stream.tables, key)
    batch = streams.sequential(stream.tables, stream.tables.train, clock.task, jnp.int32(index), 8)
    return engine.step(state.learner, state.mask, clock, batch, key)[0]


@every_method
def test_one_step_is_the_same_looped_and_vmapped_and_without_jit(name):
    stream = conformance.stream()
    _, engine, _ = engine_of(name)
    tables = jax.tree.map(jnp.asarray, stream.tables)
    stream = stream._replace(tables=tables)
    keys = jax.random.split(jax.random.key(0), 2)
    learners = jax.jit(jax.vmap(engine.init, in_axes=(0, None)))(keys, tables)
    step = lambda learner, key: one_step(engine, stream, learner, key)
    side_by_side = jax.jit(jax.vmap(step))(learners, keys)
    looped = jax.jit(step)
    for seed in range(2):
        learner = jax.tree.map(lambda leaf, seed=seed: leaf[seed], learners)
        alone = looped(learner, keys[seed])
        assert_close(alone, jax.tree.map(lambda leaf, seed=seed: leaf[seed], side_by_side))
    with jax.disable_jit():
        plain = one_step(engine, stream, learner, keys[1])
    assert_close(alone, plain)


@every_method
def test_fifty_steps_in_float64_are_the_same_looped_and_vmapped(name):
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        stream = conformance.stream()
        method = conformance.build(name, stream)
        optimizer, rate = conformance.OPTIMIZERS["momentum"]
        capacity = streams.capacity(stream.tables)
        settings = SETTINGS._replace(rate=rate)
        engine = make_engine(method, optimizer, settings, scenario="task", capacity=capacity)
        tables = jax.tree.map(jnp.asarray, stream.tables)
        clock = make_clock(task=1, newest=1)

        def double(leaf):
            return leaf.astype(jnp.float64) if leaf.dtype == jnp.float32 else leaf

        def go(key):
            learner = engine.init(key, tables)
            learner = learner._replace(**jax.tree.map(double, {part: getattr(learner, part) for part in rows.PARTS}))
            focused = engine.begin_visit(learner, clock, tables, key)
            state = engine.begin_phase(focused, clock, tables, key)

            def body(index, learner):
                batch = streams.sequential(tables, tables.train, clock.task, index % 4, 8)
                return engine.step(learner, state.mask, clock, batch, jax.random.fold_in(key, index))[0]

            return jax.lax.fori_loop(0, 50, body, state.learner).params

        keys = jax.random.split(jax.random.key(0), 2)
        together = jax.jit(jax.vmap(go))(keys)
        alone = jax.jit(go)
        for seed in range(2):
            found = alone(keys[seed])
            assert all(leaf.dtype == jnp.float64 for leaf in jax.tree.leaves(found))
            assert_close(found, jax.tree.map(lambda leaf, seed=seed: leaf[seed], together), rtol=1e-9, atol=1e-9)


@every_method
def test_bits_stay_where_the_update_mask_is_zero(name):
    """With momentum and weight decay; `test_transforms` has all optimizers."""
    stream = conformance.stream()
    _, engine, _ = engine_of(name)
    key = jax.random.key(1)

    @jax.jit
    def go(learner):
        learner = rows.write_back(one_step(engine, stream, learner, key, clock=make_clock(task=0)), jnp.int32(0))
        clock = make_clock(task=1, newest=1)
        focused = engine.begin_visit(learner, clock, stream.tables, key)
        # The optimizer's state is that of the first task: momentum would move what has no gradient.
        mask = engine.begin_phase(focused, clock, stream.tables, key).mask
        before = focused.params
        for index in range(3):
            batch = streams.sequential(stream.tables, stream.tables.train, clock.task, jnp.int32(index), 8)
            focused = engine.step(focused, mask, clock, batch, key)[0]
        return before, focused.params, mask

    before, after, mask = go(engine.init(key, stream.tables))
    moved = 0
    for old, new, m in zip(*(jax.tree.leaves(tree) for tree in (before, after, mask)), strict=True):
        m = np.broadcast_to(np.asarray(m), old.shape)
        old, new = np.asarray(old), np.asarray(new)
        assert old[m == 0].tobytes() == new[m == 0].tobytes()
        moved += np.sum(old[m > 0] != new[m > 0])
    assert moved > 0


def test_the_table_says_which_methods_forget_nothing():
    stream = conformance.stream()
    found = [name for name in conformance.TABLE if conformance.build(name, stream).forgets_nothing]
    assert tuple(found) == conformance.FORGETS_NOTHING


@pytest.mark.parametrize("optimizer", conformance.OPTIMIZERS)
@pytest.mark.parametrize("name", conformance.FORGETS_NOTHING)
def test_no_bit_of_old_logits_changes(name, optimizer):
    """Not by later tasks, nor by revisits of others: a task's logits change at its own visits only."""
    stream = conformance.stream(schedule=streams.visits([(0, 2), (1, 2), (0, 1), (2, 2), (1, 1)]))
    transformation, rate = conformance.OPTIMIZERS[optimizer]
    method = conformance.build(name, stream)
    run = training.make_run(method, transformation, stream, SETTINGS._replace(rate=rate))
    result = run(jax.random.key(2), stream.tables)
    training.raise_failure(result.failure, method)
    prints = np.asarray(result.evaluation.fingerprint)
    for task in range(3):
        visits = [number for number, visited in enumerate(stream.schedule.task) if visited == task]
        for number in range(1, len(prints)):
            if number > visits[0] and number not in visits:
                assert prints[number, task] == prints[number - 1, task], (task, number)
            if number in visits:
                assert prints[number, task] != prints[number - 1, task], "a visit should have moved its own task"


def test_fine_tuning_does_change_old_logits():
    stream = conformance.stream()
    run = training.make_run(conformance.build("finetune", stream), optax.sgd(1.0), stream, SETTINGS)
    prints = np.asarray(run(jax.random.key(2), stream.tables).evaluation.fingerprint)
    assert prints[1, 0] != prints[0, 0]
