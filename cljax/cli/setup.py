"""From options to what a run needs, everything checked before anything is compiled.

Whatever is heavy to import is imported where it is used.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from cljax.cli.building import (
    amend,
    convolvable,
    data_options,
    describe,
    load_data,
    make_augment,
    make_network,
    make_optimizer,
    make_settings,
    make_stream,
    normalizations,
    parse_block,
)
from cljax.cli.options import DEFAULT_METHODS, Options, UsageError, seed_numbers, settle
from cljax.cli.parameters import parse_parameters, unknown
from cljax.numbers import INT32, real, show, whole

if TYPE_CHECKING:
    import optax

    from cljax import training
    from cljax.types import Method, Network, Stream


MOST_TASKS = 10_000
"""The record holds the accuracy on each after each."""
MOST_SEEDS = 100_000
"""Each is a run, and the configuration names them one by one."""
LARGEST_SEED = 2**63 - 1
LARGEST_SIDE = 2**15
"""Of resized images, in pixels: a thousand megapixels each, and as far as Pillow and most formats go."""


class Job(NamedTuple):
    """All that driving the methods needs.

    Attributes: methods by name; left_out, why a method that was not asked for by name does not fit; parameters, those
    set, by method; networks, what a record says of each method's; optimizer; seeds, `(seed, stream)` pairs; settings;
    vectorize; programs_of, the driver's programs: those for data on the device, or for data read as the run goes on.
    """

    methods: dict[str, Method]
    left_out: dict[str, str]
    parameters: dict[str, dict[str, Any]]
    networks: dict[str, dict[str, Any]]
    optimizer: optax.GradientTransformation
    seeds: list[tuple[int, Stream]]
    settings: training.Settings
    vectorize: bool
    programs_of: Callable[..., Any]


class Fitted(NamedTuple):
    """The methods that fit a choice of network and head, and why others do not."""

    options: Options
    streams: list[tuple[int, Stream]]
    networks: dict[str, dict[str, Any]]
    methods: dict[str, Method]
    left_out: dict[str, str]


def constructors() -> dict[str, Callable[..., Method]]:
    """The methods there are, by name."""
    from cljax import methods

    return {name: getattr(methods, name) for name in sorted(methods.__all__)}


def check_values(options: Options) -> None:
    """Checks what a type cannot say, before anything heavy is imported.

    Raises:
      UsageError: naming the option, its value and what it must be.
    """
    options = settle(options)
    data, train, net = options.data, options.training, options.network
    many, tasks, size = len(data.data) > 1, data.tasks or 0, data.image_size
    listed, superclass = isinstance(data.class_order, tuple), data.division == "superclass"
    first, fixed = train.first_epochs, net.network == "df_cnn_base"
    rules = [
        ("--data", data.data, bool(data.data), "the name of a data set, or several"),
        ("--image-size", size, len(size) < 3, "one side, or height and width"),
        ("--tasks", tasks, tasks % max(1, len(data.data)) == 0, f"a multiple of the {len(data.data)} data sets"),
        ("--scenario", data.scenario, not (many and data.scenario == "permuted"), "another one for several data sets"),
        ("--normalize", data.normalize, many or data.normalize == "first", "left out where there is one data set"),
        ("--class-order", data.class_order, not (many and listed), "a word for several data sets"),
        ("--class-order", data.class_order, data.class_order != (), "fixed, random, or classes"),
        ("--division", data.division, not (superclass and many), "class for several data sets"),
        ("--division", data.division, not superclass or data.scenario != "permuted", "class for permuted pixels"),
        ("--fraction", data.fraction, len(data.fraction) in (1, tasks), "one number, or one a task"),
        ("--first-epochs", first, first != 0 or train.init is not None, "at least 1 where --init gives no parameters"),
        ("--augment", train.augment, len(set(train.augment)) == len(train.augment), "words named once, each"),
        ("--hidden", net.hidden, bool(net.hidden) or net.network == "cnn", "one width or more, such as 128 128"),
        ("--channels", net.channels, bool(net.blocks) and all(map(parse_block, net.blocks)), "such as 32,32 64,64"),
        ("--channels", net.channels, net.network != "mlp" or net.channels is None, "left out with --network mlp"),
        ("--norm-after", net.norm_after, not net.norm_after or net.normalization != "none", "left out without a norm"),
        ("--channels", net.channels, not fixed or net.channels is None, "left out with --network df_cnn_base"),
        ("--hidden", net.hidden, not fixed or net.hidden == type(net)().hidden, "left out with --network df_cnn_base"),
        ("--dropout", net.dropout, not (fixed and net.dropout), "left out with --network df_cnn_base"),
        ("--seeds", train.seeds, bool(train.seeds), "how many seeds, or two or more different ones"),
        ("--seeds", train.seeds, len(set(train.seeds)) == len(train.seeds), "different seeds"),
        (
            "--pooled",
            net.pooled,
            not (net.pooled and (fixed or net.network == "mlp")),
            "left out without --network cnn",
        ),
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
        ("--batch-size", train.batch_size, 1, INT32),
        ("--patience", train.patience, 0, INT32),
        ("--curves-every", train.curves_every, 0, INT32),
        *(("--hidden", width, 1, INT32) for width in net.hidden),
        *(("--channels", width, 1, INT32) for word in net.blocks for width in parse_block(word) or ()),
        *(("--class-order", number, 0, INT32) for number in data.class_order if listed),
        *([("--seeds", train.seeds[0], 1, MOST_SEEDS)] if len(train.seeds) == 1 else []),
        *(("--seeds", seed, 0, LARGEST_SEED) for seed in train.seeds),
    ]
    numbers: list[tuple[str, float, dict[str, float]]] = [
        ("--validation", data.validation, {"least": 0, "below": 1}),
        *[("--fraction", part, {"above": 0.0, "most": 1.0}) for part in data.fraction],
        ("--learning-rate", train.learning_rate, {"above": 0}),
        ("--weight-decay", train.weight_decay, {"least": 0}),
        ("--learning-rate-decay", train.learning_rate_decay, {"least": 0}),
        ("--clip", train.clip, {"least": 0}),
        ("--patience-factor", train.patience_factor, {"above": 1}),
        ("--patience-minimum-learning-rate", train.patience_minimum_learning_rate, {"above": 0}),
        ("--dropout", net.dropout, {"least": 0, "below": 1}),
        ("--checkpoint-seconds", options.output.checkpoint_seconds, {"least": 0}),
    ]
    try:
        for name, value, least, most in counts:
            whole(name, value, least=least, most=most)
        for name, value, bounds in numbers:
            real(name, value, **bounds)
    except ValueError as error:
        raise UsageError(str(error)) from None


def choose_methods(asked: tuple[str, ...]) -> tuple[str, ...]:
    """The names of the methods meant: the default ones for none, every one for 'all'.

    Raises:
      UsageError: an unknown or repeated name.
    """
    known = constructors()
    if not asked:
        return DEFAULT_METHODS
    if asked == ("all",):
        return tuple(known)
    for name in asked:
        if name not in known:
            raise UsageError(unknown("method", name, known) + " `cljax methods` describes them.")
        if asked.count(name) > 1:
            raise UsageError(f"The method {name!r} is named more than once.")
    return asked


def prepare(names: tuple[str, ...], options: Options, *, by_name: bool) -> Job:
    """Builds methods, streams and settings, and checks them against each other. Nothing is compiled.

    Args:
      names: of the methods.
      options: the command's.
      by_name: whether the user named the methods: then one that does not fit is an error, otherwise it is left out.

    Raises:
      UsageError: and other `ValueError`s, where something does not fit.
    """
    import jax

    from cljax import training
    from cljax.storage import checkpoints
    from cljax.training import host
    from cljax.training.programs import make_programs

    options = settle(options)
    settings = make_settings(options.training)
    given = None if options.training.init is None else checkpoints.load_params(options.training.init)
    parameters = parse_parameters(options.training.set, {name: constructors()[name] for name in names})
    driver = choose_driver(options)
    programs_of = host.make_programs if driver == "host" else make_programs
    dataset = load_data(options, driver)
    settings = settings._replace(augment=make_augment(options.training.augment, dataset.train_images))

    @functools.cache
    def streams_of(head: Literal["auto", "shared", "task"]) -> list[tuple[int, Stream]]:
        chosen = dataclasses.replace(options, data=dataclasses.replace(options.data, head=head))
        return [(seed, make_stream(dataset, chosen, seed)) for seed in seed_numbers(options.training.seeds)]

    def fit(kind: Literal["auto", "mlp", "cnn"], head: Literal["auto", "shared", "task"]) -> Fitted:
        chosen = dataclasses.replace(options, network=dataclasses.replace(options.network, network=kind))
        streams = streams_of(head)

        @functools.cache
        def network_of(normalization: Any) -> tuple[Network, dict[str, Any]]:
            network = dataclasses.replace(chosen.network, normalization=normalization)
            own = dataclasses.replace(chosen, network=network)
            made = make_network(own, streams[0][1])
            return made, describe(own, made)

        fitted = Fitted(chosen, streams, {}, {}, {})
        for name in names:
            for normalization in normalizations(name, chosen.network.normalization):
                try:
                    network, facts = network_of(normalization)
                    method = constructors()[name](network, **parameters[name])
                    method = method if given is None else training.start_from(method, given)
                    method = amend(method, options.training, streams[0][1].schedule)
                    for _, stream in streams:
                        training.check(method, stream, settings)
                except ValueError as error:
                    fitted.left_out.setdefault(name, str(error))
                else:
                    fitted.methods[name], fitted.networks[name] = method, facts
                    fitted.left_out.pop(name, None)
                    break
        return fitted

    choices = alternatives(options, dataset.images.shape[1:], by_name=by_name)
    fitted = fit(*choices[0])
    for choice in choices[1:]:
        if not fitted.left_out:
            break
        other = fit(*choice)
        fitted = other if len(other.methods) > len(fitted.methods) else fitted
    options, seeds, described, methods, left_out = fitted
    if left_out and (by_name or not methods):
        raise UsageError(next(iter(left_out.values())))
    auto = jax.default_backend() != "cpu" and driver == "scan"
    side_by_side = {"yes": True, "no": False, "auto": auto}[options.training.vectorize]
    optimizer = make_optimizer(options.training)
    return Job(methods, left_out, parameters, described, optimizer, seeds, settings, side_by_side, programs_of)


def alternatives(options: Options, shape: tuple[int, ...], *, by_name: bool) -> list[tuple[Any, Any]]:
    """The kinds of network and of head that the options leave open, those to prefer first.

    Example:
      >>> from cljax.cli.options import Data
      >>> alternatives(Options(data=Data(scenario='permuted')), (8, 8, 1), by_name=True)
      [('mlp', 'shared'), ('mlp', 'task'), ('cnn', 'shared'), ('cnn', 'task')]
    """
    kind, head, permuted = options.network.network, options.data.head, options.data.scenario == "permuted"
    if head != "auto" and not permuted:
        raise UsageError(f"--head {head} is for --scenario permuted; --scenario task or domain says it otherwise.")
    kinds = ["mlp", *(["cnn"] if convolvable(options, shape) else [])] if kind == "auto" else [kind]
    heads = ["shared", *(["task"] if by_name else [])] if head == "auto" and permuted else [head]
    return [(kind, head) for kind in kinds for head in heads]


def choose_driver(options: Options) -> str:
    """The driver: where `--driver auto`, 'host' for data that as an array would take half of the memory or more.

    Raises:
      UsageError: the host driver with seeds side by side.
    """
    from cljax import data
    from cljax.training.host import available_memory

    chosen = options.training.driver
    if chosen == "auto":
        memory = available_memory()
        names = options.data.data if len(options.data.data) == 1 else ()  # several are made one array
        size = sum(data.decoded_bytes(name, **data_options(options)) for name in names)
        chosen = "scan" if memory is None or size < memory / 2 else "host"
    if chosen == "host" and options.training.vectorize == "yes":
        raise UsageError(
            f"--vectorize yes needs the data on the device, but they are read from disk as the run goes on "
            f"(--driver {options.training.driver}). Leave out --vectorize, or give --driver scan where they fit."
        )
    return chosen
