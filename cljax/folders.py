"""Run folders: one run's configuration and record, locked while it is written, never overwritten by accident.

A run folder holds `config.json`, `record.json` and the lock `.lock`, which the operating system releases when the
process ends, however it ends. Nothing here is heavy to import.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pathlib
import tempfile
import time
from collections.abc import Iterator
from typing import Any

CONFIG, RECORD, LOCK = "config.json", "record.json", ".lock"


class FolderError(ValueError):
    """A folder that cannot be used for a run; the message names it and the cure."""


class RunFolder:
    """A folder that this process holds.

    Attributes:
      path: of the folder.
      record: what an earlier, interrupted run of the same configuration left; None where there is nothing.
    """

    def __init__(self, path: pathlib.Path, config: dict[str, Any], record: dict[str, Any] | None) -> None:
        self.path, self.record, self._config = path, record, config

    def start(self) -> None:
        """Writes the configuration, and removes the record that is not to be continued."""
        if self.record is None:
            (self.path / RECORD).unlink(missing_ok=True)
        write_json(self.path / CONFIG, self._config)

    def save(self, record: dict[str, Any]) -> None:
        """Writes the record, atomically."""
        write_json(self.path / RECORD, record)


@contextlib.contextmanager
def claim(path: str | os.PathLike, config: dict[str, Any], *, overwrite: bool = False) -> Iterator[RunFolder]:
    """Takes a folder for a run; makes it where it does not exist, and removes it again if nothing was written to it.

    Args:
      path: the folder.
      config: the run's configuration, as JSON has it.
      overwrite: whether a finished run of the same configuration is replaced, and an unfinished one begun anew.

    Yields:
      `RunFolder`.

    Raises:
      FolderError: the folder is in use, is no run folder, is one of another configuration (the differing fields are
        named), holds a finished run, or cannot be written.

    Example:
      >>> with tempfile.TemporaryDirectory() as place, claim(f'{place}/run', {'rate': .1}) as folder:
      ...     folder.start()
      ...     sorted(entry.name for entry in folder.path.iterdir())
      ['.lock', 'config.json']
    """
    path = pathlib.Path(path).expanduser()
    made = not path.exists()
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = os.open(path / LOCK, os.O_RDWR | os.O_CREAT, 0o644) if made or _is_ours(path) else None
    except FileExistsError:
        raise FolderError(f"{path} is a file, not a folder. Choose another place with --out.") from None
    except OSError as error:
        raise FolderError(
            f"The folder {path} cannot be written ({error.strerror}). Choose another with --out."
        ) from None
    if lock is None:
        raise FolderError(
            f"The folder {path} is not empty and no run folder, so nothing is written into it. Choose an empty or new "
            f"one with --out."
        )
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FolderError(
                f"The run folder {path} is in use by another process. Wait until that has ended, or choose another "
                f"folder with --out."
            ) from None
        yield RunFolder(path, config, _earlier(path, config, overwrite))
    finally:
        if made and [entry.name for entry in path.iterdir()] == [LOCK]:
            (path / LOCK).unlink()
            path.rmdir()
        os.close(lock)


def fresh_path(parent: str | os.PathLike, name: str) -> pathlib.Path:
    """A folder that does not exist yet: `parent/name-<date-time>`, numbered where that is taken."""
    path = base = pathlib.Path(parent) / f"{name.replace('/', '_')}-{time.strftime('%Y%m%d-%H%M%S')}"
    number = 1
    while path.exists():
        number += 1
        path = base.with_name(f"{base.name}-{number}")
    return path


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """The fields by which two configurations differ, each with both values.

    Example:
      >>> differences({'training': {'rate': .1, 'epochs': 3}}, {'training': {'rate': .2, 'epochs': 3}})
      ['training.rate (0.1 there, 0.2 now)']
    """
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(key for key in new if key not in old)]
        return [
            line
            for key in keys
            for line in differences(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
        ]
    return [] if old == new else [f"{path} ({json.dumps(old)} there, {json.dumps(new)} now)"]


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes strict JSON (no NaN) in one step: a reader sees the old file or the new one."""
    text = json.dumps(value, indent=1, allow_nan=False) + "\n"
    handle, draft = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(draft, 0o644)
        os.replace(draft, path)
    except BaseException:
        pathlib.Path(draft).unlink(missing_ok=True)
        raise


def _is_ours(path: pathlib.Path) -> bool:
    """Whether an existing folder is empty or a run folder."""
    names = {entry.name for entry in path.iterdir()}
    return CONFIG in names or not names - {LOCK}


def _read(path: pathlib.Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def _earlier(path: pathlib.Path, config: dict[str, Any], overwrite: bool) -> dict[str, Any] | None:
    """The record of an unfinished run of the same configuration."""
    if not (path / CONFIG).exists():
        return None
    there, now = _read(path / CONFIG), json.loads(json.dumps(config))
    if not isinstance(there, dict):
        raise FolderError(f"{path / CONFIG} is not a run's configuration. Choose another folder with --out.")
    if found := differences(there, now):
        raise FolderError(
            f"The run folder {path} is of another configuration; it differs in {', '.join(found)}. Choose another "
            f"folder with --out, or give the same options."
        )
    record = None if overwrite else _read(path / RECORD)
    if record and record.get("complete"):
        raise FolderError(
            f"The run folder {path} holds a finished run of this configuration. See its {RECORD}, run it again with "
            f"--overwrite, or choose another folder with --out."
        )
    return record
