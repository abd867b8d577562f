"""Every method of the table has every property of the protocol, through the one unchanged loop."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint
import pytest

from cljax import data, streams, task_params, training
from cljax.training import driver
from cljax.training.driver import Compiled
from cljax.training.engine import make_engine
from cljax.training.loop import Entry, make_programs
from cljax.training.start import NOTHING
from cljax.training.streaming import Streamed
from cljax.types import make_clock
from tests import conformance
from tests.shared import assert_close, bits
from tests.zero_forgetting import Visits

MOMENTUM, RATE = conformance.OPTIMIZERS["momentum"]
SETTINGS = training.Settings(batch_size=16, learning_rate=RATE, evaluation_batch=32)
ROUNDS = [(0, 2), (1, 1), (0, 1), (2, 1), (1, 1)]
"""Three tasks, two of them visited again: one trace over these is one over any rounds.

Short ones, for two programs of the same run round differently, and training makes small differences grow.
"""

every_method = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in conformance.TABLE]
)


def signature(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.weak_type), jax.eval_shape(lambda: tree))


def seed_of(tree, seed):
    return jax.tree.map(lambda leaf: leaf[seed], tree)


CLOCK = make_clock(round=1, task=1, newest=1, classes=conformance.stream().tables.classes)


@functools.cache
def setup(name):
    """The method, its engine, a stream with tables on the device, two seeds: keys, learners at rest, states in task 1.

    The states have begun a first phase, their optimizers full of other tasks' momenta.
    """
    stream = conformance.stream(epochs=2)
    method = conformance.build(name, stream)
    max_examples = streams.max_examples(stream.tables)
    engine = make_engine(method, MOMENTUM, SETTINGS, scenario=stream.scenario, max_examples=max_examples)
    tables = jax.tree.map(jnp.asarray, stream.tables)

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, None))
    def begin(key, tables):
        learner = engine.init(key, tables)
        focused = engine.begin_visit(learner, CLOCK, tables, key)
        # Not 1, which gradients of about that size would cancel, leaving nothing but their rounding.
        focused = focused._replace(opt_state=jax.tree.map(lambda leaf: jnp.full_like(leaf, 0.1), focused.opt_state))
        return learner, engine.begin_phase(focused, CLOCK._replace(first=jnp.bool_(False)), tables, key)

    keys = jax.random.split(jax.random.key(0), 2)
    return method, engine, stream._replace(tables=tables), keys, *begin(keys, tables)


def batch_of(stream, index):
    return streams.sequential(stream.tables, stream.tables.train, CLOCK.task, index, 8)


@functools.cache
def driven(name):
    """What driving the method gives, its programs, and a function that drives it again with the programs given."""
    stream, kept = conformance.stream(schedule=streams.visits(ROUNDS)), []
    method = conformance.build(name, stream)

    def again(make):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(driver, "Compiled", make)
            return driver.drive(method, MOMENTUM, [(5, stream)], SETTINGS)

    def make(*arguments):
        kept.append(Compiled(*arguments))
        return kept[0]

    return again(make), kept[0], again


@every_method
def test_one_trace_over_any_rounds_and_both_drivers_agree(name):
    stream = conformance.stream(schedule=streams.visits(ROUNDS))
    run = training.make_run(conformance.build(name, stream), MOMENTUM, stream, SETTINGS)
    result = run(jax.random.key(5), stream.tables)
    assert run.step.traces == 1
    outcome, _, _ = driven(name)
    assert outcome.traces == 1
    np.testing.assert_allclose(outcome.evaluation.accuracy[0], result.evaluation.accuracy, rtol=1e-6)
    parts = [
        (learner.params, learner.collections, learner.method_state) for learner in (outcome.learners[0], result.learner)
    ]
    assert_close(*parts, rtol=conformance.TABLE[name].rounding, atol=1e-5)
    if result.learner.memory is not None:
        assert bits(outcome.learners[0].memory) == bits(result.learner.memory)


@every_method
def test_a_visit_is_a_fixed_point_of_the_signature_and_a_checkpoint_goes_on_by_bits(name, tmp_path):
    """The same run again, through the disk after every visit."""
    outcome, compiled, again = driven(name)
    places, signatures = (tmp_path / str(number) for number in itertools.count()), set()

    class ThroughDisk:
        seconds = 0.0

        def __getattr__(self, called):
            return getattr(compiled, called)

        def turn(self, *arguments):
            run, place = compiled.turn(*arguments), next(places)
            signatures.add(str(signature(run)))
            with orbax.checkpoint.StandardCheckpointer() as checkpointer:
                checkpointer.save(place, run)
                checkpointer.wait_until_finished()
                found = checkpointer.restore(place, jax.eval_shape(lambda: run))
            return jax.tree.map(jnp.array, found)  # which may share buffers

    restored = again(lambda *_: ThroughDisk())
    assert len(list(tmp_path.iterdir())) >= len(ROUNDS)
    assert len(signatures) == 1
    assert bits(restored.learners) == bits(outcome.learners)
    assert bits(restored.evaluation) == bits(outcome.evaluation)


@every_method
def test_one_step_is_the_same_compiled_and_vmapped_or_plain(name):
    """Looped and vmapped are compared in `test_fifty_steps_in_float64_are_the_same_looped_and_vmapped`."""
    _, engine, stream, keys, _, states = setup(name)
    batch = batch_of(stream, jnp.int32(0))
    step = lambda state, key: engine.step(state.learner, state.mask, CLOCK, batch, key)[0]
    together = jax.jit(jax.vmap(step))(states, keys)
    with jax.disable_jit():
        plain = step(seed_of(states, 1), keys[1])
    assert_close(plain, seed_of(together, 1))


@every_method
def test_fifty_steps_in_float64_are_the_same_looped_and_vmapped(name):
    _, engine, stream, keys, _, states = setup(name)
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        double = lambda leaf: leaf.astype(jnp.float64) if leaf.dtype == jnp.float32 else leaf
        parts = {part: jax.tree.map(double, getattr(states.learner, part)) for part in task_params.PARTS}
        states = states._replace(learner=states.learner._replace(**parts))

        def go(state, key):
            def body(index, learner):
                key_now = jax.random.fold_in(key, index)
                return engine.step(learner, state.mask, CLOCK, batch_of(stream, index % 4), key_now)[0]

            return jax.lax.fori_loop(0, 50, body, state.learner).params

        together = jax.jit(jax.vmap(go))(states, keys)
        alone = jax.jit(go)
        for seed in range(2):
            found = alone(seed_of(states, seed), keys[seed])
            assert all(leaf.dtype == jnp.float64 for leaf in jax.tree.leaves(found))
            assert_close(found, seed_of(together, seed), rtol=1e-9, atol=1e-9)


@every_method
def test_dtypes_are_the_same_in_the_mode_of_64_bits(name):
    """Traced only; strict promotion finds an array that was made without a dtype."""
    method, _, stream, keys, *_ = setup(name)
    with jax.enable_x64(True):
        run = training.make_run(method, MOMENTUM, stream, SETTINGS._replace(validate=True)).run
        found = jax.eval_shape(run, keys[0], stream.tables)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(found)} <= {"float32", "int32", "uint32", "bool", "uint8"}


@functools.cache
def after_epoch(name):
    """What the first state's epoch gives."""
    _, engine, stream, keys, _, states = setup(name)
    return jax.jit(engine.epoch)(seed_of(states, 0), CLOCK, stream.tables, keys[0])


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in conformance.HOSTED]
)
def test_an_epoch_of_examples_read_on_demand_is_the_same(name):
    method, engine, stream, keys, _, states = setup(name)
    examples = np.asarray(stream.tables.examples)
    read = stream.tables._replace(examples=data.Images([examples], examples.shape[1:], name="digits"))
    entry = Entry(*(np.int32(value) for value in (1, 0, 0, 1)))
    programs = make_programs(method, engine, stream.schedule)
    begun = jax.jit(programs.start)(keys[0], stream.tables, NOTHING)
    run = begun._replace(state=jax.tree.map(jnp.array, seed_of(states, 0)))
    found = Streamed(programs, SETTINGS).epoch(run, entry, read, keys[0], lambda run: None)
    state, log = after_epoch(name)
    assert_close(found.state, state, rtol=1e-4, atol=1e-5)
    assert_close(jax.tree.map(lambda leaf: leaf[0, 0], found.visit.epochs), log, rtol=1e-4, atol=1e-5)


@every_method
def test_bits_stay_where_the_update_mask_is_zero(name):
    """With momentum and weight decay; `test_transforms` has the other optimizers."""
    state = seed_of(setup(name)[5], 0)
    after, _ = after_epoch(name)
    both = lambda learner: (learner.params, learner.collections)
    trees = (both(state.learner), both(after.learner), state.mask)
    moved = 0
    for old, new, mask in zip(*(jax.tree.leaves(tree) for tree in trees), strict=True):
        frozen = np.broadcast_to(np.asarray(mask) == 0, old.shape)
        assert np.asarray(old)[frozen].tobytes() == np.asarray(new)[frozen].tobytes()
        moved += np.sum((np.asarray(old) != np.asarray(new))[~frozen])
    assert moved > 0


@every_method
def test_a_task_that_does_not_exist_is_refused(name):
    method, _, stream, _, learners, _ = setup(name)
    for task in (7, -1, conformance.TASKS):
        with pytest.raises(ValueError, match=f"task is {task}, but must be a whole number from 0 to 2"):
            method.predict(seed_of(learners, 0), stream.tables.examples[:2], jnp.int32(task))


def test_the_table_says_which_methods_forget_nothing():
    stream = conformance.stream()
    found = [name for name in conformance.TABLE if conformance.build(name, stream).zero_forgetting]
    assert tuple(found) == conformance.FORGETS_NOTHING


@pytest.mark.parametrize("name", conformance.FORGETS_NOTHING)
def test_no_bit_of_old_logits_changes(name):
    """Not by later tasks, nor by revisits of others, under any optimizer: see `Visits.run`."""
    stream = conformance.stream()
    visits = Visits(conformance.build(name, stream), stream)
    for which in range(len(conformance.OPTIMIZERS)):
        visits.run(visits.start(2), [task for task, _ in ROUNDS], which=which)


def test_fine_tuning_does_change_old_logits():
    stream = conformance.stream()
    run = training.make_run(conformance.build("finetune", stream), optax.sgd(1.0), stream, SETTINGS)
    prints = np.asarray(run(jax.random.key(2), stream.tables).evaluation.fingerprint)
    assert prints[1, 0] != prints[0, 0]
