"""Step time at 100 tasks beside 2 tasks, for each method that draws from the current task.

    python -m experiments.benchmark_tasks

About two minutes on two cores. One epoch of a visit to a task is timed, in turn at 2 and at 100 tasks, on a network
whose step takes some milliseconds; rows: cljax is seconds a step at 100 tasks, reference at 2 tasks. Expected: ratios
of about 1, at most 1.2, since a visit works on one row of every per-task leaf. Writes
`experiments/results/tasks_benchmark_cpu.json` (or `_gpu`).
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable

import jax
import numpy as np
import optax
import tyro

from cljax import methods, networks, streams, training
from cljax.training.engine import with_even_size
from cljax.types import Method, Network, make_clock
from experiments.saving import command_line, write_result


@dataclasses.dataclass(frozen=True)
class Config:
    """The benchmark: width of the MLP's two hidden layers, batch size, steps an epoch, and timed epochs."""

    width: int = 1000
    batch_size: int = 256
    steps: int = 10
    repeats: int = 9
    out: str = "experiments"


def stepper(method: Method, tasks: int, *, batch_size: int, steps: int):
    """Returns a function that trains one epoch of the second task and gives the seconds a step."""
    generator = np.random.default_rng(0)
    examples = batch_size * steps
    images = generator.integers(0, 256, (examples, *method.network.inputs), np.uint8)
    labels = generator.integers(0, 10, examples).astype(np.int32)
    labels[:10] = np.arange(10)
    parts = [(images, labels, images[:20], labels[:20])] * 2
    stream = streams.from_tasks(parts, validation=0.0)
    classes = np.ones((tasks, 10), np.bool_)
    grow = lambda table: table._replace(
        start=np.r_[table.start, np.full(tasks - 2, table.start[1])].astype(np.int32),
        size=np.r_[table.size, np.full(tasks - 2, table.size[1])].astype(np.int32),
    )
    tables = stream.tables._replace(classes=classes, train=grow(stream.tables.train), test=grow(stream.tables.test))
    tables = jax.device_put(tables)
    settings = training.Settings(batch_size=batch_size, learning_rate=0.001)
    max_examples = {"train": examples, "validation": 1, "test": 20}
    optimizer = optax.sgd(1.0, momentum=0.9)
    engine = training.make_engine(method, optimizer, settings, scenario="task", max_examples=max_examples)
    key, clock = jax.random.key(0), make_clock(round=1, task=1)
    learner = jax.jit(engine.init)(key, tables)
    focused = jax.jit(engine.begin_visit)(learner, clock, tables, key)
    state = jax.jit(engine.begin_phase)(focused, clock, tables, key)
    known = lambda tables: with_even_size(tables, examples)  # as of `training.drive`
    epoch = jax.jit(lambda state, clock, tables, key: engine.epoch(state, clock, known(tables), key), donate_argnums=0)

    def run() -> float:
        nonlocal state
        start = time.perf_counter()
        state, log = epoch(state, clock, tables, key)
        jax.block_until_ready((state, log))
        return (time.perf_counter() - start) / steps

    run()
    assert engine.step.traces == 1
    return run


def in_turn(case: str, ours: Callable[[], float], reference: Callable[[], float], *, repeats: int) -> dict:
    """Times two steps in turn: a row with the medians of their seconds, and of their ratios."""
    pairs = [(ours(), reference()) for _ in range(repeats)]
    mine, other = (statistics.median(times) for times in zip(*pairs, strict=True))
    ratio = statistics.median(one / two for one, two in pairs)
    print(f"{case:30s} {mine * 1e3:7.2f} ms, {other * 1e3:7.2f} ms: ratio {ratio:.3f}", flush=True)
    return {"case": case, "cljax": mine, "reference": other, "ratio": ratio}


def cases(network: Network) -> dict[str, Method]:
    """The methods that draw from the current task."""
    names = ("finetune", "freezing", "single_task", "hard_sharing")
    return {name: getattr(methods, name)(network) for name in names}


def main(config: Config) -> None:
    """Times every case and writes the rows."""
    network = networks.mlp((28, 28, 1), 10, hidden=(config.width, config.width))
    rows = []
    for name, method in cases(network).items():
        few, many = (stepper(method, tasks, batch_size=config.batch_size, steps=config.steps) for tasks in (2, 100))
        rows.append(in_turn(name, many, few, repeats=config.repeats))
    write_result(config, "tasks_benchmark", {"rows": rows}, command_line("experiments.benchmark_tasks"))


if __name__ == "__main__":
    main(tyro.cli(Config))
