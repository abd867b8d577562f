"""Hard attention to the task: closed forms of gates, compensation, masks and sparsity, and what is forgotten."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cljax import methods, networks, task_params, training
from cljax.methods.hat import Attended, hat
from cljax.ownership import hard_attention
from cljax.types import Batch, Sizes, Tables, make_clock
from tests.zero_forgetting import single

KEY = jax.random.key(0)
INPUTS = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)


def small(**options):
    return networks.mlp((5,), 2, **{"hidden": (4, 3), **options})


def taking(learner, **taken):
    return learner._replace(method_state=Attended({name: jnp.asarray(value) for name, value in taken.items()}))


def sigmoid(values):
    return 1 / (1 + np.exp(-np.asarray(values, np.float64)))


def test_a_gate_and_its_gradient_keep_their_digits_on_both_sides():
    """In float32 `a * (1 - a)` is 0 from s e = 17 on."""
    e, s = np.array([-0.2, -0.05, -1e-3, 0.0, 1e-3, 0.05, 0.1, 0.2]), 400.0
    gate = jax.jit(jax.vmap(jax.value_and_grad(lambda one: hard_attention.gate(one, s))))
    value, found = gate(e.astype(np.float32))
    np.testing.assert_allclose(value, sigmoid(s * e), rtol=3e-5)
    np.testing.assert_allclose(found, s * sigmoid(s * e) * sigmoid(-s * e), rtol=3e-5)
    assert jax.grad(lambda one: jax.nn.sigmoid(s * one))(jnp.float32(0.05)) == 0


@pytest.mark.parametrize("s", [1 / 400, 1.0, 200.0, 400.0])
def test_a_compensated_gradient_is_that_of_gates_of_scale_one_times_the_largest_scale(s):
    e = np.array([-6.0, -0.12, -0.01, 0.0, 0.1, 0.12, 1.0])

    @jax.jit
    def compensated(given):
        raw = jax.vmap(jax.grad(lambda one: hard_attention.gate(one, s)))(given)
        return hard_attention.compensate(raw, given, s, max_scale=400.0)

    found = np.asarray(compensated(e.astype(np.float32)))
    near = np.abs(s * e) <= 50
    expected = 400 * sigmoid(e) * sigmoid(-e)
    np.testing.assert_allclose(found[near], expected[near], rtol=1e-4)
    beyond = np.minimum(1, (np.cosh(50) + 1) / (np.cosh(np.clip(s * e, -300, 300)) + 1))
    np.testing.assert_allclose(found, expected * beyond, rtol=1e-3, atol=1e-30)
    assert np.isfinite(found).all()


def test_gates_and_gradients_have_the_embedding_s_dtype():
    embedding, scale = jnp.array([-0.5, 0.0, 0.5], jnp.bfloat16), jnp.float32(4.0)
    gates = hard_attention.gate(embedding, scale)
    found = hard_attention.compensate(gates, embedding, scale, max_scale=400.0)
    assert (gates.dtype, found.dtype) == (jnp.bfloat16, jnp.bfloat16)
    np.testing.assert_allclose(gates.astype(jnp.float32), sigmoid([-2, 0, 2]), rtol=1e-2)
    exact = hard_attention.compensate(jnp.ones(1), jnp.full(1, 0.01), 400.0, max_scale=400.0)  # cosh of 4
    for dtype in (jnp.float16, jnp.bfloat16):
        found = hard_attention.compensate(jnp.ones(1, dtype), jnp.full(1, 0.01, dtype), 400.0, max_scale=400.0)
        np.testing.assert_allclose(found.astype(jnp.float32), exact, rtol=1e-2)
    assert [float(hard_attention.annealed(p, max_scale=400.0)) for p in (2.0, -1.0)] == [400.0, np.float32(0.0025)]


def test_given_parameters_of_the_first_task_and_open_gates_are_the_given_network():
    network = small()
    method = hat(network)
    params, collections = jax.jit(network.init)(jax.random.key(7))
    given = dict(zip(task_params.leaf_paths(params), jax.tree.leaves(params), strict=True))
    opened = {f"task_embedding/{name}": np.full(leaf.shape, 6.0) for name, leaf in collections["gates"].items()}
    row = lambda path, leaf: np.asarray(leaf)[None] if task_params.ends_with(path, method.per_task) else leaf
    learner = single(method, network)
    learner = learner._replace(params=task_params.map_leaves(row, learner.params))
    begun = training.start_from(method, learner, training.given_params(method, {**given, **opened}))
    expected = jax.jit(network.apply)(params, collections, INPUTS).logits
    np.testing.assert_allclose(jax.jit(method.predict)(begun, INPUTS, jnp.int32(0)), expected, rtol=1e-6)


def test_sparsity_and_its_gradient_by_hand():
    gates = {"a": np.array([1, 0.5], np.float32), "b": np.array([0.25], np.float32)}
    taken = {"a": np.array([1, 0.5], np.float32), "b": np.array([0], np.float32)}
    sparsity = jax.jit(jax.value_and_grad(hard_attention.sparsity))
    value, gradient = sparsity(gates, taken)
    np.testing.assert_allclose(value, (0 + 0.25 + 0.25) / 1.5, rtol=1e-6)
    np.testing.assert_allclose(gradient["a"], np.array([0, 0.5]) / 1.5, rtol=1e-6)
    np.testing.assert_allclose(gradient["b"], [1 / 1.5], rtol=1e-6)
    value, gradient = sparsity(gates, jax.tree.map(np.ones_like, taken))
    assert float(value) == 0
    assert not any(np.any(leaf) for leaf in gradient.values()), "all is taken: nothing is charged"


def test_masks_of_weights_biases_maps_and_a_shared_head_by_hand():
    network = networks.cnn((4, 4, 1), 2, channels=((3,),), dense=(2,), normalization="batch")
    conv, dense = np.array([1.0, 0.25, 0.0], np.float32), np.array([1.0, 0.5], np.float32)
    for per_task in (network.per_task, ()):
        method = hat(network._replace(per_task=per_task))
        learner = taking(single(method, network), conv_0_0=conv, dense_0=dense)
        mask, kept = jax.tree.map(np.asarray, jax.jit(method.update_mask)(learner, make_clock(task=1)))
        np.testing.assert_array_equal(mask["conv_0_0"]["kernel"][0, 0], 1 - conv[None])
        for name in ("conv_norm_0_0", "conv_0_0"):
            np.testing.assert_array_equal(mask[name]["bias"], 1 - conv)
        both = 1 - np.minimum(np.tile(conv, 4)[:, None], dense[None])
        np.testing.assert_array_equal(mask["dense_0"]["kernel"], both)
        np.testing.assert_array_equal(mask["head"]["kernel"], 1 if per_task else 1 - dense[:, None])
        np.testing.assert_array_equal(mask["head"]["bias"], 1 if per_task else [0])
        assert all(float(leaf) == 1 for leaf in mask["task_embedding"].values())
        assert all(float(leaf) == 1 for leaf in jax.tree.leaves(kept))
        trees = learner.params, learner.collections, learner.method_state
        _, shown = jax.jit(method.view)(*trees, jnp.int32(1), None)
        assert {name: leaf.tolist() for name, leaf in shown["frozen"].items()} == {
            "conv_0_0": [True, False, False],
            "dense_0": [True, False],
        }


def case(**options):
    network = small()
    method = hat(network, **options)
    learner = taking(single(method, network), dense_0=[1.0, 0.0, 0.5, 0.0], dense_1=[0.0, 1.0, 0.25])
    labels = np.array([0, 1, 1, 0, 1, 0])
    batch = Batch(INPUTS, labels, np.ones(6, np.int32), np.arange(6), np.ones(6, np.float32))
    return method, learner, batch, make_clock(task=1, progress=0.25, classes=np.ones([2, 2], bool))


def plain_loss(params, taken, batch, gates, strength):
    """In float64 NumPy."""
    values = np.asarray(batch.inputs, np.float64)
    for name in ("dense_0", "dense_1"):
        layer = {part: np.asarray(leaf, np.float64) for part, leaf in params[name].items()}
        values = np.maximum(values @ layer["kernel"] + layer["bias"], 0) * gates[name]
    logits = values @ np.asarray(params["head"]["kernel"], np.float64) + np.asarray(params["head"]["bias"], np.float64)
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(logits)), np.asarray(batch.labels)]
    free = {name: 1 - np.asarray(leaf, np.float64) for name, leaf in taken.items()}
    charge = sum((gates[name] * free[name]).sum() for name in gates) / sum(leaf.sum() for leaf in free.values())
    return losses.mean() + strength * charge, charge


@pytest.mark.parametrize("binarize", [False, True])
def test_the_loss_in_training_and_in_validation_by_plain_numpy(binarize):
    """A quarter through the epoch the scale is 100; in validation it is 400, or gates are steps."""
    method, learner, batch, clock = case(binarize=binarize, strength=2.0)
    embedding = {name: np.asarray(leaf, np.float64) for name, leaf in learner.params["task_embedding"].items()}
    look = jax.jit(lambda learner, key: method.loss(learner.params, learner, clock, batch, key))
    for key in (KEY, None):
        s = 400.0 if key is None else 1 / 400 + (400 - 1 / 400) * 0.25
        gates = {name: sigmoid(np.clip(s * leaf, -600, 600)) for name, leaf in embedding.items()}
        if binarize and key is None:
            gates = {name: (leaf > 0).astype(float) for name, leaf in embedding.items()}
        value, (output, metrics) = look(learner, key)
        expected, charge = plain_loss(learner.params, learner.method_state.taken, batch, gates, 2.0)
        np.testing.assert_allclose(value, expected, rtol=1e-5)
        np.testing.assert_allclose(metrics["sparsity"], charge, rtol=1e-5)
    row = lambda path, leaf: np.asarray(leaf)[None] if task_params.ends_with(path, method.per_task) else leaf
    rested = learner._replace(params=task_params.map_leaves(row, learner.params))
    np.testing.assert_array_equal(jax.jit(method.predict)(rested, batch.inputs, jnp.int32(0)), output.logits)


def test_a_step_compensates_the_embeddings_alone_and_keeps_them_within_six():
    method, learner, batch, clock = case()
    ones = jax.tree.map(np.ones_like, learner.params)
    found = jax.jit(method.adjust_gradients)(ones, learner, clock, batch)
    e, s = np.asarray(learner.params["task_embedding"]["dense_0"]), 1 / 400 + (400 - 1 / 400) * 0.25
    exact = np.asarray(e, np.float64)
    expected = 400 / s * (np.cosh(np.clip(s * exact, -50, 50)) + 1) / (np.cosh(exact) + 1)
    np.testing.assert_allclose(found["task_embedding"]["dense_0"], expected, rtol=2e-5)
    for name in ("dense_0", "dense_1", "head"):
        assert all(np.all(np.asarray(leaf) == 1) for leaf in found[name].values())
    far = learner._replace(params={**learner.params, "task_embedding": {"dense_0": 100 * e, "dense_1": e[:3]}})
    kept = jax.jit(method.after_step)(learner, far, clock, batch, ones).params["task_embedding"]
    np.testing.assert_array_equal(kept["dense_0"], 6 * np.sign(e))
    np.testing.assert_array_equal(kept["dense_1"], e[:3])


@pytest.mark.parametrize("binarize", [False, True])
def test_what_is_taken_is_the_largest_gate_of_all_tasks_so_far(binarize):
    method, learner, _, clock = case(binarize=binarize)
    embedding = {"dense_0": jnp.array([-0.01, 0.002, -0.001, -1.0]), "dense_1": jnp.array([1.0, -1.0, 0.0])}
    learner = learner._replace(params={**learner.params, "task_embedding": embedding})
    taken = method.end_phase(learner, clock, None, KEY).method_state.taken
    if binarize:
        assert [leaf.tolist() for leaf in taken.values()] == [[1.0, 1.0, 0.5, 0.0], [1.0, 1.0, 0.25]]
    else:
        expected = np.maximum([1.0, 0.0, 0.5, 0.0], sigmoid(400 * np.array([-0.01, 0.002, -0.001, -1.0])))
        np.testing.assert_allclose(taken["dense_0"], expected, rtol=1e-5, atol=1e-30)
        assert taken["dense_1"].tolist() == [1.0, 1.0, 0.5]


def test_each_task_has_embeddings_of_its_own_and_terms_that_read_all_heads_leave_the_charge_as_it_is():
    method, learner, batch, clock = case()
    both = methods.combine(method, methods.distillation())
    other = method.init(jax.random.key(1), Sizes(2, 2, {}))[0]
    stack = lambda path, one, two: np.stack([two, one]) if task_params.ends_with(path, method.per_task) else one
    params = task_params.map_leaves(stack, learner.params, other)
    assert both.stacked == method.per_task
    assert (params["task_embedding"]["dense_0"][0] != params["task_embedding"]["dense_0"][1]).all()
    *_, state, hyper = both.init(KEY, Sizes(2, 2, {}))
    teacher = {"params": params, "collections": learner.collections}
    state = state._replace(base=learner.method_state, teacher=teacher)
    rows = task_params.resting(both.per_task, both.stacked, tasks=2)
    stacked = learner._replace(params=params, method_state=state, hyper=hyper, rows=rows)

    @functools.partial(jax.jit, static_argnums=0)
    def look(method, learner, key):
        value, (_, metrics) = method.loss(learner.params, learner, clock, batch, key)
        return value, metrics

    for key in (None, KEY):
        (value, metrics), (_, found) = look(method, learner, key), look(both, stacked, key)
        np.testing.assert_allclose(found["sparsity"], metrics["sparsity"], rtol=1e-6)
        np.testing.assert_allclose(found["classification"], value, rtol=1e-5)


@pytest.mark.parametrize("binarize", [False, True])
def test_other_tasks_are_computed_with_settled_gates_however_far_the_current_ones_are_annealed(binarize):
    """So distillation, whose teacher's gates are settled, finds old logits as they were, and drives nothing."""
    method = methods.build("hat+lwf", small(), {"hat.binarize": binarize})
    tables = Tables(*(None,) * 5, np.ones((2, 2), bool))
    learner = jax.jit(lambda: training.make_learner(method, optax.sgd(1.0), tables, 0.1, KEY))()
    ones, predict = np.ones(6, np.int32), jax.jit(method.predict)
    batch = Batch(INPUTS, ones, ones, np.ones(6, np.float32), ones)
    clock = make_clock(task=1, progress=0.0, classes=np.ones((2, 2), bool))
    focused = task_params.focus(learner, jnp.int32(1))
    logits = jax.jit(lambda params: method.loss(params, focused, clock, batch, KEY)[1][0].logits)(focused.params)
    old, new = np.asarray(logits)
    np.testing.assert_allclose(old, predict(learner, INPUTS, jnp.int32(0)), rtol=1e-6, atol=1e-7)
    assert np.abs(new - predict(learner, INPUTS, jnp.int32(1))).max() > 1e-3


@pytest.mark.parametrize(
    ("binarize", "middle", "moves"),
    [(False, 0.0, True), (False, 0.3, False), (True, 0.001, False), (True, -0.001, False)],
)
def test_how_far_from_nothing_the_soft_form_forgets(binarize, middle, moves):
    """It is the gates between 0 and 1 that old logits move by, and float32 has none from s e = 17 on, or below -88."""
    method, learner, batch, clock = case(binarize=binarize)
    row = lambda path, leaf: np.asarray(leaf)[None] if task_params.ends_with(path, method.per_task) else leaf
    embedding = {"dense_0": [1, middle, -1, 0.5], "dense_1": [1, middle, -1]}
    embedding = {name: jnp.asarray(np.array(values, np.float32)) for name, values in embedding.items()}
    learner = taking(learner, dense_0=np.zeros(4, np.float32), dense_1=np.zeros(3, np.float32))
    learner = learner._replace(params={**learner.params, "task_embedding": embedding})
    learner = method.end_phase(learner, clock, None, KEY)
    mask, _ = method.update_mask(learner, clock)
    shared = ("dense_0", "dense_1")
    moved = {name: jax.tree.map(np.add, learner.params[name], mask[name]) for name in shared}
    predict = jax.jit(lambda params: method.predict(learner._replace(params=params), batch.inputs, jnp.int32(0)))
    before, after = (
        np.asarray(predict(task_params.map_leaves(row, params)))
        for params in (learner.params, {**learner.params, **moved})
    )
    if not moves:
        assert before.tobytes() == after.tobytes()
        return
    gates = {name: sigmoid(np.clip(400 * np.asarray(leaf, np.float64), -80, 80)) for name, leaf in embedding.items()}
    half = np.array([0, 0.5, 1, 0]), np.array([0, 0.5, 1])  # how much units' biases moved
    values = np.asarray(batch.inputs, np.float64)
    for name, last, first in zip(shared, half, (np.ones(5) - 1, half[0]), strict=True):
        free = np.maximum(first[:, None], last[None])
        layer = {part: np.asarray(leaf, np.float64) for part, leaf in learner.params[name].items()}
        values = np.maximum(values @ (layer["kernel"] + free) + layer["bias"] + last, 0) * gates[name]
    head = {part: np.asarray(leaf, np.float64) for part, leaf in learner.params["head"].items()}
    np.testing.assert_allclose(after, values @ head["kernel"] + head["bias"], rtol=1e-4, atol=1e-5)
    assert np.abs(after - before).max() > 0.1


def test_what_does_not_fit_is_refused_with_the_cure():
    network = small(normalization="batch")
    with pytest.raises(ValueError, match=r"hat shares normalisation statistics.*normalization='batch'"):
        hat(network._replace(per_task=(*network.per_task, "batch_stats/norm_0/mean")))
    with pytest.raises(ValueError, match=r"hat owns the features.*this network has none"):
        hat(network._replace(wiring=()))


def test_the_paper_s_network_has_as_many_parameters_as_published_code():
    """6,553,940 with two heads of ten classes: embeddings of 4,544 units, for each of two tasks, among them."""
    sizes = {"channels": ((64,), (128,), (256,)), "kernel": (4, 3, 2), "dense": (2048, 2048), "padding": "VALID"}
    method = hat(networks.cnn((32, 32, 3), 10, **sizes))
    params = jax.eval_shape(lambda key: method.init(key, Sizes(2, 10, {}))[0], KEY)
    counts = {
        path: leaf.size * (2 if task_params.ends_with(path, method.per_task) else 1)
        for path, leaf in zip(task_params.leaf_paths(params), jax.tree.leaves(params), strict=True)
    }
    assert sum(count for path, count in counts.items() if path.startswith("task_embedding")) == 2 * 4544
    assert sum(counts.values()) == 6_553_940
