r"""What others chose, made fit to be shown: names on a terminal, in a shell, in Markdown, in a spreadsheet; arrays.

A name of a folder or a method may hold anything: control characters, bytes that are no UTF-8, `|`, `=1+1`. Light to
import.
"""

from __future__ import annotations

import difflib
import math
import os
import re
import shlex
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")
MARKDOWN = re.compile(r"[\\`*<>\[\]|~$&]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")


def printable(text: object) -> str:
    r"""Text with what is not printable as Python escapes it: control characters, line ends, bytes that are no UTF-8.

    Example:
      >>> from cljax.text import printable
      >>> print(printable('two\nlines, \x1b[31m and \udcff'))
      two\nlines, \x1b[31m and \udcff
    """
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in str(text)
    )


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A question of the known names that are close to an unknown one, at most three; empty where none is.

    Example:
      >>> from cljax.text import did_you_mean
      >>> did_you_mean('strenth', ['strength', 'temperature'])
      "Did you mean 'strength'? "
    """
    close = difflib.get_close_matches(name.lower(), list(known), n=3)
    return f"Did you mean {' or '.join(map(repr, close))}? " if close else ""


def shell_word(path: str | os.PathLike) -> str:
    r"""A path as one word of a shell's command; with bytes that cannot be printed in the form that bash and zsh have.

    Example:
      >>> from cljax.text import shell_word
      >>> print(shell_word('my run'), shell_word('a\n\udcff'))
      'my run' $'a\x0a\xff'
    """
    text = os.fspath(path)
    if printable(text) == text:
        return shlex.quote(text)
    plain = lambda byte: 32 <= byte < 127 and chr(byte) not in "\\'"
    return "$'" + "".join(chr(byte) if plain(byte) else f"\\x{byte:02x}" for byte in os.fsencode(text)) + "'"


def markdown(text: object) -> str:
    r"""Text that Markdown shows as it is.

    Example:
      >>> from cljax.text import markdown
      >>> print(markdown('single_task of <a|b>'))
      single_task of \<a\|b\>
    """
    return MARKDOWN.sub(r"\\\g<0>", printable(text))


def tex(text: object) -> str:
    r"""Text that LaTeX shows as it is.

    Example:
      >>> from cljax.text import tex
      >>> print(tex('50% of l2_constraint, -1.5 ±0.5'))
      50\% of l2\_constraint, $-$1.5 $\pm$0.5
    """
    signs = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$"}
    signs |= {letter: f"\\{letter}" for letter in "&%$#_{}"}
    words = "".join(signs.get(letter, letter) for letter in printable(text))
    return re.sub(r"(?<![\w-])-(?=\d)", "$-$", words)


def spreadsheet(text: str) -> str:
    """Text that a spreadsheet takes for text: an apostrophe before what it would take for a formula.

    Example:
      >>> from cljax.text import spreadsheet
      >>> spreadsheet('=1+1'), spreadsheet('lwf')
      ("'=1+1", 'lwf')
    """
    return f"'{text}" if text[:1] in tuple("=+-@\t\r\n") else text


def brief(named: type[T]) -> type[T]:
    """A NamedTuple's or a data class's decorator: printed, it is a line a field, arrays by their dtype and shape.

    Example:
      >>> import numpy as np
      >>> from typing import NamedTuple
      >>> from cljax.text import brief
      >>> @brief
      ... class Kept(NamedTuple):
      ...     name: str
      ...     mean: np.ndarray
      ...     params: dict
      >>> Kept('first', np.zeros(3), {'kernel': np.ones((4, 3)), 'bias': np.ones(3)})
      Kept(
        name: 'first'
        mean: float64[3]
        params: dict of 2 arrays, 15 numbers
      )
    """

    def written(self: Any) -> str:
        fields = self._asdict() if hasattr(self, "_asdict") else vars(self)
        lines = (f"\n  {name}: {_line(value)}" for name, value in fields.items())
        return f"{named.__name__}({''.join(lines)}\n)"

    named.__repr__ = written  # type: ignore[method-assign]
    return named


def _line(value: Any) -> str:
    """A value in a line."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{value.dtype}{list(value.shape)}"
    kind, sizes = type(value).__name__, list(_sizes(value))
    if isinstance(value, list | tuple) and value and hasattr(value[0], "_fields"):
        kind += f" of {len(value)} {type(value[0]).__name__}"
        return f"{kind}, {sum(sizes):,} numbers" if sizes else kind
    if sizes:
        return f"{kind} of {len(sizes)} array{'s'[: len(sizes) > 1]}, {sum(sizes):,} numbers"
    if hasattr(value, "_fields") or callable(value):
        return getattr(value, "__name__", kind)
    text = printable(repr(value))
    return text if len(text) <= 100 else f"{text[:97]}..."


def _sizes(value: Any) -> Iterator[int]:
    """How many numbers each array has."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        yield math.prod(value.shape)
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _sizes(item)
