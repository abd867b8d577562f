"""Checkpoints: any pytree of arrays on disk by Orbax, recognised when damaged or foreign; and trained parameters.

A series of checkpoints is a folder with one numbered folder each: `tree`, which Orbax writes, and `manifest.json`,
written last, with every leaf's dtype and shape and every file's size and SHA-256. Without a manifest there is no
checkpoint, so a process may be killed at any moment. Nothing is pickled.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pathlib
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cljax import files, safetensors
from cljax.rows import path_name
from cljax.types import Tree

TREE, MANIFEST, REFUSED = "tree", "manifest.json", ".refused"
KEPT = 2


class Saving(NamedTuple):
    """Where and how often a drive saves: after each visit to a task, and within one now and then.

    Attributes:
      folder: of the checkpoints, one series for each group of seeds that run together.
      interval: seconds between checkpoints within a visit; 0: after every epoch (and step, where data are streamed).
      share: of the time, in (0, 1], that saving may take: where visits are so short that saving after each would take
        more, some are left out.
      say: called with a line where a run is taken up, or a checkpoint cannot be used.
    """

    folder: str | os.PathLike
    interval: float = 60.0
    share: float = 0.1
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
        return waited >= self.interval or (ended and waited * self.share >= cost)


class Restored(NamedTuple):
    """What `restore` found.

    Attributes:
      tree: None where there is no good checkpoint.
      notes: those it was saved with.
      message: a line about the checkpoints that could not be used and what is done instead; empty if all is well.
    """

    tree: Tree
    notes: dict[str, Any]
    message: str


def save(folder: str | os.PathLike, tree: Tree, notes: dict[str, Any] | None = None) -> pathlib.Path:
    """Saves a tree as the newest checkpoint of a series, and removes all but the last two.

    Args:
      folder: of the series; made where it does not exist.
      tree: arrays (of JAX or NumPy, on any devices) and Python numbers, in any containers; None is no leaf. PRNG keys
        are not saved: keep their data. Where there are several processes, all of them call this together.
      notes: a little more, as JSON has it.

    Returns:
      The path of the checkpoint.

    Raises:
      ValueError: two leaves of the same path, or a leaf that is a PRNG key.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as place:
      ...     path = save(place, {'step': 3, 'weight': jnp.ones([2])})
      ...     path.name, restore(place, {'step': 0, 'weight': np.zeros(2, np.float32)}).tree
      ('00000001', {'step': 3, 'weight': array([1., 1.], dtype=float32)})
    """
    series = pathlib.Path(folder).expanduser().absolute()
    leaves = _leaves(tree)
    for name, leaf in leaves.items():
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            raise ValueError(f"The leaf '{name}' is a PRNG key, which is not saved; save jax.random.key_data of it.")
    with _undisturbed():
        first = jax.process_index() == 0
        if first:
            for entry in _numbered(series):
                if not (entry / MANIFEST).exists():
                    shutil.rmtree(entry)
        _wait("cleared")
        path = series / f"{_last_number(series) + 1:08d}"
        _wait("numbered")
        stored = {name: leaf if _is_global(leaf) else np.asarray(leaf) for name, leaf in leaves.items() if leaf.size}
        _checkpointer().save(path / TREE, args=_orbax().args.StandardSave(_nest(stored)))
        if first:
            shapes = {name: [str(leaf.dtype), list(leaf.shape)] for name, leaf in leaves.items()}
            manifest = {"format": 1, "notes": notes or {}, "leaves": shapes, "files": _digests(path / TREE)}
            files.write_json(path / MANIFEST, manifest)
            for older in _numbered(series)[:-KEPT]:
                shutil.rmtree(older)
        _wait("saved")
    return path


def restore(folder: str | os.PathLike, like: Tree | Callable[[dict[str, Any]], Tree]) -> Restored:
    """Restores the last good checkpoint of a series.

    A checkpoint is good if its files are those that were written, and its leaves have the paths, dtypes and shapes of
    `like`. One that is not is renamed to `NUMBER.refused`, so that it neither is tried nor counts again.

    Args:
      folder: of the series.
      like: a tree of the same structure: where its leaf is a JAX array or `jax.ShapeDtypeStruct` the restored one is a
        JAX array (of the same sharding, if it has one), otherwise a NumPy array or Python number. Or a function that
        makes it from the notes, and raises ValueError to refuse them.

    Returns:
      The tree, its notes, and a message where a checkpoint could not be used.
    """
    series = pathlib.Path(folder).expanduser().absolute()
    refused: list[str] = []
    for path in reversed(_numbered(series)):
        if not (path / MANIFEST).exists():
            continue  # a save that was interrupted
        try:
            manifest = _verified(path)
            wanted = like(manifest["notes"]) if callable(like) else like
            tree = _read(path, manifest, wanted)
        except Exception as error:  # whatever damage makes the readers say
            reason = " ".join(str(error).split()) or type(error).__name__
            refused.append(f"The checkpoint {path} cannot be used: {reason}")
            _wait("refused")
            if jax.process_index() == 0:
                path.rename(path.with_name(path.name + REFUSED))
            continue
        message = " ".join([*refused, f"Going back to {path}."]) if refused else ""
        return Restored(tree, manifest["notes"], message)
    return Restored(None, {}, " ".join([*refused, "Starting anew."]) if refused else "")


def load_params(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Loads trained parameters, such as `training.start_from` takes.

    Args:
      path: a `.safetensors` file, its tensors named `conv_0_0/kernel` or `conv_0_0.kernel`; or a folder: a series or a
        checkpoint of `save`, or any Orbax checkpoint. Its tree is of parameters; or of a learner or of Flax variables,
        which have them under `params`.

    Returns:
      `{leaf path: array}`: of params, and of the collections with the collection's name first, as in
      `Network.per_task`.

    Raises:
      ValueError: it is none of these, or damaged.
    """
    place = pathlib.Path(path).expanduser().absolute()
    if not place.exists():
        raise ValueError(f"There is no file or folder {place} to load parameters from.")
    try:
        leaves = safetensors.read(place) if place.is_file() else _load_folder(place)
    except Exception as error:  # whatever the readers say of a file that is none of theirs
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"The parameters in {place} cannot be read: {reason}. Give a .safetensors file or an Orbax checkpoint."
        ) from error
    if not any(name.startswith("params/") for name in leaves):
        return leaves
    others = ("opt_state", "method_state", "hyper", "memory", "classes", "rows", "single_label")
    kept = {name: leaf for name, leaf in leaves.items() if name.split("/")[0] not in others}
    return {name.removeprefix("params/").removeprefix("collections/"): leaf for name, leaf in kept.items()}


def _orbax() -> Any:
    import orbax.checkpoint

    return orbax.checkpoint


def _checkpointer() -> Any:
    return _orbax().Checkpointer(_orbax().StandardCheckpointHandler())


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
    """The leaves by path, Python numbers as NumPy arrays."""
    found: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        if (name := path_name(path)) in found:
            raise ValueError(f"Two leaves have the path '{name}'; rename one of them.")
        found[name] = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
    return found


def _nest(leaves: dict[str, Any]) -> dict[str, Any]:
    """Nested dicts of leaves by path, which any program that has Orbax can read."""
    tree: dict[str, Any] = {}
    for name, leaf in leaves.items():
        *outer, last = name.split("/")
        place = tree
        for part in outer:
            place = place.setdefault(part, {})
        place[last] = leaf
    return tree


def _is_global(leaf: Any) -> bool:
    """Whether an array is spread over the devices of several processes."""
    return isinstance(leaf, jax.Array) and not leaf.is_fully_addressable


def _numbered(series: pathlib.Path) -> list[pathlib.Path]:
    """The checkpoints of a series, oldest first, unfinished ones included."""
    if not series.is_dir():
        return []
    return sorted((entry for entry in series.iterdir() if entry.name.isdigit()), key=lambda entry: int(entry.name))


def _last_number(series: pathlib.Path) -> int:
    names = [entry.name.removesuffix(REFUSED) for entry in series.iterdir()] if series.is_dir() else []
    return max((int(name) for name in names if name.isdigit()), default=0)


def _wait(what: str) -> None:
    """Waits until all processes are here, where there are several."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(f"cljax checkpoint {what}")


def _digests(folder: pathlib.Path) -> dict[str, list]:
    """Size and SHA-256 of every file."""
    found = {}
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            with open(file, "rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            found[file.relative_to(folder).as_posix()] = [file.stat().st_size, digest]
    return found


def _verified(path: pathlib.Path) -> dict[str, Any]:
    """The manifest of a checkpoint, if its files are those that were written."""
    manifest = json.loads((path / MANIFEST).read_text())
    found, written = _digests(path / TREE), manifest["files"]
    for name in {**written, **found}:
        if name not in found:
            raise ValueError(f"its file {name} is missing.")
        if name not in written:
            raise ValueError(f"it has a file that was not written with it, {name}.")
        if found[name][0] != written[name][0]:
            raise ValueError(f"its file {name} has {found[name][0]} bytes, not {written[name][0]}.")
        if found[name] != written[name]:
            raise ValueError(f"its file {name} was changed.")
    return manifest


def _read(path: pathlib.Path, manifest: dict[str, Any], like: Tree) -> Tree:
    """The tree of a verified checkpoint."""
    wanted, there = _leaves(like), manifest["leaves"]
    for name in {**wanted, **there}:
        old = "{}{}".format(*there[name]) if name in there else "missing"
        new = f"{wanted[name].dtype}{list(wanted[name].shape)}" if name in wanted else "not expected"
        if old != new:
            raise ValueError(f"it is of another tree: '{name}' is {old}, but here it is {new}.")
    stored = {name: leaf for name, leaf in wanted.items() if leaf.size}
    found: dict[str, Any] = {}
    if stored:
        abstract = {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=_sharding(x)) for name, x in stored.items()}
        found = _leaves(_checkpointer().restore(path / TREE, args=_orbax().args.StandardRestore(_nest(abstract))))
    values = [found.get(name, np.zeros(leaf.shape, leaf.dtype)) for name, leaf in wanted.items()]
    as_wanted = [_as(leaf, value) for leaf, value in zip(jax.tree.leaves(like), values, strict=True)]
    return jax.tree.unflatten(jax.tree.structure(like), as_wanted)


def _sharding(leaf: Any) -> Any:
    """Where Orbax itself has to put an array: one that is spread over several processes."""
    sharding = getattr(leaf, "sharding", None)
    return None if sharding is None or sharding.is_fully_addressable else sharding


def _as(like: Any, value: Any) -> Any:
    """A restored value as the kind of leaf that is asked for."""
    if isinstance(like, jax.Array | jax.ShapeDtypeStruct):
        if isinstance(value, jax.Array):
            return value
        placed = like.sharding if getattr(like, "committed", True) else None
        return jnp.array(value) if placed is None else jax.device_put(value, placed)
    return np.array(value) if hasattr(like, "dtype") else type(like)(value.item())


def _load_folder(place: pathlib.Path) -> dict[str, np.ndarray]:
    """The leaves of an Orbax checkpoint, or of the newest of a series."""
    if finished := [entry for entry in _numbered(place) if (entry / MANIFEST).exists()]:
        place = finished[-1]
    if (place / MANIFEST).exists():
        _verified(place)
        place = place / TREE
    orbax = _orbax()
    with orbax.Checkpointer(orbax.PyTreeCheckpointHandler()) as checkpointer:
        metadata = checkpointer.metadata(place).item_metadata.tree
        numpy = jax.tree.map(lambda _: orbax.RestoreArgs(restore_type=np.ndarray), metadata)
        tree = checkpointer.restore(place, args=orbax.args.PyTreeRestore(restore_args=numpy))
    return {name: np.asarray(leaf) for name, leaf in _leaves(tree).items()}
