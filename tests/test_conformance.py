"""Every method of the table has every property of the protocol, through the one unchanged loop."""

from __future__ import annotations

import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cljax import data, streams, task_params, training
from cljax.storage import checkpoints
from cljax.training import driver
from cljax.training.driver import Compiled
from cljax.training.engine import make_engine
from cljax.training.loop import Entry, Run, make_programs
from cljax.training.streaming import Streamed
from cljax.types import make_clock
from tests import conformance
from tests.shared import assert_close, bits

MOMENTUM, RATE = conformance.OPTIMIZERS["momentum"]
SETTINGS = training.Settings(batch_size=16, learning_rate=RATE, evaluation_batch=32)
ROUNDS = [(0, 2), (1, 1), (0, 1), (2, 1), (1, 1)]
"""Three tasks, two of them visited again: one trace over these is one over any rounds.

Short ones, for two programs of the same run round differently, and training makes small differences grow.
"""


every_method = pytest.mark.parametrize("name", conformance.TABLE)
hosted = pytest.mark.parametrize("name", conformance.HOSTED)


def signature(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.weak_type), jax.eval_shape(lambda: tree))


def engine_of(method, stream):
    most = streams.max_examples(stream.tables)
    return make_engine(method, MOMENTUM, SETTINGS, scenario=stream.scenario, max_examples=most)


def in_float64(state):
    double = lambda leaf: leaf.astype(np.float64) if leaf.dtype == np.float32 else leaf
    parts = {part: jax.tree.map(double, getattr(state.learner, part)) for part in task_params.PARTS}
    return state._replace(learner=state.learner._replace(**parts))


def seed_of(tree, seed):
    return jax.device_put(jax.tree.map(lambda leaf: np.asarray(leaf)[seed], tree))  # NumPy's rows are not compiled


class Turn(NamedTuple):
    """What a driver's turn was given, and the run that it gave."""

    entry: Entry
    following: Entry
    tables: Any
    key: Any
    run: Run


class Driven(NamedTuple):
    """A row's run over `ROUNDS`, its programs, its turns, the signatures of their runs.

    The row is compiled here, once: what the tests below need of the row, they take from this run.
    """

    method: Any
    stream: Any
    outcome: training.Outcome
    compiled: Compiled
    turns: list[Turn]
    signatures: set[str]


@functools.cache
def driven(name):
    stream = conformance.stream(schedule=streams.visits(ROUNDS))
    method, turns, made, signatures = conformance.build(name, stream), [], [], set()

    class Watched:
        seconds = 0.0

        def __init__(self, *arguments):
            made.append(Compiled(*arguments))

        def __getattr__(self, called):
            return getattr(made[0], called)

        def turn(self, run, *given):
            run = made[0].turn(run, *given)
            signatures.add(str(signature(run)))
            turns.append(Turn(*given, jax.tree.map(np.array, run)))  # a copy, for the next program takes the buffers
            return run

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "Compiled", Watched)
        patch.setattr(driver, "step_flops", lambda *arguments: None)
        outcome = driver.drive(method, MOMENTUM, [(5, stream)], SETTINGS)
    return Driven(method, stream, outcome, made[0], turns, signatures)


def second_visit(name, number=1):
    """The turn into round `number`, 1 and 4 are visits to task 1; its run's optimizer full of other momenta."""
    turn = next(turn for turn in driven(name).turns if turn.following.round == number)
    learner = turn.run.state.learner
    # Not 1, which gradients of about that size would cancel, leaving nothing but their rounding.
    learner = learner._replace(opt_state=jax.tree.map(lambda leaf: np.full_like(leaf, 0.1), learner.opt_state))
    return turn._replace(run=turn.run._replace(state=turn.run.state._replace(learner=learner)))


@every_method
def test_one_trace_and_one_signature_over_any_rounds(name):
    _, _, outcome, _, turns, signatures = driven(name)
    assert outcome.traces == 1
    assert len(turns) >= len(ROUNDS)
    assert len(signatures) == 1


@hosted
def test_both_drivers_agree(name):
    """The loop's property, not a method's: so of those rows that differ in what the loop does for them."""
    method, stream, outcome, *_ = driven(name)
    run = training.make_run(method, MOMENTUM, stream, SETTINGS)
    result = run(jax.random.key(5), stream.tables)
    assert run.step.traces == 1
    np.testing.assert_allclose(outcome.evaluation.accuracy[0], result.evaluation.accuracy, rtol=1e-6)
    parts = [
        (learner.params, learner.collections, learner.method_state) for learner in (outcome.learners[0], result.learner)
    ]
    assert_close(*parts, rtol=conformance.TABLE[name].rounding, atol=1e-5)
    assert bits(outcome.learners[0].memory) == bits(result.learner.memory)


@every_method
def test_one_program_for_the_stream_and_the_dtypes_are_the_same_in_the_mode_of_64_bits(name):
    """Traced only; strict promotion finds an array that was made without a dtype."""
    method, stream, *_ = driven(name)
    with jax.enable_x64(True):
        run = training.make_run(method, MOMENTUM, stream, SETTINGS._replace(validate=True))
        found = jax.eval_shape(run.run, jax.random.key(0), stream.tables)
    assert run.step.traces == 1
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(found)} <= {"float32", "int32", "uint32", "bool", "uint8"}


@every_method
def test_a_checkpoint_goes_on_by_bits(name, tmp_path):
    """Through the disk in the middle of the run, then through the same programs to its end."""
    _, _, outcome, compiled, turns, _ = driven(name)
    half = len(turns) // 2
    run = jax.device_put(turns[half].run, may_alias=False)
    checkpoints.save(tmp_path, run)
    found = checkpoints.restore(tmp_path, run).tree
    assert signature(found) == signature(run)
    assert bits(found) == bits(run)
    run = found
    for entry, following, tables, key, _ in turns[half + 1 :]:
        while run.state.epoch < entry.epochs and not run.state.done:
            run = compiled.epoch(run, entry, tables, key, lambda run: None)
        run = compiled.turn(run, entry, following, tables, key)
    assert bits(compiled.rest(run)) == bits(outcome.learners[0])
    assert bits(run.evaluation) == bits(jax.tree.map(lambda leaf: leaf[0], outcome.evaluation))


@every_method
def test_steps_in_float64_are_the_same_in_one_vmapped_loop_and_plain(name):
    """Fifty steps of two learners in one program; the first of one and the last of the other also alone."""
    method, stream, *_ = driven(name)
    engine, tables = engine_of(method, stream), jax.device_put(stream.tables)
    clock = make_clock(round=1, task=1, newest=1, classes=tables.classes)
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        states = [in_float64(second_visit(name, number).run.state) for number in (1, 4)]
        keys = jax.random.split(jax.random.key(0), 2)

        @jax.jit
        def plain(index, learner, mask, key):
            batch = streams.sequential(tables, tables.train, clock.task, index % 4, 8)
            return engine.step(learner, mask, clock, batch, jax.random.fold_in(key, index))[0]

        @jax.jit
        @functools.partial(jax.vmap, in_axes=(None, None, 0, 0, 0))
        def loop(start, stop, learner, mask, key):
            return jax.lax.fori_loop(start, stop, lambda index, learner: plain(index, learner, mask, key), learner)

        together = jax.tree.map(lambda *leaves: np.stack(leaves), *states)
        learners = [together.learner]
        for start, stop in itertools.pairwise((0, 1, 49, 50)):
            learners.append(loop(jnp.int32(start), jnp.int32(stop), learners[-1], together.mask, keys))
        for index, seed, old, new in ((0, 0, *learners[:2]), (49, 1, *learners[2:])):
            found = plain(jnp.int32(index), seed_of(old, seed), states[seed].mask, keys[seed])
            assert all(leaf.dtype == jnp.float64 for leaf in jax.tree.leaves(found.params))
            assert_close(found, seed_of(new, seed), rtol=1e-9, atol=1e-9)


@hosted
def test_an_epoch_of_examples_read_on_demand_is_the_same(name):
    method, stream, _, compiled, *_ = driven(name)
    _, entry, tables, key, run = second_visit(name)
    examples = np.asarray(stream.tables.examples)
    read = tables._replace(examples=data.Images([examples], examples.shape[1:], name="digits"))
    streamed = Streamed(make_programs(method, engine_of(method, stream), stream.schedule), SETTINGS)
    begun = lambda: jax.device_put(run, may_alias=False)  # an epoch takes its buffers
    found = streamed.epoch(begun(), entry, read, key, lambda run: None)
    expected = compiled.epoch(begun(), entry, tables, key, lambda run: None)
    assert_close(found, expected, rtol=1e-4, atol=1e-5)


@every_method
def test_bits_stay_where_the_update_mask_is_zero(name):
    """With momentum and weight decay; `test_transforms` has the other optimizers."""
    _, entry, tables, key, run = second_visit(name)
    after = driven(name).compiled.epoch(jax.device_put(run, may_alias=False), entry, tables, key, lambda run: None)
    both = lambda run: (run.state.learner.params, run.state.learner.collections)
    moved = 0
    for old, new, mask in zip(*map(jax.tree.leaves, (both(run), both(after), run.state.mask)), strict=True):
        frozen = np.broadcast_to(np.asarray(mask) == 0, old.shape)
        assert np.asarray(old)[frozen].tobytes() == np.asarray(new)[frozen].tobytes()
        moved += np.sum((np.asarray(old) != np.asarray(new))[~frozen])
    assert moved > 0


@every_method
def test_a_task_that_does_not_exist_is_refused(name):
    method, stream, outcome, *_ = driven(name)
    for task in (7, -1, conformance.TASKS):
        with pytest.raises(ValueError, match=f"task is {task}, but must be a whole number from 0 to 2"):
            method.predict(outcome.learners[0], stream.tables.examples[:2], jnp.int32(task))


def test_the_table_says_which_methods_forget_nothing():
    stream = conformance.stream()
    found = [name for name in conformance.TABLE if conformance.build(name, stream).zero_forgetting]
    assert tuple(found) == conformance.FORGETS_NOTHING


def forgotten(name):
    """The rounds that changed a bit of the test logits of a task that was visited before, and is not again."""
    prints, seen, found = driven(name).outcome.evaluation.fingerprint[0], {0}, []
    for number, (task, _) in enumerate(ROUNDS[1:], 1):
        old = sorted(seen - {task})
        found += [number] if (prints[number, old] != prints[number - 1, old]).any() else []
        assert task in seen or prints[number, task] != prints[number - 1, task], "a first visit moves its own task"
        seen.add(task)
    return found


@pytest.mark.parametrize("name", conformance.FORGETS_NOTHING)
def test_no_bit_of_old_logits_changes(name):
    """Not by later tasks, nor by revisits of others, with momentum and weight decay, which move all that is not masked.

    What is masked no optimizer moves: `test_bits_stay...`, `test_transforms`; `test_tfm` and others try all orders.
    """
    assert forgotten(name) == []


@pytest.mark.parametrize("name", ["finetune"])
def test_fine_tuning_does_change_old_logits(name):
    assert forgotten(name) == [1, 2, 3, 4]
