"""Evaluation by hand, of a method whose logits are a table."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cljax import methods, networks, task_params
from cljax.training import evaluation
from cljax.types import Learner, Table, Tables, make_clock
from tests import conformance

CLASSES = np.array([[True, True, False], [True, True, True]])
LOGITS = np.zeros((2, 5, 3), np.float32)
LOGITS[0] = [[2, 1, 9], [3, 1, 0], [0, 1, 5], [5, 0, 0], [0, 0, 0]]
LOGITS[1] = [[0, 0, 0], [0, 0, 0], [4, 0, 0], [0, 1, 2], [1, 5, 0]]
LABELS = np.array([0, 1, 1, 2, 0], np.int32)


def tables(labels=LABELS, sizes=(3, 2)):
    start = np.cumsum([0, *sizes[:-1]]).astype(np.int32)
    test = Table(np.arange(sum(sizes), dtype=np.int32), labels[: sum(sizes)], start, np.array(sizes, np.int32))
    return Tables(np.arange(5, dtype=np.int32)[:, None], test, test, test, None, CLASSES)


def learner():
    return Learner({}, {}, (), {}, {}, None, task_params.resting((), tasks=len(CLASSES)))


def told(logits=LOGITS):
    base = methods.finetune(networks.mlp((1,), 3, hidden=(2,)))
    return base._replace(predict=lambda learner, inputs, task: jnp.asarray(logits)[task][inputs[:, 0]])


def found(logits=LOGITS, given=None, **options):
    return evaluation.evaluate(told(logits), learner(), given or tables(), batch_size=2, **options)


def printed(logits, first=0):
    """The fingerprint, in Python's integers."""
    bits = np.asarray(logits, np.float32).view(np.uint32).ravel().tolist()
    place = first * np.shape(logits)[1]
    return sum(bit * ((place + i) * 2654435762 + 1) for i, bit in enumerate(bits)) % 2**32


def test_the_task_is_known():
    result = found()
    np.testing.assert_allclose(result.accuracy, [2 / 3, 1 / 2])
    np.testing.assert_allclose(result.task_il_accuracy, [2 / 3, 1 / 2])
    np.testing.assert_allclose(result.top5, [1, 1])
    assert np.asarray(result.fingerprint).tolist() == [printed(LOGITS[0, :3]), printed(LOGITS[1, 3:])]
    assert [leaf.dtype for leaf in jax.tree.leaves(result)] == [jnp.float32] * 3 + [jnp.uint32]


def test_the_task_is_unknown_among_those_visited():
    result = found(scenario="class")
    np.testing.assert_allclose(result.accuracy, [1 / 3, 0])
    np.testing.assert_allclose(result.task_il_accuracy, [2 / 3, 1 / 2])
    assert np.asarray(result.fingerprint).tolist() == [printed(LOGITS[0, :3]), printed(LOGITS[1, 3:])]
    result = found(scenario="class", newest=jnp.int32(0))
    np.testing.assert_allclose(result.accuracy, [2 / 3, 0])
    np.testing.assert_allclose(result.top5, [1, 0])


def test_splits():
    given = tables()._replace(train=tables(LABELS[::-1]).train, validation=tables(sizes=(5, 0)).test)
    np.testing.assert_allclose(found(given=given, split="train").accuracy, [2 / 3, 0])
    result = found(given=given, split="validation")
    np.testing.assert_allclose(result.accuracy, [3 / 5, np.nan])
    assert np.isnan(result.task_il_accuracy).tolist() == np.isnan(result.top5).tolist() == [False, True]
    assert int(result.fingerprint[1]) == 0


def test_one_task_alone():
    for task in (0, 1):
        alone = evaluation.evaluate_task(told(), learner(), tables(), jnp.int32(task), scenario="class", batch_size=4)
        for one, every in zip(*map(jax.tree.leaves, (alone, found(scenario="class"))), strict=True):
            np.testing.assert_array_equal(one, every[task])


@pytest.mark.parametrize("scenario", ["task", "class"])
@pytest.mark.parametrize(
    ("task", "example", "output", "value", "lost"),
    [
        (0, 1, 0, np.nan, True),
        (0, 1, 0, np.inf, True),
        (0, 1, 0, -np.inf, False),
        (0, 1, 2, np.nan, False),  # no class of that task
        (0, 4, 0, np.nan, False),  # no example of that task
    ],
)
def test_a_logit_that_is_no_number_is_no_accuracy(scenario, task, example, output, value, lost):
    logits = LOGITS.copy()
    logits[task, example, output] = value
    result = found(logits, scenario=scenario, newest=jnp.int32(0))
    assert np.isnan(result.accuracy).tolist() == np.isnan(result.top5).tolist() == [lost, False]
    assert np.isnan(result.task_il_accuracy).tolist() == [lost, False]


def of_task(logits, labels, *, task=0, scenario="task", classes=None, single_label=None):
    """The evaluation of a task that all examples are of."""
    logits = np.asarray(logits, np.float32)
    classes = np.ones((len(logits), logits.shape[-1]), bool) if classes is None else classes
    sizes = [logits.shape[1] * (number == task) for number in range(len(logits))]
    given = tables(np.asarray(labels), sizes)._replace(classes=classes, single_label=single_label)
    evaluate = lambda given: evaluation.evaluate_task(
        told(logits), learner(), given, jnp.int32(task), scenario=scenario, batch_size=2
    )
    return jax.jit(evaluate)(given)


def test_five_of_seven_logits_count():
    ranked = np.arange(7.0)[None, None].repeat(3, 1)  # the largest is the last
    result = of_task(ranked, [6, 2, 1])
    np.testing.assert_allclose([result.accuracy, result.task_il_accuracy, result.top5], [1 / 3, 1 / 3, 2 / 3])
    assert int(result.fingerprint) == printed(ranked[0])


def test_several_labels_of_an_example_stand_at_its_task():
    logits = [[[-1.0, 1.0, 9.0]], [[-1.0, 1.0, -1.0]]]
    result = of_task(logits, np.array([[0.0, 1.0, 0.0]], np.float32), scenario="class", classes=CLASSES)
    np.testing.assert_allclose([result.accuracy, result.task_il_accuracy], [4 / 5, 1])
    labels = np.array([[1.0, 0.0, 0.0]], np.float32)
    result = of_task(logits, labels, task=1, scenario="class", classes=CLASSES)
    np.testing.assert_allclose([result.accuracy, result.task_il_accuracy], [(1 + 0 + 0 + 0 + 1) / 5, 1 / 3])
    one_hot = np.array([[0.0, 1.0, 0.0]], np.float32)
    kinds = np.array([True, False])
    result = of_task(logits, one_hot, scenario="class", classes=CLASSES, single_label=kinds)
    np.testing.assert_allclose([result.accuracy, result.task_il_accuracy], [1, 1])
    assert float(of_task(logits, one_hot, classes=CLASSES, single_label=~kinds, task=1).accuracy) == 1


def test_batches_that_cover_so_many_examples():
    assert [int(evaluation.number_of_batches(jnp.int32(size), 2)) for size in range(4)] == [0, 1, 1, 2]


@pytest.mark.parametrize(
    ("newest", "evaluated", "examples", "lost"),
    [(1, True, 9, True), (0, True, 9, False), (1, False, 9, False), (2, True, 9, True), (2, True, 0, False)],
)
def test_lost_logits_of_visited_tasks_are_a_failure(newest, evaluated, examples, lost):
    values = jnp.array([0.5, jnp.nan, 0.0])
    clock = make_clock(round=4, task=1, phase=3, epoch=2, newest=newest)
    result = evaluation.Evaluation(values, values, values, jnp.zeros(3, jnp.uint32))
    tables = conformance.stream().tables
    tables = tables._replace(test=tables.test._replace(size=np.array([9, examples, 9])))
    failure = evaluation.lost_logits(result, clock, jnp.bool_(evaluated), tables)
    assert [int(value) for value in failure] == ([4, 1, 3, 2, -1, -1] if lost else [-1] * 6)
    assert {leaf.dtype for leaf in jax.tree.leaves(failure)} == {jnp.dtype("int32")}


def test_confusion_by_hand():
    """The largest of [2 1 . 0 0 0], [3 1 . 0 0 0], [0 1 . 4 0 0] and [5 0 . 0 1 2], [0 0 . 1 5 0]."""
    from cljax import training

    counts = training.confusion_matrix(told(), learner(), tables(), batch_size=2)
    expected = np.zeros((6, 6), np.int32)
    expected[0, 0] = expected[1, 0] = expected[1, 3] = 1
    expected[5, 0] = expected[3, 4] = 1
    np.testing.assert_array_equal(counts, expected)
    own = evaluation.evaluate(told(), learner(), tables(), scenario="class", batch_size=2).accuracy
    np.testing.assert_allclose([1 / 3, 0.0], own, rtol=1e-6)
    several = tables(np.zeros((5, 3), np.float32))
    with pytest.raises(ValueError, match="these labels are several"):
        training.confusion_matrix(told(), learner(), several)
