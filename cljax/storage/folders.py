"""Run folders: one run's configuration and record, locked while it is written, never overwritten by accident.

A run folder holds `config.json`, `record.json`, perhaps `checkpoints`, `learners` and `tensorboard`, each with a folder
a method, and the lock `.lock`, which the operating system releases when the process ends, however it ends. Whatever
else is there is the user's and never touched. Nothing here is heavy to import.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import pathlib
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from typing import Any

from cljax.files import expand, read_json, remove_drafts, write_json
from cljax.storage import old_names
from cljax.text import shell_word

CONFIG, RECORD, LOCK = "config.json", "record.json", ".lock"
CHECKPOINTS, LEARNERS, TENSORBOARD = "checkpoints", "learners", "tensorboard"
SEED = re.compile(r"seed-[0-9]+")
SERIES, DRAFT = re.compile(r"[0-9]{8,12}(\.refused.*)?"), re.compile(r"\.draft-[0-9]+")
"""What a series of checkpoints is made of, and what a save that was killed leaves in it."""
CHECKPOINT = frozenset({"tree", "manifest.json"})
"""What a checkpoint holds."""
GROUP = re.compile("group-[0-9]+")
"""The series of the seeds that run together."""
NAME_BYTES = 200
"""Most bytes of a fresh folder's name before the date; file systems take 255 in all."""


class FolderError(ValueError):
    """A folder that cannot be used for a run; the message names it and the cure.

    Example:
      >>> from cljax.storage.folders import FolderError
      >>> issubclass(FolderError, ValueError)
      True
    """


class RunFolder:
    """A folder that this process holds.

    Attributes:
      path: of the folder.
      record: what an earlier, interrupted run of the same configuration left; None where there is nothing.
      locked: whether other processes are kept out; False where the file system knows no locks.

    Example:
      >>> import tempfile
      >>> from cljax.storage.folders import claim
      >>> with tempfile.TemporaryDirectory() as place, claim(f'{place}/run', {'learning_rate': 0.1}) as folder:
      ...     folder.path.name, folder.record
      ('run', None)
    """

    def __init__(
        self,
        path: pathlib.Path,
        config: dict[str, Any],
        record: dict[str, Any] | None,
        *,
        names: Sequence[str] = (),
        anew: bool = False,
        locked: bool = True,
    ) -> None:
        self.path, self.record, self.locked = path, record, locked
        self._config, self._names, self._anew = config, names, anew

    def start(self) -> None:
        """Writes the configuration; of a run that begins anew it removes the record and the folders of its methods."""
        try:
            remove_drafts(self.path / CONFIG)
            remove_drafts(self.path / RECORD)
            if self._anew:
                (self.path / RECORD).unlink(missing_ok=True)
                for name in self._names:
                    _remove_checkpoints(self.checkpoints(name))
                    _remove(self.path / LEARNERS / name, SEED)
                    _remove(self.path / TENSORBOARD / name, SEED)
            write_json(self.path / CONFIG, self._config)
        except OSError as error:
            raise FolderError(f"The run folder {self.path} cannot be written ({error.strerror}).") from None

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

    def keeps(self, run: dict[str, Any]) -> bool:
        """Whether the learners of an entry of the record are there."""
        return all((self.path / LEARNERS / run["method"] / f"seed-{seed}").is_dir() for seed in run["seeds"])

    def forget(self, method: str) -> None:
        """Removes a method's checkpoints, as far as the system lets it."""
        with contextlib.suppress(OSError):
            _remove_checkpoints(self.checkpoints(method))

    def save(self, record: dict[str, Any]) -> None:
        """Writes the record, atomically."""
        write_json(self.path / RECORD, record)


class Followed(RunFolder):
    """The folder of a run that several processes share, for those that leave it to the first to write there.

    Example:
      >>> import pathlib, tempfile
      >>> from cljax.storage.folders import Followed
      >>> folder = Followed(pathlib.Path(tempfile.mkdtemp()), {}, None)
      >>> folder.save({})  # the first process does
      >>> list(folder.path.iterdir())
      []
    """

    def start(self) -> None:
        """Reads the record, once the first process has started too."""
        with contextlib.suppress(FileNotFoundError):
            self.record = old_names.record(_load(self.path / RECORD, "Choose another folder with --out."))

    def learner(self, method: str, seed: int) -> pathlib.Path:
        """The place that the first process empties."""
        return self.path / LEARNERS / method / f"seed-{seed}"

    def forget(self, method: str) -> None:
        """Nothing."""

    def save(self, record: dict[str, Any]) -> None:
        """Nothing."""


@contextlib.contextmanager
def claim(
    path: str | os.PathLike,
    config: dict[str, Any],
    *,
    names: Sequence[str] = (),
    overwrite: bool = False,
    fresh: bool = False,
    needed: Sequence[str] = (),
) -> Iterator[RunFolder]:
    """Takes a folder for a run; makes it where it does not exist, and removes it again if nothing was written to it.

    Args:
      path: the folder.
      config: the run's configuration, as JSON has it.
      names: of the run's methods, each with a folder in `checkpoints`, `learners` and `tensorboard`.
      overwrite: whether a finished run of the same configuration is replaced, and an unfinished one begun anew.
      fresh: whether the folder must be new: where it exists, `path-2`, `path-3` and so on is taken.
      needed: files that a finished run has beside a complete record.

    Yields:
      `RunFolder`.

    Raises:
      FolderError: the folder is in use, is no run folder, is one of another configuration (the differing fields are
        named), holds a finished run, has a record that cannot be read or is damaged, or cannot be written. Nothing in
        it has been changed.

    Example:
      >>> import tempfile
      >>> from cljax.storage.folders import claim
      >>> with tempfile.TemporaryDirectory() as place, claim(f'{place}/run', {'learning_rate': .1}) as folder:
      ...     folder.start()
      ...     sorted(entry.name for entry in folder.path.iterdir())
      ['.lock', 'config.json']
    """
    made: list[pathlib.Path] = []
    try:
        path = expand(path)
        path = _make(path, made, fresh=fresh)
        if not made and not _is_ours(path):
            raise FolderError(
                f"The folder {path} is not empty and no run folder, so nothing is written into it. Choose an empty or "
                f"new one with --out."
            )
        lock = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    except FileExistsError:
        raise FolderError(f"{path} is a file, not a folder. Choose another place with --out.") from None
    except OSError as error:
        raise FolderError(
            f"The folder {path} cannot be written ({error.strerror}). Choose another with --out."
        ) from None
    except ValueError as error:
        raise error if isinstance(error, FolderError) else FolderError(str(error)) from None
    try:
        locked = _lock(lock, path)
        record = _earlier(path, config, overwrite, needed)
        _check_places(path, names)
        yield RunFolder(path, config, record, names=names, anew=overwrite, locked=locked)
    finally:
        with contextlib.suppress(OSError):  # another run is beside it, or the folder is gone
            if made and os.listdir(path) == [LOCK]:
                (path / LOCK).unlink()
                for place in made:
                    place.rmdir()
        os.close(lock)


def fresh_path(parent: str | os.PathLike, name: str) -> pathlib.Path:
    """A path for a new run folder: `parent/name-<date-time>`, the name shortened where it is too long for one.

    Example:
      >>> from cljax.storage.folders import fresh_path
      >>> fresh_path('runs', 'a/b-task').name[:9]
      'a_b-task-'
    """
    name = name.replace("/", "_")
    while len(os.fsencode(name)) > NAME_BYTES:
        name = name[:-1]
    return pathlib.Path(parent) / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"


def interrupted(
    parent: str | os.PathLike, config: dict[str, Any], *, needed: Sequence[str] = ()
) -> pathlib.Path | None:
    """The newest run folder in `parent` with this configuration that is not finished and that no process holds.

    Example:
      >>> import tempfile
      >>> from cljax.storage.folders import claim, interrupted
      >>> with tempfile.TemporaryDirectory() as place:
      ...     with claim(f'{place}/run', {'epochs': 5}) as folder:
      ...         folder.start()  # and then it was killed
      ...     interrupted(place, {'epochs': 5}).name, interrupted(place, {'epochs': 6})
      ('run', None)
    """
    now, found = json.loads(json.dumps(config)), []
    with contextlib.suppress(OSError):
        found = [pathlib.Path(parent) / name for name in os.listdir(parent)]
    for path in sorted(found, key=_changed, reverse=True):
        if (
            not differences(old_names.config(_read(path / CONFIG)), now)
            and not _is_finished(path, needed)
            and not _is_held(path)
        ):
            return path
    return None


def differences(old: Any, new: Any, path: str = "", where: tuple[str, str] = ("there", "now")) -> list[str]:
    """The fields by which two configurations differ, each with both values and where they are.

    Example:
      >>> from cljax.storage.folders import differences
      >>> differences({'training': {'epochs': 5, 'clip': 1.0}}, {'training': {'epochs': 3, 'clip': 1.0}})
      ['training.epochs (5 there, 3 now)']
    """
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(key for key in new if key not in old)]
        return [
            line
            for key in keys
            for line in differences(old.get(key), new.get(key), f"{path}.{key}" if path else str(key), where)
        ]
    return [] if old == new else [f"{path} ({json.dumps(old)} {where[0]}, {json.dumps(new)} {where[1]})"]


def _make(path: pathlib.Path, made: list[pathlib.Path], *, fresh: bool) -> pathlib.Path:
    """Makes the folder; `made` gets all that did not exist. Returns its path, numbered where it must be a new one."""
    missing = [place for place in path.parents if not os.path.lexists(place)]
    others = (path.with_name(f"{path.name}-{number}") for number in itertools.count(2))
    for place in itertools.chain([path], others if fresh else ()):
        with contextlib.suppress(FileExistsError):
            place.mkdir(parents=True)
            made += [place, *missing]
            return place
    if not path.is_dir():
        raise FileExistsError
    return path


def _is_ours(path: pathlib.Path) -> bool:
    """Whether an existing folder is empty or a run folder."""
    names = set(os.listdir(path))
    return CONFIG in names or not names - {LOCK}


def _lock(handle: int, path: pathlib.Path) -> bool:
    """Locks a folder by its open lock file; False where the file system has no locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise FolderError(
            f"The run folder {path} is in use by another process. Wait until that has ended, or choose another folder "
            f"with --out."
        ) from None
    except OSError:
        return False
    return True


def _is_held(path: pathlib.Path) -> bool:
    """Whether a process has locked a run folder."""
    try:
        handle = os.open(path / LOCK, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(handle)
    return False


def _changed(path: pathlib.Path) -> float:
    """When a run folder's configuration was written; 0 where that is unknown."""
    try:
        return (path / CONFIG).stat().st_mtime
    except OSError:
        return 0.0


def _read(path: pathlib.Path) -> Any:
    """What a file says, None where it cannot be read."""
    try:
        return read_json(path)
    except (OSError, ValueError):
        return None


def _is_finished(path: pathlib.Path, needed: Sequence[str]) -> bool:
    record = _read(path / RECORD)
    return isinstance(record, dict) and record.get("complete") is True and _has(path, needed)


def _has(path: pathlib.Path, needed: Sequence[str]) -> bool:
    return all(os.path.lexists(path / name) for name in needed)


def _load(path: pathlib.Path, cure: str) -> Any:
    """What a file says.

    Raises:
      FileNotFoundError: there is none. FolderError: it cannot be read, or is damaged.
    """
    try:
        return read_json(path)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise FolderError(
            f"{path} cannot be read ({error.strerror}), so nothing in its folder is changed. Try again once it can, or "
            f"choose another folder with --out."
        ) from None
    except ValueError as error:
        raise FolderError(f"{error} Nothing in its folder is changed. {cure}") from None


def _earlier(
    path: pathlib.Path, config: dict[str, Any], overwrite: bool, needed: Sequence[str]
) -> dict[str, Any] | None:
    """The record of an unfinished run of the same configuration."""
    other = "Choose another folder with --out."
    try:
        there, now = old_names.config(_load(path / CONFIG, other)), json.loads(json.dumps(config))
    except FileNotFoundError:
        return None
    if not isinstance(there, dict):
        raise FolderError(f"{path / CONFIG} is not a run's configuration. {other}")
    if found := differences(there, now):
        raise FolderError(
            f"The run folder {path} is of another configuration; it differs in {', '.join(found)}. Choose another "
            f"folder with --out, or give the same options."
        )
    if overwrite:
        return None
    cure = "Copy it back from where it is whole, begin the run anew with --overwrite, or choose another with --out."
    try:
        record = old_names.record(_load(path / RECORD, cure))
    except FileNotFoundError:
        return None
    if not isinstance(record, dict) or not isinstance(record.get("runs"), list):
        raise FolderError(f"{path / RECORD} is not a run's record. Nothing in its folder is changed. {cure}")
    if record.get("complete") and _has(path, needed):
        raise FolderError(
            f"The run folder {path} holds a finished run of this configuration. `cljax report {shell_word(path)}` "
            f"shows it; run it again with --overwrite, or choose another folder with --out."
        )
    return record


def _check_places(path: pathlib.Path, names: Sequence[str]) -> None:
    """Refuses what is no folder where a run has one, and no file where it has one."""
    kinds = [path / kind for kind in (CHECKPOINTS, LEARNERS, TENSORBOARD)]
    folders = [*kinds, *(kind / name for kind in kinds for name in names)]
    folders += [place for kind in kinds[1:] for name in names for place in _named(kind / name, SEED)]
    wrong = [place for place in folders if os.path.lexists(place) and not os.path.isdir(place)]
    wrong += [place for place in folders[len(kinds) :] if os.path.islink(place)]
    wrong += [place for name in (CONFIG, RECORD) if (place := path / name).is_dir()]
    if wrong:
        raise FolderError(
            f"{wrong[0]} stands where the run has a {'file' if wrong[0].is_dir() else 'folder'}. Move it away, or "
            f"choose another folder with --out."
        )


def _named(place: pathlib.Path, pattern: re.Pattern) -> list[pathlib.Path]:
    """What a folder holds under such names."""
    try:
        return [place / name for name in os.listdir(place) if pattern.fullmatch(name)]
    except OSError:
        return []


def _remove_checkpoints(place: pathlib.Path) -> None:
    """Removes the series of checkpoints in a method's folder, and what is then empty."""
    for group in _named(place, GROUP):
        if not group.is_symlink():
            _remove(group, DRAFT)
            _remove(group, SERIES, holds=CHECKPOINT)
    for folder in (place, place.parent):
        with contextlib.suppress(OSError):  # gone, or something else is in it
            folder.rmdir()


def _remove(place: pathlib.Path, pattern: re.Pattern, *, holds: frozenset[str] | None = None) -> None:
    """Removes the folders of such names (if they hold nothing but that), and what is then empty."""
    for path in _named(place, pattern):
        if path.is_dir() and not path.is_symlink() and (holds is None or holds.issuperset(os.listdir(path))):
            shutil.rmtree(path)
    with contextlib.suppress(OSError):  # something else is in it
        place.rmdir()
        place.parent.rmdir()
