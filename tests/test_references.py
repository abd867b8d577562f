"""Networks by name on the command, and networks and methods of one's own, by `module:function`."""

import dataclasses
import json
import re
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cljax import cli, references
from cljax.cli.asked import Curve, configuration, curves_of, split_parameter
from cljax.cli.experiment import make_experiment, normalizations
from cljax.cli.making import describe, make_network
from cljax.cli.options import NETWORKS, Network, Options, Training, UsageError, settle
from cljax.cli.rules import check_values
from cljax.types import Sizes
from tests.test_cli import fake_stream

OWN = """
    import jax.numpy as jnp
    import flax.linen as nn
    from cljax import methods, networks
    from cljax.types import Term


    class Module(nn.Module):
        outputs: int
        width: int

        @nn.compact
        def __call__(self, values):
            return nn.Dense(self.outputs)(nn.relu(nn.Dense(self.width)(values.reshape(values.shape[0], -1))))


    def make(inputs, outputs, *, width=5, mean=0.0):
        module = Module(outputs, int(width))
        return networks.from_linen(module, inputs, outputs=outputs, train_argument=None, mean=mean)


    def careful(network, *, rate=0.1):
        base = methods.finetune(network)

        def init(key, sizes):
            params, collections, state, hyper = base.init(key, sizes)
            return params, collections, state, {**hyper, "rate": jnp.float32(rate)}

        return base._replace(name="my careful one", init=init)


    def nothing(*, strength=1.0):
        return Term("nothing", lambda learner, sizes: ({}, {"strength": jnp.float32(strength)}))


    def module_alone(inputs, outputs):
        return Module(outputs, 3)


    def without_network(strength=1.0):
        return None


    def of_ten(inputs, outputs):
        return make(inputs, 10)
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A package in the working directory, `mine.parts`, not installed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/parts.py").write_text(textwrap.dedent(OWN))
    (tmp_path / "mine/broken.py").write_text("def half(:\n")
    (tmp_path / "mine/needs.py").write_text("import there_is_no_such_package\n")
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0] == "mine"]:
        del sys.modules[name]


def experiment_of(options, *names):
    curves, options = [Curve(name) for name in names], settle(options)
    check_values(options)
    return make_experiment(curves, options, configuration(curves, options))


def test_one_s_own_network_and_method_are_a_run_s_like_any(own):
    asked = Options(
        network=Network(network="mine.parts:make", width=7),
        training=Training(seeds=(1,), set=("mine.parts:careful.rate=0.5", "mine.parts:nothing.strength=3")),
    )
    names = ("mine.parts:careful", "lwf+mine.parts:nothing")
    made = experiment_of(asked, *names)
    assert [method.name for method in made.methods.values()] == list(made.methods) == list(names)
    sizes = Sizes(5, 2, {"train": 3})
    hyper = {name: method.init(jax.random.key(0), sizes)[3] for name, method in made.methods.items()}
    assert float(hyper[names[0]]["rate"]) == 0.5
    assert float(hyper[names[1]]["mine.parts:nothing.strength"]) == 3.0
    assert made.networks[names[0]] == {
        "name": "mine.parts:make",
        "normalization": "auto",
        "width": 7,
        "parameters": 64 * 7 + 7 + 7 * 2 + 2,
    }
    config = json.loads(json.dumps(made.config))
    assert (config["network"]["network"], config["methods"]) == ("mine.parts:make", list(names))
    (own / "config.json").write_text(json.dumps(config))
    again = cli.parse(["compare", "--config", "config.json"])
    assert again.methods == names
    assert settle(again.options).network == settle(asked).network
    assert again.options.training.set == asked.training.set
    asked = settle(dataclasses.replace(asked, network=dataclasses.replace(asked.network, channels=("8,8",))))
    (own / "config.json").write_text(json.dumps(configuration([Curve("finetune")], asked)))
    again = cli.parse(["compare", "--config", "config.json"])
    assert settle(again.options).network == asked.network
    swept = cli.parse(["sweep", "mine.parts:careful", "rate", "0.1", "--vs", f"{names[1]}.strength=1,2"])
    assert [curve.name for curve in curves_of(swept)] == [f"{names[0]}.rate", f"{names[1]}.strength"]


def test_a_method_s_name_is_told_from_its_parameter():
    for name in ("lwf", "a.b:c", "lwf+a.b:c", "a.b:c+lwf"):
        assert split_parameter(f"{name}.ewc.strength") == (name, ".", "ewc.strength")
        assert split_parameter(f"{name}+d:e.d:e.rate") == (f"{name}+d:e", ".", "d:e.rate")
        assert split_parameter(name) == (name, "", "")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--network mine.parts:module_alone", "returns mine.parts.Module, but must return Network.*from_linen"),
        ("--network mine.parts:careful", "cannot be called: too many positional.* inputs' shape"),
        ("--network mine.parts:of_ten", "makes a network of 10 outputs .* asked for 2"),
        ("--network mine.parts:make --hidden 3", "--hidden is .* no argument 'hidden'.*def make"),
        ("--network mine.parts:mak", "has no function 'mak'. There are: make, careful, nothing, module_alone"),
        ("--network nowhere.parts:make", "There is no module 'nowhere' .* in the folder that has it"),
        ("--network mine.broken:half", r"'mine.broken' cannot be imported: .*line 1"),
        ("--network mine.needs:x", "needs 'there_is_no_such_package', which is not installed"),
        ("--network mine/parts.py:make", "no reference module:function.* without .py"),
        ("--network resnet23", "There is no network 'resnet23'. Did you mean 'resnet.*module:function"),
        ("--network resnet18 --hidden 5", "--hidden is 5, but must be left out with --network resnet18"),
        ("--network lenet --width 2", "--width is 2.0, but must be left out with --network lenet"),
        ("--network lenet", "at least 12x12 pixels"),
        ("--network clnp_cnn --normalization batch", "clnp_cnn has no normalisation"),
        ("--methods mine.parts:make", "missing a required .*'outputs'.*returns a Method"),
        ("--methods mine.parts:without_network", "returns builtins.NoneType, but must return Method"),
        ("--methods mine.parts:nowhere", "has no function 'nowhere'"),
        ("--methods finetune+mine.parts:without_network", "returns builtins.NoneType, but must return Term"),
        ("--methods mine.parts:careful --set speed=2", "no parameter 'speed'.*mine.parts:careful has rate"),
    ],
)
def test_what_is_wrong_is_said_with_its_cure(own, capsys, words, said):
    arguments = ["compare", *words.split(), *([] if "--methods" in words else ["--methods", "finetune"])]
    assert cli.main([*arguments, "--out", "run"]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert re.search(said, told), told
    assert not (own / "run/record.json").exists()


def test_the_working_directory_is_looked_through_last(own):
    (own / "json.py").write_text("loads = None")
    assert references.load("json:loads") is json.loads
    assert sys.path[-1] == str(own)


COUNTS = {  # parameters for images of 32x32x3 and ten outputs, without normalisation but for the residual networks
    "clnp_cnn": 2_168_362,
    "clnp_wide": 25_070_976 + 3 * 3968 + (18432 + 1) * 10,  # bias, scale and shift of 3968 features
    "df_cnn_base": 328_426,
    "df_cnn_large": 934_586,
    "df_cnn_reduced": 135_746,
    "lenet": 62_006,
    "resnet18": 11_173_962,
    "resnet32": 466_906,
    "resnet34": 21_282_122,
    "resnet50": 23_520_842,
    "vgg16_reduced": 14_714_688 - 7_079_424 + (2048 + 1) * 4096 + (4096 + 1) * 4096 + (4096 + 1) * 10,
}


def test_a_network_in_bfloat16_by_option():
    chosen = settle(Options(network=Network(network="lenet", normalization="none", precision="bfloat16"))).network
    network = make_network(chosen, fake_stream((28, 28, 1)))
    assert describe(chosen, network)["precision"] == "bfloat16"
    variables = jax.jit(network.init)(jax.random.key(0))
    found = jax.jit(network.apply)(*variables, jnp.ones((1, 28, 28, 1))).logits
    np.testing.assert_array_equal(found, found.astype(jnp.bfloat16).astype(jnp.float32))
    assert found.dtype == jnp.float32


@pytest.mark.parametrize("name", COUNTS)
def test_networks_by_name(name):
    chosen = settle(Options(network=Network(network=name))).network
    first = normalizations("lwf", name, chosen.normalization)[0]
    chosen = dataclasses.replace(chosen, normalization=first)
    network = make_network(chosen, fake_stream((32, 32, 3)))
    facts = describe(chosen, network)
    assert facts["parameters"] == COUNTS[name]
    assert set(facts) == {"name", "normalization", "parameters", *NETWORKS[name]}
    assert make_network(chosen, fake_stream((32, 32, 3), "domain")).per_task == ()
    with pytest.raises(UsageError, match="for images"):
        make_network(chosen, fake_stream((64,)))


def test_dropout_is_the_papers_where_none_is_given():
    rate = lambda **options: settle(Options(network=Network(**options))).network.dropout
    assert [rate(network=name) for name in ("vgg16", "alexnet", "mlp", "resnet18")] == [0.5, 0.5, 0.0, 0.0]
    assert rate(network="vgg16", dropout=0.1) == 0.1
