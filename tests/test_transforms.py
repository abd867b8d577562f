"""Frozen weights stay frozen to the bit, whatever the optimizer makes of a zero gradient."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cljax import task_params, transforms


def apply_masked(params, updates, mask):
    """What the training loop does with masked updates."""
    return transforms.keep_masked(params, optax.apply_updates(params, updates), mask)


OPTIMIZERS = {
    "sgd": optax.sgd(1.0),
    "momentum": optax.sgd(1.0, momentum=0.9),
    "nesterov": optax.sgd(1.0, momentum=0.9, nesterov=True),
    "decay": optax.chain(optax.add_decayed_weights(1e-3), optax.sgd(1.0)),
    "adam": optax.adam(1.0),
    "adamw": optax.adamw(1.0, weight_decay=1e-2),
    "rmsprop": transforms.rmsprop_tf1(),
    "clipped": optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1.0, momentum=0.9)),
}
RATE = 0.01


def standard(optimizer):
    """The optimizer under standard promotion of dtypes, which Optax's Adam needs; the mask's wrapper sees to it."""

    def update(*arguments, mask=None):
        with jax.numpy_dtype_promotion("standard"):
            return optimizer.update(*arguments)

    return optax.GradientTransformationExtraArgs(optimizer.init, update)


def bits(array):
    return np.asarray(array).view(np.uint32)


def drift(optimizer, *, masked, fresh, gradient=0.3):
    """Five steps of everything, then twenty with the first row frozen: how far that row moved in the twenty."""
    params = jax.random.normal(jax.random.key(0), (2, 3))
    gradients = jax.random.normal(jax.random.key(1), (25, 2, 3)) + gradient
    mask = jnp.array([[0.0], [1.0]])
    wrapped = transforms.with_update_mask(optimizer) if masked else standard(optimizer)
    state = wrapped.init(params)

    @jax.jit
    def step(params, state, gradient, mask):
        updates, state = wrapped.update(gradient * mask, state, params, mask=mask)
        updates = jax.tree.map(lambda update: RATE * update, updates)
        return (apply_masked if masked else lambda p, u, m: p + u)(params, updates, mask), state

    for index in range(5):
        params, state = step(params, state, gradients[index], jnp.ones_like(mask))
    start = params
    carried = state = wrapped.init(params) if fresh else state
    for index in range(5, 25):
        params, state = step(params, state, gradients[index], mask)
    assert np.abs(params[1] - start[1]).min() > 1e-3  # the free row learns
    return start[0], params[0], carried


@pytest.mark.parametrize(
    ("name", "carried", "fresh"),
    [
        ("sgd", False, False),
        ("momentum", True, False),
        ("decay", True, True),
        ("adam", True, False),
        ("adamw", True, True),
        ("rmsprop", False, False),
    ],
)
def test_masking_the_gradient_alone_does_not_freeze(name, carried, fresh):
    for is_fresh, moves in ((False, carried), (True, fresh)):
        before, after, _ = drift(OPTIMIZERS[name], masked=False, fresh=is_fresh)
        assert bool((bits(before) != bits(after)).any()) == moves


def test_the_drift_under_a_masked_gradient_has_a_closed_form():
    """What the optimizer carries along goes on moving a weight whose gradient is zero: far, for momentum and Adam."""
    before, after, state = drift(OPTIMIZERS["momentum"], masked=False, fresh=False)
    geometric = 0.9 * (1 - 0.9**20) / (1 - 0.9)
    np.testing.assert_allclose(after - before, -RATE * geometric * state[0].trace[0], rtol=1e-4)
    assert 0.05 < np.abs(after - before).max() < 1

    before, after, state = drift(OPTIMIZERS["adam"], masked=False, fresh=False)
    steps, moments = np.arange(1, 21)[:, None], state[0]
    first = 0.9**steps * np.asarray(moments.mu[0]) / (1 - 0.9 ** (5 + steps))
    second = 0.999**steps * np.asarray(moments.nu[0]) / (1 - 0.999 ** (5 + steps))
    np.testing.assert_allclose(after - before, -RATE * (first / np.sqrt(second)).sum(axis=0), rtol=1e-3)
    assert 0.01 < np.abs(after - before).max() < 0.2

    for name, decay in (("decay", 1e-3), ("adamw", 1e-2)):
        before, after, _ = drift(OPTIMIZERS[name], masked=False, fresh=True)
        np.testing.assert_allclose(after - before, before * ((1 - RATE * decay) ** 20 - 1), rtol=1e-3, atol=1e-6)
        assert 1e-5 < np.abs(after - before).max() < 1e-2


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_masking_the_update_freezes_every_bit(name, fresh):
    before, after, _ = drift(OPTIMIZERS[name], masked=True, fresh=fresh)
    np.testing.assert_array_equal(bits(before), bits(after))


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_bad_gradients_at_frozen_places_harm_nothing(name, bad):
    optimizer = transforms.with_update_mask(OPTIMIZERS[name])
    params, mask = jnp.array([1.5, -2.0, 3.0]), jnp.array([0.0, 1.0, 1.0])
    results = []
    for gradient in (jnp.array([bad, 0.1, -0.2]), jnp.array([0.0, 0.1, -0.2])):
        state = optimizer.init(params)
        new = params
        for _ in range(3):
            updates, state = optimizer.update(gradient, state, new, mask=mask)
            new = apply_masked(new, updates, mask)
        results.append((new, state))
    chex.assert_trees_all_equal(*results)
    chex.assert_tree_all_finite(results[0])
    assert results[0][0][0] == 1.5


@pytest.mark.parametrize("name", ["decay", "momentum", "adam", "adamw", "nested"])
def test_what_an_optimizer_keeps_does_not_age_where_a_weight_is_frozen(name):
    """Decay that gathered in a momentum meanwhile would all be released at the first joint step."""
    decayed = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(1.0, momentum=0.9))
    inner = {**OPTIMIZERS, "decay": decayed, "nested": transforms.per_task(decayed)}[name]
    optimizer = transforms.with_update_mask(inner)
    params = {"a": {"w": jnp.array([1.0, 2.0])}, "w": jnp.array([3.0, 4.0])}
    gradients = jax.tree.map(jnp.ones_like, params)
    _, begun = optimizer.update(gradients, optimizer.init(params), params, mask={"a": {"w": 1.0}, "w": 1.0})
    mask = {"a": {"w": jnp.float32(0)}, "w": jnp.array([0.0, 1.0])}
    _, after = optimizer.update(gradients, begun, params, mask=mask)
    kept = 0
    for (path, old), new in zip(jax.tree_util.tree_leaves_with_path(begun), jax.tree.leaves(after), strict=True):
        if np.shape(old) == (2,):
            frozen = [True, True] if task_params.path_name(path).endswith("a/w") else [True, False]
            np.testing.assert_array_equal(np.asarray(old) == np.asarray(new), frozen)
            kept += 1
        else:
            assert int(new) == int(old) + 1
    assert kept == (4 if "adam" in name else 2)


def test_frozen_updates_are_minus_zero_and_scalars_freeze_whole_leaves():
    optimizer = transforms.with_update_mask(optax.sgd(1.0))
    params = {"kernel": jnp.ones([2, 2]), "bias": jnp.ones([2])}
    mask = {"kernel": jnp.float32(0), "bias": jnp.float32(0.25)}
    updates, _ = optimizer.update(params, optimizer.init(params), params, mask=mask)
    np.testing.assert_array_equal(bits(updates["kernel"]), 0x80000000)
    np.testing.assert_array_equal(updates["bias"], [-0.25, -0.25])


@pytest.mark.parametrize("jit", [False, True])
def test_denormals_and_negative_zeros_stay(jit):
    raw = np.array([1, 0x007FFFFF, 0x80000001, 0x80000000, 0, 0x7F7FFFFF, 0x00800000], np.uint32)
    params = jnp.asarray(raw.view(np.float32))
    mask = jnp.zeros([7])
    apply = jax.jit(apply_masked) if jit else apply_masked
    np.testing.assert_array_equal(bits(apply(params, jnp.full([7], -0.0), mask)), raw)
    np.testing.assert_array_equal(bits(apply(params, jnp.full([7], np.nan), mask)), raw)


def test_the_mask_is_traced_and_scales_the_update():
    optimizer = transforms.with_update_mask(optax.adam(1.0))
    params = jnp.arange(1.0, 5.0)
    plain = standard(optax.adam(1.0))
    expected, _ = plain.update(params, plain.init(params), params)

    @jax.jit
    @chex.assert_max_traces(1)
    def step(mask):
        return optimizer.update(params, optimizer.init(params), params, mask=mask)[0]

    for mask in ([1, 1, 1, 1], [0, 0.5, 0.25, 1], [1, 0, 1, 0]):
        mask = jnp.array(mask, jnp.float32)
        np.testing.assert_allclose(step(mask), mask * expected, rtol=1e-6)


def test_a_mask_of_ones_changes_nothing():
    for optimizer in OPTIMIZERS.values():
        params = {"a": jnp.array([0.5, -1.0]), "b": jnp.array([[2.0]])}
        wrapped = transforms.with_update_mask(optimizer)
        ones = jax.tree.map(jnp.ones_like, params)
        chex.assert_trees_all_equal(
            wrapped.update(params, wrapped.init(params), params, mask=ones),
            standard(optimizer).update(params, optimizer.init(params), params),
        )


def test_low_precision_keeps_its_dtype():
    params = {"a": jnp.array([1.0, 2.0], jnp.bfloat16)}
    mask = {"a": jnp.array([0.0, 0.5], jnp.float32)}
    optimizer = transforms.with_update_mask(optax.sgd(1.0, momentum=0.9))
    updates, _ = optimizer.update(params, optimizer.init(params), params, mask=mask)
    new = apply_masked(params, updates, mask)
    assert updates["a"].dtype == new["a"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(new["a"], np.float32), [1.0, 1.0])


@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.booleans()), min_size=1, max_size=8))
@settings(max_examples=30, deadline=None)
def test_keep_masked_keeps_any_bits(drawn):
    raw = np.full(8, 0x3F800000, np.uint32)  # of fixed size, so that nothing is compiled anew
    frozen = np.ones(8, bool)
    for index, (word, keep) in enumerate(drawn):
        raw[index], frozen[index] = word, keep
    params = jnp.asarray(raw.view(np.float32))
    new = apply_masked(params, jnp.ones([8]), jnp.asarray(~frozen, jnp.float32))
    np.testing.assert_array_equal(bits(new)[frozen], bits(params)[frozen])
    np.testing.assert_array_equal(new[~frozen], (params + 1)[~frozen])


@pytest.mark.parametrize("shape", [(3,), (2,), (2, 2), (1, 2, 3)])
def test_a_mask_that_does_not_fit_is_named(shape):
    params = {"layer": {"kernel": jnp.ones([2, 3])}}
    mask = {"layer": {"kernel": jnp.ones(shape)}}
    optimizer = transforms.with_update_mask(optax.sgd(1.0))
    with pytest.raises(ValueError, match="mask of 'layer/kernel'"):
        optimizer.update(params, optimizer.init(params), params, mask=mask)
    with pytest.raises(ValueError, match="mask has the leaves kernel, but updates has layer/kernel"):
        optimizer.update(params, optimizer.init(params), params, mask={"kernel": jnp.ones([2, 3])})
    with pytest.raises(ValueError, match="mask has the leaves kernel, but old has layer/kernel"):
        transforms.keep_masked(params, params, {"kernel": jnp.ones([2, 3])})


def test_rmsprop_is_that_of_tensorflow_1():
    optimizer = transforms.rmsprop_tf1()
    weight = jnp.zeros([])
    state = optimizer.init(weight)
    for gradient in (0.5, -0.2, 0.1):
        updates, state = optimizer.update(jnp.float32(gradient), state, weight)
        weight = weight + 1e-4 * updates
    np.testing.assert_allclose(weight, -4.16376125e-05, rtol=2e-6)


def test_rmsprop_closed_form():
    optimizer = transforms.rmsprop_tf1(decay=0.5, epsilon=0.25)
    updates, _ = optimizer.update(jnp.array([1.0, 2.0]), optimizer.init(jnp.zeros([2])))
    np.testing.assert_allclose(updates, [-1 / np.sqrt(0.5 + 0.5 + 0.25), -2 / np.sqrt(0.5 + 2 + 0.25)], rtol=1e-6)
    forgetful = transforms.rmsprop_tf1(decay=0.0)  # with its own epsilon, 1e-10
    updates, _ = forgetful.update(jnp.array([1e-5]), forgetful.init(jnp.zeros([1])))
    np.testing.assert_allclose(updates, [-1 / np.sqrt(2)], rtol=1e-6)


def test_per_task_marks_every_leaf_and_is_otherwise_transparent():
    inner = standard(optax.adamw(1.0))
    params = {"head": jnp.ones([2]), "body": jnp.full([3], 2.0)}
    optimizer = transforms.per_task(inner)
    state = optimizer.init(params)
    assert all(task_params.has_rows(path, task_params.resting([])) for path in task_params.leaf_paths(state))
    assert not any(
        task_params.has_rows(path, task_params.resting([])) for path in task_params.leaf_paths(inner.init(params))
    )
    expected = inner.update(params, inner.init(params), params)
    updates, new = optimizer.update(params, state, params)
    chex.assert_trees_all_equal((updates, new.task_slots), expected)


@pytest.mark.parametrize("outer", [True, False])
def test_per_task_and_the_mask_compose(outer):
    parts = (transforms.per_task, transforms.with_update_mask)
    first, second = parts if outer else parts[::-1]
    optimizer = first(second(optax.sgd(1.0, momentum=0.5)))
    params = jnp.array([1.0, 1.0])
    state = optimizer.init(params)
    assert isinstance(state, transforms.PerTaskState)
    for expected in (-1.0, -1.5):
        updates, state = optimizer.update(params, state, params, mask=jnp.array([0.0, 1.0]))
        np.testing.assert_array_equal(updates, [0.0, expected])


def test_a_module_may_be_called_as_a_part_of_the_optimizer_is():
    """Of a Gaussian head called `mu`: Adam's first moment of `w` is `mu/w`, and is not that module's."""
    params = {"mu": {"w": jnp.ones(3)}, "w": jnp.ones(3)}
    optimizer = transforms.with_update_mask(optax.adam(1.0))
    mask = {"mu": {"w": jnp.float32(0)}, "w": jnp.float32(1)}
    _, (after, *_) = optimizer.update(params, optimizer.init(params), params, mask=mask)
    np.testing.assert_allclose(after.mu["w"], 0.1, rtol=1e-6)
    np.testing.assert_array_equal(after.mu["mu"]["w"], 0)
    _, (after, *_) = optimizer.update(params, optimizer.init(params), params, mask=jax.tree.map(lambda m: 1 - m, mask))
    np.testing.assert_array_equal(after.mu["w"], 0)
    np.testing.assert_allclose(after.nu["mu"]["w"], 0.001, rtol=1e-6)
