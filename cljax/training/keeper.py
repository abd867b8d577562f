"""Keeps a group's checkpoints: when it saves, and how a group is taken up."""

from __future__ import annotations

import functools
import json
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cljax import checkpoints, folders
from cljax.checkpoints import CheckpointError
from cljax.training import identity
from cljax.training.group import Group, Plan, Position, Work

FIRST_COST = 0.1
"""Seconds that the first checkpoint is taken to cost."""

WORDS = {
    "computation": "what is computed (method, network, optimizer, augmentation)",
    "examples": "the examples",
    "division": "the division of the data",
}
"""What the digests of an identity stand for."""


class Keeper:
    """Saves a group as it goes on, and takes up what an earlier process has saved."""

    def __init__(self, saving: checkpoints.Saving, plan: Plan, group: Group, number: int) -> None:
        self._saving, self._plan, self._group, self._name = saving, plan, group, plan.method.name
        self._folder = pathlib.Path(saving.folder) / f"group-{number}"
        self._saved_at, self._cost = 0.0, FIRST_COST

    @functools.cached_property
    def _identity(self) -> dict[str, Any]:
        return identity_of(self._plan, self._group)

    def take_up(self) -> tuple[Position, Work] | None:
        """The last good checkpoint of this very run; None where none was ever saved. Says what is not as expected.

        Raises:
          CheckpointError: there are checkpoints, but none that can be taken up. OSError: they cannot be read now.
        """

        def like(notes: dict[str, Any]) -> Work:
            if found := _differences(notes.get("run"), self._identity):
                raise ValueError(f"it is of another run, which differs in {', '.join(found)}.")
            return self._group.like(*_place(notes))

        start = time.perf_counter()
        found = checkpoints.restore(self._folder, like)
        self._group.leave_out(time.perf_counter() - start)
        if found.tree is None and found.message:
            raise CheckpointError(f"{found.message} To begin anew, remove or rename {self._folder}.")
        if found.message:
            self._saving.say(found.message)
        if found.tree is None:
            return None
        (at, _), work = _place(found.notes), found.tree
        if work.partial is not None:
            work = work._replace(partial=jax.tree.map(lambda leaf: leaf[()], work.partial))
        self._saved_at = float(work.results.seconds)
        if at.round < self._group.rounds:
            phase = "" if at.phase < 0 else f", after epoch {at.epoch} of phase {at.phase + 1}"
            place = f"round {at.round + 1} of {self._group.rounds}{phase}"
            self._saving.say(f"Taking up {self._name}, seed {self._group.members[0]}, in {place}.")
        return at, work

    def offer(self, at: Position, work: Work) -> None:
        """Saves if it is time to.

        Raises:
          OSError: it cannot be saved.
        """
        self._group.tick(work)
        waited = float(work.results.seconds) - self._saved_at
        if not self._saving.due(ended=at.phase < 0, waited=waited, cost=self._cost):
            return
        jax.block_until_ready((work.learner, work.state))
        self._group.tick(work)
        begun = time.perf_counter()
        notes = {"run": self._identity, "at": list(at), "partial": work.partial is not None}
        start = time.perf_counter()
        checkpoints.save(self._folder, work, notes)
        self._saved_at, self._cost = float(work.results.seconds), time.perf_counter() - start
        self._group.leave_out(time.perf_counter() - begun)


def identity_of(plan: Plan, group: Group) -> dict[str, Any]:
    """What tells a group's run from others, as JSON has it: a checkpoint of another one is not taken up."""
    settings = {name: value for name, value in plan.settings._asdict().items() if not callable(value)}
    return json.loads(
        json.dumps(
            {
                "method": plan.method.name,
                "streamed": getattr(plan.programs["epoch"], "streams", False),
                "seeds": group.members,
                "division": identity.division(group.tables),
                "settings": settings,
                "schedule": {name: np.asarray(value).tolist() for name, value in plan.schedule._asdict().items()},
                "hyper": {name: jnp.ravel(value).tolist() for name, value in group.hyper.items()},
                **plan.facts(),
            },
            default=str,
        )
    )


def _differences(there: Any, here: dict[str, Any]) -> list[str]:
    """What two runs differ in, a digest in words."""
    there = there if isinstance(there, dict) else {}
    digests = [words for name, words in WORDS.items() if there.get(name) != here[name]]
    old, new = ({name: value for name, value in run.items() if name not in WORDS} for run in (there, here))
    return [*folders.differences(old, new), *digests]


def _place(notes: dict[str, Any]) -> tuple[Position, bool]:
    """Where a checkpoint stands, and whether within a streamed epoch."""
    at, partial = notes.get("at"), notes.get("partial")
    if not (isinstance(at, list) and len(at) == len(Position._fields) and all(type(number) is int for number in at)):
        raise ValueError("it does not say where the run stands.")
    if not isinstance(partial, bool):
        raise ValueError("it does not say whether it stands within an epoch.")
    return Position(*at), partial
