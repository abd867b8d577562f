"""What cljax is to reach on a GPU: each goal measured, beside PyTorch and JAX written by hand, in under eight minutes.

    python -m experiments.benchmark_gpu --data-dir FOLDER

For one card of an H100's class, on a bare machine without network: FOLDER has MNIST and CIFAR-100 as TFDS prepares
them; without it images are drawn at random, as many and as large: times are the same, and accuracies say nothing. Rows
of PyTorch are left out where it is not installed or finds no GPU. Parts come in order of worth, and one that would not
end within `--seconds`, by the seconds that it says it takes, is left out and named; what is found is written after each
part. `--size tiny` tries all of it on a CPU in two to four minutes, where goals say nothing. Expected on an H100: all
goals met. `XLA_FLAGS= python -m experiments.benchmark_gpu` does without the command buffers that are otherwise asked
for. Writes `experiments/results/goals_benchmark_gpu.json` (or `_cpu`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import optax
import tyro

from cljax import data, methods, networks, streams, training, transforms
from cljax.types import Network, Stream
from experiments.benchmark import plain
from experiments.benchmark.ours import NETWORKS, Ours, Size, apart
from experiments.benchmark_tasks import in_turn, stepper
from experiments.saving import command_line, write_result

COMMAND_BUFFERS = "--xla_gpu_enable_command_buffer=+WHILE,+CONDITIONAL,+DYNAMIC_SLICE_FUSION"
QUICK_TO_COMPILE = f"{COMMAND_BUFFERS} --xla_backend_optimization_level=0"
KNOWN_TO = ("0.10.", "0.11.", "0.12.")
"""Versions of jaxlib that know them: another may stop at a flag."""
ROUNDING = 1e-4
PAPER_EPOCHS = 2000
"""Of each of DF-CNN's tasks in its paper, which took 66,600 s."""
COMPARED = ("finetune", "joint", "freezing", "lwf", "lwm", "tfm", "clnp", "df_cnn")


class Amount(NamedTuple):
    """How much is measured; `share` is of the seconds that a part says it takes."""

    share: float = 1.0
    seeds: int = 5
    train: int = 60000
    test: int = 10000
    tasks: int = 10
    epochs: int = 5
    width: int = 2000
    batch_size: int = 256
    cifar_tasks: int = 10
    cifar_fraction: float = 0.0378
    cifar_epochs: int = 20
    evaluation_batch: int | None = None
    paper_network: bool = True
    step_width: int = 1000
    step_batch: int = 128
    channels: tuple[int, ...] = (32, 32, 64, 64)
    dense: int = 512
    steps: int = 100
    repeats: int = 9
    many_tasks: int = 100
    learners: int = 1024
    compared: tuple[str, ...] = COMPARED
    quickly: tuple[str, ...] = ()


TINY = {"share": 0.2, "seeds": 2, "train": 200, "test": 100, "tasks": 2, "epochs": 1, "width": 16, "batch_size": 16}
TINY |= {"cifar_tasks": 2, "cifar_fraction": 1.0, "cifar_epochs": 1, "evaluation_batch": 10, "paper_network": False}
TINY |= {"step_width": 16, "step_batch": 16, "channels": (4,), "dense": 8, "steps": 2, "repeats": 2, "many_tasks": 2}
TINY |= {
    "learners": 4,
    "compared": COMPARED[:1],
    "quickly": ("--tasks", "2", "--seeds", "1", "--epochs", "1", "--no-report"),
}
AMOUNTS = {"full": Amount(), "tiny": Amount(**TINY)}


@dataclasses.dataclass(frozen=True)
class Config:
    """The data, the seconds there are, and how much is measured."""

    data_dir: str | None = None
    seconds: float = 480.0
    size: Literal["full", "tiny"] = "full"
    out: str = "experiments"

    @property
    def amount(self) -> Amount:
        """By the size's name."""
        return AMOUNTS[self.size]


class Row(NamedTuple):
    """What was found, and what it should be: at most the target, or at least; None: nothing is said of it."""

    what: str
    found: float
    target: float | None = None
    at_least: bool = False

    @property
    def met(self) -> bool | None:
        """Whether the goal is met."""
        if self.target is None:
            return None
        return bool(self.found >= self.target if self.at_least else self.found <= self.target)

    def __str__(self) -> str:
        word = {None: "", True: "met", False: "NOT MET"}[self.met]
        bound = "" if self.target is None else f" (at {'least' if self.at_least else 'most'} {self.target:g})"
        return f"{word:8s} {self.what}: {self.found:.4g}{bound}"


class Part(NamedTuple):
    """Something to measure.

    Attributes:
      name: what.
      seconds: that it takes on an H100, estimated.
      measure: `(config, seconds left) -> rows`.
      torch: whether it needs PyTorch.
    """

    name: str
    seconds: float
    measure: Callable[[Config, float], list[Row]]
    torch: bool = False


def dataset(name: str, shape: tuple[int, ...], classes: int, config: Config) -> data.Dataset:
    """A data set of the folder, or images drawn at random."""
    if config.data_dir is not None:
        return data.load(name, config.data_dir)
    generator = np.random.default_rng(0)
    parts: list[Any] = []
    for count in (config.amount.train, config.amount.test):
        parts += [generator.integers(0, 256, (count, *shape), np.uint8), np.arange(count) % classes]
    return data.from_arrays(*parts, name=name)


@functools.cache
def permuted(config: Config, tasks: int, epochs: int, seeds: int) -> list[Stream]:
    """Permuted MNIST, a stream a seed; the examples are on the device once."""
    images = dataset("mnist", (28, 28, 1), 10, config)
    options = {"tasks": tasks, "scenario": "task", "validation": 0.0, "epochs": epochs}
    return on_device([streams.permuted(images, seed=seed, **options) for seed in range(seeds)])


@functools.cache
def divided(config: Config) -> list[Stream]:
    """CIFAR-100 in ten tasks, a stream a seed, with as many images as DF-CNN's paper has."""
    images = dataset("cifar100", (32, 32, 3), 100, config)
    amount = config.amount
    options = {"tasks": amount.cifar_tasks, "fraction": amount.cifar_fraction, "epochs": amount.cifar_epochs}
    return on_device([streams.split(images, seed=seed, **options) for seed in range(amount.seeds)])


def on_device(made: list[Stream]) -> list[Stream]:
    """Streams of the same examples, which they share on the device."""
    examples = jax.device_put(made[0].tables.examples)
    return [stream._replace(tables=stream.tables._replace(examples=examples)) for stream in made]


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and what the function returns, once the device has it."""
    begun = time.perf_counter()
    result = jax.block_until_ready(function())
    return time.perf_counter() - begun, result


def whole_run(run: Callable, made: list[Stream], learners: int = 1) -> tuple[float, float, Any]:
    """Seconds of a run, those of its compilation, and its result; several streams, or learners of one, side by side."""
    count, tables = max(learners, len(made)), made[0].tables
    keys, sizes = jax.random.split(jax.random.key(0), count), tables.train.size
    call = lambda: run(keys[0], tables)
    if count > 1:
        stacked, axes = streams.stack(made) if len(made) > 1 else (tables, None)
        known = lambda tables: tables._replace(train=tables.train._replace(size=sizes))  # alike, and no traced numbers
        together = jax.jit(jax.vmap(lambda key, tables: run(key, known(tables)), (0, axes)))
        call = lambda: together(keys, stacked)
    (first, _), (again, result) = timed(call), timed(call)
    return again, first - again, result


@functools.cache
def mnist_run(config: Config, seeds: int) -> tuple[float, float, float]:
    """Permuted MNIST in one program: seconds, those of compilation, accuracy in the end."""
    amount = config.amount
    made = permuted(config, amount.tasks, amount.epochs, seeds)
    network = networks.mlp((28, 28, 1), 10, hidden=(amount.width,) * 2, mean=made[0].mean, std=made[0].std)
    settings = training.Settings(amount.batch_size, evaluation_batch=amount.evaluation_batch)
    run = training.make_run(methods.finetune(network), optax.sgd(0.01, momentum=0.9), made[0], settings)
    seconds, compiling, result = whole_run(run, made)
    return seconds, compiling, float(np.mean(result.evaluation.accuracy[..., -1, -1]))


def mnist_one(config: Config, left: float) -> list[Row]:
    """One seed of permuted MNIST."""
    seconds, compiling, accuracy = mnist_run(config, 1)
    rows = [Row("permuted MNIST, a whole run in one program, seconds a seed", seconds, 2.0)]
    return [*rows, Row("its compilation, seconds", compiling), Row("accuracy on the last task", accuracy)]


def mnist_several(config: Config, left: float) -> list[Row]:
    """Several seeds side by side."""
    what = f"permuted MNIST, {config.amount.seeds} seeds side by side over one"
    return [Row(what, mnist_run(config, config.amount.seeds)[0] / mnist_run(config, 1)[0], 2.0)]


def mnist_torch(config: Config, left: float) -> list[Row]:
    """PyTorch's eager steps, as many as the run has."""
    from experiments.benchmark.__main__ import Config as Steps
    from experiments.benchmark.__main__ import row_of

    amount = config.amount
    in_epoch = -(-permuted(config, amount.tasks, amount.epochs, 1)[0].tables.train.size[0] // amount.batch_size)
    count = amount.tasks * amount.epochs * int(in_epoch)
    size = Size(width=amount.width, batch_size=amount.batch_size, steps=min(count, 2 * amount.steps))
    seconds = count * row_of("finetune", Steps(size, amount.repeats, device=torch_device()))["reference"]
    what = "permuted MNIST, times faster than PyTorch eager, whose steps alone are counted, extrapolated"
    return [Row(what, seconds / mnist_run(config, 1)[0], 10.0, at_least=True)]


@functools.cache
def df_cnn_run(config: Config, seeds: int) -> tuple[float, float]:
    """DF-CNN on CIFAR-100, evaluated after each epoch: seconds of the paper's epochs, extrapolated; of compilation."""
    made, amount = divided(config)[:seeds], config.amount
    outputs, scale = made[0].tables.classes.shape[1], {"mean": made[0].mean, "std": made[0].std}
    if amount.paper_network:
        method = methods.df_cnn(networks.df_cnn_base("cifar", outputs, **scale), sizes="cifar")
    else:
        channels = tuple((features,) for features in amount.channels)
        method = methods.df_cnn(networks.cnn((32, 32, 3), outputs, channels=channels, dense=(amount.dense,), **scale))
    method = training.with_summed_loss(method)
    optimizer = transforms.per_task(transforms.rmsprop_tf1())
    settings = training.Settings(10, 1e-4, curves_every=1, evaluation_batch=amount.evaluation_batch)
    seconds, compiling, _ = whole_run(training.make_run(method, optimizer, made[0], settings), made)
    return seconds * PAPER_EPOCHS / amount.cifar_epochs, compiling


def df_cnn_one(config: Config, left: float) -> list[Row]:
    """One seed of DF-CNN."""
    seconds, compiling = df_cnn_run(config, 1)
    measured = f"extrapolated from {config.amount.cifar_epochs} of {PAPER_EPOCHS} epochs a task"
    rows = [Row(f"DF-CNN's full CIFAR-100 run, evaluated each epoch, {measured}, seconds a seed", seconds, 200.0)]
    return [*rows, Row("its compilation, seconds", compiling)]


def df_cnn_several(config: Config, left: float) -> list[Row]:
    """Several seeds side by side."""
    ratio = df_cnn_run(config, config.amount.seeds)[0] / df_cnn_run(config, 1)[0]
    return [Row(f"DF-CNN's run, {config.amount.seeds} seeds side by side over one", ratio, 2.5)]


def by_hand(name: str, network: Callable, size: Size, config: Config, left: float) -> list[Row]:
    """A step of fine-tuning over the same one written by hand in JAX.

    Raises:
      ValueError: the two do not compute the same.
    """
    ours = Ours(methods.finetune(NETWORKS[name](size)), size)
    other = plain.Plain(ours, network)
    with jax.default_matmul_precision("highest"):
        difference = apart(ours.steps(2), other.steps(2))
    if difference > ROUNDING:
        raise ValueError(f"{name}: after two steps cljax and plain JAX are {difference:.1e} apart, more than rounding.")
    for one in (ours, other):
        one.time()  # compiles
    row = in_turn(f"{name}, plain JAX", ours.time, other.time, repeats=config.amount.repeats)
    return [Row(f"{name}, a step over one of plain JAX ({difference:.0e} apart after two)", row["ratio"], 1.05)]


def over_finetune(names: Sequence[str], target: float, config: Config, left: float) -> list[Row]:
    """Steps of methods over fine-tuning's, at two tasks and at many."""
    amount, rows = config.amount, []
    options = {"batch_size": amount.step_batch, "steps": amount.steps}

    def network(**more: Any) -> Network:
        return networks.mlp((28, 28, 1), 10, hidden=(amount.step_width,) * 2, **more)

    for tasks in sorted({2, amount.many_tasks}):
        reference = stepper(methods.finetune(network()), tasks, **options)
        for name in names:
            given = network(normalization="feature") if name == "tfm" else network()
            ours = stepper(getattr(methods, name)(given), tasks, **options)
            row = in_turn(f"{name}, {tasks} tasks", ours, reference, repeats=amount.repeats)
            rows.append(Row(f"{name}, a step over fine-tuning's at {tasks} tasks", row["ratio"], target))
    return rows


def learners(config: Config, left: float) -> list[Row]:
    """Many learners of LwF side by side."""
    amount = config.amount
    stream = permuted(config, 5, 1, 1)[0]
    network = networks.mlp((28, 28, 1), 10, hidden=(256, 256), mean=stream.mean, std=stream.std)
    settings = training.Settings(amount.batch_size, evaluation_batch=amount.evaluation_batch)
    run = training.make_run(methods.lwf(network), optax.sgd(0.01, momentum=0.9), stream, settings)
    seconds, compiling, _ = whole_run(run, [stream], amount.learners)
    rows = [Row(f"{amount.learners} LwF learners side by side, an epoch of each of five tasks, seconds", seconds, 10.0)]
    return [*rows, Row("its compilation, seconds", compiling)]


def beside_torch(name: str, size: Size, compiled: bool, config: Config, left: float) -> list[Row]:
    """A step of ours beside PyTorch's, eager or compiled too."""
    from experiments.benchmark.__main__ import Config as Steps
    from experiments.benchmark.__main__ import row_of

    row = row_of(name, Steps(size, config.amount.repeats, compile=compiled, device=torch_device()))
    found = row["ratio_to_compiled"] if compiled else row["ratio"]
    return [Row(f"{name}, a step over PyTorch's {'by torch.compile' if compiled else 'eager'}", found, 1.0)]


def cold_start(config: Config, left: float) -> list[Row]:
    """`cljax compare` in a process of its own, nothing compiled yet, and once more with what was.

    Raises:
      RuntimeError: it fails.
    """
    rows, amount = [], config.amount
    with tempfile.TemporaryDirectory() as folder:
        words = ["compare", "--methods", *amount.compared, "--channels", "16", "32", "--hidden", "64", "--quiet"]
        kept = {**os.environ, "JAX_COMPILATION_CACHE_DIR": f"{folder}/compiled"}
        for turn in ("nothing compiled before", "its programs kept"):
            what = f"cljax compare of {len(amount.compared)} methods on the digits, {turn}, seconds"
            begun = time.perf_counter()
            command = [sys.executable, "-m", "cljax", *words, *amount.quickly, "--out", f"{folder}/{len(rows)}"]
            try:
                done = subprocess.run(command, env=kept, timeout=max(left, 1.0), capture_output=True, text=True)
            except subprocess.TimeoutExpired:
                return [*rows, Row(f"{what}: not ended after", left)]
            if done.returncode:
                raise RuntimeError(f"cljax compare ended with {done.returncode}: {done.stderr[-2000:]}")
            seconds = time.perf_counter() - begun
            rows, left = [*rows, Row(what, seconds)], left - seconds
    return rows


def parts_of(config: Config) -> list[Part]:
    """All parts, in order of worth."""
    amount = config.amount
    small = Size(amount.step_width, batch_size=amount.step_batch, steps=amount.steps)
    images = Size(amount.width, amount.channels, amount.dense, amount.step_batch, amount.steps)
    vectors = dataclasses.replace(images, batch_size=amount.batch_size)
    factors = dataclasses.replace(images, dense=64, batch_size=10)
    torch = lambda name, size, compiled, seconds: Part(
        f"{name} beside PyTorch {'by torch.compile' if compiled else 'eager'}",
        seconds,
        functools.partial(beside_torch, name, size, compiled),
        torch=True,
    )
    return [
        Part("permuted MNIST, one seed", 25, mnist_one),
        Part("permuted MNIST beside PyTorch", 20, mnist_torch, torch=True),
        Part("permuted MNIST, several seeds", 35, mnist_several),
        Part("DF-CNN, one seed", 35, df_cnn_one),
        Part("DF-CNN, several seeds", 45, df_cnn_several),
        Part("an MLP beside plain JAX", 10, functools.partial(by_hand, "mlp", plain.mlp, vectors)),
        Part("a CNN beside plain JAX", 15, functools.partial(by_hand, "cnn", plain.cnn, images)),
        Part("LwF over fine-tuning", 20, functools.partial(over_finetune, ("lwf",), 1.4)),
        Part("masks over fine-tuning", 45, functools.partial(over_finetune, ("tfm", "clnp", "hat"), 1.1)),
        Part("many learners", 50, learners),
        torch("finetune, cnn", images, False, 15),
        torch("df_cnn, cnn", factors, False, 15),
        torch("finetune", vectors, True, 45),
        torch("lwf", small, False, 15),
        Part("cold start", 100, cold_start),
        torch("finetune, cnn", images, True, 60),
        torch("df_cnn, cnn", factors, True, 60),
        torch("hat", small, False, 15),
        torch("tfm", small, False, 15),
        torch("clnp", small, False, 15),
    ]


@functools.cache
def torch_device() -> str:
    """PyTorch's name of the device."""
    return "cpu" if jax.default_backend() == "cpu" else "cuda"


def without_torch() -> str | None:
    """Why there are no rows of PyTorch; None: there are."""
    if importlib.util.find_spec("torch") is None:
        return "PyTorch is not installed"
    import torch

    return None if torch_device() == "cpu" or torch.cuda.is_available() else "PyTorch finds no GPU"


def measure(
    parts: Sequence[Part], config: Config, keep: Callable[[dict[str, Any]], object], torch: str | None
) -> dict[str, Any]:
    """Measures the parts that there is time for.

    Args:
      parts: in order of worth.
      config: says how many seconds there are.
      keep: called with what was found so far, after each part.
      torch: why parts that need PyTorch are left out; None: they are not.

    Returns:
      `rows` by part; `left_out`, and `failed`: why, by part; `seconds` by part.
    """
    found: dict[str, dict[str, Any]] = {"rows": {}, "left_out": {}, "failed": {}, "seconds": {}}
    begun = time.perf_counter()
    for part in parts:
        before, needs = time.perf_counter() - begun, part.seconds * config.amount.share
        left = config.seconds - before
        why = torch if part.torch else None
        if why is None and needs > left:
            why = f"it takes {needs:.0f} s, and {left:.0f} of {config.seconds:.0f} are left"
        if why is not None:
            found["left_out"][part.name] = why
            print(f"LEFT OUT {part.name}: {why}", flush=True)
            continue
        try:
            rows = part.measure(config, left)
        except Exception as error:  # one part that fails must not cost the others the minutes that they took
            traceback.print_exc()
            found["failed"][part.name] = f"{type(error).__name__}: {error}"
            print(f"FAILED   {part.name}", flush=True)
            rows = []
        found["rows"][part.name] = [{**row._asdict(), "met": row.met} for row in rows]
        found["seconds"][part.name] = time.perf_counter() - begun - before
        for row in rows:
            print(row, flush=True)
        print(f"         ({part.name}: {found['seconds'][part.name]:.0f} s)", flush=True)
        keep(found)
    return found


def main(config: Config) -> int:
    """Measures, and writes what was found. Returns 1 where a part failed."""
    if importlib.metadata.version("jaxlib").startswith(KNOWN_TO):
        os.environ.setdefault("XLA_FLAGS", COMMAND_BUFFERS if config.size == "full" else QUICK_TO_COMPILE)
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.4")  # PyTorch, and a process of cljax, want some too

    def keep(found: dict[str, Any]) -> None:
        with contextlib.redirect_stdout(None):
            write_result(config, "goals_benchmark", found, command_line("experiments.benchmark_gpu"))

    found = measure(parts_of(config), config, keep, without_torch())
    write_result(config, "goals_benchmark", found, command_line("experiments.benchmark_gpu"))
    goals = [row for rows in found["rows"].values() for row in rows if row["met"] is not None]
    met, left_out = sum(row["met"] for row in goals), ", ".join(found["left_out"]) or "nothing"
    if config.size == "tiny":
        print("so small, the goals say nothing:")
    print(f"{met} of {len(goals)} goals met; left out: {left_out}; failed: {', '.join(found['failed']) or 'nothing'}")
    return 1 if found["failed"] else 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Config)))
