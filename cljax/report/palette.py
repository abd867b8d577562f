"""Colours of the plots: of methods and of tasks, on light and on dark paper, telling apart for the colour-blind too."""

from __future__ import annotations

from typing import NamedTuple

INK, GRID = ("#24292e", "#e6e9ec"), ("#d8dce0", "#3a424a")
PAPER = "#ffffff"

METHODS = (
    ("#0072b2", "#4da9e8"),
    ("#d55e00", "#ff8a3d"),
    ("#009e73", "#2ac79a"),
    ("#c4609a", "#e79ac6"),
    ("#c08a00", "#e8bd4a"),
    ("#6a51a3", "#a896e6"),
    ("#5f6770", "#b4bcc4"),
)
"""On light and on dark paper: after Okabe and Ito, their palest colours darkened."""

TASKS = (
    ("#46327e", "#9b86e0"),
    ("#3d4e8a", "#8296dc"),
    ("#31688e", "#67a9d3"),
    ("#26828e", "#4fb9c6"),
    ("#1f9a8a", "#3cc9b0"),
    ("#2a9d62", "#4fcf86"),
    ("#5b9a2f", "#86cf58"),
    ("#848f14", "#b4c43a"),
    ("#a5830f", "#d8b83c"),
    ("#b86a1b", "#f0a04c"),
)
"""From the first task to the last, in the order of their hues."""

CAPACITY = {
    "reused": ("#0f6fae", "#58b0ee"),
    "older, not reused": ("#93bfdc", "#37648a"),
    "new": ("#e07b1a", "#f59b45"),
    "free": ("#eceff2", "#2a3037"),
}
"""Of what a layer's features are."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p", "h", "<", ">", "*")
LINES = ("-", "--", "-.")


class Style(NamedTuple):
    """How a method looks in every plot: colour, marker, dashes."""

    color: str
    marker: str
    line: str


def style(place: int) -> Style:
    """The style of the method at a place, from 0: twelve markers, seven colours, three kinds of line.

    Example:
      >>> style(1)
      Style(color='#d55e00', marker='s', line='-')
    """
    count = len(METHODS)
    return Style(METHODS[place % count][0], MARKERS[place % len(MARKERS)], LINES[place // count % len(LINES)])


def dark_twins() -> dict[str, str]:
    """The colour on dark paper of each on light paper."""
    return dict([*METHODS, *TASKS, *CAPACITY.values(), INK, GRID])
