"""One task's model without the learner: gates shown, closed features cut off, and a given model grown into a wider."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cljax import methods, networks, task_params, training
from cljax.methods.packnet import Packed
from cljax.ownership import masks, usage
from cljax.training.step import init_shapes
from cljax.types import Learner, Tables, make_clock
from tests.zero_forgetting import single

KEY, TASKS = jax.random.key(0), 3


class Theirs(nn.Module):
    @nn.compact
    def __call__(self, images, train: bool):
        values = nn.max_pool(nn.relu(nn.Conv(6, (3, 3))(images)), (2, 2), strides=(2, 2))
        values = nn.relu(networks.FeatureNorm()(nn.Dense(7)(values.reshape(values.shape[0], -1))))
        return nn.Dense(2)(values)


def theirs():
    return networks.from_linen(Theirs(), (4, 4, 1), outputs=2, gates=("Conv_0", "FeatureNorm_0"))


CNN = {"channels": ((5,), (6,)), "dense": (7,)}
CASES = {
    "mlp": (methods.tfm, lambda: networks.mlp((4, 4, 1), 2, hidden=(6, 5), normalization="feature", norm_after=True)),
    "cnn": (methods.clnp, lambda: networks.cnn((8, 8, 1), 2, **CNN, normalization="batch")),
    "shared": (methods.clnp, lambda: networks.mlp((4, 4, 1), 2, hidden=(6, 5), normalization="batch", per_task=())),
    "theirs": (methods.tfm, theirs),
}


def after_three_tasks(method):
    """A learner at rest, every number random, features owned by all three tasks, by the first most."""
    generator = np.random.default_rng(0)
    params, collections, state, _ = init_shapes(method)
    resting = task_params.resting(method.per_task, tasks=TASKS)
    expand = lambda tree: jax.eval_shape(lambda given: task_params.expand(given, TASKS, resting), tree)
    draw = lambda leaf: jnp.asarray(generator.uniform(0.2, 1.0, leaf.shape).astype(leaf.dtype) - 0.5 * (leaf.ndim > 1))
    params, collections = (jax.tree.map(draw, expand(tree)) for tree in (params, collections))
    owner = {
        name: jnp.asarray(generator.permutation(np.r_[[0, 0, 1, 2], np.full(leaf.size - 4, masks.FREE)]), jnp.int32)
        for name, leaf in state.owner.items()
    }
    return Learner(params, collections, (), state._replace(owner=owner), {}, None, resting)


@pytest.mark.parametrize("case", CASES)
def test_baked_and_extracted_networks_have_the_logits_of_predict(case):
    build, make = CASES[case]
    network = make()
    method = build(network)
    learner = after_three_tasks(method)
    inputs = jnp.asarray(np.random.default_rng(1).integers(0, 256, (5, *network.inputs)).astype(np.uint8))

    @jax.jit
    def export_task(learner, task):
        params, collections = networks.export_task(method, learner, task)
        baked = network.apply(params, collections, inputs).logits
        return (params, collections), baked, method.predict(learner, inputs, task)

    wires = {wire.path: wire.outputs for wire in network.wiring}
    for task in range(TASKS):
        trees, baked, expected = export_task(learner, jnp.int32(task))
        np.testing.assert_allclose(baked, expected, rtol=1e-5, atol=1e-6)
        gates = jax.device_get(trees[1]["gates"])
        kept = {name: int(gate.sum()) for name, gate in gates.items()}
        assert all(0 < size < gates[name].size for name, size in kept.items())

        @jax.jit
        def extract(*trees, gates=gates):
            small = [masks.extract(tree, network.wiring, gates) for tree in trees]
            return small, network.apply(*small, inputs).logits

        if task == 1 or case == "mlp":
            small, logits = extract(*trees)
            np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
            assert {name: gate.size for name, gate in small[1]["gates"].items()} == kept
            widths = zip(task_params.leaf_paths(small[0]), jax.tree.leaves(small[0]), strict=True)
            assert all(leaf.shape[-1] == kept.get(wires[path], network.outputs) for path, leaf in widths)
    if case == "cnn":
        sizes = {"channels": ((kept["conv_0_0"],), (kept["conv_1_0"],)), "dense": (kept["dense_0"],)}
        plain = networks.cnn((8, 8, 1), 2, **sizes, normalization="batch")
        shapes = lambda trees: jax.tree.map(lambda leaf: leaf.shape, tuple(trees))
        small, _ = jax.eval_shape(extract, *trees)
        assert shapes(small) == shapes(plain.shapes), "those of an ordinary narrow network"


def test_a_learner_whose_single_weights_have_owners_is_exported_with_those_that_the_task_sees():
    method = methods.packnet(networks.mlp((4,), 2, hidden=(6,)))
    learner = single(method, method.network, tasks=2)._replace(rows=task_params.resting([], tasks=2))
    owner = jnp.arange(24, dtype=jnp.int32).reshape(4, 6) % 3
    learner = learner._replace(
        method_state=Packed({**learner.method_state.owner, "dense_0": {"kernel": owner, "bias": None}})
    )
    params, collections = networks.export_task(method, learner, 1)
    kernel = np.asarray(learner.params["dense_0"]["kernel"])
    np.testing.assert_array_equal(params["dense_0"]["kernel"], np.where(owner <= 1, kernel, 0))
    inputs = jax.random.normal(KEY, (5, 4))
    found = method.network.apply(params, collections, inputs).logits
    np.testing.assert_array_equal(found, method.predict(learner, inputs, jnp.int32(1)))


def trained(network):
    """A network's random params and statistics by path, and its logits of some inputs."""
    generator = np.random.default_rng(2)
    draw = lambda leaf: generator.uniform(0.1, 1.0, leaf.shape).astype(leaf.dtype) - np.float32(0.4 * (leaf.ndim > 1))
    params, collections = network.shapes
    gates, frozen = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), collections["gates"]), {}
    if "frozen" in collections:
        frozen = {"frozen": jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, bool), collections["frozen"])}
    params, statistics = jax.tree.map(draw, params), jax.tree.map(draw, collections.get("batch_stats", {}))
    collections = {"gates": gates, "batch_stats": statistics, **frozen}
    inputs = jnp.asarray(generator.integers(0, 256, (5, *network.inputs)).astype(np.uint8))
    leaves = {
        path: np.asarray(leaf)
        for tree in (params, {"batch_stats": collections["batch_stats"]})
        for path, leaf in zip(task_params.leaf_paths(tree), jax.tree.leaves(tree), strict=True)
    }
    return leaves, inputs, jax.jit(network.apply)(params, collections, inputs).logits


WIDE = {
    "tfm": (methods.tfm, lambda *sizes: networks.mlp((4, 4, 1), 2, hidden=sizes[1:], normalization="feature")),
    "clnp": (
        methods.clnp,
        lambda *sizes: networks.cnn(
            (8, 8, 1), 2, channels=(sizes[:1], sizes[1:2]), dense=sizes[2:], normalization="batch"
        ),
    ),
}


@pytest.mark.parametrize(("name", "wider"), [("tfm", 0), ("tfm", 3), ("clnp", 3)])
def test_a_given_network_keeps_its_logits_and_owns_its_features(name, wider):
    """TFM would claim 55% of them; the first task's features are the given ones, and what is wider is free."""
    build, network = WIDE[name]
    leaves, inputs, expected = trained(network(4, 5, 6))
    method = build(network(4 + wider, 5 + wider, 6 + wider))
    tables = Tables(None, None, None, None, None, np.ones((2, 2), np.bool_))

    @jax.jit
    def begin(given):
        learner = training.make_learner(method, optax.sgd(1.0), tables, 0.1, jax.random.key(7))
        learner, owners = training.start_from(method, learner, given), []
        for task in range(2):
            clock = make_clock(task=task)
            begun = method.begin_task(task_params.focus(learner, clock.task), clock, None, jax.random.key(8))
            learner = task_params.write_back(begun, clock.task)
            owners.append(learner.method_state.owner)
        return owners, method.predict(learner, inputs, jnp.int32(0))

    (first, second), logits = begin(training.given_params(method, leaves))
    assert {name: leaf.tolist() for name, leaf in first.items()} == {
        name: [0] * (leaf.size - wider) + [masks.FREE] * wider for name, leaf in first.items()
    }
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    for before, after in zip(*map(jax.tree.leaves, (first, second)), strict=True):
        assert after[: after.size - wider].tolist() == [0] * (after.size - wider)
        assert ((after == 1).sum() > 0) == (wider > 0)
        assert before.size == after.size


def test_a_given_network_that_does_not_fit_is_refused_also_where_features_have_owners():
    sizes = {"dense_0/kernel": (16, 6), "dense_0/bias": 6, "dense_1/kernel": (6, 5), "dense_1/bias": 5}
    leaves = {path: np.ones(size, np.float32) for path, size in sizes.items()}
    with pytest.raises(ValueError, match=r"'dense_0/bias' has shape \(6,\), but that of tfm has shape \(4,\)"):
        training.given_params(methods.tfm(networks.mlp((4, 4, 1), 2, hidden=(4, 4))), leaves)
    with pytest.raises(ValueError, match=r"'dense_1/bias' has shape \(5,\), but that of finetune has shape \(8,\)"):
        training.given_params(methods.finetune(networks.mlp((4, 4, 1), 2, hidden=(6, 8))), leaves)
    odd = {**leaves, "dense_1/kernel": leaves["dense_1/kernel"][:-1]}
    with pytest.raises(ValueError, match=r"'dense_1/kernel' has shape \(5, 5\), but that of tfm has shape \(6, 5\)"):
        training.given_params(methods.tfm(networks.mlp((4, 4, 1), 2, hidden=(9, 9))), odd)


def test_a_shared_head_reuses_no_closed_features():
    """Each task sees its own features of the last layer only; so older ones neither feed the head nor use any below."""
    network = networks.mlp((4, 4, 1), 2, hidden=(6, 5), per_task=())
    method = methods.clnp(network)
    learner = after_three_tasks(method)
    with pytest.raises(ValueError, match="task is 3, but must be a whole number from 0 to 2"):
        networks.export_task(method, learner, 3)
    found = usage.diagnostics(network, learner)
    assert found.reused["dense_1"].tolist() == [0, 0, 0]
    owner = learner.method_state.owner
    older = [(np.asarray(owner["dense_0"]) < task).mean() for task in range(TASKS)]
    np.testing.assert_allclose(found.reused["dense_0"], older), "they feed the task's own units of the last layer"
    into_own = masks.learnable(owner["dense_1"], 2)[None]
    kernel = jnp.where(into_own, 0.0, learner.params["dense_1"]["kernel"])
    cut = {**learner.params, "dense_1": {**learner.params["dense_1"], "kernel": kernel}}
    found = usage.diagnostics(network, learner._replace(params=cut))
    np.testing.assert_allclose(found.reused["dense_0"], [*older[:2], 0]), "and older units there use none for it"
