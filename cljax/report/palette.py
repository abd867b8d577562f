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
    ("#003000", "#6cfc00"),
    ("#000090", "#5478fc"),
    ("#780000", "#fc0084"),
    ("#b400fc", "#d818fc"),
    ("#300cfc", "#6c849c"),
    ("#480054", "#fce4fc"),
    ("#8484fc", "#a860e4"),
    ("#006c00", "#609000"),
    ("#fc18d8", "#c06c84"),
    ("#a80060", "#fc6cfc"),
    ("#004860", "#30f0fc"),
    ("#fc0054", "#fc3000"),
    ("#5400a8", "#e4c0fc"),
    ("#904800", "#b4780c"),
    ("#787818", "#fcfc54"),
    ("#9000b4", "#fc18cc"),
    ("#6c90a8", "#00cce4"),
    ("#484818", "#90cc18"),
    ("#6c3060", "#fc6c9c"),
)
"""On light and on dark paper: seven after Okabe and Ito, their palest colours darkened; then, one by one, what is
farthest from those before (in Oklab) and still stands out on the paper."""

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
FAMILIAR = 7
"""How many colours a kind of line has."""


class Style(NamedTuple):
    """How a method looks in every plot: colour, marker, dashes."""

    color: str
    marker: str
    line: str


def style(place: int) -> Style:
    """The style of the method at a place, from 0: 26 colours, twelve markers, three kinds of line.

    Example:
      >>> style(1)
      Style(color='#d55e00', marker='s', line='-')
    """
    count = len(METHODS)
    return Style(METHODS[place % count][0], MARKERS[place % len(MARKERS)], LINES[place // FAMILIAR % len(LINES)])


def dark_twins() -> dict[str, str]:
    """The colour on dark paper of each on light paper."""
    return dict([*METHODS, *TASKS, *CAPACITY.values(), INK, GRID])
