"""What the command prints: names as they are, on any terminal; and an output that cannot be written."""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import shutil
import sys
from collections.abc import Iterator
from typing import IO, Any, cast

from rich.console import Console
from rich.text import Text

from cljax.cli.options import RunError
from cljax.text import printable

PLAIN = {"±": "+-", "…": "...", "–": "-", "’": "'", "×": "x", "→": "->"} | dict.fromkeys("─━╸╺╴╶", "-")
"""For terminals that have ASCII only."""
NARROWEST = 20
"""Columns that are laid out for, at least: in one or two the help would never end."""


class Closed(Exception):
    """Nobody reads the standard output any more, as in `cljax methods | head -1`."""


def errors_console() -> Console:
    """A console on standard error, which takes names for no markup; what cannot be written there is dropped."""
    return Console(file=cast(IO[str], Forgiving()), markup=False, emoji=False, highlight=False)


def show(*what: Any, width: int | None = None) -> None:
    """Prints to the standard output: renderables of rich, or text, each in lines of its own.

    Raises:
      Closed: nobody reads it. RunError: it cannot be written.
    """
    with standard_output():
        console = Output(width=width, markup=False, emoji=False, highlight=False)
        for one in what:
            console.print(Text(printable(one)) if isinstance(one, str) else one, soft_wrap=isinstance(one, str))


def styled(style: str, text: object, rest: object = "") -> Text:
    """Text whose beginning has a style."""
    return Text.assemble((printable(text), style), printable(rest))


@contextlib.contextmanager
def standard_output() -> Iterator[None]:
    """For what writes to the standard output and to nothing else.

    Raises:
      Closed: nobody reads it. RunError: it cannot be written.
    """
    try:
        try:
            yield
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except OSError as error:
        _discard(sys.stdout)
        if isinstance(error, BrokenPipeError):
            raise Closed from None
        raise RunError(f"The standard output cannot be written ({error.strerror}).") from None


@contextlib.contextmanager
def any_terminal() -> Iterator[None]:
    """Within, the standard streams take any text, what their encoding has not being ASCII, and have some columns."""
    codecs.register_error("cljax", _in_ascii)
    streams = [stream for stream in (sys.stdout, sys.stderr) if isinstance(stream, io.TextIOWrapper)]
    before = [stream.errors for stream in streams]
    for stream in streams:
        stream.reconfigure(errors="cljax")
    columns = os.environ.get("COLUMNS")
    if narrow := shutil.get_terminal_size().columns < NARROWEST:
        os.environ["COLUMNS"] = str(NARROWEST)
    try:
        yield
    finally:
        if narrow:
            del os.environ["COLUMNS"]
            os.environ.update({} if columns is None else {"COLUMNS": columns})
        for stream, errors in zip(streams, before, strict=True):
            with contextlib.suppress(OSError, ValueError):
                stream.reconfigure(errors=errors)


class Output(Console):
    """A console that says by an error that its output is closed."""

    def on_broken_pipe(self) -> None:
        """Raises, where rich ends the process."""
        raise BrokenPipeError


class Forgiving:
    """Standard error as a file on which no run depends: once it cannot be written, it is dropped."""

    @property
    def encoding(self) -> str:
        """Of standard error."""
        return getattr(self._stream(), "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        """Writes text, or drops it."""
        self._try("write", text)
        return len(text)

    def flush(self) -> None:
        """Flushes."""
        self._try("flush")

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return bool(self._try("isatty"))

    def fileno(self) -> int:
        """Of standard error."""
        if (stream := self._stream()) is None:
            raise io.UnsupportedOperation("fileno")
        return stream.fileno()

    def _try(self, name: str, *arguments: Any) -> Any:
        stream = self._stream()
        try:
            return stream and getattr(stream, name)(*arguments)
        except (OSError, ValueError):
            _discard(stream)
            return None

    @staticmethod
    def _stream() -> Any:
        return getattr(sys.stderr, "rich_proxied_file", sys.stderr)


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = error.object[error.start : error.end]
    return "".join(PLAIN.get(letter) or ascii(letter)[1:-1] for letter in letters), error.end


def _discard(stream: Any) -> None:
    """Lets a stream that cannot be written go nowhere, so that Python's own end does not stumble over it."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
