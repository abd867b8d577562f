"""Lines of the papers' figures, each with its interval over seeds."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes

from cljax import metrics
from cljax.report import frame, palette


def lines(ax: Axes, named: Mapping[str, np.ndarray | None], step: int = 1) -> None:
    """A line for each name, of fractions `[S, T]`: means over seeds in percent, and their intervals.

    Args:
      ax: where to draw.
      named: what each line shows; None, and its colour is left free.
      step: how far apart values stand; the first is there.
    """
    for place, (name, values) in enumerate(named.items()):
        if values is None:
            continue
        found = metrics.mean_and_interval(100 * values)
        low, high = (np.clip(found.mean + sign * found.half_width, 0, 100) for sign in (-1, 1))
        places, color = step * np.arange(1, values.shape[-1] + 1), palette.style(place).color
        ax.plot(places, found.mean, color=color, label=name)
        frame.band(ax, places, found.mean, low, high, color)
