"""The command's options, typed. Their order and words are what `--help` shows; nothing heavy is imported here."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

from tyro.conf import OmitArgPrefixes, Positional, arg, subcommand

DEFAULT_METHODS = ("finetune", "freezing", "joint", "single_task", "hard_sharing")


@dataclasses.dataclass(frozen=True)
class Data:
    """What is learned, and in which order."""

    data: str = "digits"
    """Data set: 'digits', or one that TFDS has prepared; see `cljax data`."""
    data_dir: Annotated[str | None, arg(metavar="FOLDER")] = None
    """Where TFDS's prepared data sets are. By default $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    tasks: int = 5
    """Number of tasks, among which the classes are divided (permuted: which show all classes each)."""
    scenario: Annotated[
        Literal["task", "class", "domain", "permuted"],
        arg(
            help="task: the task is known at test time, each has its own head; class: it is not, the largest logit of "
            "all heads counts; domain: all tasks share one head; permuted: domain, every task being the whole data set "
            "with its pixels permuted."
        ),
    ] = "task"
    class_order: Literal["fixed", "random"] | tuple[int, ...] = "fixed"
    """Order of the classes: fixed (0, 1, 2, ...), random (another one each seed), or the classes themselves."""
    validation: float = 0.1
    """Share of each class's training examples set aside for validation."""
    schedule: Literal["lifelong", "multi-task"] = "lifelong"
    """lifelong: one task after the other; multi-task: rounds of one epoch on a random task, as many in all."""


@dataclasses.dataclass(frozen=True)
class Network:
    """The network; it knows nothing of tasks."""

    network: Literal["auto", "mlp", "cnn"] = "auto"
    """Multilayer perceptron, or convolutional network; auto: mlp, unless a method of the run needs convolutions."""
    hidden: tuple[int, ...] = (128, 128)
    """Width of each hidden dense layer (cnn: of those after the convolutions)."""
    channels: tuple[str, ...] = ("32", "64")
    """cnn: features of the 3x3 convolutions, one word for each block closed by 2x2 pooling: 32,32 64,64."""
    normalization: Literal["none", "batch", "feature"] = "none"
    """After each layer: none, batch normalisation, or feature-wise scale and shift."""
    dropout: float = 0.0
    """Dropout rate, after each hidden layer (cnn: after each block and each dense layer)."""


@dataclasses.dataclass(frozen=True)
class Training:
    """How it is trained."""

    seeds: tuple[int, ...] = (5,)
    """How many seeds (5 means 0 to 4), or two or more seeds themselves."""
    epochs: int = 20
    """Epochs of each visit to a task; with patience, the most there can be."""
    batch_size: int = 32
    """Examples of a step."""
    optimizer: Literal["sgd", "momentum", "adam", "adamw", "rmsprop"] = "momentum"
    """momentum: SGD with momentum 0.9; adamw: decoupled weight decay."""
    rate: float = 0.05
    """Learning rate."""
    weight_decay: float = 0.0
    """Weight decay (adamw: decoupled, otherwise added to the gradient)."""
    clip: float = 1.0
    """Gradients of a larger norm (over all that trains) are shortened to it; 0: none is."""
    patience: int = 0
    """Epochs without a better validation loss before the rate drops; 0: no patience, every epoch is trained."""
    patience_factor: float = 3.0
    """By which the rate is divided when it drops."""
    patience_minimum_rate: float = 1e-4
    """Training stops once the rate is below; the best epoch is then restored."""
    patience_restore: bool = False
    """Also restore the best epoch whenever the rate drops."""
    set: Annotated[tuple[str, ...], arg(metavar="[NAME=VALUE ...]")] = ()
    """A method's own parameters, such as own_layers=2; METHOD.NAME=VALUE sets it for one method only."""
    curves_every: int = 0
    """Evaluate all tasks after every so many epochs too; 0: after each visit only."""
    vectorize: Literal["auto", "yes", "no"] = "auto"
    """Run the seeds side by side (vmap) instead of in turn; auto: on GPU and TPU."""


@dataclasses.dataclass(frozen=True)
class Output:
    """Where results go, and what is shown."""

    out: Annotated[
        str | None,
        arg(
            metavar="FOLDER",
            help="Run folder, for config.json and record.json; by default runs/<data>-<scenario>-<date-time>. The same "
            "command with the folder of an interrupted run keeps the methods that were finished and does the rest.",
        ),
    ] = None
    overwrite: bool = False
    """Replace a finished run of the same configuration."""
    quiet: bool = False
    """Show no progress."""
    cache: bool = True
    """Keep compiled programs in $XDG_CACHE_HOME/cljax (or ~/.cache/cljax), so that the next run starts sooner."""


@dataclasses.dataclass(frozen=True)
class Options:
    """The options of `run` and `compare`."""

    data: OmitArgPrefixes[Data] = Data()
    training: OmitArgPrefixes[Training] = Training()
    network: OmitArgPrefixes[Network] = Network()
    output: OmitArgPrefixes[Output] = Output()


@dataclasses.dataclass(frozen=True)
class Compare:
    """Compare methods on the same tasks and seeds.

    Without options: fine-tuning, freezing, joint training, single-task networks and hard sharing on the handwritten
    digits, 5 tasks of 2 classes, 5 seeds, on real data that needs no download. Shows progress, prints a table and
    writes record.json into the run folder.

    For example:
      cljax compare
      cljax compare --methods all --scenario class --class-order random --seeds 10
      cljax compare --scenario permuted --methods finetune joint
    """

    methods: Annotated[tuple[str, ...], arg(metavar="[METHOD ...]")] = ()
    """Names of methods (see `cljax methods`), or 'all'; by default those above."""
    options: Annotated[OmitArgPrefixes[Options], arg(name="")] = Options()


@dataclasses.dataclass(frozen=True)
class Run:
    """Run one method, everything settable.

    For example:
      cljax run finetune
      cljax run hard_sharing --set own_layers=1 --epochs 50 --patience 5 --seeds 10
      cljax run joint --data mnist --network cnn --channels 32,32 64,64 --hidden 512 --optimizer adam --rate 0.001
    """

    name: Annotated[Positional[str | None], arg(metavar="METHOD", help_behavior_hint="")] = None
    """Name of the method; see `cljax methods`."""
    method: Annotated[str | None, arg(metavar="METHOD")] = None
    """The same, as an option."""
    options: Annotated[OmitArgPrefixes[Options], arg(name="")] = Options()


@dataclasses.dataclass(frozen=True)
class Methods:
    """List the methods, a line each."""


@dataclasses.dataclass(frozen=True)
class DataSets:
    """List the data sets, a line each."""

    data_dir: Annotated[str | None, arg(metavar="FOLDER")] = None
    """Where TFDS's prepared data sets are. By default $TFDS_DATA_DIR, else ~/tensorflow_datasets."""


Command = (
    Annotated[Compare, subcommand("compare")]
    | Annotated[Run, subcommand("run")]
    | Annotated[Methods, subcommand("methods")]
    | Annotated[DataSets, subcommand("data")]
)


def configuration(methods: tuple[str, ...], options: Options) -> dict[str, Any]:
    """What decides the results: the methods and all options but those of `Output`, as JSON has them.

    Example:
      >>> configuration(('finetune',), Options())['training']['seeds']
      [0, 1, 2, 3, 4]
    """
    parts = {name: dataclasses.asdict(getattr(options, name)) for name in ("data", "training", "network")}
    parts["training"]["seeds"] = list(seed_numbers(options.training.seeds))
    for part in parts.values():
        part.update({key: list(value) for key, value in part.items() if isinstance(value, tuple)})
    return {"methods": list(methods), **parts}


def seed_numbers(seeds: tuple[int, ...]) -> tuple[int, ...]:
    """The seeds meant by `--seeds`: one number counts them, several are the seeds.

    Example:
      >>> seed_numbers((3,)), seed_numbers((7, 5))
      ((0, 1, 2), (7, 5))
    """
    return tuple(range(seeds[0])) if len(seeds) == 1 else seeds
