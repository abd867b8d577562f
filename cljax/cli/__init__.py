"""The `cljax` command.

Everything heavy is imported where it is used, so that `--help` answers at once.
"""

from __future__ import annotations

import ast
import contextlib
import inspect
import textwrap
from collections.abc import Callable, Sequence
from typing import cast

import tyro
from rich.console import Console

from cljax.cli.options import (
    Command,
    Compare,
    DataSets,
    Methods,
    PrepareData,
    Report,
    Run,
    RunError,
    Sweep,
    UsageError,
)
from cljax.cli.printing import Closed, any_terminal, errors_console, show, standard_output, styled

__all__ = ["main"]

DESCRIPTION = (
    "Continual learning as pure JAX functions: compare methods, or run one with everything settable. "
    "Start with `cljax compare`; each command has its own --help."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: reads the arguments (those of the process where None) and does what they say.

    Returns:
      The exit code: 0; 2 where something asked for cannot be; 1 where a learner diverged, or a run cannot go on since
      all did or an example cannot be read; 130 on Ctrl-C.
    """
    from cljax.storage.folders import FolderError

    errors = errors_console()
    with any_terminal():
        try:
            with standard_output():
                command = parse(arguments)
            return execute(command, errors)
        except (UsageError, FolderError) as error:
            return complain(errors, error, 2)
        except RunError as error:
            return complain(errors, error, 1)
        except Closed:
            return 0
        except KeyboardInterrupt as stop:
            return complain(errors, " ".join(["Stopped.", *map(str, stop.args)]), 130)


def execute(command: Compare | Run | Sweep | Report | Methods | DataSets, errors: Console) -> int:
    """Does what a command says; returns the exit code.

    Raises:
      UsageError, FolderError, RunError: as of `main`.
    """
    if isinstance(command, Methods):
        return list_methods()
    if isinstance(command, DataSets):
        return prepare_data(command.action, command.data_dir) if command.action else list_data(command.data_dir)
    if isinstance(command, Report):
        return make_report(command.folders, command.out)
    if isinstance(command, Sweep):
        from cljax.cli.sweep import sweep

        return sweep(command, errors)
    from cljax.cli.running import compare

    if isinstance(command, Compare):
        return compare(command.methods, command.options, errors)
    if command.name and command.method:
        raise UsageError(f"Two methods are named, {command.name!r} and {command.method!r}; `run` does one.")
    name = command.name or command.method
    if not name:
        raise UsageError("Which method? For example: cljax run finetune. `cljax methods` lists them.")
    return compare((name,), command.options, errors)


def parse(arguments: Sequence[str] | None = None) -> Compare | Run | Sweep | Report | Methods | DataSets:
    """The arguments, typed.

    Raises:
      SystemExit: with 2 where they cannot be read, with 0 after `--help`.

    Example:
      >>> parse(['run', 'finetune', '--learning-rate', '0.1']).options.training.learning_rate
      0.1
    """
    return tyro.cli(Command, prog="cljax", description=DESCRIPTION, args=arguments)


def make_report(folders: tuple[str, ...], out: str | None) -> int:
    """Writes the report and prints where its page is."""
    from cljax import report

    if not folders:
        raise UsageError("Of which run? Name its folder: cljax report runs/digits-task-20260101-120000.")
    try:
        place = report.write(folders, out)
    except ValueError as error:
        raise UsageError(str(error)) from error
    show(f"Report: {place}")
    return 0


def list_methods() -> int:
    """Prints a line for each method: the first of its docstring."""
    from cljax.cli.setup import constructors

    known = constructors()
    width = max(map(len, known))
    show(*(f"{name:{width}}  {docstring(method).partition(chr(10))[0]}" for name, method in known.items()))
    return 0


def docstring(function: Callable) -> str:
    """A function's docstring; where Python drops them (`-OO`), as its source has it."""
    if function.__doc__:
        return function.__doc__
    with contextlib.suppress(OSError):  # there is no source either
        defined = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
        return ast.get_docstring(cast(ast.FunctionDef, defined)) or ""
    return ""


def list_data(data_dir: str | None) -> int:
    """Prints a line for each data set: name, whether it is prepared, description."""
    from cljax import data

    found = data.available(data_dir)
    width = max(len(name) for name, _, _ in found)
    show(*(f"{name:{width}}  {'ready' if prepared else '-':5}  {text}" for name, text, prepared in found))
    return 0


def prepare_data(asked: PrepareData, data_dir: str | None) -> int:
    """Prepares a data set and prints its folder; `--data-dir` may also stand before `prepare`."""
    from cljax import data

    try:
        place = data.prepare(asked.name, asked.data_dir or data_dir, archives=asked.archives, verify=asked.verify)
    except (ValueError, OSError) as error:
        raise UsageError(str(error)) from error
    show(str(place))
    return 0


def complain(console: Console, error: object, code: int) -> int:
    """Prints an error as one paragraph; returns the exit code."""
    console.print(styled("bold red", "cljax:", f" {' '.join(str(error).splitlines())}"))
    return code
