"""From the arguments of the command to its options, with those of an earlier run that they stand on."""

from __future__ import annotations

import os
from collections.abc import Sequence

import tyro

from cljax.cli.options import COMMAND, COMMANDS, Command, Compare, Options, Run, Sweep, UsageError
from cljax.cli.parameters import unknown
from cljax.cli.typed import check_once

DESCRIPTION = (
    "Continual learning as pure JAX functions: compare methods, or run one with everything settable. "
    "Start with `cljax compare`; each command has its own --help. `cljax --version` prints the version."
)


def parse(words: Sequence[str]) -> Command:
    """The arguments, typed; with `--config` or `--from`, those of another run where they do not say otherwise.

    Raises:
      SystemExit: with 2 where they cannot be read, with 0 after `--help`.
      UsageError: the file of `--config` cannot be taken, or a list is given in parts.

    Example:
      >>> from cljax.cli.parsing import parse
      >>> parse(['run', 'finetune', '--learning-rate', '0.1']).options.training.learning_rate
      0.1
    """
    named = words[:1] if words and not words[0].startswith("-") else []
    if named and named[0] not in COMMANDS:
        raise UsageError(unknown("command", named[0], COMMANDS))
    if named == ["run"] and len(words) > 2 and not any(word.startswith("-") for word in words[1:3]):
        raise UsageError(
            f"`cljax run` does one method: {words[1]}+{words[2]} adds one to another, and `cljax compare --methods "
            f"{words[1]} {words[2]}` shows them side by side."
        )
    check_once(words)
    command: Command = tyro.cli(COMMAND, prog="cljax", description=DESCRIPTION, args=words)
    if isinstance(command, Compare | Run | Sweep) and (path := config_of(command.options)):
        from cljax.cli.repeat import words_of

        again = [words[0], *words_of(path, command, words), *words[1:]]
        command = tyro.cli(COMMAND, prog="cljax", description=DESCRIPTION, args=again)
    return command


def config_of(options: Options) -> str | None:
    """The configuration that the options stand on, if any."""
    past = options.data.past
    return options.config or (past and os.path.join(past, "config.json"))
