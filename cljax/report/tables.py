"""A record's table: its cells once, for the console, for Markdown and for the page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

from cljax import metrics
from cljax.report.results import runs as entries
from cljax.report.sections import label, title
from cljax.text import markdown as escape
from cljax.text import printable, tex
from cljax.types import Array

METRICS = ("average_accuracy", "backward_transfer", "forgetting", "average_incremental_accuracy")
WORDS = {
    "average_accuracy": "average accuracy",
    "task_il_accuracy": "task-IL accuracy",
    "backward_transfer": "backward transfer",
    "forward_transfer": "forward transfer",
    "forgetting": "forgetting",
    "average_incremental_accuracy": "average incremental accuracy",
    "intransigence": "intransigence",
}
"""The metrics, in their order."""
CONSOLE = ("average_accuracy", "task_il_accuracy", "backward_transfer", "forward_transfer", "forgetting")
"""Those that a table of 100 columns has room for."""


class Cell(NamedTuple):
    """A cell of a table.

    Attributes:
      text: what is shown.
      value: rows are sorted by it; None is unknown and comes last.
      tone: 1 or -1 where a difference is clearly above or below 0, else 0.
    """

    text: str
    value: float | str | None
    tone: int = 0


def summarise(run: dict[str, Any], runs: Sequence[dict[str, Any]] = ()) -> dict[str, np.ndarray]:
    """A run's metrics, `[seeds]` float64 fractions each.

    Args:
      run: an entry of a record.
      runs: those it is shown with.

    Returns:
      `average_accuracy, backward_transfer, forgetting, average_incremental_accuracy`; `task_il_accuracy` in the
      class-incremental scenario; `forward_transfer` where one head serves all tasks; `intransigence` where `runs` has
      `joint`, of the same seeds, which trains on the tasks so far. NaN where the record lacks an accuracy it needs.

    Example:
      >>> from cljax.report import summarise
      >>> summarise({'scenario': 'task', 'accuracy': [[[.875, 0.], [.5, .75]]]})['backward_transfer']
      array([-0.375])
    """
    accuracy = np.asarray(run["accuracy"], np.float32)
    values = {name: np.asarray(value, np.float64) for name, value in _found(accuracy, _weights(run)).items()}
    if run["scenario"] == "class":
        aware = metrics.average_accuracy(np.asarray(run["task_il_accuracy"], np.float32))
        values["task_il_accuracy"] = np.asarray(aware, np.float64)
    if run.get("untrained") and accuracy.shape[-1] > 1:
        before = np.asarray(run["untrained"], np.float32)
        values["forward_transfer"] = np.asarray(metrics.forward_transfer(accuracy, before), np.float64)
    joint = _base(run, runs, "joint") if any(other["method"] == "joint" for other in runs) else None
    if joint and run["method"] != "joint" and run["seeds"] == joint["seeds"]:
        best = np.diagonal(np.asarray(joint["accuracy"], np.float32), axis1=-2, axis2=-1)
        values["intransigence"] = np.asarray(metrics.intransigence(accuracy, best), np.float64)
    return values


@jax.jit
def _found(accuracy: Array, weights: Array | None) -> dict[str, Array]:
    """In one program, for each of its operations would be one."""
    found = {name: getattr(metrics, name)(accuracy) for name in METRICS}
    return {**found, "average_incremental_accuracy": metrics.average_incremental_accuracy(accuracy, weights)}


def _weights(run: dict[str, Any]) -> np.ndarray | None:
    """The tasks' numbers of classes where one head has them all: the accuracy after a task is that on all seen."""
    classes = run["facts"][0].get("classes", []) if run["scenario"] == "class" else []
    return np.asarray([len(own) for own in classes], np.float32) if len(classes) == len(run["accuracy"][0]) else None


def cells(
    runs: Sequence[dict[str, Any]], *, reference: str = "finetune", shown: Sequence[str] = tuple(WORDS)
) -> tuple[list[str], list[list[Cell]]]:
    """The table of runs on the same tasks: a row a method, percent, mean ± 95% interval over seeds.

    Args:
      runs: entries of a record, or of several by `sections.gather`.
      reference: the method to which the others' average accuracy is compared, seed by seed, where it is there.
      shown: the metrics, of which those that a run has are shown.

    Returns:
      The columns' names and the rows.
    """
    found = [summarise(run, runs) for run in runs]
    shown = [name for name in shown if any(name in values for values in found)]
    compared = any(run["method"] == reference for run in runs)
    names = ["method", *(WORDS[name] for name in shown), *([f"against {reference}"] if compared else [])]
    costs = {"seconds": "seconds a seed", "flops": "FLOPs a step", "bytes_per_task": "bytes a task"}
    known = [name for name in costs if any(cost(run, name) is not None for run in runs)]
    names += [costs[name] for name in known]
    rows = []
    for run, values in zip(runs, found, strict=True):
        row = [Cell(label(run), label(run))]
        for name in shown:
            there = values.get(name, np.full(1, np.nan))
            row.append(Cell(interval(there), _number(100 * there.mean())))
        if compared:
            row.append(_difference(run, _base(run, runs, reference)))
        for name in known:
            value = cost(run, name)
            row.append(Cell(f"{value:.2f}" if name == "seconds" and value is not None else short(value), value))
        rows.append(row)
    return names, rows


def table(results: Any, *, reference: str = "finetune", width: int | None = None) -> Table:
    """The table of results for the console: a row a method, percent, mean ± 95% interval over seeds.

    Args:
      results: as of `runs`, of one data set and scenario; such as a record.
      reference: the method to which the others' average accuracy is compared, seed by seed, where it is in the record.
      width: columns of the terminal; what does not fit is left out from the right, and named below. None: 100 suffice.

    Returns:
      A table for a rich console.

    Example:
      >>> from cljax import report
      >>> run = {'method': 'joint', 'data': 'digits', 'scenario': 'task', 'accuracy': [[[1.0, 0.0], [0.5, 0.75]]],
      ...        'seconds': [2.0], 'flops': None, 'bytes_per_task': 1030, 'seeds': [0], 'compile_seconds': 1.0,
      ...        'config': {'training': {}}, 'facts': [{'kind': 'split'}]}
      >>> report.table({'runs': [run]}).row_count
      1
    """
    runs = entries(results)
    names, rows = cells(runs, reference=reference, shown=CONSOLE)
    heads = [printable(name).replace(" ", "\n", 1) for name in names]
    wide = [max(map(len, [*head.split("\n"), *(row[place].text for row in rows)])) for place, head in enumerate(heads)]
    stay = next((n for n in range(len(names), 2, -1) if width is None or sum(wide[:n]) + n - 1 <= width), 2)
    left_out = f" There is no room for {', '.join(names[stay:])}." if stay < len(names) else ""
    result = Table(
        title=Text(printable(title(runs[0])), style="bold"),
        caption=Text(caption(runs) + left_out, style="table.caption"),
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=0,
        caption_justify="left",
    )
    result.add_column("method", style="bold", no_wrap=True)
    for head in heads[1:stay]:
        result.add_column(Text(head), justify="right", overflow="fold")
    styles = {0: "", 1: "green", -1: "red"}
    for row in rows:
        result.add_row(*(Text(printable(cell.text), style=styles[cell.tone]) for cell in row[:stay]))
    return result


def markdown(results: Any) -> str:
    """The table in GitHub's Markdown.

    Args:
      results: as of `runs`.

    Example:
      >>> from cljax.report import markdown
      >>> run = {'method': 'joint', 'scenario': 'task', 'accuracy': [[[1., 0.], [.5, .75]]], 'seconds': [2.0],
      ...        'flops': 520, 'bytes_per_task': 1030}
      >>> print(markdown([run]).splitlines()[-1])
      | joint | 62.5 | -50.0 | 50.0 | 81.2 | 2.00 | 520 | 1.03k |
    """
    names, rows = cells(entries(results))
    lines = [names, ["---", *["---:"] * (len(names) - 1)]]
    lines += [[escape(cell.text) for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def latex(results: Any) -> str:
    r"""The table in LaTeX, as of the package booktabs.

    Args:
      results: as of `runs`.

    Example:
      >>> from cljax.report import latex
      >>> run = {'method': 'l2_constraint', 'scenario': 'task', 'accuracy': [[[1., 0.], [.5, .75]]], 'seconds': [2.0],
      ...        'flops': 520, 'bytes_per_task': 1030}
      >>> from cljax import report
      >>> print(report.latex([run]).splitlines()[4])
      l2\_constraint & 62.5 & $-$50.0 & 50.0 & 81.2 & 2.00 & 520 & 1.03k \\
    """
    names, rows = cells(entries(results))
    lines = [[tex(cell.text) for cell in row] for row in rows]
    body = [f"{' & '.join(line)} \\\\" for line in (list(map(tex, names)), *lines)]
    parts = [rf"\begin{{tabular}}{{l{'r' * (len(names) - 1)}}}", r"\toprule", body[0], r"\midrule", *body[1:]]
    return "\n".join([*parts, r"\bottomrule", r"\end{tabular}"]) + "\n"


def interval(values: np.ndarray) -> str:
    """A mean and its 95% interval over seeds, in percent: `'97.8 ±0.5'`; the mean alone for one seed.

    One decimal; none where the interval is 10 or more, two where it would round to nothing; '-' where it is unknown.

    Example:
      >>> import numpy as np
      >>> from cljax.report import interval
      >>> interval(np.array([.25, .75])), interval(np.array([.5])), interval(np.array([.9, .90001]))
      ('50 ±318', '50.0', '90.00 ±0.01')
    """
    return _percent(metrics.mean_and_interval(np.asarray(values, np.float64)))


def short(number: float | None) -> str:
    """A count in at most five characters and a unit: `'1.45M'`.

    Example:
      >>> from cljax.report import short
      >>> short(520), short(1_445_551), short(17_160), short(None)
      ('520', '1.45M', '17.2k', '-')
    """
    if number is None:
        return "-"
    units = (("", 1.0), ("k", 1e3), ("M", 1e6), ("G", 1e9), ("T", 1e12))
    unit, size = next((pair for pair in units if abs(number) < 999.5 * pair[1]), units[-1])
    return f"{number / size:.3g}{unit}"


def caption(runs: Sequence[dict[str, Any]]) -> str:
    """What the table's numbers are."""
    counts = sorted({len(run["accuracy"]) for run in runs})
    timed = [run["compile_seconds"] for run in runs if run["compile_seconds"] is not None]
    over = " of one seed"
    if counts[-1] > 1:
        over = f" ±95% interval, {' or '.join(map(str, counts))} seeds"
    clips = sorted({norm for run in runs if (norm := _clipping(run))})
    clipped = f" Gradients are clipped to norm {' or '.join(f'{norm:g}' for norm in clips)}." if clips else ""
    there = any(run.get("untrained") and len(run["accuracy"][0]) > 1 for run in runs)
    ahead = " Forward transfer is against the network before the first task." if there else ""
    seconds = f"; seconds without compilation ({sum(timed):.1f} in all)" if timed else ""
    lost = [f" {label(run)}: seed {seed} diverged, and is left out." for run in runs for seed in run.get("lost", [])]
    return f"Percent{over}{seconds}.{ahead}{clipped}{''.join(lost)}"


def _clipping(run: dict[str, Any]) -> float:
    """The norm to which a run of the command clips gradients, which few papers do; 0 where it does not."""
    options = run.get("config", {}).get("training")
    norm = options.get("clip") if isinstance(options, dict) else 0
    return norm if isinstance(norm, int | float) and not isinstance(norm, bool) else 0


def _percent(found: metrics.Interval, *, sign: bool = False) -> str:
    mean, half = 100 * float(found.mean), 100 * float(found.half_width)
    if np.isnan(mean):
        return "-"
    decimals = 2 if 0 < half < 0.05 else 0 if half >= 9.95 else 1
    text = f"{mean:{'+' if sign else ''}.{decimals}f}"
    if float(text) == 0:
        text = text.lstrip("+-")
    return text if np.isnan(half) else f"{text} ±{half:.{decimals}f}"


def _base(run: dict[str, Any], runs: Sequence[dict[str, Any]], reference: str) -> dict[str, Any]:
    """The reference of the same folder, or the first there is."""
    bases = [other for other in runs if other["method"] == reference]
    return next((base for base in bases if base.get("folder") == run.get("folder")), bases[0])


def _difference(run: dict[str, Any], base: dict[str, Any]) -> Cell:
    """The paired difference to the reference, with a tone where its interval leaves out 0."""
    if run is base or run["seeds"] != base["seeds"]:
        return Cell("-", None)
    mine, other = summarise(run)["average_accuracy"], summarise(base)["average_accuracy"]
    found = metrics.paired_difference(mine, other)
    clear = abs(found.mean) > found.half_width
    return Cell(_percent(found, sign=True), _number(100 * found.mean), int(np.sign(found.mean)) if clear else 0)


def cost(run: dict[str, Any], name: str) -> float | None:
    """A mean over the seeds where there is one for each; None where it is unknown."""
    found = np.asarray(run[name], np.float64)
    return None if np.isnan(found).any() else float(found.mean())


def _number(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None
