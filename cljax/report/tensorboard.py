"""TensorBoard's event files of a run, written as it goes, without TensorFlow: `tensorboard --logdir FOLDER`."""

from __future__ import annotations

import importlib.util
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from cljax.training.outcome import Results
from cljax.training.plan import epoch_table
from cljax.types import Method, Schedule

PACKAGES = {"tensorboard": ("tensorboardX", "'cljax[tensorboard]'"), "wandb": ("wandb", "wandb")}
"""What an option needs, and how it is installed."""


def check(option: str) -> None:
    """Says what an option lacks.

    Raises:
      ValueError: its package is not installed.
    """
    package, source = PACKAGES[option]
    if importlib.util.find_spec(package) is None:
        raise ValueError(
            f"--{option} needs the package {package}, which is not installed. Install it with pip install {source}, or "
            f"leave --{option} out."
        )


class Sink:
    """Writes each visit of a method's run when it has ended; a context manager.

    A seed's values are in `FOLDER/METHOD/seed-N`, over the planned epochs of the whole stream, from 1: `epoch/loss`,
    `epoch/validation_loss`, `epoch/validation_accuracy`; and after each visit `accuracy/task-N` (tasks from 1) and
    `accuracy/tasks-so-far`, their mean. Accuracies are fractions. A run that is taken up writes on.

    Args:
      folder: where to.
      method: the method.
      schedule: the stream's.
    """

    option = "tensorboard"

    def __init__(self, folder: str | os.PathLike, method: Method, schedule: Schedule) -> None:
        check(self.option)
        self._folder, self._method, self._schedule = pathlib.Path(folder), method.name, schedule
        self._counts = np.maximum(epoch_table(method, schedule), 0)
        self._writers: dict[int, Any] = {}

    def __enter__(self) -> Sink:
        """Nothing is open yet."""
        return self

    def __exit__(self, *error: object) -> None:
        """Closes the files."""
        for writer in self._writers.values():
            writer.close()

    def visited(self, seeds: Sequence[int], number: int, results: Results) -> None:
        """Writes a visit.

        Args:
          seeds: those that run side by side.
          number: of the round, from 0.
          results: of these seeds, the round's being final.
        """
        for member, seed in enumerate(seeds):
            writer, before = self._writer(seed), int(self._counts[:number].sum())
            for phase, count in enumerate(self._counts[number]):
                for name, values in results.epochs._asdict().items():
                    for epoch in np.flatnonzero(np.isfinite(values[member, number, phase])):
                        value = float(values[member, number, phase, epoch])
                        writer.add_scalar(f"epoch/{name}", value, before + int(epoch) + 1)
                before += int(count)
            accuracy = results.evaluation.accuracy[member, number]
            seen = int(np.max(self._schedule.task[: number + 1])) + 1
            if np.isfinite(accuracy).all():
                for task, value in enumerate(accuracy):
                    writer.add_scalar(f"accuracy/task-{task + 1}", float(value), before)
                writer.add_scalar("accuracy/tasks-so-far", float(accuracy[:seen].mean()), before)
            writer.flush()

    def _writer(self, seed: int) -> Any:
        if seed not in self._writers:
            self._writers[seed] = self._open(seed)
        return self._writers[seed]

    def _open(self, seed: int) -> Any:
        from tensorboardX import SummaryWriter

        return SummaryWriter(str(self._folder / self._method / f"seed-{seed}"))
