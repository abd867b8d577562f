"""The run that another one goes on from (`--from`): its options, what it has kept, and what must be as it was."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cljax.cli.options import Options, UsageError, seed_numbers, settle
from cljax.cli.parsing import parse
from cljax.files import expand

if TYPE_CHECKING:
    import pathlib


def added(options: Options) -> tuple[tuple[str, Options], ...]:
    """The data sets that have been added to what a run began with, its own last, each with its run's options.

    Raises:
      UsageError: the configuration of a run that is gone on from cannot be read.
    """
    data = options.data
    if data.past is None:
        return ()
    return (*added(options_of(data.past)), *((name, options) for name in data.add_task))


def root_of(options: Options) -> Options:
    """The options of the run that others have gone on from, one after the other: of this one, where it is the first.

    Raises:
      UsageError: as of `added`.
    """
    return options if options.data.past is None else root_of(settle(options_of(options.data.past)))


def options_of(folder: str) -> Options:
    """The options of a run, by its folder.

    Raises:
      UsageError: it has no configuration that can be read.
    """
    from cljax.storage.folders import CONFIG

    path = str(expand(folder) / CONFIG)
    if not os.path.exists(path):
        raise UsageError(f"There is no {path}. A run that another one goes on from must stay where it was.")
    return _parsed(path, os.stat(path).st_mtime_ns)


@functools.cache
def _parsed(path: str, changed: int) -> Options:
    """The options of a configuration that was last changed then: asked for by every seed, and slow to parse."""
    from cljax.files import read_json

    del changed
    words = ["compare", "--config", path]
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # `parse` says what is wrong
        words += ["--methods", *map(str, read_json(path)["methods"])]  # also those of a sweep
    return parse(words).options  # type: ignore[union-attr]


def kept_in(folder: str, name: str, seed: int) -> pathlib.Path:
    """Where a run has kept a learner.

    Raises:
      UsageError: nowhere.
    """
    from cljax.storage.folders import LEARNERS

    place = expand(folder) / LEARNERS / name / f"seed-{seed}"
    if not place.is_dir():
        raise UsageError(
            f"There is no learner in {place}. Run {name} there with seed {seed} and --keep-learners first."
        )
    return place


LATER = {"data_dir", "fraction", "past", "add_task", "dropout"}
"""Options of the data and the network that a run may have otherwise than the one that it goes on from."""
BUILT = ("init", "optimizer", "optimizer_state", "memory")
"""Options of the training that must be the same."""
WHETHER = ("weight_decay", "clip")
"""Options of the training of which it must be the same whether they are 0: the optimizer's state depends on it."""


def check_past(options: Options, methods: Sequence[str], *, swept: bool) -> None:
    """Checks that a run goes on with the tasks that were learned, read as they were, and with the same learner.

    Args:
      options: settled.
      methods: what is asked for.
      swept: whether numbers are varied.

    Raises:
      UsageError: an option that differs, a method that was not kept, or a sweep.
    """
    folder = options.data.past
    if folder is None:
        return
    if swept:
        raise UsageError("A sweep learns all tasks anew with each value: leave out --from and --add-task, or use run.")
    past = settle(options_of(folder))
    if past.data.normalize == "each" and len(past.data.data) > 1:
        raise UsageError(
            f"The data sets of {folder} are each standardised by its own numbers (--normalize each), and those of "
            f"later tasks have none: begin with --normalize first."
        )
    for method in methods:
        kept_in(folder, method, seed_numbers(options.training)[0])
    shown = lambda value: (" ".join(map(str, value)) if isinstance(value, tuple) else str(value or "")) or "not given"
    of = lambda name, was, now: (name, getattr(was, name), getattr(now, name))
    sections, trained = ((past.data, options.data), (past.network, options.network)), (past.training, options.training)
    pairs = [of(field.name, *pair) for pair in sections for field in dataclasses.fields(pair[0])]
    pairs = [pair for pair in pairs if pair[0] not in LATER] + [of(name, *trained) for name in BUILT]
    pairs += [(name, was, now) for name, was, now in (of(name, *trained) for name in WHETHER) if bool(was) != bool(now)]
    for name, before, given in pairs:
        if before != given:
            raise UsageError(
                f"--{name.replace('_', '-')} is {shown(given)}, but was {shown(before)} in {folder}, and says what was "
                f"learned there, or how it is computed. Leave it out with --from."
            )
