"""Hand-worked matrices and curves for every metric and every convention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cljax import metrics

NAN = np.nan
correct = jax.jit(metrics.correct, static_argnames="top")
# After task:                0    1    2
MATRIX = np.array([[0.90, 0.20, 0.10], [0.60, 0.80, 0.30], [0.70, 0.85, 0.50]])
LOWER = np.where(np.tri(3, dtype=bool), MATRIX, NAN)


def close(value, expected):
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("matrix", [MATRIX, LOWER])
def test_the_hand_worked_matrix(matrix):
    close(metrics.average_accuracy(matrix), (0.70 + 0.85 + 0.50) / 3)
    steps = [0.90, (0.60 + 0.80) / 2, (0.70 + 0.85 + 0.50) / 3]
    close(metrics.average_incremental_accuracy(matrix, per_task=True), steps)
    close(metrics.average_incremental_accuracy(matrix), np.mean(steps))
    close(metrics.backward_transfer(matrix, per_task=True), [-0.20, 0.05])
    close(metrics.backward_transfer(matrix), -0.075)
    close(metrics.forgetting(matrix, per_task=True), [0.90 - 0.70, 0.80 - 0.85])
    close(metrics.forgetting(matrix), 0.075)
    close(metrics.forgetting(matrix, reference="all", per_task=True), [0.20, 0.0])
    close(metrics.forgetting(matrix, reference="all"), 0.1)
    close(metrics.forgetting(matrix, reference="all", signed=True), -0.1)
    close(metrics.forgetting(matrix, reference="first", per_task=True), [0.20, -0.05])
    close(metrics.intransigence(matrix, [0.9, 0.9, 0.75], per_task=True), [0.0, 0.1, 0.25])
    close(metrics.intransigence(matrix, [0.9, 0.9, 0.75]), 0.35 / 3)


def test_the_references_of_forgetting_differ():
    """Task 0 is best in the middle, task 1 before it was learned, task 2 has no past."""
    matrix = np.array([[0.5, 0.9, 0.1], [0.8, 0.6, 0.1], [0.7, 0.4, 0.9], [0.3, 0.5, 0.2]])[[0, 1, 3], :]
    close(metrics.forgetting(matrix, reference="earlier", per_task=True), [0.5, 0.4])
    close(metrics.forgetting(matrix, reference="first", per_task=True), [0.2, 0.1])
    hidden = np.where(np.tri(3, dtype=bool), matrix, NAN)
    close(metrics.forgetting(hidden, reference="earlier", per_task=True), [0.5, 0.1])


def test_forward_transfer():
    close(metrics.forward_transfer(MATRIX, [NAN, 0.1, 0.2], per_task=True), [0.1, 0.1])
    close(metrics.forward_transfer(MATRIX, [NAN, 0.15, 0.2]), 0.075)


def test_class_counts_weigh_the_steps():
    expected = [0.9, (2 * 0.6 + 6 * 0.8) / 8, (2 * 0.7 + 6 * 0.85 + 2 * 0.5) / 10]
    close(metrics.average_incremental_accuracy(LOWER, np.array([2, 6, 2]), per_task=True), expected)


def test_published_changes_are_backward_transfer():
    """Fine-tuning on four tasks of Flowers: final accuracies, signed changes and average as printed, in percent."""
    final, change = np.array([10.0, 5.1, 6.7, 17.3]), np.array([-20.3, -17.1, -13.6, 0.0])
    matrix = np.diag(final - change)
    matrix[-1] = final
    close(metrics.backward_transfer(matrix, per_task=True), change[:-1])
    assert abs(float(metrics.average_accuracy(matrix)) - 9.8) < 0.05


def test_one_task_has_no_past():
    one = [[0.7]]
    close(metrics.average_accuracy(one), 0.7)
    close(metrics.average_incremental_accuracy(one), 0.7)
    close(metrics.intransigence(one, [0.8]), 0.1)
    for value in (
        metrics.backward_transfer(one),
        metrics.forward_transfer(one, [0.1]),
        *(metrics.forgetting(one, reference=name) for name in ("earlier", "all", "first")),
    ):
        assert value.shape == ()
        assert value == 0
    assert metrics.backward_transfer(one, per_task=True).shape == (0,)
    assert metrics.forgetting(np.array([one, one]), per_task=True).shape == (2, 0)
    assert metrics.forgetting(np.array([one, one])).tolist() == [0, 0]


def test_needed_nans_show():
    for row, column in ((0, 0), (1, 0), (2, 0)):
        broken = LOWER.copy()
        broken[row, column] = NAN
        assert np.isnan(metrics.forgetting(broken))
    broken[2, 0] = NAN
    assert np.isnan(metrics.average_accuracy(broken))
    assert np.isnan(metrics.average_incremental_accuracy(broken))


def test_integers_and_lists_and_percent():
    close(metrics.backward_transfer([[90, 0], [50, 70]]), -40)


def test_a_matrix_that_is_not_square_is_refused():
    for shape in ((3, 2), (3,), (0, 0)):
        with pytest.raises(ValueError, match="first_visits"):
            metrics.average_accuracy(np.zeros(shape))
    with pytest.raises(ValueError, match="'earlier', 'all' or 'first'"):
        metrics.forgetting(MATRIX, reference="last")


matrices = st.integers(1, 4).flatmap(
    lambda n: st.lists(st.lists(st.floats(0, 1, width=32), min_size=n, max_size=n), min_size=n, max_size=n)
)


@given(matrices)
@settings(max_examples=25, deadline=None)
def test_laws_of_forgetting(rows):
    matrix = np.array(rows, np.float32)
    first, earlier, all_rows = (
        np.asarray(metrics.forgetting(matrix, reference=name, per_task=True)) for name in ("first", "earlier", "all")
    )
    np.testing.assert_array_equal(first, -metrics.backward_transfer(matrix, per_task=True))
    assert (first <= earlier).all()
    assert (earlier <= all_rows).all()
    assert (all_rows >= 0).all()
    np.testing.assert_array_equal(all_rows, np.maximum(earlier, 0))


SEEDS = np.stack([MATRIX, MATRIX[::-1], MATRIX.T])
CURVES = np.random.default_rng(0).uniform(0.1, 1, (3, 7, 3)).astype(np.float32)
STARTS = np.array([0, 2, 5])


@pytest.mark.parametrize(
    ("metric", "values"),
    [
        (metrics.average_accuracy, SEEDS),
        (metrics.average_incremental_accuracy, SEEDS),
        (lambda matrix: metrics.average_incremental_accuracy(matrix, [1, 2, 3], per_task=True), SEEDS),
        (metrics.backward_transfer, SEEDS),
        (lambda matrix: metrics.forward_transfer(matrix, [0.1, 0.1, 0.1]), SEEDS),
        (lambda matrix: metrics.intransigence(matrix, [0.1, 0.2, 0.3]), SEEDS),
        (metrics.forgetting, SEEDS),
        (lambda matrix: metrics.forgetting(matrix, reference="all", per_task=True), SEEDS),
        (lambda matrix: metrics.first_visits(matrix, [0, 1, 2]), SEEDS),
        (lambda curves: metrics.peak_accuracy(curves, STARTS), CURVES),
        (lambda curves: metrics.peak_accuracy(curves, STARTS, validation=1 - curves), CURVES),
        (lambda curves: metrics.forgetting_ratio(curves, STARTS), CURVES),
        (lambda curves: metrics.epochs_to_converge(curves, STARTS), CURVES),
    ],
)
def test_seeds_in_front_or_mapped_jit_or_not(metric, values):
    expected = np.stack([metric(value) for value in values])
    values = jnp.asarray(values)
    for way in (metric, jax.jit(metric), jax.vmap(metric)):
        np.testing.assert_allclose(way(values), expected, rtol=1e-6, atol=1e-7)


def test_curves():
    """Two tasks, three and two epochs."""
    curves = np.array([[0.5, 0.0], [0.8, 0.1], [0.79, 0.2], [0.6, 0.3], [0.9, 0.4]])
    starts = [0, 3]
    close(metrics.peak_accuracy(curves, starts), [0.8, 0.4])
    close(metrics.forgetting_ratio(curves, starts)[3:], [[0.75, 0.75], [1.125, 1.0]])
    assert metrics.epochs_to_converge(curves, starts).tolist() == [2, 2]
    assert metrics.epochs_to_converge(curves, starts, fraction=0.6).tolist() == [1, 1]
    validation = np.array([[0.1, 1.0], [0.2, 1.0], [0.3, 1.0], [0.9, 0.5], [0.9, 0.5]])
    close(metrics.peak_accuracy(curves, starts, validation=validation), [0.79, 0.3])
    validation[1, 0] = NAN  # nothing tells that it was not the best
    close(metrics.peak_accuracy(curves, starts, validation=validation), [NAN, 0.3])


def test_what_is_just_near_enough_has_converged_whatever_the_rounding():
    """Of 1000 test examples, where 98% of the peak is a whole number of them."""
    for right in range(50, 1001, 50):
        curves = np.array([[0.98 * right / 1000 - 1e-4], [round(0.98 * right) / 1000], [right / 1000]])
        assert metrics.epochs_to_converge(curves, [0]).tolist() == [2]


def test_curves_without_their_other_phases():
    curves = np.array([[0.5, NAN], [0.25, NAN], [NAN, 0.5]])
    close(metrics.peak_accuracy(curves, [0, 2]), [0.5, 0.5])
    assert metrics.epochs_to_converge(curves, [0, 2]).tolist() == [1, 1]
    curves[1, 0] = NAN
    assert np.isnan(metrics.peak_accuracy(curves, [0, 2])[0])
    assert metrics.epochs_to_converge(curves, [0, 2]).tolist() == [0, 1]


def test_nothing_learned_is_nothing_forgotten():
    curves = np.array([[0.0, 0.0], [0.0, 0.5], [0.5, 0.25]])
    close(metrics.forgetting_ratio(curves, [0, 1]), [[1.0, 0.0], [1.0, 1.0], [1.0, 0.5]])


def test_first_visits_take_the_last_round_before_the_next_task():
    rounds = np.arange(7 * 3).reshape(7, 3) / 100
    #                             0  1  2  3  4  5  6
    result = metrics.first_visits(rounds, [0, 0, 1, 0, 1, 2, 1])
    np.testing.assert_allclose(result, rounds[[1, 4, 6]], rtol=1e-6)
    np.testing.assert_allclose(metrics.first_visits(rounds[:3], [0, 1, 2]), rounds[:3], rtol=1e-6)


@pytest.mark.parametrize("tasks", [[1, 0, 2], [0, 2, 1], [0, 1, 1], [0, 0, 0], [0, -1, 2]])
def test_first_visits_refuses_other_numberings(tasks):
    with pytest.raises(ValueError, match="by first visit"):
        metrics.first_visits(np.zeros((3, 3)), tasks)


def test_feature_usage_of_every_task_from_the_last_ownership():
    owner = {"a": np.array([0, 0, 1, 2**31 - 1], np.int32), "b": np.array([[2, 0], [1, 0]], np.int32)}
    usage = jax.jit(jax.vmap(lambda task: metrics.feature_usage(owner, task)))
    used, new, free = usage(np.arange(3, dtype=np.int32))
    np.testing.assert_array_equal(used["a"], [0.5, 0.75, 0.75])
    np.testing.assert_array_equal(new["a"], [0.5, 0.25, 0.0])
    np.testing.assert_array_equal(free["a"], [0.5, 0.25, 0.25])
    np.testing.assert_array_equal(used["b"], [0.5, 0.75, 1.0])
    np.testing.assert_array_equal(new["b"], [0.5, 0.25, 0.25])


def test_overhead_of_alexnet():
    """Published for four tasks on AlexNet: 27.3 Mb for weight masks, 0.2 Mb for ternary masks with normalisation."""
    weights, features = 54_547_712, 64 + 192 + 384 + 256 + 256 + 2 * 4096
    assert metrics.overhead_bytes("weight_mask", weights=weights, tasks=4) / 1e6 == pytest.approx(27.3, abs=0.05)
    assert metrics.overhead_bytes("soft_feature_mask", features=features, tasks=4) == 4 * 4 * 9344
    masks = metrics.overhead_bytes("ternary_feature_mask", features=features, tasks=4)
    scales = metrics.overhead_bytes("feature_normalization", features=features, tasks=3)
    assert masks == 9344
    assert scales == 2 * 4 * 3 * 9344
    assert round((masks + scales) / 1e6, 1) == 0.2
    assert metrics.overhead_bytes("weight_mask", weights=9, tasks=1) == 2
    with pytest.raises(ValueError, match="weight_mask, soft_feature_mask"):
        metrics.overhead_bytes("masks", tasks=1)
    with pytest.raises(ValueError, match="pass features="):
        metrics.overhead_bytes("ternary_feature_mask", weights=1, tasks=1)


def test_intervals_by_the_table():
    """t is 12.706, 4.303 and 2.776 for 1, 2 and 4 degrees of freedom at 95%, 2.132 for 4 at 90%."""
    for values, level, t in (([0, 2], 0.95, 12.706), ([1, 2, 3], 0.95, 4.303), ([1, 2, 3, 4, 5], 0.9, 2.132)):
        mean, half = metrics.mean_and_interval(values, level=level)
        assert mean == np.mean(values)
        np.testing.assert_allclose(half, t * np.std(values, ddof=1) / np.sqrt(len(values)), rtol=2e-4)


def test_one_seed_has_no_interval():
    mean, half = metrics.mean_and_interval([[0.5, 0.25]])
    assert mean.tolist() == [0.5, 0.25]
    assert np.isnan(half).all()
    assert half.shape == (2,)
    assert np.isnan(metrics.mean_and_interval([0.5]).half_width)
    with pytest.raises(ValueError, match="at least one seed"):
        metrics.mean_and_interval([])


def test_pairing_finds_a_constant_difference():
    noise = np.random.default_rng(0).normal(size=5)
    mean, half = metrics.paired_difference(noise + 0.1, noise)
    np.testing.assert_allclose(mean, 0.1)
    assert half < 1e-12
    assert metrics.mean_and_interval(noise).half_width > 0.1
    with pytest.raises(ValueError, match="same seeds"):
        metrics.paired_difference(noise, noise[:3])


def test_coverage_of_the_interval():
    """Over 4,000 draws of three seeds, 95% of the intervals hold the truth."""
    draws = np.random.default_rng(1).normal(0.3, 2.0, (3, 4000))
    mean, half = metrics.mean_and_interval(draws)
    assert abs((np.abs(mean - 0.3) < half).mean() - 0.95) < 0.015


def test_a_label_among_the_largest_logits_is_right():
    """Against a stable sort, with ties, and with logits that do not count."""
    draw = np.random.default_rng(0)
    logits, labels = draw.integers(0, 4, (50, 8)).astype(np.float32), draw.integers(0, 8, 50)
    classes = np.arange(8) != 3
    ranked = np.argsort(-np.where(classes, logits, -np.inf), axis=1, kind="stable")
    for top in (1, 2, 5):
        expected = [float(label in row[:top] and label != 3) for label, row in zip(labels, ranked, strict=True)]
        values = logits, labels.astype(np.int32), classes
        assert correct(*values, top=top).tolist() == expected
        hot = logits, np.eye(8, dtype=np.float32)[labels], classes
        assert correct(*hot, single_label=np.array(True), top=top).tolist() == expected
        assert correct(*hot, top=top).tolist() == correct(*hot).tolist()
    assert not np.any(correct(logits, np.full(50, -1), classes, top=8))
    with pytest.raises(ValueError, match="top is 0, but must be a whole number from 1"):
        metrics.correct(*values, top=0)


def test_a_logit_that_is_nan_predicts_nothing():
    logits = np.array([[NAN, 2, 1], [0, 2, NAN], [5, 1, 0]], np.float32)
    classes = np.array([True, True, False])
    for label in (0, 1, -1):
        found = correct(logits, np.full(3, label), classes)
        assert found.tolist() == [0.0, float(label == 1), float(label == 0)]
    hot = np.eye(3, dtype=np.float32)[[0, 1, 0]]
    assert correct(logits, hot, classes, single_label=np.array(True)).tolist() == [0.0, 1.0, 1.0]
    unknown = np.array([[0, 1, 0], [0, 0, 0], [NAN, 0, 0]], np.float32)  # no row without a label is of class 0
    assert correct(np.array([[5, 1, 0]] * 3, np.float32), unknown, classes, single_label=np.array(True)).tolist() == [
        0.0,
        0.0,
        0.0,
    ]
    stray = np.array([[0, 1, NAN], [0, 1, 2]], np.float32)  # of a class that there is not
    assert correct(logits[1:], stray, np.array([True, True, False]), single_label=np.array(True)).tolist() == [1.0, 0.0]
    none = np.zeros([3, 3], np.float32)
    assert correct(np.full([3, 3], NAN, np.float32), none, classes).tolist() == [0.0, 0.0, 0.0]
    assert correct(logits, none, classes).tolist() == [0.0, 0.5, 0.0]


def test_a_score_that_is_nan_shows_unless_it_does_not_count():
    scores = np.array([[0.9, 0.1], [NAN, 0.2], [0.7, 0.3]], np.float32)
    labels = np.array([[1, 0], [0, 0], [0, 1]], np.float32)
    average, mean = (
        jax.jit(metric, static_argnames="interpolation")
        for metric in (metrics.average_precision, metrics.mean_average_precision)
    )
    for mode in ("area", "eleven_points"):
        assert np.isnan(average(scores, labels, interpolation=mode)).tolist() == [True, False]
        assert np.isnan(mean(scores, labels, interpolation=mode))
        left = average(scores, labels, interpolation=mode, weights=np.array([1, 0, 1]))
        close(left, [1, 1])


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: metrics.mean_and_interval([1.0, 2.0], level=1.0),
        lambda: metrics.paired_difference([1.0, 2.0], [1.0, 2.0], level=NAN),
        lambda: metrics.epochs_to_converge([[0.5], [0.6]], [0], fraction=1.5),
        lambda: metrics.peak_accuracy([[0.5, 0.1], [0.6, 0.2]], [0.0, 1.5]),
        lambda: metrics.first_visits(MATRIX, [0.0, 1.0, 2.5]),
        lambda: metrics.average_precision(np.ones((3, 2)), np.ones((3, 1))),
        lambda: metrics.overhead_bytes("weight_mask", weights=8, tasks=-1),
        lambda: metrics.overhead_bytes("weight_mask", weights=NAN, tasks=1),
        lambda: metrics.overhead_bytes("ternary_feature_mask", features=1.5, tasks=1),
    ],
)
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="but must be"):
        wrong()


def test_overhead_is_exact_however_large():
    assert metrics.overhead_bytes("weight_mask", weights=2**60 + 1, tasks=8) == 2**60 + 1


@pytest.mark.parametrize("starts", [[9, 10, 11], [0, 0, 1], [-1, 0, 1], [1, 0, 2]])
def test_phases_that_cannot_be_are_refused(starts):
    with pytest.raises(ValueError, match=r"starts are .*must increase"):
        metrics.peak_accuracy(np.ones((3, 3), np.float32), starts)
