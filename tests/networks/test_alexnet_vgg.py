"""AlexNet and VGG-16: the counts known of them, shapes at the real sizes, and a forward pass written by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jax import lax

from cljax.networks import alexnet, vgg16

BOTH = pytest.mark.parametrize("build", [alexnet, vgg16])


def leaves_of(tree):
    return {"/".join(path): leaf for path, leaf in flatten_dict(tree).items()}


@pytest.mark.parametrize(
    ("build", "parameters", "kernels", "features"),
    [(alexnet, 61_100_840, 56_994_496, 9_344), (vgg16, 138_357_544, 134_248_128, 12_416)],
)
def test_the_counts_are_the_known_ones(build, parameters, kernels, features):
    params, collections = build().shapes
    leaves = leaves_of(params)
    hidden = {path: leaf for path, leaf in leaves.items() if not path.startswith("head")}
    count = lambda ending: sum(leaf.size for path, leaf in hidden.items() if path.endswith(ending))
    assert sum(leaf.size for leaf in leaves.values()) == parameters
    assert (count("kernel"), count("bias")) == (kernels, features)
    assert sum(gate.size for gate in collections["gates"].values()) == features


@pytest.mark.parametrize(("build", "maps"), [(alexnet, (2, 6, 6, 256)), (vgg16, (2, 7, 7, 512))])
@pytest.mark.parametrize("normalization", [None, "batch", "feature"])
def test_shapes_at_the_real_size(build, maps, normalization):
    network = build(outputs=401, normalization=normalization)
    params, collections = network.shapes
    images = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.uint8)
    output = jax.eval_shape(lambda *given: network.apply(*given, key=jax.random.key(0)), params, collections, images)
    assert (output.maps.shape, output.features.shape, output.logits.shape) == (maps, (2, 4096), (2, 401))
    leaves, gates = leaves_of(params), collections["gates"]
    assert sorted(wire.path for wire in network.wiring) == sorted(leaves)
    assert set(output.activations) == set(gates)
    assert set(collections.get("frozen", {})) == (set(gates) if normalization == "batch" else set())
    assert sum(path.endswith("/scale") for path in leaves) == (len(gates) if normalization else 0)
    for wire in network.wiring:
        shape = leaves[wire.path].shape
        assert wire.outputs is None or gates[wire.outputs].shape == shape[-1:]
        assert wire.inputs is None or gates[wire.inputs].size * wire.repeat == shape[-2]


def small_alexnet():
    network = alexnet((67, 67, 3), 3, width=1 / 64, normalization="feature", mean=(0.4, 0.5, 0.6), std=0.2)
    params, collections = network.init(jax.random.key(0))
    params = jax.tree.map(lambda leaf: leaf + 0.02, params)  # biases too, scales of 1.02, shifts of 0.02
    return network, params, collections


def test_alexnet_is_its_forward_pass():
    network, params, collections = small_alexnet()
    images = np.random.default_rng(0).integers(0, 256, (2, 67, 67, 3)).astype(np.uint8)

    def by_hand(params, images):
        values = (images / 255 - jnp.array([[[[0.4, 0.5, 0.6]]]], jnp.float32)) / 0.2
        for index, (stride, padding) in enumerate([(4, 2), (1, 2), (1, 1), (1, 1), (1, 1)]):
            layer = params[f"conv_{index}"]
            pads, numbers = ((padding, padding),) * 2, ("NHWC", "HWIO", "NHWC")
            values = lax.conv_general_dilated(
                values, layer["kernel"], (stride, stride), pads, dimension_numbers=numbers
            )
            values = jnp.maximum(1.02 * (values + layer["bias"][None, None, None]) + 0.02, 0)
            if index in (0, 1, 4):
                values = lax.reduce_window(values, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "VALID")
        values = values.reshape(2, -1)
        for name in ("dense_0", "dense_1"):
            values = jnp.maximum(1.02 * (values @ params[name]["kernel"] + params[name]["bias"][None]) + 0.02, 0)
        return values, values @ params["head"]["kernel"] + params["head"]["bias"][None]

    features, logits = jax.jit(by_hand)(params, images.astype(np.float32))
    output = jax.jit(network.apply)(params, collections, images)
    np.testing.assert_allclose(output.features, features, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(output.logits, logits, rtol=1e-4, atol=1e-5)
    assert output.maps.shape == (2, 1, 1, 4)


def test_dropout_is_behind_both_dense_layers():
    network, params, collections = small_alexnet()
    maps = jnp.ones((1, 1, 1, 4))

    @jax.jit
    def run(key):
        (logits, features), activations, _ = network.decode(params, collections, maps, train=True, key=key)
        return logits, features, activations["dense_0"]

    seen = [run(jax.random.key(seed)) for seed in range(8)]
    assert all((first == seen[0][2]).all() for *_, first in seen)  # nothing is dropped before the first
    assert len({np.asarray(features).tobytes() for _, features, _ in seen}) > 1  # the second sees the first's dropout
    kernel, bias = params["head"]["kernel"], params["head"]["bias"]
    off = [logits - features @ kernel - bias[None] for logits, features, _ in seen]
    assert all(abs(np.asarray(one)).max() > 1e-3 for one in off)  # and the head the second's


@BOTH
def test_images_too_small_are_refused(build):
    with pytest.raises(ValueError, match=r"at least .*\(31, 224, 3\)"):
        build((31, 224, 3))
