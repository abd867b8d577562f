"""Python's defaults and the command's are one, where both have one; docs/quick_start.md lists the others."""

import inspect

from cljax import networks, streams, training
from cljax.cli.options import Data, Network, Training, parse_block


def default(function, name):
    return inspect.signature(function).parameters[name].default


def test_defaults_of_python_are_the_command_s():
    network, trained, data = Network(), Training(), Data()
    assert default(networks.mlp, "hidden") == default(networks.cnn, "dense") == network.hidden
    assert default(networks.cnn, "channels") == tuple(map(parse_block, network.blocks))
    for make in (networks.mlp, networks.cnn):
        assert default(make, "norm_after") == network.norm_after
        assert default(make, "dropout") == 0.0
    for make in (networks.resnet, networks.alexnet, networks.vgg16):
        assert default(make, "width") == network.width
    settings, patience = training.Settings(), training.Patience()
    assert (settings.batch_size, settings.curves_every) == (trained.batch_size, trained.curves_every)
    assert patience[1:] == (trained.patience_factor, trained.patience_minimum_learning_rate, trained.patience_restore)
    assert settings.stopping is None
    assert trained.patience == 0
    for make in (streams.split, streams.permuted, streams.relabelled, streams.from_tasks):
        assert (default(make, "validation"), (default(make, "fraction"),)) == (data.validation, data.fraction)
    assert default(streams.split, "scenario") == data.scenario
    assert default(streams.split, "class_order") is None
    assert data.class_order == "fixed"
