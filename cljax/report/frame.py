"""What all plots share: axes of their own, a quiet frame, limits, legends, intervals."""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from cljax.report import palette
from cljax.text import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, GRID = palette.INK[0], palette.GRID[0]
SMALLEST_TEXT = 5.0
"""In points: cells whose numbers would be smaller stay empty."""


def axes(ax: Axes | None, size: tuple[float, float]) -> Axes:
    """The axes given, or those of a figure of its own."""
    if ax is not None:
        return ax
    from matplotlib.figure import Figure

    return Figure(figsize=size, dpi=130, layout="constrained", facecolor=palette.PAPER).subplots()


def beside(names: Sequence[str]) -> tuple[float, float]:
    """The size of a plot that has a legend of these names beside it, each in as many lines as `wrapped` gives it."""
    more = sum(wrapped(name).count("\n") for name in names)
    return 6.4, min(60.0, max(4.0, 0.5 + 0.21 * len(names) + 0.14 * more))


def dress(ax: Axes, title: str, x: str, y: str, *, grid: Literal["both", "x", "y", ""] = "both") -> None:
    """Title, names of the axes, and a quiet frame."""
    ax.set_title(wrapped(title, 60), fontsize=11, color=INK, loc="left", parse_math=False)
    ax.set_xlabel(x, color=INK)
    ax.set_ylabel(y, color=INK)
    ax.set_facecolor("none")
    ax.spines[["top", "right"]].set_visible(False)
    if grid:
        ax.grid(axis=grid, color=GRID, linewidth=0.6)
        ax.set_axisbelow(True)
    for part in (*ax.figure.axes, ax):
        part.tick_params(colors=INK, labelsize=9)
        part.yaxis.label.set_color(INK)
        for spine in part.spines.values():
            spine.set_color(GRID)


def legend(ax: Axes, title: str = "") -> None:
    """Beside the plot, where it hides nothing."""
    entries = len(ax.get_legend_handles_labels()[1])
    place: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1.01, 0.5), "frameon": False}
    legend = ax.legend(**place, fontsize=9 if entries <= 10 else 8, title=title or None, labelcolor=INK)
    for text in legend.get_texts():
        text.set_parse_math(False)
    legend.get_title().set_color(INK)
    legend.get_title().set_fontsize(9)


def band(ax: Axes, places: Any, mean: Any, low: Any, high: Any, color: str) -> tuple[Any, Any]:
    """The interval around a line: a band, or a bar where there is one point. Returns its ends."""
    if not (high > low).any():
        return low, high
    if len(places) == 1:
        ax.errorbar(places, mean, yerr=[mean - low, high - mean], color=color, capsize=3, linestyle="")
    else:
        ax.fill_between(places, low, high, color=color, alpha=0.15, linewidth=0, zorder=2)
    return low, high


def bars(mean: np.ndarray, half: np.ndarray, lowest: float) -> np.ndarray | None:
    """An error bar of a percentage, within what is possible; none where the interval is unknown."""
    if not np.isfinite(half):
        return None
    ends = np.maximum([mean - max(mean - half, lowest), min(mean + half, 100.0) - mean], 0.0)
    return ends[:, None]


def percent_limits(ax: Axes, side: Literal["x", "y"], shown: list[tuple], *, lowest: float = 0.0) -> None:
    """Limits that show all of the data, within what is possible."""
    ends = np.concatenate([np.atleast_1d(end).ravel() for pair in shown for end in pair] or [np.zeros(1)])
    ends = np.clip(ends[np.isfinite(ends)], lowest, 100.0)
    low, high = (ends.min(), ends.max()) if ends.size else (0.0, 100.0)
    pad = max(0.05 * (high - low), 0.2, (1 - high + low) / 2)
    getattr(ax, f"set_{side}lim")(low - pad, high + pad)


def whole(ax: Axes, side: Literal["x", "y"], low: int, high: int, *, pad: float = 0.5) -> None:
    """An axis of whole numbers, with as many ticks as there is room for."""
    from matplotlib.ticker import MaxNLocator

    getattr(ax, f"{side}axis").set_major_locator(MaxNLocator(nbins=12, integer=True, min_n_ticks=1))
    getattr(ax, f"set_{side}lim")(low - pad, high + pad)


def write(ax: Axes, values: np.ndarray) -> None:
    """Writes a matrix's values into its cells, as large as they fit; nothing where they would be too small to read."""
    box = ax.get_window_extent()
    cell = min(box.width, box.height) * 0.8 / len(values) * 72 / ax.figure.dpi
    decimals = 1 if len(values) <= 10 else 0
    widest = max((len(f"{value:.{decimals}f}") for value in values.ravel() if np.isfinite(value)), default=1)
    size = min(10.0, 0.9 * cell / (0.62 * widest))
    if size < SMALLEST_TEXT:
        return
    for (row, column), value in np.ndenumerate(values):
        text = f"{value:.{decimals}f}" if np.isfinite(value) else "-"
        color = "#000000" if value > 55 or not np.isfinite(value) else "#ffffff"
        ax.text(column + 1, row + 1, text, ha="center", va="center", fontsize=size, color=color)


def wrapped(name: str, width: int = 26) -> str:
    """A name in at most three lines, short enough for a legend; what the font does not have is escaped."""
    from matplotlib.font_manager import FontProperties

    fonts = _characters(*FontProperties().get_family())
    letters = (letter if ord(letter) in fonts else ascii(letter)[1:-1] for letter in printable(name))
    text = "\n".join(textwrap.wrap("".join(letters), width, max_lines=3, placeholder="..."))
    return f" {text}" if text.startswith("_") else text  # Matplotlib leaves names with _ out of legends


@functools.cache
def _characters(*families: str) -> frozenset[int]:
    """What the fonts of these families can draw."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    fonts = [get_font(findfont(FontProperties(family=[family]))) for family in families]
    return frozenset(code for font in fonts for code in font.get_charmap())
