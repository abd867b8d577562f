"""Single-task learning in the DF-CNN paper's way, and what each part of that way does to it.

    python -m experiments.df_cnn.causes --data-dir FOLDER

One task at a time, 170 images of CIFAR-100, all as in the paper but for one thing, tested every so many epochs; of
three tasks also DF-CNN, and single-task learning that begins with its kernels: alone, so that nothing is transferred. A
run is kept in `runs/df_cnn_causes`, so that a command that was stopped goes on; `--only` picks some. Half an hour of
one idle core. Writes `experiments/results/df_cnn_causes.json`.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import tyro

from cljax import data, filters, methods, networks, streams, training, transforms
from cljax.data import Dataset
from cljax.types import Network, Sizes, Stream, Table, Tree
from experiments.five_papers import DF_CNN_FIRST, DF_CNN_LAST
from experiments.saving import command_line, kept, write_result

ORDERS = np.array(f"{DF_CNN_FIRST} {DF_CNN_LAST}".split(), int).reshape(10, 10)
TASKS = (1, 6, 10)
"""Those of which there are runs of all systems."""
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
      initial: 'paper'; 'df_cnn', the same but for the convolutions, which begin with the kernels that DF-CNN's factors
        make, and with its biases; or 'lecun', the initial values of `networks.cnn`.
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
    "task 1": Way(),
    "task 3": Way(2),
    "task 6": Way(5),
    "task 10": Way(9),
    "DF-CNN, task 1": Way(method="df_cnn"),
    "DF-CNN, task 6": Way(5, method="df_cnn"),
    "DF-CNN, task 10": Way(9, method="df_cnn"),
    "the initial kernels of a DF-CNN, task 1": Way(initial="df_cnn"),
    "the initial kernels of a DF-CNN, task 6": Way(5, initial="df_cnn"),
    "the initial kernels of a DF-CNN, task 10": Way(9, initial="df_cnn"),
    "initial values of LeCun": Way(initial="lecun"),
    "each part standardised by its own": Way(standardised="each"),
    "no dropout": Way(dropout=0.0),
    "other images and initial values": Way(seed=1),
    "RMSProp's history from zeros": Way(history="zeros"),
    "the loss's mean": Way(reduction="mean"),
    "the tenth task's rate, task 10": Way(9, epochs=300, learning_rate=1.8e-5),
    "300 epochs, task 1": Way(epochs=300, every=10),
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
    sizes: dict[str, Any] = {"channels": ((32, 32), (64, 64)), "dense": (64,), "dropout": (0.0, way.dropout)}
    if way.initial != "lecun":
        drawn = jax.nn.initializers
        sizes |= {"kernel_init": drawn.truncated_normal(0.05), "bias_init": drawn.constant(0.2)}
    network = networks.cnn((32, 32, 3), 10, mean=stream.mean, std=stream.std, **sizes)
    if way.initial != "df_cnn":
        return network
    factorised = methods.df_cnn(network, sizes="cifar")

    def init(key: jax.Array) -> tuple[Tree, Tree]:
        factors, collections, *_ = factorised.init(key, Sizes(1, 10, {}))
        return filters.synthesize_tree(factors, network.shapes[0]), collections

    return network._replace(init=init)


def run(dataset: Dataset, way: Way) -> dict[str, Any]:
    """Test accuracies `[epochs // every]`, and training losses, one an epoch."""
    stream = stream_of(dataset, way)
    network = network_of(way, stream)
    method = methods.df_cnn(network, sizes="cifar") if way.method == "df_cnn" else methods.single_task(network)
    if way.reduction == "sum":
        method = training.with_summed_loss(method)
    optimizer = transforms.rmsprop_tf1() if way.history == "ones" else optax.rmsprop(1.0)
    settings = training.Settings(batch_size=10, learning_rate=way.learning_rate, curves_every=way.every)
    outcome = training.drive(method, optimizer, [(way.seed, stream)], settings)
    jax.clear_caches()
    return {"test": outcome.curves[0, :, 0], "loss": outcome.epochs.loss[0, 0, 0], "seconds": outcome.seconds[0]}


def summary(way: Way, found: dict[str, Any]) -> dict[str, Any]:
    """A run's figures, in percent: the peak, when, that of the first 60 epochs, the mean of the last half."""
    test = np.round(100 * np.asarray(found["test"], np.float64), 1)
    return {
        **{name: value for name, value in way._asdict().items() if value != Way._field_defaults[name]},
        "peak": test.max(),
        "peak_at_epoch": way.every * (int(test.argmax()) + 1),
        "peak_of_60_epochs": test[19 // way.every : 60 // way.every : max(1, 20 // way.every)].max(),
        "mean_of_last_half": test[len(test) // 2 :].mean().round(2),
        "training_loss_at_the_end": found["loss"][-1],
        "test": test,
    }


def main(config: Config) -> None:
    """Runs what is not kept, and writes what is.

    Raises:
      SystemExit: there is no such run.
    """
    if unknown := sorted(set(config.only) - set(WAYS)):
        raise SystemExit(f"There is no run {', '.join(unknown)}, but: {', '.join(WAYS)}.")
    dataset, rows = data.load("cifar100", config.data_dir), {}
    for name, way in WAYS.items():
        make = (lambda way=way: run(dataset, way)) if name in config.only else None
        found = kept(pathlib.Path(config.runs), "run", way._asdict(), make)
        if found is not None:
            rows[name] = summary(way, found)
            print(f"{name:40s} {rows[name]['peak']:5.1f} at epoch {rows[name]['peak_at_epoch']}", flush=True)
    columns = {"single_task": "task {}", "df_cnn": "DF-CNN, task {}"}
    columns["single_task_with_initial_kernels_of_df_cnn"] = "the initial kernels of a DF-CNN, task {}"
    peaks = {
        column: {task: rows[name.format(task)]["peak"] for task in TASKS if name.format(task) in rows}
        for column, name in columns.items()
    }
    result = {"experiment": "df_cnn/causes", "published": PUBLISHED, "peak": peaks, "runs": rows}
    write_result(config, "df_cnn_causes", result, command_line("experiments.df_cnn.causes"))


if __name__ == "__main__":
    main(tyro.cli(Config))
