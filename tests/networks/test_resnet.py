"""Residual networks: published counts, a forward pass written by hand, gates on the stream, and no bit forgotten."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jax import lax

from cljax import methods, networks, task_params
from cljax.networks import check_gates, export_task, resnet
from cljax.ownership import masks
from tests.zero_forgetting import Visits, five_tasks

KEY = jax.random.key(0)
SMALL, TEN = (32, 32, 3), 10


def leaves_of(tree):
    return {"/".join(path): leaf for path, leaf in flatten_dict(tree).items()}


PARAMETERS = {  # of the paper's tables, torchvision's models and the usual CIFAR variants
    "resnet18": (networks.resnet18, 11_689_512),
    "resnet34": (networks.resnet34, 21_797_672),
    "resnet50": (networks.resnet50, 25_557_032),
    "resnet18, CIFAR": (functools.partial(networks.resnet18, SMALL, TEN), 11_173_962),
    "resnet34, CIFAR": (functools.partial(networks.resnet34, SMALL, TEN), 21_282_122),
    "resnet50, CIFAR": (functools.partial(networks.resnet50, SMALL, TEN), 23_520_842),
    "resnet32, option A": (functools.partial(networks.resnet32, shortcut="padding"), 464_154),
    "resnet32, option B": (networks.resnet32, 466_906),
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_as_many_as_published(name):
    build, count = PARAMETERS[name]
    assert sum(leaf.size for leaf in jax.tree.leaves(build().shapes[0])) == count


def test_features_of_the_tfm_paper_s_table_1():
    """It counts those of every convolution but the shortcuts; with one stream a stage, fewer have owners."""
    network = networks.resnet50(normalization="feature")
    gates = network.shapes[1]["gates"]
    kernels = [wire for wire in network.wiring if wire.path.endswith("kernel") and "shortcut" not in wire.path]
    assert sum(gates[wire.outputs].size for wire in kernels[:-1]) == 22_720
    assert sum(gate.size for gate in gates.values()) == 64 + sum(
        size * (4 + 2 * blocks) for size, blocks in zip((64, 128, 256, 512), (3, 4, 6, 3), strict=True)
    )
    features = {build: sum(gate.size for gate in build().shapes[1]["gates"].values()) for build in FEATURES}
    assert features == FEATURES


FEATURES = {networks.lenet: 226, networks.alexnet: 9_344, networks.vgg16_reduced: 10_880, networks.vgg16: 12_416}


@pytest.mark.parametrize(("inputs", "count"), [((28, 28, 1), 61_706), ((32, 32, 3), 62_006)])
def test_lenet_has_the_known_count(inputs, count):
    network = networks.lenet(inputs, 10)
    params, collections = network.shapes
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count
    output = jax.eval_shape(network.apply, params, collections, jax.ShapeDtypeStruct((2, *inputs), jnp.uint8))
    assert (output.maps.shape, output.features.shape) == ((2, 5, 5, 16), (2, 84))
    with pytest.raises(ValueError, match=r"at least 12x12 .*\(11, 28, 1\)"):
        networks.lenet((11, 28, 1))


@pytest.mark.parametrize(
    ("build", "inputs", "maps"),
    [
        (networks.resnet18, (224, 224, 3), (7, 7, 512)),
        (networks.resnet50, (64, 64, 3), (8, 8, 2048)),
        (networks.resnet32, (32, 32, 3), (8, 8, 64)),
    ],
)
@pytest.mark.parametrize("normalization", [None, "batch"])
def test_shapes_and_wires_at_the_real_size(build, inputs, maps, normalization):
    network = build(inputs, 7, normalization=normalization)
    params, collections = network.shapes
    images = jax.ShapeDtypeStruct((2, *inputs), jnp.uint8)
    output = jax.eval_shape(lambda *given: network.apply(*given, key=KEY), params, collections, images)
    assert (output.maps.shape, output.features.shape, output.logits.shape) == ((2, *maps), (2, maps[-1]), (2, 7))
    leaves, gates = leaves_of(params), collections["gates"]
    assert sorted(wire.path for wire in network.wiring) == sorted(leaves)
    assert set(output.activations) == set(gates)
    assert {name: found.shape[-1] for name, found in output.activations.items()} == {
        name: gate.size for name, gate in gates.items()
    }
    assert set(collections.get("frozen", {})) == (set(gates) if normalization else set())
    assert not normalization or not any(path.endswith("conv_0/bias") for path in leaves)
    for wire in network.wiring:
        shape = leaves[wire.path].shape
        assert wire.outputs is None or gates[wire.outputs].shape == shape[-1:]
        assert wire.inputs is None or gates[wire.inputs].shape == shape[-2:-1]


def convolve(values, layer, stride=1):
    pads = ((layer["kernel"].shape[0] // 2,) * 2,) * 2
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(values, layer["kernel"], (stride, stride), pads, dimension_numbers=numbers)


def affine(values, norm):
    return values * norm["scale"][None, None, None] + norm["bias"][None, None, None]


def randomized(network, seed=0):
    """Parameters, norms included, that are no round numbers."""
    params, collections = jax.jit(network.init)(KEY)
    generator = np.random.default_rng(seed)
    moved = lambda leaf: np.asarray(leaf) + generator.uniform(-0.2, 0.2, leaf.shape).astype(leaf.dtype)
    return jax.tree.map(moved, params), collections


def test_a_basic_network_is_its_forward_pass():
    network = resnet((9, 8, 2), 3, blocks=(1, 2), channels=(4, 6), normalization="feature", shortcut="padding")
    params, collections = randomized(network)
    images = np.random.default_rng(1).uniform(-1, 1, (2, 9, 8, 2)).astype(np.float32)

    def by_hand(params):
        values = stem = jnp.maximum(affine(convolve(images, params["stem"]), params["stem_norm"]), 0)
        for name, stride in (("block_0_0", 1), ("block_1_0", 2), ("block_1_1", 1)):
            block = params[name]
            inner = jnp.maximum(affine(convolve(values, block["conv_0"], stride), block["norm_0"]), 0)
            branch = affine(convolve(inner, block["conv_1"]), block["norm_1"])
            if stride == 2:
                values = jnp.pad(values[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (1, 1)))
            values = jnp.maximum(values + branch, 0)
        features = values.mean((1, 2))
        return stem, values, features @ params["head"]["kernel"] + params["head"]["bias"][None]

    stem, maps, logits = jax.jit(by_hand)(params)
    output = jax.jit(network.apply)(params, collections, images)
    np.testing.assert_allclose(output.maps, maps, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(output.logits, logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(output.activations["stage_0"][:, 0], stem, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(output.activations["stage_1"][:, -1], output.maps)
    assert output.activations["stage_1"].shape == (2, 2, 5, 4, 6)


def test_a_bottleneck_network_with_the_large_stem_is_its_forward_pass():
    network = resnet((20, 16, 3), 2, blocks=(1, 1), channels=(2, 3), bottleneck=True, stem="imagenet")
    params, collections = randomized(network)
    collections["batch_stats"] = jax.tree.map(lambda leaf: leaf + 0.25, collections["batch_stats"])
    images = np.random.default_rng(1).uniform(-1, 1, (2, 20, 16, 3)).astype(np.float32)

    def by_hand(params):
        norm = lambda values, own: affine((values - 0.25) / jnp.sqrt(1.25 + 1e-5), own)
        values = jnp.maximum(norm(convolve(images, params["stem"], 2), params["stem_norm"]), 0)
        around = ((0, 0), (1, 1), (1, 1), (0, 0))
        values = lax.reduce_window(values, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), around)
        for name, stride in (("block_0_0", 1), ("block_1_0", 2)):
            block = params[name]
            inner = jnp.maximum(norm(convolve(values, block["conv_0"]), block["norm_0"]), 0)
            inner = jnp.maximum(norm(convolve(inner, block["conv_1"], stride), block["norm_1"]), 0)
            carried = norm(convolve(values, block["shortcut"], stride), block["shortcut_norm"])
            values = jnp.maximum(carried + norm(convolve(inner, block["conv_2"]), block["norm_2"]), 0)
        return values, values.mean((1, 2)) @ params["head"]["kernel"] + params["head"]["bias"][None]

    maps, logits = jax.jit(by_hand)(params)
    output = jax.jit(network.apply)(params, collections, images)
    assert maps.shape == (2, 3, 2, 12)
    np.testing.assert_allclose(output.maps, maps, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(output.logits, logits, rtol=1e-4, atol=1e-5)
    assert set(output.activations) == set(collections["gates"]) > {"stem", "stage_0", "block_1_0/conv_1"}


@pytest.mark.parametrize("normalization", ["batch", "feature"])
def test_kernels_are_drawn_by_fan_out_and_the_last_of_each_block_smaller_without_batch_statistics(normalization):
    params, _ = jax.jit(resnet((8, 8, 3), 2, blocks=(2,), channels=(64,), normalization=normalization).init)(KEY)
    for name, parts in (("conv_0", 1), ("conv_1", 1 if normalization == "batch" else 2)):
        variance = np.var(params["block_0_1"][name]["kernel"])
        np.testing.assert_allclose(variance, 2 / (9 * 64) / parts, rtol=0.02)  # of 36,864 normal numbers


TINY = {"blocks": (1, 1), "channels": (5, 7)}


@pytest.mark.parametrize("shortcut", ["projection", "padding"])
@pytest.mark.parametrize("options", [{"normalization": "batch"}, {"normalization": "feature", "bottleneck": True}])
def test_gates_cut_the_stream(shortcut, options):
    check_gates(resnet((6, 6, 2), 2, **TINY, shortcut=shortcut, **options))


def test_a_gate_on_the_branch_alone_would_be_found():
    """What adds to the stream must be wired to the stream's gate."""
    network = resnet((6, 6, 2), 2, **TINY, normalization="feature")
    wrong = [wire._replace(inputs="block_0_0/conv_0") if "shortcut/k" in wire.path else wire for wire in network.wiring]
    with pytest.raises(ValueError, match=r"'stage_1' depend on weights|still reads features"):
        check_gates(network._replace(wiring=tuple(wrong)))


def test_a_task_can_be_cut_out_but_not_with_padded_shortcuts():
    network = resnet((6, 6, 2), 2, **TINY)
    params, collections = randomized(network)
    keep = {name: jnp.arange(gate.size) % 3 != 1 for name, gate in collections["gates"].items()}
    collections["gates"] = {name: kept.astype(jnp.float32) for name, kept in keep.items()}
    images = np.random.default_rng(1).uniform(-1, 1, (3, 6, 6, 2)).astype(np.float32)
    small = [masks.extract(tree, network.wiring, keep) for tree in (params, collections)]
    assert small[0]["block_1_0"]["shortcut"]["kernel"].shape == (1, 1, 3, 5)
    run = jax.jit(lambda *trees: network.apply(*trees, images).logits)
    np.testing.assert_allclose(run(*small), run(params, collections), rtol=1e-4, atol=1e-6)
    padded = resnet((6, 6, 2), 2, **TINY, shortcut="padding")
    del params["block_1_0"]["shortcut"], params["block_1_0"]["shortcut_norm"]
    small[0] = masks.extract(params, padded.wiring, keep)
    with pytest.raises(ValueError, match=r"cannot be cut out .* shortcut='projection'"):
        jax.eval_shape(padded.apply, *small, images)


def test_the_last_layers_are_the_last_in_the_order_of_computation():
    network = networks.own_last_layers(resnet((6, 6, 2), 2, **TINY), 2)
    modules = {path.rpartition("/")[0] for path in network.per_task if not path.startswith("batch_stats")}
    assert modules == {"head", *(f"block_1_0/{name}" for name in ("conv_0", "norm_0", "conv_1", "norm_1"))}
    assert {path for path in network.per_task if path.startswith("batch_stats")} == {
        f"batch_stats/block_1_0/{name}/{moment}" for name in ("norm_0", "norm_1") for moment in ("mean", "var")
    }


FORGETTING_NOTHING = {
    "tfm": (functools.partial(methods.tfm, growth=0.3), {"normalization": "feature"}),
    "clnp": (functools.partial(methods.clnp, margin=0.1), {"normalization": "batch", "shortcut": "padding"}),
    "hat": (functools.partial(methods.hat, binarize=True), {"blocks": (1,), "channels": (4,)}),
    "packnet": (methods.packnet, {"blocks": (1,), "channels": (4,)}),
}


@pytest.mark.parametrize("name", FORGETTING_NOTHING)
def test_no_bit_is_forgotten(name):
    """Tasks in turn and one again; each first visit trains weights of every layer."""
    build, options = FORGETTING_NOTHING[name]
    stream = five_tasks()
    network = resnet((8, 8, 1), 2, **{**TINY, **options}, mean=stream.mean, std=stream.std)
    visits = Visits(build(network), stream, optimizers=("adam",))
    start = visits.start()
    learner = visits.run(start, [0, 1, 0, 2])
    for path, before, after in zip(
        task_params.leaf_paths(start.params), *map(jax.tree.leaves, (start.params, learner.params)), strict=True
    ):
        assert (np.asarray(before) != np.asarray(after)).any(), path
    if name in ("hat", "packnet"):
        return
    owner = learner.method_state.owner
    assert {name: leaf.size for name, leaf in owner.items()} == {
        "stage_0": 5,
        "block_0_0/conv_0": 5,
        "block_1_0/conv_0": 7,
        "stage_1": 7,
    }
    images = visits.tables.examples[:24]
    shown = network.apply(*export_task(visits.method, learner, 1), images).logits
    np.testing.assert_allclose(shown, visits.logits(learner)[1], rtol=1e-4, atol=1e-5)


def test_numbers_out_of_range_are_refused():
    for options, words in (
        ({"blocks": (1,)}, "1 stages and channels 4"),
        ({"stem": "large"}, "stem is 'large', but must be one of cifar, imagenet"),
        ({"shortcut": "none"}, "shortcut is 'none'"),
        ({"width": 0}, "width"),
        ({"normalization": "layer"}, "normalization is"),
    ):
        with pytest.raises(ValueError, match=words):
            resnet((8, 8, 3), 2, **options)
    with pytest.raises(ValueError, match=r"inputs is \(64,\), but must be the shape of an image"):
        networks.resnet18((64,), 2)
    assert networks.resnet18(SMALL, 2, width=20 / 64).shapes[1]["gates"]["stage_3"].size == 160
