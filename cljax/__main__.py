"""The process of the `cljax` command, also as `python -m cljax`: Ctrl-C ends it quietly from its first moment."""

from __future__ import annotations

import os
import sys


def main() -> int:
    """Runs the command with the process's arguments; returns its exit code."""
    fill_standard_streams()
    try:
        from cljax.cli import main as command

        return command()
    except KeyboardInterrupt:  # while modules were loaded, or an error was printed
        print("cljax: Stopped.", file=sys.stderr)
        return 130


def fill_standard_streams() -> None:
    """Lets the standard streams that the process was started without go nowhere.

    Otherwise the next files opened would get their numbers, and what libraries write to standard error.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # it gets the lowest number that is free
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))


if __name__ == "__main__":
    sys.exit(main())
