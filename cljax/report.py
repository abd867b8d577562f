"""A run's record and the table made from it.

A record is plain JSON: `{"format": 1, "complete": bool, "left_out": {...}, "runs": [...]}`, one object a method.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import pathlib
import platform
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

from cljax import metrics
from cljax.training.cost import bytes_per_task
from cljax.training.driver import Outcome
from cljax.types import Method, Stream

METRICS = ("average_accuracy", "backward_transfer", "forgetting")


def run_record(
    method: Method,
    seeds: Sequence[tuple[int, Stream]],
    outcome: Outcome,
    *,
    network: dict[str, Any],
    config: dict[str, Any],
) -> dict[str, Any]:
    """A method's entry in `record.json`.

    Accuracies are fractions: `accuracy[seed][after task][task]` as the scenario reads the logits, `task_aware` with
    each task's own head. Where tasks are revisited these rows are those before the next task is first visited (see
    `metrics.first_visits`), and `rounds` holds all. `epochs` has the loss and the validation's loss and accuracy,
    `[seed][round][phase][epoch]`; `curves` the accuracy on all tasks `[seed][point][task]` after the epochs of
    `curve_epochs`, `[point]` of round, phase and epoch, counted from 0, 0 and 1. `forgets_nothing` is measured: no bit
    of a task's test logits changed after its last visit.

    Args:
      method: the method.
      seeds: seeds and streams, as given to `drive`.
      outcome: what `drive` returned.
      network: what to say of the network.
      config: the configuration.

    Returns:
      Plain numbers, strings, lists and dicts; NaN is None.
    """
    stream = seeds[0][1]
    schedule, found = stream.schedule, outcome.evaluation
    tasks = np.asarray(schedule.task)
    revisits = len(tasks) > len(np.unique(tasks))
    return plain(
        {
            "method": method.name,
            "data": stream.name,
            "scenario": stream.scenario,
            "network": network,
            "seeds": [seed for seed, _ in seeds],
            "accuracy": metrics.first_visits(found.accuracy, tasks),
            "task_aware": metrics.first_visits(found.task_aware, tasks),
            "rounds": {"accuracy": found.accuracy, "task_aware": found.task_aware} if revisits else None,
            "forgets_nothing": forgets_nothing(np.asarray(found.fingerprint), tasks, np.asarray(schedule.evaluate)),
            "schedule": {"task": tasks, "epochs": schedule.epochs, "evaluate": schedule.evaluate},
            "epochs_trained": np.isfinite(outcome.epochs.loss).sum(axis=(2, 3)),
            "epochs": outcome.epochs._asdict(),
            "curves": outcome.curves if len(outcome.curve_epochs) else None,
            "curve_epochs": outcome.curve_epochs,
            "evaluation": {"after": "each round", "curves_every_epochs": config["training"]["curves_every"]},
            "seconds": outcome.seconds,
            "compile_seconds": outcome.compile_seconds,
            "traces": outcome.traces,
            "flops": outcome.flops,
            "step_bytes": outcome.step_bytes,
            "bytes_per_task": bytes_per_task(outcome.learners[0], method.network),
            "facts": [stream.facts for _, stream in seeds],
            "config": config,
            "versions": versions(),
            "device": device(),
        }
    )


def forgets_nothing(fingerprint: np.ndarray, tasks: np.ndarray, evaluated: np.ndarray) -> bool:
    """Whether no task's logits changed by a bit after its last visit.

    Args:
      fingerprint: `[S, R, T]` uint32, of each task's logits after each round.
      tasks: `[R]` int, the task of each round.
      evaluated: `[R]` bool, which rounds were evaluated.

    Example:
      >>> marks = np.array([[[5, 0], [5, 7]]], np.uint32)
      >>> forgets_nothing(marks, np.array([0, 1]), np.array([True, True]))
      True
      >>> forgets_nothing(marks + np.array([[0, 0], [1, 0]], np.uint32), np.array([0, 1]), np.array([True, True]))
      False
    """
    rounds = np.arange(len(tasks))
    for task in np.unique(tasks):
        resting = evaluated & (rounds >= rounds[tasks == task].max())
        marks = fingerprint[:, resting, task]
        if (marks != marks[:, :1]).any():
            return False
    return True


def versions() -> dict[str, str]:
    """The versions of what computes."""
    names = ("cljax", "jax", "jaxlib", "flax", "optax", "numpy")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in names}}


def device() -> dict[str, Any]:
    """The machine, as JAX sees it."""
    devices = jax.devices()
    return {
        "platform": devices[0].platform,
        "kind": devices[0].device_kind,
        "count": len(devices),
        "machine": platform.machine(),
        "processors": os.cpu_count(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def plain(value: Any) -> Any:
    """As JSON has it: arrays as lists, float32 in their shortest decimals, NaN and infinity as None.

    Example:
      >>> plain({'a': np.array([.1, np.nan], np.float32), 'b': np.int32(3), 'c': (1.5,)})
      {'a': [0.1, None], 'b': 3, 'c': [1.5]}
    """
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray | jax.Array):
        array = np.asarray(value)
        return plain(array[()]) if array.ndim == 0 else [plain(item) for item in array]
    if isinstance(value, np.float32):
        return plain(float(str(value)))
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value


def summarise(run: dict[str, Any]) -> dict[str, np.ndarray]:
    """A run's metrics, `[seeds]` float64 fractions each.

    Args:
      run: an entry of a record.

    Returns:
      `average_accuracy, backward_transfer, forgetting`, and `task_aware_accuracy` in the class-incremental scenario.

    Example:
      >>> summarise({'scenario': 'task', 'accuracy': [[[.875, 0.], [.5, .75]]]})['backward_transfer']
      array([-0.375])
    """
    accuracy = np.asarray(run["accuracy"], np.float32)
    values = {name: np.asarray(getattr(metrics, name)(accuracy), np.float64) for name in METRICS}
    if run["scenario"] == "class":
        aware = metrics.average_accuracy(np.asarray(run["task_aware"], np.float32))
        values["task_aware_accuracy"] = np.asarray(aware, np.float64)
    return values


def table(record: dict[str, Any], *, reference: str = "finetune") -> Table:
    """The table of a record: a row a method, percent, mean ± 95% interval over seeds.

    Args:
      record: of one data set and scenario.
      reference: the method to which the others' average accuracy is compared, seed by seed, where it is in the record.

    Returns:
      A table for a rich console; 100 columns suffice.
    """
    runs = record["runs"]
    first = runs[0]
    base = next((run for run in runs if run["method"] == reference), None)
    class_incremental = any(run["scenario"] == "class" for run in runs)
    count, seeds = len(first["accuracy"][0]), len(first["seeds"])
    result = Table(
        title=f"{first['data']}, {count} tasks, {_division(first)}",
        caption=_caption(seeds, sum(run["compile_seconds"] for run in runs)),
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=0,
        title_style="bold",
        caption_justify="left",
    )
    result.add_column("method", style="bold", no_wrap=True)
    names = ["average\naccuracy", *(["task-aware\naccuracy"] if class_incremental else [])]
    names += ["backward\ntransfer", "forgetting"]
    names += [f"against\n{reference}"] if base else []
    for name in [*names, "seconds\na seed", "FLOPs\na step", "bytes\na task"]:
        result.add_column(name, justify="right", overflow="fold")
    for run in runs:
        values = summarise(run)
        order = [name for name in ("average_accuracy", "task_aware_accuracy", *METRICS[1:]) if name in values]
        cells: list[str | Text] = [run["method"], *(interval(values[name]) for name in order)]
        if base:
            cells.append(_difference(run, base))
        kept = run["bytes_per_task"]
        cells += [f"{np.mean(run['seconds']):.2f}", short(run["flops"]), short(kept)]
        result.add_row(*cells)
    return result


def interval(values: np.ndarray) -> str:
    """A mean and its 95% interval over seeds, in percent: `'97.8 ±0.5'`; the mean alone for one seed.

    One decimal; none where the interval is 10 or more, two where it would round to nothing.

    Example:
      >>> interval(np.array([.25, .75])), interval(np.array([.5])), interval(np.array([.9, .90001]))
      ('50 ±318', '50.0', '90.00 ±0.01')
    """
    return _percent(metrics.mean_and_interval(np.asarray(values, np.float64)))


def short(number: float | None) -> str:
    """A count in at most five characters and a unit: `'1.45M'`.

    Example:
      >>> short(520), short(1_445_551), short(17_160), short(None)
      ('520', '1.45M', '17.2k', '-')
    """
    if number is None:
        return "-"
    units = (("", 1.0), ("k", 1e3), ("M", 1e6), ("G", 1e9), ("T", 1e12))
    unit, size = next((pair for pair in units if abs(number) < 999.5 * pair[1]), units[-1])
    return f"{number / size:.3g}{unit}"


def read(path: str | os.PathLike) -> dict[str, Any]:
    """Reads a record: of a file, or of a run folder.

    Raises:
      ValueError: it is none.
    """
    place = pathlib.Path(path)
    place = place / "record.json" if place.is_dir() else place
    record = json.loads(place.read_text())
    if not isinstance(record, dict) or "runs" not in record:
        raise ValueError(f"{place} is not a run's record: it has no 'runs'.")
    return record


def _percent(found: metrics.Interval, *, sign: bool = False) -> str:
    mean, half = 100 * float(found.mean), 100 * float(found.half_width)
    decimals = 2 if 0 < half < 0.05 else 0 if half >= 9.95 else 1
    text = f"{mean:{'+' if sign else ''}.{decimals}f}"
    if float(text) == 0:
        text = text.lstrip("+-")
    return text if np.isnan(half) else f"{text} ±{half:.{decimals}f}"


def _difference(run: dict[str, Any], base: dict[str, Any]) -> Text:
    """The paired difference to the reference, coloured where its interval leaves out 0."""
    if run is base or run["seeds"] != base["seeds"]:
        return Text("-")
    mine, other = summarise(run)["average_accuracy"], summarise(base)["average_accuracy"]
    found = metrics.paired_difference(mine, other)
    clear = abs(found.mean) > found.half_width
    style = ("green" if found.mean > 0 else "red") if clear else ""
    return Text(_percent(found, sign=True), style=style)


def _division(run: dict[str, Any]) -> str:
    permuted = run["facts"][0].get("kind") == "permuted"
    return f"{'permuted pixels, ' if permuted else ''}{run['scenario']}-incremental"


def _caption(seeds: int, compiling: float) -> str:
    over = f" ±95% interval, {seeds} seeds" if seeds > 1 else " of one seed"
    return f"Percent{over}; seconds without compilation ({compiling:.1f} in all)."
