"""The networks of docs/own_networks.md: gates and norms in a user's Linen and NNX modules, and no bit forgotten."""

import functools
import pathlib
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from cljax import methods, networks
from cljax.networks import nnx_layers
from tests.shared import assert_close, bits
from tests.zero_forgetting import Visits, five_tasks

KEY = jax.random.key(0)
PAGE = pathlib.Path(__file__).parents[2] / "docs/own_networks.md"


@functools.cache
def page():
    """What the page's Python defines; its assertions hold."""
    found: dict = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(block, found)
    return found


RUNS = {
    "Linen, clnp": ("linen", "batch", functools.partial(methods.clnp, margin=0.1)),
    "NNX, clnp": ("of_nnx", "batch", functools.partial(methods.clnp, margin=0.1)),
    "NNX, tfm": ("of_nnx", "feature", functools.partial(methods.tfm, growth=0.3)),
}


@pytest.mark.parametrize("name", RUNS)
def test_no_bit_is_forgotten(name):
    make, normalization, method = RUNS[name]
    stream = five_tasks()
    network = page()[make]((8, 8, 1), 2, normalization=normalization, mean=stream.mean, std=stream.std)
    visits = Visits(method(network), stream, optimizers=("adam",))
    start = visits.start()
    learner = visits.run(start, [0, 1, 0, 2])
    moved = lambda before, after: [a != b for a, b in zip(bits(before), bits(after), strict=True)]
    assert all(moved(start.params, learner.params))
    if normalization == "batch":
        assert all(moved(start.collections["batch_stats"], learner.collections["batch_stats"]))


def test_gates_and_frozen_flags_of_an_nnx_module():
    network = page()["of_nnx"]((8, 8, 1), 2, normalization="batch")
    assert [(wire.path, wire.inputs, wire.outputs) for wire in network.wiring] == [
        ("layers/0/kernel", None, "norms/0"),
        ("layers/0/bias", None, "norms/0"),
        ("norms/0/bias", None, "norms/0"),
        ("norms/0/scale", None, "norms/0"),
        ("layers/1/kernel", "norms/0", "norms/1"),
        ("layers/1/bias", None, "norms/1"),
        ("norms/1/bias", None, "norms/1"),
        ("norms/1/scale", None, "norms/1"),
        ("head/kernel", "norms/1", None),
        ("head/bias", None, None),
    ]
    params, collections = jax.jit(network.init)(KEY)
    assert {name: flags.shape for name, flags in collections["frozen"].items()} == {"norms/0": (9,), "norms/1": (7,)}
    collections["gates"]["norms/0"] = jnp.arange(9.0) % 2.0
    collections["frozen"]["norms/1"] = jnp.arange(7) < 3
    images = jax.random.normal(KEY, (6, 8, 8, 1))

    def by_hand(params, images):
        values = images.reshape(6, -1)
        for index in "01":
            layer, norm = params["layers"][index], params["norms"][index]
            values = values @ layer["kernel"] + layer["bias"][None]
            fixed = collections["frozen"][f"norms/{index}"]
            mean, variance = jnp.where(fixed, 0, values.mean(0)), jnp.where(fixed, 1, values.var(0))
            stored = (jnp.where(fixed, 0, 0.1 * mean), jnp.where(fixed, 1, 0.9 + 0.1 * variance))
            values = (values - mean[None]) / jnp.sqrt(variance + 1e-5)[None] * norm["scale"][None] + norm["bias"][None]
            values = values * collections["gates"][f"norms/{index}"][None]
            shown, values = values, jnp.maximum(values, 0)
        return values @ params["head"]["kernel"] + params["head"]["bias"][None], shown, stored

    run = jax.jit(lambda params: network.apply(params, collections, images, key=KEY))
    output, (logits, shown, stored) = run(params), jax.jit(by_hand)(params, images)
    assert_close((output.logits, output.activations["norms/1"]), (logits, shown), rtol=1e-4)
    statistics = output.collections["batch_stats"]["norms"]["1"]
    assert_close((statistics["mean"], statistics["var"]), stored, rtol=1e-4)
    assert (statistics["mean"][:3] == 0).all()
    assert (statistics["var"][:3] == 1).all()
    assert (output.activations["norms/0"][:, ::2] == 0).all()
    assert bits(output.collections["frozen"]) == bits(collections["frozen"])


def test_both_kinds_of_norm_compute_the_same_bits():
    inputs = jax.random.normal(KEY, (5, 3, 4))
    scale, bias = jax.random.normal(KEY, (2, 4))
    frozen = jnp.array([True, False, True, False])
    linen = networks.BatchNorm(momentum=0.7)
    variables = linen.init(KEY, inputs, train=False)
    variables = {**variables, "params": {"scale": scale, "bias": bias}}
    theirs, updated = linen.apply(variables, inputs, train=True, frozen=frozen, mutable="batch_stats")
    ours = nnx_layers.BatchNorm(4, momentum=0.7)
    ours.scale[...], ours.bias[...] = scale, bias
    assert bits(ours(inputs, frozen=frozen)) == bits(theirs)
    moments = updated["batch_stats"]
    assert bits((ours.mean[...], ours.var[...])) == bits((moments["mean"], moments["var"]))
    before = bits(nnx.state(ours))
    ours.eval()
    evaluated = linen.apply({**variables, **updated}, inputs, train=False)
    assert (bits(ours(inputs)), bits(nnx.state(ours))) == (bits(evaluated), before)
    feature = nnx_layers.FeatureNorm(4)
    feature.scale[...], feature.bias[...] = scale, bias
    given = {"params": {"scale": scale, "bias": bias}}
    assert bits(feature(inputs)) == bits(networks.FeatureNorm().apply(given, inputs))


class Mixed(nn.Module):
    """One norm whose channels can be frozen, and Flax's own."""

    @nn.compact
    def __call__(self, values, train: bool):
        values = nn.relu(networks.BatchNorm(name="first")(nn.Dense(5)(values), train=train))
        values = nn.relu(nn.BatchNorm(use_running_average=not train, name="second")(nn.Dense(5)(values)))
        return nn.Dense(2)(values)


def test_what_does_not_fit_is_refused():
    mixed = networks.from_linen(Mixed(), (4,), outputs=2, gates=("first", "second"))
    assert "frozen" not in mixed.shapes[1], "some statistics could not be frozen"
    with pytest.raises(ValueError, match=r"clnp .* networks\.BatchNorm .* every one of its norms"):
        methods.clnp(mixed)
    with pytest.raises(ValueError, match=r"tfm cannot use batch normalisation.*networks\.FeatureNorm"):
        methods.tfm(page()["linen"]((8, 8, 1), 2, normalization="batch"))
    make = lambda rngs: page()["Nnx"](4, 2, nnx.LayerNorm, rngs)
    with pytest.raises(ValueError, match=r"open features of the gate 'norms/0' depend on weights"):
        networks.from_nnx(make, (4,), outputs=2, gates=("norms/0", "norms/1"))
    with pytest.raises(ValueError, match=r"gates names 'norm', which does not exist. There are: layers/0, layers/1"):
        networks.from_nnx(make, (4,), outputs=2, gates=("norm",))
    with pytest.raises(ValueError, match=r"gates names 'layers', which"):
        networks.from_nnx(make, (4,), outputs=2, gates=("layers",))
