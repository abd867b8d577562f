"""Files that are kept for the next time: written whole or not at all, and used only for what they were made of."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from cljax.files import open_regular

_DRAFT = re.compile(r"\.draft-[a-z0-9_]{8}")


def identity(paths: Iterable[str | os.PathLike], *more: object) -> str:
    """A digest that is another one as soon as a file is written, replaced, moved or exchanged.

    It is made of names, inodes, sizes, and the times of change, which, unlike those of modification, nobody can set.

    Args:
      paths: of files, in an order that counts.
      more: what else decides, by its `repr`.

    Raises:
      OSError: a file is not there.

    Example:
      >>> identity([], 'resized', (8, 8)) == identity([], 'resized', (8, 9))
      False
    """
    digest = hashlib.sha256(repr(more).encode("utf-8", "surrogateescape"))
    for path in paths:
        about = os.stat(path)
        numbers = f"\0{about.st_ino} {about.st_size} {about.st_mtime_ns} {about.st_ctime_ns}\n"
        digest.update(os.fsencode(os.path.abspath(path)) + numbers.encode())
    return digest.hexdigest()


@contextlib.contextmanager
def draft(parent: pathlib.Path, *, folder: bool = False) -> Iterator[pathlib.Path]:
    """A file or folder to be filled and then moved into its place; what is not moved is removed at the end.

    It is locked as long as it is filled. Those of processes that were killed, which nobody holds, are removed first.

    Raises:
      OSError: `parent` cannot be written.
    """
    clear(parent)
    while True:
        if folder:
            path = pathlib.Path(tempfile.mkdtemp(prefix=".draft-", dir=parent))
        else:
            handle, name = tempfile.mkstemp(prefix=".draft-", dir=parent)
            os.close(handle)
            path = pathlib.Path(name)
        with contextlib.ExitStack() as stack:
            try:
                held = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:  # cleared by another process before it was locked
                continue
            stack.callback(os.close, held)
            with contextlib.suppress(OSError):  # where there are no locks nobody clears it
                fcntl.flock(held, fcntl.LOCK_EX)
            stack.callback(_remove, path)
            if path.exists():
                yield path
                return


def clear(parent: pathlib.Path) -> None:
    """Removes the drafts in a folder that no process holds, as far as that can be told."""
    try:
        names = [name for name in os.listdir(parent) if _DRAFT.fullmatch(name)]
    except OSError:
        return
    for name in names:
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            held = os.open(parent / name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
            stack.callback(os.close, held)
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(parent / name)


def kept_arrays(place: pathlib.Path, key: str, names: Sequence[str]) -> dict[str, np.ndarray] | None:
    """The arrays kept in an npz file under a key; None where there are none, of another key, or damaged ones."""
    try:
        with open_regular(place) as opened, np.load(opened, allow_pickle=False) as file:
            packed = [part for part in file.zip.infolist() if part.file_size != part.compress_size]
            if packed or str(file["key"]) != key:
                return None
            return {name: file[name] for name in names}  # each is checked against its CRC
    except Exception:  # zipfile and NumPy raise what a damaged file makes of them; it is made again
        return None


def keep_arrays(place: pathlib.Path, key: str, arrays: dict[str, np.ndarray], *, mode: int = 0o600) -> None:
    """Keeps arrays in an npz file under a key, for those whom `mode` lets read it; not where it cannot be written."""
    with contextlib.suppress(OSError), draft(place.parent) as path:
        with path.open("wb") as file:
            np.savez(file, allow_pickle=False, key=np.asarray(key), **arrays)
        path.chmod(mode)
        path.replace(place)


def _remove(path: pathlib.Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()
