r"""Names that others chose, made fit to be shown: on a terminal, in a shell, in Markdown, in a spreadsheet.

A name of a folder or a method may hold anything: control characters, bytes that are no UTF-8, `|`, `=1+1`. Light to
import.
"""

from __future__ import annotations

import os
import re
import shlex

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


def spreadsheet(text: str) -> str:
    """Text that a spreadsheet takes for text: an apostrophe before what it would take for a formula.

    Example:
      >>> from cljax.text import spreadsheet
      >>> spreadsheet('=1+1'), spreadsheet('lwf')
      ("'=1+1", 'lwf')
    """
    return f"'{text}" if text[:1] in tuple("=+-@\t\r\n") else text
