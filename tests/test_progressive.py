"""Progressive networks: the published counts, columns and laterals by loops in NumPy, what is read and trained."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax import lax

from cljax import methods, networks, task_params
from cljax.training.step import make_learner
from cljax.types import Batch, Learner, Sizes, Tables, make_clock

TASKS, CLASSES = 3, 2
CLASSES_OF = np.ones((TASKS, CLASSES), bool)
MLP = networks.mlp((3,), CLASSES, hidden=(4, 3, 5))
CNN = networks.cnn((4, 4, 2), CLASSES, channels=((6, 3), (4,)), dense=(5,))


def update_mask(method, tasks, clock):
    """The update mask of params at a visit, and the params: zeros that take no memory."""
    sizes = Sizes(tasks, method.network.outputs, {})
    params, collections, *_ = jax.eval_shape(lambda key: method.init(key, sizes), jax.random.key(0))
    zeros = lambda tree: jax.tree.map(lambda leaf: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape), tree)
    rows = task_params.resting(method.per_task, tasks=tasks)
    learner = Learner(zeros(params), zeros(collections), (), {}, {}, None, rows)
    return jax.jit(lambda clock: method.update_mask(learner, clock)[0])(clock), learner.params


def trained(mask, leaf):
    return np.count_nonzero(mask) * leaf.size // np.size(mask)


@pytest.mark.parametrize(("data", "outputs", "count"), [("cifar", 10, 3_508_637), ("office_home", 13, 32_718_543)])
def test_the_published_number_of_parameters_is_what_ten_first_visits_train(data, outputs, count):
    method = methods.progressive(networks.df_cnn_base(data, outputs))
    masks = [update_mask(method, 10, make_clock(task=task)) for task in range(10)]
    assert sum(trained(*pair) for mask in masks for pair in zip(*map(jax.tree.leaves, mask), strict=True)) == count


def test_hat_s_adapters_by_their_sizes():
    """A scalar a column, t * C * C + C of the adapter, C * C_out behind it; no further bias there."""
    for task in range(4):
        masks, params = update_mask(methods.progressive(MLP, laterals="joint"), 4, make_clock(task=task))
        found = jax.tree.map(trained, masks["laterals"], params["laterals"])
        for name, size, outputs in (("dense_1", 4, 3), ("dense_2", 3, 5)):
            one = (task, task * size * size, size, size * outputs) if task else (0, 0, 0, 0)
            names = ("column_scale", "adapter_kernel", "adapter_bias", "lateral_kernel")
            assert tuple(found[name][part] for part in names) == one


@pytest.mark.parametrize("laterals", ["separate", "joint"])
def test_a_further_visit_trains_the_head_alone(laterals):
    masks, params = update_mask(methods.progressive(CNN, laterals=laterals), 3, make_clock(task=1, newest=2))
    assert {path for path, mask in named(masks).items() if np.any(mask)} == {"head/kernel", "head/bias"}
    assert jax.tree.structure(masks) == jax.tree.structure(params)


def named(tree):
    return dict(zip(task_params.leaf_paths(tree), jax.tree.leaves(tree), strict=True))


@functools.cache
def made(network, kind, dtype=jnp.float32):
    """The method, a learner at rest none of whose leaves is small, and `learner -> logits [T, B, K]`, compiled."""
    method = methods.progressive(network, laterals=kind)
    shapes = jax.eval_shape(
        lambda key: make_learner(method, optax.sgd(1.0), Tables(*(None,) * 5, CLASSES_OF), 0.1, key), jax.random.key(0)
    )
    drawn = np.random.default_rng(1)
    draw = lambda leaf: jax.device_put((drawn.normal(size=leaf.shape) * 0.7).astype(dtype))
    ones = jax.tree.map(lambda leaf: jax.device_put(np.ones(leaf.shape, leaf.dtype)), shapes.collections)
    learner = shapes._replace(params=jax.tree.map(draw, shapes.params), collections=ones)
    inputs = np.random.default_rng(2).normal(size=(2, *network.inputs)).astype(np.float32)
    tasks = jnp.arange(TASKS, dtype=jnp.int32)
    predict = lambda params: lax.map(lambda t: method.predict(learner._replace(params=params), inputs, t), tasks)
    return method, learner, jax.jit(predict), inputs


def plain_laterals(own, task, kind, before, convolve):
    """The sum over earlier columns, adapter by adapter; `before[c]` is what enters the layer there."""
    scale, kernel, bias, last = (own[part][task] for part in PARTS)
    relu = lambda values: np.maximum(values, 0)
    if kind == "joint":
        adapted = bias + sum(scale[c] * before[c] @ kernel[c] for c in range(task))
        return convolve(relu(adapted), last)
    units = max(1, int(before[0].shape[-1] / (2 * (task + 1))))
    total = 0
    for c in range(task):
        places = slice(c * units, (c + 1) * units)
        adapted = relu(scale[c] * before[c] @ kernel[0][:, places] + bias[places])
        total = total + convolve(adapted, last[..., places, :])
    return total


PARTS = ("column_scale", "adapter_kernel", "adapter_bias", "lateral_kernel")


def plain_logits(params, inputs, task, kind, layers):
    """All columns up to the task's, layer by layer: `layers` are `(name, linear, what follows)`, the head last."""
    values = [inputs for _ in range(task + 1)]
    for name, linear, after in layers:
        laterals, summed = params["laterals"].get(name), []
        for column in range(task + 1):
            one = linear(values[column], params[name]["kernel"][column]) + params[name]["bias"][column]
            if laterals is not None and column:
                one = one + plain_laterals(laterals, column, kind, values, linear)
            summed.append(after(one))
        values = summed
    return values[task]


def relu(values):
    return np.maximum(values, 0)


def convolve(values, kernel):
    """A 'SAME' convolution of side 3, place by place."""
    padded, (height, width) = np.pad(values, ((0, 0), (1, 1), (1, 1), (0, 0))), values.shape[1:3]
    shifted = [padded[:, i : i + height, j : j + width] @ kernel[i, j] for i in range(3) for j in range(3)]
    return sum(shifted)


def pool(values):
    batch, height, width, features = values.shape
    return values.reshape(batch, height // 2, 2, width // 2, 2, features).max(axis=(2, 4))


def flat(values):
    return values.reshape(len(values), -1)


MLP_LAYERS = [("dense_0", np.matmul, relu), ("dense_1", np.matmul, relu), ("dense_2", np.matmul, relu)]
CNN_LAYERS = [
    ("conv_0_0", convolve, relu),
    ("conv_0_1", convolve, lambda values: pool(relu(values))),
    ("conv_1_0", convolve, lambda values: flat(pool(relu(values)))),
    ("dense_0", np.matmul, relu),
]
HEAD = [("head", np.matmul, lambda values: values)]


@pytest.mark.parametrize("kind", ["separate", "joint"])
@pytest.mark.parametrize(("network", "layers"), [(MLP, MLP_LAYERS), (CNN, CNN_LAYERS)], ids=["mlp", "cnn"])
def test_the_logits_are_those_of_loops_over_columns(network, layers, kind):
    _, learner, predict, inputs = made(network, kind)
    into = {"mlp": {"dense_1", "dense_2"}, "separate": {"conv_0_1", "conv_1_0"}}
    into["joint"] = into["separate"] | {"dense_0"}
    assert set(learner.params["laterals"]) == into["mlp" if network is MLP else kind]
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), learner.params)
    logits = predict(learner.params)
    for task in range(TASKS):
        expected = plain_logits(params, np.float64(inputs), task, kind, [*layers, *HEAD])
        np.testing.assert_allclose(logits[task], expected, rtol=1e-4, atol=1e-4)


def test_a_column_reads_none_that_come_after_it():
    """Not even if they are no numbers: those of later tasks are whatever they began as."""
    _, learner, predict, _ = made(MLP, "separate")
    before = np.asarray(predict(learner.params))
    after = np.asarray(predict(jax.tree.map(lambda leaf: leaf.at[2].set(jnp.nan), learner.params)))
    assert after[:2].tobytes() == before[:2].tobytes()
    assert np.isnan(after[2]).all()


@pytest.mark.parametrize("kind", ["separate", "joint"])
def test_gradients_are_finite_differences_and_none_reach_what_is_closed(kind):
    with jax.enable_x64(True):
        method, learner, *_ = made(MLP, kind, jnp.float64)
        focused, drawn = task_params.focus(learner, jnp.int32(1)), np.random.default_rng(3)
        labels, ones = jnp.asarray(drawn.integers(2, size=16), jnp.int32), jnp.ones(16, jnp.int32)
        batch = Batch(jnp.asarray(drawn.normal(size=(16, 3))), labels, ones, jnp.ones(16, jnp.float32), ones)
        clock = make_clock(task=1, classes=CLASSES_OF)
        value = jax.jit(jax.value_and_grad(lambda params: method.loss(params, focused, clock, batch, None)[0]))
        _, gradients = value(focused.params)
        masks, _ = jax.jit(method.update_mask)(focused, clock)
        for gradient, mask in zip(jax.tree.leaves(gradients), jax.tree.leaves(masks), strict=True):
            assert not np.any(np.asarray(gradient)[np.broadcast_to(mask, gradient.shape) == 0])
        assert all(np.any(leaf != 0) for leaf in gradients["laterals"]["dense_1"].values())
        params = jax.device_get(focused.params)
        aside = jax.tree.map(lambda leaf: drawn.normal(size=leaf.shape), params)
        moved = lambda step: value(jax.tree.map(lambda leaf, way: leaf + step * way, params, aside))[0]
        slope = sum(np.vdot(*pair) for pair in zip(jax.tree.leaves(gradients), jax.tree.leaves(aside), strict=True))
        np.testing.assert_allclose((moved(1e-6) - moved(-1e-6)) / 2e-6, slope, rtol=1e-6)


class Users(nn.Module):
    @nn.compact
    def __call__(self, inputs, train):
        del train
        lower = nn.relu(nn.Dense(4)(inputs))
        upper = nn.relu(nn.Dense(5)(lower))
        return nn.Dense(2)(upper)


def test_a_users_linen_module_is_a_column_too():
    """Its logits for three tasks are those of an `mlp` with the same numbers."""
    own = networks.mlp((3,), CLASSES, hidden=(4, 5))
    theirs = networks.from_linen(Users(), (3,), outputs=CLASSES)
    _, learner, predict, _ = made(own, "separate")
    _, _, predict_theirs, _ = made(theirs, "separate")
    renamed = {"Dense_0": "dense_0", "Dense_1": "dense_1", "Dense_2": "head"}
    params = {name: learner.params[ours] for name, ours in renamed.items()}
    laterals = {"Dense_1": learner.params["laterals"]["dense_1"]}
    expected = predict(learner.params)
    np.testing.assert_allclose(predict_theirs({**params, "laterals": laterals}), expected, rtol=1e-5, atol=1e-5)


class Small(nnx.Module):
    def __init__(self, rngs):
        self.lower, self.upper = nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 4, rngs=rngs)
        self.head = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, inputs):
        return self.head(nnx.relu(self.upper(nnx.relu(self.lower(inputs)))))


@pytest.mark.parametrize(
    "make",
    [lambda: networks.mlp((3,), 2, hidden=(4,)), functools.partial(networks.from_nnx, Small, (3,), outputs=2)],
    ids=["one hidden layer", "nnx"],
)
def test_a_network_without_layers_for_laterals_is_refused(make):
    with pytest.raises(ValueError, match="this network has none that it can see"):
        methods.progressive(make())


def test_hidden_layers_that_would_train_again_at_a_revisit_are_refused():
    with pytest.raises(ValueError, match=r"train again at a task's next visit: dense_1/bias, .* Let the head alone"):
        methods.progressive(networks.own_last_layers(MLP, 2))
