"""A stream that grows: rounds in parts, tasks that nobody had planned, examples that are gone, room for tasks."""

from __future__ import annotations

import functools

import jax
import numpy as np
import optax
import pytest

from cljax import data, methods, networks, ownership, report, streams, task_params, training
from cljax.storage import checkpoints
from cljax.training.start import Past, Start, begin_with, check_widths
from tests import conformance
from tests.shared import bits, small

MOMENTUM, RATE = conformance.OPTIMIZERS["momentum"]
SETTINGS = training.Settings(batch_size=16, learning_rate=RATE, evaluation_batch=32)


def digits(classes, *, epochs=1, scenario="task", rows=slice(None)):
    """One task of some digits."""
    few = conformance.digits()
    part = data.from_arrays(
        few.train_images[rows], few.train_labels[rows], few.test_images, few.test_labels, name="few"
    )
    return streams.split(part, tasks=1, class_order=list(classes), epochs=epochs, scenario=scenario)


def build(name, like):
    """The method of a row of the conformance table, for a network of one layer."""
    row = conformance.TABLE[name]
    return row.build(small(like, normalization=row.normalization))


def close(one, other, rtol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-5), one, other)


def test_rounds_in_parts_are_the_rounds_in_one_go():
    """Two programs, for one begins anew and the other goes on; bits are compared where the drives are the same ones."""
    name, stream = "lwf+replay", conformance.stream()
    run = training.make_run(build(name, stream), MOMENTUM, stream, SETTINGS)
    whole = run(jax.random.key(5), stream.tables)
    part = run(jax.random.key(5), stream.tables, rounds=(0, 1))
    assert np.isnan(part.evaluation.accuracy[1:]).all()
    part = run(jax.random.key(5), stream.tables, past=part, rounds=(1, 3))
    close(part.learner.params, whole.learner.params, rtol=1e-4)
    assert bits(part.learner.memory) == bits(whole.learner.memory)
    close(part.evaluation.accuracy, whole.evaluation.accuracy)
    assert run.step.traces == 1


def test_driven_in_parts_too_each_seed_from_its_own_past():
    stream, method = conformance.stream(), build("finetune", conformance.stream())
    drive = functools.partial(training.drive, method, MOMENTUM, [(3, stream), (4, stream)], SETTINGS)
    whole, first = drive(), drive(rounds=2)
    for options in ({}, {"vectorize": True}):
        rest = drive(past=first, **options)
        assert bits(rest.evaluation.accuracy[:, :2]) == bits(whole.evaluation.accuracy[:, :2])
        if not options:
            assert bits(rest.evaluation.accuracy) == bits(whole.evaluation.accuracy)
            assert bits(rest.learners) == bits(whole.learners)
    with pytest.raises(ValueError, match="There is nothing to go on with: 3 rounds are behind, and the run is to end"):
        drive(past=whole)
    with pytest.raises(ValueError, match="past has 1 learners, but there are 2 pairs of seeds"):
        drive(past=[Past(first.learners[0], jax.tree.map(lambda leaf: leaf[0, :2], first.evaluation))])
    with pytest.raises(ValueError, match=r"past is of the seeds \[3, 4\] in the task-incremental scenario, but"):
        training.drive(method, MOMENTUM, [(4, stream), (3, stream)], SETTINGS, past=first)


def test_what_a_past_round_is_compared_with_was_evaluated():
    """Nothing that forgets nothing is said to forget, where the rounds after the past are not all evaluated."""
    stream, method = conformance.stream(), build("freezing", conformance.stream())
    first = training.drive(method, MOMENTUM, [(3, stream)], SETTINGS, rounds=1)
    past = [Past(first.learners[0], jax.tree.map(lambda leaf: leaf[0, :1], first.evaluation))]
    for evaluate in ([True, True, False], [True, False, True], [True, False, False]):
        schedule = stream.schedule._replace(evaluate=np.array(evaluate))
        seeds = [(3, stream._replace(schedule=schedule))]
        marks = training.drive(method, MOMENTUM, seeds, SETTINGS, past=past).evaluation.fingerprint
        assert marks[0].any(axis=1).tolist() == [any(evaluate[1:]), *evaluate[1:]]
        assert report.zero_forgetting(marks, schedule.task)


def test_a_run_that_goes_on_is_saved_and_taken_up(tmp_path):
    stream, method, said = conformance.stream(), build("finetune", conformance.stream()), []
    drive = functools.partial(training.drive, method, MOMENTUM, [(3, stream)], SETTINGS)
    saving, first = checkpoints.Saving(tmp_path, 0.0, say=said.append), drive(rounds=1)

    def stop(event):
        if event.task == 2:
            raise TimeoutError

    with pytest.raises(TimeoutError):
        drive(past=first, checkpoints=saving, report=stop)
    found = drive(past=first, checkpoints=saving)
    assert said == ["Taking up finetune, seed 3, in round 3 of 3, after epoch 0 of phase 1."]
    assert bits(found.learners) == bits(drive(past=first).learners)
    with pytest.raises(checkpoints.CheckpointError, match="another run, which differs in past"):
        drive(past=drive(rounds=2), checkpoints=saving)


def test_a_checkpoint_is_not_taken_up_for_other_rounds(tmp_path):
    stream, method = conformance.stream(), build("finetune", conformance.stream())
    drive = functools.partial(training.drive, method, MOMENTUM, [(3, stream)], SETTINGS)
    saving = checkpoints.Saving(tmp_path, 0.0, say=lambda line: None)
    drive(rounds=1, checkpoints=saving)
    with pytest.raises(checkpoints.CheckpointError, match="of another run, which differs in rounds"):
        drive(rounds=2, checkpoints=saving)


def grown(name, more, past_stream=None):
    """The outcome of two tasks, then what driving one more after it gives, with the method for the longer stream."""
    short = streams.append(digits([4, 9, 1]), digits([7, 0]))
    longer = streams.append(past_stream(short) if past_stream else short, more)
    old = training.drive(build(name, short), MOMENTUM, [(5, short)], SETTINGS)
    method = build(name, longer)
    return short, longer, old, method, training.drive(method, MOMENTUM, [(5, longer)], SETTINGS, past=old)


def test_a_task_that_nobody_had_planned_moves_no_bit_of_old_logits():
    short, longer, old, method, new = grown("tfm", digits([3, 8]))
    assert method.zero_forgetting
    learner = new.learners[0]
    assert learner.rows.tasks == 3
    for task in range(2):
        before = build("tfm", short).predict(old.learners[0], short.tables.examples[:40], task)
        after = method.predict(learner, short.tables.examples[:40], task)
        assert bits(before) == bits(after)
    np.testing.assert_array_equal(new.evaluation.accuracy[:, :2, :2], old.evaluation.accuracy)
    np.testing.assert_array_equal(new.evaluation.fingerprint[0, 2, :2], new.evaluation.fingerprint[0, 1, :2])
    assert not new.evaluation.fingerprint[0, 0].any()  # by another program
    assert np.isnan(new.evaluation.accuracy[0, :2, 2]).all()
    assert np.isfinite(new.evaluation.accuracy[0, 2]).all()
    assert report.zero_forgetting(new.evaluation.fingerprint, longer.schedule.task)
    for was, now in zip(*(jax.tree.leaves(run.learners[0].method_state.owner) for run in (old, new)), strict=True):
        taken = np.asarray(was) != ownership.masks.FREE
        np.testing.assert_array_equal(np.asarray(now)[taken], np.asarray(was)[taken])


def test_what_a_learner_goes_on_with_is_what_one_that_knew_the_plan_has():
    """Rows, memory, teacher, momenta: the same bits as if all three tasks had been planned."""
    _, longer, _, method, new = grown("lwf+replay", digits([3, 8, 6]))
    planned = training.drive(method, MOMENTUM, [(5, longer)], SETTINGS)
    assert not report.zero_forgetting(new.evaluation.fingerprint, longer.schedule.task)
    close(new.learners[0].params, planned.learners[0].params)
    assert bits(new.learners[0].memory) == bits(planned.learners[0].memory)
    np.testing.assert_allclose(new.evaluation.accuracy[0, 2], planned.evaluation.accuracy[0, 2], rtol=1e-6)


def test_old_examples_may_be_gone_and_heads_may_grow():
    """Old tasks have no accuracy then, and keep their logits; a larger task widens every head."""
    short, longer, old, _, new = grown("freezing", digits([3, 8, 6, 2]), past_stream=streams.forget)
    assert longer.tables.classes.sum(axis=1).tolist() == [3, 2, 4]
    assert len(longer.tables.examples) < len(short.tables.examples)
    assert np.isnan(new.evaluation.accuracy[0, 2, :2]).all()
    assert np.isfinite(new.evaluation.accuracy[0, 2, 2])
    for leaf in ("kernel", "bias"):
        was, now = (np.asarray(run.learners[0].params["head"][leaf]) for run in (old, new))
        assert bits(now[:2, ..., :3]) == bits(was)
    joint = build("joint", longer)
    with pytest.raises(
        ValueError, match=r"Task 0 \(classes .*\) has no train examples, and joint trains on all .* Take"
    ):
        training.drive(joint, MOMENTUM, [(5, longer)], SETTINGS, past=old)


def test_with_room_for_tasks_to_come_one_program_serves_them_all():
    pieces = [digits([4, 9, 1]), digits([7, 0], rows=slice(100)), digits([3, 8, 6, 2])]
    room = {"tasks": 3, "examples": 1100, "classes": 4}
    first = streams.pad(pieces[0], **room)
    method = methods.lwf(networks.mlp((8, 8, 1), 4, hidden=(8,), mean=first.mean, std=first.std))
    run = training.make_run(
        method, MOMENTUM, first, SETTINGS, max_examples={"train": 240, "validation": 20, "test": 60}
    )
    result = run(jax.random.key(0), first.tables, rounds=(0, 1))
    stream = pieces[0]
    for number, more in enumerate(pieces[1:], 1):
        stream = streams.append(stream, more)
        tables = streams.pad(stream, **room).tables
        learned = np.asarray(result.learner.params["head"]["kernel"])
        result = run(jax.random.key(0), tables, past=result, rounds=(number, number + 1))
        assert not np.array_equal(result.learner.params["head"]["kernel"][number], learned[number])
        assert np.isfinite(result.evaluation.accuracy[number, : number + 1]).all()
    assert run.step.traces == 1
    large = tables.train._replace(size=np.array([241, 0, 0]))
    with pytest.raises(ValueError, match="train examples, but the run has room for 240 of a task"):
        run(jax.random.key(0), tables._replace(train=large))


def test_the_rows_and_labels_of_a_longer_stream_are_those_of_its_parts():
    parts = digits([4, 9, 1]), digits([7, 0])
    longer = streams.append(*parts)
    tables = longer.tables
    for task, part in enumerate(parts):
        for split in ("train", "validation", "test"):
            table, own = getattr(tables, split), getattr(part.tables, split)
            place = slice(table.start[task], table.start[task] + table.size[task])
            own = [np.asarray(leaf)[own.start[0] : own.start[0] + own.size[0]] for leaf in own[:2]]
            images = np.asarray(tables.examples)[np.asarray(table.index)[place]]
            np.testing.assert_array_equal(images, np.asarray(part.tables.examples)[own[0]])
            np.testing.assert_array_equal(np.asarray(table.labels)[place], own[1])
    assert longer.facts["classes"] == [["4", "9", "1"], ["7", "0"]]
    assert longer.facts["tasks"] == [0, 1]
    assert (longer.mean, longer.std) == (parts[0].mean, parts[0].std)


@pytest.mark.parametrize("name", ["single_task", "progressive", "progressive, joint", "lwf", "hat"])
def test_there_is_room_for_a_further_task_whatever_leaves_go_by_the_number_of_tasks(name):
    """Shapes only; a column's adapters see all earlier columns, which are more of a longer stream."""
    build = functools.partial(methods.progressive, laterals="joint") if "joint" in name else getattr(methods, name)
    method = build(networks.mlp((8, 8, 1), 2, hidden=(16, 12)))

    def make(tasks):
        tables = streams.split(conformance.digits(), tasks=tasks, class_order=range(2 * tasks)).tables
        return lambda key: training.make_learner(method, MOMENTUM, tables, 0.1, key)

    def longer(key, old):
        return begin_with(method, make(4)(key), Start({}, {}, training.Past(old, None)))

    key = jax.random.key(0)
    old = jax.eval_shape(make(3), key)
    found, new = jax.eval_shape(longer, key, old), jax.eval_shape(make(4), key)
    assert jax.tree.map(lambda leaf: leaf.shape, found) == jax.tree.map(lambda leaf: leaf.shape, new)


def test_what_does_not_fit_is_refused():
    short = digits([4, 9])
    colour = np.zeros((8, 8, 8, 3), np.uint8)
    other = streams.split(data.from_arrays(colour, [0, 1] * 4, colour, [0, 1] * 4, name="colour"), tasks=1)
    with pytest.raises(ValueError, match=r"'few' are uint8 of shape \(8, 8, 1\), but those of 'colour' are uint8 of"):
        streams.append(short, other)
    with pytest.raises(ValueError, match="permute their pixels"):
        streams.append(short, streams.permuted(conformance.digits(), tasks=2))
    roomy = streams.pad(short, tasks=3, examples=2000)
    for pair in ((roomy, short), (short, roomy)):
        with pytest.raises(ValueError, match=r"has room for tasks to come .*Append to the stream as it was, and pad"):
            streams.append(*pair)
    with pytest.raises(ValueError, match="tasks is 1, but must be"):
        streams.pad(conformance.stream(), tasks=1, examples=1000)
    wide, narrow = (methods.lwf(networks.mlp((8, 8, 1), 2, hidden=(width,))) for width in (4, 5))
    make = functools.partial(training.make_learner, optimizer=MOMENTUM, tables=short.tables, learning_rate=0.1)
    learner = make(wide, key=jax.random.key(0))
    with pytest.raises(ValueError, match=r"The leaf 'dense_0/bias' of the learner to go on from is float32 of shape"):
        training.extend(make(narrow, key=jax.random.key(0)), learner)
    alone, wider = (methods.single_task(networks.mlp((8, 8, 1), 2, hidden=(width,))) for width in (4, 5))
    past = training.Past(make(alone, key=jax.random.key(0)), training.Evaluation(*np.zeros([4, 1, 1])))
    longer = streams.append(short, digits([1, 7]))
    with pytest.raises(ValueError, match=r"The leaf 'dense_0/bias' of the learner to go on from has shape \(4,\) a"):
        training.drive(wider, MOMENTUM, [(0, longer)], past=[past])
    cnn = lambda: networks.cnn((8, 8, 1), 2, channels=((3,),), dense=(5,))
    for build, option in ((methods.progressive, "reduction"), (methods.feature_extraction, "hidden")):
        was, now = (build(cnn(), **{option: value}) for value in (1.0 if option == "reduction" else 4, 5))
        shapes = jax.eval_shape(lambda was=was: make(was, tables=longer.tables, key=jax.random.key(0)))
        with pytest.raises(ValueError, match=r"The leaf '(laterals|added_classifier)/.* Build the method and its net"):
            check_widths(now, shapes)
        check_widths(was, shapes)
    shared = methods.tensor_factorization(cnn())
    begin = lambda: make(shared, key=jax.random.key(0))
    with pytest.raises(ValueError, match=r"core' of the learner.* an axis of the tasks that share it: leave room"):
        jax.eval_shape(lambda: training.extend(make(shared, tables=longer.tables, key=jax.random.key(0)), begin()))
    adam = make(wide, key=jax.random.key(0), optimizer=optax.adam(1.0))
    with pytest.raises(ValueError, match="has another structure of opt_state than this run's"):
        training.extend(adam, learner)
    assert bits(training.extend(make(wide, key=jax.random.key(1)), learner)) == bits(learner)
    assert task_params.leaf_paths(learner.params) == ("dense_0/bias", "dense_0/kernel", "head/bias", "head/kernel")
