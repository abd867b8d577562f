"""Streams: tables by hand, divisions without leaks, schedules, and drawing in compiled programs."""

import itertools
import json
import os
import subprocess
import sys

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cljax import data, streams
from cljax.streams.schedules import check_schedule
from cljax.types import Memory, Schedule, Table, Tables, make_clock

PARTS = ("train", "validation", "test")
epoch_order = jax.jit(streams.epoch_order, static_argnames=("train_on", "max_examples"))


def dataset(counts=(10, 20, 30, 5, 1), test=2, shape=(2, 2, 1), dtype=np.uint8):
    """Example i holds the value i everywhere, so that an input tells its row."""
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    test_labels = np.tile(np.arange(len(counts)), test)
    values = np.arange(len(labels) + len(test_labels)).astype(dtype)
    images = np.broadcast_to(values.reshape(-1, *(1,) * len(shape)), (len(values), *shape)).copy()
    return data.from_arrays(images[: len(labels)], labels, images[len(labels) :], test_labels)


def rows_of(table, task):
    return table.index[table.start[task] : table.start[task] + table.size[task]]


def labels_of(table, task):
    return table.labels[table.start[task] : table.start[task] + table.size[task]]


def by_hand(sizes, **options):
    """Tables whose train split has tasks of these sizes; example of row r holds the value 10 r, label r."""
    total = max(1, sum(sizes))
    start = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int32)
    table = Table(np.arange(total, dtype=np.int32), np.arange(total, dtype=np.int32), start, np.array(sizes, np.int32))
    examples = (10 * np.arange(total, dtype=np.int32))[:, None]
    tables = Tables(examples, table, table, table, None, np.ones((len(sizes), total), bool))
    return tables._replace(**options)


# Class splits


def test_split_by_hand():
    images = np.arange(8, dtype=np.uint8).reshape(8, 1, 1, 1)
    made = data.from_arrays(images[:5], [2, 0, 1, 0, 2], images[5:], [1, 2, 0], classes=["a", "b", "c"])
    stream = streams.split(made, tasks=2, class_order=[2, 1, 0], validation=0, epochs=4)
    train, validation, test = stream.tables.train, stream.tables.validation, stream.tables.test
    np.testing.assert_array_equal(train.index, [0, 2, 4, 1, 3])  # classes c and b, then a, in the data's order
    np.testing.assert_array_equal(train.labels, [0, 1, 0, 0, 0])
    np.testing.assert_array_equal(train.start, [0, 3])
    np.testing.assert_array_equal(train.size, [3, 2])
    np.testing.assert_array_equal(test.index, [5, 6, 7])
    np.testing.assert_array_equal(test.labels, [1, 0, 0])
    np.testing.assert_array_equal(test.size, [2, 1])
    np.testing.assert_array_equal(validation.index, [0])  # one row of padding, which no task reaches
    np.testing.assert_array_equal(validation.size, [0, 0])
    np.testing.assert_array_equal(stream.tables.classes, [[True, True], [True, False]])
    assert stream.tables.examples is made.images
    assert stream.schedule.epochs.tolist() == [4, 4]
    for table in (train, validation, test):
        assert {leaf.dtype for leaf in table} == {np.dtype(np.int32)}
    assert stream.facts == {
        "data": "arrays",
        "scenario": "task",
        "seed": 0,
        "validation": 0,
        "fraction": [1.0, 1.0],
        "kind": "split",
        "class_order": [2, 1, 0],
        "classes": [["c", "b"], ["a"]],
        "standardised_by": "the training part of the first task",
        "tasks": [0, 1],
        "sizes": {"train": [3, 2], "validation": [0, 0], "test": [2, 1]},
    }


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize("order", [None, "random", [3, 1, 4, 0, 2]])
def test_every_example_is_in_one_split_of_one_task(seed, order):
    made = dataset()
    stream = streams.split(made, tasks=3, seed=seed, class_order=order)
    tables = stream.tables
    assert sorted(np.concatenate([tables.train.index, tables.validation.index]).tolist()) == list(range(66))
    assert sorted(tables.test.index.tolist()) == list(range(66, 76))
    for part in PARTS:
        table = getattr(tables, part)
        for task, names in enumerate(stream.facts["classes"]):
            wanted = [made.classes[label] for label in made.labels[rows_of(table, task)]]
            assert [names[label] for label in labels_of(table, task)] == wanted


def test_validation_is_a_tenth_of_each_class_at_least_one_and_never_all():
    made = dataset(counts=(10, 20, 34, 35, 2, 1))
    stream = streams.split(made, tasks=1)
    counts = np.bincount(made.labels[rows_of(stream.tables.validation, 0)], minlength=6)
    np.testing.assert_array_equal(counts, [1, 2, 3, 4, 1, 0])
    half = streams.split(made, tasks=1, validation=0.9)
    counts = np.bincount(made.labels[rows_of(half.tables.train, 0)], minlength=6)
    np.testing.assert_array_equal(counts, [1, 2, 3, 3, 1, 1])


def test_validation_depends_on_the_seed_and_not_on_order_or_tasks():
    made = dataset()
    held = [
        set(streams.split(made, tasks=tasks, seed=seed, class_order=order).tables.validation.index.tolist())
        for tasks, seed, order in [(1, 0, None), (5, 0, "random"), (1, 1, None)]
    ]
    assert held[0] == held[1] == set(streams.permuted(made, tasks=2).tables.validation.index.tolist())
    assert held[0] != held[2]


def test_shares_of_the_training_part_are_balanced_nested_and_leave_the_rest_alone():
    made = dataset(counts=(10, 100, 30, 5, 1))
    built = [streams.split(made, tasks=2, fraction=fraction) for fraction in (0.03, 0.1, 0.3, 1)]
    counts = [np.bincount(made.labels[stream.tables.train.index], minlength=5).tolist() for stream in built]
    # of 9, 90, 27, 4 and 1 examples that validation leaves, halves rounded up, at least one
    assert counts == [[1, 3, 1, 1, 1], [1, 9, 3, 1, 1], [3, 27, 8, 1, 1], [9, 90, 27, 4, 1]]
    for fewer, more in itertools.pairwise(built):
        assert set(fewer.tables.train.index.tolist()) < set(more.tables.train.index.tolist())
        chex.assert_trees_all_equal(fewer.tables.validation, more.tables.validation)
        chex.assert_trees_all_equal(fewer.tables.test, more.tables.test)
    chex.assert_trees_all_equal(built[3].tables, streams.split(made, tasks=2).tables)
    assert built[1].facts["fraction"] == [0.1, 0.1]
    assert built[1].facts["sizes"]["train"] == [13, 2]
    again, other = (streams.split(made, tasks=5, seed=seed, fraction=0.1, class_order="random") for seed in (0, 1))
    assert set(again.tables.train.index.tolist()) == set(built[1].tables.train.index.tolist())
    assert set(other.tables.train.index.tolist()) != set(built[1].tables.train.index.tolist())


def test_a_share_for_each_task():
    made = dataset(counts=(20, 20, 20))
    stream = streams.split(made, tasks=3, fraction=(1, 0.5, 0.1), schedule=streams.visits([(2, 1), (0, 1), (1, 1)]))
    assert stream.tables.train.size.tolist() == [2, 18, 9]
    assert stream.facts["fraction"] == [0.1, 1.0, 0.5]
    shown = streams.permuted(made, tasks=3, fraction=[1, 0.5, 0.1])
    assert shown.tables.train.size.tolist() == [54, 27, 6]
    assert set(rows_of(shown.tables.train, 2).tolist()) < set(rows_of(shown.tables.train, 1).tolist())
    np.testing.assert_array_equal(shown.tables.train.labels, made.labels[shown.tables.train.index])
    images, many = np.zeros((20, 2, 2, 1), np.uint8), np.zeros((20, 3), np.float32)
    tasks = streams.from_tasks([(images, many, images, many)] * 2, fraction=(1, 0.5))
    assert tasks.tables.train.size.tolist() == [18, 9]
    assert tasks.tables.test.size.tolist() == [20, 20]


@pytest.mark.parametrize(
    ("fraction", "words"),
    [
        (0, "fraction of training examples is 0, but must be a finite number above 0"),
        (1.5, "of at most 1"),
        ([0.5], "1 fractions .* 2 tasks"),
    ],
)
def test_share_errors(fraction, words):
    for build in (streams.split, streams.permuted):
        with pytest.raises(ValueError, match=words):
            build(dataset(), tasks=2, fraction=fraction)


def test_random_order_is_of_the_seed():
    orders = [
        streams.split(dataset(), tasks=5, seed=seed, class_order="random").facts["class_order"] for seed in (0, 0, 1)
    ]
    assert orders[0] == orders[1] == np.random.default_rng([0, 0]).permutation(5).tolist()
    assert orders[0] != orders[2]


def test_sizes_and_a_part_of_the_classes():
    stream = streams.split(dataset(), tasks=2, class_order=[4, 2, 1], sizes=(1, 2), validation=0)
    assert stream.facts["classes"] == [["4"], ["2", "1"]]
    assert stream.tables.train.size.tolist() == [1, 50]
    np.testing.assert_array_equal(stream.tables.classes, [[True, False], [True, True]])


def test_scenario_changes_no_table():
    made = dataset()
    built = [streams.split(made, tasks=2, scenario=scenario) for scenario in ("task", "class", "domain")]
    chex.assert_trees_all_equal(*(stream.tables for stream in built))
    assert [stream.scenario for stream in built] == ["task", "class", "domain"]


@pytest.mark.parametrize("first", [0, 1])
def test_statistics_are_of_the_first_task_s_training_part(first):
    """Neither of its validation part nor of what comes later, whichever task is visited first."""
    made = dataset()
    again = made._replace(labels=made.labels[::-1].copy())
    orders = streams.visits([(first, 1), (1 - first, 1)])
    for stream in (
        streams.split(made, tasks=2, schedule=orders, fraction=0.5),
        streams.with_schedule(streams.split(made, tasks=2, fraction=0.5), orders),
        streams.permuted(made, tasks=2, schedule=orders),
        streams.relabelled(
            made, [np.minimum(made.labels, 1), np.where(made.labels < 2, -1, made.labels - 2)], schedule=orders
        ),
        streams.from_tasks(
            [(each.train_images, each.train_labels, each.test_images, each.test_labels) for each in (made, again)],
            schedule=orders,
            scenario="domain",
        ),
    ):
        shown = stream.tables.examples[rows_of(stream.tables.train, 0)] / 255
        np.testing.assert_allclose(stream.mean, [shown.mean()], rtol=1e-12)
        np.testing.assert_allclose(stream.std, [shown.std()], rtol=1e-12)
        assert stream.facts["standardised_by"] == "the training part of the first task"


def test_vectors_of_bytes_or_permuted_have_one_mean_and_deviation_for_all_elements():
    made = dataset(shape=(3,), dtype=np.float32)
    made = made._replace(images=made.images * np.float32([1, 10, 100]))
    stream = streams.permuted(made, tasks=2)
    shown = made.images[rows_of(stream.tables.train, 0)].astype(np.float64)
    np.testing.assert_allclose(stream.mean, [shown.mean()] * 3, rtol=1e-12)
    np.testing.assert_allclose(stream.std, [shown.std()] * 3, rtol=1e-12)
    split = streams.split(made, tasks=2)
    shown = made.images[rows_of(split.tables.train, 0)].astype(np.float64)
    np.testing.assert_allclose(split.mean, shown.mean(axis=0), rtol=1e-12)
    bytes_ = dataset(shape=(3,))
    bytes_ = bytes_._replace(images=bytes_.images // np.uint8([1, 2, 3]))
    shown = bytes_.images[rows_of(streams.split(bytes_, tasks=2).tables.train, 0)] / 255
    np.testing.assert_allclose(streams.split(bytes_, tasks=2).mean, [shown.mean()] * 3, rtol=1e-12)
    each = data.combine([bytes_, bytes_], normalize="each")
    with pytest.raises(ValueError, match=r"Each element of .* has its own mean and standard deviation"):
        streams.permuted(each, tasks=2)
    with pytest.raises(ValueError, match="first_identity is 'false', but must be True or False"):
        streams.permuted(made, tasks=2, first_identity="false")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tasks": 6}, r"more tasks \(6\) than classes \(5\).*at most 5 tasks"),
        ({"tasks": 3, "class_order": [0, 1]}, r"more tasks \(3\) than classes \(2\)"),
        ({"tasks": 0}, "tasks is 0, but must be a whole number from 1"),
        ({"tasks": 2, "sizes": (2, 2)}, r"sizes is \[2, 2\].*add up to the 5 classes"),
        ({"tasks": 2, "sizes": (5, 0)}, "each at least 1"),
        ({"tasks": 2, "class_order": [0, 1, 1]}, "at most once; 1 is unknown, repeated"),
        ({"tasks": 2, "class_order": [0, 5]}, "classes 0 to 4, each at most once; 5 is"),
        ({"tasks": 2, "class_order": "shuffled"}, "class_order is 'shuffled', but must be None, 'random', 'icarl'"),
        ({"tasks": 2, "scenario": "multi"}, "scenario is 'multi', but must be 'task', 'class' or 'domain'"),
        (
            {"tasks": 2, "validation": 1.0},
            "validation fraction is 1.0, but must be a finite number of at least 0 and below 1",
        ),
        ({"tasks": 2, "epochs": 0}, "Round 1 of the schedule visits task 1 for 0 epochs"),
        ({"tasks": 2, "epochs": [1, 2, 3]}, "3 numbers of epochs were given for 2 tasks"),
        ({"tasks": 2, "schedule": streams.visits([(2, 1)])}, "visits task 2, but the stream has 2 tasks, numbered 0"),
    ],
)
def test_split_errors(options, words):
    with pytest.raises(ValueError, match=words) as error:
        streams.split(dataset(), **options)
    assert "\n" not in str(error.value)


def test_split_of_a_class_without_examples_and_of_multi_label_data():
    images = np.zeros((2, 1, 1, 1), np.uint8)
    made = data.from_arrays(images, [0, 2], images, [0, 2], classes=["a", "b", "c"])
    with pytest.raises(ValueError, match=r"Task 1 \(classes b\) has no training examples.*'arrays'"):
        streams.split(made, tasks=3)
    soft = data.from_arrays(images, np.ones((2, 3), np.float32), images, np.ones((2, 3), np.float32))
    with pytest.raises(ValueError, match=r"multi-label.*streams.from_tasks"):
        streams.split(soft, tasks=2)


# Permuted pixels


def test_permutations_follow_their_rule_and_keep_pixels_whole():
    made = dataset(shape=(3, 2, 2))
    stream = streams.permuted(made, tasks=3, seed=5)
    for task in range(3):
        moves = np.asarray(jax.random.permutation(jax.random.fold_in(jax.random.key(5), task), 6))
        wanted = np.stack([2 * moves, 2 * moves + 1], axis=1).ravel()
        np.testing.assert_array_equal(stream.tables.permutation[task], wanted)
    assert stream.tables.permutation.dtype == np.int32
    assert len({tuple(row) for row in stream.tables.permutation.tolist()}) == 3
    assert stream.facts["permutation"]["seed"] == 5
    assert stream.scenario == "domain"
    identity = streams.permuted(made, tasks=3, seed=5, first_identity=True)
    np.testing.assert_array_equal(identity.tables.permutation[0], np.arange(12))
    np.testing.assert_array_equal(identity.tables.permutation[1:], stream.tables.permutation[1:])
    assert identity.facts["permutation"]["sha256"] != stream.facts["permutation"]["sha256"]


def test_permuted_tasks_share_rows_and_positions_tell_the_task():
    made = dataset()
    tables = streams.permuted(made, tasks=3).tables
    for part in PARTS:
        table = getattr(tables, part)
        for task in range(3):
            np.testing.assert_array_equal(rows_of(table, task), rows_of(table, 0))
            np.testing.assert_array_equal(labels_of(table, task), made.labels[rows_of(table, 0)])
    assert tables.examples is made.images
    assert tables.train.size.tolist() == [59] * 3


def test_permuted_inputs_equal_numpy_indexing():
    generator = np.random.default_rng(3)
    images = generator.integers(0, 256, (12, 3, 2, 2)).astype(np.uint8)
    made = data.from_arrays(images, np.arange(12) % 3, images, np.arange(12) % 3)
    tables = streams.permuted(made, tasks=4, validation=0).tables
    positions = jnp.asarray(generator.integers(0, 48, 20), jnp.int32)
    batch = jax.jit(lambda positions: streams.gather(tables, tables.test, positions))(positions)
    tasks = np.asarray(positions) // 12
    rows = 12 + np.asarray(positions) % 12
    wanted = np.stack(
        [made.images[row].ravel()[tables.permutation[task]] for row, task in zip(rows, tasks, strict=True)]
    )
    np.testing.assert_array_equal(batch.inputs, wanted.reshape(20, 3, 2, 2))
    np.testing.assert_array_equal(batch.tasks, tasks)
    np.testing.assert_array_equal(batch.position, np.asarray(positions) % 12)
    np.testing.assert_array_equal(batch.labels, made.labels[rows])
    assert batch.inputs.dtype == jnp.uint8
    assert [leaf.dtype for leaf in batch[1:]] == [jnp.int32, jnp.int32, jnp.int32, jnp.float32]


# Task by task


def test_from_tasks_by_hand():
    images = np.arange(12, dtype=np.uint8).reshape(12, 1, 1, 1)
    first = (images[:4], [0, 1, 0, 1], images[4:5], [1])
    second = (images[5:8], [2, 0, 1], images[8:12], [0, 1, 2, 2])
    stream = streams.from_tasks([first, second], validation=0, name="mine", scenario="domain")
    np.testing.assert_array_equal(stream.tables.examples.ravel(), np.arange(12))
    np.testing.assert_array_equal(stream.tables.train.index, [0, 1, 2, 3, 5, 6, 7])
    np.testing.assert_array_equal(stream.tables.train.labels, [0, 1, 0, 1, 2, 0, 1])
    np.testing.assert_array_equal(stream.tables.train.start, [0, 4])
    np.testing.assert_array_equal(stream.tables.test.index, [4, 8, 9, 10, 11])
    np.testing.assert_array_equal(stream.tables.test.size, [1, 4])
    np.testing.assert_array_equal(stream.tables.classes, [[True, True, False], [True, True, True]])
    np.testing.assert_allclose(stream.mean, [np.mean([0, 1, 2, 3]) / 255], rtol=1e-12)
    assert (stream.name, stream.scenario) == ("mine", "domain")


def test_from_tasks_multi_label_of_unequal_width():
    images = np.zeros((10, 2), np.float32)
    wide = np.tri(10, 3, dtype=np.float32)
    stream = streams.from_tasks([(images, wide[:, :2], images, wide[:, :2]), (images, wide, images, wide)])
    tables = stream.tables
    assert tables.train.labels.dtype == np.float32
    assert tables.train.size.tolist() == [9, 9]
    assert tables.validation.size.tolist() == [1, 1]
    np.testing.assert_array_equal(tables.test.labels[:10], np.pad(wide[:, :2], ((0, 0), (0, 1))))
    np.testing.assert_array_equal(tables.test.labels[10:], wide)
    np.testing.assert_array_equal(tables.classes, [[True, True, False], [True, True, True]])
    assert sorted(np.concatenate([rows_of(tables.train, 1), rows_of(tables.validation, 1)])) == list(range(20, 30))
    batch = streams.sequential(tables, tables.test, jnp.int32(1), jnp.int32(0), 4)
    np.testing.assert_array_equal(batch.labels, wide[:4])


IMAGES = np.zeros((4, 2, 2, 1), np.uint8)
GOOD = (IMAGES, [0, 1, 0, 1], IMAGES, [0, 1, 0, 1])
SOFT = np.ones((4, 2), np.float32)
NAN = np.full((4, 2, 2, 1), np.nan, np.float32)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ((IMAGES[:0], [], IMAGES, [0, 1, 0, 1]), r"train_images of task 1 have shape \(0, 2, 2, 1\).*no examples"),
        ((IMAGES[:, :1], [0] * 4, IMAGES[:, :1], [0] * 4), r"task 0 .*\(2, 2, 1\).*task 1 .*\(1, 2, 1\)"),
        ((IMAGES, [0, 1, 0, -1], IMAGES, [0, 1, 0, 1]), "train_labels of task 1 are out of range: example 3"),
        ((IMAGES, [0, 1, 0, 1], IMAGES, [0, 1, 2, 1]), "test_labels of task 1.*example 2 has label 2.*0 to 1"),
        ((NAN, [0, 1, 0, 1], NAN, [0, 1, 0, 1]), "train_images of task 1 hold NaN.*example 0"),
        ((IMAGES, [0, 1, 0], IMAGES, [0, 1, 0, 1]), "task 1 hold 4 examples, but .* task 1 hold 3 labels"),
    ],
)
def test_from_tasks_errors_name_the_task(bad, words):
    with pytest.raises(ValueError, match=words):
        streams.from_tasks([GOOD, bad])


def test_labels_of_all_tasks_together_and_pairs():
    """No two tasks share a class: that is what separate tasks cut from one data set have."""
    first, second = [4, 0, 4, 1], [2, 5, 3, 3]
    pair = lambda labels, test: ((IMAGES, labels), (IMAGES[: len(test)], test))
    stream = streams.from_tasks([pair(first, [1, 4]), pair(second, [5, 5, 2])], validation=0)
    own = streams.from_tasks([pair([2, 0, 2, 1], [1, 2]), pair([0, 2, 1, 1], [2, 2, 0])], validation=0)
    assert stream.facts["classes"] == [["0", "1", "4"], ["2", "3", "5"]]
    jax.tree.map(np.testing.assert_array_equal, stream.tables, own.tables)
    with pytest.raises(ValueError, match=r"test_labels of task 1 .*: 4 is a label of another task.*\[2, 3, 5\]"):
        streams.from_tasks([pair(first, [1, 4]), pair(second, [5, 4])])


@pytest.mark.parametrize(
    ("tasks", "words"),
    [
        ([(IMAGES, [0, 1, 0, 1])], "Task 0 is tuple of 2, but must be .train_images.*Set a test part aside"),
        ([GOOD, IMAGES], r"Task 1 is \[\[\[\[.*, but must be \(train_images"),
        ([dataset()], "Task 0 is a data set.*streams.sequence"),
        (GOOD[0], "tasks is .*must be a list of"),
        (iter([GOOD]), "tasks is .*iterator.*must be a list of"),
        ({"a": GOOD}, "tasks is .*must be a list of"),
    ],
)
def test_from_tasks_of_another_form(tasks, words):
    with pytest.raises((TypeError, ValueError), match=words):
        streams.from_tasks(tasks)


def test_from_no_tasks():
    with pytest.raises(ValueError, match=r"tasks is \[\], but must be a list of \(train_images"):
        streams.from_tasks([])


# Visit by visit


def test_experiences_are_the_tasks_arrays_visit_by_visit():
    rows, labels = np.arange(36, dtype=np.uint8).reshape(9, 2, 2), [2, 0, 1, 2, 0, 1, 2, 0, 1]
    made = data.from_arrays(rows[..., None], labels, rows[:3, ..., None], labels[:3], classes=["a", "b", "c"])
    stream = streams.split(made, tasks=2, schedule=streams.visits([(1, 4), (0, 2), (1, 3)]), validation=0.4)
    seen = list(streams.experiences(stream))
    assert [(one.round, one.task, one.epochs, one.classes) for one in seen] == [
        (0, 0, 4, ("c",)),
        (1, 1, 2, ("a", "b")),
        (2, 0, 3, ("c",)),
    ]
    known = dict(zip(map(bytes, made.images), made.labels, strict=True))
    for one in seen[:2]:
        for part, size in (("train", 2), ("validation", 1), ("test", 1)):
            inputs, within = getattr(one, part)
            assert len(inputs) == len(within) == size * len(one.classes)
            assert [made.classes[known[bytes(image)]] for image in inputs] == [one.classes[label] for label in within]
    jax.tree.map(np.testing.assert_array_equal, seen[0][4:], seen[2][4:])
    assert not np.shares_memory(seen[0].train[0], stream.tables.examples)


def test_experiences_show_pixels_as_their_task_does_and_read_on_demand():
    rows = np.arange(36, dtype=np.uint8).reshape(9, 2, 2, 1)
    made = data.from_arrays(rows, [0, 1, 2] * 3, rows[:3], [0, 1, 2])
    stream = streams.permuted(made._replace(images=data.Images([made.images], (2, 2, 1), name="few")), tasks=2)
    for one in streams.experiences(stream):
        table = stream.tables.test
        whole = streams.sequential(
            streams.permuted(made, tasks=2).tables, table, jnp.int32(one.task), jnp.int32(0), len(one.test[1])
        )
        np.testing.assert_array_equal(one.test[0], whole.inputs)
        np.testing.assert_array_equal(one.test[1], whole.labels)
    with pytest.raises(ValueError, match=r"The stream is 'digits', but must be one of cljax.streams"):
        streams.experiences("digits")


# Schedules


def test_lifelong():
    schedule = streams.lifelong(3, [1, 2, 3])
    assert [part.tolist() for part in schedule] == [[0, 1, 2], [1, 2, 3], [True] * 3]
    assert [part.dtype for part in schedule] == [np.int32, np.int32, np.bool_]


def test_multi_task():
    schedule = streams.multi_task(4, 400, seed=2, evaluate_every=150)
    assert np.flatnonzero(schedule.evaluate).tolist() == [149, 299, 399]
    assert set(schedule.epochs.tolist()) == {1}
    counts = np.bincount(schedule.task, minlength=4)
    assert counts.sum() == 400
    assert (abs(counts - 100) < 5 * np.sqrt(400 * 3 / 16)).all()  # five standard deviations of uniform picks
    chex.assert_trees_all_equal(schedule, streams.multi_task(4, 400, seed=2, evaluate_every=150))
    assert (schedule.task != streams.multi_task(4, 400, seed=3).task).any()
    with pytest.raises(ValueError, match="rounds is 0, but must be a whole number from 1"):
        streams.multi_task(4, 0)


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        ([], "at least one round"),
        ([(0, 1), (-1, 1)], "task is -1, but must be a whole number from 0"),
        ([(0, 1), (0, 1.5)], "epochs is 1.5, but must be a whole number"),
        ([(0, 2**31)], "epochs is 2147483648, but must be"),
        ([(0, 1, 2)], "pair"),
        ([(0, 1), (1, 0)], "Round 1 of the schedule visits task 1 for 0 epochs"),
    ],
)
def test_visits_errors(pairs, words):
    with pytest.raises(ValueError, match=words):
        streams.visits(pairs)


def test_tasks_are_renumbered_by_first_visit():
    made = dataset()
    order = streams.visits([(3, 2), (1, 1), (3, 1), (0, 5)])
    plain = streams.split(made, tasks=5)
    stream = streams.split(made, tasks=5, schedule=order)
    assert stream.schedule.task.tolist() == [0, 1, 0, 2]
    assert stream.schedule.epochs.tolist() == [2, 1, 1, 5]
    old = [3, 1, 0, 2, 4]  # those not visited come last
    assert stream.facts["tasks"] == old
    assert stream.facts["classes"] == [["3"], ["1"], ["0"], ["2"], ["4"]]
    assert stream.facts["sizes"]["train"] == [plain.facts["sizes"]["train"][task] for task in old]
    for part in PARTS:
        before, after = getattr(plain.tables, part), getattr(stream.tables, part)
        np.testing.assert_array_equal(after.start, np.cumsum(after.size) - after.size)
        for new, task in enumerate(old):
            np.testing.assert_array_equal(rows_of(after, new), rows_of(before, task))
            np.testing.assert_array_equal(labels_of(after, new), labels_of(before, task))
    twice = streams.with_schedule(stream, streams.visits([(1, 1), (0, 1)]))
    assert twice.facts["tasks"] == [1, 3, 0, 2, 4]
    back = streams.with_schedule(stream, streams.visits([(new, 1) for new in np.argsort(old)]))
    chex.assert_trees_all_equal(back.tables, plain.tables)


def test_permutations_and_classes_follow_the_renumbering():
    plain = streams.permuted(dataset(), tasks=3)
    stream = streams.with_schedule(plain, streams.visits([(2, 1), (0, 1), (1, 1)]))
    np.testing.assert_array_equal(stream.tables.permutation, plain.tables.permutation[[2, 0, 1]])
    sizes = streams.split(dataset(), tasks=2, schedule=streams.visits([(1, 1), (0, 1)]))
    np.testing.assert_array_equal(sizes.tables.classes.sum(axis=1), [2, 3])


# Drawing


@pytest.mark.parametrize(
    ("sizes", "tasks"), [([2, 3], [0, 0, 1, 1, 1]), ([0, 2, 0, 1], [1, 1, 3]), ([1, 0, 0, 1, 0], [0, 3])]
)
def test_task_of_skips_empty_tasks(sizes, tasks):
    table = by_hand(sizes).train
    found = jax.jit(streams.task_of)(table, jnp.arange(sum(sizes), dtype=jnp.int32))
    np.testing.assert_array_equal(found, tasks)
    assert found.dtype == jnp.int32


def test_a_batch_is_drawn_without_a_loop():
    tables = by_hand([2, 3])
    batch = lambda order, step: streams.draw(tables, tables.train, order, jnp.int32(5), step, 2)
    drawn = str(jax.make_jaxpr(batch)(jnp.arange(5, dtype=jnp.int32), jnp.int32(0)))
    assert "while" not in drawn
    assert "scan" not in drawn


@hypothesis.settings(deadline=None, max_examples=40, derandomize=True)
@hypothesis.given(
    sizes=st.lists(st.integers(0, 6), min_size=4, max_size=4).filter(lambda sizes: sizes[0] > 0),
    task=st.integers(0, 3),
    newest=st.integers(0, 3),
    valid=st.lists(st.booleans(), min_size=5, max_size=5),
    train_on=st.sampled_from(["current", "seen", "all"]),
    seed=st.integers(0, 2**31 - 1),
)
def test_every_eligible_example_is_drawn_once_an_epoch(sizes, task, newest, valid, train_on, seed):
    padded = by_hand([*sizes, 24 - sum(sizes)])  # of one length, so that all cases share a compiled program
    table = padded.train._replace(start=padded.train.start[:4], size=padded.train.size[:4])
    tables = padded._replace(train=table)
    memory = Memory(
        1000 + 10 * jnp.arange(5, dtype=jnp.int32)[:, None],
        100 + jnp.arange(5, dtype=jnp.int32),
        jnp.array([7, 8, 9, 7, 8], jnp.int32),
        jnp.array(valid),
    )
    newest = max(task, newest)
    order, count, batches = epoch(tables, make_clock(task=task, newest=newest), jax.random.key(seed), memory, train_on)
    start = np.concatenate([[0], np.cumsum(sizes)])
    low, high = {"current": start[task : task + 2], "seen": (0, start[newest + 1]), "all": (0, start[4])}[train_on]
    slots = np.flatnonzero(valid)
    wanted = [*range(low, high), *(24 + slots)]
    assert count == len(wanted)
    assert sorted(order[:count].tolist()) == wanted
    inputs, labels, tasks, position, weights = batches
    drawn = weights == 1
    assert drawn.sum() == count
    assert drawn[:count].all()
    assert sorted(labels[drawn].tolist()) == sorted([*range(low, high), *(100 + slots)])
    from_memory = labels >= 100
    np.testing.assert_array_equal(inputs, np.where(from_memory, 1000 + 10 * (labels - 100), 10 * labels))
    if count:
        wrapped = np.arange(len(labels)) % count  # surplus examples repeat the first ones
        np.testing.assert_array_equal(labels, labels[wrapped])
        task_of = np.searchsorted(start[:4], labels, side="right") - 1
        np.testing.assert_array_equal(tasks, np.where(from_memory, np.array([7, 8, 9, 7, 8])[labels % 5], task_of))
        np.testing.assert_array_equal(position, np.where(from_memory, -1, labels - start[np.minimum(task_of, 3)]))


@jax.jit
def epoch_batches(tables, order, count, memory):
    return jax.lax.map(
        lambda step: streams.draw(tables, tables.train, order, count, step, 4, memory), jnp.arange(8, dtype=jnp.int32)
    )


def epoch(tables, clock, key, memory, train_on):
    """Order, count and all batches of an epoch, one after the other."""
    order, count = epoch_order(tables.train, clock, key, train_on=train_on, max_examples=6, memory=memory)
    batches = epoch_batches(tables, order, count, memory)
    return np.asarray(order), int(count), [np.asarray(leaf).ravel() for leaf in batches]


def test_orders_are_uniform():
    table = by_hand([3]).train
    draw = jax.jit(
        jax.vmap(lambda key: streams.epoch_order(table, make_clock(), key, train_on="current", max_examples=5)[0][:3])
    )
    orders = np.asarray(draw(jax.random.split(jax.random.key(0), 6000)))
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) == 6
    assert ((counts - 1000) ** 2 / 1000).sum() < 20.5  # chi-square, 5 degrees of freedom, p = 0.001


def test_padding_and_capacity_leave_the_order_alone():
    table = by_hand([3, 4, 2]).train
    longer = table._replace(index=np.pad(table.index, (0, 5)), labels=np.pad(table.labels, (0, 5)))
    key = jax.random.key(1)
    for train_on in ("current", "seen", "all"):
        clock = make_clock(task=1)
        order, count = epoch_order(table, clock, key, train_on=train_on, max_examples=4)
        other, same = epoch_order(longer, clock, key, train_on=train_on, max_examples=9)
        assert count == same
        np.testing.assert_array_equal(np.asarray(order)[: int(count)], np.asarray(other)[: int(count)])


def test_unknown_source_of_batches():
    with pytest.raises(ValueError, match="train_on is 'past'"):
        streams.epoch_order(by_hand([2]).train, make_clock(), jax.random.key(0), train_on="past", max_examples=2)


def test_memory_is_not_permuted_again():
    made = dataset(shape=(2, 2, 1))
    tables = streams.permuted(made, tasks=2, validation=0).tables
    kept = jnp.arange(4, dtype=jnp.uint8).reshape(1, 2, 2, 1)
    memory = Memory(kept, jnp.zeros(1, jnp.int32), jnp.ones(1, jnp.int32), jnp.ones(1, bool))
    slot = jnp.array([len(tables.train.index)], jnp.int32)
    draw = jax.jit(streams.draw, static_argnums=5)
    batch = draw(tables, tables.train, slot, jnp.int32(1), jnp.int32(0), 1, memory)
    np.testing.assert_array_equal(batch.inputs, kept)
    assert [int(leaf[0]) for leaf in batch[1:]] == [0, 1, -1, 1]
    other = memory._replace(inputs=kept.astype(jnp.float32))
    with pytest.raises(
        ValueError, match="part of the batch is float32, but must be uint8"
    ):  # a memory's examples are as the stream stores them
        draw(tables, tables.train, slot, jnp.int32(1), jnp.int32(0), 1, other)


def test_sequential_by_hand():
    tables = by_hand([2, 3, 0])
    draw = jax.jit(lambda task, step: streams.sequential(tables, tables.train, task, step, 2))
    wanted = {(0, 0): ([0, 1], [1, 1]), (1, 0): ([2, 3], [1, 1]), (1, 1): ([4, 2], [1, 0]), (0, 1): ([0, 1], [0, 0])}
    for (task, step), (labels, weights) in wanted.items():
        batch = draw(jnp.int32(task), jnp.int32(step))
        np.testing.assert_array_equal(batch.labels, labels)
        np.testing.assert_array_equal(batch.inputs[:, 0], 10 * np.array(labels))
        np.testing.assert_array_equal(batch.weights, weights)
        np.testing.assert_array_equal(batch.position, np.array(labels) - [0, 2][task])
        np.testing.assert_array_equal(batch.tasks, [task] * 2)
    np.testing.assert_array_equal(draw(jnp.int32(2), jnp.int32(0)).weights, [0, 0])


def test_a_partial_batch_of_a_single_example_repeats_it():
    tables = by_hand([1, 3])
    batch = streams.sequential(tables, tables.train, jnp.int32(0), jnp.int32(0), 2)
    assert (batch.labels.tolist(), batch.weights.tolist(), batch.tasks.tolist()) == ([0, 0], [1, 0], [0, 0])


def test_a_balanced_draw_by_hand():
    """Tasks of 2, 4 and 3 examples, of which the second is visited: the first gives its two in turn, in one order."""
    table, clock = by_hand([2, 4, 3]).train, make_clock(task=1)
    firsts, seconds = set(), set()
    for seed in range(8):
        order, count = epoch_order(table, clock, jax.random.key(seed), train_on="balanced", max_examples=5)
        first, second = np.asarray(order[:8]).reshape(4, 2).T.tolist()
        assert int(count) == 8
        assert first[:2] == first[2:]
        assert sorted(first[:2]) == [0, 1]
        assert sorted(second) == [2, 3, 4, 5]
        firsts.add(tuple(first))
        seconds.add(tuple(second))
    assert len(firsts) == 2
    assert len(seconds) > 3
    single = by_hand([1, 3]).train
    order, _ = epoch_order(single, clock, jax.random.key(0), train_on="balanced", max_examples=5)
    assert np.asarray(order)[:6:2].tolist() == [0, 0, 0]


def test_batches_have_examples():
    tables = by_hand([2, 3])
    with pytest.raises(ValueError, match="batch_size is 0"):
        streams.sequential(tables, tables.train, jnp.int32(0), jnp.int32(0), 0)
    with pytest.raises(ValueError, match="batch_size is 0"):
        streams.draw(tables, tables.train, jnp.array([0, 1]), jnp.int32(2), jnp.int32(0), 0)
    with pytest.raises(ValueError, match="max_examples is 0"):
        streams.epoch_order(tables.train, make_clock(), jax.random.key(0), train_on="current", max_examples=0)
    with pytest.raises(ValueError, match="positions has shape"):
        streams.gather(tables, tables.train, jnp.array([[0]]))
    with pytest.raises(ValueError, match="positions is float32, but must be whole numbers"):
        streams.gather(tables, tables.train, jnp.array([0.0]))
    with pytest.raises(ValueError, match="permutation has shape"):
        streams.apply_permutation(jnp.array([1, 0]), jnp.array([[5, 6]]), jnp.array([0]))


def test_one_trace_serves_all_tasks_inside_a_loop():
    tables = by_hand([2, 3, 4])

    @jax.jit
    @chex.assert_max_traces(1)
    def total(clock, key):
        order, count = streams.epoch_order(tables.train, clock, key, train_on="current", max_examples=4)

        def step(number, carry):
            batch = streams.draw(tables, tables.train, order, count, number, 2)
            return carry + jnp.sum(batch.labels.astype(jnp.float32) * batch.weights)

        return jax.lax.fori_loop(0, (count + 1) // 2, step, jnp.float32(0.0))

    sums = [total(make_clock(round=task, task=task), jax.random.key(task)) for task in range(3)]
    assert sums == [1, 9, 26]


# Several seeds


def seeds(kind):
    made = dataset(counts=(10, 20, 30, 5, 8))
    if kind == "split":
        return [streams.split(made, tasks=3, seed=seed, class_order="random") for seed in range(3)]
    return [streams.permuted(made, tasks=3, seed=seed) for seed in range(3)]


@pytest.mark.parametrize("kind", ["split", "permuted"])
@pytest.mark.parametrize("train_on", ["current", "seen", "all"])
def test_stacked_seeds_equal_seeds_in_turn(kind, train_on):
    built = seeds(kind)
    tables, in_axes = streams.stack(built)
    max_examples = streams.max_examples(tables)["train"]
    clock = make_clock(task=1)
    keys = jax.random.split(jax.random.key(0), 3)

    def batches(tables, key, max_examples):
        order, count = streams.epoch_order(tables.train, clock, key, train_on=train_on, max_examples=max_examples)
        drawn = jax.lax.map(
            lambda step: streams.draw(tables, tables.train, order, count, step, 16), jnp.arange(16, dtype=jnp.int32)
        )
        return drawn, streams.sequential(tables, tables.test, clock.task, jnp.int32(0), 3), count

    together = jax.jit(jax.vmap(lambda tables, key: batches(tables, key, max_examples), in_axes=(in_axes, 0)))(
        tables, keys
    )
    for seed, stream in enumerate(built):
        alone = batches(stream.tables, keys[seed], streams.max_examples(stream.tables)["train"])  # not even aligned
        chex.assert_trees_all_equal(jax.tree.map(lambda leaf, seed=seed: leaf[seed], together), alone)


def test_only_leaves_that_differ_get_a_seed_axis():
    tables, in_axes = streams.stack(seeds("permuted"))
    assert tables.examples.shape == (83, 2, 2, 1)
    assert in_axes.examples is None
    assert in_axes.test == Table(None, None, None, None)
    assert in_axes.train == Table(0, 0, None, None)
    assert (in_axes.permutation, in_axes.classes) == (0, None)
    assert tables.permutation.shape == (3, 3, 4)
    tables, in_axes = streams.stack(seeds("split"))
    assert in_axes.train == Table(0, 0, 0, 0)
    assert in_axes.permutation is None
    for name in PARTS:
        table, axes = getattr(tables, name), getattr(in_axes, name)
        for seed, stream in enumerate(streams.align(seeds("split"))):
            for leaf, axis, alone in zip(table, axes, getattr(stream.tables, name), strict=True):
                np.testing.assert_array_equal(leaf if axis is None else leaf[seed], alone)


def test_seeds_of_two_scenarios_are_refused():
    parts = [streams.split(dataset(), tasks=2, scenario=scenario) for scenario in ("task", "class")]
    with pytest.raises(ValueError, match="0 and 1 are of the scenarios 'task' and 'class'"):
        streams.align(parts)


def test_align_keeps_every_task_and_gives_one_shape():
    built = [streams.split(dataset(), tasks=2, sizes=(1, 1), class_order=order) for order in ([0, 1], [2, 3])]
    aligned = streams.align(built)
    chex.assert_trees_all_equal_shapes_and_dtypes(*(stream.tables for stream in aligned))
    for before, after in zip(built, aligned, strict=True):
        for part in PARTS:
            for task in range(2):
                old, new = getattr(before.tables, part), getattr(after.tables, part)
                np.testing.assert_array_equal(rows_of(new, task), rows_of(old, task))
                np.testing.assert_array_equal(labels_of(new, task), labels_of(old, task))
    assert streams.max_examples(aligned[1].tables) == {"train": 27, "validation": 3, "test": 2}


def test_stack_errors():
    made = dataset()
    one = streams.split(made, tasks=2)
    with pytest.raises(ValueError, match="no stream"):
        streams.stack([])
    with pytest.raises(ValueError, match="Streams 0 and 1 hold different examples"):
        streams.stack([one, streams.split(dataset(test=3), tasks=2)])
    with pytest.raises(ValueError, match=r"Streams 0 and 1 differ.*\(2, 3\) and \(3, 2\)"):
        streams.stack([one, streams.split(made, tasks=3)])
    with pytest.raises(ValueError, match="schedules of streams 0 and 1 differ"):
        streams.stack([one, streams.split(made, tasks=2, epochs=3)])


DIGEST = """
import hashlib, json, numpy as np, jax
from cljax import data, streams
labels = np.arange(40) % 4
images = np.zeros((40, 3, 3, 1), np.uint8)
made = data.from_arrays(images, labels, images, labels)
built = [streams.split(made, tasks=2, seed=3, class_order="random"), streams.permuted(made, tasks=2, seed=3)]
print(hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves([s.tables for s in built])))
      .hexdigest(), json.dumps([s.facts for s in built], sort_keys=True))
"""


def test_bits_are_equal_across_processes_and_options():
    plain = {**os.environ, "PYTHONHASHSEED": "1"}
    other = {**plain, "PYTHONHASHSEED": "2", "JAX_ENABLE_X64": "1", "JAX_DEFAULT_PRNG_IMPL": "rbg"}
    other["JAX_THREEFRY_PARTITIONABLE"] = "0"
    commands = [
        subprocess.Popen([sys.executable, "-c", DIGEST], env=environment, stdout=subprocess.PIPE, text=True)
        for environment in (plain, other)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in commands]
    assert outputs[0] == outputs[1] != ""


def test_facts_are_plain_data():
    order = Schedule(*(np.asarray(part) for part in ([1, 0], [1, 1], [True, False])))
    for stream in (
        streams.split(dataset(), tasks=2, class_order="random", schedule=order),
        streams.permuted(dataset(), tasks=2, schedule=order),
        streams.from_tasks([GOOD, GOOD], schedule=order),
    ):
        assert json.loads(json.dumps(stream.facts)) == stream.facts
        assert stream.facts["tasks"] == [1, 0]
        assert stream.schedule.evaluate.tolist() == [True, False]


# Hostile numbers


@pytest.mark.parametrize(
    "wrong",
    [
        {"tasks": 2.0},
        {"tasks": float("nan")},
        {"tasks": 10**11},
        {"seed": -1},
        {"seed": 1.5},
        {"seed": None},
        {"seed": 2**64},
        {"validation": float("nan")},
        {"validation": "0.1"},
        {"validation": -0.1},
        {"fraction": float("nan")},
        {"fraction": None},
        {"fraction": [1.0, -1.0]},
        {"epochs": 1.5},
        {"epochs": 10**12},
        {"epochs": float("nan")},
        {"epochs": [1, 2.5]},
    ],
)
def test_numbers_out_of_range_are_refused_by_every_stream(wrong):
    made, given = dataset(), {"tasks": 2, **wrong}
    builders = [streams.split, streams.permuted, lambda made, **given: streams.by_superclass(
        made, groups={"a": [0, 1], "b": [2, 3, 4]}, **given
    )]  # fmt: skip
    if "tasks" not in wrong:
        builders += [
            lambda made, tasks, **given: streams.from_tasks([GOOD, GOOD], **given),
            lambda made, tasks, **given: streams.relabelled(made, [made.labels] * 2, **given),
        ]
    for build in builders:
        with pytest.raises(ValueError, match="but must be a") as error:
            build(made, **given)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: streams.split(dataset(), tasks=2, sizes=(2.0, 3)),
        lambda: streams.split(dataset(), tasks=2, class_order=[0, 1.5, 2]),
        lambda: streams.lifelong(-1, 3),
        lambda: streams.lifelong(10**11, 1),
        lambda: streams.lifelong(2, None),
        lambda: streams.multi_task(2, 10**11),
        lambda: streams.multi_task(2, 2.5),
        lambda: streams.multi_task(2, 2, seed=-1),
        lambda: streams.multi_task(2, 2, evaluate_every=0),
        lambda: streams.multi_task(2, 2, evaluate_every=1.5),
    ],
)
def test_numbers_of_schedules_and_divisions_are_checked(wrong):
    with pytest.raises(ValueError, match="but must be a whole number"):
        wrong()


def test_more_permuted_tasks_than_tables_can_have_are_refused_at_once():
    with pytest.raises(ValueError, match=r"need tables of more than 2\*\*31 entries. Ask for at most \d+ tasks"):
        streams.permuted(dataset(counts=(3000,) * 5, shape=(1, 1, 1)), tasks=1_000_000)


def test_labels_of_all_tasks_together_are_refused_task_by_task():
    images = np.zeros((4, 2, 2, 1), np.uint8)
    with pytest.raises(ValueError, match=r"train_labels of task 1 go up to 7, but none is 1\. .*numpy.unique"):
        streams.from_tasks([(images, [0, 1, 2, 3]) * 2, (images, [0, 5, 6, 7]) * 2])
    with pytest.raises(ValueError, match="train_labels of task 0 go up to 1048575, but none is 2"):
        streams.from_tasks([(images, [0, 1, 2**20 - 1, 0]) * 2])
    made = data.from_arrays(images, [0, 1, 2, 3], images, [0, 1, 2, 3])
    second = np.where(made.labels < 2, -1, made.labels)
    with pytest.raises(ValueError, match="labels of task 1 go up to 3, but none is 0"):
        streams.relabelled(made, [np.where(made.labels < 2, made.labels, -1), second])
    named = streams.relabelled(made, [second], names=[["none", "here", "c", "d"]])
    assert named.tables.classes.tolist() == [[True] * 4]


def test_a_raw_schedule_is_checked_as_those_built_here():
    def raw(task, epochs=None):
        return Schedule(
            np.asarray(task), np.ones(len(task), int) if epochs is None else epochs, np.ones(len(task), bool)
        )

    for good in ([0, 1, 0, 2, 2, 1], [0], [0, 0, 1]):
        check_schedule(raw(good), 3)
    for wrong, words in [
        (raw([1, 0]), "Round 0 of the schedule visits task 1 before task 0.*with_schedule"),
        (raw([0, 2, 1]), "Round 1 of the schedule visits task 2 before task 1"),
        (raw([0, 3]), "visits task 3, but the stream has tasks 0 to 2"),
        (raw([0.0, 1.0]), "tasks must be whole numbers"),
        (raw([0, 1], np.array([1, 1.5])), "epochs must be whole numbers"),
        (raw([0, 1], np.array([1, 2**40])), "epochs must be whole numbers up to 2147483647"),
        (raw(np.zeros(1_000_001, int)), "may have at most 1000000"),
    ]:
        with pytest.raises(ValueError, match=words):
            check_schedule(wrong, 3)


def test_a_seed_of_any_kind_of_whole_number_is_that_number():
    images = np.zeros((8, 2, 2, 1), np.uint8)
    dataset = data.from_arrays(images, [0, 1, 2, 3] * 2, images, [0, 1, 2, 3] * 2)
    plain = streams.split(dataset, tasks=2, seed=3, class_order="random")
    for seed in (np.int64(3), jnp.int32(3), np.array(3)):
        stream = streams.split(dataset, tasks=2, seed=seed, class_order="random")
        assert stream.facts == plain.facts
        np.testing.assert_array_equal(stream.tables.train.index, plain.tables.train.index)
        assert type(streams.permuted(dataset, tasks=2, seed=seed).facts["permutation"]["seed"]) is int
