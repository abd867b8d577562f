"""Reference values, closed-form gradients, and exact zeros where there must be none."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cljax import losses

TEACHER = np.array([[2, 1, 0], [0, 1, 3]], np.float32)
STUDENT = np.array([[1, 1, 1], [0, 2, 1]], np.float32)
tempered = functools.partial(losses.distillation, temperature=2.0)
PAIRED = [
    tempered,
    losses.sigmoid_distillation,
    losses.l1_response,
    losses.l2_response,
]


def close(value, expected, tolerance=2e-6):
    np.testing.assert_allclose(value, expected, rtol=tolerance, atol=tolerance)


def softmax(logits):
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


@functools.cache
def compiled(loss):
    def total(*arrays, **options):
        values = loss(*arrays, **options)
        return values.sum(), values

    return jax.jit(jax.grad(total, has_aux=True))


def both(loss, *arrays, **options):
    """A loss of each example, and the gradient of their sum by the first array; in one program."""
    gradient, values = compiled(loss)(*arrays, **options)
    return np.asarray(values), np.asarray(gradient)


@pytest.mark.parametrize(
    ("temperature", "value", "slope"),
    [(1.0, 1.217017, -0.165954), (2.0, 1.116696, -0.043287), (4.0, 1.100908, -0.010737)],
)
def test_distillation_against_reference_values(temperature, value, slope):
    values, gradient = both(functools.partial(losses.distillation, temperature=temperature), STUDENT, TEACHER)
    close(values.mean(), value)
    close(gradient[0, 0] / 2, slope)  # of the mean of two
    change = softmax(STUDENT / temperature) - softmax(TEACHER / temperature)
    close(gradient / 2, change / temperature / 2)  # no squared temperature


def test_distillation_is_least_at_the_teacher():
    values, gradient = both(tempered, TEACHER, TEACHER)
    entropy = values.mean()
    close(entropy, 0.963075)
    close(both(tempered, STUDENT, TEACHER)[0].mean() - entropy, 0.153621)
    close(gradient, 0)


def test_distillation_takes_logarithms_of_probabilities():
    close(both(tempered, STUDENT, np.log(softmax(TEACHER)))[0], both(tempered, STUDENT, TEACHER)[0])


def test_sigmoid_distillation_against_reference_values():
    value, _ = both(losses.sigmoid_distillation, STUDENT, TEACHER)
    assert value.shape == (2,)
    close(value.mean(), 1.773288)
    close(value.mean() / 3, 0.591096)
    _, gradient = both(functools.partial(losses.sigmoid_distillation, temperature=2.0), STUDENT, TEACHER)
    sigmoid = lambda logits: 1 / (1 + np.exp(-logits))
    close(gradient, (sigmoid(STUDENT / 2) - sigmoid(TEACHER / 2)) / 2)


def test_sigmoid_distillation_pulls_a_confident_student_down():
    _, gradient = both(losses.sigmoid_distillation, np.full([1, 1], 50, np.float32), np.zeros([1, 1], np.float32))
    close(gradient, 0.5)


def test_responses_by_hand():
    teacher, student = np.log(np.array([[[0.2, 0.3, 0.5]], [[0.4, 0.4, 0.2]]], np.float32))
    close(both(losses.l1_response, student, teacher)[0], [0.6])
    close(both(losses.l2_response, student, teacher)[0], [0.5 * (0.04 + 0.01 + 0.09)])
    for least in (-np.inf, np.finfo(np.float32).min):  # of a teacher that is certain, as `mask_logits` makes one
        close(losses.l1_response(np.zeros([1, 2], np.float32), np.array([[least, 0]], np.float32)), [1.0])


@pytest.mark.parametrize("loss", [*PAIRED, losses.attention_distillation, losses.feature_distillation])
def test_nothing_flows_into_teachers_and_something_into_students(loss):
    student, teacher = jax.jit(jax.grad(lambda a, b: loss(a, b).sum(), argnums=(0, 1)))(STUDENT, TEACHER)
    np.testing.assert_array_equal(teacher, 0)
    assert np.abs(student).max() > 1e-3


@pytest.mark.parametrize("loss", PAIRED)
@pytest.mark.parametrize("bad", [0.0, 1e30, np.inf, -np.inf, np.nan])
def test_masked_classes_have_no_part(loss, bad):
    classes = np.array([True, True, False, True])
    pad = np.full([2, 1], bad, np.float32)
    student, teacher = (np.concatenate([x[:, :2], pad, x[:, 2:]], axis=1) for x in (STUDENT, TEACHER))
    values, gradient = both(loss, student, teacher, classes=classes)
    expected, slope = both(loss, STUDENT, TEACHER)
    close(values, expected)
    np.testing.assert_array_equal(gradient[:, 2], 0)
    close(gradient[:, [0, 1, 3]], slope)


@pytest.mark.parametrize("labels", [np.array([1, 0]), np.array([[1, 0, np.nan], [0.25, 1, 0]], np.float32)])
@pytest.mark.parametrize("bad", [0.0, 1e30, np.inf, -np.inf, np.nan])
def test_cross_entropy_leaves_masked_classes_out(labels, bad):
    classes = np.array([[True, True, False], [True, True, True]])
    logits = np.array([[1, 2, bad], [0.5, -1, 2]], np.float32)
    first = labels[:1] if labels.ndim == 1 else labels[:1, :2]
    last = labels[1:]
    parts = ((logits[:1, :2], first), (logits[1:], last))
    values, gradient = both(losses.cross_entropy, logits, labels, classes=classes)
    close(values, np.array([both(losses.cross_entropy, *part)[0][0] for part in parts]))
    assert gradient[0, 2] == 0
    chex.assert_tree_all_finite(gradient)
    chex.assert_trees_all_close(values, losses.cross_entropy(logits, labels, classes=classes), rtol=1e-6)


def test_cross_entropy_by_hand():
    logits = np.log(np.array([[0.2, 0.3, 0.5], [0.1, 0.1, 0.8]], np.float32))
    values, gradient = both(losses.cross_entropy, logits, np.array([2, 0]))
    close(values, -np.log([0.5, 0.1]))
    close(both(losses.cross_entropy, logits, np.array([2, 0], np.uint8))[0], -np.log([0.5, 0.1]))
    close(
        both(losses.cross_entropy, logits, np.array([1, 0]), classes=np.array([True, True, False]))[0],
        -np.log([0.6, 0.5]),
    )
    close(gradient, [[0.2, 0.3, -0.5], [-0.9, 0.1, 0.8]])


def test_multi_label_by_hand_and_far_out():
    half, _ = both(losses.cross_entropy, np.zeros([1, 3], np.float32), np.array([[1, 0, 0.5]], np.float32))
    close(half, [3 * np.log(2)])
    logits = np.array([[100, -100, 100, -100]], np.float32)
    labels = np.array([[1, 0, 0, 1]], np.float32)
    value, gradient = both(losses.cross_entropy, logits, labels)
    close(value, [200.0])
    close(gradient, [[0.0, 0.0, 1.0, -1.0]])


def test_mask_logits():
    masked = losses.mask_logits(np.ones([2, 3], jnp.bfloat16), np.array([[True, False, True], [False, True, False]]))
    assert masked.dtype == jnp.bfloat16
    np.testing.assert_array_equal(softmax(np.asarray(masked, np.float32)), [[0.5, 0, 0.5], [0, 1, 0]])
    assert np.argmax(losses.mask_logits(np.array([-5, 1], np.float32), np.array([True, False]))) == 0


def test_mask_logits_masks_however_small_the_valid_ones_are():
    masked = losses.mask_logits(np.array([-2e4, -2e4, 5], np.float32), np.array([True, True, False]))
    assert jax.nn.softmax(masked).tolist() == [0.5, 0.5, 0.0]
    assert np.argmax(losses.mask_logits(np.array([9, -1e30], np.float32), np.array([False, True]))) == 1


def mean_of_two_classes(logits, labels, weights):
    """The weighted mean of the losses where the last class does not exist, and the losses."""
    values = losses.cross_entropy(logits, labels, classes=np.array([True, True, False]))
    return losses.weighted_mean(values, weights), values


MEAN = jax.value_and_grad(mean_of_two_classes, has_aux=True)


@pytest.mark.parametrize("label", [-1, 3, 2, -(2**31), 2**31 - 1])
@pytest.mark.parametrize("mean", [MEAN, jax.jit(MEAN)], ids=["op by op", "compiled"])
def test_a_label_that_is_no_class_is_nan_and_harms_no_mean_that_leaves_it_out(label, mean):
    """Op by op and compiled. The gradient is that of the other example alone."""
    logits, labels = np.array([[0.3, -1, 2], [1, 0.5, 0.1]], np.float32), np.array([label, 1], np.int32)
    (value, values), gradient = mean(logits, labels, np.array([0, 1], np.float32))
    alone, slope = both(losses.cross_entropy, logits[1:], labels[1:], classes=np.array([True, True, False]))
    assert np.isnan(values).tolist() == [True, False]
    close(value, alone[0])
    close(gradient, np.concatenate([np.zeros([1, 3]), slope]))
    assert np.isnan(mean(logits, labels, np.ones(2, np.float32))[0][0]), "with its weight it shows"


def test_labels_of_other_widths_are_compared_before_they_are_cast():
    logits = np.array([[1, 0, 2], [1, 0, 2]], np.float32)
    right = losses.cross_entropy(logits, np.array([2, 2]))
    for dtype in (np.int8, np.uint8, np.int64, np.uint64):
        close(losses.cross_entropy(logits, np.array([2, 2], dtype)), right)
    for wrong in (np.array([2**32 + 2] * 2), np.array([2**63] * 2, np.uint64), jnp.array([2**32 - 1] * 2, jnp.uint32)):
        assert np.isnan(losses.cross_entropy(logits, wrong)).all()


def test_multi_label_targets_outside_0_to_1_are_nan_where_they_count():
    logits, classes = np.zeros([3, 2], np.float32), np.array([True, False])
    labels = np.array([[1, np.nan], [-1, 0], [1.5, 0]], np.float32)
    for single in (None, jnp.array(True)):
        loss = functools.partial(losses.cross_entropy, labels=labels, classes=classes, single_label=single)
        first = lambda logits, loss=loss: (loss(logits)[0], loss(logits))
        gradient, values = jax.jit(jax.grad(first, has_aux=True))(logits)
        assert np.isnan(values).tolist() == [False, True, True]
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize("single", [None, True])
def test_a_multi_label_target_that_is_none_harms_no_gradient_of_a_mean_that_leaves_it_out(single):
    loss = functools.partial(losses.cross_entropy, single_label=single)
    mean = lambda logits, labels: losses.weighted_mean(loss(logits, labels), np.array([0, 1], np.float32))
    slope = jax.jit(jax.grad(mean))
    logits = np.array([[0.3, -1], [1, 0.5]], np.float32)
    for bad in (np.nan, np.inf, -1):
        labels = np.array([[bad, 1], [0, 1]], np.float32)
        _, alone = both(loss, logits[1:], labels[1:])
        close(slope(logits, labels), np.concatenate([np.zeros([1, 2]), alone]))


def test_multi_label_targets_may_be_outside_0_to_1_by_rounding_and_no_more():
    targets = np.array([[1.0005], [-0.0005], [1.002], [-0.002]], np.float32)
    values, _ = both(losses.cross_entropy, np.zeros([4, 1], np.float32), targets)
    assert np.isnan(values).tolist() == [False, False, True, True]


@pytest.mark.parametrize("loss", [losses.distillation, losses.sigmoid_distillation])
def test_temperatures_that_are_none_are_refused_or_nan(loss):
    for wrong in (0, -1.0, float("nan"), float("inf"), "2", jnp.float32(0)):
        with pytest.raises(ValueError, match=r"temperature is .*, but must be a finite number above 0"):
            loss(STUDENT, TEACHER, temperature=wrong)
    traced = jax.jit(lambda temperature: loss(STUDENT, TEACHER, temperature=temperature))
    assert np.isnan([traced(-1.0), traced(0.0)]).all()
    assert np.isfinite(traced(2.0)).all()


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="labels has shape"):
        losses.cross_entropy(np.ones([2, 3]), np.ones([2, 2]))
    with pytest.raises(ValueError, match="labels has shape"):
        losses.cross_entropy(np.ones([2, 3]), np.array([0]))
    with pytest.raises(ValueError, match="classes has shape"):
        losses.cross_entropy(np.ones([2, 3]), np.array([0, 1]), classes=np.ones([1], bool))
    with pytest.raises(ValueError, match="classes is int32, but must be bool"):
        losses.mask_logits(np.ones([2, 3]), np.array([1, 1, 0], np.int32))
    with pytest.raises(ValueError, match="teacher_features has shape"):
        losses.feature_distillation(np.ones([2, 3]), np.ones([1, 3]))
    for loss in (losses.distillation, losses.sigmoid_distillation):
        for student, teacher in (([2, 3], [2, 2]), ([2, 3], [1, 3]), ([2, 2, 3], [2, 2, 3])):
            with pytest.raises(ValueError, match="logits has shape"):
                loss(np.ones(student), np.ones(teacher), temperature=2.0)
    for loss in (losses.l1_response, losses.l2_response):
        for student, teacher in (([2, 3], [1, 3]), ([2, 2, 3], [2, 2, 3])):
            with pytest.raises(ValueError, match="logits has shape"):
                loss(np.ones(student), np.ones(teacher))
    with pytest.raises(ValueError, match="teacher_map has shape"):
        losses.attention_distillation(np.ones([2, 3]), np.ones([2, 2]))


def test_attention_distillation_by_hand():
    maps, teacher = np.array([[[1, 2, 2]], [[2, 1, 2]]], np.float32)
    close(both(losses.attention_distillation, maps, teacher)[0], [2 / 3])
    maps = np.array([[[1, 2], [2, 0]], [[3, 0], [0, 4]]], np.float32)
    values, _ = both(losses.attention_distillation, maps, maps[::-1])
    close(values, [1 / 15 * abs(5 - 9) + 2 / 3 * 2 + 0.8] * 2)
    values, gradient = both(losses.attention_distillation, maps, maps)
    close(values, [0, 0])
    np.testing.assert_array_equal(gradient, 0)  # at the least value nothing pulls


def test_attention_gradient_by_hand():
    """Of |q/|q| - (1, 0)| at (3, 4): signs (-1, +1) through the projection (I - uu')/5."""
    _, gradient = both(losses.attention_distillation, np.array([[3, 4]], np.float32), np.array([[1, 0]], np.float32))
    unit = np.array([0.6, 0.8])
    close(gradient[0], (np.eye(2) - np.outer(unit, unit)) @ np.array([-1, 1]) / 5)


def test_attention_by_squares_by_hand():
    maps, teacher = np.array([[[1, 2, 2]], [[4, 2, 4]]], np.float32)
    distance = functools.partial(losses.attention_distillation, distance="l2")
    value, gradient = both(distance, maps, teacher)
    close(value, [2 / 9])
    unit, other = np.array([1, 2, 2]) / 3, np.array([2, 1, 2]) / 3
    close(gradient[0], (np.eye(3) - np.outer(unit, unit)) @ (2 * (unit - other)) / 3)
    close(both(distance, teacher, teacher)[0], [0])
    with pytest.raises(ValueError, match="distance is 'L2', but must be one of l1, l2"):
        losses.attention_distillation(maps, teacher, distance="L2")


def compared(loss, rows):
    """What an L1 loss takes the difference of."""
    return jax.nn.softmax(rows) if loss is losses.l1_response else rows / jnp.linalg.norm(rows, axis=-1, keepdims=True)


@pytest.mark.parametrize("loss", [losses.l1_response, losses.attention_distillation])
def test_an_l1_loss_pulls_nothing_where_all_that_differs_is_rounding_and_wholly_elsewhere(loss):
    """Compiled and batched, where the student's and the teacher's programs round differently."""
    draw = np.random.default_rng(0)
    signs = lambda: draw.choice([-1, 1], (2, 64, 10)) * draw.uniform(0.5, 1, (2, 64, 10))
    teacher = draw.uniform(0.5, 2, (2, 64, 10)).astype(np.float32)
    move = lambda size: (teacher * (1 + size * signs())).astype(np.float32)
    of = lambda loss: jax.jit(jax.vmap(jax.value_and_grad(lambda q, p: loss(q, p).sum())))
    rows = jax.jit(functools.partial(compared, loss))
    difference = lambda student, teacher: np.abs(np.asarray(rows(student)) - np.asarray(rows(teacher)))
    found, plain = of(loss), of(lambda q, p: jnp.abs(compared(loss, q) - compared(loss, p)))
    for student in (teacher, move(3e-7)):
        for nothing in found(student, teacher):
            np.testing.assert_array_equal(nothing, 0)
    for size in (1e-4, 1e-2, 1.0):
        student = move(size)
        largest = np.max(rows(teacher), axis=-1)
        apart = difference(student, teacher).min(axis=-1) > 1e-5 * largest
        assert apart.mean() > 0.1
        ours, expected = (np.asarray(each(student, teacher)[1])[apart] for each in (found, plain))
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-6)
    halves = np.log(np.array([[[0.2, 0.3, 0.5]], [[0.4, 0.4, 0.2]]], jnp.bfloat16))
    half = np.asarray(loss(*halves), np.float32)
    np.testing.assert_allclose(half, 0.6 if loss is losses.l1_response else 0.89, rtol=0.05)
    with jax.enable_x64(True):  # the zone is one of float64 then
        wide = teacher.astype(np.float64)
        student = wide * (1 + 1e-10 * signs())
        apart = difference(student, wide).min(axis=-1) > 1e-13
        ours, expected = (np.asarray(each(student, wide)[1])[apart] for each in (found, plain))
        np.testing.assert_allclose(ours, expected, rtol=1e-8, atol=1e-10)


def test_what_counts_as_rounding_is_measured_by_the_larger_number_of_both_rows():
    """Unit rows, one at a single place and below 0, one spread out: at place 1 they differ by 1e-6, nothing."""
    spread, single = np.full(10_000, 0.01, np.float32), np.zeros(10_000, np.float32)
    spread[1], single[:2] = 0.010001, (-1, 0.01)
    for student, teacher, slope in ((single, spread, -0.01), (spread, single, -1.0)):  # by (I - uu') sign(u - u')
        _, gradient = both(losses.attention_distillation, student[None], teacher[None])
        np.testing.assert_allclose(gradient[0, 1], slope, atol=0.02)


def test_zero_maps_give_zero_and_no_nan():
    dead, alive = np.zeros([1, 2, 2], np.float32), np.ones([1, 2, 2], np.float32)
    for student, teacher in ((dead, alive), (alive, dead), (dead, dead)):
        value, gradient = both(losses.attention_distillation, student, teacher)
        assert value == 0
        np.testing.assert_array_equal(gradient, 0)


@given(st.floats(-15, 15))
@settings(max_examples=20, deadline=None)
def test_attention_ignores_scale(exponent):
    maps, other = np.array([[[1, 2, 2, 0]], [[2, 1, 2, 1]]], np.float32)
    scaled, _ = both(losses.attention_distillation, maps * 10.0**exponent, other * 10.0**-exponent)
    close(scaled, both(losses.attention_distillation, maps, other)[0], 1e-5)


def test_feature_distillation_has_no_half():
    features = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
    values, gradient = both(losses.feature_distillation, features, np.zeros_like(features))
    close(values, [55.0, 451.0])
    close(gradient, 2 * features)


def test_quadratic_penalty_by_hand():
    params = {"a": np.array([1, 2], np.float32), "b": np.array([[3]], np.float32)}
    anchor = {"a": np.array([0, 4], np.float32), "b": np.array([[1]], np.float32)}
    importance = {"a": np.array([10, 0.5], np.float32), "b": np.float32(0.25)}
    close(jax.jit(losses.quadratic_penalty)(params, anchor), 1 + 4 + 4)
    value, gradient = jax.jit(jax.value_and_grad(losses.quadratic_penalty))(params, anchor, importance)
    close(value, 10 + 2 + 1)
    close(gradient["a"], [20.0, -2.0])
    close(gradient["b"], [[1.0]])
    assert losses.quadratic_penalty({}, {}) == 0
    with pytest.raises(ValueError, match="anchor has the leaves a, but params has a, b"):
        losses.quadratic_penalty(params, {"a": params["a"]})
    with pytest.raises(ValueError, match="weight has the leaves a"):
        losses.quadratic_penalty(params, anchor, {"a": np.float32(1)})


def test_the_anchor_is_data_under_jit():
    """A compiled penalty must not keep the anchor that it was first called with."""
    penalty = jax.jit(losses.quadratic_penalty)
    one = lambda number: {"w": np.array([number], np.float32)}
    assert [float(penalty(one(3), one(anchor))) for anchor in (0, 1, 3)] == [9.0, 4.0, 0.0]


def test_l1_sparsity_by_hand():
    params = {"kernel": np.array([1, -2, 0], np.float32), "bias": np.array([5], np.float32)}
    close(jax.jit(losses.l1_sparsity)(params), 8)
    weights = {"kernel": np.array([1, 0.5, 1], np.float32), "bias": np.float32(0)}
    value, gradient = jax.jit(jax.value_and_grad(losses.l1_sparsity))(params, weights)
    close(value, 2)
    close(gradient["kernel"], [1.0, -0.5, 0.0])
    close(gradient["bias"], [0.0])


def test_a_mean_over_examples_takes_no_values_of_all_tasks():
    with pytest.raises(ValueError, match=r"values has shape \(5, 3\), but must be \[3\]"):
        losses.weighted_mean(np.ones((5, 3), np.float32), np.ones(3, np.float32))


def test_arrays_of_numpy_are_taken_as_they_are():
    logits, labels = np.array([[0.0, 2.0], [1.0, 1.0]], np.float32), np.array([1, 0])
    for name, arrays in (
        ("cross_entropy", (logits, labels)),
        ("l1_response", (logits, -logits)),
        ("feature_distillation", (logits, -logits)),
        ("weighted_mean", (logits[0], logits[0])),
    ):
        loss = getattr(losses, name)
        assert np.asarray(loss(*arrays)).tobytes() == np.asarray(loss(*map(jnp.asarray, arrays))).tobytes()
        assert isinstance(loss(*arrays), jax.Array)


@pytest.mark.parametrize("size", [1.0, 30.0, 300.0])
def test_an_l1_response_pulls_no_student_that_is_its_teacher_however_large_the_logits_are(size):
    """The teacher's program is another, of fewer examples at a time: a logit is rounded by a part of the logits."""
    draw = np.random.default_rng(0)
    first, last = (draw.normal(size=shape).astype(np.float32) for shape in ((784, 512), (512, 10)))
    inputs = draw.uniform(size=(128, 784)).astype(np.float32)
    logits = jax.jit(lambda w, x: size * (jax.nn.relu(x @ first / 28) @ w / 22))
    teacher = jnp.concatenate([logits(last, part) for part in np.split(inputs, 8)])
    assert np.abs(teacher).max() > size
    measure = jax.jit(jax.value_and_grad(lambda w, t: losses.l1_response(logits(w, inputs), t).sum()))
    for nothing in measure(last, teacher):
        np.testing.assert_array_equal(nothing, 0)
    assert np.abs(measure(last, teacher[::-1])[1]).max() > 0


def test_a_mean_of_what_is_right_or_wrong_is_a_share():
    assert losses.weighted_mean(np.array([True, False, False]), np.ones(3, np.float32)) == np.float32(1 / 3)
    assert losses.weighted_mean(np.array([1, 0, 1]), np.full(3, 0.5, np.float32)) == np.float32(2 / 3)
    assert losses.weighted_mean(np.ones(3, np.float32), np.full(3, 6e4, np.float16)) == 1
    assert np.isnan(losses.weighted_mean(np.ones(2, np.float32), np.zeros(2, np.float32)))


def test_what_has_no_floating_point_logits_is_refused():
    whole = np.array([[1, 2, 3]], np.int32)
    for loss in PAIRED:
        with pytest.raises(ValueError, match="logits is int32, but must be floating point"):
            loss(whole, whole.astype(np.float32))
    with pytest.raises(ValueError, match="features is int32"):
        losses.feature_distillation(whole, whole)
    with pytest.raises(ValueError, match="map is int32"):
        losses.attention_distillation(whole, whole)
    with pytest.raises(ValueError, match=r"labels has shape \(1, 3\), .* one-hot ones as floating point"):
        losses.cross_entropy(whole.astype(np.float32), np.array([[0, 0, 1]]))
    with pytest.raises(ValueError, match=r"labels has shape \(1,\), .* a class each as int"):
        losses.cross_entropy(whole.astype(np.float32), np.ones(1, np.float32))


def test_a_single_label_outside_the_classes_is_nan_in_either_form():
    logits, classes = np.array([[1.0, 2.0, 3.0]] * 3, np.float32), np.array([True, True, False])
    labels = np.array([[0, 0, 1], [0, 0, 0], [0, 1, 0]], np.float32)
    found = losses.cross_entropy(logits, labels, classes=classes, single_label=True)
    by_number = losses.cross_entropy(logits, np.array([2, -1, 1]), classes=classes)
    np.testing.assert_array_equal(np.isnan(found), [True, True, False])
    np.testing.assert_allclose(found, by_number, rtol=1e-6)


def test_a_peak_hides_no_difference_elsewhere():
    """Of half precision, and of many classes: what is small beside the largest number is not rounding for that."""
    teacher = np.full((1, 14, 14), 0.02)
    student = np.where(np.random.default_rng(0).uniform(size=teacher.shape) < 0.5, 0.01, 0.03)
    teacher[0, 3, 3] = student[0, 3, 3] = 1
    exact = losses.attention_distillation(student.astype(np.float32), teacher.astype(np.float32))
    half = losses.attention_distillation(*(jnp.asarray(maps, jnp.bfloat16) for maps in (student, teacher)))
    np.testing.assert_allclose(np.asarray(half, np.float32), exact, rtol=0.02)
    for count, dtype in ((1000, jnp.bfloat16), (1000, jnp.float16), (100_000, jnp.float32)):
        other = np.full((1, count), 0.5 / (count - 1))
        other[0, 0] = 0.5
        own = other.copy()
        own[0, 1:] *= np.where(np.arange(count - 1) % 2, 1.5, 0.5)
        value = losses.l1_response(*(jnp.asarray(np.log(row), dtype) for row in (own, other)))
        np.testing.assert_allclose(np.asarray(value, np.float32), 0.25, rtol=0.05)


def test_sums_of_half_precision_are_whole():
    """Penalties of many leaves too, in which a sum of bfloat16 stands still."""
    many = {str(number): jnp.ones(1, jnp.bfloat16) for number in range(600)}
    assert losses.l1_sparsity(many) == losses.quadratic_penalty(many, jax.tree.map(jnp.zeros_like, many)) == 600
    assert losses.l1_sparsity({"w": jnp.ones(70_000, jnp.float16)}) == 70_000
    far, zero = jnp.full(1, 512, jnp.float16), jnp.zeros(1, jnp.float16)
    assert losses.quadratic_penalty(far, zero, far) == 512**3
    assert losses.quadratic_penalty(far * 100, far * -100) == 102_400.0**2


def test_means_of_half_precision_are_whole():
    """By hand: 3, of however many; and maps of 300 x 300, whose squares add up to more than float16 can hold."""
    for dtype in (jnp.float16, jnp.bfloat16):
        for count in (301, 40_000):
            found = losses.weighted_mean(np.full(count, 3, dtype), np.ones(count, np.float32))
            assert (found.dtype, float(found)) == (dtype, 3.0)
        maps = np.ones([1, 300, 300], dtype)
        halved = maps.copy()
        halved[:, 150:] = 0  # 1 / 300 everywhere against sqrt(2) / 300 on one half
        found = np.asarray(losses.attention_distillation(maps, halved), np.float32)
        np.testing.assert_allclose(found, [300 / 2 + 300 / 2 * (np.sqrt(2) - 1)], rtol=0.01)


def test_what_fits_no_parameter_or_is_no_number_is_named_or_shown():
    params = {"w": np.ones([4, 3], np.float32)}
    with pytest.raises(
        ValueError, match=r"The weight of 'w' has the shape \(5,\), which does not broadcast to the param"
    ):
        losses.quadratic_penalty(params, params, {"w": np.ones(5, np.float32)})
    with pytest.raises(ValueError, match="logits is int32, but must be floating point"):
        losses.cross_entropy(np.ones([2, 3], np.int32), np.array([0, 1]))
    ones, maps = np.ones([2, 3], np.float32), np.array([[1, np.nan, 1], [1, 1, 1]], np.float32)
    for student, teacher in ((maps, ones), (ones, maps)):  # a diverged student is no equal one
        np.testing.assert_array_equal(both(losses.attention_distillation, student, teacher)[0], [np.nan, 0])
