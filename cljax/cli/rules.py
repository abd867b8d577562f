"""What the options' values must be, beyond their types: checked before anything heavy is imported."""

from __future__ import annotations

import dataclasses
from typing import Any

from cljax.cli.options import NETWORKS, Data, Network, Options, Training, UsageError, parse_block
from cljax.cli.parameters import unknown
from cljax.numbers import INT32, real, show, whole
from cljax.references import is_reference

MOST_TASKS = 10_000
"""The record holds the accuracy on each after each."""
MOST_SEEDS = 100_000
"""Each is a run, and the configuration names them one by one."""
LARGEST_SEED = 2**63 - 1
LARGEST_SIDE = 2**15
"""Of resized images, in pixels: a thousand megapixels each, and as far as Pillow and most formats go."""


def _not_taken(net: Network) -> list[tuple[str, Any]]:
    """The options given that the network does not take, and their values; of one's own network, none."""
    if is_reference(net.network):
        return []
    taken = NETWORKS["cnn"] if net.network == "auto" else NETWORKS[net.network]
    given = dataclasses.asdict(dataclasses.replace(net, dropout=net.dropout or None))
    usual = {**dataclasses.asdict(Network()), "network": net.network}
    free = ("normalization", "precision")  # taken by all: 'none', and what else is none is told where networks are made
    stray = [name for name, value in given.items() if name not in (*taken, *free) and value != usual[name]]
    return [(f"--{name.replace('_', '-')}", given[name]) for name in stray]


def _divided(data: Data) -> bool:
    """Whether the classes of one data set are divided among tasks."""
    return data.division == "class" and data.scenario != "permuted" and len(data.data) == 1


def check_values(options: Options) -> None:
    """Checks settled options.

    Raises:
      UsageError: naming the option, its value and what it must be.
    """
    data, train, net = options.data, options.training, options.network
    many, tasks, size = len(data.data) > 1, data.tasks or 0, data.image_size
    listed, grouped = isinstance(data.class_order, tuple), data.division != "class"
    sets = max(1, len(data.data))
    first, choice = train.first_epochs, train.memory_selection
    if net.network not in (*NETWORKS, "auto") and not is_reference(net.network):
        raise UsageError(unknown("network", net.network, NETWORKS) + " One's own is named module:function.")
    rules = [
        ("--data", data.data, bool(data.data), "the name of a data set, or several"),
        ("--image-size", size, len(size) < 3, "one side, or height and width"),
        ("--tasks", tasks, listed or tasks % sets == 0, f"a multiple of the {sets} data sets"),
        ("--scenario", data.scenario, not (many and data.scenario == "permuted"), "another one for several data sets"),
        ("--normalize", data.normalize, many or data.normalize == "first", "left out where there is one data set"),
        ("--class-order", data.class_order, data.class_order != (), "fixed, random, or classes"),
        ("--first-classes", data.first_classes, data.first_classes is None or _divided(data), "left out here"),
        ("--cosine", train.cosine, not (train.cosine and train.milestones), "left out with --milestones"),
        (
            "--add-task",
            data.add_task,
            bool(data.add_task) == (data.past is not None),
            "given with --from, and only then",
        ),
        ("--division", data.division, not (grouped and many), "class for several data sets"),
        ("--division", data.division, not grouped or data.scenario != "permuted", "class for permuted pixels"),
        ("--scenario", data.scenario, data.division != "one-vs-all" or data.scenario == "task", "task for one-vs-all"),
        ("--fraction", data.fraction, len(data.fraction) in (1, tasks), "one number, or one a task"),
        ("--first-epochs", first, first != 0 or train.init is not None, "at least 1 where --init gives no parameters"),
        ("--augment", train.augment, len(set(train.augment)) == len(train.augment), "words named once, each"),
        ("--hidden", net.hidden, bool(net.hidden) or net.network == "cnn", "one width or more, such as 128 128"),
        ("--channels", net.channels, bool(net.blocks) and all(map(parse_block, net.blocks)), "such as 32,32 64,64"),
        ("--norm-after", net.norm_after, not net.norm_after or net.normalization != "none", "left out without a norm"),
        ("--tune", train.tune or (), len(set(train.tune or ())) == len(train.tune or ()), "different learning rates"),
        ("--seeds", train.seeds, bool(train.seeds), "how many seeds, or two or more different ones"),
        ("--seeds", train.seeds, len(set(train.seeds)) == len(train.seeds), "different seeds"),
        ("--seeds", train.seeds, train.seed is None or train.seeds == Training().seeds, "left out with --seed"),
        *((name, value, False, f"left out with --network {net.network}") for name, value in _not_taken(net)),
        ("--memory-selection", choice, choice == "balanced" or train.memory > 0, "left out without --memory"),
    ]
    for name, value, holds, rule in rules:
        if not holds:
            words = value if isinstance(value, tuple) else (value,)
            shown = " ".join(word if isinstance(word, str) else show(word) for word in words)
            raise UsageError(f"{name} is {shown or 'empty'}, but must be {rule}.")
    counts = [
        *(("--image-size", side, 1, LARGEST_SIDE) for side in size),
        ("--tasks", tasks, 1, MOST_TASKS),
        ("--epochs", train.epochs, 1, INT32),
        *([("--first-epochs", first, 0, INT32)] if first is not None else []),
        *([("--first-classes", data.first_classes, 1, INT32)] if data.first_classes is not None else []),
        ("--batch-size", train.batch_size, 1, INT32),
        ("--patience", train.patience, 0, INT32),
        ("--memory", train.memory, 0, INT32),
        ("--curves-every", train.curves_every, 0, INT32),
        *([("--devices", train.devices, 1, INT32)] if train.devices is not None else []),
        *(("--hidden", width, 1, INT32) for width in net.hidden),
        *(("--channels", width, 1, INT32) for word in net.blocks for width in parse_block(word) or ()),
        *(("--class-order", number, 0, INT32) for number in data.class_order if listed),
        *([("--seeds", train.seeds[0], 1, MOST_SEEDS)] if len(train.seeds) == 1 else []),
        *(("--seeds", seed, 0, LARGEST_SEED) for seed in train.seeds),
        *([("--seed", train.seed, 0, LARGEST_SEED)] if train.seed is not None else []),
    ]
    numbers: list[tuple[str, float, dict[str, float]]] = [
        ("--validation", data.validation, {"least": 0, "below": 1}),
        *[("--fraction", part, {"above": 0.0, "most": 1.0}) for part in data.fraction],
        ("--learning-rate", train.learning_rate, {"above": 0}),
        *[("--tune", rate, {"above": 0.0}) for rate in train.tune or ()],
        *[("--milestones", part, {"above": 0.0, "below": 1.0}) for part in train.milestones],
        ("--weight-decay", train.weight_decay, {"least": 0}),
        ("--learning-rate-decay", train.learning_rate_decay, {"least": 0}),
        ("--clip", train.clip, {"least": 0}),
        ("--patience-factor", train.patience_factor, {"above": 1}),
        ("--patience-minimum-learning-rate", train.patience_minimum_learning_rate, {"above": 0}),
        ("--dropout", net.dropout or 0.0, {"least": 0, "below": 1}),
        ("--width", net.width, {"above": 0}),
        ("--checkpoint-seconds", options.output.checkpoint_seconds, {"least": 0}),
    ]
    try:
        for name, value, least, most in counts:
            whole(name, value, least=least, most=most)
        for name, value, bounds in numbers:
            real(name, value, **bounds)
    except ValueError as error:
        raise UsageError(str(error)) from None
