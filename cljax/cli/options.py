"""The command's options, typed. Their order and words are what `--help` shows; nothing heavy is imported here."""

from __future__ import annotations

import dataclasses
import os
from typing import Annotated, Any, Literal, Union

from tyro.conf import OmitArgPrefixes, Positional, arg, subcommand

from cljax.references import is_reference

NETWORKS: dict[str, tuple[str, ...]] = {
    "mlp": ("hidden", "normalization", "norm_after", "dropout"),
    "cnn": ("hidden", "channels", "pooled", "normalization", "norm_after", "dropout"),
    "alexnet": ("normalization", "norm_after", "dropout", "width"),
    "clnp_cnn": (),
    "clnp_wide": ("normalization", "width"),
    "df_cnn_base": (),
    "df_cnn_large": (),
    "df_cnn_reduced": (),
    "lenet": ("normalization", "norm_after"),
    "resnet18": ("normalization", "width"),
    "resnet32": ("normalization", "width"),
    "resnet34": ("normalization", "width"),
    "resnet50": ("normalization", "width"),
    "vgg16": ("normalization", "norm_after", "dropout", "width"),
    "vgg16_reduced": ("normalization", "norm_after", "dropout", "width"),
}
"""The networks, and the options below that each of them takes."""
DEFAULT_METHODS = ("finetune", "freezing", "joint", "single_task", "hard_sharing")


class UsageError(ValueError):
    """Something the user asked for cannot be; the message names the thing and the cure."""


class RunError(RuntimeError):
    """A run that has begun cannot go on; the message names the cause and the cure."""


@dataclasses.dataclass(frozen=True)
class Data:
    """What is learned, and in which order."""

    data: Annotated[
        tuple[str, ...],
        arg(
            metavar="NAME [NAME ...]",
            help="Data set: 'digits', one that TFDS has prepared (see `cljax data`), or the path of a folder of "
            "images, one sub-folder a class. Several are learned one after the other.",
        ),
    ] = ("digits",)
    data_dir: Annotated[str | None, arg(metavar="FOLDER", help_behavior_hint="")] = None
    """Where TFDS's prepared data sets are. By default $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    image_size: Annotated[tuple[int, ...], arg(metavar="[INT [INT]]", help_behavior_hint="(default: none)")] = ()
    """Resize images to this side, or height and width. Needed where sizes differ within a data set."""
    normalize: Literal["first", "each"] = "first"
    """Several data sets: standardise all by the first's mean and standard deviation, or each by its own."""
    tasks: Annotated[int | None, arg(metavar="INT", help_behavior_hint="")] = None
    """Number of tasks the classes are divided among (permuted: with all). Default: 5; one each data set, superclass;
    one-vs-all: 10."""
    division: Literal["class", "superclass", "one-vs-all"] = "class"
    """What is divided among tasks: classes, CIFAR-100's superclasses of five; or each class is told from all others."""
    scenario: Annotated[
        Literal["task", "class", "domain", "permuted"],
        arg(
            help="task: the task is known at test time, each has its own head; class: it is not, the largest logit of "
            "all heads counts; domain: all tasks share one head; permuted: domain, every task being the whole data set "
            "with its pixels permuted (see also --head)."
        ),
    ] = "task"
    head: Literal["auto", "shared", "task"] = "auto"
    """permuted: one head shared by all tasks, or a head for each; auto: shared, unless a named method needs its own."""
    first_classes: Annotated[int | None, arg(metavar="INT", help_behavior_hint="")] = None
    """Classes of the first task, such as 50 of 100; the others are divided among the other tasks."""
    class_order: Literal["fixed", "random", "icarl"] | tuple[int, ...] = "fixed"
    """Order of classes (or superclasses): fixed (0, 1, ...), random (by seed), icarl (of 1993), or their numbers, which
    go on from one data set to the next; no others are learned."""
    validation: float = 0.1
    """Fraction of each class's training examples set aside for validation."""
    fraction: Annotated[tuple[float, ...], arg(aliases=["--share"])] = (1.0,)
    """Fraction of the other training examples that is used, at least one a class; one number, or one for each task."""
    schedule: Literal["lifelong", "multi-task", "together"] = "lifelong"
    """lifelong: one task after the other; multi-task: rounds of one epoch on a random task, as many in all; together:
    all tasks at once, for joint."""
    past: Annotated[str | None, arg(aliases=["--from"], metavar="FOLDER", help_behavior_hint="")] = None
    """Go on from the learners that a run has kept (--keep-learners), as its config.json says; see --add-task."""
    add_task: Annotated[tuple[str, ...], arg(metavar="[NAME ...]", help_behavior_hint="(default: none)")] = ()
    """With --from: data sets to learn next, all classes of each as one more task."""


@dataclasses.dataclass(frozen=True)
class Network:
    """The network; it knows nothing of tasks."""

    network: Annotated[str, arg(metavar="NAME|MODULE:FUNCTION")] = "auto"
    """Multilayer perceptron (mlp), or convolutional network (cnn); auto: mlp, unless --channels, --pooled or a method
    says cnn. By name: alexnet, lenet, vgg16, resnet18, resnet32, resnet34, resnet50 (with the ImageNet stem from 96
    pixels on, else CIFAR's); and the papers' own: clnp_cnn, clnp_wide, vgg16_reduced (TFM), df_cnn_base,
    df_cnn_large and df_cnn_reduced (its initialisation too, for images of 28x28x1, 32x32x3 or 128x128x3). One's own: a
    function (inputs, outputs) that returns a Network."""
    hidden: tuple[int, ...] = (128, 128)
    """Width of each hidden dense layer (cnn: of those after the convolutions)."""
    channels: Annotated[tuple[str, ...] | None, arg(help_behavior_hint="")] = None
    """cnn: features of the 3x3 convolutions, one word a block closed by 2x2 pooling: 32,32 64,64; else 32 64."""
    pooled: bool = False
    """cnn: average the last maps over all positions; with --hidden and no width the head reads these means."""
    normalization: Literal["auto", "none", "batch", "feature"] = "auto"
    """After each layer: none, batch normalisation, or feature-wise scale and shift; auto: feature for tfm, of whose
    method it is a part, wherever it can be had, and none for all others (resnets, clnp_wide: batch, where the method
    can)."""
    norm_after: bool = False
    """Normalise after the activation instead of before it."""
    dropout: Annotated[float | None, arg(metavar="FLOAT", help_behavior_hint="")] = None
    """Dropout rate, after each hidden layer (cnn: after each block and each dense layer). Default: 0; alexnet, vgg16,
    vgg16_reduced: 0.5, after each dense layer."""
    width: float = 1.0
    """alexnet, vgg16, vgg16_reduced, resnets, clnp_wide: by which the features of all hidden layers are multiplied."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: layers compute in it, parameters, loss and updates stay in float32 (mixed precision)."""

    @property
    def blocks(self) -> tuple[str, ...]:
        """The channels, where none are given the default."""
        return ("32", "64") if self.channels is None else self.channels


@dataclasses.dataclass(frozen=True)
class Training:
    """How it is trained."""

    seeds: tuple[int, ...] = (5,)
    """How many seeds (5 means 0 to 4), or two or more seeds themselves."""
    seed: Annotated[int | None, arg(metavar="INT", help_behavior_hint="")] = None
    """This one seed, in place of --seeds."""
    epochs: int = 20
    """Epochs of each visit to a task; with patience, the most there can be."""
    init: Annotated[str | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """Start from trained parameters: a .safetensors or .npz file, an Orbax checkpoint, a learner of --keep-learners."""
    first_epochs: Annotated[int | None, arg(metavar="INT", help_behavior_hint="")] = None
    """Epochs of the first task where they differ; with --init 0 is possible: its parameters are used as they are."""
    batch_size: int = 32
    """Examples of a step."""
    optimizer: Literal["sgd", "momentum", "adam", "adamw", "rmsprop", "rmsprop_tf1"] = "momentum"
    """momentum: SGD with momentum 0.9; adamw: decoupled weight decay; rmsprop_tf1: as TensorFlow 1 has it."""
    learning_rate: Annotated[float, arg(aliases=["--lr", "--rate"])] = 0.05
    """Learning rate."""
    weight_decay: float = 0.0
    """Weight decay (adamw: decoupled, otherwise added to the gradient)."""
    learning_rate_decay: Annotated[float, arg(aliases=["--rate-decay"])] = 0.0
    """The learning rate is divided by 1 + this x the epochs so far, of all tasks."""
    milestones: Annotated[tuple[float, ...], arg(help_behavior_hint="(default: none)")] = ()
    """Parts of each visit, such as 0.5 0.75, after which the learning rate is a tenth of what it was."""
    cosine: bool = False
    """Let the learning rate fall to 0 along half a cosine within each visit."""
    loss_reduction: Literal["mean", "sum"] = "mean"
    """Gradients are those of the loss's mean over the examples of a step, or of its sum, which is --batch-size x it."""
    optimizer_state: Literal["shared", "task"] = "shared"
    """task: each task has an optimizer state of its own, which a later visit takes up."""
    clip: float = 1.0
    """Gradients of a larger norm (over all that trains) are shortened to it; 0: none is."""
    patience: int = 0
    """Epochs without a better validation loss before the rate drops; 0: no patience, every epoch is trained."""
    patience_factor: float = 3.0
    """By which the rate is divided when it drops; 1e9: for early stopping, the first drop ends the visit."""
    patience_minimum_learning_rate: Annotated[float, arg(aliases=["--patience-minimum-rate"])] = 1e-4
    """Training stops once the rate is below; the best epoch is then restored."""
    patience_restore: bool = False
    """Also restore the best epoch whenever the rate drops."""
    augment: Annotated[tuple[Literal["crop", "flip", "colour"], ...], arg(help_behavior_hint="(default: none)")] = ()
    """Change training images at random. crop: shift by up to an eighth of the side (4 of 32); colour: as AlexNet."""
    memory: Annotated[int, arg(aliases=["--exemplars"])] = 0
    """Exemplars of earlier tasks, in all, to train on as well; methods that have those tasks' examples take none."""
    memory_selection: Literal["balanced", "reservoir", "herding"] = "balanced"
    """What --memory keeps. By chance: as many of each class, or of all seen; herding: what is like a class's mean."""
    tune: Annotated[tuple[float, ...] | None, arg(metavar="[RATE ...]", help_behavior_hint="")] = None
    """Let each visit choose by its own task's validation part: the best of these learning rates (0.1 0.05 0.01 where
    none is given) with all strengths at 0; then the largest strength that keeps four fifths of that accuracy, of ten
    times the method's own and its halves. The record has what was tried and chosen, and the epochs that it took."""
    set: Annotated[tuple[str, ...], arg(metavar="[NAME=VALUE ...]", help_behavior_hint="(default: none)")] = ()
    """A method's own parameters, such as own_layers=2; METHOD.NAME=VALUE sets it for one method, or part, only."""
    curves_every: int = 0
    """Evaluate all tasks after every so many epochs too; 0: after each visit only. With --schedule multi-task: after
    every so many visits, which are of one epoch, and after no others but the last."""
    driver: Literal["auto", "scan", "host"] = "auto"
    """scan: data on the device; host: read from disk as the run goes on; auto: host for data of half the memory."""
    vectorize: Literal["auto", "yes", "no"] = "auto"
    """Run the seeds side by side (vmap) instead of in turn; auto: on GPU and TPU."""
    devices: Annotated[int | None, arg(metavar="INT", help_behavior_hint="")] = None
    """Devices that share the seeds side by side, and each batch where there are more; default: all that can."""
    distributed: bool = False
    """This is one of several processes, started by SLURM, Open MPI, on GKE or a TPU pod, that share their devices."""


@dataclasses.dataclass(frozen=True)
class Output:
    """Where results go, and what is shown."""

    out: Annotated[
        str | None,
        arg(
            metavar="FOLDER",
            help="Run folder, for config.json and record.json; by default runs/<data>-<scenario>-<date-time>. The same "
            "command with the folder of an interrupted run goes on where that stopped.",
            help_behavior_hint="",
        ),
    ] = None
    resume: bool = False
    """Take up an interrupted run: that in --out, or the newest one of the same configuration under runs/."""
    overwrite: bool = False
    """Replace a run of the same configuration, and begin an unfinished one anew."""
    checkpoint_seconds: float = 60.0
    """Save at least every so many seconds, besides after each visit to a task; 0: after every epoch."""
    keep_learners: bool = False
    """Keep what is learned, in learners/METHOD/seed-N of the run folder, for --init and `cljax.storage.checkpoints`."""
    report: bool = True
    """Of `compare`: write the report too, with report.html, into `report` in the run folder."""
    tensorboard: bool = False
    """Write TensorBoard's event files too, into tensorboard/METHOD/seed-N of the run folder, after each visit."""
    wandb: bool = False
    """Send the same to Weights & Biases; WANDB_PROJECT, WANDB_MODE and so on say where."""
    quiet: bool = False
    """Show no progress."""
    cache: bool = True
    """Keep compiled programs in $XDG_CACHE_HOME/cljax (or ~/.cache/cljax), so that the next run starts sooner."""


@dataclasses.dataclass(frozen=True)
class Options:
    """The options of `run`, `compare` and `sweep`."""

    data: OmitArgPrefixes[Data] = Data()
    training: OmitArgPrefixes[Training] = Training()
    network: OmitArgPrefixes[Network] = Network()
    output: OmitArgPrefixes[Output] = Output()
    config: Annotated[str | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """Do what another run did, by its config.json; methods and options given here take the place of its own."""


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
      cljax compare --config runs/digits-task-20260101-120000/config.json --seeds 10
    """

    methods: Annotated[tuple[str, ...], arg(metavar="METHOD [METHOD ...]")] = DEFAULT_METHODS
    """Names of methods (see `cljax methods`), or 'all'. With + between they combine: lwf+ewc,
    tfm+replay. One's own: module:function, a function of the network that returns a Method."""
    options: Annotated[OmitArgPrefixes[Options], arg(name="")] = Options()


@dataclasses.dataclass(frozen=True)
class Run:
    """Run one method, everything settable.

    For example:
      cljax run finetune
      cljax run hard_sharing --set own_layers=1 --epochs 50 --patience 5 --seeds 10
      cljax run joint --data mnist --network cnn --channels 32,32 64,64 --hidden 512 --optimizer adam --lr 0.001
    """

    name: Annotated[Positional[str | None], arg(metavar="METHOD", help_behavior_hint="")] = None
    """Name of the method; see `cljax methods`."""
    method: Annotated[str | None, arg(metavar="METHOD", help_behavior_hint="")] = None
    """The same, as an option."""
    options: Annotated[OmitArgPrefixes[Options], arg(name="")] = Options()


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Vary one number of a method, over seeds: the curve of stability against plasticity.

    All values and seeds go through the same compiled programs. Prints a table, and writes record.json, sweep.md and
    sweep.png into the run folder. With --vs, other methods' curves, or points, are in the same plot.

    For example:
      cljax sweep lwf strength 0.1 0.3 1 3 10 --vs finetune joint
      cljax sweep lwm gamma 0 1 10 --vs lwm.beta=0.1,1,10 lwf.strength=0.1,1,10 --seeds 5
    """

    method: Annotated[Positional[str | None], arg(metavar="METHOD", help_behavior_hint="")] = None
    """Name of the method; see `cljax methods`."""
    parameter: Annotated[Positional[str | None], arg(metavar="NAME", help_behavior_hint="")] = None
    """The number to vary: a parameter of the method, or learning_rate."""
    values: Annotated[Positional[tuple[float, ...]], arg(metavar="VALUE [VALUE ...]", help_behavior_hint="")] = ()
    """Its values."""
    vs: Annotated[
        tuple[str, ...], arg(metavar="[METHOD[.NAME=VALUE,VALUE...] ...]", help_behavior_hint="(default: none)")
    ] = ()
    """Other methods, each with a number of its own and its values, or as it is."""
    options: Annotated[OmitArgPrefixes[Options], arg(name="")] = Options()


@dataclasses.dataclass(frozen=True)
class Methods:
    """List the methods, a line each; or describe one, with its parameters: cljax methods lwf."""

    name: Annotated[Positional[str | None], arg(metavar="[METHOD]", help_behavior_hint="")] = None
    """Name of the method."""


@dataclasses.dataclass(frozen=True)
class Predict:
    """Classify images with a learner that a run has kept (--keep-learners).

    Prints a line an image, the most probable classes first. Images are resized to those that it was trained on.

    For example:
      cljax predict runs/first --task 2 picture.png
      cljax predict runs/first --method lwf --seed 3 --task 0 --top 1 *.jpg
    """

    folder: Annotated[Positional[str], arg(metavar="FOLDER", help_behavior_hint="")]
    """The run's folder."""
    images: Annotated[Positional[tuple[str, ...]], arg(metavar="IMAGE [IMAGE ...]", help_behavior_hint="")]
    """Image files."""
    task: Annotated[int | None, arg(metavar="INT", help_behavior_hint="")] = None
    """The task whose classes are asked for, from 0. Class-incremental: of all tasks, where none is given."""
    method: Annotated[str | None, arg(metavar="METHOD", help_behavior_hint="")] = None
    """The method, where the run has learners of several."""
    seed: Annotated[int | None, arg(metavar="INT", help_behavior_hint="")] = None
    """The seed; the first that was kept where none is given."""
    top: int = 3
    """How many classes to print."""


@dataclasses.dataclass(frozen=True)
class PrepareData:
    """Prepare MNIST, Fashion-MNIST, CIFAR-10 or CIFAR-100, from the network or from their official archives.

    For example:
      cljax data prepare mnist
      cljax data prepare cifar100 --from ~/Downloads
    """

    name: Positional[str]
    """Name of the data set; see `cljax data`."""
    data_dir: Annotated[str | None, arg(metavar="FOLDER", help_behavior_hint="")] = None
    """Where to put it. By default $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    archives: Annotated[str | None, arg(name="from", metavar="FOLDER", help_behavior_hint="")] = None
    """Folder that holds the official archives, under their own names; without it they are downloaded."""
    verify: bool = True
    """Refuse archives of a folder whose checksums are not the registered ones."""


@dataclasses.dataclass(frozen=True)
class DataSets:
    """List the data sets, a line each; or prepare one: cljax data prepare mnist."""

    action: Annotated[
        Annotated[PrepareData, subcommand("prepare")] | Annotated[None, subcommand("list")], arg(name="")
    ] = None
    data_dir: Annotated[str | None, arg(metavar="FOLDER", help_behavior_hint="")] = None
    """Where TFDS's prepared data sets are. By default $TFDS_DATA_DIR, else ~/tensorflow_datasets."""


@dataclasses.dataclass(frozen=True)
class Report:
    """Make tables, plots and a page from the records of runs.

    Writes report.html (one file, opens in any browser), table.md and .tex, results.csv, summary.csv, plots/. Several
    folders are shown side by side; what is not on the same tasks gets a section of its own.

    For example:
      cljax report runs/digits-task-20260101-120000
      cljax report runs/first runs/second --out both
    """

    folders: Annotated[Positional[tuple[str, ...]], arg(metavar="FOLDER [FOLDER ...]", help_behavior_hint="")]
    """Run folders, finished or not."""
    out: Annotated[str | None, arg(metavar="FOLDER", help_behavior_hint="")] = None
    """Where to write. By default `report` in the run folder; of several, in the working directory."""


Command = Compare | Run | Sweep | Predict | Report | Methods | DataSets
COMMANDS = {
    "compare": Compare,
    "run": Run,
    "sweep": Sweep,
    "predict": Predict,
    "report": Report,
    "methods": Methods,
    "data": DataSets,
}
COMMAND: Any = Union[tuple(Annotated[kind, subcommand(name)] for name, kind in COMMANDS.items())]  # noqa: UP007
"""The same by the names of the commands."""


def settle(options: Options) -> Options:
    """The options with what is meant where nothing is given.

    That is the number of tasks, by channels or pooling a cnn, and the dropout rate.

    Example:
      >>> settle(Options()).data.tasks, settle(Options(data=Data(data=('mnist', 'cifar10')))).data.tasks
      (5, 2)
      >>> settle(Options(network=Network(channels=('8',)))).network.network
      'cnn'
    """
    data, network = options.data, options.network
    if data.tasks is None:
        meant = {"superclass": 20, "one-vs-all": 10}.get(data.division, 5 if len(data.data) < 2 else len(data.data))
        data = dataclasses.replace(data, tasks=meant)
    if data.past is not None:
        data = dataclasses.replace(data, past=os.path.abspath(os.path.expanduser(data.past)))
    if network.network == "auto" and (network.channels is not None or network.pooled):
        network = dataclasses.replace(network, network="cnn")
    if network.dropout is None and not is_reference(network.network):
        rate = 0.5 if {"dropout", "width"} <= set(NETWORKS.get(network.network, ())) else 0.0
        network = dataclasses.replace(network, dropout=rate)
    return dataclasses.replace(options, data=data, network=network)


def seed_numbers(options: Training) -> tuple[int, ...]:
    """The seeds meant: that of `--seed`; of `--seeds`, one number counts them, several are the seeds.

    Example:
      >>> seed_numbers(Training(seeds=(3,))), seed_numbers(Training(seeds=(7, 5))), seed_numbers(Training(seed=7))
      ((0, 1, 2), (7, 5), (7,))
    """
    if options.seed is not None:
        return (options.seed,)
    return tuple(range(options.seeds[0])) if len(options.seeds) == 1 else options.seeds


def parse_block(word: str) -> tuple[int, ...] | None:
    """The features of a block's convolutions, or None where the word is not numbers with commas between."""
    try:
        features = tuple(int(part) for part in word.split(","))
    except ValueError:
        return None
    return features if min(features) >= 1 else None
