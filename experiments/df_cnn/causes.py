"""Single-task learning in the DF-CNN paper's way, and what each part of that way does to it.

    python -m experiments.df_cnn.causes --data-dir FOLDER

One task at a time, 170 images of CIFAR-100, all as in the paper but for one thing, tested every so many epochs; of the
first and the last of the ten tasks also DF-CNN. A run is kept in `runs/df_cnn_causes`, so that a command that was
stopped goes on. An hour of one core. Writes `experiments/results/df_cnn_causes.json`.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import tyro

from cljax import data, methods, networks, streams, training, transforms
from cljax.data import Dataset
from cljax.types import Network, Stream, Table
from experiments.five_papers import DF_CNN_FIRST, DF_CNN_LAST
from experiments.saving import command_line, kept, write_result

ORDERS = np.array(f"{DF_CNN_FIRST} {DF_CNN_LAST}".split(), int).reshape(10, 10)
PUBLISHED = {"STL": 31.2, "DF-CNN": 37.2}
"""Peaks in percent, averaged over ten tasks and five trials."""


class Way(NamedTuple):
    """How a task is trained; by default as in the paper.

    Attributes:
      task: of the ten, from 0.
      seed: of images, initial values and batches.
      epochs: how many.
      every: epochs between tests.
      learning_rate: constant; in the paper it is 1e-4 at first, and in the tenth task a fifth to a sixth of that.
      method: 'single_task' or 'df_cnn'.
      initial: 'paper', or 'lecun' for the initial values of `networks.cnn`.
      dropout: before the first dense layer.
      history: whether RMSProp's begins at ones, as in TensorFlow 1, or at zeros.
      reduction: of the loss over a batch, 'sum' or 'mean'.
      standardised: 'first', by the task's training images; or 'each', every part of the data by its own.
    """

    task: int = 0
    seed: int = 0
    epochs: int = 60
    every: int = 20
    learning_rate: float = 1e-4
    method: str = "single_task"
    initial: str = "paper"
    dropout: float = 0.5
    history: str = "ones"
    reduction: str = "sum"
    standardised: str = "first"


WAYS = {
    **{f"task {task + 1}": Way(task) for task in (0, 9, 5, 2, 7, 4, 1, 6, 3, 8)},
    "DF-CNN, task 1": Way(method="df_cnn"),
    "DF-CNN, task 10": Way(9, method="df_cnn"),
    "initial values of LeCun": Way(initial="lecun"),
    "no dropout": Way(dropout=0.0),
    "each part standardised by its own": Way(standardised="each"),
    "RMSProp's history from zeros": Way(history="zeros"),
    "the loss's mean": Way(reduction="mean"),
    "other images and initial values": Way(seed=1),
    "the tenth task's rate, task 10": Way(9, epochs=300, learning_rate=1.8e-5),
    "300 epochs, task 1": Way(epochs=300),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Where data, runs and results are, and which runs; those of all that are kept are in the result."""

    data_dir: str | None = None
    runs: str = "runs/df_cnn_causes"
    out: str = "experiments"
    only: tuple[str, ...] = tuple(WAYS)


def stream_of(dataset: Dataset, way: Way) -> Stream:
    """17 images a class to learn, 3 to validate, 100 to test."""
    order = ORDERS[way.task].tolist()
    common: dict[str, Any] = {"validation": 0.006, "fraction": 17 / 497, "epochs": way.epochs}
    stream = streams.split(dataset, tasks=1, class_order=order, seed=way.seed, **common)
    return stream if way.standardised == "first" else by_its_own(stream)


def by_its_own(stream: Stream) -> Stream:
    """The images of each part standardised by that part's own mean and standard deviation a channel."""
    parts, images, offset = {}, [], 0
    for name in ("train", "validation", "test"):
        table: Table = getattr(stream.tables, name)
        chosen = np.asarray(stream.tables.examples)[np.asarray(table.index)].astype(np.float32) / 255
        images.append((chosen - chosen.mean(axis=(0, 1, 2))) / chosen.std(axis=(0, 1, 2)))
        parts[name] = table._replace(index=offset + np.arange(len(chosen), dtype=np.int32))
        offset += len(chosen)
    tables = stream.tables._replace(examples=np.concatenate(images), **parts)
    return stream._replace(tables=tables, mean=0.0, std=1.0)


def network_of(way: Way, stream: Stream) -> Network:
    """The base network, as the way has it."""
    if (way.initial, way.dropout) == ("paper", 0.5):
        return networks.df_cnn_base("cifar", 10, mean=stream.mean, std=stream.std)
    initial = jax.nn.initializers
    paper = {"kernel_init": initial.truncated_normal(0.05), "bias_init": initial.constant(0.2)}
    return networks.cnn(
        (32, 32, 3),
        10,
        channels=((32, 32), (64, 64)),
        dense=(64,),
        dropout=(0.0, way.dropout),
        mean=stream.mean,
        std=stream.std,
        **(paper if way.initial == "paper" else {}),
    )


def run(dataset: Dataset, way: Way) -> dict[str, Any]:
    """Test accuracies `[epochs // every]`, and validation accuracies and losses after each epoch."""
    stream = stream_of(dataset, way)
    network = network_of(way, stream)
    method = methods.df_cnn(network, sizes="cifar") if way.method == "df_cnn" else methods.single_task(network)
    if way.reduction == "sum":
        method = training.with_summed_loss(method)
    optimizer = transforms.rmsprop_tf1() if way.history == "ones" else optax.rmsprop(1.0)
    settings = training.Settings(batch_size=10, learning_rate=way.learning_rate, curves_every=way.every, validate=True)
    outcome = training.drive(method, optimizer, [(way.seed, stream)], settings)
    log = outcome.epochs
    found = {"test": outcome.curves[0, :, 0], "loss": log.loss[0, 0, 0]}
    found |= {"validation": log.validation_accuracy[0, 0, 0], "seconds": outcome.seconds[0]}
    jax.clear_caches()
    return found


def summary(way: Way, found: dict[str, Any]) -> dict[str, Any]:
    """A run's figures, accuracies in percent: the peak, when, by validation, and the mean of the last half's tests."""
    test = 100 * np.asarray(found["test"])
    by = np.asarray(found["validation"])[way.every - 1 :: way.every][: len(test)]
    return {
        **{name: value for name, value in way._asdict().items() if value != Way._field_defaults[name]},
        "peak": test.max(),
        "peak_at_epoch": way.every * (int(test.argmax()) + 1),
        "peak_within_60_epochs": test[: 60 // way.every].max(),
        "by_validation": test[int(by.argmax())],
        "mean_of_last_half": test[len(test) // 2 :].mean(),
        "training_loss_at_the_end": found["loss"][-1],
        "test": test.round(1),
    }


def main(config: Config) -> None:
    """Runs what is not kept, and writes what is."""
    dataset, rows = data.load("cifar100", config.data_dir), {}
    for name, way in WAYS.items():
        if name in config.only:
            found = kept(pathlib.Path(config.runs), "run", way._asdict(), lambda way=way: run(dataset, way))
            rows[name] = summary(way, found)
            print(f"{name:40s} {rows[name]['peak']:5.1f} at epoch {rows[name]['peak_at_epoch']}", flush=True)
    tasks = [rows[f"task {task + 1}"]["peak"] for task in range(10) if f"task {task + 1}" in rows]
    result = {"experiment": "df_cnn/causes", "published": PUBLISHED, "peak_over_tasks": np.mean(tasks), "runs": rows}
    write_result(config, "df_cnn_causes", result, command_line("experiments.df_cnn.causes"))


if __name__ == "__main__":
    main(tyro.cli(Config))
