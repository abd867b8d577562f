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

TEACHER = jnp.array([[2.0, 1.0, 0.0], [0.0, 1.0, 3.0]])
STUDENT = jnp.array([[1.0, 1.0, 1.0], [0.0, 2.0, 1.0]])
PAIRED = [
    lambda logits, teacher, **options: losses.distillation(logits, teacher, temperature=2.0, **options),
    losses.sigmoid_distillation,
    losses.l1_response,
    losses.l2_response,
]


def close(value, expected, tolerance=2e-6):
    np.testing.assert_allclose(value, expected, rtol=tolerance, atol=tolerance)


def mean_of(loss):
    return lambda *arguments: jnp.mean(loss(*arguments))


@pytest.mark.parametrize(
    ("temperature", "value", "slope"),
    [(1.0, 1.217017, -0.165954), (2.0, 1.116696, -0.043287), (4.0, 1.100908, -0.010737)],
)
def test_distillation_against_reference_values(temperature, value, slope):
    def loss(logits):
        return jnp.mean(losses.distillation(logits, TEACHER, temperature=temperature))

    close(loss(STUDENT), value)
    close(jax.grad(loss)(STUDENT)[0, 0], slope)
    change = jax.nn.softmax(STUDENT / temperature) - jax.nn.softmax(TEACHER / temperature)
    close(jax.grad(loss)(STUDENT), change / temperature / 2)  # no squared temperature, mean of two


def test_distillation_is_least_at_the_teacher():
    entropy = jnp.mean(losses.distillation(TEACHER, TEACHER, temperature=2.0))
    close(entropy, 0.963075)
    close(jnp.mean(losses.distillation(STUDENT, TEACHER, temperature=2.0)) - entropy, 0.153621)
    close(jax.grad(lambda logits: losses.distillation(logits, TEACHER, temperature=2.0).sum())(TEACHER), 0)


def test_distillation_takes_logarithms_of_probabilities():
    logs = jax.nn.log_softmax(TEACHER)
    close(losses.distillation(STUDENT, logs, temperature=2.0), losses.distillation(STUDENT, TEACHER, temperature=2.0))


def test_sigmoid_distillation_against_reference_values():
    value = losses.sigmoid_distillation(STUDENT, TEACHER)
    assert value.shape == (2,)
    close(jnp.mean(value), 1.773288)
    close(jnp.mean(value) / 3, 0.591096)
    gradient = jax.grad(lambda logits: losses.sigmoid_distillation(logits, TEACHER, temperature=2.0).sum())(STUDENT)
    close(gradient, (jax.nn.sigmoid(STUDENT / 2) - jax.nn.sigmoid(TEACHER / 2)) / 2)


def test_sigmoid_distillation_pulls_a_confident_student_down():
    gradient = jax.grad(lambda logit: losses.sigmoid_distillation(logit, jnp.zeros([1, 1])).sum())(
        jnp.full([1, 1], 50.0)
    )
    close(gradient, 0.5)


def test_responses_by_hand():
    teacher, student = jnp.log(jnp.array([[0.2, 0.3, 0.5]])), jnp.log(jnp.array([[0.4, 0.4, 0.2]]))
    close(losses.l1_response(student, teacher), [0.6])
    close(losses.l2_response(student, teacher), [0.5 * (0.04 + 0.01 + 0.09)])


@pytest.mark.parametrize("loss", [*PAIRED, losses.attention_distillation, losses.feature_distillation])
def test_nothing_flows_into_teachers_and_something_into_students(loss):
    student, teacher = jax.grad(lambda a, b: loss(a, b).sum(), argnums=(0, 1))(STUDENT, TEACHER)
    np.testing.assert_array_equal(teacher, 0)
    assert np.abs(student).max() > 1e-3


@pytest.mark.parametrize("loss", PAIRED)
@pytest.mark.parametrize("bad", [0.0, 1e30, np.inf, -np.inf, np.nan])
def test_masked_classes_have_no_part(loss, bad):
    classes = jnp.array([True, True, False, True])
    pad = jnp.full([2, 1], bad)
    student, teacher = (jnp.concatenate([x[:, :2], pad, x[:, 2:]], axis=1) for x in (STUDENT, TEACHER))
    close(loss(student, teacher, classes=classes), loss(STUDENT, TEACHER))
    gradient = jax.grad(lambda logits: loss(logits, teacher, classes=classes).sum())(student)
    np.testing.assert_array_equal(gradient[:, 2], 0)
    close(gradient[:, [0, 1, 3]], jax.grad(lambda logits: loss(logits, TEACHER).sum())(STUDENT))


@pytest.mark.parametrize("labels", [jnp.array([1, 0]), jnp.array([[1.0, 0.0, np.nan], [0.25, 1.0, 0.0]])])
@pytest.mark.parametrize("bad", [0.0, 1e30, np.inf, -np.inf, np.nan])
def test_cross_entropy_leaves_masked_classes_out(labels, bad):
    classes = jnp.array([[True, True, False], [True, True, True]])
    logits = jnp.array([[1.0, 2.0, bad], [0.5, -1.0, 2.0]])

    def loss(logits):
        return losses.cross_entropy(logits, labels, classes=classes)

    first = labels[:1] if labels.ndim == 1 else labels[:1, :2]
    last = labels[1:]
    expected = [losses.cross_entropy(logits[:1, :2], first)[0], losses.cross_entropy(logits[1:], last)[0]]
    close(loss(logits), np.array(expected))
    gradient = jax.grad(lambda logits: loss(logits).sum())(logits)
    assert gradient[0, 2] == 0
    chex.assert_tree_all_finite(gradient)
    chex.assert_trees_all_close(jax.jit(loss)(logits), loss(logits), rtol=1e-6)


def test_cross_entropy_by_hand():
    logits = jnp.log(jnp.array([[0.2, 0.3, 0.5], [0.1, 0.1, 0.8]]))
    close(losses.cross_entropy(logits, jnp.array([2, 0])), -np.log([0.5, 0.1]))
    close(losses.cross_entropy(logits, jnp.array([2, 0], jnp.uint8)), -np.log([0.5, 0.1]))
    close(
        losses.cross_entropy(logits, jnp.array([1, 0]), classes=jnp.array([True, True, False])),
        -np.log([0.6, 0.5]),
    )
    gradient = jax.grad(lambda x: losses.cross_entropy(x, jnp.array([2, 0])).sum())(logits)
    close(gradient, [[0.2, 0.3, -0.5], [-0.9, 0.1, 0.8]])


def test_multi_label_by_hand_and_far_out():
    half = losses.cross_entropy(jnp.zeros([1, 3]), jnp.array([[1.0, 0.0, 0.5]]))
    close(half, [3 * np.log(2)])
    logits = jnp.array([[100.0, -100.0, 100.0, -100.0]])
    labels = jnp.array([[1.0, 0.0, 0.0, 1.0]])
    close(losses.cross_entropy(logits, labels), [200.0])
    gradient = jax.grad(lambda x: losses.cross_entropy(x, labels).sum())(logits)
    close(gradient, [[0.0, 0.0, 1.0, -1.0]])


def test_mask_logits():
    masked = losses.mask_logits(jnp.ones([2, 3], jnp.bfloat16), jnp.array([[True, False, True], [False, True, False]]))
    assert masked.dtype == jnp.bfloat16
    np.testing.assert_array_equal(jax.nn.softmax(masked.astype(jnp.float32)), [[0.5, 0, 0.5], [0, 1, 0]])
    assert jnp.argmax(losses.mask_logits(jnp.array([-5.0, 1.0]), jnp.array([True, False]))) == 0


def test_mask_logits_masks_however_small_the_valid_ones_are():
    masked = losses.mask_logits(jnp.array([-2e4, -2e4, 5.0]), jnp.array([True, True, False]))
    assert jax.nn.softmax(masked).tolist() == [0.5, 0.5, 0.0]
    assert jnp.argmax(losses.mask_logits(jnp.array([9.0, -1e30]), jnp.array([False, True]))) == 1


@pytest.mark.parametrize("label", [-1, 3, 2, -(2**31), 2**31 - 1])
@pytest.mark.parametrize("jitted", [False, True])
def test_a_label_that_is_no_class_is_nan_and_harms_no_mean_that_leaves_it_out(label, jitted):
    """Of three classes the last one does not exist. The gradient is that of the other example alone."""
    logits, classes = jnp.array([[0.3, -1.0, 2.0], [1.0, 0.5, 0.1]]), jnp.array([True, True, False])
    labels, weights = jnp.array([label, 1], jnp.int32), jnp.array([0.0, 1.0])

    def loss(logits, weights):
        values = losses.cross_entropy(logits, labels, classes=classes)
        return losses.weighted_mean(values, weights), values

    go = jax.value_and_grad(loss, has_aux=True)
    (value, values), gradient = (jax.jit(go) if jitted else go)(logits, weights)
    alone, slope = jax.value_and_grad(lambda logits: losses.cross_entropy(logits, labels[1:], classes=classes)[0])(
        logits[1:]
    )
    assert np.isnan(values).tolist() == [True, False]
    close(value, alone)
    close(gradient, jnp.concatenate([jnp.zeros([1, 3]), slope]))
    assert np.isnan(loss(logits, jnp.ones(2))[0]), "with its weight it shows"


def test_labels_of_other_widths_are_compared_before_they_are_cast():
    logits = jnp.array([[1.0, 0.0, 2.0]])
    right = losses.cross_entropy(logits, jnp.array([2]))
    for dtype in (np.int8, np.uint8, np.int64, np.uint64):
        close(losses.cross_entropy(logits, np.array([2], dtype)), right)
    for wrong in (np.array([2**32 + 2]), np.array([2**63], np.uint64), jnp.array([2**32 - 1], jnp.uint32)):
        assert np.isnan(losses.cross_entropy(logits, wrong))


def test_multi_label_targets_outside_0_to_1_are_nan_where_they_count():
    logits, classes = jnp.zeros([3, 2]), jnp.array([True, False])
    labels = jnp.array([[1.0, jnp.nan], [-1.0, 0.0], [1.5, 0.0]])
    for single in (None, jnp.array(True)):
        loss = functools.partial(losses.cross_entropy, labels=labels, classes=classes, single_label=single)
        assert np.isnan(loss(logits)).tolist() == [False, True, True]
        assert np.isfinite(jax.grad(lambda logits, loss=loss: loss(logits)[0])(logits)).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0])
@pytest.mark.parametrize("single", [None, True])
def test_a_multi_label_target_that_is_none_harms_no_gradient_of_a_mean_that_leaves_it_out(bad, single):
    logits, labels = jnp.array([[0.3, -1.0], [1.0, 0.5]]), jnp.array([[bad, 1.0], [0.0, 1.0]])
    loss = lambda logits, labels: losses.cross_entropy(logits, labels, single_label=single)
    mean = lambda logits: losses.weighted_mean(loss(logits, labels), jnp.array([0.0, 1.0]))
    alone = jax.grad(lambda logits: loss(logits, labels[1:])[0])(logits[1:])
    close(jax.grad(mean)(logits), jnp.concatenate([jnp.zeros([1, 2]), alone]))


def test_multi_label_targets_may_be_outside_0_to_1_by_rounding_and_no_more():
    targets = jnp.array([[1.0005], [-0.0005], [1.002], [-0.002]])
    assert np.isnan(losses.cross_entropy(jnp.zeros([4, 1]), targets)).tolist() == [False, False, True, True]


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
        losses.cross_entropy(jnp.ones([2, 3]), jnp.ones([2, 2]))
    with pytest.raises(ValueError, match="labels has shape"):
        losses.cross_entropy(jnp.ones([2, 3]), jnp.array([0]))
    with pytest.raises(ValueError, match="classes has shape"):
        losses.cross_entropy(jnp.ones([2, 3]), jnp.array([0, 1]), classes=jnp.ones([1], bool))
    with pytest.raises(ValueError, match="classes is int32, but must be bool"):
        losses.mask_logits(jnp.ones([2, 3]), jnp.array([1, 1, 0]))
    with pytest.raises(ValueError, match="teacher_features has shape"):
        losses.feature_distillation(jnp.ones([2, 3]), jnp.ones([1, 3]))
    for loss in (losses.distillation, losses.sigmoid_distillation):
        for student, teacher in (([2, 3], [2, 2]), ([2, 3], [1, 3]), ([2, 2, 3], [2, 2, 3])):
            with pytest.raises(ValueError, match="logits has shape"):
                loss(jnp.ones(student), jnp.ones(teacher), temperature=2.0)
    for loss in (losses.l1_response, losses.l2_response):
        for student, teacher in (([2, 3], [1, 3]), ([2, 2, 3], [2, 2, 3])):
            with pytest.raises(ValueError, match="logits has shape"):
                loss(jnp.ones(student), jnp.ones(teacher))
    with pytest.raises(ValueError, match="teacher_map has shape"):
        losses.attention_distillation(jnp.ones([2, 3]), jnp.ones([2, 2]))


def test_attention_distillation_by_hand():
    close(losses.attention_distillation(jnp.array([[1.0, 2.0, 2.0]]), jnp.array([[2.0, 1.0, 2.0]])), [2 / 3])
    maps = jnp.array([[[1.0, 2.0], [2.0, 0.0]], [[3.0, 0.0], [0.0, 4.0]]])
    close(losses.attention_distillation(maps, maps[::-1]), [1 / 15 * abs(5 - 9) + 2 / 3 * 2 + 0.8] * 2)
    close(losses.attention_distillation(maps, maps), [0, 0])
    gradient = jax.grad(lambda q: losses.attention_distillation(q, maps).sum())(maps)
    np.testing.assert_array_equal(gradient, 0)  # at the least value nothing pulls


def test_attention_gradient_by_hand():
    """Of |q/|q| - (1, 0)| at (3, 4): signs (-1, +1) through the projection (I - uu')/5."""
    gradient = jax.grad(lambda q: losses.attention_distillation(q, jnp.array([[1.0, 0.0]])).sum())
    unit = np.array([0.6, 0.8])
    close(gradient(jnp.array([[3.0, 4.0]]))[0], (np.eye(2) - np.outer(unit, unit)) @ np.array([-1, 1]) / 5)


def test_attention_by_squares_by_hand():
    maps, teacher = jnp.array([[1.0, 2.0, 2.0]]), jnp.array([[4.0, 2.0, 4.0]])
    distance = lambda q: losses.attention_distillation(q, teacher, distance="l2").sum()
    close(distance(maps), 2 / 9)
    unit, other = np.array([1, 2, 2]) / 3, np.array([2, 1, 2]) / 3
    close(jax.grad(distance)(maps)[0], (np.eye(3) - np.outer(unit, unit)) @ (2 * (unit - other)) / 3)
    close(distance(teacher), 0)
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
    teacher = jnp.asarray(draw.uniform(0.5, 2, (2, 64, 10)), jnp.float32)
    move = lambda size: jnp.asarray(np.asarray(teacher) * (1 + size * signs()), jnp.float32)
    of = lambda loss: jax.vmap(jax.value_and_grad(lambda q, p: loss(q, p).sum()))
    found, plain = jax.jit(of(loss)), of(lambda q, p: jnp.abs(compared(loss, q) - compared(loss, p)))
    for student in (teacher, move(3e-7)):
        for nothing in found(student, teacher):
            np.testing.assert_array_equal(nothing, 0)
    for size in (1e-4, 1e-2, 1.0):
        student = move(size)
        largest = compared(loss, teacher).max(axis=-1)
        apart = np.abs(compared(loss, student) - compared(loss, teacher)).min(axis=-1) > 1e-5 * largest
        assert apart.mean() > 0.1
        ours, expected = (np.asarray(each(student, teacher)[1])[apart] for each in (found, plain))
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-6)
    halves = jnp.log(jnp.array([[[0.2, 0.3, 0.5]], [[0.4, 0.4, 0.2]]], jnp.bfloat16))
    np.testing.assert_allclose(
        loss(*halves).astype(jnp.float32), 0.6 if loss is losses.l1_response else 0.89, rtol=0.05
    )
    with jax.enable_x64(True):  # the zone is one of float64 then
        wide = jnp.asarray(np.asarray(teacher, np.float64))
        student = wide * (1 + 1e-10 * signs())
        apart = np.abs(compared(loss, student) - compared(loss, wide)).min(axis=-1) > 1e-13
        ours, expected = (np.asarray(each(student, wide)[1])[apart] for each in (of(loss), plain))
        np.testing.assert_allclose(ours, expected, rtol=1e-8, atol=1e-10)


def test_what_counts_as_rounding_is_measured_by_the_larger_number_of_both_rows():
    """Unit rows, one at a single place and below 0, one spread out: at place 1 they differ by 1e-6, nothing."""
    spread, single = np.full(10_000, 0.01, np.float32), np.zeros(10_000, np.float32)
    spread[1], single[:2] = 0.010001, (-1, 0.01)
    for student, teacher, slope in ((single, spread, -0.01), (spread, single, -1.0)):  # by (I - uu') sign(u - u')
        distance = lambda q, teacher=teacher: losses.attention_distillation(q[None], jnp.asarray(teacher)[None]).sum()
        np.testing.assert_allclose(jax.grad(distance)(jnp.asarray(student))[1], slope, atol=0.02)


def test_zero_maps_give_zero_and_no_nan():
    dead, alive = jnp.zeros([1, 2, 2]), jnp.ones([1, 2, 2])
    for student, teacher in ((dead, alive), (alive, dead), (dead, dead)):
        value, gradient = jax.value_and_grad(lambda q, t: losses.attention_distillation(q, t).sum())(student, teacher)
        assert value == 0
        np.testing.assert_array_equal(gradient, 0)


@given(st.floats(-15, 15))
@settings(max_examples=20, deadline=None)
def test_attention_ignores_scale(exponent):
    maps = jnp.array([[1.0, 2.0, 2.0, 0.0]])
    other = jnp.array([[2.0, 1.0, 2.0, 1.0]])
    scaled = losses.attention_distillation(maps * 10.0**exponent, other * 10.0**-exponent)
    close(scaled, losses.attention_distillation(maps, other), 1e-5)


def test_feature_distillation_has_no_half():
    features = jnp.arange(12.0).reshape(2, 2, 3)
    close(losses.feature_distillation(features, jnp.zeros_like(features)), [55.0, 451.0])
    gradient = jax.grad(lambda f: losses.feature_distillation(f, jnp.zeros_like(f)).sum())(features)
    close(gradient, 2 * features)


def test_quadratic_penalty_by_hand():
    params = {"a": jnp.array([1.0, 2.0]), "b": jnp.array([[3.0]])}
    anchor = {"a": jnp.array([0.0, 4.0]), "b": jnp.array([[1.0]])}
    importance = {"a": jnp.array([10.0, 0.5]), "b": jnp.float32(0.25)}
    close(losses.quadratic_penalty(params, anchor), 1 + 4 + 4)
    close(losses.quadratic_penalty(params, anchor, importance), 10 + 2 + 1)
    gradient = jax.grad(losses.quadratic_penalty)(params, anchor, importance)
    close(gradient["a"], [20.0, -2.0])
    close(gradient["b"], [[1.0]])
    assert losses.quadratic_penalty({}, {}) == 0
    with pytest.raises(ValueError, match="anchor has the leaves a, but params has a, b"):
        losses.quadratic_penalty(params, {"a": params["a"]})
    with pytest.raises(ValueError, match="weight has the leaves a"):
        losses.quadratic_penalty(params, anchor, {"a": jnp.float32(1)})


def test_the_anchor_is_data_under_jit():
    """A compiled penalty must not keep the anchor that it was first called with."""
    penalty = jax.jit(losses.quadratic_penalty)
    params = {"w": jnp.array([3.0])}
    assert [float(penalty(params, {"w": jnp.array([anchor])})) for anchor in (0.0, 1.0, 3.0)] == [9.0, 4.0, 0.0]


def test_l1_sparsity_by_hand():
    params = {"kernel": jnp.array([1.0, -2.0, 0.0]), "bias": jnp.array([5.0])}
    close(losses.l1_sparsity(params), 8)
    weights = {"kernel": jnp.array([1.0, 0.5, 1.0]), "bias": jnp.float32(0)}
    close(losses.l1_sparsity(params, weights), 2)
    gradient = jax.grad(losses.l1_sparsity)(params, weights)
    close(gradient["kernel"], [1.0, -0.5, 0.0])
    close(gradient["bias"], [0.0])


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


def test_sums_of_half_precision_are_whole():
    """By hand: 3, of however many; and maps of 300 x 300, whose squares add up to more than float16 can hold."""
    for dtype in (jnp.float16, jnp.bfloat16):
        for count in (301, 40_000):
            found = losses.weighted_mean(jnp.full(count, 3.0, dtype), jnp.ones(count))
            assert (found.dtype, float(found)) == (dtype, 3.0)
        maps = jnp.ones([1, 300, 300], dtype)
        halved = maps.at[:, 150:].set(0)  # 1 / 300 everywhere against sqrt(2) / 300 on one half
        found = losses.attention_distillation(maps, halved).astype(jnp.float32)
        np.testing.assert_allclose(found, [300 / 2 + 300 / 2 * (np.sqrt(2) - 1)], rtol=0.01)


def test_what_fits_no_parameter_or_is_no_number_is_named_or_shown():
    params = {"w": jnp.ones([4, 3])}
    with pytest.raises(
        ValueError, match=r"The weight of 'w' has the shape \(5,\), which does not broadcast to the param"
    ):
        losses.quadratic_penalty(params, params, {"w": jnp.ones(5)})
    with pytest.raises(ValueError, match="logits is int32, but must be floating point"):
        losses.cross_entropy(jnp.ones([2, 3], jnp.int32), jnp.array([0, 1]))
    maps = jnp.ones([2, 3]).at[0, 1].set(jnp.nan)
    for student, teacher in ((maps, jnp.ones([2, 3])), (jnp.ones([2, 3]), maps)):  # a diverged student is no equal one
        np.testing.assert_array_equal(losses.attention_distillation(student, teacher), [np.nan, 0])
