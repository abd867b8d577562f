"""What grows with the number of tasks, with the width of a network, and with seeds side by side.

    python -m experiments.growth --only bytes
    python -m experiments.growth --only steps
    python -m experiments.growth --only runs

`bytes` counts, and trains nothing: what a learner keeps beside one network's shared weights, all of it but the
optimizer's state, for every method on AlexNet with ten classes a task, and beside it what the papers of TFM, HAT and
PackNet count (Masana et al. 2021, figure 1). Half a minute. `steps` times one epoch of a visit to the second task of so
many, all in turn, on an otherwise idle machine; some minutes. `runs` learns permutations of the digits, one epoch each,
in one program of `training.make_run`: an epoch, the memory of the program, a checkpoint, traces and the seconds of
compilation, against tasks, width and seeds; some minutes. Writes `experiments/results/growth_bytes.json`,
`growth_steps_benchmark_cpu.json` and `growth_runs_benchmark_cpu.json` (or `_gpu`), each with a picture.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
import statistics
import tempfile
import textwrap
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from cljax import data, methods, metrics, networks, streams, training
from cljax.cli.process import use_threads
from cljax.report import frame, palette
from cljax.storage import checkpoints
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
RUN = ("finetune", "lwf", "tfm")
LIKE = {"tasks": 10, "width": 256, "seeds": 1}
"""Of a run, where it is not that which grows."""
SHOWN = {
    "epoch": ("an epoch (ms)", 1e3),
    "memory": ("memory (MB)", 1e-6),
    "checkpoint": ("a checkpoint (MB)", 1e-6),
    "compiling": ("compiling (s)", 1.0),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Numbers of tasks; the images of AlexNet; width, batch size, steps and repeats of what is timed."""

    only: tuple[Literal["bytes", "steps", "runs"], ...] = ("bytes", "steps", "runs")
    tasks: tuple[int, ...] = (1, 2, 5, 10, 20, 50, 100, 200)
    run_tasks: tuple[int, ...] = (2, 20, 200)
    widths: tuple[int, ...] = (64, 512, 4096)
    seeds: tuple[int, ...] = (1, 8, 64)
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


def steps(config: Config) -> None:
    """Times steps, writes and draws them."""
    tasks = [number for number in config.tasks if number >= 2]
    found = {}
    for name in STEPPED:
        method = perceptron(name, (28, 28, 1), config.width)
        run = [stepper(method, number, batch_size=config.batch_size, steps=config.steps) for number in tasks]
        times = [[one() for one in run] for _ in range(config.repeats)]
        found[name] = [statistics.median(column) for column in zip(*times, strict=True)]
        print(name, " ".join(f"{1e3 * seconds:.2f}" for seconds in found[name]), "ms", flush=True)
    result = {"tasks": tasks, "seconds": found}
    path = write_result(config, "growth_steps_benchmark", result, command_line("experiments.growth"))
    draw(path.with_suffix(".png"), tasks, found, {}, what="a step (ms)", scale=1e3)


def perceptron(name: str, inputs: tuple[int, ...], width: int) -> Method:
    """A method on two layers of so many units."""
    norm = "feature" if name == "tfm" else None
    return getattr(methods, name)(networks.mlp(inputs, CLASSES, hidden=(width,) * 2, normalization=norm))


def run_of(name: str, batch_size: int, *, tasks: int, width: int, seeds: int) -> dict[str, Any]:
    """A whole stream in one program, evaluated at its end.

    Returns:
      `epoch` in seconds, `memory` of the program and of all that it is given and gives, and `checkpoint` of the
      learners, in bytes, `compiling` in seconds, and `traces` of the train step.
    """
    stream = streams.permuted(data.load("digits"), tasks=tasks, scenario="task", validation=0.0)
    last = np.arange(tasks) == tasks - 1
    stream = stream._replace(schedule=stream.schedule._replace(evaluate=last))
    method = perceptron(name, (8, 8, 1), width)
    run = training.make_run(method, optax.sgd(0.01, momentum=0.9), stream, training.Settings(batch_size=batch_size))
    keys, tables = jax.random.split(jax.random.key(0), seeds), jax.device_put(stream.tables)
    begun = time.perf_counter()
    many = jax.jit(jax.vmap(run, in_axes=(0, None))).lower(keys, tables).compile()
    compiled = time.perf_counter()
    result = jax.block_until_ready(many(keys, tables))
    seconds = time.perf_counter() - compiled
    needs = many.memory_analysis()
    with tempfile.TemporaryDirectory() as folder:
        checkpoints.save(folder, result.learner)
        saved = sum(path.stat().st_size for path in pathlib.Path(folder).rglob("*") if path.is_file())
    return {
        "epoch": seconds / int(jnp.sum(~jnp.isnan(result.epochs.loss[0]))),
        "memory": needs.argument_size_in_bytes + needs.output_size_in_bytes + needs.temp_size_in_bytes,
        "checkpoint": saved,
        "compiling": compiled - begun,
        "traces": run.step.traces,
    }


def runs(config: Config) -> None:
    """Runs what grows in one thing at a time, writes and draws it."""
    grows = {"tasks": config.run_tasks, "width": config.widths, "seeds": config.seeds}
    found: dict[str, dict[str, list]] = {thing: {} for thing in grows}
    for thing, values in grows.items():
        for name in RUN:
            found[thing][name] = [run_of(name, config.batch_size, **{**LIKE, thing: value}) for value in values]
            print(thing, name, *found[thing][name], sep="\n  ", flush=True)
    result = {"grows": grows, "else": LIKE, "found": found}
    path = write_result(config, "growth_runs_benchmark", result, command_line("experiments.growth"))
    draw_runs(path.with_suffix(".png"), grows, found)


def draw_runs(path: pathlib.Path, grows: Mapping[str, Sequence[int]], found: Mapping[str, Any]) -> None:
    """A row for each number, a column for each thing that grows."""
    figure = Figure(figsize=(9, 10), dpi=110, layout="constrained", facecolor=palette.PAPER)
    for row, (what, (title, scale)) in zip(figure.subplots(len(SHOWN), len(grows)), SHOWN.items(), strict=True):
        for ax, (thing, values) in zip(row, grows.items(), strict=True):
            for place, name in enumerate(RUN):
                numbers = [scale * one[what] for one in found[thing][name]]
                ax.plot(values, numbers, color=palette.style(place).color, marker=".", label=name)
            if what == "compiling":
                ax.set_ylim(bottom=0)
            else:
                ax.set_yscale("log")
                ax.yaxis.set_major_formatter("{x:g}")
            ax.set_xscale("log")
            ax.set_xticks(values, [str(value) for value in values])
            ax.minorticks_off()
            frame.dress(ax, "", thing if what == "compiling" else "", title if thing == "tasks" else "")
    figure.axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(path)
    print(f"written: {path}")


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
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter("{x:g}")
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
    for name, make in (("bytes", count), ("steps", steps), ("runs", runs)):
        if name in config.only:
            make(config)


if __name__ == "__main__":
    main(tyro.cli(Config))
