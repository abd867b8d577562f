"""The runs of LwF's experiments: the data, the trained network that all start from, a method over a few new tasks."""

from __future__ import annotations

import functools
import pathlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from cljax import augmentation, data, methods, networks, report, streams, training
from cljax.data.statistics import channel_statistics
from cljax.data.superclasses import groups_of
from cljax.storage import checkpoints
from cljax.training.driver import drive
from cljax.training.outcome import Outcome
from cljax.types import Method, Network, Stream
from experiments.saving import digest, kept

GROUPS = {
    "mammals": "aquatic_mammals medium_mammals small_mammals large_carnivores large_omnivores_and_herbivores",
    "other_animals": "fish insects non-insect_invertebrates reptiles people",
    "outdoors": "flowers fruit_and_vegetables trees large_natural_outdoor_scenes large_man-made_outdoor_things",
    "things": "food_containers household_electrical_devices household_furniture vehicles_1 vehicles_2",
}
"""CIFAR-100's superclasses, divided by similarity as the paper divides VOC and Scenes: 25 classes each."""
GROWTH = 0.25
"""New units of network expansion in both dense layers, as a part of the trained ones: the paper's 1,024 of 4,096."""


class Size(NamedTuple):
    """How large a form of the experiments is.

    Attributes:
      channels, dense: of the CNN.
      dropout, new_dropout: of its dense layers, as it learns the first task, and new ones.
      hidden: of feature extraction's classifier.
      fraction: of a new task's training images.
      first: the old task: data sets and groups of CIFAR-100.
      first_fraction, first_epochs, first_learning_rate: of its training images, and how they are learned.
      epochs: of a new task, with all of `fraction`.
      learning_rate: of new tasks.
      batch_size: of steps.
      augment: whether images are shifted and mirrored.
    """

    channels: tuple[tuple[int, ...], ...] = ((16,), (32,))
    dense: tuple[int, ...] = (128, 128)
    dropout: float = 0.5
    new_dropout: float = 0.0
    hidden: int = 512
    fraction: float = 0.4
    first: tuple[str, ...] = ("cifar10",)
    first_fraction: float = 1.0
    first_epochs: int = 10
    first_learning_rate: float = 0.02
    epochs: int = 10
    learning_rate: float = 0.01
    batch_size: int = 64
    augment: bool = False


FORMS = {
    "reduced": Size(),
    "full": Size(
        channels=((64, 64), (128, 128), (256, 256)),
        dense=(512, 512),
        hidden=4096,
        fraction=1.0,
        first_epochs=72,
        epochs=72,
        learning_rate=0.002,
        augment=True,
    ),
    "dropout": Size(new_dropout=0.5),
    "fifty": Size(
        channels=((24,), (48,), (96,)),
        dense=(256, 256),
        first=("other_animals", "outdoors"),
        first_epochs=30,
        augment=True,
    ),
    "tiny": Size(
        channels=((2,), (4,)), dense=(8, 8), hidden=8, fraction=0.02, first_fraction=0.01, first_epochs=1, epochs=2
    ),
}
"""'full': all images, 18 epochs times 4 as the paper's code has for CUB and Scenes, a tenth of the first rate. The
reduced form takes an eighteenth of those steps, and so a higher rate. 'tiny' is a trial. 'dropout' is the reduced form
with dropout in new tasks too, of half of 128 units: LwF then follows the teacher's responses with noisy ones, and after
four new tasks keeps less of the old one than fine-tuning. 'fifty' has as the old task fifty classes of
CIFAR-100, of the data set that the new ones are of, and a larger network, trained for longer."""


class Case(NamedTuple):
    """What is learned after the old task: groups of CIFAR-100 or 'mnist', and which part of `Size.fraction` is used."""

    tasks: tuple[str, ...]
    part: float = 1.0


CASES = {
    "similar": Case(("mammals",)),
    "dissimilar": Case(("mnist",)),
    "several": Case(tuple(GROUPS)),
    "part_30": Case(("mammals",), 0.3),
    "part_10": Case(("mammals",), 0.1),
    "part_3": Case(("mammals",), 0.03),
}


def methods_of(network: Network, *, hidden: int = 4096, warm_up: float = 0.25) -> dict[str, Callable[[], Method]]:
    """The methods and variants by the names they have in results, each made when it is called.

    Args:
      network: that all are made for.
      hidden: of feature extraction's classifier.
      warm_up: share of a visit's epochs for the new head alone, where a method has that phase.
    """
    first: dict[str, Any] = {"warm_up": warm_up}
    return {
        "lwf": lambda: methods.lwf(network, **first),
        "finetune": lambda: methods.finetune(network, **first),
        "feature_extraction": lambda: methods.feature_extraction(network, hidden=hidden),
        "joint": lambda: methods.joint(network, sampling="balanced"),
        "l2_constraint": lambda: methods.l2_constraint(network, **first),
        "duplicate_and_finetune": lambda: methods.duplicate_and_finetune(network),
        "lwf_own_1": lambda: methods.lwf(network, own_layers=1, **first),
        "lwf_own_2": lambda: methods.lwf(network, own_layers=2, **first),
        "lwf_cross_entropy": lambda: methods.lwf(network, response="cross_entropy", **first),
        "lwf_l1": lambda: methods.lwf(network, response="l1", **first),
        "lwf_l2": lambda: methods.lwf(network, response="l2", **first),
        "finetune_tenth": lambda: methods.finetune(network, shared_learning_rate=0.1, **first),
        "network_expansion": lambda: methods.network_expansion(network, growth=GROWTH, **first),
        "network_expansion_lwf": lambda: methods.build(
            "network_expansion+lwf", network, {"growth": GROWTH, "old": "trained", **first}
        ),
    }


def optimizer() -> optax.GradientTransformation:
    """SGD with momentum of 0.9 and weight decay of 0.0005, at unit rate."""
    return optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(1.0, momentum=0.9))


def widen(stream: Stream, outputs: int) -> Stream:
    """The stream, with heads of so many logits, those that no class of the task has being left out."""
    tables = stream.tables
    more = outputs - tables.classes.shape[1]
    return stream._replace(tables=tables._replace(classes=np.pad(tables.classes, ((0, 0), (0, more)))))


class Runs:
    """The runs of a form and some seeds, each done when it is first asked for and kept in a folder.

    Args:
      folder: where trained networks and runs are kept.
      form: of `FORMS`.
      seeds: how many.
      data_dir: where TFDS's prepared CIFAR-10, CIFAR-100 and MNIST are.
    """

    def __init__(self, folder: pathlib.Path, form: str, seeds: int, data_dir: str | None) -> None:
        self.size, self.seeds = FORMS[form], list(range(seeds))
        self._folder, self._data_dir = folder / form, data_dir

    @property
    def outputs(self) -> int:
        """Logits of every head, so that one trained network serves all cases."""
        return 25 * len(self.size.first)

    def accuracy(self, case: str, label: str) -> np.ndarray:
        """`[S, R, T]`: a fraction a seed, after each task, on each task; the first task is the old one."""
        return np.asarray(self.record(case, label)["accuracy"], np.float64)

    def seconds(self, case: str, label: str) -> float:
        """How long all seeds took, without compilation."""
        return sum(self.record(case, label)["seconds"])

    def record(self, case: str, label: str) -> dict[str, Any]:
        """The record of a method or variant over a case."""
        return kept(self._folder, f"{case}-{label}", self.decides(case, label), lambda: self._run(case, label))

    def decides(self, case: str, label: str) -> dict[str, Any]:
        """All that a record depends on."""
        parts = {task: GROUPS.get(task) for task in (*self.size.first, *CASES[case].tasks)}
        own = {"label": label, "case": CASES[case]._asdict(), "parts": parts, "outputs": self.outputs}
        return {**own, "size": self.size._asdict(), "seeds": self.seeds}

    def _run(self, case: str, label: str) -> dict[str, Any]:
        begun = time.perf_counter()
        pairs = [(seed, self._stream(case, seed)) for seed in self.seeds]
        network = self.wide_network if label.startswith("network_expansion") else self.network
        method = methods_of(network, hidden=self.size.hidden)[label]()
        method = training.with_milestones(method, pairs[0][1].schedule)
        outcome = self._drive(method, pairs, self.size.learning_rate, starts=self.first_networks)
        record = self._record(outcome)
        old, new = record["accuracy"][0][-1][0], record["accuracy"][0][-1][-1]
        print(f"{case}, {label}: {time.perf_counter() - begun:.0f} s; first seed {old:.3f}, {new:.3f}", flush=True)
        return record

    def images(self, case: str) -> list[int]:
        """How many training images each task of a case has."""
        return self._stream(case, 0).tables.train.size.tolist()

    @functools.cached_property
    def dataset(self) -> data.Dataset:
        """CIFAR-10, CIFAR-100 and MNIST as one, standardised as the old task."""
        return data.combine([data.load(name, self._data_dir) for name in ("cifar10", "cifar100", "mnist")])

    @functools.cached_property
    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of the old task's training images, a channel."""
        own = np.isin(self.dataset.train_labels, self._classes(*self.size.first))
        return channel_statistics([self.dataset.train_images[own]])

    @functools.cached_property
    def network(self) -> Network:
        """The CNN that all runs have."""
        return self.make_network(self.outputs, self.size._replace(dropout=self.size.new_dropout))

    @functools.cached_property
    def wide_network(self) -> Network:
        """The same with dense layers that have room for a new task's units."""
        dense = tuple(round(width * (1 + GROWTH)) for width in self.size.dense)
        return self.make_network(self.outputs, self.size._replace(dropout=self.size.new_dropout, dense=dense))

    def make_network(self, outputs: int, size: Size | None = None) -> Network:
        """The CNN of this form, or of another's size, its head with so many logits."""
        size, shape = size or self.size, self.dataset.images.shape[1:]
        mean, std = self.statistics
        sizes: dict[str, Any] = {"channels": size.channels, "dense": size.dense, "dense_dropout": size.dropout}
        return networks.cnn(shape, outputs, **sizes, mean=mean, std=std)

    @functools.cached_property
    def first_networks(self) -> list[dict[str, np.ndarray]]:
        """The parameters of the network trained on the old task, for each seed; trained where they are not kept yet."""
        folder = self._folder / f"first-{digest(self.decides_first())}"
        places = {seed: folder / f"seed-{seed}" for seed in self.seeds}
        missing = [seed for seed, place in places.items() if not any(place.glob("*/manifest.json"))]
        if missing:
            begun = time.perf_counter()
            make = lambda seed: self._split(
                [self._classes(*self.size.first)], seed, [self.size.first_fraction], [self.size.first_epochs]
            )
            pairs = [(seed, make(seed)) for seed in missing]
            method = training.with_milestones(methods.finetune(self.make_network(self.outputs)), pairs[0][1].schedule)
            outcome = self._drive(method, pairs, self.size.first_learning_rate)
            for seed, learner in zip(missing, outcome.learners, strict=True):
                checkpoints.save(places[seed], learner.params)
            reached = np.asarray(outcome.evaluation.accuracy)[:, -1, 0]
            print(f"first networks: {time.perf_counter() - begun:.0f} s; accuracy {reached.round(3)}", flush=True)
        return [checkpoints.load_params(place) for place in places.values()]

    def _drive(self, method: Method, pairs: list[tuple[int, Stream]], learning_rate: float, **given: Any) -> Outcome:
        augment = augmentation.compose(augmentation.pad_crop(4), augmentation.flip()) if self.size.augment else None
        settings = training.Settings(batch_size=self.size.batch_size, learning_rate=learning_rate, augment=augment)
        vectorize = jax.default_backend() != "cpu"
        return drive(method, optimizer(), pairs, settings, vectorize=vectorize, **given)

    def _record(self, outcome: Outcome) -> dict[str, Any]:
        config = {"training": {"curves_every": 0}, "size": self.size._asdict()}
        network = {"name": "cnn", "channels": self.size.channels, "dense": self.size.dense}
        record = report.run_record(outcome, network=network, config=config)
        return {name: value for name, value in record.items() if name not in ("facts", "epochs")}

    def _stream(self, case: str, seed: int) -> Stream:
        tasks, part = CASES[case]
        parts = [self._classes(*self.size.first), *map(self._classes, tasks)]
        fraction = self.size.fraction * part
        images = np.bincount(self.dataset.train_labels)
        wanted = sum(images[label] for label in self._classes("mammals"))  # of MNIST as many images as of a group
        fractions = [fraction * min(1.0, wanted / sum(images[label] for label in own)) for own in parts[1:]]
        epochs = max(1, round(self.size.epochs * min(8 + 10 / part, 50) / 18))  # the official code's rule
        return self._split(parts, seed, [1.0, *fractions], [0, *[epochs] * len(tasks)])

    def _split(self, parts: list[list[int]], seed: int, fraction: list[float], epochs: list[int]) -> Stream:
        order = [label for part in parts for label in part]
        sizes = [len(part) for part in parts]
        chosen: dict[str, Any] = {"class_order": order, "sizes": sizes, "seed": seed}
        chosen |= {"fraction": fraction, "schedule": streams.lifelong(len(parts), epochs)}
        return widen(streams.split(self.dataset, tasks=len(parts), **chosen), self.outputs)

    def _classes(self, *tasks: str) -> list[int]:
        """The classes of data sets and of groups, as the combined data set numbers them."""
        own = {name: list(classes) for name, classes in self.dataset.groups}
        hundred = own["cifar100"]
        names = [self.dataset.classes[label].removeprefix("cifar100/") for label in hundred]
        members = dict(groups_of(names, name="cifar100"))
        for task, parts in GROUPS.items():
            own[task] = [hundred[label] for name in parts.split() for label in members[name]]
        return [label for task in tasks for label in own[task]]

    def decides_first(self) -> dict[str, Any]:
        """All that a seed's first network depends on."""
        later = ("new_dropout", "hidden", "fraction", "epochs", "learning_rate")
        own = {"outputs": self.outputs, "parts": {task: GROUPS.get(task) for task in self.size.first}}
        return own | {name: value for name, value in self.size._asdict().items() if name not in later}
