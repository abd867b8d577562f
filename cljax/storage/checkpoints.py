"""Checkpoints: any pytree of arrays on disk by Orbax, recognised when damaged or foreign; and trained parameters.

A series of checkpoints is a folder with one numbered folder each: `tree`, which Orbax writes, and `manifest.json`, with
every leaf's dtype and shape, every file's size and SHA-256, and a SHA-256 of itself. It gets its number when it is
whole, so a process may be killed at any moment. What is not of the series, by its name and its manifest, is left alone.
Nothing is pickled.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pathlib
import re
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cljax import files
from cljax.numbers import show, whole
from cljax.storage import old_names, stored, trained
from cljax.types import Tree

TREE, MANIFEST, REFUSED, DRAFT = "tree", "manifest.json", ".refused", ".draft-"
FORMAT = 2
KEPT = 2


class CheckpointError(ValueError):
    """Checkpoints that cannot be taken up, all left as they are; the message names them and says why.

    Example:
      >>> from cljax.storage.checkpoints import CheckpointError
      >>> issubclass(CheckpointError, ValueError)
      True
    """


class _Damaged(ValueError):
    """A checkpoint that fails its own checksum."""


class Saving(NamedTuple):
    """Where and how often a drive saves: after each visit to a task, and within one now and then.

    Attributes:
      folder: of the checkpoints, one series for each group of seeds that run together.
      interval: seconds between checkpoints within a visit; 0: after every epoch (streamed data: after every few steps).
      fraction: of the time, in (0, 1], that saving may take: where visits are so short that saving after each would
        take more, some are left out.
      say: called with a line where a run is taken up, or a checkpoint cannot be used.

    Example:
      >>> from cljax.storage.checkpoints import Saving
      >>> Saving('runs/mine', interval=300.0).interval  # for training.drive(..., checkpoints=)
      300.0
    """

    folder: str | os.PathLike
    interval: float = 60.0
    fraction: float = 0.1
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr)

    def due(self, *, ended: bool, waited: float, cost: float) -> bool:
        """Whether to save.

        Args:
          ended: whether a visit has just ended.
          waited: seconds of work since the last checkpoint, or since the beginning.
          cost: seconds that the last one took.

        Example:
          >>> saving = Saving('checkpoints')
          >>> [saving.due(ended=ended, waited=30.0, cost=0.1) for ended in (True, False)]
          [True, False]
          >>> saving.due(ended=True, waited=0.5, cost=0.1)
          False
        """
        return waited >= self.interval or (ended and waited * self.fraction >= cost)


class Restored(NamedTuple):
    """What `restore` found.

    Attributes:
      tree: None where there is no good checkpoint.
      notes: those it was saved with.
      message: a line about the checkpoints that are damaged and what is done instead; empty if all is well.

    Example:
      >>> import tempfile
      >>> from cljax.storage.checkpoints import restore
      >>> with tempfile.TemporaryDirectory() as place:
      ...     found = restore(place, {'step': 0})
      >>> found.tree is None, found.message
      (True, '')
    """

    tree: Tree
    notes: dict[str, Any]
    message: str


def save(folder: str | os.PathLike, tree: Tree, notes: dict[str, Any] | None = None) -> pathlib.Path:
    """Saves a tree as the newest checkpoint of a series, and then removes all but the last two.

    Args:
      folder: of the series; made where it does not exist.
      tree: arrays (of JAX or NumPy, on any devices) and Python numbers, in any containers; None is no leaf. PRNG keys
        are not saved: keep their data. Where there are several processes, all of them call this together.
      notes: a little more, as JSON has it.

    Returns:
      The path of the checkpoint.

    Raises:
      ValueError: two leaves of the same path, a leaf that is no array of numbers, or notes that JSON has not.
      OSError: it cannot be written, or not be read back. The earlier checkpoints are as they were.

    Example:
      >>> import tempfile
      >>> import jax.numpy as jnp
      >>> import numpy as np
      >>> from cljax.storage.checkpoints import restore, save
      >>> with tempfile.TemporaryDirectory() as place:
      ...     path = save(place, {'step': 3, 'weight': jnp.ones([2])})
      ...     path.name, restore(place, {'step': 0, 'weight': np.zeros(2, np.float32)}).tree
      ('00000001', {'step': 3, 'weight': array([1., 1.], dtype=float32)})
    """
    series = files.expand(folder).absolute()
    leaves = _leaves(tree)
    manifest = {
        "format": FORMAT,
        "notes": json.loads(json.dumps(notes or {}, allow_nan=False)),
        "leaves": {name: [str(leaf.dtype), list(leaf.shape)] for name, leaf in leaves.items()},
    }
    kept = {name: leaf if _is_global(leaf) else np.asarray(leaf) for name, leaf in leaves.items() if leaf.size}
    with _undisturbed():
        try:
            return _write(series, kept, manifest)
        except MemoryError:
            raise
        except Exception as error:  # whatever Orbax, or the system, makes of a full disk
            reason = " ".join(str(error).split()) or type(error).__name__
            raise OSError(f"No checkpoint can be saved in {series}: {reason}. Earlier ones are whole.") from error


def restore(folder: str | os.PathLike, like: Tree | Callable[[dict[str, Any]], Tree]) -> Restored:
    """Restores the last good checkpoint of a series.

    A checkpoint is good if its files and its manifest are those that were written. One that is not is renamed to
    `NUMBER.refused`, so that it neither is tried nor counts again; nothing else is ever changed.

    Args:
      folder: of the series.
      like: a tree of the same structure: where its leaf is a JAX array or `jax.ShapeDtypeStruct` the restored one is a
        JAX array (of the same sharding, if it has one), otherwise a NumPy array or Python number. Or a function that
        makes it from the notes, and raises ValueError to refuse them.

    Returns:
      The tree, its notes, and a message where a checkpoint is damaged.

    Raises:
      CheckpointError: the last good checkpoint has other leaves than `like`, or its notes are refused, or it is of a
        later version. OSError, MemoryError: it cannot be read now.

    Example:
      >>> import tempfile
      >>> from cljax.storage.checkpoints import restore, save
      >>> with tempfile.TemporaryDirectory() as place:
      ...     path = save(place, {'step': 3}, {'seed': 7})
      ...     found = restore(place, {'step': 0})
      >>> found.tree, found.notes
      ({'step': 3}, {'seed': 7})
    """
    series = files.expand(folder).absolute()
    refused: list[str] = []
    for path in reversed(_numbered(series)):
        try:
            manifest = _verified(path)
        except _Damaged as error:
            refused.append(f"The checkpoint {path} cannot be used: {error}")
            _set_aside(path)
            continue
        try:
            tree = _read(path, manifest, like(manifest["notes"]) if callable(like) else like)
        except ValueError as error:
            raise CheckpointError(f"The checkpoint {path} cannot be taken up: {error} It is left as it is.") from error
        except stored.StoreError as error:
            raise OSError(f"The checkpoint {path} is whole, but cannot be read now: {error}.") from error
        message = " ".join([*refused, f"Going back to {path}."]) if refused else ""
        return Restored(tree, manifest["notes"], message)
    if not refused and series.is_dir():
        names = sorted(filter(_is_refused, os.listdir(series)))
        refused = [f"Damaged checkpoints were set aside in {series}: {', '.join(names)}."] if names else []
    return Restored(None, {}, " ".join([*refused, "There is no other."]) if refused else "")


def notes(folder: str | os.PathLike) -> dict[str, Any]:
    """The notes of a checkpoint, or of the newest of a series, whole or not; empty where there are none.

    Example:
      >>> from cljax.storage.checkpoints import notes
      >>> notes('none')
      {}
    """
    place = files.expand(folder).absolute()
    for path in reversed(_numbered(place) or [place]):
        with contextlib.suppress(_Damaged, CheckpointError, OSError):
            return _manifest(path)["notes"]
    return {}


def load_params(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Loads trained parameters, such as `training.given_params` takes.

    Args:
      path: a `.safetensors` or `.npz` file, its arrays named `conv_0_0/kernel` or `conv_0_0.kernel` (PyTorch's names:
        see `training.suggest_names`); or a folder: a series or a checkpoint of `save`, any Orbax checkpoint, or the
        folder of a `CheckpointManager`, of which the newest is taken. Its tree is of parameters; or of what has them
        under `params`: a learner, Flax variables, a `TrainState`; or an `nnx.State`.

    Returns:
      `{leaf path: array}`: of params, and of the collections with the collection's name first, as in
      `Network.per_task`.

    Raises:
      ValueError: it is none of these, or damaged, or two leaves have one path.

    Example:
      >>> import pathlib, tempfile
      >>> import numpy as np
      >>> from cljax.storage.checkpoints import load_params
      >>> path = pathlib.Path(tempfile.mkdtemp()) / 'trained.npz'
      >>> np.savez(path, **{'dense_0.kernel': np.ones((64, 4)), 'dense_0.bias': np.ones(4)})
      >>> {name: leaf.shape for name, leaf in load_params(path).items()}
      {'dense_0/kernel': (64, 4), 'dense_0/bias': (4,)}
    """
    place = files.expand(path).absolute()
    if not place.exists():
        raise ValueError(f"There is no file or folder {place} to load parameters from.")
    try:
        return trained.parameters(trained.read(place) if place.is_file() else _load_folder(place))
    except Exception as error:  # whatever the readers say of a file that is none of theirs
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"The parameters in {place} cannot be read: {reason}. Give .safetensors, .npz or an Orbax checkpoint."
        ) from error


def _write(series: pathlib.Path, leaves: dict[str, Any], manifest: dict[str, Any]) -> pathlib.Path:
    """Writes a checkpoint under a name that does not count, gives it its number, removes those before the last two."""
    first = jax.process_index() == 0
    if first:
        series.mkdir(parents=True, exist_ok=True)
        for entry in series.iterdir():
            if re.fullmatch(r"\.draft-[0-9]+", entry.name) and _is_folder(entry):
                shutil.rmtree(entry)
    _wait("cleared")
    used = [entry.name for entry in _numbered(series)] + [name for name in os.listdir(series) if _is_refused(name)]
    number = max((int(name.split(".")[0]) for name in used), default=0) + 1
    while os.path.lexists(series / f"{number:08d}"):
        number += 1
    path, draft = series / f"{number:08d}", series / f"{DRAFT}{number}"
    _wait("numbered")
    try:
        if first:
            draft.mkdir()
        _wait("begun")
        if leaves:
            stored.write(draft / TREE, leaves)
        _wait("written")  # and read back by each, before it is renamed
        if first:
            (draft / TREE).mkdir(exist_ok=True)
            manifest = {**manifest, "files": _digests(draft / TREE)}
            files.write_json(draft / MANIFEST, {**manifest, "checksum": _checksum(manifest)})
            draft.rename(path)
    finally:
        if first:
            shutil.rmtree(draft, ignore_errors=True)
    if first:
        for older in _numbered(series)[:-KEPT]:
            with contextlib.suppress(OSError, ValueError):  # not now, or not a checkpoint of ours
                _remove(older)
    _wait("saved")
    return path


def _remove(path: pathlib.Path) -> None:
    """Removes a checkpoint, if nothing is in it but what was written."""
    written = _manifest(path)["files"].keys()
    if set(os.listdir(path)) == {TREE, MANIFEST} and stored.plain_files(path / TREE).keys() <= written:
        shutil.rmtree(path.rename(path.with_name(f"{DRAFT}{int(path.name)}")))


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Holds Ctrl-C back: Orbax's threads would go on without this one, and complain as the process ends."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is None:
        yield
        return
    waiting: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, frame: waiting.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if waiting:
            signal.raise_signal(signal.SIGINT)


def _leaves(tree: Tree) -> dict[str, Any]:
    """The leaves by escaped path, Python numbers as NumPy arrays."""
    found = {name: leaf if hasattr(leaf, "dtype") else np.asarray(leaf) for name, leaf in stored.flatten(tree).items()}
    for name, leaf in found.items():
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            what = "is a PRNG key, which is not saved; save jax.random.key_data of it."
        elif np.dtype(leaf.dtype).kind not in "biufcV":
            what = f"is of the type {leaf.dtype}, which is not saved; only numbers are."
        else:
            continue
        raise ValueError(f"The leaf '{stored.readable(name)}' {what}")
    return found


def _is_global(leaf: Any) -> bool:
    """Whether an array is spread over the devices of several processes."""
    return isinstance(leaf, jax.Array) and not leaf.is_fully_addressable


def _is_folder(entry: pathlib.Path) -> bool:
    return entry.is_dir() and not entry.is_symlink()


def _is_refused(name: str) -> bool:
    """Whether a name is that of a checkpoint set aside."""
    return re.fullmatch(rf"[0-9]{{8,12}}\{REFUSED}(-[0-9]+)?", name) is not None


def _numbered(series: pathlib.Path) -> list[pathlib.Path]:
    """The checkpoints of a series, oldest first."""
    if not series.is_dir():
        return []
    found = [entry for entry in series.iterdir() if re.fullmatch("[0-9]{8,13}", entry.name)]
    found = [entry for entry in found if _is_folder(entry) and os.path.lexists(entry / MANIFEST)]
    return sorted(found, key=lambda entry: int(entry.name))


def _set_aside(path: pathlib.Path) -> None:
    _wait("refused")
    if jax.process_index() == 0:
        aside, number = path.with_name(path.name + REFUSED), 1
        while os.path.lexists(aside):
            number += 1
            aside = path.with_name(f"{path.name}{REFUSED}-{number}")
        with contextlib.suppress(OSError):  # a folder that is only read
            path.rename(aside)


def _wait(what: str) -> None:
    """Waits until all processes are here, where there are several."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(f"cljax checkpoint {what}")


def _digests(folder: pathlib.Path) -> dict[str, list]:
    """Size and SHA-256 of every file."""
    return {name: [size, _digest(folder / name)] for name, size in sorted(stored.plain_files(folder).items())}


def _digest(file: pathlib.Path) -> str:
    stream: Any
    with files.open_regular(file) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _checksum(manifest: dict[str, Any]) -> str:
    """SHA-256 of a manifest but for its checksum; the same in every format from the second on."""
    content = {name: value for name, value in manifest.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _manifest(path: pathlib.Path) -> dict[str, Any]:
    """The manifest of a checkpoint, of this format or the first, which has no checksum."""
    try:
        found = files.read_json(path / MANIFEST)
        _check_schema(found)
    except ValueError as error:
        raise _Damaged(str(error)) from None
    if found["format"] not in (1, FORMAT):
        raise CheckpointError(
            f"The checkpoint {path} is of the format {found['format']}, but this version reads 1 to {FORMAT}: it is of "
            f"a later version of cljax. It is left as it is."
        )
    return found


def _check_schema(found: Any) -> None:
    """Raises ValueError where a manifest is not as it was written."""
    if not isinstance(found, dict):
        raise ValueError("its manifest is no JSON object.")
    if "checksum" in found and found["checksum"] != _checksum(found):
        raise ValueError("its manifest was changed.")
    number = whole("the format of its manifest", found.get("format"), least=1)
    if number > FORMAT and "checksum" in found:
        return
    names = {"format", "notes", "leaves", "files"} | ({"checksum"} if number > 1 else set())
    if set(found) != names or not all(isinstance(found[name], dict) for name in ("notes", "leaves", "files")):
        raise ValueError(f"its manifest, of the format {number}, does not have {', '.join(sorted(names))}.")
    for part, kinds in (("leaves", (str, list)), ("files", (int, str))):
        for name, entry in found[part].items():
            if not (isinstance(entry, list) and tuple(map(type, entry)) == kinds):
                raise ValueError(f"its manifest says of {show(name)} what cannot be.")
    for _, shape in found["leaves"].values():
        for side in shape:
            whole("a side in its manifest", side, most=2**63 - 1)


def _verified(path: pathlib.Path) -> dict[str, Any]:
    """The manifest of a checkpoint, if its files are those that were written."""
    manifest, tree = _manifest(path), path / TREE
    if not _is_folder(tree):
        raise _Damaged("its folder tree is missing.")
    try:
        found, written = stored.plain_files(tree), manifest["files"]
    except ValueError as error:
        raise _Damaged(f"{error}.") from None
    for name in {**written, **found}:
        if name not in found:
            raise _Damaged(f"its file {name} is missing.")
        if name not in written:
            raise _Damaged(f"it has a file that was not written with it, {name}.")
        if found[name] != written[name][0]:
            raise _Damaged(f"its file {name} has {found[name]} bytes, not {written[name][0]}.")
    for name in found:
        if _digest(tree / name) != written[name][1]:
            raise _Damaged(f"its file {name} was changed.")
    return manifest


def _read(path: pathlib.Path, manifest: dict[str, Any], like: Tree) -> Tree:
    """The tree of a verified checkpoint."""
    escaped = manifest["format"] > 1  # the first format did not
    wanted = {name if escaped else stored.readable(name): leaf for name, leaf in _leaves(like).items()}
    stored_as = {name if name in wanted else old_names.leaf(name): name for name in manifest["leaves"]}
    there = {name: manifest["leaves"][old] for name, old in stored_as.items()}
    gone = {name: there.pop(name) for name in set(there) - set(wanted) if old_names.is_gone(name)}
    for name in {**wanted, **there}:
        old = "{}{}".format(*there[name]) if name in there else "missing"
        new = f"{wanted[name].dtype}{list(wanted[name].shape)}" if name in wanted else "not expected"
        if old != new:
            shown = stored.readable(name) if escaped else name
            raise ValueError(f"it is of another tree: '{shown}' is {old}, but here it is {new}.")
    sizes = {name: leaf for name, leaf in wanted.items() if leaf.size}
    abstract = {stored_as[name]: _abstract(leaf) for name, leaf in sizes.items()}
    abstract |= {stored_as[name]: jax.ShapeDtypeStruct(tuple(shape), dtype) for name, (dtype, shape) in gone.items()}
    found = stored.read(path / TREE, abstract)
    values = [
        found[stored_as[name]] if leaf.size else np.zeros(leaf.shape, leaf.dtype) for name, leaf in wanted.items()
    ]
    as_wanted = [_as(leaf, value) for leaf, value in zip(jax.tree.leaves(like), values, strict=True)]
    return jax.tree.unflatten(jax.tree.structure(like), as_wanted)


def _abstract(leaf: Any) -> Any:
    """What Orbax is to make of a leaf: an array that is spread over several processes, otherwise one of NumPy.

    NumPy's, whatever it was when it was saved: it may have been spread over processes that are not here.
    """
    sharding = getattr(leaf, "sharding", None)
    if sharding is None or sharding.is_fully_addressable:
        return np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _as(like: Any, value: Any) -> Any:
    """A restored value as the kind of leaf that is asked for."""
    if isinstance(like, jax.Array | jax.ShapeDtypeStruct):
        if isinstance(value, jax.Array):
            return value
        placed = like.sharding if getattr(like, "committed", True) else None
        return jax.device_put(value, placed, may_alias=False)
    return np.array(value) if hasattr(like, "dtype") else type(like)(value.item())


def _load_folder(place: pathlib.Path) -> dict[str, np.ndarray]:
    """The leaves of an Orbax checkpoint, or of the newest of a series."""
    if finished := _numbered(place):
        place = finished[-1]
    if place.name == TREE and (place.parent / MANIFEST).exists():
        place = place.parent
    if not (place / MANIFEST).exists():
        return stored.flatten(stored.read_any(trained.find(place)), str)
    manifest = _verified(place)
    leaves = stored.flatten(stored.read_any(place / TREE), str) if manifest["files"] else {}
    if manifest["format"] == 1:
        return leaves
    named = {stored.readable(name): leaf for name, leaf in leaves.items()}
    if len(named) < len(leaves):
        raise ValueError("two of its leaves have one path, where their names have slashes")
    return named
