"""Keeps a group's checkpoints: when it saves, and how a group is taken up."""

from __future__ import annotations

import hashlib
import json
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cljax import checkpoints, folders
from cljax.training.group import Group, Plan, Position, Work
from cljax.types import Tables

FIRST_COST = 0.1
"""Seconds that the first checkpoint is taken to cost."""


class Keeper:
    """Saves a group as it goes on, and takes up what an earlier process has saved."""

    def __init__(self, saving: checkpoints.Saving, plan: Plan, group: Group, number: int) -> None:
        self._saving, self._group, self._name = saving, group, plan.method.name
        self._folder = pathlib.Path(saving.folder) / f"group-{number}"
        self._identity = _identity(plan, group)
        self._saved_at, self._cost = 0.0, FIRST_COST

    def take_up(self) -> tuple[Position, Work] | None:
        """The last good checkpoint of this very run; None where there is none. Says what is not as expected."""

        def like(notes: dict[str, Any]) -> Work:
            if found := folders.differences(notes.get("run", {}), self._identity):
                raise ValueError(f"it is of another run, which differs in {', '.join(found)}.")
            return self._group.like(Position(*notes["at"]), notes["partial"])

        start = time.perf_counter()
        found = checkpoints.restore(self._folder, like)
        self._group.leave_out(time.perf_counter() - start)
        if found.message:
            self._saving.say(found.message)
        if found.tree is None:
            return None
        at, work = Position(*found.notes["at"]), found.tree
        if work.partial is not None:
            work = work._replace(partial=jax.tree.map(lambda leaf: leaf[()], work.partial))
        self._saved_at = float(work.results.seconds)
        if at.round < self._group.rounds:
            phase = "" if at.phase < 0 else f", after epoch {at.epoch} of phase {at.phase + 1}"
            place = f"round {at.round + 1} of {self._group.rounds}{phase}"
            self._saving.say(f"Taking up {self._name}, seed {self._group.members[0]}, in {place}.")
        return at, work

    def offer(self, at: Position, work: Work) -> None:
        """Saves if it is time to."""
        self._group.tick(work)
        waited = float(work.results.seconds) - self._saved_at
        if not self._saving.due(ended=at.phase < 0, waited=waited, cost=self._cost):
            return
        jax.block_until_ready((work.learner, work.state))
        self._group.tick(work)
        start = time.perf_counter()
        partial = work.partial and [list(np.shape(leaf)) for leaf in work.partial]
        checkpoints.save(self._folder, work, {"run": self._identity, "at": list(at), "partial": partial})
        self._saved_at, self._cost = float(work.results.seconds), time.perf_counter() - start
        self._group.leave_out(self._cost)


def _identity(plan: Plan, group: Group) -> dict[str, Any]:
    """What tells a run from others, as JSON has it: a checkpoint of another one is not taken up."""
    settings = {name: value for name, value in plan.settings._asdict().items() if not callable(value)}
    return json.loads(
        json.dumps(
            {
                "method": plan.method.name,
                "streamed": getattr(plan.programs["epoch"], "streams", False),
                "seeds": group.members,
                "data": _digest(group.tables),
                "settings": settings,
                "schedule": {name: np.asarray(value).tolist() for name, value in plan.schedule._asdict().items()},
                "hyper": {name: jnp.ravel(value).tolist() for name, value in group.hyper.items()},
            },
            default=str,
        )
    )


def _digest(tables: Tables) -> str:
    """Tells apart data of other sizes, labels, divisions among tasks, permutations; not other images of one shape."""
    digest = hashlib.sha256(repr((tables.examples.shape, str(tables.examples.dtype))).encode())
    for leaf in jax.tree.leaves(tables._replace(examples=None)):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()[:16]
