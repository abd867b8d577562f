"""Progress on stderr: a bar on a terminal, a line a task elsewhere, or nothing."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from cljax.cli.printing import styled

if TYPE_CHECKING:
    from cljax.training.outcome import Event, Results

SECONDS_OF_SILENCE = 600.0
"""After which a task that takes long gives a sign of life where there is no terminal."""


class Reporter:
    """Shows where a comparison stands: method, seed, task, phase, epoch, loss, validation accuracy, time left.

    A context manager; `method` at the begin of each method, `event` after each epoch, `visited` after each visit.

    Args:
      console: where to.
      methods: how many there are.
      rounds: the task of each, from 0.
      quiet: show nothing.
    """

    def __init__(self, console: Console, methods: int, rounds: Sequence[int], *, quiet: bool = False) -> None:
        self._console, self._methods, self._rounds = console, methods, rounds
        self._tasks = max(rounds) + 1
        self._live = not quiet and console.is_terminal
        self._plain = not quiet and not console.is_terminal
        self._number, self._last, self._name, self._left = -1, time.monotonic(), "", ""
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
        self._number, self._name, self._left = self._number + 1, name, ""
        self._estimate.begin(time.monotonic())
        self._progress.update(self._bar, method=name, description="compiling")
        if self._plain:
            self._console.print(styled("", name, f" ({self._number + 1} of {self._methods})"))

    def event(self, event: Event) -> None:
        """Says how far a method is."""
        part = min(1.0, event.done / event.total)
        done = (self._number + part) / self._methods
        seconds = self._estimate.left(time.monotonic(), part, self._methods - self._number - 1)
        self._left = "" if seconds is None else f"{clock(seconds)} left"
        text = describe(event, self._tasks)
        self._progress.update(self._bar, completed=done, method=event.method, description=text, left=self._left)
        if time.monotonic() - self._last > SECONDS_OF_SILENCE:
            self._line(text)

    def visited(self, seeds: Sequence[int], number: int, results: Results) -> None:
        """Says how a visit has ended; as of `training.drive`."""
        accuracy = results.evaluation.accuracy[:, number, : max(self._rounds[: number + 1]) + 1]
        self._line(ended(seeds, number, self._rounds, float(np.mean(accuracy))))

    def _line(self, text: str) -> None:
        if self._plain:
            self._last = time.monotonic()
            line = ", ".join(filter(None, [f"{self._name} {text}", self._left]))
            self._console.print(Text(line), soft_wrap=True)


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
    accuracy = "" if math.isnan(event.validation_accuracy) else f", validation {100 * event.validation_accuracy:.1f}%"
    return (
        f"{called(event.seed, event.seeds)}, task {event.task + 1}/{tasks}, {event.phase} {event.epoch}/"
        f"{event.epochs}, loss {event.loss:.3f}{accuracy}"
    )


def ended(seeds: Sequence[int], number: int, rounds: Sequence[int], accuracy: float) -> str:
    """A line about a visit that has ended, without its method.

    Example:
      >>> ended([3], 1, [0, 1, 0], 0.875), ended([0, 1], 0, [0, 1], math.nan)
      ('seed 3, visit 2/3, task 2/2: 87.5% on the tasks so far', 'seed 0 and 1 more, task 1/2: done')
    """
    tasks = max(rounds) + 1
    visit = f"visit {number + 1}/{len(rounds)}, " if len(rounds) > tasks else ""
    found = "done" if math.isnan(accuracy) else f"{100 * accuracy:.1f}% on the tasks so far"
    return f"{called(seeds[0], len(seeds))}, {visit}task {rounds[number] + 1}/{tasks}: {found}"


def called(seed: int, seeds: int) -> str:
    """What seeds that run side by side are called, by the first."""
    return f"seed {seed}" if seeds == 1 else f"seed {seed} and {seeds - 1} more"


def clock(seconds: float) -> str:
    """A duration as minutes and seconds, with hours where there are.

    Example:
      >>> clock(75), clock(3725)
      ('1:15', '1:02:05')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
