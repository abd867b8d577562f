"""Parameters that PyTorch has saved: names that are suggested, arrays turned round, maps flattened in another order."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen
from jax import lax

from cljax import methods, networks, training
from cljax.storage import checkpoints

CNN = networks.cnn((8, 8, 3), 5, channels=((4,), (6,)), dense=(7,), normalization="batch", norm_after=False)
METHOD = methods.finetune(CNN)
SHAPES = {
    "features.0.weight": (4, 3, 3, 3),
    "features.0.bias": (4,),
    "features.1.weight": (4,),
    "features.1.bias": (4,),
    "features.1.running_mean": (4,),
    "features.1.running_var": (4,),
    "features.10.weight": (6, 4, 3, 3),
    "features.10.bias": (6,),
    "features.11.weight": (6,),
    "features.11.bias": (6,),
    "features.11.running_mean": (6,),
    "features.11.running_var": (6,),
    "classifier.0.weight": (7, 24),
    "classifier.0.bias": (7,),
    "classifier.1.weight": (7,),
    "classifier.1.bias": (7,),
    "classifier.1.running_mean": (7,),
    "classifier.1.running_var": (7,),
    "classifier.3.weight": (5, 7),
    "classifier.3.bias": (5,),
}
DRAWN = np.random.default_rng(5)
STATE = {name: DRAWN.uniform(0.1, 1.0, shape).astype(np.float32) - 0.3 for name, shape in SHAPES.items()}
STATE = {name: abs(value) if "var" in name else value for name, value in STATE.items()}
EXTRA = {"features.1.num_batches_tracked": np.array(7)}


def as_torch(x):
    """The logits by PyTorch's conventions: channels first, kernels [out, in, ...], maps flattened as C, H, W."""
    x = jnp.moveaxis(x.astype(jnp.float32) / 255, -1, 1)

    def normal(x, name):
        leaf = lambda part: STATE[f"{name}.{part}"].reshape(1, -1, *[1] * (x.ndim - 2))
        return leaf("weight") * (x - leaf("running_mean")) / jnp.sqrt(leaf("running_var") + 1e-5) + leaf("bias")

    for conv, norm in (("features.0", "features.1"), ("features.10", "features.11")):
        x = lax.conv_general_dilated(
            x, STATE[f"{conv}.weight"], (1, 1), "SAME", dimension_numbers=("NCHW", "OIHW", "NCHW")
        )
        x = jax.nn.relu(normal(x + STATE[f"{conv}.bias"].reshape(1, -1, 1, 1), norm))
        x = x.reshape(*x.shape[:2], x.shape[2] // 2, 2, x.shape[3] // 2, 2).max((3, 5))
    x = x.reshape(len(x), -1) @ STATE["classifier.0.weight"].T + STATE["classifier.0.bias"][None]
    x = jax.nn.relu(normal(x, "classifier.1"))
    return x @ STATE["classifier.3.weight"].T + STATE["classifier.3.bias"][None]


def test_a_torch_network_computes_the_same_under_the_suggested_names(tmp_path):
    names = training.suggest_names(METHOD, {**STATE, **EXTRA})
    assert names["classifier.0.weight"] == "dense_0/kernel"
    assert names["features.11.running_var"] == "batch_stats/conv_norm_1_0/var"
    assert set(names) == set(STATE)
    np.savez(tmp_path / "a.npz", **STATE, **EXTRA)
    images = np.random.default_rng(1).integers(0, 256, (3, 8, 8, 3), np.uint8)
    leaves = [training.given_params(METHOD, STATE, names)]
    leaves.append(training.given_params(METHOD, checkpoints.load_params(tmp_path / "a.npz"), names))
    np.savez(tmp_path / "own.npz", **leaves[0])
    leaves.append(training.given_params(METHOD, checkpoints.load_params(tmp_path / "own.npz")))
    for given in leaves:
        assert {name: leaf.tobytes() for name, leaf in given.items()} == {n: v.tobytes() for n, v in leaves[0].items()}
    params, collections = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), CNN.shapes)
    for path, leaf in leaves[0].items():
        tree = collections if path.startswith("batch_stats") else params
        *parts, last = path.split("/")
        for part in parts:
            tree = tree[part]
        assert tree[last].shape == leaf.shape
        tree[last] = leaf
    logits = CNN.apply(params, collections, images).logits
    np.testing.assert_allclose(logits, as_torch(images), rtol=2e-4, atol=2e-5)


def test_names_are_suggested_in_the_error_and_a_head_of_other_classes_stays_out():
    other = {**STATE, "classifier.3.weight": np.zeros((9, 7)), "classifier.3.bias": np.zeros(9)}
    with pytest.raises(
        ValueError, match=r"classifier.0.* is none of finetune's.*names={'features.0.bias': 'conv_0_0/bias'"
    ):
        training.given_params(METHOD, other)
    names = training.suggest_names(METHOD, other)
    leaves = training.given_params(METHOD, other, names)
    assert not [path for path in leaves if path.startswith("head")]
    assert leaves["conv_1_0/kernel"][1, 2].tolist() == STATE["features.10.weight"][:, :, 1, 2].T.tolist()
    with pytest.raises(ValueError, match=r"'norm' of shape .* is none of finetune's, which are"):
        training.given_params(METHOD, {"norm": np.zeros(3)})


def test_an_mlp_reads_pixels_with_their_channels_last():
    method = methods.finetune(networks.mlp((2, 2, 3), 2, hidden=(1,)))
    weight = np.arange(12.0).reshape(1, 12)  # 3 channels of 2 x 2 pixels
    leaves = training.given_params(
        method, {"l.weight": weight, "l.bias": np.zeros(1)}, {"l.weight": "dense_0/kernel", "l/bias": "dense_0/bias"}
    )
    assert leaves["dense_0/kernel"].ravel().tolist() == [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]


class Flattening(linen.Module):
    @linen.compact
    def __call__(self, x, *, train=False):
        return linen.Dense(2)(linen.Conv(3, (3, 3))(x).reshape(len(x), -1))


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ({"d.weight": "Dense_0/kernel"}, r"'d.weight' of shape \(2, 48\) seems to read flattened maps.*H, W, C"),
        ({"x": "Dense_0/kernel"}, "names has 'x', but the given leaves are: Dense_0/bias, c.bias, c.weight"),
        (
            {"c.bias": "Conv_0/bias", "d.bias": "Conv_0/bias"},
            "names gives the leaf 'Conv_0/bias' twice",
        ),
        ({"c.bias": "Conv/bias"}, "names has 'Conv/bias' for 'c.bias', but the network's leaves are: Conv_0/bias"),
        (["c.bias"], "names is .*, but must be {given name: leaf path}"),
    ],
)
def test_names_that_cannot_be(names, words):
    method = methods.finetune(networks.from_linen(Flattening(), (4, 4, 1), outputs=2))
    shapes = {"c.weight": (3, 1, 3, 3), "c.bias": (3,), "d.weight": (2, 48), "d.bias": (2,), "Dense_0/bias": (2,)}
    with pytest.raises(ValueError, match=words):
        training.given_params(method, {name: np.zeros(shape) for name, shape in shapes.items()}, names)


def test_a_network_with_a_layer_more_is_taken_as_suggested():
    method = methods.finetune(networks.mlp((4,), 2, hidden=(4, 4)))
    layers = enumerate(("A", "dense_0", "dense_1"), 1)
    given = {f"{layer}/kernel": np.full((4, 4), float(number)) for number, layer in layers}
    given |= {name.replace("kernel", "bias"): value[0] for name, value in given.items()}
    names = training.suggest_names(method, given)
    leaves = training.given_params(method, given, names)
    assert {path: leaf.max() for path, leaf in leaves.items()} == {
        path: given[name].max() for name, path in names.items()
    }


def test_files_that_are_no_arrays(tmp_path):
    import zipfile

    (tmp_path / "a.pt").write_bytes(b"PK")
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as file:
        file.writestr("data.pkl", b"abc")
    np.savez(tmp_path / "c.npz", **{"a.b": np.ones(1), "a/b": np.ones(1)})
    np.savez(tmp_path / "d.npz", a=np.array([None]))
    for name, words in (("a.pt", "pickle"), ("b.npz", "no .npz"), ("c.npz", "two of its arrays"), ("d.npz", "Object")):
        with pytest.raises(ValueError, match=words):
            checkpoints.load_params(tmp_path / name)
