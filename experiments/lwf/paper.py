"""Learning without Forgetting on its own data sets, for who has them, with a trained AlexNet or VGG-16.

    python -m experiments.lwf.paper --old ImageNet --new CUB --init alexnet.safetensors

`--old` and `--new` name folders of images (`train` and `val` or `test`, a sub-folder a class), data sets that TFDS has
prepared, or VOC's folder of a year (`VOCdevkit/VOC2012`); several `--new` are learned one by one, as in figure 4.
Images are read as the run goes on, at 256x256; the network sees random 224x224 parts of them in training, mirrored and
with shifted colours, and the middle in evaluation. `--init` is what the network learned on the old task: our own
parameters, or torchvision's AlexNet or VGG-16 as a `.safetensors` file, which standardises by the default `--mean` and
`--std`.

The official code's rates and epochs (warm-up and what follows together), after ImageNet and Places2: VOC 0.0002, CUB
0.0008 and 0.0012, Scenes 0.0004 and 0.0006, MNIST 0.0004 (`--learning-rate`); VOC 36 and 54, CUB and Scenes 144 and
216, MNIST 24 (`--epochs`); batches of 192, with VGG-16 64. For a GPU: with AlexNet a visit to CUB is 4,500 steps of 192
images.

VOC's images have several labels each: its head has binary losses, and its result is the mean average precision, which
leaves difficult images out. Beside it the labels of all tasks are kept one-hot, of ImageNet five gigabytes.

Each method's accuracies are kept in `--runs`, and read from there by the same configuration, data and `--init` only.
Writes `experiments/results/lwf_paper_OLD_NEW.json`. `--check` needs no data: it goes through the shapes of a train step
of every method on the paper's pairs, with both networks, and takes one step of LwF with AlexNet on generated images.
Expected: tables 1(a) and 1(c), in `experiments.lwf.published`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
import time
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from cljax import augmentation, data, metrics, networks, streams, training
from cljax.files import shown
from cljax.storage import checkpoints
from cljax.training.driver import drive
from cljax.types import Array, Learner, Method, Network, Stream, make_clock
from experiments import claims
from experiments.lwf import parts
from experiments.lwf.published import TABLE_1
from experiments.lwf.runs import methods_of, optimizer
from experiments.saving import LOCAL, command_line, kept, write_result

CLASSES = {"ImageNet": 1000, "Places2": 401, "VOC": 20, "CUB": 200, "Scenes": 67, "MNIST": 10}
PAIRS = (
    *(("ImageNet", new) for new in ("VOC", "CUB", "Scenes", "MNIST")),
    *(("Places2", new) for new in ("VOC", "CUB", "Scenes")),
)
VOC_STRENGTH = 0.5
"""Of the L2 constraint for VOC, as the paper has it; of other tasks the method's default."""
NETWORKS = {"alexnet": networks.alexnet, "vgg16": networks.vgg16}
SIDE, PART = 256, 224
COLOURS: dict[str, Any] = {
    "eigenvalues": (0.2175, 0.0188, 0.0045),
    "eigenvectors": ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203)),
}
"""The principal components of ImageNet's colours, as commonly given."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Data, network and training; see above."""

    old: str = ""
    new: tuple[str, ...] = ()
    init: str = ""
    network: Literal["alexnet", "vgg16"] = "alexnet"
    methods: tuple[str, ...] = parts.MAIN
    data_dir: str | None = None
    learning_rate: float = 0.0008
    epochs: int = 144
    batch_size: int = 192
    seeds: int = 3
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    runs: str = "runs/paper"
    out: str = "experiments"
    check: bool = False


class InColour:
    """Grey images that are read on demand, their channel repeated."""

    def __init__(self, images: data.Images) -> None:
        self._images = images

    def __len__(self) -> int:
        """The number of images."""
        return len(self._images)

    def __getitem__(self, row: int) -> np.ndarray:
        """Reads one image, `[H, W, 3]`."""
        return np.repeat(self._images[row], 3, axis=-1)

    def identity(self) -> str:
        """That of the grey images."""
        return f"in colour: {self._images.identity()}"


def middle(network: Network, side: int) -> Network:
    """The network, shown the middle of images of this side; shifted images show it another part."""
    height, width, channels = network.inputs
    top, left = (side - height) // 2, (side - width) // 2

    def encode(params: Any, collections: Any, inputs: Array, *, train: bool, key: Array | None):
        part = inputs[:, top : top + height, left : left + width]
        return network.encode(params, collections, part, train=train, key=key)

    return network._replace(encode=encode, inputs=(side, side, channels))


def make_network(config: Config, outputs: int) -> Network:
    """The network of the configuration."""
    made = NETWORKS[config.network]((PART, PART, 3), outputs, mean=config.mean, std=config.std)
    return middle(made, SIDE)


def open_task(name: str, data_dir: str | None) -> data.Dataset:
    """A data set by name or folder; of VOC, labels of a half where there are only difficult objects."""
    if is_voc(name):
        return data.open_voc(name, image_size=SIDE, difficult=0.5)
    return data.open(name, data_dir, image_size=SIDE)


def is_voc(name: str) -> bool:
    """Whether a name is the path of VOC's folder of a year."""
    return (pathlib.Path(name).expanduser() / "ImageSets").is_dir()


def make_stream(config: Config) -> Stream:
    """The old data set, whose images only joint training draws from, then the new ones."""
    tasks = []
    for name in (config.old, *config.new):
        found = open_task(name, config.data_dir)
        images = [found.train_images, found.test_images]
        if images[0].shape[-1] == 1:
            images = [data.Images([InColour(part)], (SIDE, SIDE, 3), name=name) for part in images]
        train_labels = np.floor(found.train_labels) if is_voc(name) else found.train_labels  # difficult: as without
        tasks.append((images[0], train_labels, images[1], found.test_labels))
    schedule = streams.lifelong(len(tasks), [0, *[config.epochs] * len(config.new)])
    return streams.from_tasks(tasks, validation=0.0, schedule=schedule, name="+".join((config.old, *config.new)))


def from_torch(leaves: Mapping[str, np.ndarray], network: Network) -> dict[str, np.ndarray]:
    """Parameters by the network's paths, of torchvision's by theirs (`features/0/weight`); others as they are.

    Convolutions turn from `[out, in, h, w]` to `[h, w, in, out]`, dense layers from `[out, in]` to `[in, out]`; the
    first of these takes maps flattened as height, width, feature instead of feature, height, width.

    Args:
      leaves: of `checkpoints.load_params`.
      network: with `wiring`, in the order of its layers.
    """
    if any(path.endswith("/kernel") for path in leaves):
        return dict(leaves)
    kernels = [wire.path for wire in network.wiring if wire.path.endswith("/kernel")]
    place = lambda path: (path.split("/")[0] != "features", int(path.split("/")[1]))
    weights = sorted((path for path in leaves if path.endswith("/weight")), key=place)
    found, features = {}, 0
    for path, source in zip(kernels, weights, strict=True):
        value = np.asarray(leaves[source])
        if value.ndim == 4:
            features, value = len(value), value.transpose(2, 3, 1, 0)
        else:
            if features:
                value = value.reshape(len(value), features, -1).swapaxes(1, 2).reshape(len(value), -1)
            features, value = 0, value.T
        found[path] = value
        found[path.replace("/kernel", "/bias")] = np.asarray(leaves[source.replace("/weight", "/bias")])
    return found


def precision(method: Method, learner: Learner, stream: Stream, task: int, batch_size: int = 256) -> float:
    """The mean average precision on the test images of a multi-label task, those that are difficult left out."""
    table, predict = stream.tables.test, jax.jit(method.predict)
    first, size = int(table.start[task]), int(table.size[task])
    index, labels = (np.asarray(leaf)[first : first + size] for leaf in (table.index, table.labels))
    read = lambda start: stream.tables.examples.take(index[start : start + batch_size])
    scores = [np.asarray(predict(learner, read(start), jnp.int32(task))) for start in range(0, size, batch_size)]
    classes = jnp.asarray(stream.tables.classes[task])
    weights = jnp.asarray(labels != 0.5, jnp.float32)
    return float(metrics.mean_average_precision(np.concatenate(scores), labels, weights=weights, classes=classes))


def decides(config: Config, label: str, stream: Stream, given: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """All that a method's accuracies depend on: configuration, data, given parameters.

    Args:
      config: the whole configuration; where files are, and which other methods are asked for, does not count.
      label: of the method.
      stream: of `make_stream`.
      given: the parameters that all start from.
    """
    aside = (*LOCAL, "check", "methods", "init", "old", "new")
    options = {name: value for name, value in dataclasses.asdict(config).items() if name not in aside}
    arrays = hashlib.sha256(stream.tables.examples.identity().encode())
    for name, leaf in [*sorted(given.items()), *enumerate(jax.tree.leaves(stream.tables._replace(examples=None)))]:
        array = np.ascontiguousarray(leaf)
        arrays.update(f"{name} {array.dtype} {array.shape}\n".encode() + array.tobytes())
    schedule = jax.tree.map(np.asarray, tuple(stream.schedule))
    return {"label": label, "options": options, "schedule": schedule, "arrays": arrays.hexdigest()}


def title(config: Config) -> str:
    """The names of the data sets, for those of files."""
    names = "_".join(shown(pathlib.Path(name).name) for name in (config.old, *config.new))
    return names.encode()[:100].decode("utf-8", "ignore")


def check() -> None:
    """Shapes of a train step of every method on every pair, with both networks; and one step taken with AlexNet."""
    for name in NETWORKS:
        for old, new in PAIRS:
            for label in parts.MAIN:
                _, loss = jax.eval_shape(lambda case=(name, old, new, label): step(*generated(*case)))
                assert loss.shape == ()
            print(f"{name}, {new} after {old}: a step of {', '.join(parts.MAIN)} has its shapes", flush=True)
    begun = time.perf_counter()
    learner, value = jax.jit(lambda: step(*generated("alexnet", "ImageNet", "CUB", "lwf")))()
    loss, teacher = float(value), learner.method_state["teacher"]["params"]
    moved = float(abs(learner.params["conv_0"]["kernel"] - teacher["conv_0"]["kernel"]).max())
    print(f"one step of LwF with AlexNet: loss {loss:.3f}, {time.perf_counter() - begun:.0f} s with compilation")
    if not (np.isfinite(loss) and moved > 0):
        raise RuntimeError(f"The loss is {loss} and the first kernel moved by {moved}.")


def generated(network: str, old: str, new: str, label: str, examples: int = 4) -> tuple[Method, Stream]:
    """A method with a network, and two tasks of as many classes as the data sets have, a few noise images each."""
    generator, tasks = np.random.default_rng(0), []
    outputs = max(CLASSES[old], CLASSES[new])
    images, none = generator.integers(0, 256, (examples, SIDE, SIDE, 3), np.uint8), np.zeros(examples, np.int32)
    noise = data.from_arrays(images, none, images, none, name="generated")
    for name in (old, new):
        labels: Any = np.linspace(0, CLASSES[name] - 1, 2 * examples).astype(np.int32)
        labels[examples - 1] = CLASSES[name] - 1
        if name == "VOC":
            labels = generator.integers(0, 2, (2 * examples, CLASSES[name])).astype(np.float32)
        tasks.append(labels)
    made = methods_of(make_network(Config(network=network), outputs), warm_up=0.5)  # type: ignore[arg-type]
    names = [list(map(str, range(CLASSES[name]))) for name in (old, new)]
    return made[label](), streams.relabelled(noise, tasks, names=names, validation=0.0)


def step(method: Method, stream: Stream):
    """The learner, and the loss, after the first step of the second task's last phase."""
    settings = training.Settings(batch_size=4, learning_rate=0.0008)
    max_examples = streams.max_examples(stream.tables)
    engine = training.make_engine(method, optimizer(), settings, scenario="task", max_examples=max_examples)
    key, clock = jax.random.key(0), make_clock(round=1, task=1, phase=len(method.phases) - 1)
    tables = jax.tree.map(jnp.asarray, stream.tables)
    focused = engine.begin_visit(engine.init(key, tables), clock, tables, key)
    state = engine.begin_phase(focused, clock, tables, key)
    batch = streams.sequential(tables, tables.train, clock.task, jnp.int32(0), settings.batch_size)
    learner, loss, _ = engine.step(state.learner, state.mask, clock, batch, key)
    return learner, loss


def main(config: Config) -> None:
    """Drives the methods, or checks the shapes."""
    if config.check:
        return check()
    if not (config.old and config.new and config.init):
        raise SystemExit("Name --old, --new and --init, or give --check: python -m experiments.lwf.paper --help")
    stream = make_stream(config)
    network = make_network(config, stream.tables.classes.shape[-1])
    given = from_torch(checkpoints.load_params(config.init), network)
    shift = augmentation.pad_crop((SIDE - PART) // 2)
    augment = augmentation.compose(shift, augmentation.flip(), augmentation.colour_jitter(**COLOURS))
    settings = training.Settings(batch_size=config.batch_size, learning_rate=config.learning_rate, augment=augment)
    pairs, runs = [(seed, stream) for seed in range(config.seeds)], {}
    several = [task for task, name in enumerate((config.old, *config.new)) if is_voc(name)]
    made = methods_of(network, warm_up=0.5)
    for label in config.methods:

        def reach(label: str = label) -> np.ndarray:
            method = training.with_milestones(made[label](), stream.schedule)
            hypers = [{"strength": VOC_STRENGTH}] * len(pairs) if several and label == "l2_constraint" else None
            outcome = drive(method, optimizer(), pairs, settings, hypers=hypers, starts=[given] * len(pairs))
            reached = np.array(outcome.evaluation.accuracy)
            for task in several:
                reached[:, -1, task] = [precision(method, learner, stream, task) for learner in outcome.learners]
            return reached

        name, everything = f"{title(config)}-{config.network}-{label}", decides(config, label, stream, given)
        runs[label] = np.asarray(kept(pathlib.Path(config.runs), name, everything, reach), np.float64)
        print(f"{label}: old {parts.old(runs[label]).mean():.3f}, new {parts.new(runs[label]).mean():.3f}")
    numbers = claims.in_percent(parts.tabulate(runs, runs["lwf"])) if "lwf" in runs else {}
    facts = {"experiment": f"lwf/paper/{title(config)}", "published": TABLE_1, "seeds": list(range(config.seeds))}
    facts["form"] = "full"
    write_result(config, f"lwf_paper_{title(config)}", {**facts, **numbers}, command_line("experiments.lwf.paper"))


if __name__ == "__main__":
    main(tyro.cli(Config))
