"""What grows with the number of tasks: the bytes that each method keeps, and the time of a step.

    python -m experiments.growth --only bytes
    python -m experiments.growth --only steps

`bytes` counts, and trains nothing: what a learner keeps beside one network's shared weights, all of it but the
optimizer's state, for every method on AlexNet with ten classes a task, and beside it what the papers of TFM, HAT and
PackNet count (Masana et al. 2021, figure 1). Half a minute. `steps` times one epoch of a visit to the second task of so
many, all in turn, on an otherwise idle machine; some minutes. Writes `experiments/results/growth_bytes.json` and
`growth_steps_benchmark_cpu.json` (or `_gpu`), each with a picture.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
import statistics
import textwrap
from collections.abc import Mapping, Sequence

import jax
import numpy as np
import optax
import tyro

from cljax import methods, metrics, networks, training
from cljax.cli.process import use_threads
from cljax.report import frame, palette
from cljax.training.cost import bytes_per_task
from cljax.types import Method, Network, Table, Tables
from experiments.benchmark_tasks import stepper
from experiments.saving import command_line, write_result

CLASSES = 10
MEMORY = 2000
"""Exemplars of methods that have some, as iCaRL's in its paper."""
SPLITS = ("train", "validation", "test")
ALIKE = 0.25
"""Methods whose numbers are no further apart have one line."""
LINE = 0.022
"""The height of a line of text beside a plot's."""
STEPPED = ("finetune", "lwf", "ewc", "hat", "tfm", "clnp")


@dataclasses.dataclass(frozen=True)
class Config:
    """Numbers of tasks; the images of AlexNet; width, batch size, steps and repeats of what is timed."""

    only: tuple[str, ...] = ("bytes", "steps")
    tasks: tuple[int, ...] = (1, 2, 5, 10, 20, 50, 100, 200)
    side: int = 224
    width: int = 1000
    batch_size: int = 128
    steps: int = 8
    repeats: int = 9
    out: str = "experiments"


def makers() -> dict[str, tuple[Method, Network]]:
    """Every method that takes AlexNet, and the network it was made of."""
    plain = networks.alexnet((224, 224, 3), CLASSES)
    normalized = networks.alexnet((224, 224, 3), CLASSES, normalization="feature")
    found = {}
    for name in sorted(methods.__all__):
        network = normalized if name == "tfm" else plain
        options = {"memory_size": MEMORY} if name in ("icarl", "replay") else {}
        try:
            found[name] = (getattr(methods, name)(network, **options), network)
        except ValueError as error:  # its message says why the method does not take this network
            print(f"{name} is left out: {error}")
    return found


def kept(method: Method, network: Network, tasks: int, side: int) -> float:
    """Bytes that a learner keeps for so many tasks beside one network's shared weights."""
    table = Table(np.zeros(1, np.int32), np.zeros(1, np.int32), np.zeros(tasks, np.int32), np.ones(tasks, np.int32))
    images, classes = np.zeros((1, side, side, 3), np.uint8), np.ones((tasks, CLASSES), np.bool_)
    tables = Tables(images, table, table, table, None, classes)
    make = lambda key: training.make_learner(method, optax.sgd(1.0), tables, 1.0, key, dict.fromkeys(SPLITS, 1))
    return tasks * bytes_per_task(jax.eval_shape(make, jax.random.key(0)), network)


def papers(network: Network, tasks: int) -> dict[str, int]:
    """What papers count: a bit a weight, a number a feature, two bits a feature, and these with scale and shift."""
    params, collections = network.shapes
    sizes = {"weights": sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)), "tasks": tasks}
    sizes["features"] = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(collections["gates"]))
    kinds = {"a bit a weight": ["weight_mask"], "a number a feature": ["soft_feature_mask"]}
    kinds |= {"two bits a feature": ["ternary_feature_mask"]}
    kinds |= {"two bits, scale and shift": ["ternary_feature_mask", "feature_normalization"]}
    return {name: sum(metrics.overhead_bytes(part, **sizes) for part in parts) for name, parts in kinds.items()}


def count(config: Config) -> None:
    """Counts bytes, writes and draws them."""
    found = {name: [kept(*pair, tasks, config.side) for tasks in config.tasks] for name, pair in makers().items()}
    plain = networks.alexnet((224, 224, 3), CLASSES)
    counted = [papers(plain, tasks) for tasks in config.tasks]
    published = {name: [row[name] for row in counted] for name in counted[0]}
    result = {"tasks": config.tasks, "bytes": found, "papers": published}
    path = write_result(config, "growth_bytes", result, command_line("experiments.growth"))
    draw(path.with_suffix(".png"), config.tasks, found, published, what="kept beside one network (MB)", scale=1e-6)


def time(config: Config) -> None:
    """Times steps, writes and draws them."""
    tasks = [number for number in config.tasks if number >= 2]
    found = {}
    for name in STEPPED:
        norm = "feature" if name == "tfm" else None
        network = networks.mlp((28, 28, 1), CLASSES, hidden=(config.width,) * 2, normalization=norm)
        method = getattr(methods, name)(network)
        run = [stepper(method, number, batch_size=config.batch_size, steps=config.steps) for number in tasks]
        times = [[one() for one in run] for _ in range(config.repeats)]
        found[name] = [statistics.median(column) for column in zip(*times, strict=True)]
        print(name, " ".join(f"{1e3 * seconds:.2f}" for seconds in found[name]), "ms", flush=True)
    result = {"tasks": tasks, "seconds": found}
    path = write_result(config, "growth_steps_benchmark", result, command_line("experiments.growth"))
    draw(path.with_suffix(".png"), tasks, found, {}, what="a step (ms)", scale=1e3)


def draw(
    path: pathlib.Path,
    tasks: Sequence[int],
    found: Mapping[str, Sequence[float]],
    published: Mapping[str, Sequence[float]],
    *,
    what: str,
    scale: float,
) -> None:
    """A line for the methods that grow alike, named at its end; what papers count is dotted."""
    groups: dict[tuple[str, ...], Sequence[float]] = {}
    for name, values in found.items():
        like = next((names for names, other in groups.items() if np.allclose(values, other, rtol=ALIKE)), ())
        groups[(*like, name)] = groups.pop(like, values)
    ax = frame.axes(None, (9.5, 6.5))
    ends = []
    for place, (names, values) in enumerate(groups.items()):
        look = palette.style(place)
        ax.plot(tasks, scale * np.asarray(values), color=look.color)
        ends.append((scale * values[-1], ", ".join(names), look.color))
    for name, values in published.items():
        ax.plot(tasks, scale * np.asarray(values), color=frame.INK, linestyle=":")
        ends.append((scale * values[-1], name, frame.INK))
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xticks(tasks, [str(number) for number in tasks])
    ax.minorticks_off()
    low, high = np.log(ax.get_ylim())
    at = -math.inf
    for end, text, color in sorted(ends):
        lines = textwrap.wrap(text, 60)
        at = max(float(np.log(end)) / (high - low), at + LINE * (len(lines) + 1) / 2)
        place = (tasks[-1], math.exp(at * (high - low)))
        ax.annotate("\n".join(lines), place, (6, 0), textcoords="offset points", va="center", fontsize=7, color=color)
        at += LINE * (len(lines) - 1) / 2
    frame.dress(ax, f"{what[0].upper()}{what[1:]}", "tasks", what)
    ax.figure.savefig(path, dpi=110, bbox_inches="tight")
    print(f"written: {path}")


def main(config: Config) -> None:
    """Counts and times what is asked for."""
    use_threads()
    for name, make in (("bytes", count), ("steps", time)):
        if name in config.only:
            make(config)


if __name__ == "__main__":
    main(tyro.cli(Config))
