"""Progress on stderr: a bar on a terminal, a line now and then elsewhere, or nothing."""

from __future__ import annotations

import math
import time
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from cljax.cli.printing import styled

if TYPE_CHECKING:
    from cljax.training.driver import Event

SECONDS_BETWEEN_LINES = 10.0


class Reporter:
    """Shows where a comparison stands: method, seed, task, phase, epoch, loss, validation accuracy, time left.

    A context manager; `method` at the begin of each method, `event` after each epoch.
    """

    def __init__(self, console: Console, methods: int, tasks: int, *, quiet: bool = False) -> None:
        self._console, self._methods, self._tasks = console, methods, tasks
        self._live = not quiet and console.is_terminal
        self._plain = not quiet and not console.is_terminal
        self._number, self._last = -1, -math.inf
        self._estimate = Estimate()
        texts = [TextColumn(f"{{task.{field}}}", markup=False) for field in ("description", "fields[left]")]
        columns = (TextColumn("{task.fields[method]}", "bold", markup=False), texts[0], BarColumn(None), texts[1])
        self._progress = Progress(*columns, console=console, transient=True, expand=True, disable=not self._live)
        self._bar = self._progress.add_task("", total=1.0, method="", left="")

    def __enter__(self) -> Reporter:
        """Begins to show."""
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Takes the bar away."""
        self._progress.stop()

    def method(self, name: str) -> None:
        """Says that a method begins, with compiling."""
        self._number += 1
        self._estimate.begin(time.monotonic())
        self._progress.update(self._bar, method=name, description="compiling")
        if self._plain:
            self._console.print(styled("", name, f" ({self._number + 1} of {self._methods})"))

    def event(self, event: Event) -> None:
        """Says how far a method is."""
        part = min(1.0, event.done / event.total)
        done = (self._number + part) / self._methods
        seconds = self._estimate.left(time.monotonic(), part, self._methods - self._number - 1)
        left = "" if seconds is None else f"{clock(seconds)} left"
        text = describe(event, self._tasks)
        self._progress.update(self._bar, completed=done, method=event.method, description=text, left=left)
        if self._plain and time.monotonic() - self._last > SECONDS_BETWEEN_LINES:
            self._last = time.monotonic()
            self._console.print(Text(", ".join([f"{event.method} {text}", *([left] if left else [])])), soft_wrap=True)


class Estimate:
    """The time left, from the present method's pace and the time that it took to begin (compiling).

    Example:
      >>> estimate = Estimate()
      >>> estimate.begin(0.0)
      >>> estimate.left(10.0, 0.25, 1) is None  # 10 s to the first report, which is no pace yet
      True
      >>> estimate.left(11.0, 0.5, 1)  # half of 4 s, and another method: 10 s and 4 s
      16.0
    """

    def __init__(self) -> None:
        self._begun, self._first = 0.0, (0.0, 0.0)

    def begin(self, now: float) -> None:
        """A method begins."""
        self._begun, self._first = now, (0.0, 0.0)

    def left(self, now: float, part: float, methods: int) -> float | None:
        """Seconds left, where this part of the present method is done and so many methods follow; None: unknown."""
        if self._first == (0.0, 0.0):
            self._first = (now, part)
        then, before = self._first
        if part <= before:
            return None
        whole = (now - then) / (part - before)
        return whole * (1 - part) + methods * (then - self._begun + whole)


def describe(event: Event, tasks: int) -> str:
    """A line about an event, without its method."""
    seed = f"{event.seed}" if event.seeds == 1 else f"{event.seed} and {event.seeds - 1} more"
    accuracy = "" if math.isnan(event.validation_accuracy) else f", validation {100 * event.validation_accuracy:.1f}%"
    return (
        f"seed {seed}, task {event.task + 1}/{tasks}, {event.phase} {event.epoch}/"
        f"{event.epochs}, loss {event.loss:.3f}{accuracy}"
    )


def clock(seconds: float) -> str:
    """A duration as minutes and seconds, with hours where there are.

    Example:
      >>> clock(75), clock(3725)
      ('1:15', '1:02:05')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
