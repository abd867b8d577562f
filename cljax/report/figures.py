"""All figures of a section, drawn one by one, each with the words for those who cannot see it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cljax.report import frame, palette, plots
from cljax.report.sections import Section, label
from cljax.report.series import learning_curve
from cljax.report.tables import interval, summarise

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Run = dict[str, Any]


class Drawing(NamedTuple):
    """A figure: name, for a file; method, whose it is (empty: of all side by side); words, what it shows; figure."""

    name: str
    method: str
    words: str
    figure: Figure


def draw(section: Section) -> Iterator[Drawing]:
    """The figures of a section: those of all methods side by side first, then each method's own."""
    yield from _side_by_side(section.runs)
    for run in section.runs:
        yield from _own(run)


def _side_by_side(runs: Sequence[Run]) -> Iterator[Drawing]:
    said = lambda metric: "; ".join(f"{label(run)} {interval(summarise(run)[metric])}" for run in runs)
    words = f"Average accuracy of each method in percent, with 95% intervals over seeds: {said('average_accuracy')}."
    yield Drawing("average_accuracy", "", words, _figure(plots.comparison(runs)))
    if runs[0]["scenario"] == "class":
        words = f"Average accuracy when the task is told, in percent, with 95% intervals: {said('task_il_accuracy')}."
        yield Drawing("task_il_accuracy", "", words, _figure(plots.comparison(runs, metric="task_il_accuracy")))
    if len(runs[0]["accuracy"][0]) > 1:
        words = "Accuracy on the tasks seen so far, after each task, a line a method: average incremental accuracy "
        words += f"{said('average_incremental_accuracy')}."
        yield Drawing("seen_accuracy", "", words, _figure(plots.seen_accuracy(runs)))
        both = ", with intervals both ways" if len(runs) <= plots.CROWD else ""
        words = f"Average accuracy against forgetting{both}: forgetting in percent is {said('forgetting')}."
        yield Drawing("accuracy_against_forgetting", "", words, _figure(plots.accuracy_against_forgetting(runs)))
    has = lambda kind: [len(learning_curve(run, kind)[0]) > 0 for run in runs]
    if not (any(has("loss")) or all(has("curves")) or all(has("validation_accuracy"))):
        return
    curves = plots.learning_curves(runs)
    words = f"Over the whole stream, a line a method with its 95% interval: {curves.get_title('left').lower()}."
    drawn = {"learning_curves": (curves, words)}
    if curves.get_ylabel().startswith("accuracy") and any(has("loss")):
        words = "Training loss over the whole stream, a line a method. Methods add terms of their own to it."
        drawn["training_loss"] = plots.learning_curves(runs, of="loss"), words
    for name, (ax, words) in drawn.items():
        if len(runs) <= plots.CROWD:
            yield Drawing(name, "", words, _figure(ax))
        else:
            words = f"{ax.get_title('left')}, over the whole stream: each method, the others behind it in grey."
            yield Drawing(name, "", words, _multiples(ax, runs))


def _multiples(whole: Axes, runs: Sequence[Run]) -> Figure:
    """A plot of many lines as many plots: in each one line, the others in grey, all with the same limits."""
    from matplotlib.figure import Figure

    lines = [line for line in whole.lines if line.get_label() in whole.get_legend_handles_labels()[1]]
    columns = min(5, len(lines))
    rows = -(-len(lines) // columns)
    figure = Figure(figsize=(2.1 * columns, 1.5 * rows + 0.4), dpi=130, layout="constrained", facecolor=palette.PAPER)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for place, ax in enumerate(grid.ravel()):
        if place >= len(lines):
            ax.set_axis_off()
            continue
        for line in (*lines[:place], *lines[place + 1 :]):
            ax.plot(*line.get_data(), color=frame.GRID, linewidth=0.7, zorder=1)
        own = lines[place]
        ax.plot(*own.get_data(), color=own.get_color(), linewidth=1.8, zorder=3)
        ax.set_yscale(whole.get_yscale())
        ax.set_xlim(whole.get_xlim())
        ax.set_ylim(whole.get_ylim())
        top = np.asarray(own.get_ydata(), np.float64).max(initial=0.0)
        beyond = f" (to {top:.0e})" if top > whole.get_ylim()[1] else ""
        frame.dress(ax, f"{label(runs[place])}{beyond}", "", "", grid="y")
        ax.set_title(ax.get_title("left"), loc="left", fontsize=9, color=frame.INK, parse_math=False)
    figure.supxlabel(whole.get_xlabel(), fontsize=9, color=frame.INK)
    figure.supylabel(whole.get_ylabel(), fontsize=9, color=frame.INK)
    return figure


def _own(run: Run) -> Iterator[Drawing]:
    name, count = label(run), len(run["accuracy"][0])
    last = np.asarray(run["accuracy"], np.float64)[:, -1].mean(axis=0)
    ends = f"from {100 * last.min():.1f} to {100 * last.max():.1f}%" if np.isfinite(last).all() else "partly unknown"
    if count > 1:
        words = f"{name}: accuracy on each of {count} tasks after each task; after the last {ends}."
        yield Drawing("accuracy_matrix", name, words, _figure(plots.accuracy_matrix(run)))
    words = f"{name}: accuracy on each task over the stream, with 95% intervals; after the last {ends}."
    yield Drawing("task_accuracy", name, words, _figure(plots.task_accuracy(run)))
    if found := run.get("confusion"):
        words = f"{name}: which class is taken for which after the last task, the seeds together."
        drawn = plots.confusion_matrix(found["counts"], found["classes"], title=name)
        yield Drawing("confusion_matrix", name, words, _figure(drawn))
    if run.get("feature_usage"):
        used = "; ".join(
            f"{layer} {100 * np.asarray(parts['used'], np.float64)[:, -1].mean():.0f}%"
            for layer, parts in run["feature_usage"].items()
        )
        words = f"{name}: features of each layer after each task. In use after the last: {used}."
        yield Drawing("feature_usage", name, words, _usages(run))
    if run.get("attention"):
        _, images, *_ = run["attention"]["maps"]["shape"]
        words = (
            f"{name}: where the network looks for the labels of {images} test images of task 1, after each task: "
            f"most where it is red, not at all where it is grey."
        )
        yield Drawing("attention", name, words, _figure(plots.attention(run)))


def _usages(run: Run) -> Figure:
    """The feature usage of all layers, up to three in a row, with one legend."""
    from matplotlib.figure import Figure

    layers = list(run["feature_usage"])
    columns = min(3, len(layers))
    rows = -(-len(layers) // columns)
    size = (3.0 * columns + 1.6, 2.7 * rows)
    figure = Figure(figsize=size, dpi=130, layout="constrained", facecolor=palette.PAPER)
    grid = figure.subplots(rows, columns, squeeze=False)
    for place, ax in enumerate(grid.ravel()):
        if place >= len(layers):
            ax.set_axis_off()
            continue
        plots.feature_usage(run, layers[place], ax, legend=False)
        if place % columns:
            ax.set_ylabel("")
    handles, names = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right upper", frameon=False, fontsize=9, labelcolor=palette.INK[0])
    return figure


def _figure(ax: Any) -> Figure:
    return ax.figure
