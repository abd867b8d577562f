"""The `cljax` command.

Everything heavy is imported where it is used, so that `--help` answers at once.
"""

from __future__ import annotations

import shlex
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console

import cljax
from cljax.cli.options import (
    Compare,
    DataSets,
    Predict,
    PrepareData,
    Report,
    Run,
    RunError,
    Sweep,
    UsageError,
)
from cljax.cli.parameters import as_options, docstring
from cljax.cli.parsing import parse
from cljax.cli.printing import Closed, any_terminal, errors_console, show, standard_output, styled

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: reads the arguments (those of the process where None) and does what they say.

    Returns:
      The exit code: 0; 2 where something asked for cannot be; 1 where a learner diverged, or a run cannot go on since
      all did or an example cannot be read; 130 on Ctrl-C.
    """
    from cljax.storage.folders import FolderError

    words = sys.argv[1:] if arguments is None else list(arguments)
    errors = errors_console()
    with any_terminal():
        try:
            if words[:1] == ["--version"]:
                show(f"cljax {cljax.__version__}")
                return 0
            with standard_output():
                command = parse(words)
            if isinstance(command, Compare | Run | Sweep):
                from cljax.cli.compare import compare

                return compare(command, errors, shlex.join(["cljax", *words]))
            if isinstance(command, Predict):
                from cljax.cli.predict import predict
                from cljax.cli.process import set_up

                set_up(cache=True)
                return predict(command)
            if isinstance(command, Report):
                return make_report(command.folders, command.out)
            if isinstance(command, DataSets):
                asked = command.action
                return prepare_data(asked, command.data_dir) if asked else list_data(command.data_dir)
            return list_methods() if command.name is None else describe_method(command.name)
        except (UsageError, FolderError) as error:
            return complain(errors, as_options(str(error), words), 2)
        except RunError as error:
            return complain(errors, error, 1)
        except Closed:
            return 0
        except KeyboardInterrupt as stop:
            return complain(errors, " ".join(["Stopped.", *map(str, stop.args)]), 130)


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
    from cljax.cli.asked import constructors

    known = constructors()
    width = max(map(len, known))
    show(*(f"{name:{width}}  {docstring(method).partition(chr(10))[0]}" for name, method in known.items()))
    return 0


def describe_method(name: str) -> int:
    """Prints what a method does and its parameters, as `--set` takes them: kind and range, default, meaning.

    Of a combination, or one's own `module:function`, likewise, part by part.
    """
    from cljax.cli.asked import curves_of
    from cljax.methods.build import makers

    curves_of(Run(name))  # complains of what is none
    for number, (word, make) in enumerate(makers(name).items()):
        show(*[""] * (number > 0), *_described(word, make))
    return 0


def _described(name: str, make: Callable[..., Any]) -> list[str]:
    from cljax.cli.parameters import described

    text, found = docstring(make), described(make)
    wrapped = lambda words, indent: textwrap.wrap(words, 80, initial_indent=indent, subsequent_indent=indent)
    lines = wrapped(f"{name}: {text.partition(chr(10))[0]}", "")
    for one in found:
        lines += ["", *wrapped(f"{one.name}: {one.values}, {one.default} by default", "  ")]
        lines += wrapped(one.meaning, " " * 6)
    lines += ["", f"Set them with --set {name}.NAME=VALUE." if found else "It has no parameters."]
    if source := text.partition("Reference: ")[2].partition("\n\n")[0]:
        lines += ["", *wrapped(f"Reference: {' '.join(source.split())}", "")]
    return lines


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
