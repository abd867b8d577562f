"""Whole runs beside plain PyTorch on the same machine: ten permutations of MNIST and CIFAR-10 in five tasks.

    pip install '.[benchmark]'
    python -m experiments.benchmark.whole_runs --data-dir FOLDER

FOLDER has both data sets as TFDS prepares them. Fine-tuning and LwF (without warm-up, its teacher asked in each step)
learn all tasks, each with a head of its own, and are tested on all of them after each. Ours is `training.drive`, from
the call to its result, compiled anew each time; PyTorch's is an eager loop from the same parameters: images in memory
as bytes, a task's pixels permuted once, as many steps, tests without gradients in batches of as many images. First both
run through all tasks on so few images that an epoch is one step: every loss and parameter must be the same up to
rounding. Then whole runs are timed in turn. rows: cljax and reference in seconds, the median of the ratios, with
compilation and without. Expected: average accuracies that differ as those of other orders of the images do, by a point
on MNIST and some points on CIFAR-10. Some eight minutes on two idle cores; on a busy machine PyTorch's threads wait for
each other, as in `experiments.benchmark`. `--train` says how many images of a task are learned at most. Writes
`experiments/results/whole_runs_benchmark_cpu.json` (or `_gpu`, where PyTorch stays on the processor).
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import torch
import tyro
from torch import Tensor
from torch.nn import functional

from cljax import data, methods, networks, streams, training
from cljax.keys import make_key
from cljax.training.plan import init_key
from cljax.training.state import EVALUATION_BATCH
from cljax.types import Learner, Method, Network, Stream
from experiments.benchmark import reference
from experiments.benchmark.cases import arrays, as_torch, write_rows
from experiments.benchmark.ours import RATE, apart, named
from experiments.benchmark.reference import Tensors


class Case(NamedTuple):
    """A method, what it learns, and what plays its part in PyTorch.

    Attributes:
      make: of the network, the method.
      reference: a class of `experiments.benchmark.reference`, from the second task on.
      data: the name of the data set.
      stream: of the data set, its tasks.
      network: 'mlp' or 'cnn'.
    """

    make: Callable[[Network], Method]
    reference: type[reference.Reference]
    data: str
    stream: Callable[..., Stream]
    network: str


METHODS = {
    "finetune": (methods.finetune, reference.Reference),
    "lwf": (functools.partial(methods.lwf, warm_up=0.0), reference.LwF),
}
STREAMS = {
    "permuted MNIST": ("mnist", functools.partial(streams.permuted, tasks=10, scenario="task"), "mlp"),
    "split CIFAR-10": ("cifar10", functools.partial(streams.split, tasks=5, scenario="task"), "cnn"),
}
CASES = {f"{name}, {stream}": Case(*METHODS[name], *STREAMS[stream]) for stream in STREAMS for name in METHODS}
ROUNDING = 2e-3
"""Of two steps a task, relative: now and then it turns a unit on or off, and a bias that began at 0 is still small."""
HEADS = ("head/kernel", "head/bias")
OPTIMIZER = optax.sgd(RATE, momentum=0.9)


@dataclasses.dataclass(frozen=True)
class Config:
    """The data, how many images a task learns and a data set is tested on, at most, the networks, and repeats."""

    data_dir: str | None = None
    train: int = 6_000
    test: int = 2_000
    epochs: int = 1
    width: int = 1000
    channels: tuple[int, ...] = (32, 64)
    dense: int = 64
    batch_size: int = 128
    repeats: int = 3
    only: tuple[str, ...] = tuple(CASES)
    threads: int | None = None
    """PyTorch's."""
    out: str = "experiments"


class Run(NamedTuple):
    """A whole run.

    Attributes:
      seconds: from call to result.
      compiling: how many of them the compilation took.
      losses: the mean of each epoch.
      params: as PyTorch has them, those of all heads in one array.
      accuracy: `[R, T]` after each task.
    """

    seconds: float
    compiling: float
    losses: list[float]
    params: dict[str, np.ndarray]
    accuracy: np.ndarray


def stream_of(case: Case, dataset: data.Dataset, train: int, epochs: int) -> Stream:
    """The tasks, each with so many training images at most, of each class an equal part."""
    classes = case.stream(dataset).tables.classes.shape[1]
    fraction = min(train // classes / np.bincount(dataset.train_labels).max(), 1.0)
    return case.stream(dataset, validation=0.0, fraction=fraction, epochs=epochs)


def method_of(case: Case, stream: Stream, config: Config) -> Method:
    """The method, on a network for the stream's images."""
    shape, classes = stream.tables.examples.shape[1:], stream.tables.classes.shape[1]
    if case.network == "mlp":
        return case.make(networks.mlp(shape, classes, hidden=(config.width,) * 2))
    channels = tuple((features,) for features in config.channels)
    return case.make(networks.cnn(shape, classes, channels=channels, dense=(config.dense,)))


def first_learner(method: Method, stream: Stream) -> Learner:
    """What a run of seed 0 begins with; of how many images the stream has it does not depend."""
    make = functools.partial(training.make_learner, method, OPTIMIZER, stream.tables, RATE)
    return jax.jit(make)(init_key(make_key(0)))


def ours(method: Method, stream: Stream, config: Config) -> Run:
    """A run of cljax."""
    settings = training.Settings(batch_size=config.batch_size)
    begun = time.perf_counter()
    outcome = training.drive(method, OPTIMIZER, [(0, stream)], settings)
    seconds = time.perf_counter() - begun
    params = arrays(in_torch(outcome.learners[0].params, method.network))
    losses, accuracy = outcome.epochs.loss[0].ravel().tolist(), outcome.evaluation.accuracy[0]
    return Run(seconds, outcome.compile_seconds, losses, params, accuracy)


def in_torch(params: Any, network: Network) -> Tensors:
    """Parameters at rest as PyTorch has them, those of all heads in one tensor: `[T, K, F]` and `[T, K]`."""
    found, tasks = as_torch(named(params), network), range(len(params["head"]["bias"]))
    heads = {name: torch.stack([found.pop(f"{name}/{task}") for task in tasks]) for name in HEADS}
    return {**found, **heads}


def theirs(case: Case, method: Method, learner: Learner, stream: Stream, config: Config) -> Run:
    """A run of PyTorch from the parameters of a learner."""
    hyper = {name: float(value) for name, value in learner.hyper.items()}
    params, network = in_torch(learner.params, method.network), getattr(reference, case.network)
    losses, accuracy, tasks = [], [], range(len(stream.tables.classes))
    torch.manual_seed(0)
    begun = time.perf_counter()
    tests = [shown(stream, "test", task) for task in tasks]
    for task in tasks:
        images, labels = shown(stream, "train", task)
        student = visit(case, network, params, task, hyper)
        for _ in range(int(stream.schedule.epochs[task])):
            total = torch.zeros(())
            for rows in torch.randperm(len(labels)).split(config.batch_size):
                total += len(rows) * student.step(images[rows], labels[rows])
            losses.append(float(total) / len(labels))
        accuracy.append([share_right(network, params, other, *tests[other]) for other in tasks])
    return Run(time.perf_counter() - begun, 0.0, losses, arrays(params), np.asarray(accuracy))


def shown(stream: Stream, split: str, task: int) -> tuple[Tensor, Tensor]:
    """A task's images, their pixels permuted, and labels."""
    tables = stream.tables
    table = getattr(tables, split)
    place = slice(table.start[task], table.start[task] + table.size[task])
    images = torch.from_numpy(tables.examples[table.index[place]])
    if tables.permutation is not None:
        order = torch.from_numpy(tables.permutation[task]).long()
        images = images.flatten(1)[:, order].view_as(images)
    return images, torch.from_numpy(table.labels[place]).long()


def visit(case: Case, network: Callable, params: Tensors, task: int, hyper: dict[str, float]) -> reference.Reference:
    """What learns a task, in place: head 1 is the task's own, head 0 those of all tasks before, one below the other."""
    shared = {name: leaf for name, leaf in params.items() if name not in HEADS}
    own = {f"{name}/1": params[name][task] for name in HEADS}
    if not task or case.reference is reference.Reference:
        return reference.Reference(network, {**shared, **own}, {}, learning_rate=RATE)
    old = {f"{name}/0": params[name][:task].flatten(0, 1) for name in HEADS}
    teacher = {name: leaf.detach().clone() for name, leaf in {**shared, **old}.items()}
    return case.reference(network, {**shared, **own, **old}, {"teacher": teacher, **hyper}, learning_rate=RATE)


@torch.no_grad()
def share_right(network: Callable, params: Tensors, task: int, images: Tensor, labels: Tensor) -> float:
    """The accuracy on a task's test images, in batches as of cljax."""
    kernel, bias = (params[name][task] for name in HEADS)
    right = 0
    for part, wanted in zip(images.split(EVALUATION_BATCH), labels.split(EVALUATION_BATCH), strict=True):
        right += int((functional.linear(network(params, part)[0], kernel, bias).argmax(dim=1) == wanted).sum())
    return right / len(labels)


def row_of(name: str, config: Config) -> dict[str, Any]:
    """A case's row.

    Raises:
      ValueError: the two do not compute the same.
    """
    case = CASES[name]
    dataset = data.load(case.data, config.data_dir)
    end = dataset.train_size + config.test
    dataset = dataset._replace(images=dataset.images[:end], labels=dataset.labels[:end])
    few, stream = (stream_of(case, dataset, *size) for size in ((config.batch_size, 2), (config.train, config.epochs)))
    method = method_of(case, stream, config)
    learner = first_learner(method, stream)
    both = lambda stream: (ours(method, stream, config), theirs(case, method, learner, stream, config))
    difference = apart(*((run.losses, run.params) for run in both(few)))
    if difference > ROUNDING:
        raise ValueError(f"{name}: of two steps a task cljax and PyTorch end {difference:.1e} apart, not by rounding.")
    pairs = [both(stream) for _ in range(config.repeats)]
    middle = lambda found: statistics.median(found(*pair) for pair in pairs)
    accuracy = [run.accuracy[-1].tolist() for run in pairs[-1]]
    row = {
        "case": name,
        "cljax": middle(lambda mine, other: mine.seconds),
        "cljax_compiling": middle(lambda mine, other: mine.compiling),
        "reference": middle(lambda mine, other: other.seconds),
        "ratio": middle(lambda mine, other: mine.seconds / other.seconds),
        "ratio_without_compiling": middle(lambda mine, other: (mine.seconds - mine.compiling) / other.seconds),
        "apart": difference,
        "cljax_accuracy": accuracy[0],
        "reference_accuracy": accuracy[1],
    }
    means = ", ".join(f"{100 * statistics.mean(each):.1f}%" for each in accuracy)
    print(
        f"{name:26s} {row['cljax']:6.1f} s ({row['cljax_compiling']:.1f} compiling), {row['reference']:6.1f} s: ratio "
        f"{row['ratio']:.2f}, {row['ratio_without_compiling']:.2f} without; accuracy {means} (apart {difference:.0e})",
        flush=True,
    )
    return row


def main(config: Config) -> None:
    """Times every case and writes the rows."""
    write_rows(config, row_of, "whole_runs_benchmark", "experiments.benchmark.whole_runs")


if __name__ == "__main__":
    main(tyro.cli(Config))
