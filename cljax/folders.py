"""Run folders: one run's configuration and record, locked while it is written, never overwritten by accident.

A run folder holds `config.json`, `record.json`, perhaps `checkpoints`, `learners` and `tensorboard`, and the lock
`.lock`, which the operating system releases when the process ends, however it ends. Nothing here is heavy to import.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pathlib
import shutil
import time
from collections.abc import Iterator
from typing import Any

from cljax.files import write_json

CONFIG, RECORD, LOCK = "config.json", "record.json", ".lock"
CHECKPOINTS, LEARNERS, TENSORBOARD = "checkpoints", "learners", "tensorboard"


class FolderError(ValueError):
    """A folder that cannot be used for a run; the message names it and the cure."""


class RunFolder:
    """A folder that this process holds.

    Attributes:
      path: of the folder.
      record: what an earlier, interrupted run of the same configuration left; None where there is nothing.
    """

    def __init__(
        self, path: pathlib.Path, config: dict[str, Any], record: dict[str, Any] | None, *, anew: bool = False
    ) -> None:
        self.path, self.record, self._config, self._anew = path, record, config, anew

    def start(self) -> None:
        """Writes the configuration, and removes what is not to be continued."""
        if self.record is None:
            (self.path / RECORD).unlink(missing_ok=True)
        if self._anew:
            for name in (CHECKPOINTS, LEARNERS, TENSORBOARD):
                shutil.rmtree(self.path / name, ignore_errors=True)
        write_json(self.path / CONFIG, self._config)

    @property
    def tensorboard(self) -> pathlib.Path:
        """The folder of event files."""
        return self.path / TENSORBOARD

    def checkpoints(self, method: str) -> pathlib.Path:
        """The folder of a method's checkpoints."""
        return self.path / CHECKPOINTS / method

    def learner(self, method: str, seed: int) -> pathlib.Path:
        """An empty place for a method's learner of a seed."""
        place = self.path / LEARNERS / method / f"seed-{seed}"
        shutil.rmtree(place, ignore_errors=True)
        return place

    def forget(self, method: str) -> None:
        """Removes a method's checkpoints."""
        shutil.rmtree(self.checkpoints(method), ignore_errors=True)
        with contextlib.suppress(OSError):  # other methods' checkpoints
            (self.path / CHECKPOINTS).rmdir()

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
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as place, claim(f'{place}/run', {'rate': .1}) as folder:
      ...     folder.start()
      ...     sorted(entry.name for entry in folder.path.iterdir())
      ['.lock', 'config.json']
    """
    path = pathlib.Path(path).expanduser()
    made = [place for place in (path, *path.parents) if not place.exists()]
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
        yield RunFolder(path, config, _earlier(path, config, overwrite), anew=overwrite)
    finally:
        if made and [entry.name for entry in path.iterdir()] == [LOCK]:
            (path / LOCK).unlink()
            with contextlib.suppress(OSError):  # another run is beside it
                for place in made:
                    place.rmdir()
        os.close(lock)


def fresh_path(parent: str | os.PathLike, name: str) -> pathlib.Path:
    """A folder that does not exist yet: `parent/name-<date-time>`, numbered where that is taken."""
    path = base = pathlib.Path(parent) / f"{name.replace('/', '_')}-{time.strftime('%Y%m%d-%H%M%S')}"
    number = 1
    while path.exists():
        number += 1
        path = base.with_name(f"{base.name}-{number}")
    return path


def interrupted(parent: str | os.PathLike, config: dict[str, Any]) -> pathlib.Path | None:
    """The newest run folder in `parent` with this configuration, no finished record, and no process that holds it."""
    parent, now = pathlib.Path(parent), json.loads(json.dumps(config))
    places = [entry.parent for entry in parent.glob(f"*/{CONFIG}")]
    for path in sorted(places, key=lambda path: (path / CONFIG).stat().st_mtime, reverse=True):
        finished = (_read(path / RECORD) or {}).get("complete")
        if differences(_read(path / CONFIG), now) or finished or _is_held(path):
            continue
        return path
    return None


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


def _is_ours(path: pathlib.Path) -> bool:
    """Whether an existing folder is empty or a run folder."""
    names = {entry.name for entry in path.iterdir()}
    return CONFIG in names or not names - {LOCK}


def _is_held(path: pathlib.Path) -> bool:
    """Whether a process has locked a run folder."""
    try:
        with open(path / LOCK) as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


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
