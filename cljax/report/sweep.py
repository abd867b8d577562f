"""What a sweep leaves: stability against plasticity over the values of a number, as a table and a plot."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

from cljax import files
from cljax.report import frame, palette
from cljax.report.sections import title
from cljax.report.series import known_mean_and_interval
from cljax.report.tables import caption, cost, interval, summarise
from cljax.report.writing import picture
from cljax.text import markdown, printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = ("method", "value", "average accuracy", "stability", "plasticity", "forgetting", "seconds a learner")
FILES = ("sweep.md", "sweep.png")
Run = dict[str, Any]


def stability(run: Run) -> np.ndarray:
    r"""The accuracy that earlier tasks have in the end, :math:`\frac{1}{T-1} \sum_{j<T-1} R_{T-1,j}`, `[seeds]`.

    Example:
      >>> stability({"accuracy": [[[0.875, 0.0], [0.5, 0.75]]]})
      array([0.5])
    """
    return np.asarray(run["accuracy"], np.float64)[:, -1, :-1].mean(axis=-1)


def plasticity(run: Run) -> np.ndarray:
    r"""The accuracy on each later task just after it was learned, :math:`\frac{1}{T-1} \sum_{j>0} R_{j,j}`, `[seeds]`.

    Example:
      >>> plasticity({"accuracy": [[[0.875, 0.0], [0.5, 0.75]]]})
      array([0.75])
    """
    return np.diagonal(np.asarray(run["accuracy"], np.float64), axis1=1, axis2=2)[:, 1:].mean(axis=-1)


def written(value: float) -> str:
    """A value as it is read, in as few digits as tell it from others.

    Example:
      >>> written(0.1), written(3.0), written(1.0000001)
      ('0.1', '3', '1.0000001')
    """
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


def called(run: Run) -> str:
    """What a run's curve is called: its name, and what its method lacks where the label says so.

    Example:
      >>> called({'label': 'tfm.growth=0.1 without a part', 'sweep': {'curve': 'tfm.growth', 'value': 0.1}})
      'tfm.growth without a part'
    """
    curve, value = run["sweep"]["curve"], run["sweep"]["value"]
    alone = curve if value is None else f"{curve}={written(value)}"
    label = run.get("label", alone)
    return curve + label.removeprefix(alone) if label.startswith(alone) else curve


def sweep_rows(runs: Sequence[Run]) -> list[list[str]]:
    """The table of a sweep: a row a value, percent, mean ± 95% interval over seeds; seconds without compilation."""
    found = []
    for run in runs:
        value, values = run["sweep"]["value"], summarise(run)
        numbers = (values["average_accuracy"], stability(run), plasticity(run), values["forgetting"])
        name = called(run)
        seconds = "-" if (spent := cost(run, "seconds")) is None else f"{spent:.3g}"
        found.append([name, "-" if value is None else written(value), *map(interval, numbers), seconds])
    return found


def sweep_table(runs: Sequence[Run]) -> Table:
    """The table of a sweep for the console.

    Args:
      runs: entries of a sweep's record.

    Example:
      >>> from cljax import report
      >>> run = {'method': 'lwf', 'data': 'digits', 'scenario': 'task', 'accuracy': [[[1.0, 0.0], [0.5, 0.75]]],
      ...        'seconds': [2.0], 'seeds': [0], 'facts': [{'kind': 'split'}], 'rounds': None,
      ...        'compile_seconds': 1.0}
      >>> place = {'curve': 'lwf.strength', 'parameter': 'strength'}
      >>> runs = [{**run, 'sweep': {**place, 'value': value}} for value in (1.0, 2.0)]
      >>> report.sweep_table(runs).row_count
      2
    """
    words = Text(printable(title(runs[0])), style="table.title"), Text(caption(runs), style="table.caption")
    table = Table(title=words[0], caption=words[1], box=box.SIMPLE_HEAD, show_edge=False, padding=0)
    for place, name in enumerate(COLUMNS):
        look: dict[str, Any] = {"justify": "right"} if place else {"style": "bold"}
        table.add_column(name, **look, no_wrap=place < 2, overflow="fold")
    for row in sweep_rows(runs):
        table.add_row(*(Text(printable(cell)) for cell in row))
    return table


def stability_plasticity(runs: Sequence[Run], ax: Axes | None = None) -> Axes:
    """Plasticity against stability: a line through the values of each curve's number, with intervals both ways.

    The best is at the upper right: new tasks are learned, old ones kept.

    Args:
      runs: entries of a sweep's record, of two tasks or more.
      ax: where to draw.

    Returns:
      The axes; each point is labelled with its value.

    Example:
      >>> from cljax import report
      >>> run = {'method': 'lwf', 'data': 'digits', 'scenario': 'task', 'accuracy': [[[1.0, 0.0], [0.5, 0.75]]],
      ...        'seconds': [2.0], 'seeds': [0], 'facts': [{'kind': 'split'}], 'rounds': None,
      ...        'compile_seconds': 1.0}
      >>> place = {'curve': 'lwf.strength', 'parameter': 'strength'}
      >>> runs = [{**run, 'sweep': {**place, 'value': value}} for value in (1.0, 2.0)]
      >>> report.stability_plasticity(runs).get_xlabel()
      'stability...'
    """
    ax = frame.axes(ax, (6.4, 4.6))
    names = list(dict.fromkeys(called(run) for run in runs))
    sides: dict[str, list[Any]] = {"x": [], "y": []}
    for place, name in enumerate(names):
        mine = [run for run in runs if called(run) == name]
        mine.sort(key=lambda run: run["sweep"]["value"] or 0.0)
        look = palette.style(place)
        x, across = np.transpose([known_mean_and_interval(100 * stability(run)) for run in mine])
        y, up = np.transpose([known_mean_and_interval(100 * plasticity(run)) for run in mine])
        shape: dict[str, Any] = {"color": look.color, "marker": look.marker, "markersize": 6}
        ax.plot(x, y, label=frame.wrapped(name), **shape)
        for run, *point in zip(mine, x, across, y, up, strict=True):
            left, wide, height, tall = point
            thin: dict[str, Any] = {"capsize": 2, "elinewidth": 0.9, "alpha": 0.6, "color": look.color}
            ax.errorbar(left, height, xerr=frame.bars(left, wide, -100), yerr=frame.bars(height, tall, -100), **thin)
            if run["sweep"]["value"] is not None:
                offset: dict[str, Any] = {"textcoords": "offset points", "xytext": (6, 6), "color": look.color}
                ax.annotate(written(run["sweep"]["value"]), (left, height), fontsize=8, **offset)
        sides["x"] += [(a - np.nan_to_num(b), a + np.nan_to_num(b)) for a, b in zip(x, across, strict=True)]
        sides["y"] += [(a - np.nan_to_num(b), a + np.nan_to_num(b)) for a, b in zip(y, up, strict=True)]
    frame.percent_limits(ax, "x", sides["x"])
    frame.percent_limits(ax, "y", sides["y"])
    words = "stability: earlier tasks in the end (%)", "plasticity: later tasks just learned (%)"
    frame.dress(ax, f"Stability against plasticity: {title(runs[0])}", *words)
    frame.legend(ax)
    return ax


def write_sweep(runs: Sequence[Run], folder: str | os.PathLike) -> tuple[pathlib.Path, pathlib.Path]:
    """Writes `sweep.md` and `sweep.png` into a folder; returns their paths.

    Example:
      >>> import tempfile
      >>> from cljax import report
      >>> run = {'method': 'lwf', 'data': 'digits', 'scenario': 'task', 'accuracy': [[[1.0, 0.0], [0.5, 0.75]]],
      ...        'seconds': [2.0], 'seeds': [0], 'facts': [{'kind': 'split'}], 'rounds': None,
      ...        'compile_seconds': 1.0}
      >>> place = {'curve': 'lwf.strength', 'parameter': 'strength'}
      >>> runs = [{**run, 'sweep': {**place, 'value': value}} for value in (1.0, 2.0)]
      >>> [path.name for path in report.write_sweep(runs, tempfile.mkdtemp())]
      ['sweep.md', 'sweep.png']
    """
    words, image = (pathlib.Path(folder) / name for name in FILES)
    rows = [list(COLUMNS), ["---", *["---:"] * (len(COLUMNS) - 1)]]
    rows += [[markdown(cell) for cell in row] for row in sweep_rows(runs)]
    lines = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    files.write_text(words, f"# {markdown(title(runs[0]))}\n\n{lines}\n\n{caption(runs)}\n")
    files.write_bytes(image, picture(stability_plasticity(runs).figure, "png"))
    return words, image
