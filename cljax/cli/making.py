"""What a run is made of, from the options: data, stream, schedule, network, settings, optimizer.

Whatever is heavy to import is imported where it is used.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from cljax.cli.options import NETWORKS, Options, Training, UsageError, parse_block, seed_numbers
from cljax.cli.options import Network as NetworkOptions
from cljax.cli.past import added, root_of
from cljax.references import call, is_reference, load

if TYPE_CHECKING:
    import optax

    from cljax import training
    from cljax.types import Method, Network, Schedule, Stream

PAPER_NETWORKS: dict[tuple[int, ...], Literal["mnist", "cifar", "office_home"]] = {
    (28, 28, 1): "mnist",
    (32, 32, 3): "cifar",
    (128, 128, 3): "office_home",
}
"""The networks of the DF-CNN paper, by the shape of their images."""
ATTENTION_IMAGES = 4
"""Of the first task: a record says where a network with feature maps looks in them."""


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
        minimum, restore = options.patience_minimum_learning_rate, options.patience_restore
        stopping = training.Patience(options.patience, options.patience_factor, minimum, restore)
    return training.Settings(
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        stopping=stopping,
        validate=True,
        curves_every=options.curves_every,
        attention_images=ATTENTION_IMAGES,
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
        "colour": lambda: augmentation.colour_jitter(images),
    }
    return augmentation.compose(*(makers[name]() for name in names))


def make_stream(dataset: Any, options: Options, seed: int) -> Stream:
    """A seed's stream."""
    from cljax import streams

    chosen, fraction = options.data, root_of(options).data.fraction
    common: dict[str, Any] = {"tasks": chosen.tasks, "seed": seed, "validation": chosen.validation}
    common |= {"fraction": fraction if len(fraction) > 1 else fraction[0]}
    common |= {"schedule": make_schedule(options)}
    if chosen.scenario == "permuted":
        if chosen.class_order != "fixed":
            raise UsageError("With --scenario permuted every task shows all classes: --class-order has no meaning.")
        return streams.permuted(dataset, scenario="task" if chosen.head == "task" else "domain", **common)
    order = None if chosen.class_order == "fixed" else chosen.class_order
    if chosen.division == "superclass":
        return streams.by_superclass(dataset, scenario=chosen.scenario, order=order, **common)
    if chosen.division == "one-vs-all":
        return streams.one_vs_all(dataset, scenario=chosen.scenario, class_order=order, **common)
    if chosen.first_classes is not None:
        count = len(dataset.classes) if order is None or isinstance(order, str) else len(order)
        common["sizes"] = first_and_others(chosen.first_classes, chosen.tasks or 1, count)
    listed = isinstance(chosen.class_order, tuple)
    make: Any = streams.split if len(chosen.data) == 1 or listed else streams.sequence
    return make(dataset, scenario=chosen.scenario, class_order=order, **common)


def first_and_others(first: int, tasks: int, classes: int) -> list[int]:
    """How many classes each task has where the first has so many, the others being as equal as possible.

    Raises:
      UsageError: too few are left for the other tasks, or some without a task.

    Example:
      >>> first_and_others(50, 4, 100)
      [50, 17, 17, 16]
    """
    rest, others = classes - first, tasks - 1
    if rest < others or (rest and not others):
        raise UsageError(f"--first-classes is {first} of {classes}, which leaves {rest} for {others} other tasks.")
    return [first, *(rest // others + (number < rest % others) for number in range(others))]


def add_tasks(stream: Stream, options: Options, seed: int) -> Stream:
    """The stream, then a task for each data set that was added to it, in this run and in those that it goes on from.

    Each has the epochs and the fraction of the run that learned it.
    """
    from cljax import data, streams

    chosen = options.data
    common: dict[str, Any] = {"seed": seed, "validation": chosen.validation, "scenario": stream.scenario}
    for name, run in added(options):
        shape = stream.tables.examples.shape[1:]
        dataset = data.load(name, **{**data_options(options), "image_size": shape[:2] if len(shape) == 3 else None})
        if len(shape) == dataset.images.ndim - 1 == 3:
            dataset = dataset._replace(images=data.images.with_channels(dataset.images, shape[-1]))
        fraction = run.data.fraction[0] if len(run.data.fraction) == 1 else 1.0
        own = streams.split(dataset, tasks=1, epochs=run.training.epochs, fraction=fraction, **common)
        stream = streams.append(stream, own)
    return stream


def make_schedule(options: Options) -> Schedule:
    """The schedule, the same for all seeds; of tasks that are learned already as it was.

    Raises:
      UsageError: a random schedule that never visits some task, or whose first round is to be longer.
    """
    from cljax import streams

    options = root_of(options)
    tasks, epochs, first = options.data.tasks or 0, options.training.epochs, options.training.first_epochs
    if options.data.schedule == "lifelong":
        return streams.lifelong(tasks, [epochs if first is None else first, *[epochs] * (tasks - 1)])
    if first is not None:
        raise UsageError(f"--first-epochs has no meaning with --schedule {options.data.schedule}.")
    if options.data.schedule == "together":
        return streams.together(tasks, epochs)
    every, seed = max(1, options.training.curves_every), seed_numbers(options.training)[0]
    schedule = streams.multi_task(tasks, tasks * epochs, seed=seed, evaluate_every=every)
    if missed := sorted(set(range(tasks)) - set(schedule.task.tolist())):
        raise UsageError(f"The {tasks * epochs} random rounds never visit task {missed[0]}. Give more --epochs.")
    return schedule


def make_network(chosen: NetworkOptions, stream: Stream) -> Network:
    """The network, in the precision asked for; its head is shared where the scenario is domain-incremental."""
    from cljax import networks

    network = _by_name(chosen, stream)
    network = network._replace(per_task=()) if stream.scenario == "domain" else network
    return network if chosen.precision == "float32" else networks.in_bfloat16(network)


def _by_name(chosen: NetworkOptions, stream: Stream) -> Network:
    from cljax import networks

    shape, outputs = tuple(stream.tables.examples.shape[1:]), stream.tables.classes.shape[-1]
    if chosen.network.startswith("df_cnn_"):
        if shape not in PAPER_NETWORKS or chosen.normalization != "none":
            shapes = ", ".join("x".join(map(str, one)) for one in PAPER_NETWORKS)
            raise UsageError(
                f"--network {chosen.network} is for images of {shapes} and has no normalisation, but the examples of "
                f"{stream.name!r} have shape {shape} and the normalisation is {chosen.normalization}. Give --network "
                f"cnn, or other --image-size."
            )
        size: Any = chosen.network.removeprefix("df_cnn_")
        try:
            return networks.df_cnn_base(PAPER_NETWORKS[shape], outputs, size=size, mean=stream.mean, std=stream.std)
        except ValueError as error:  # the paper has no such size for these images
            raise UsageError(f"{error} Give --network df_cnn_base.") from None
    if is_reference(chosen.network):
        return _ones_own(chosen, stream)
    given = {name: getattr(chosen, name) for name in NETWORKS[chosen.network]}
    if given.get("normalization") == "none":
        given["normalization"] = None
    if "normalization" not in given and chosen.normalization != "none":
        raise UsageError(
            f"--network {chosen.network} has no normalisation, but the normalisation is {chosen.normalization}. Give "
            f"--normalization none, or another network."
        )
    common: dict[str, Any] = {**given, "mean": stream.mean, "std": stream.std}
    if chosen.network not in ("mlp", "cnn") and len(shape) != 3:
        raise UsageError(
            f"--network {chosen.network} is for images, but the examples of {stream.name!r} have shape {shape}. Give "
            f"--network mlp."
        )
    if chosen.network == "cnn":
        channels = [block for block in map(parse_block, chosen.blocks) if block]
        side = 2 ** len(channels)
        if not convolvable(chosen, shape):
            raise UsageError(
                f"A cnn of {len(channels)} blocks halves its maps {len(channels)} times and needs images of at least "
                f"{side}x{side} pixels, but the examples of {stream.name!r} have shape {shape}. Give fewer --channels, "
                f"or --network mlp."
            )
        common |= {"channels": channels, "dense": common.pop("hidden"), "dense_dropout": chosen.dropout}
    return getattr(networks, chosen.network)(shape, outputs, **common)


def _given(chosen: NetworkOptions) -> dict[str, Any]:
    """The options that are not as they are by default."""
    return {key: value for key, value in dataclasses.asdict(chosen).items() if value != getattr(NetworkOptions(), key)}


def _ones_own(chosen: NetworkOptions, stream: Stream) -> Network:
    """The network that a function of the user's makes.

    Raises:
      UsageError: an option that the function does not take. ValueError: it makes something else than is needed.
    """
    from cljax import types

    given = _given(chosen)
    given.pop("precision", None)
    name, taken = given.pop("network"), inspect.signature(load(chosen.network)).parameters
    for option, value in given.items():
        if option not in taken:
            raise UsageError(
                f"--{option.replace('_', '-')} is {value}, but {name!r} has no argument {option!r}. Leave it out, or "
                f"let the function take it: def {name.partition(':')[2]}(inputs, outputs, *, {option})."
            )
    if given.get("normalization") == "none":
        given["normalization"] = None
    given |= {key: value for key, value in (("mean", stream.mean), ("std", stream.std)) if key in taken}
    shape, outputs = tuple(stream.tables.examples.shape[1:]), stream.tables.classes.shape[-1]
    cure = (
        "Write a function of the inputs' shape and the number of outputs that returns a Network: "
        "networks.from_linen(module, inputs, outputs=outputs), or from_nnx."
    )
    network: Network = call(name, shape, outputs, returns=types.Network, cure=cure, **given)
    if (network.inputs, network.outputs) != (shape, outputs):
        raise UsageError(
            f"{name!r} makes a network of {network.outputs} outputs for inputs {network.inputs}, but was asked for "
            f"{outputs} for {shape}: let it use its two arguments."
        )
    return network


def convolvable(chosen: NetworkOptions, shape: tuple[int, ...]) -> bool:
    """Whether examples of this shape are images large enough for the blocks of `--channels`."""
    return len(shape) == 3 and min(shape[:2]) >= 2 ** len(chosen.blocks)


def describe(chosen: NetworkOptions, network: Network) -> dict[str, Any]:
    """What a record says of the network: name, sizes, and how many parameters a single task needs."""
    import jax

    params, _ = network.shapes
    taken = _given(chosen) if is_reference(chosen.network) else NETWORKS[chosen.network]
    taken = ("normalization", *(name for name in taken if name != "network"))
    facts = {name: value for name, value in dataclasses.asdict(chosen).items() if name in taken}
    if "channels" in facts:
        facts["channels"] = chosen.blocks
    if chosen.precision != "float32":
        facts["precision"] = chosen.precision
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    return {"name": chosen.network, **facts, "parameters": count}


def make_optimizer(options: Training) -> optax.GradientTransformation:
    """The optimizer at unit rate; the loop multiplies by the learning rate."""
    import optax

    from cljax import transforms

    makers: dict[str, Callable[[], optax.GradientTransformation]] = {
        "sgd": lambda: optax.sgd(1.0),
        "momentum": lambda: optax.sgd(1.0, momentum=0.9),
        "adam": lambda: optax.adam(1.0),
        "adamw": lambda: optax.adamw(1.0, weight_decay=options.weight_decay),
        "rmsprop": lambda: optax.rmsprop(1.0),
        "rmsprop_tf1": transforms.rmsprop_tf1,
    }
    clip = [optax.clip_by_global_norm(options.clip)] if options.clip else []
    added = options.weight_decay and options.optimizer != "adamw"
    decay = [optax.add_decayed_weights(options.weight_decay)] if added else []
    optimizer = optax.chain(*clip, *decay, makers[options.optimizer]())
    return transforms.per_task(optimizer) if options.optimizer_state == "task" else optimizer


def amend(method: Method, options: Training, schedule: Schedule) -> Method:
    """The method with the memory, the rate, the gradient and the search that the options ask for."""
    from cljax import training
    from cljax.methods import tuning
    from cljax.methods.replay import with_memory

    if options.memory and not method.memory_size and method.train_on == "current":
        method = with_memory(method, options.memory, options.memory_selection)
    if options.learning_rate_decay:
        method = training.with_learning_rate_decay(method, schedule, decay=options.learning_rate_decay)
    if options.milestones:
        method = training.with_milestones(method, schedule, milestones=options.milestones)
    if options.cosine:
        method = training.with_cosine(method, schedule)
    if options.loss_reduction == "sum":
        method = training.with_summed_loss(method)
    if options.tune is None:
        return method
    return tuning.tuned(method, learning_rates=options.tune or tuning.LEARNING_RATES)
