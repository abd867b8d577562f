"""From options to what a run needs, everything checked before anything is compiled.

Whatever is heavy to import is imported where it is used.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from cljax.cli.options import DEFAULT_METHODS, Options, Training, seed_numbers, settle

if TYPE_CHECKING:
    import optax

    from cljax import training
    from cljax.types import Method, Network, Schedule, Stream


class UsageError(ValueError):
    """Something the user asked for cannot be; the message names the thing and the cure."""


class Job(NamedTuple):
    """All that driving the methods needs.

    Attributes: methods by name; left_out, why a method that was not asked for by name does not fit; parameters, those
    set, by method; network, what a record says of it; optimizer; seeds, `(seed, stream)` pairs; settings; vectorize;
    programs_of, the driver's programs: those for data on the device, or for data read as the run goes on.
    """

    methods: dict[str, Method]
    left_out: dict[str, str]
    parameters: dict[str, dict[str, Any]]
    network: dict[str, Any]
    optimizer: optax.GradientTransformation
    seeds: list[tuple[int, Stream]]
    settings: training.Settings
    vectorize: bool
    programs_of: Callable[..., Any]


class Fitted(NamedTuple):
    """The methods that fit a choice of network and head, and why others do not."""

    options: Options
    streams: list[tuple[int, Stream]]
    network: Network
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
    first, every = train.first_epochs, options.output.checkpoint_seconds
    rules = [
        ("--data", data.data, bool(data.data), "the name of a data set, or several"),
        ("--image-size", size, len(size) < 3 and min((1, *size)) >= 1, "one side or two, at least 1"),
        ("--tasks", tasks, tasks >= 1, "at least 1"),
        ("--tasks", tasks, tasks % max(1, len(data.data)) == 0, f"a multiple of the {len(data.data)} data sets"),
        ("--scenario", data.scenario, not (many and data.scenario == "permuted"), "another one for several data sets"),
        ("--normalize", data.normalize, many or data.normalize == "first", "left out where there is one data set"),
        ("--class-order", data.class_order, not (many and listed), "a word for several data sets"),
        ("--division", data.division, not (superclass and many), "class for several data sets"),
        ("--division", data.division, not superclass or data.scenario != "permuted", "class for permuted pixels"),
        ("--validation", data.validation, 0 <= data.validation < 1, "at least 0 and below 1, such as 0.1"),
        ("--share", data.share, all(0 < part <= 1 for part in data.share), "above 0 and at most 1, such as 0.3"),
        ("--share", data.share, len(data.share) in (1, tasks), "one number, or one a task"),
        ("--epochs", train.epochs, train.epochs >= 1, "at least 1"),
        ("--first-epochs", first, first is None or first >= 0, "at least 0"),
        ("--first-epochs", first, first != 0 or train.init is not None, "at least 1 where --init gives no parameters"),
        ("--checkpoint-seconds", every, every >= 0, "at least 0"),
        ("--batch-size", train.batch_size, train.batch_size >= 1, "at least 1"),
        ("--rate", train.rate, 0 < train.rate < float("inf"), "a positive number"),
        ("--weight-decay", train.weight_decay, 0 <= train.weight_decay < float("inf"), "at least 0"),
        ("--clip", train.clip, 0 <= train.clip < float("inf"), "at least 0"),
        ("--patience", train.patience, train.patience >= 0, "at least 0"),
        ("--patience-factor", train.patience_factor, 1 < train.patience_factor < float("inf"), "above 1"),
        ("--patience-minimum-rate", train.patience_minimum_rate, train.patience_minimum_rate > 0, "above 0"),
        ("--augment", train.augment, len(set(train.augment)) == len(train.augment), "words named once, each"),
        ("--curves-every", train.curves_every, train.curves_every >= 0, "at least 0"),
        ("--dropout", net.dropout, 0 <= net.dropout < 1, "at least 0 and below 1"),
        ("--hidden", net.hidden, all(width >= 1 for width in net.hidden), "numbers of at least 1"),
        ("--hidden", net.hidden, bool(net.hidden) or net.network == "cnn", "one width or more, such as 128 128"),
        ("--channels", net.channels, bool(net.channels) and all(map(_block, net.channels)), "such as 32,32 64,64"),
        ("--class-order", data.class_order, data.class_order != (), "fixed, random, or classes"),
    ]
    for name, value, holds, rule in rules:
        if not holds:
            shown = " ".join(map(str, value)) if isinstance(value, tuple) else value
            raise UsageError(f"{name} is {shown if shown != '' else 'empty'}, but must be {rule}.")
    seeds = seed_numbers(train.seeds)
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise UsageError(
            f"--seeds is {' '.join(map(str, train.seeds)) or 'empty'}, but must be how many seeds (at least 1), or "
            f"two or more different seeds, each at least 0."
        )


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

    from cljax import checkpoints, training
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

    def fit(kind: Literal["auto", "mlp", "cnn"], head: Literal["auto", "shared", "task"]) -> Fitted:
        data_options = dataclasses.replace(options.data, head=head)
        network_options = dataclasses.replace(options.network, network=kind)
        chosen = dataclasses.replace(options, data=data_options, network=network_options)
        streams = [(seed, make_stream(dataset, chosen, seed)) for seed in seed_numbers(options.training.seeds)]
        network = make_network(chosen, streams[0][1])
        methods: dict[str, Method] = {}
        left_out: dict[str, str] = {}
        for name in names:
            try:
                method = constructors()[name](network, **parameters[name])
                method = method if given is None else training.start_from(method, given)
                for _, stream in streams:
                    training.check(method, stream, settings)
            except ValueError as error:
                left_out[name] = str(error)
            else:
                methods[name] = method
        return Fitted(chosen, streams, network, methods, left_out)

    choices = alternatives(options, dataset.images.shape[1:], by_name=by_name)
    fitted = fit(*choices[0])
    for choice in choices[1:]:
        if not fitted.left_out:
            break
        other = fit(*choice)
        fitted = other if len(other.methods) > len(fitted.methods) else fitted
    options, seeds, network, methods, left_out = fitted
    if left_out and (by_name or not methods):
        raise UsageError(next(iter(left_out.values())))
    auto = jax.default_backend() != "cpu" and driver == "scan"
    side_by_side = {"yes": True, "no": False, "auto": auto}[options.training.vectorize]
    optimizer = make_optimizer(options.training)
    return Job(
        methods, left_out, parameters, describe(options, network), optimizer, seeds, settings, side_by_side, programs_of
    )


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


def data_options(options: Options) -> dict[str, Any]:
    """Where data sets are, and the size of their images."""
    size = options.data.image_size
    return {"data_dir": options.data.data_dir, "image_size": (size if len(size) == 2 else size[0]) if size else None}


def load_data(options: Options, driver: str) -> Any:
    """The data set, or several as one; read on demand for the host driver.

    Raises:
      UsageError: several data sets for the host driver.
    """
    from cljax import data

    chosen, common = options.data, data_options(options)
    if len(chosen.data) == 1:
        return (data.open if driver == "host" else data.load)(chosen.data[0], **common)
    if driver == "host":
        raise UsageError("Several data sets are made one array on the device: give --driver scan, or one data set.")
    return data.combine([data.load(name, **common) for name in chosen.data], normalize=chosen.normalize)


def make_settings(options: Training) -> training.Settings:
    """The settings of the training loop."""
    from cljax import training

    stopping = None
    if options.patience:
        minimum, restore = options.patience_minimum_rate, options.patience_restore
        stopping = training.Patience(options.patience, options.patience_factor, minimum, restore)
    return training.Settings(
        batch_size=options.batch_size,
        rate=options.rate,
        stopping=stopping,
        validate=True,
        curves_every=options.curves_every,
    )


def make_augment(names: tuple[str, ...], images: Any) -> Callable[..., Any] | None:
    """The augmentation named, the colours' components being learned from the training images; None for no name.

    Raises:
      UsageError: examples that are no images, or colours of images without three channels.
    """
    from cljax import augmentation

    if not names:
        return None
    if images.ndim != 4 or ("colour" in names and images.shape[-1] != 3):
        needed = "images" if images.ndim != 4 else "images of three channels (colour)"
        raise UsageError(f"--augment {' '.join(names)} needs {needed}, but the examples have shape {images.shape[1:]}.")
    makers = {
        "crop": lambda: augmentation.pad_crop(max(1, round(min(images.shape[1:3]) / 8))),
        "flip": augmentation.flip,
        "colour": lambda: augmentation.colour_jitter(some(images)),
    }
    return augmentation.compose(*(makers[name]() for name in names))


def some(images: Any) -> Any:
    """The images themselves, or 5,000 evenly spaced of those that are read on demand."""
    if not hasattr(images, "take") or hasattr(images, "ravel"):
        return images
    return images.take(range(0, len(images), -(-len(images) // 5000)))


def make_stream(dataset: Any, options: Options, seed: int) -> Stream:
    """A seed's stream."""
    from cljax import streams

    chosen = options.data
    common: dict[str, Any] = {"tasks": chosen.tasks, "seed": seed, "validation": chosen.validation}
    common |= {"share": chosen.share if len(chosen.share) > 1 else chosen.share[0]}
    common |= {"schedule": make_schedule(options)}
    if chosen.scenario == "permuted":
        if chosen.class_order != "fixed":
            raise UsageError("With --scenario permuted every task shows all classes: --class-order has no meaning.")
        return streams.permuted(dataset, scenario="task" if chosen.head == "task" else "domain", **common)
    order = None if chosen.class_order == "fixed" else chosen.class_order
    if chosen.division == "superclass":
        return streams.by_superclass(dataset, scenario=chosen.scenario, order=order, **common)
    make: Any = streams.split if len(chosen.data) == 1 else streams.sequence
    return make(dataset, scenario=chosen.scenario, class_order=order, **common)


def make_schedule(options: Options) -> Schedule:
    """The schedule, the same for all seeds.

    Raises:
      UsageError: a random schedule that never visits some task, or whose first round is to be longer.
    """
    from cljax import streams

    options = settle(options)
    tasks, epochs, first = options.data.tasks or 0, options.training.epochs, options.training.first_epochs
    if options.data.schedule == "lifelong":
        return streams.lifelong(tasks, [epochs if first is None else first, *[epochs] * (tasks - 1)])
    if first is not None:
        raise UsageError("With --schedule multi-task every round has one epoch: --first-epochs has no meaning.")
    schedule = streams.multi_task(tasks, tasks * epochs, seed=seed_numbers(options.training.seeds)[0])
    if missed := sorted(set(range(tasks)) - set(schedule.task.tolist())):
        raise UsageError(f"The {tasks * epochs} random rounds never visit task {missed[0]}. Give more --epochs.")
    return schedule


def make_network(options: Options, stream: Stream) -> Network:
    """The network, its head shared where the scenario is domain-incremental."""
    from cljax import networks

    chosen, tables = options.network, stream.tables
    shape, outputs = tuple(tables.examples.shape[1:]), tables.classes.shape[-1]
    common: dict[str, Any] = {"normalization": None if chosen.normalization == "none" else chosen.normalization}
    common |= {"dropout": chosen.dropout, "mean": stream.mean, "std": stream.std}
    common |= {"per_task": () if stream.scenario == "domain" else None}
    if chosen.network == "mlp":
        return networks.mlp(shape, outputs, hidden=chosen.hidden, **common)
    channels = [block for block in map(_block, chosen.channels) if block]
    side = 2 ** len(channels)
    if not convolvable(options, shape):
        raise UsageError(
            f"A cnn of {len(channels)} blocks halves its maps {len(channels)} times and needs images of at least "
            f"{side}x{side} pixels, but the examples of {stream.name!r} have shape {shape}. Give fewer --channels, or "
            f"--network mlp."
        )
    return networks.cnn(shape, outputs, channels=channels, dense=chosen.hidden, dense_dropout=chosen.dropout, **common)


def convolvable(options: Options, shape: tuple[int, ...]) -> bool:
    """Whether examples of this shape are images large enough for the blocks of `--channels`."""
    return len(shape) == 3 and min(shape[:2]) >= 2 ** len(options.network.channels)


def describe(options: Options, network: Network) -> dict[str, Any]:
    """What a record says of the network: name, sizes, and how many parameters a single task needs."""
    import jax

    params, _ = jax.eval_shape(network.init, jax.random.key(0))
    facts = {name: value for name, value in dataclasses.asdict(options.network).items() if name != "network"}
    if options.network.network == "mlp":
        del facts["channels"]
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    return {"name": options.network.network, **facts, "parameters": count}


def make_optimizer(options: Training) -> optax.GradientTransformation:
    """The optimizer at unit rate; the loop multiplies by the learning rate."""
    import optax

    from cljax import transforms

    clip = [optax.clip_by_global_norm(options.clip)] if options.clip else []
    if options.optimizer == "adamw":
        return optax.chain(*clip, optax.adamw(1.0, weight_decay=options.weight_decay))
    makers = {
        "sgd": lambda: optax.sgd(1.0),
        "momentum": lambda: optax.sgd(1.0, momentum=0.9),
        "adam": lambda: optax.adam(1.0),
        "rmsprop": lambda: optax.rmsprop(1.0),
        "rmsprop_tf1": transforms.rmsprop_tf1,
    }
    decay = [optax.add_decayed_weights(options.weight_decay)] if options.weight_decay else []
    return optax.chain(*clip, *decay, makers[options.optimizer]())


def parse_parameters(settings: Iterable[str], makers: dict[str, Callable[..., Any]]) -> dict[str, dict[str, Any]]:
    """What `--set` gives each method: NAME=VALUE to all that have such a parameter, METHOD.NAME=VALUE to one.

    Returns:
      `{method: {parameter: value}}`, for every method.

    Raises:
      UsageError: no such method or parameter (those there are are listed), or not a number where one is needed.

    Example:
      >>> def ewc(network, *, strength=1.0): pass
      >>> parse_parameters(['strength=100'], {'ewc': ewc})
      {'ewc': {'strength': 100}}
    """
    found: dict[str, dict[str, Any]] = {name: {} for name in makers}
    takes = {name: dict(list(inspect.signature(make).parameters.items())[1:]) for name, make in makers.items()}
    for setting in settings:
        key, equals, text = setting.partition("=")
        owner, dot, parameter = key.rpartition(".")
        if not equals or not parameter:
            raise UsageError(f"--set takes NAME=VALUE or METHOD.NAME=VALUE, such as strength=100, not {setting!r}.")
        if dot and owner not in makers:
            raise UsageError(unknown("method of this run", owner, makers))
        receivers = [name for name in ([owner] if dot else makers) if parameter in takes[name]]
        if not receivers:
            names = [owner] if dot else list(makers)
            has = "; ".join(f"{name} has {', '.join(takes[name]) or 'none'}" for name in names)
            every = [option for name in names for option in takes[name]]
            raise UsageError(f"There is no parameter {parameter!r}. {_close(parameter, every)}{has}.")
        for name in receivers:
            found[name][parameter] = _value(parameter, text, takes[name][parameter].default)
    return found


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """What to say of an unknown name: close matches, and all there are."""
    names = sorted(known)
    return f"There is no {kind} {name!r}. {_close(name, names)}There are: {', '.join(names)}."


def _close(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=3)
    return f"Did you mean {' or '.join(map(repr, close))}? " if close else ""


def _value(name: str, text: str, default: Any) -> Any:
    """A parameter's value: a number, True, False, None, a tuple, or the text itself."""
    words = {"true": True, "false": False, "none": None}
    try:
        value = words[text.lower()] if text.lower() in words else ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    numeric = isinstance(default, int | float) and not isinstance(default, bool)
    if numeric and (not isinstance(value, int | float) or isinstance(value, bool)):
        raise UsageError(f"The parameter {name!r} needs a number (by default {default}), not {text!r}.")
    if isinstance(default, bool) and not isinstance(value, bool):
        raise UsageError(f"The parameter {name!r} is true or false (by default {default}), not {text!r}.")
    if isinstance(default, int) and isinstance(value, float):
        raise UsageError(f"The parameter {name!r} needs a whole number (by default {default}), not {text!r}.")
    return value


def _block(word: str) -> tuple[int, ...] | None:
    """The features of a block's convolutions, or None where the word is not numbers with commas between."""
    try:
        features = tuple(int(part) for part in word.split(","))
    except ValueError:
        return None
    return features if min(features) >= 1 else None
