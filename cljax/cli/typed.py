"""The options that a command's own words have, before those of a configuration are put to them."""

from __future__ import annotations

import typing
from collections.abc import Sequence
from typing import Any

from cljax.cli.options import Compare, Data, Network, Options, Run, Sweep, Training, UsageError

ADDED_UP = ("methods", "vs", "set", "data", "add_task")
"""Lists of which a second one would be expected to add to the first; it takes its place."""


def aliases() -> dict[str, str]:
    """`{other name: option}` of the options that have several, as they are typed.

    Example:
      >>> aliases()["--lr"]
      '--learning-rate'
    """
    hints = [typing.get_type_hints(group, include_extras=True) for group in (Data, Network, Training)]
    kinds: dict[str, Any] = {name: kind for found in hints for name, kind in found.items()}
    notes = {name: getattr(kind, "__metadata__", ()) for name, kind in kinds.items()}
    return {
        other: f"--{name.replace('_', '-')}"
        for name, found in notes.items()
        for note in found
        for other in note.aliases or ()
    }


def typed(words: Sequence[str]) -> list[str]:
    """The options that are typed, in order, by their names in Python.

    Example:
      >>> typed(['run', 'lwf', '--lr', '0.1', '--no-cosine', '--batch_size=8', '--set', 'strength=1'])
      ['learning_rate', 'cosine', 'batch_size', 'set']
    """
    known = aliases()
    options = [word.partition("=")[0].replace("_", "-") for word in words if word.startswith("--")]
    return [known.get(word, word).removeprefix("--").removeprefix("no-").replace("-", "_") for word in options]


def check_once(words: Sequence[str]) -> None:
    """Raises: UsageError, for a list that is given in two parts, of which the second would take the first's place."""
    names = typed(words)
    for name in ADDED_UP:
        if names.count(name) > 1:
            option = f"--{name.replace('_', '-')}"
            raise UsageError(f"{option} is given {names.count(name)} times: give all at once, {option} ONE OTHER.")


def idle(command: Compare | Run | Sweep, words: Sequence[str]) -> list[str]:
    """What to say of options that are typed and change nothing beside the others.

    Example:
      >>> from cljax.cli import parse
      >>> words = ['run', 'lwf', '--patience-factor', '2']
      >>> idle(parse(words), words)
      ['--patience-factor changes nothing without --patience.']
    """
    options: Options = command.options
    alone = isinstance(command, Sweep) and not command.vs and "+" not in str(command.method)
    swept = {command.parameter, f"{command.method}.{command.parameter}"} if isinstance(command, Sweep) and alone else ()
    without = [(f"patience_{name}", "without --patience") for name in ("factor", "minimum_learning_rate", "restore")]
    reasons = [
        *(without if not options.training.patience else ()),
        *([("learning_rate", "with --tune, which chooses it")] if options.training.tune is not None else []),
        *([("learning_rate", "where it is swept")] if "learning_rate" in swept else []),
        *([("first_epochs", "with --from: the first task is learned")] if options.data.past is not None else []),
    ]
    names = set(typed(words))
    given = [one for one in options.training.set if "set" in names and one.partition("=")[0] in swept]
    told = [(f"--{name.replace('_', '-')}", why) for name, why in reasons if name in names]
    told += [(f"--set {one}", "where it is swept") for one in given]
    return [f"{option} changes nothing {why}." for option, why in told]
