"""MLP and CNN: equal to a forward pass written by hand, gated exactly, wired completely."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jax import lax

from cljax.networks import Pool, alexnet, clnp_cnn, clnp_wide, cnn, convolve, df_cnn_base, mlp

MEAN, STD = (0.4, 0.5), (0.2, 0.3)
BUILDERS = {
    "mlp": lambda **options: mlp((5, 4, 2), 3, hidden=(7, 6), mean=MEAN, std=STD, **options),
    "cnn": lambda **options: cnn(
        (8, 6, 2), 3, channels=((4, 5), (6,)), kernel=(3, 2), dense=(7,), mean=MEAN, std=STD, **options
    ),
    "cnn_without_dense": lambda **options: cnn(
        (8, 8, 2), 3, channels=((4,),), pool=Pool(3, 2, ((1, 1), (1, 1))), dense=(), mean=MEAN, std=STD, **options
    ),
}
NORMS = [None, "batch", "feature"]
EVERY = pytest.mark.parametrize(
    ("builder", "normalization"), [(builder, norm) for builder in BUILDERS for norm in NORMS]
)


def make(builder, normalization, **options):
    """A network whose every parameter and statistic is random, so that nothing hides behind a zero or a one."""
    network = BUILDERS[builder](normalization=normalization, **options)
    params, collections = network.shapes
    generator = np.random.default_rng(0)

    def draw(leaf):
        spread = 1.0 if leaf.ndim == 1 else 1.5 / np.sqrt(math.prod(leaf.shape[:-1]))
        return jnp.asarray((0.1 + spread * generator.uniform(-0.5, 1.0, leaf.shape)).astype(leaf.dtype))

    collections = {
        "gates": {name: jnp.ones(gate.shape, gate.dtype) for name, gate in collections["gates"].items()},
        **(
            {"frozen": {name: jnp.zeros(one.shape, bool) for name, one in collections["frozen"].items()}}
            if "frozen" in collections
            else {}
        ),
        **(
            {"batch_stats": jax.tree.map(lambda leaf: abs(draw(leaf)) + 0.1, collections["batch_stats"])}
            if "batch_stats" in collections
            else {}
        ),
    }
    raw = jnp.asarray(generator.integers(0, 256, (4, *network.inputs)).astype(np.uint8))
    return network, jax.tree.map(draw, params), collections, raw


def by_hand(builder, params, collections, raw, norm_after=False):
    """The same networks in evaluation mode, in plain `jnp` and `lax`."""
    statistics = collections.get("batch_stats", {})

    def unit(name, norm, values):
        kernel, bias = params[name]["kernel"], params[name]["bias"]
        if kernel.ndim == 4:
            values = lax.conv_general_dilated(
                values, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
        else:
            values = values @ kernel
        values = values + jnp.expand_dims(bias, tuple(range(values.ndim - 1)))
        values = jnp.maximum(values, 0.0) if norm_after else values
        if norm in params:
            axes = tuple(range(values.ndim - 1))
            wide = lambda x: jnp.expand_dims(x, axes)
            if norm in statistics:
                values = (values - wide(statistics[norm]["mean"])) / jnp.sqrt(wide(statistics[norm]["var"]) + 1e-5)
            values = values * wide(params[norm]["scale"]) + wide(params[norm]["bias"])
        return values if norm_after else jnp.maximum(values, 0.0)

    def pool(values, window, stride, padding):
        return lax.reduce_window(
            values,
            -jnp.inf,
            lax.max,
            (1, window, window, 1),
            (1, stride, stride, 1),
            ((0, 0), padding, padding, (0, 0)),
        )

    values = (raw.astype(jnp.float32) / 255 - jnp.array(MEAN)[None, None, None]) / jnp.array(STD)[None, None, None]
    if builder == "mlp":
        values = maps = unit("dense_1", "norm_1", unit("dense_0", "norm_0", values.reshape(len(raw), -1)))
    elif builder == "cnn":
        values = pool(unit("conv_0_1", "conv_norm_0_1", unit("conv_0_0", "conv_norm_0_0", values)), 2, 2, (0, 0))
        maps = pool(unit("conv_1_0", "conv_norm_1_0", values), 2, 2, (0, 0))
        values = unit("dense_0", "dense_norm_0", maps.reshape(len(raw), -1))
    else:
        maps = pool(unit("conv_0_0", "conv_norm_0_0", values), 3, 2, (1, 1))
        values = maps.reshape(len(raw), -1)
    return maps, values, values @ params["head"]["kernel"] + params["head"]["bias"][None]


AFTER = [("mlp", "batch", True), ("cnn", "feature", True)]


@pytest.mark.parametrize(
    ("builder", "normalization", "norm_after"), [(name, norm, False) for name in BUILDERS for norm in NORMS] + AFTER
)
def test_encode_and_decode_are_the_forward_pass(builder, normalization, norm_after):
    network, params, collections, raw = make(builder, normalization, norm_after=norm_after)
    output = jax.jit(network.apply)(params, collections, raw)
    hand = jax.jit(by_hand, static_argnums=(0, 4))
    maps, features, logits = hand(builder, params, collections, raw, norm_after)
    np.testing.assert_allclose(output.maps, maps, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(output.features, features, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(output.logits, logits, rtol=1e-4, atol=1e-4)
    chex.assert_trees_all_equal(output.collections, collections)
    assert set(output.activations) == set(collections["gates"])
    assert set(collections) == {"gates"} | ({"batch_stats", "frozen"} if normalization == "batch" else set())


@EVERY
def test_wiring_names_every_leaf_with_its_axes(builder, normalization):
    network, params, collections, _ = make(builder, normalization)
    leaves = {"/".join(path): leaf for path, leaf in flatten_dict(params).items()}
    sizes = {name: len(gate) for name, gate in collections["gates"].items()}
    assert sorted(wire.path for wire in network.wiring) == sorted(leaves)
    assert network.per_task == ("head/kernel", "head/bias")
    readers = []
    for wire in network.wiring:
        leaf = leaves[wire.path]
        if wire.inputs is not None:
            readers.append(wire.inputs)
            assert leaf.shape[-2] == wire.repeat * sizes[wire.inputs]
        if wire.outputs is not None:
            assert leaf.shape[-1] == sizes[wire.outputs]
        assert (wire.outputs is None) == wire.path.startswith("head/")
    assert sorted(readers) == sorted(sizes)  # in a chain, each gate has one reader


@EVERY
def test_a_closed_gate_cuts_exactly_its_wires(builder, normalization):
    """Whatever hangs on closed features, to either side, changes no bit of the logits; what is open does."""
    network, params, collections, raw = make(builder, normalization)
    forward = jax.jit(lambda params, gates: network.apply(params, {**collections, "gates": gates}, raw).logits)
    for name, gate in collections["gates"].items():
        mask = (jnp.arange(len(gate)) % 2).astype(jnp.float32)
        gates = {**collections["gates"], name: mask}
        logits = forward(params, gates)
        for wire in network.wiring:
            if name not in (wire.inputs, wire.outputs):
                continue
            for axis, end, repeat in ((-2, wire.inputs, wire.repeat), (-1, wire.outputs, 1)):
                if end != name:
                    continue
                closed = 1.0 - jnp.tile(mask, repeat)
                module, leaf = wire.path.split("/")

                def perturbed(where, axis=axis, module=module, leaf=leaf):
                    value = params[module][leaf]
                    shape = [1] * value.ndim
                    shape[axis] = -1
                    return {**params, module: {**params[module], leaf: value + 0.7 * where.reshape(shape)}}

                np.testing.assert_array_equal(forward(perturbed(closed), gates), logits)
                assert not np.array_equal(forward(perturbed(1.0 - closed), gates), logits), wire


@pytest.mark.parametrize("builder", BUILDERS)
def test_training_moves_only_the_free_statistics(builder):
    network, params, collections, raw = make(builder, "batch", dropout=0.3)
    collections["extra"] = {"kept": jnp.arange(3)}
    collections["frozen"] = {
        name: (jnp.arange(value.size) % 2).astype(bool) for name, value in collections["frozen"].items()
    }
    output = jax.jit(network.apply)(params, collections, raw, key=jax.random.key(1))
    for name in ("gates", "frozen", "extra"):
        chex.assert_trees_all_equal(output.collections[name], collections[name])
    frozen_of = {wire.path.split("/")[0]: wire.outputs for wire in network.wiring if "norm" in wire.path}
    for norm, before in collections["batch_stats"].items():
        frozen = collections["frozen"][frozen_of[norm]]
        for name in ("mean", "var"):
            after = output.collections["batch_stats"][norm][name]
            np.testing.assert_array_equal(after == before[name], frozen)


def test_dropout_needs_training_and_follows_the_key():
    network, params, collections, raw = make("mlp", None, dropout=0.5)
    apply = jax.jit(network.apply)
    once, again, other = (apply(params, collections, raw, key=jax.random.key(k)).logits for k in (0, 0, 1))
    np.testing.assert_array_equal(once, again)
    assert not np.array_equal(once, other)
    maps = jnp.arange(1.0, 7.0)[None]
    read, features = jax.jit(jax.vmap(lambda key: network.decode(params, collections, maps, train=True, key=key)[0]))(
        jax.random.split(jax.random.key(2), 400)
    )
    read = read[:, 0]
    np.testing.assert_array_equal(features, jnp.tile(maps, (400, 1, 1)))  # the features are as they are before dropout
    kept = jnp.array([[i >> unit & 1 for unit in range(6)] for i in range(64)], jnp.float32)  # every mask of six units
    possible = 2 * kept * maps @ params["head"]["kernel"] + params["head"]["bias"][None]
    distance = jnp.abs(read[:, None] - possible[None]).max(-1)
    assert float(distance.min(1).max()) < 1e-4  # each outcome is a mask's, its units doubled
    assert len(set(distance.argmin(1).tolist())) > 32


@pytest.mark.parametrize("builder", BUILDERS)
@pytest.mark.parametrize("normalization", ["batch", "feature"])
def test_float64(builder, normalization):
    network, params, collections, raw = make(builder, normalization)
    narrow = jax.jit(network.apply)(params, collections, raw)
    with jax.enable_x64(True):
        widen = lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x
        wide = jax.tree.map(widen, (params, collections))
        output = jax.jit(network.apply)(*wide, raw)
        assert output.logits.dtype == output.maps.dtype == jnp.float64
        np.testing.assert_allclose(output.logits, narrow.logits, rtol=1e-4, atol=1e-4)
        trained = jax.eval_shape(network.apply, *wide, raw, key=jax.random.key(0))
        chex.assert_trees_all_equal_shapes_and_dtypes(trained.collections, wide[1])


def test_bfloat16_parameters_beside_float32_statistics():
    """The second convolution used to get float32 features for its bfloat16 kernel."""
    network, params, collections, raw = make("cnn", "batch")
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    apply = jax.jit(network.apply)
    output, wide = (apply(one, collections, raw, key=jax.random.key(0)) for one in (narrow, params))
    assert output.logits.dtype == output.maps.dtype == jnp.bfloat16
    chex.assert_trees_all_equal_shapes_and_dtypes(output.collections, wide.collections)
    for ours, theirs in zip(*map(jax.tree.leaves, (output.collections, wide.collections)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("network", [*(build() for build in BUILDERS.values()), alexnet((63, 63, 1), 3)])
def test_no_examples_have_no_logits(network):
    output = jax.eval_shape(network.apply, *network.shapes, jnp.zeros((0, *network.inputs)))
    assert (len(output.maps), len(output.features), output.logits.shape) == (0, 0, (0, 3))


def test_vmapped_seeds_are_single_ones():
    network = cnn((6, 6, 1), 2, channels=((3,),), dense=(), normalization="batch")
    params, collections = jax.jit(network.init)(jax.random.key(0))
    both = jax.tree.map(lambda x: jnp.stack([x, x + 0.1]), params)
    raw = jnp.asarray(np.random.default_rng(0).integers(0, 256, (4, 6, 6, 1)).astype(np.uint8))

    def gradient(params):
        loss = lambda p: jnp.sum(jnp.square(network.apply(p, collections, raw, key=jax.random.key(0)).logits))
        return jax.grad(loss)(params)

    single = jax.jit(gradient)
    alone = [single(jax.tree.map(lambda x, i=i: x[i], both)) for i in range(2)]
    together = jax.jit(jax.vmap(gradient))(both)
    chex.assert_trees_all_close(together, jax.tree.map(lambda *leaves: jnp.stack(leaves), *alone), rtol=1e-4, atol=1e-5)
    assert float(jnp.abs(together["conv_0_0"]["kernel"]).max()) > 1e-3


@pytest.mark.parametrize(
    ("data", "size", "outputs", "count"),
    [
        ("mnist", "base", 10, 152_810),
        ("cifar", "base", 10, 328_426),
        ("cifar", "large", 10, 934_586),  # ten of them: 9,345,860
        ("office_home", "base", 13, 2_679_437),
        ("office_home", "large", 13, 12_928_525),
    ],
)
def test_df_cnn_base_has_the_published_count(data, size, outputs, count):
    network = df_cnn_base(data, outputs, size=size)
    params, _ = network.shapes
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)) == count


def test_df_cnn_base_initialisation():
    params, _ = jax.jit(df_cnn_base("mnist", 10).init)(jax.random.key(0))
    kernel = params["dense_0"]["kernel"]
    assert float(jnp.abs(kernel).max()) <= 0.1  # a normal of deviation 0.05, truncated at two deviations
    np.testing.assert_allclose(float(kernel.std()), 0.05 * 0.87962566, rtol=0.01)
    np.testing.assert_array_equal(params["head"]["bias"], jnp.full(10, 0.2))


def test_initialisation():
    network = mlp((4,), 2, hidden=(3,), normalization="batch")
    params, collections = jax.jit(network.init)(jax.random.key(0))
    chex.assert_trees_all_equal(params["dense_0"]["bias"], jnp.zeros(3))
    chex.assert_trees_all_equal(params["norm_0"], {"scale": jnp.ones(3), "bias": jnp.zeros(3)})
    expected = {
        "batch_stats": {"norm_0": {"mean": jnp.zeros(3), "var": jnp.ones(3)}},
        "frozen": {"dense_0": jnp.zeros(3, bool)},
        "gates": {"dense_0": jnp.ones(3)},
    }
    chex.assert_trees_all_equal(collections, expected)
    assert len(np.unique(params["dense_0"]["kernel"])) == 12


def test_clnp_wide_has_the_published_sizes_and_averages_the_last_convolution():
    network = clnp_wide((33, 32, 3), 4, width=1 / 64)  # one side of the last maps is longer
    params, collections = jax.jit(network.init)(jax.random.key(0))
    apply = jax.jit(network.apply)
    images = jax.random.uniform(jax.random.key(1), (2, 33, 32, 3))
    output = apply(params, collections, images)
    sizes = {name: value.shape[1:] for name, value in output.activations.items()}
    assert sizes == {
        "conv_0": (33, 32, 2),
        "conv_1": (16, 15, 4),
        "conv_2": (14, 13, 8),
        "conv_3": (7, 7, 16),
        "conv_4": (5, 5, 32),
    }
    kernel = params["head"]["kernel"].reshape(3, 3, 32, 4)
    logits = convolve(output.maps, kernel, padding="VALID").mean((1, 2)) + params["head"]["bias"][None]
    np.testing.assert_allclose(output.logits, logits, rtol=1e-5, atol=1e-6)
    unit = network.wiring[-2]
    assert (unit.path, unit.inputs, unit.repeat) == ("head/kernel", "conv_4", 9)
    off = dict(collections["gates"], conv_4=collections["gates"]["conv_4"].at[5].set(0))
    without = apply(
        {**params, "head": {**params["head"], "kernel": kernel.at[:, :, 5].set(0).reshape(-1, 4)}}, collections, images
    )
    np.testing.assert_array_equal(apply(params, {**collections, "gates": off}, images).logits, without.logits)


def test_clnp_cnn_has_the_published_sizes():
    network = clnp_cnn()
    params, collections = network.shapes
    output = jax.eval_shape(network.apply, params, collections, jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.uint8))
    sizes = {name: value.shape for name, value in output.activations.items()}
    assert sizes == {
        "conv_0_0": (1, 32, 32, 32),
        "conv_0_1": (1, 32, 32, 32),
        "conv_1_0": (1, 16, 16, 64),
        "conv_1_1": (1, 16, 16, 64),
        "dense_0": (1, 512),
    }
    assert output.maps.shape == (1, 8, 8, 64)
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)) == 65_568 + 2_097_664 + 5_130


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="pool has 3 values for 2 blocks"):
        cnn((8, 8, 1), 2, pool=(Pool(), Pool(), Pool()))
    with pytest.raises(ValueError, match="normalization is 'batch', 'feature' or None, not 'layer'"):
        mlp((4,), 2, normalization="layer")
    with pytest.raises(ValueError, match="at least one hidden layer"):
        mlp((4,), 2, hidden=())
    for data, size in (("imagenet", "base"), ("mnist", "large")):
        with pytest.raises(ValueError, match=rf"mnist \(base\), cifar \(base\).*not for '{data}' \({size}\)"):
            df_cnn_base(data, 10, size=size)
    network = mlp((4,), 2, hidden=(3,))
    with pytest.raises(ValueError, match="inputs has shape"):
        jax.eval_shape(network.apply, *network.shapes, jnp.ones((2, 5)))
