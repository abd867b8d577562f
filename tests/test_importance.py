"""The kinds of Fisher information by hand, and that they are the different things they claim to be."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cljax import importance

INPUTS = np.array([[1, 0], [0, 1], [1, 1], [1, -1]], np.float32)
LABELS = np.array([0, 1, 2, 0], np.int32)
WEIGHT = np.zeros([3, 2], np.float32)

fisher = jax.jit(importance.fisher, static_argnums=0, static_argnames=("kind", "chunk"))
memory_aware = jax.jit(importance.memory_aware, static_argnums=0, static_argnames="chunk")
path_importance = jax.jit(importance.path_importance, static_argnames="damping")
unit_activity = jax.jit(importance.unit_activity)


def log_prob(weight, inputs):
    return jax.nn.log_softmax(inputs @ weight.T)


def deep_log_prob(params, inputs):
    return jax.nn.log_softmax(jnp.tanh(inputs @ params["in"]) @ params["out"])


def deep(examples=10):
    draw = np.random.default_rng(0)
    normal = lambda *shape: draw.normal(size=shape).astype(np.float32)
    return {"in": normal(2, 5), "out": normal(5, 3)}, normal(examples, 2), draw.integers(0, 3, examples, np.int32)


def close(value, expected, tolerance=1e-5):
    chex.assert_trees_all_close(value, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("exact", np.full([3, 2], 1 / 6)),
        ("empirical", [[1 / 4, 1 / 6], [1 / 12, 1 / 6], [1 / 6, 1 / 6]]),
        ("batched", [[0.0625, 1 / 9], [0.0625, 1 / 36], [0, 1 / 36]]),
    ],
)
def test_reference_values(kind, expected):
    value = fisher(log_prob, WEIGHT, INPUTS, LABELS, kind=kind)
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("chunk", [1, 4, 64])
def test_batched_is_the_mean_square_of_batches_mean_gradients(chunk):
    """By enumeration: the last batch is shorter, surplus examples count for nothing, and batches by their weights."""
    params, inputs, labels = deep()
    weights = np.array([1] * 8 + [0, 0.5], np.float32)
    gradient = jax.jit(jax.vmap(jax.grad(lambda p, x, y: deep_log_prob(p, x[None])[0, y]), (None, 0, 0)))
    each = jax.tree.map(np.asarray, gradient(params, inputs, labels))
    expected = jax.tree.map(np.zeros_like, params)
    for start in range(0, 10, chunk):
        part = weights[start : start + chunk]
        if part.sum():
            add = lambda total, g, part=part, start=start: (
                total + part.sum() / 8.5 * (np.tensordot(part, g[start : start + len(part)], axes=1) / part.sum()) ** 2
            )
            expected = jax.tree.map(add, expected, each)
    found = fisher(deep_log_prob, params, inputs, labels, kind="batched", weights=weights, chunk=chunk)
    close(found, expected)
    if chunk == 1:
        close(found, fisher(deep_log_prob, params, inputs, labels, kind="empirical", weights=weights))


def test_exact_is_the_expectation_over_labels():
    params, inputs, _ = deep(4)
    probabilities = np.exp(jax.jit(deep_log_prob)(params, inputs))
    expected = jax.tree.map(np.zeros_like, params)
    for label in range(3):
        for index in range(len(inputs)):
            one = fisher(deep_log_prob, params, inputs[index : index + 1], np.array([label]), kind="empirical")
            share = probabilities[index, label] / np.float32(len(inputs))
            add = lambda total, part, share=share: total + share * np.asarray(part)
            expected = jax.tree.map(add, expected, one)
    close(fisher(deep_log_prob, params, inputs), expected)


def test_sampled_is_exact_on_average_and_its_label_is_drawn():
    params, inputs, _ = deep(3)
    exact = fisher(deep_log_prob, params, inputs)
    sampled = jax.vmap(lambda key: importance.fisher(deep_log_prob, params, inputs, kind="sampled", key=key)["out"])
    draws = np.asarray(jax.jit(lambda key: sampled(jax.random.split(key, 1000)))(jax.random.key(1)))
    error = draws.std(0) / np.sqrt(1000)
    assert (np.abs(draws.mean(0) - exact["out"]) < 5 * error + 1e-6).all()
    assert draws.std(0).max() > 0.01


def test_empirical_vanishes_where_the_network_is_right_and_exact_is_the_hessian():
    inputs = np.array([[1, 2]], np.float32)
    weight = np.array([[50, 0], [0, 0], [0, 0]], np.float32)
    assert np.max(fisher(log_prob, weight, inputs, np.array([0]), kind="empirical")) < 1e-12
    weight = np.array([[0.5, 0.2], [-1, 0], [0, 0.3]], np.float32)
    hessian = np.reshape(jax.jit(jax.hessian(lambda w: -log_prob(w, inputs)[0, 1]))(weight), (6, 6))
    close(np.ravel(fisher(log_prob, weight, inputs)), np.diagonal(hessian))


@pytest.mark.parametrize("kind", ["exact", "sampled", "empirical"])
@pytest.mark.parametrize("chunk", [1, 3, 5, 10, 64])
def test_chunks_change_nothing(kind, chunk):
    params, inputs, labels = deep()
    weights = np.linspace(0.1, 1.0, 10, dtype=np.float32)
    key = jax.random.key(3)
    whole, parts = (
        fisher(deep_log_prob, params, inputs, labels, kind=kind, key=key, weights=weights, chunk=size)
        for size in (None, chunk)
    )
    close(parts, whole)


def test_chunks_bound_the_memory():
    """In bytes that the compiled program takes for itself: some gradients at a time, not one for each example."""
    params, inputs, labels = (
        {"in": np.ones([2, 300], np.float32), "out": np.ones([300, 3], np.float32)},
        np.ones([512, 2], np.float32),
        np.zeros(512, np.int32),
    )
    gradient = 4 * sum(leaf.size for leaf in params.values())

    def memory(chunk):
        find = lambda params: importance.fisher(deep_log_prob, params, inputs, labels, kind="empirical", chunk=chunk)
        return jax.jit(find).lower(params).compile().memory_analysis().temp_size_in_bytes

    assert memory(None) > 256 * gradient
    assert memory(8) < 4 * 8 * gradient


@pytest.mark.parametrize("kind", ["exact", "empirical", "batched"])
def test_surplus_examples_have_no_part(kind):
    params, inputs, labels = deep()
    padded = np.concatenate([inputs, inputs[:3] * 9])
    weights = np.array([1] * 10 + [0] * 3, np.float32)
    labels_padded = np.concatenate([labels, labels[:3]])
    close(
        fisher(deep_log_prob, params, padded, labels_padded, kind=kind, weights=weights),
        fisher(deep_log_prob, params, inputs, labels, kind=kind),
    )
    nothing = fisher(deep_log_prob, params, inputs, labels, kind=kind, weights=np.zeros(10, np.float32))
    chex.assert_trees_all_equal(nothing, jax.tree.map(np.zeros_like, params))


def test_a_linear_model_leaves_unused_inputs_unimportant():
    inputs = np.array([[1, 0], [2, 0]], np.float32)
    value = np.asarray(fisher(log_prob, np.ones([3, 2], np.float32), inputs))
    np.testing.assert_array_equal(value[:, 1], 0)
    assert value[:, 0].min() > 0


def test_what_is_missing_is_named():
    with pytest.raises(ValueError, match="pass key="):
        importance.fisher(log_prob, WEIGHT, INPUTS, kind="sampled")
    with pytest.raises(ValueError, match="pass labels"):
        importance.fisher(log_prob, WEIGHT, INPUTS, kind="empirical")
    with pytest.raises(ValueError, match="'exact', 'sampled', 'empirical' or 'batched'"):
        importance.fisher(log_prob, WEIGHT, INPUTS, kind="true")


def test_memory_aware_by_hand():
    """Of |W x|^2 the gradient is 2 W x x'; the absolute value is taken before the mean."""
    weight, inputs = np.array([[1, -2]], np.float32), np.array([[1, 1], [3, 1]], np.float32)
    expected = np.mean([np.abs(2 * (x @ weight[0]) * x) for x in inputs], axis=0)
    for chunk in (None, 1):
        value = memory_aware(lambda w, x: x @ w.T, weight, inputs, chunk=chunk)
        np.testing.assert_allclose(value, [expected], rtol=1e-6)
    value = memory_aware(lambda w, x: x @ w.T, weight, inputs, weights=np.array([0, 2], np.float32))
    np.testing.assert_allclose(value, [[6.0, 2.0]], rtol=1e-6)


def test_path_integral_adds_up_to_the_fall_of_the_loss():
    scale = np.array([1, 4, 0], np.float32)
    start = np.array([1, -0.5, 2], np.float32)

    def loss(w):
        return 0.5 * (scale * w**2).sum()

    @jax.jit
    def step(w, total):
        gradient = jax.grad(loss)(w)
        new = w - 0.005 * gradient
        return new, importance.path_integral(total, gradient, w, new)

    w, total = start, np.zeros(3, np.float32)
    for _ in range(200):
        w, total = step(w, total)
    w, total = np.asarray(w), np.asarray(total)
    np.testing.assert_allclose(total.sum(), loss(start) - loss(w), rtol=0.02)
    assert total[2] == 0
    found = path_importance(total, start, w, damping=0.1)
    np.testing.assert_allclose(found, total / ((w - start) ** 2 + 0.1), rtol=1e-6)
    np.testing.assert_array_equal(path_importance(-total, start, w), 0)


def test_unit_activity_over_examples_and_space():
    maps = np.random.default_rng(0).normal(size=[4, 3, 2, 5]).astype(np.float32)
    value = unit_activity({"conv": maps, "dense": maps[:, 0, 0]})
    np.testing.assert_allclose(value["conv"], np.abs(maps).mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(value["dense"], np.abs(maps[:, 0, 0]).mean(0), rtol=1e-6)
    weighted = unit_activity(maps, weights=np.array([1, 1, 0, 0], np.float32))
    np.testing.assert_allclose(weighted, np.abs(maps[:2]).mean((0, 1, 2)), rtol=1e-6)


@pytest.mark.parametrize("kind", ["empirical", "batched"])
def test_a_label_that_is_no_class_shows_unless_its_weight_is_0(kind):
    right = fisher(log_prob, WEIGHT, INPUTS[1:], LABELS[1:], kind=kind)
    for wrong in (np.array([-1, 1, 2, 0]), np.array([3, 1, 2, 0]), np.array([2**32, 1, 2, 0])):
        for chunk in (None, 3) if kind == "empirical" else (None,):

            @jax.jit
            def find(weights, chunk=chunk, wrong=wrong):
                return importance.fisher(log_prob, WEIGHT, INPUTS, wrong, kind=kind, weights=weights, chunk=chunk)

            assert np.isnan(find(np.ones(4, np.float32))).all()
            close(find(np.array([0, 1, 1, 1], np.float32)), right)


def test_numbers_out_of_range_are_refused():
    for chunk in (0, -1, 1.5):
        with pytest.raises(ValueError, match=r"chunk is .*whole number from 1"):
            importance.fisher(log_prob, WEIGHT, INPUTS, LABELS, kind="empirical", chunk=chunk)
    for damping in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=r"damping is .*finite number above 0"):
            importance.path_importance(jnp.ones(1), jnp.ones(1), jnp.ones(1), damping=damping)


@pytest.mark.parametrize("kind", ["exact", "empirical", "memory_aware"])
def test_half_precision_is_added_up_in_full(kind):
    """In chunks of one, 1,000 sums in bfloat16 stand still long before their end, and float16 loses small squares."""
    features = np.random.default_rng(0).normal(size=(1000, 2)).astype(np.float32)
    labels = np.arange(1000, dtype=np.int32) % 3

    @jax.jit
    def measure(weight, inputs):
        if kind == "memory_aware":
            return importance.memory_aware(lambda w, x: x @ w.T, weight, inputs, chunk=1)
        return importance.fisher(log_prob, weight, inputs, labels, kind=kind, chunk=1)

    for dtype, size in ((jnp.bfloat16, 1.0), (jnp.float16, 0.01)):
        weight, inputs = np.full([3, 2], 0.5, dtype), (np.float32(size) * features).astype(dtype)
        value = measure(weight, inputs)
        assert value.dtype == dtype
        exact = measure(weight.astype(np.float32), inputs.astype(np.float32))
        np.testing.assert_allclose(np.asarray(value, np.float32), exact, rtol=0.02)


@pytest.mark.parametrize("kind", ["exact", "sampled", "empirical", "batched"])
def test_logits_are_no_log_probabilities(kind):
    logits = lambda weight, inputs: inputs @ weight.T
    options = {"kind": kind, "key": jax.random.key(0)}
    assert np.isnan(fisher(logits, WEIGHT, INPUTS, LABELS, **options)).any(axis=0).all()
    rows = len(INPUTS) if kind == "batched" else 1
    with pytest.raises(ValueError, match=rf"What log_prob_fn returns has shape \(3,\), but must be \[{rows}, K\]"):
        fisher(lambda weight, inputs: log_prob(weight, inputs)[0], WEIGHT, INPUTS, LABELS, **options)


def test_a_path_in_bfloat16_is_added_up_in_full():
    """By hand: 1,000 steps of 1/1024 down a slope of 1 take 1,000/1024 of the loss away."""
    steps, slope = np.full(1, 2.0**-10, jnp.bfloat16), np.ones(1, jnp.bfloat16)

    @jax.jit
    def walk(slope, steps):
        add = lambda _, total: importance.path_integral(total, slope, steps, jnp.zeros_like(steps))
        return jax.lax.fori_loop(0, 1000, add, jnp.zeros(1))

    total = walk(slope, steps)
    np.testing.assert_array_equal(total, [1000 / 1024])
    found = np.asarray(path_importance(total, slope, 0 * slope, damping=0.25))
    assert (found.dtype, found[0]) == (jnp.bfloat16, np.asarray(1000 / 1024 / 1.25, jnp.bfloat16))
    small, zero = np.full(1, 2.0**-14, np.float16), np.zeros(1, np.float16)  # whose square is 0 in float16
    assert importance.path_integral(jnp.zeros(1), small, small, zero) == 2.0**-28
    steep, little, none = np.array([[1e6], [-1e-6], [0]], np.float32)
    assert importance.path_integral(jnp.zeros(1, jnp.float16), steep, none, little) == 1


@pytest.mark.parametrize("kind", ["exact", "sampled", "empirical", "batched", "memory_aware"])
def test_an_example_of_weight_0_has_no_part_be_its_gradient_nan(kind):
    """A row of zeros, as padding is, through a normalised layer."""

    def length(weight, inputs):
        logits = inputs @ weight.T
        return logits / jnp.linalg.norm(logits, axis=-1, keepdims=True)

    @jax.jit
    def measure(inputs, labels, weights):
        if kind == "memory_aware":
            return importance.memory_aware(length, WEIGHT + 1, inputs, weights=weights)
        log_probs, options = lambda w, x: jax.nn.log_softmax(length(w, x)), {"kind": kind, "key": jax.random.key(0)}
        return importance.fisher(log_probs, WEIGHT + 1, inputs, labels, weights=weights, **options)

    inputs, weights = np.concatenate([INPUTS[1:3], np.zeros((1, 2), np.float32)]), np.array([1, 1, 0], np.float32)
    found = measure(inputs, LABELS[:3], weights)
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found, measure(INPUTS[1:], LABELS[:3], weights))
    lost = np.full_like(inputs, np.nan)
    assert not np.any(importance.unit_activity(lost, weights=np.zeros(3, np.float32)))
    assert not np.any(memory_aware(lambda w, x: x @ w.T, WEIGHT, lost, weights=np.zeros(3, np.float32)))


def test_weights_of_half_precision_are_added_up_in_full():
    for dtype in (jnp.float16, jnp.bfloat16):
        ones = jnp.ones((1001, 1), dtype)
        found = importance.unit_activity(ones, weights=jnp.full(1001, 6e4, dtype))
        assert (found.dtype, found.tolist()) == (dtype, [1.0])
        assert importance.unit_activity(jnp.ones((100_000, 1), dtype)).tolist() == [1.0]
    np.testing.assert_array_equal(unit_activity(np.array([[1.0], [np.nan]]), weights=np.array([1.0, 0.0])), [1.0])


def test_what_is_no_floating_point_is_named():
    output = lambda tree, inputs: inputs @ tree["w"]
    tree, inputs = {"count": jnp.int32(3), "w": jnp.ones((2, 3))}, jnp.ones((4, 2))
    for measure in (importance.fisher, importance.memory_aware):
        with pytest.raises(ValueError, match="params has 'count' of int32: pass floating-point leaves alone"):
            measure(output, tree, inputs)
    with pytest.raises(ValueError, match="means has 'n' of int32"):
        importance.moment_matching({"n": jnp.array([4, 4])}, jnp.ones(2))
    with pytest.raises(ValueError, match=r"weights has shape \(1,\), but must be \[2\]"):
        importance.moment_matching({"n": jnp.ones(2)}, jnp.ones(1))
    with pytest.raises(ValueError, match=r"weights has shape \(2,\), but must be \[3\]"):
        importance.moment_matching({"n": jnp.ones(2), "w": jnp.ones(3)}, jnp.ones(2))
    with pytest.raises(ValueError, match="labels is float32, but must be whole numbers"):
        importance.fisher(log_prob, WEIGHT, INPUTS, LABELS.astype(np.float32), kind="empirical")
