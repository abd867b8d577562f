"""Files that are kept for the next time: written whole or not at all, and left where they cannot be."""

from __future__ import annotations

import os
import pathlib
import tempfile
from collections.abc import Callable, Sequence
from typing import IO

import numpy as np


def keep(place: pathlib.Path, save: Callable[[IO[bytes]], object], *, mode: int = 0o600) -> None:
    """Writes a file in one step; writes nothing where its folder cannot be written.

    Args:
      place: of the file.
      save: writes the contents into an open file.
      mode: who may read it, as of `os.chmod`.

    Example:
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     keep(pathlib.Path(folder, 'few.npy'), lambda file: np.save(file, np.arange(3)))
      ...     np.load(pathlib.Path(folder, 'few.npy')).tolist()
      [0, 1, 2]
    """
    try:
        handle, draft = tempfile.mkstemp(prefix=".draft-", dir=place.parent)
    except OSError:
        return
    try:
        with os.fdopen(handle, "wb") as file:
            save(file)
        os.chmod(draft, mode)
        os.replace(draft, place)
    except OSError:
        pathlib.Path(draft).unlink(missing_ok=True)


def kept_arrays(place: pathlib.Path, names: Sequence[str] | None = None) -> dict[str, np.ndarray] | None:
    """The arrays kept in an npz file (those named only), or None where there are none, or none that can be read."""
    try:
        with np.load(place, allow_pickle=False) as file:
            return {name: file[name] for name in names or file.files}
    except (OSError, ValueError, EOFError, KeyError):
        return None


def keep_arrays(place: pathlib.Path, arrays: dict[str, np.ndarray], *, like: pathlib.Path) -> None:
    """Keeps arrays in an npz file, to be read by those who may read the file `like`."""
    mode = like.stat().st_mode & 0o777
    keep(place, lambda file: np.savez(file, allow_pickle=False, **arrays), mode=mode)
