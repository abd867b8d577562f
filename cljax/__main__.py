"""The process of the `cljax` command, also as `python -m cljax`: Ctrl-C ends it quietly from its first moment."""

from __future__ import annotations

import sys


def main() -> int:
    """Runs the command with the process's arguments; returns its exit code."""
    try:
        from cljax.cli import main as command

        return command()
    except KeyboardInterrupt:  # while modules were loaded, or an error was printed
        print("cljax: Stopped.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
