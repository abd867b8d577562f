"""Keeps a run's checkpoints: when it saves, and how a run is taken up."""

from __future__ import annotations

import functools
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

from cljax.numbers import real, whole
from cljax.storage import checkpoints, folders
from cljax.storage.checkpoints import CheckpointError
from cljax.training import mesh
from cljax.training.loop import Run
from cljax.training.programs import Watch

FIRST_COST = 0.1
"""Seconds that the first checkpoint is taken to cost."""

WORDS = {
    "computation": "what is computed (method, network, optimizer, augmentation)",
    "examples": "the examples",
    "division": "the division of the data",
}
"""What the digests of an identity stand for."""


class Checkpoints:
    """Saves a run as it goes on, and takes up what an earlier process has saved.

    Args:
      saving: where and how often.
      number: of the seeds that run together, from 0.
      identify: what tells the run from others, as JSON has it.
      shares: among how many devices seeds and batches are shared, and the machine, as JSON has it. Fingerprints of bits
        can be compared among equal ones only.

    Attributes:
      say: called with a line.
      shares: as given.
      compared: those of which the run's fingerprints are.
    """

    def __init__(
        self,
        saving: checkpoints.Saving,
        number: int,
        identify: Callable[[], dict[str, Any]],
        shares: Sequence[int] = (1, 1),
    ) -> None:
        self.shares = self.compared = list(shares)
        self._saving, self._identify = saving, identify
        self.say = saving.say if jax.process_index() == 0 else lambda line: None
        self._folder = group_folder(saving, number)
        self._saved_at, self._cost = 0.0, FIRST_COST

    @functools.cached_property
    def _identity(self) -> dict[str, Any]:
        return self._identify()

    def take_up(self, like: Run, watch: Watch, places: int) -> tuple[int, Run] | None:
        """The last good checkpoint of this very run; None where none was ever saved. Says what is not as expected.

        Args:
          like: the run's structure, shapes and dtypes.
          watch: is set to the seconds of the checkpoint.
          places: the number of places in the agenda.

        Raises:
          CheckpointError: there are checkpoints, but none that can be taken up. OSError: they cannot be read now.
        """

        def check(notes: dict[str, Any]) -> Run:
            if found := _differences(notes.get("run"), self._identity):
                raise ValueError(f"it is of another run, which differs in {', '.join(found)}.")
            whole("its place", notes.get("place"), most=places - 1)
            real("its seconds", notes.get("seconds"), least=0)
            return like

        spent = watch.tick()
        found = checkpoints.restore(self._folder, check)
        watch.begin(spent)
        if found.tree is None and found.message:
            raise CheckpointError(f"{found.message} To begin anew, remove or rename {self._folder}.")
        if found.message:
            self.say(found.message)
        if found.tree is None:
            return None
        self.compared = found.notes.get("devices", [1, 1])
        place, self._saved_at = found.notes["place"], found.notes["seconds"]
        watch.begin(self._saved_at)
        return place, found.tree

    def offer(self, place: int, run: Run, watch: Watch, *, ended: bool) -> None:
        """Saves if it is time to.

        Args:
          place: in the agenda.
          run: at that place.
          watch: of the run; the seconds that saving takes do not count.
          ended: whether a visit has just ended.

        Raises:
          OSError: it cannot be saved.
        """
        due = self._saving.due(ended=ended, waited=watch.tick() - self._saved_at, cost=self._cost)
        if not mesh.agreed(due, run):
            return
        jax.block_until_ready(run)
        self._saved_at, start = watch.tick(), time.perf_counter()
        notes = {"run": self._identity, "place": place, "seconds": self._saved_at, "devices": self.compared}
        checkpoints.save(self._folder, run, notes)
        self._cost = time.perf_counter() - start
        watch.begin(self._saved_at)


def seeds_together(saving: checkpoints.Saving) -> int | None:
    """How many seeds go side by side in the run whose checkpoints are there; None where there are none."""
    run = checkpoints.notes(group_folder(saving, 0)).get("run")
    seeds = run.get("seeds") if isinstance(run, dict) else None
    return len(seeds) if isinstance(seeds, list) else None


def group_folder(saving: checkpoints.Saving, number: int) -> pathlib.Path:
    """The folder of the checkpoints of some seeds that run together."""
    return pathlib.Path(saving.folder) / f"group-{number}"


def _differences(there: Any, here: dict[str, Any]) -> list[str]:
    """What two runs differ in, a digest in words."""
    there = there if isinstance(there, dict) else {}
    digests = [words for name, words in WORDS.items() if there.get(name) != here[name]]
    old, new = ({name: value for name, value in run.items() if name not in WORDS} for run in (there, here))
    return [*folders.differences(old, new), *digests]
