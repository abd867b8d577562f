"""The kinds of Fisher information by hand, and that they are the different things they claim to be."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cljax import importance

INPUTS = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, -1.0]])
LABELS = jnp.array([0, 1, 2, 0])
WEIGHT = jnp.zeros([3, 2])


def log_prob(weight, inputs):
    return jax.nn.log_softmax(inputs @ weight.T)


def deep_log_prob(params, inputs):
    return jax.nn.log_softmax(jnp.tanh(inputs @ params["in"]) @ params["out"])


def deep(examples=10):
    keys = jax.random.split(jax.random.key(0), 4)
    params = {"in": jax.random.normal(keys[0], [2, 5]), "out": jax.random.normal(keys[1], [5, 3])}
    return params, jax.random.normal(keys[2], [examples, 2]), jax.random.randint(keys[3], [examples], 0, 3)


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
    value = importance.fisher(log_prob, WEIGHT, INPUTS, LABELS, kind=kind)
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("chunk", [1, 4, 64])
def test_batched_is_the_mean_square_of_batches_mean_gradients(chunk):
    """By enumeration: the last batch is shorter, surplus examples count for nothing, and batches by their weights."""
    params, inputs, labels = deep()
    weights = jnp.array([1.0] * 8 + [0.0, 0.5])
    gradient = jax.jit(jax.vmap(jax.grad(lambda p, x, y: deep_log_prob(p, x[None])[0, y]), (None, 0, 0)))
    each = jax.tree.map(np.asarray, gradient(params, inputs, labels))
    expected = jax.tree.map(np.zeros_like, params)
    for start in range(0, 10, chunk):
        part = np.asarray(weights)[start : start + chunk]
        if part.sum():
            add = lambda total, g, part=part, start=start: (
                total + part.sum() / 8.5 * (np.tensordot(part, g[start : start + len(part)], axes=1) / part.sum()) ** 2
            )
            expected = jax.tree.map(add, expected, each)
    found = importance.fisher(deep_log_prob, params, inputs, labels, kind="batched", weights=weights, chunk=chunk)
    close(found, expected)
    if chunk == 1:
        close(found, importance.fisher(deep_log_prob, params, inputs, labels, kind="empirical", weights=weights))


def test_exact_is_the_expectation_over_labels():
    params, inputs, _ = deep(4)
    empirical = jax.jit(lambda x, y: importance.fisher(deep_log_prob, params, x, y, kind="empirical"))
    probabilities = jnp.exp(deep_log_prob(params, inputs))
    expected = jax.tree.map(jnp.zeros_like, params)
    for label in range(3):
        for index in range(len(inputs)):
            one = empirical(inputs[index : index + 1], jnp.array([label]))
            share = probabilities[index, label] / len(inputs)
            expected = jax.tree.map(lambda total, part, share=share: total + share * part, expected, one)
    close(importance.fisher(deep_log_prob, params, inputs), expected)


def test_sampled_is_exact_on_average_and_its_label_is_drawn():
    params, inputs, _ = deep(3)
    exact = importance.fisher(deep_log_prob, params, inputs)
    keys = jax.random.split(jax.random.key(1), 1000)
    draws = jax.jit(
        jax.vmap(lambda key: importance.fisher(deep_log_prob, params, inputs, kind="sampled", key=key)["out"])
    )(keys)
    error = draws.std(0) / np.sqrt(len(keys))
    assert (np.abs(draws.mean(0) - exact["out"]) < 5 * error + 1e-6).all()
    assert draws.std(0).max() > 0.01


def test_empirical_vanishes_where_the_network_is_right_and_exact_is_the_hessian():
    inputs = jnp.array([[1.0, 2.0]])
    weight = jnp.array([[50.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    assert importance.fisher(log_prob, weight, inputs, jnp.array([0]), kind="empirical").max() < 1e-12
    weight = jnp.array([[0.5, 0.2], [-1.0, 0.0], [0.0, 0.3]])
    hessian = jax.hessian(lambda w: -log_prob(w, inputs)[0, 1])(weight).reshape(6, 6)
    close(importance.fisher(log_prob, weight, inputs).ravel(), jnp.diagonal(hessian))


@pytest.mark.parametrize("kind", ["exact", "sampled", "empirical"])
@pytest.mark.parametrize("chunk", [1, 3, 5, 10, 64])
def test_chunks_change_nothing(kind, chunk):
    params, inputs, labels = deep()
    weights = jnp.linspace(0.1, 1.0, 10)
    key = jax.random.key(3)
    whole, parts = (
        importance.fisher(deep_log_prob, params, inputs, labels, kind=kind, key=key, weights=weights, chunk=size)
        for size in (None, chunk)
    )
    close(parts, whole)


def test_chunks_bound_the_memory():
    """In bytes that the compiled program takes for itself: some gradients at a time, not one for each example."""
    params, inputs, labels = (
        {"in": jnp.ones([2, 300]), "out": jnp.ones([300, 3])},
        jnp.ones([512, 2]),
        jnp.zeros(512, int),
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
    padded = jnp.concatenate([inputs, inputs[:3] * 9])
    weights = jnp.array([1.0] * 10 + [0.0] * 3)
    labels_padded = jnp.concatenate([labels, labels[:3]])
    close(
        importance.fisher(deep_log_prob, params, padded, labels_padded, kind=kind, weights=weights),
        importance.fisher(deep_log_prob, params, inputs, labels, kind=kind),
    )
    nothing = importance.fisher(deep_log_prob, params, inputs, labels, kind=kind, weights=jnp.zeros(10))
    chex.assert_trees_all_equal(nothing, jax.tree.map(jnp.zeros_like, params))


def test_a_linear_model_leaves_unused_inputs_unimportant():
    value = importance.fisher(log_prob, jnp.ones([3, 2]), jnp.array([[1.0, 0.0], [2.0, 0.0]]))
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
    weight, inputs = jnp.array([[1.0, -2.0]]), jnp.array([[1.0, 1.0], [3.0, 1.0]])
    expected = np.mean([np.abs(2 * (x @ weight[0]) * x) for x in np.asarray(inputs)], axis=0)
    for chunk in (None, 1):
        value = importance.memory_aware(lambda w, x: x @ w.T, weight, inputs, chunk=chunk)
        np.testing.assert_allclose(value[0], expected, rtol=1e-6)
    value = importance.memory_aware(lambda w, x: x @ w.T, weight, inputs, weights=jnp.array([0.0, 2.0]))
    np.testing.assert_allclose(value[0], [6.0, 2.0], rtol=1e-6)


def test_path_integral_adds_up_to_the_fall_of_the_loss():
    scale = jnp.array([1.0, 4.0, 0.0])
    start = jnp.array([1.0, -0.5, 2.0])

    def loss(w):
        return 0.5 * jnp.sum(scale * w**2)

    w, total = start, jnp.zeros(3)
    for _ in range(200):
        gradient = jax.grad(loss)(w)
        new = w - 0.005 * gradient
        total, w = importance.path_integral(total, gradient, w, new), new
    np.testing.assert_allclose(total.sum(), loss(start) - loss(w), rtol=0.02)
    assert total[2] == 0
    value = importance.path_importance(total, start, w, damping=0.1)
    np.testing.assert_allclose(value, total / ((w - start) ** 2 + 0.1), rtol=1e-6)
    np.testing.assert_array_equal(importance.path_importance(-total, start, w), 0)


def test_unit_activity_over_examples_and_space():
    maps = jax.random.normal(jax.random.key(0), [4, 3, 2, 5])
    value = importance.unit_activity({"conv": maps, "dense": maps[:, 0, 0]})
    np.testing.assert_allclose(value["conv"], np.abs(maps).mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(value["dense"], np.abs(maps[:, 0, 0]).mean(0), rtol=1e-6)
    weighted = importance.unit_activity(maps, weights=jnp.array([1.0, 1.0, 0.0, 0.0]))
    np.testing.assert_allclose(weighted, np.abs(maps[:2]).mean((0, 1, 2)), rtol=1e-6)


@pytest.mark.parametrize("kind", ["empirical", "batched"])
def test_a_label_that_is_no_class_shows_unless_its_weight_is_0(kind):
    for wrong in (np.array([-1, 1, 2, 0]), np.array([3, 1, 2, 0]), np.array([2**32, 1, 2, 0])):
        for chunk in (None, 3) if kind == "empirical" else (None,):
            find = lambda weights, chunk=chunk, wrong=wrong: importance.fisher(
                log_prob, WEIGHT, INPUTS, wrong, kind=kind, weights=weights, chunk=chunk
            )
            assert np.isnan(find(jnp.ones(4))).all()
            close(
                find(jnp.array([0.0, 1, 1, 1])), importance.fisher(log_prob, WEIGHT, INPUTS[1:], LABELS[1:], kind=kind)
            )


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
    features = jnp.asarray(np.random.default_rng(0).normal(size=(1000, 2)))
    for dtype, size in ((jnp.bfloat16, 1.0), (jnp.float16, 0.01)):
        weight, inputs = jnp.full([3, 2], 0.5, dtype), (size * features).astype(dtype)
        labels = jnp.arange(1000) % 3

        def measure(weight, inputs, labels=labels):
            if kind == "memory_aware":
                return importance.memory_aware(lambda w, x: x @ w.T, weight, inputs, chunk=1)
            return importance.fisher(log_prob, weight, inputs, labels, kind=kind, chunk=1)

        value = measure(weight, inputs)
        assert value.dtype == dtype
        exact = measure(weight.astype(jnp.float32), inputs.astype(jnp.float32))
        np.testing.assert_allclose(value.astype(jnp.float32), exact, rtol=0.02)


@pytest.mark.parametrize("kind", ["exact", "sampled", "empirical", "batched"])
def test_logits_are_no_log_probabilities(kind):
    logits = lambda weight, inputs: inputs @ weight.T
    options = {"kind": kind, "key": jax.random.key(0)}
    assert np.isnan(importance.fisher(logits, WEIGHT, INPUTS, LABELS, **options)).any(axis=0).all()
    rows = len(INPUTS) if kind == "batched" else 1
    with pytest.raises(ValueError, match=rf"What log_prob_fn returns has shape \(3,\), but must be \[{rows}, K\]"):
        importance.fisher(lambda weight, inputs: log_prob(weight, inputs)[0], WEIGHT, INPUTS, LABELS, **options)


def test_a_path_in_bfloat16_is_added_up_in_full():
    """By hand: 1,000 steps of 1/1024 down a slope of 1 take 1,000/1024 of the loss away."""
    steps, slope = jnp.full(1, 2.0**-10, jnp.bfloat16), jnp.ones(1, jnp.bfloat16)
    add = lambda _, total: importance.path_integral(total, slope, steps, jnp.zeros_like(steps))
    total = jax.lax.fori_loop(0, 1000, add, jnp.zeros(1))
    np.testing.assert_array_equal(total, [1000 / 1024])
    found = importance.path_importance(total, slope, 0 * slope, damping=0.25)
    assert (found.dtype, float(found[0])) == (jnp.bfloat16, float(jnp.bfloat16(1000 / 1024 / 1.25)))
