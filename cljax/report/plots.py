"""Plots of results, each a function from one (or several) to Matplotlib axes.

A result is what `training.drive` or a run of `training.make_run` returns, or an entry of a record; several are a
mapping of names to results, or a list: as of `report.runs`.

Accuracies are in percent, tasks are counted from 1, and intervals are 95% over seeds. Without `ax` a plot makes a
figure of its own that pyplot does not know; in a notebook, end the cell with `ax.figure`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from cljax.report import frame, looks, palette
from cljax.report.results import one
from cljax.report.results import runs as entries
from cljax.report.sections import label
from cljax.report.series import known_mean_and_interval, learning_curve, over_stream
from cljax.report.tables import WORDS, interval, summarise

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Run = dict[str, Any]


def accuracy_matrix(result: Any, ax: Axes | None = None, *, task_il_accuracy: bool = False) -> Axes:
    """The accuracy on each task after each task, a mean over seeds, with the values written in where there is room.

    Args:
      result: one.
      ax: where to draw.
      task_il_accuracy: whether the task is told at test time (in a class-incremental run), rather than not.

    Returns:
      The axes; row i is after task i, the line divides learned tasks from those to come.

    Example:
      >>> from cljax.report.plots import accuracy_matrix
      >>> ax = accuracy_matrix({'method': 'lwf', 'accuracy': [[[.875, .25], [.5, .75]]]})
      >>> [text.get_text() for text in ax.texts]
      ['87.5', '25.0', '50.0', '75.0']
    """
    run = one(result)
    values = 100 * known_mean_and_interval(_floats(run["task_il_accuracy" if task_il_accuracy else "accuracy"])).mean
    ax, count = _squares(ax, values, "accuracy (%)"), len(values)
    stairs = np.arange(count + 1) + 0.5
    ax.step(stairs, stairs, where="post", color="#ffffff", linewidth=1.5 if count <= 30 else 0.6)
    what = "task-IL accuracy" if task_il_accuracy else "accuracy"
    frame.dress(ax, f"{label(run)}: {what} on each task (%)", "on task", "after task", grid="")
    frame.write(ax, values)
    return ax


def confusion_matrix(counts: Any, classes: Any, ax: Axes | None = None, *, title: str = "") -> Axes:
    """Which class is taken for which, in percent of a class's examples; the task of neither is told.

    Args:
      counts: `[K, K]`, of `training.confusion_matrix`; of several seeds, their sum.
      classes: `[T, K / T]` bool, the classes of each task, as a stream's tables have them.
      ax: where to draw.
      title: such as the method's name.

    Returns:
      The axes; a row for each class in the order of the tasks, between which lines are drawn.

    Example:
      >>> from cljax.report.plots import confusion_matrix
      >>> ax = confusion_matrix([[1, 3], [0, 4]], [[True], [True]])
      >>> [text.get_text() for text in ax.texts]
      ['25.0', '75.0', '0.0', '100.0']
    """
    there = np.asarray(classes, bool)
    kept = np.flatnonzero(there.ravel())
    found = np.asarray(counts, np.float64)[np.ix_(kept, kept)]
    whole, count = found.sum(axis=1, keepdims=True), len(kept)
    values = np.divide(100 * found, whole, out=np.full(found.shape, np.nan), where=whole > 0)
    ax = _squares(ax, values, "examples of the class (%)")
    for end in there.sum(axis=1).cumsum()[:-1] + 0.5:
        for line in (ax.axhline, ax.axvline):
            line(end, color="#ffffff", linewidth=1.0 if count <= 30 else 0.5)
    words = "classes in the order of the tasks (%)"
    frame.dress(ax, f"{title}: {words}" if title else words.capitalize(), "taken for", "class", grid="")
    frame.write(ax, values)
    return ax


def task_accuracy(result: Any, ax: Axes | None = None) -> Axes:
    """The accuracy on each task over the stream, from its first visit on; of many tasks ten have colour and interval.

    Args:
      result: one; where tasks are revisited, all its visits are shown.
      ax: where to draw.

    Returns:
      The axes; a line a task.

    Example:
      >>> from cljax.report import plots
      >>> run = {'method': 'lwf', 'accuracy': [[[0.875, 0.25], [0.5, 0.75]]], 'seeds': [0],
      ...        'schedule': {'task': [0, 1], 'epochs': [1, 1], 'evaluate': [True, True]}, 'rounds': None}
      >>> plots.task_accuracy(run).get_ylabel()
      'accuracy (%)'
    """
    run = one(result)
    places, accuracy, first = over_stream(run)
    count = accuracy.shape[-1]
    chosen = np.unique(np.linspace(0, count - 1, min(count, len(palette.TASKS))).round().astype(int))
    ax = frame.axes(ax, (6.4, 4.0))
    shown = []
    for task in range(count):
        found = known_mean_and_interval(accuracy[:, :, task])
        there = np.isfinite(found.mean) & (places > first[task])
        mean, half = 100 * found.mean[there], 100 * np.nan_to_num(found.half_width[there])
        if task not in chosen:
            ax.plot(places[there], mean, color=frame.GRID, linewidth=0.8, zorder=1)
            shown.append((mean, mean))
            continue
        spread = len(palette.TASKS) - 1
        color = palette.TASKS[round(spread * task / max(count - 1, 1))][0]
        marker = "o" if len(places) <= 25 else None
        ax.plot(places[there], mean, color=color, marker=marker, markersize=4, label=f"task {task + 1}", zorder=3)
        low, high = np.clip(mean - half, 0, 100), np.clip(mean + half, 0, 100)
        shown.append(frame.band(ax, places[there], mean, low, high, color))
    frame.percent_limits(ax, "y", shown)
    frame.whole(ax, "x", 1, places[-1])
    visits = "visit" if len(places) > count else "task"
    frame.dress(ax, f"{label(run)}: accuracy on each task", f"after {visits}", "accuracy (%)")
    frame.legend(ax, "" if len(chosen) == count else f"{len(chosen)} of {count} tasks")
    return ax


def comparison(results: Any, ax: Axes | None = None, *, metric: str = "average_accuracy") -> Axes:
    """Methods side by side: mean and interval of a metric, the seeds as small dots, the numbers at the right.

    Args:
      results: several, or one.
      ax: where to draw.
      metric: of `summarise`: `'average_accuracy'`, `'task_il_accuracy'`, `'backward_transfer'` or `'forgetting'`.

    Returns:
      The axes; a row a method, the first at the top.

    Example:
      >>> from cljax.report.plots import comparison
      >>> run = {'method': 'lwf', 'scenario': 'task', 'accuracy': [[[.875, .25], [.5, .75]]]}
      >>> [text.get_text() for text in comparison([run]).texts]
      ['62.5']
    """
    runs = entries(results)
    ax = frame.axes(ax, (6.4, min(60.0, 1.3 + 0.36 * len(runs))))
    shown, lowest = [], -100 if metric in ("backward_transfer", "forgetting") else 0
    for place, run in enumerate(runs):
        values, look = summarise(run)[metric], _style(run, place)
        found = known_mean_and_interval(values)
        mean, half = 100 * found.mean, 100 * found.half_width
        ax.plot(100 * values, np.full(len(values), place + 0.25), ".", color=look.color, markersize=4, alpha=0.7)
        dots: dict[str, Any] = {"color": look.color, "marker": look.marker, "markersize": 7, "capsize": 4}
        ax.errorbar(mean, place, xerr=frame.bars(mean, half, lowest), **dots)
        side = ax.get_yaxis_transform()
        ax.text(1.02, place, interval(values), transform=side, va="center", fontsize=9, color=frame.INK)
        shown += [(mean - np.nan_to_num(half), mean + np.nan_to_num(half)), (100 * values, 100 * values)]
    frame.percent_limits(ax, "x", shown, lowest=lowest)
    ax.set_yticks(range(len(runs)), [frame.wrapped(label(run)) for run in runs], parse_math=False)
    ax.set_ylim(len(runs) - 0.5, -0.5)
    frame.dress(
        ax, f"{WORDS[metric][0].upper()}{WORDS[metric][1:]}{_after(runs)}", f"{WORDS[metric]} (%)", "", grid="x"
    )
    return ax


def seen_accuracy(results: Any, ax: Axes | None = None) -> Axes:
    """The mean accuracy over the tasks seen so far, after each task: a line a method, with its interval.

    The vertical axis shows every seed's values; wide intervals may leave it.

    Args:
      results: several, or one.
      ax: where to draw.

    Returns:
      The axes; the last point is the average accuracy.

    Example:
      >>> from cljax.report.plots import seen_accuracy
      >>> from cljax.report import plots
      >>> ax = plots.seen_accuracy({'method': 'lwf', 'accuracy': [[[.875, .25], [.5, .75]]]})
      >>> ax.lines[0].get_ydata()
      array([87.5, 62.5])
    """
    runs, shown, count = entries(results), [], 1
    ax = frame.axes(ax, frame.beside([label(run) for run in runs]))
    for place, run in enumerate(runs):
        accuracy, look = _floats(run["accuracy"]), _style(run, place)
        count = accuracy.shape[-1]
        seen = [accuracy[:, after, : after + 1].mean(axis=-1) for after in range(count)]
        values = 100 * np.stack(seen, axis=-1)
        mean, half = known_mean_and_interval(values)
        places, half = np.arange(1, count + 1), np.nan_to_num(half)
        dots = {"marker": look.marker if count <= 30 else None, "markersize": 5}
        line: dict[str, Any] = {"linestyle": look.line, "label": frame.wrapped(label(run)), "zorder": 3, **dots}
        ax.plot(places, mean, color=look.color, **line)
        low, high = np.clip(mean - half, 0, 100), np.clip(mean + half, 0, 100)
        if len(runs) <= CROWD:
            frame.band(ax, places, mean, low, high, look.color)
        shown.append((values, mean))
    frame.percent_limits(ax, "y", shown)
    frame.whole(ax, "x", 1, count)
    frame.dress(ax, "Accuracy on the tasks seen so far", "after task", "average accuracy (%)")
    frame.legend(ax)
    return ax


CROWD = 8
"""Of more methods than these the intervals are left out where they would hide one another."""


def accuracy_against_forgetting(results: Any, ax: Axes | None = None) -> Axes:
    """Average accuracy against forgetting, with intervals both ways (of few methods): the best are at the upper left.

    Args:
      results: several, or one.
      ax: where to draw.

    Returns:
      The axes; a point a method.

    Example:
      >>> from cljax.report import plots
      >>> run = {'method': 'lwf', 'accuracy': [[[0.875, 0.25], [0.5, 0.75]]], 'seeds': [0],
      ...        'schedule': {'task': [0, 1], 'epochs': [1, 1], 'evaluate': [True, True]}, 'rounds': None,
      ...        'scenario': 'task', 'seconds': [1.0], 'flops': None, 'bytes_per_task': 1030}
      >>> plots.accuracy_against_forgetting([run, {**run, 'method': 'ewc'}]).get_xlabel()
      'forgetting (%)'
    """
    runs = entries(results)
    ax = frame.axes(ax, frame.beside([label(run) for run in runs]))
    sides: dict[str, list] = {"x": [], "y": []}
    for place, run in enumerate(runs):
        values, look = summarise(run), _style(run, place)
        (x, across), (y, up) = (
            known_mean_and_interval(100 * values[name]) for name in ("forgetting", "average_accuracy")
        )
        if len(runs) > CROWD:
            across = up = np.full((), np.nan)
        dots: dict[str, Any] = {"linestyle": "", "markersize": 8, "capsize": 3}
        shape: dict[str, Any] = {"color": look.color, "marker": look.marker, "label": frame.wrapped(label(run))}
        ax.errorbar(x, y, xerr=frame.bars(x, across, -100), yerr=frame.bars(y, up, 0), **dots, **shape)
        sides["x"].append((x - np.nan_to_num(across), x + np.nan_to_num(across)))
        sides["y"].append((y - np.nan_to_num(up), y + np.nan_to_num(up)))
    frame.percent_limits(ax, "x", sides["x"], lowest=-100)
    frame.percent_limits(ax, "y", sides["y"])
    frame.dress(ax, f"Accuracy against forgetting{_after(runs)}", "forgetting (%)", "average accuracy (%)")
    frame.legend(ax)
    return ax


def learning_curves(
    results: Any,
    ax: Axes | None = None,
    *,
    of: Literal["auto", "curves", "validation_accuracy", "validation_loss", "loss"] = "auto",
) -> Axes:
    """Learning over the whole stream, a line a method: the mean over seeds with its interval (losses: geometric).

    The horizontal axis counts visits, the epochs of a visit evenly spaced within it, so that methods with unequal
    phases, or seeds that stopped at different epochs, stand side by side. The vertical axis shows every seed's values,
    but of losses thirty times the median method's largest at most: what diverges, and wide intervals, may leave it.

    Args:
      results: several, or one.
      ax: where to draw.
      of: `'curves'`, the test accuracy on all tasks so far; the validation's accuracy or loss on the task being
        learned; the training loss. `'auto'`: curves where all runs have them, else the validation accuracy where all
        have it, else the loss.

    Returns:
      The axes.

    Raises:
      ValueError: where no run has what is asked for.

    Example:
      >>> from cljax.report import plots
      >>> run = {'method': 'lwf', 'accuracy': [[[0.875, 0.25], [0.5, 0.75]]], 'seeds': [0],
      ...        'schedule': {'task': [0, 1], 'epochs': [1, 1], 'evaluate': [True, True]}, 'rounds': None}
      >>> run['epochs'] = {'loss': [[[[0.7, 0.5]], [[0.6, 0.4]]]]}  # [seed][round][phase][epoch]
      >>> run['curves'], run['curve_epochs'] = None, []
      >>> plots.learning_curves([run], of='loss').get_ylabel()
      'loss (nats)'
    """
    runs = entries(results)
    kinds = ("curves", "validation_accuracy", "loss") if of == "auto" else (of,)
    for kind in kinds:
        found = [learning_curve(run, kind) for run in runs]
        if all(len(places) for places, _ in found):
            break
    if not any(len(places) for places, _ in found):
        raise ValueError(f"No run has '{kind}'. Curves are recorded with --curves-every, the rest in every run.")
    accuracy = kind in ("curves", "validation_accuracy")
    scale = 100 if accuracy else 1
    ax = frame.axes(ax, frame.beside([label(run) for run in runs]))
    logarithmic = not accuracy and all((values[np.isfinite(values)] > 0).all() for _, values in found)
    shown, visits = [], 1
    for number, (run, (places, values)) in enumerate(zip(runs, found, strict=True)):
        look = _style(run, number)
        mean, half = known_mean_and_interval(np.log(values) if logarithmic else scale * values)
        ends = [mean - np.nan_to_num(half), mean, mean + np.nan_to_num(half)]
        low, mean, high = np.exp(ends) if logarithmic else np.clip(ends, 0, 100) if accuracy else ends
        dots = look.marker if len(places) <= 30 else None
        lines: dict[str, Any] = {"linestyle": look.line, "linewidth": 1.6, "marker": dots, "markersize": 4}
        ax.plot(places, mean, color=look.color, label=frame.wrapped(label(run)), zorder=3, **lines)
        frame.band(ax, places, mean, low, high, look.color)
        known = scale * values[np.isfinite(values)]
        shown.append((known, known))
        visits = max(visits, int(np.ceil(places.max(initial=1))))
    words = {
        "curves": ("Test accuracy on the tasks so far", "accuracy (%)"),
        "validation_accuracy": ("Validation accuracy on the task being learned", "accuracy (%)"),
        "validation_loss": ("Validation loss on the task being learned", "loss (nats)"),
        "loss": ("Training loss, with each method's own terms", "loss (nats)"),
    }[kind]
    if accuracy:
        frame.percent_limits(ax, "y", shown)
    elif logarithmic:
        known = np.concatenate([values for values, _ in shown])
        ax.set_yscale("log")
        largest = 30 * np.median([values.max() for values, _ in shown if values.size])
        ax.set_ylim(known.min() / 1.5, 1.5 * min(known.max(), largest))
    frame.whole(ax, "x", 0, visits, pad=0.015 * visits)
    if visits <= 25:
        for edge in range(1, visits):
            ax.axvline(edge, color=frame.GRID, linewidth=0.8, zorder=0)
    revisits = any(run.get("rounds") for run in runs)
    frame.dress(ax, words[0], f"{'visits' if revisits else 'tasks'} finished", words[1], grid="y")
    frame.legend(ax)
    return ax


def feature_usage(result: Any, layer: str, ax: Axes | None = None, *, legend: bool = True) -> Axes:
    """What a layer's features are after each task, in percent: reused, older but not reused, new, free.

    Args:
      result: one, of a method in which tasks own features.
      layer: the layer's name, such as `'dense_0'`.
      ax: where to draw.
      legend: whether the parts are named beside the plot.

    Returns:
      The axes; a stacked bar a task.

    Raises:
      ValueError: where the run has no such layer.

    Example:
      >>> from cljax.report import plots
      >>> parts = {'used': [[0.4, 0.7]], 'new': [[0.4, 0.3]], 'reused': [[0.0, 0.2]], 'free': [[0.6, 0.3]]}
      >>> run = {'method': 'tfm', 'accuracy': [[[0.9, 0.1], [0.9, 0.8]]], 'feature_usage': {'dense_0': parts}}
      >>> plots.feature_usage(run, 'dense_0').get_ylabel()
      'features (%)'
    """
    run = one(result)
    layers = run.get("feature_usage") or {}
    if layer not in layers:
        there = ", ".join(layers) or "none"
        raise ValueError(f"The run of {label(run)} has no feature usage of the layer '{layer}'. It has: {there}.")
    mean = {name: 100 * known_mean_and_interval(_floats(value)).mean for name, value in layers[layer].items()}
    parts = {
        "reused": mean["reused"],
        "older, not reused": mean["used"] - mean["new"] - mean["reused"],
        "new": mean["new"],
        "free": mean["free"],
    }
    places, bottom = np.arange(1, len(mean["used"]) + 1), np.zeros(len(mean["used"]))
    ax, width = frame.axes(ax, (4.4, 3.2)), 0.85 if len(places) <= 25 else 1.0
    for name, part in parts.items():
        shape: dict[str, Any] = {"color": palette.CAPACITY[name][0], "label": name, "antialiased": width < 1}
        ax.bar(places, part, bottom=bottom, width=width, **shape)
        bottom = bottom + part
    ax.set_ylim(0, 100)
    frame.whole(ax, "x", 1, places[-1])
    frame.dress(ax, f"{label(run)}: {layer}", "after task", "features (%)", grid="")
    if legend:
        frame.legend(ax)
    return ax


def attention(result: Any, ax: Axes | None = None) -> Axes:
    """Where the network looks for the labels of some of the first task's test images, after each task.

    Args:
      result: one, with `settings.attention_images`, of a network with feature maps.
      ax: where to draw.

    Returns:
      The axes; a row an image, beside it the Grad-CAM after each task, from nothing to its largest value, on the image.

    Raises:
      ValueError: where the run has no attention.

    Example:
      >>> import numpy as np
      >>> from cljax.report import looks, plots
      >>> run = {'method': 'lwm', 'attention': looks.of_tasks(np.ones([3, 2, 4, 4]), np.arange(3))}
      >>> [tick.get_text() for tick in plots.attention(run).get_xticklabels()]
      ['image', '1', '2', '3']
    """
    run = one(result)
    if not (found := run.get("attention")):
        raise ValueError(f"The run of {label(run)} has no attention: give settings attention_images, such as 4.")
    picture, count = looks.mosaic(found), found["maps"]["shape"][0] + 1
    height, width = picture.shape[:2]
    across = min(10.0, 0.9 * count)
    ax = frame.axes(ax, (across + 0.3, across * height / width + 0.8))
    ax.imshow(picture, interpolation="nearest", aspect="equal")
    ax.set_xticks((np.arange(count) + 0.5) * width / count, ["image", *map(str, range(1, count))])
    ax.set_yticks([])
    ax.tick_params(length=0)
    frame.dress(ax, f"{label(run)}: where the network looks", "after task", "", grid="")
    ax.spines[:].set_visible(False)
    return ax


def _squares(ax: Axes | None, values: np.ndarray, what: str) -> Axes:
    """A square matrix of percentages in colours, with what they stand for."""
    from matplotlib import colormaps

    count = len(values)
    ax = frame.axes(ax, (5.2, 4.4) if count <= 12 else (7.6, 6.6))
    colours, ends = colormaps["cividis"].with_extremes(bad=(0.5, 0.5, 0.5, 0.25)), (0.5, count + 0.5, count + 0.5, 0.5)
    image = ax.imshow(values, cmap=colours, vmin=0, vmax=100, extent=ends, interpolation="nearest")
    ax.figure.colorbar(image, ax=ax, label=what, shrink=0.85)
    frame.whole(ax, "x", 1, count)
    frame.whole(ax, "y", 1, count)
    ax.invert_yaxis()
    return ax


def _style(run: Run, place: int) -> palette.Style:
    """The style of a run: of its place in the whole report, or else among the runs of the plot."""
    return palette.style(run.get("place", place))


def _after(runs: Sequence[Run]) -> str:
    count = len(runs[0]["accuracy"][0])
    return f" after {count} tasks" if count > 1 else " after 1 task"


def _floats(values: Any) -> np.ndarray:
    """Numbers of a record, None being NaN."""
    return np.asarray(values, np.float64)
