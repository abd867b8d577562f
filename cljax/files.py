"""Reading and writing files that others may have made: never waiting for a pipe, bounded, and written whole or not.

Light to import.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import re
import secrets
import stat
from typing import Any, BinaryIO

from cljax.numbers import show

JSON_BYTES = 256 << 20
"""Most bytes of a JSON file: a record of a hundred methods, tasks and seeds has some tens of millions."""


def shown(path: str | os.PathLike) -> str:
    r"""A path, or a name, as errors, records and pages show it: bytes that are not UTF-8 are written out.

    Example:
      >>> import os
      >>> from cljax.files import shown
      >>> shown(os.fsdecode(b"caf\xe9"))
      'caf\\xe9'
    """
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def expand(path: str | os.PathLike) -> pathlib.Path:
    """A path whose `~` is the home folder.

    Raises:
      ValueError: there is no such home folder, or it can be no path.

    Example:
      >>> from cljax.files import expand
      >>> expand('runs/first')
      PosixPath('runs/first')
    """
    if "\0" in os.fsdecode(path):
        raise ValueError(f"{os.fsdecode(path)!r} can be no path.")
    try:
        return pathlib.Path(path).expanduser()
    except RuntimeError:
        raise ValueError(
            f"{os.fsdecode(path)} begins with ~, but no such home folder is known. Set HOME, or write the whole path."
        ) from None


def folder_path(path: str | os.PathLike) -> pathlib.Path:
    """The path of a folder that a user names.

    Raises:
      ValueError: it is no path, or begins with a `~` that stands for no home.

    Example:
      >>> from cljax.files import folder_path
      >>> folder_path('~nobody-of-this-name/pictures')
      Traceback (most recent call last):
      ...
      ValueError: ~nobody-of-this-name/pictures begins with ~, but no such home folder is known. Set HOME, ...
    """
    if not isinstance(path, str | pathlib.PurePath) or not str(path) or "\0" in str(path):
        raise ValueError(f"{show(path)} is no path of a folder. Give one, such as './pictures'.")
    return expand(path)


def user_cache() -> pathlib.Path:
    """The folder of what can be made again: in `$XDG_CACHE_HOME`, by default `~/.cache`.

    Raises:
      ValueError: there is no home folder, as in some containers.

    Example:
      >>> from cljax.files import user_cache
      >>> user_cache().name
      'cljax'
    """
    return expand(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "cljax"


def open_regular(path: str | os.PathLike) -> BinaryIO:
    """Opens a regular file for reading (a link to one, too).

    Raises:
      ValueError: it is a folder, a pipe, a socket or a device. OSError: it cannot be opened.

    Example:
      >>> from cljax.files import open_regular
      >>> open_regular('/dev/null')
      Traceback (most recent call last):
      ...
      ValueError: /dev/null is not a regular file.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise ValueError(f"{shown(path)} is not a regular file.")
    return os.fdopen(handle, "rb")


def read_bytes(path: str | os.PathLike, most: int) -> bytes:
    """Reads a regular file of at most so many bytes.

    Raises:
      ValueError: it is no regular file, or larger. OSError: it cannot be read.

    Example:
      >>> import pathlib, tempfile
      >>> from cljax.files import read_bytes
      >>> path = pathlib.Path(tempfile.mkdtemp()) / 'file'
      >>> path.write_bytes(b'abc')
      3
      >>> read_bytes(path, most=3)
      b'abc'
    """
    with open_regular(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"{shown(path)} has more than {most} bytes.")
    return content


def read_json(path: str | os.PathLike, most: int = JSON_BYTES) -> Any:
    """Reads a regular file of strict JSON (no NaN), of at most so many bytes and reasonable depth.

    Raises:
      ValueError: it is none. OSError: it cannot be read.

    Example:
      >>> import pathlib, tempfile
      >>> from cljax.files import read_json
      >>> path = pathlib.Path(tempfile.mkdtemp()) / 'file'
      >>> path.write_text('{"a": 1}')
      8
      >>> read_json(path)
      {'a': 1}
    """
    return parse_json(read_bytes(path, most), shown(path))


def parse_json(content: bytes, name: str) -> Any:
    """Reads strict JSON: no NaN, no name twice in one object, of reasonable depth.

    Args:
      content: in UTF-8.
      name: how the error calls it.

    Raises:
      ValueError: it is none.

    Example:
      >>> from cljax.files import parse_json
      >>> parse_json(b'{"a": 1, "a": 2}', 'settings.json')
      Traceback (most recent call last):
      ...
      ValueError: settings.json is not strict JSON: it has the name 'a' twice.
    """

    def refuse(word: str) -> None:
        raise ValueError(f"it has {word}")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise ValueError(f"it has the name {key[:60]!r} twice")
            found[key] = value
        return found

    try:
        return json.loads(content, parse_constant=refuse, object_pairs_hook=unique)
    except RecursionError:
        raise ValueError(f"{name} is nested too deeply.") from None
    except ValueError as error:
        raise ValueError(f"{name} is not strict JSON: {error}.") from None


def free_memory() -> int:
    """Bytes of memory that are free, of the machine or of its part that is this job's; of all where nothing tells.

    Example:
      >>> from cljax.files import free_memory
      >>> free_memory() > 0
      True
    """
    try:
        lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
        free = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError, ValueError):  # no such part, or "max"
        most, used = (int((CGROUP / f"memory.{name}").read_text()) for name in ("max", "current"))
        stat = CGROUP / "memory.stat"
        kept = re.search(r"^inactive_file (\d+)", stat.read_text() if stat.exists() else "", re.MULTILINE)
        free = min(free, max(most - used + int(kept[1] if kept else 0), 0))  # pages of files make room
    return free


CGROUP = pathlib.Path("/sys/fs/cgroup")
"""Of a container, whose memory may be less than the machine's."""


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a text file in UTF-8 in one step: a reader sees the old file or the new one, whole.

    Example:
      >>> import pathlib, tempfile
      >>> from cljax.files import write_text
      >>> path = pathlib.Path(tempfile.mkdtemp()) / 'file'
      >>> write_text(path, '±')
      >>> len(path.read_bytes())
      2
    """
    write_bytes(path, text.encode())


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
    """Writes a file in one step: a reader sees the old file or the new one, whole.

    Example:
      >>> import pathlib, tempfile
      >>> from cljax.files import write_bytes
      >>> path = pathlib.Path(tempfile.mkdtemp()) / 'file'
      >>> write_bytes(path, b'old')
      >>> write_bytes(path, b'new')
      >>> path.read_bytes()
      b'new'
    """
    path = pathlib.Path(path)
    draft = path.with_name(f".{path.name[:100]}-{secrets.token_hex(4)}")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)  # but for the user's umask
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def remove_drafts(path: str | os.PathLike) -> None:
    """Removes what writes of a file left behind that were killed. Nobody else may be writing it.

    Example:
      >>> import pathlib, tempfile
      >>> from cljax.files import remove_drafts
      >>> folder = pathlib.Path(tempfile.mkdtemp())
      >>> (folder / '.file-0123abcd').touch()
      >>> remove_drafts(folder / 'file')
      >>> list(folder.iterdir())
      []
    """
    path = pathlib.Path(path)
    draft = re.compile(rf"\.{re.escape(path.name[:100])}-[a-z0-9_]{{8}}")
    for name in os.listdir(path.parent):
        if draft.fullmatch(name):
            (path.parent / name).unlink(missing_ok=True)


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes strict JSON (no NaN) in one step: a reader sees the old file or the new one, whole.

    Example:
      >>> import pathlib, tempfile
      >>> from cljax.files import write_json
      >>> path = pathlib.Path(tempfile.mkdtemp()) / 'file'
      >>> write_json(path, [1, 2])
      >>> path.read_text().split()
      ['[', '1,', '2', ']']
    """
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")
