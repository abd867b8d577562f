"""Trees of arrays as Orbax stores them: written and read with no user's name taken for a pattern, and bounded.

Orbax takes `[a]` in a path for a pattern and `gs:` for an address, joins names by dots, and logs tracebacks;
TensorStore ends the process where a file asks for more memory than there is. Here none of this reaches the user.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import pathlib
import re
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from cljax import files
from cljax.numbers import whole
from cljax.task_params import path_name
from cljax.types import Tree

CHUNKS = 2**20
"""Most chunks of an array."""


SETTLED = 0.3
"""Seconds after a failure in which TensorStore's threads still find Orbax's event loop closed, and would say so."""


class StoreError(OSError):
    """Orbax or TensorStore failed; the message says with what, in one line."""


class Kind(NamedTuple):
    """Type and shape of a stored array."""

    dtype: str
    shape: tuple[int, ...]


def escape(component: str) -> str:
    """A part of a leaf's path as it is stored: without dots and slashes, which would join it to its neighbours.

    Example:
      >>> escape('a.b/c'), escape('dense_0'), unescape('a%2Eb%2Fc')
      ('a%2Eb%2Fc', 'dense_0', 'a.b/c')
    """
    return urllib.parse.quote(component, safe="", errors="surrogatepass").replace(".", "%2E") or "%"


def unescape(stored: str) -> str:
    """The part of a path that `escape` was given."""
    return "" if stored == "%" else urllib.parse.unquote(stored, errors="surrogatepass")


def write(folder: pathlib.Path, leaves: Mapping[str, Any]) -> None:
    """Writes arrays to a folder that does not exist, and looks whether they can be read back.

    Args:
      folder: its parent exists.
      leaves: `{path: array}`, the parts of a path escaped, with slashes between.

    Raises:
      OSError: it cannot be written.
    """
    with _calmly(folder) as place:
        _checkpointer().save(place, args=_orbax().args.StandardSave(_nest(leaves)))
    written = {name.replace("/", "."): Kind(str(leaf.dtype), tuple(leaf.shape)) for name, leaf in leaves.items()}
    if (found := describe(folder)) != written:
        lost = ", ".join(sorted(set(written) - set(found))) or "another form"
        raise StoreError(f"what was written cannot be read back: {lost}")


def describe(folder: pathlib.Path) -> dict[str, Kind]:
    """The arrays in a folder by their names, of which nothing is read but the description.

    Raises:
      ValueError: something there is no file, or an array is described in a way that no program writes, and which would
        take more time or memory than there is.
    """
    plain_files(folder)
    import tensorstore

    forms = {}
    with _calmly(folder) as place:
        base = {"driver": "file", "path": f"{place}/"}
        merged = (place / "manifest.ocdbt").exists()
        store = tensorstore.KvStore.open({"driver": "ocdbt", "base": base} if merged else base).result()
        for key in store.list().result():
            name, _, last = key.decode(errors="replace").rpartition("/")
            if last in (".zarray", "zarr.json") and name:
                forms[name] = store.read(key).result().value
    return {name: _kind(name, files.parse_json(form, f"the form of {name}")) for name, form in forms.items()}


def read(folder: pathlib.Path, like: Mapping[str, Any]) -> dict[str, Any]:
    """Reads the arrays of a folder.

    Args:
      folder: of `write`.
      like: `{path: array of NumPy, or shape, dtype and perhaps sharding}`, the paths as in `write`.

    Returns:
      `{path: array}`.

    Raises:
      ValueError: the folder has other arrays. OSError: it cannot be read.
    """
    if not like:
        return {}
    wanted = {name.replace("/", "."): Kind(str(leaf.dtype), tuple(leaf.shape)) for name, leaf in like.items()}
    there = describe(folder)
    if wrong := [name for name in {**wanted, **there} if wanted.get(name) != there.get(name)]:
        raise ValueError(f"its array {wrong[0]} is not the one that its list of leaves tells of")
    with _calmly(folder) as place:
        tree = _checkpointer().restore(place, args=_orbax().args.StandardRestore(_nest(like)))
        return {path_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def read_any(folder: pathlib.Path) -> Tree:
    """Reads the arrays of a folder that any program has written with Orbax, as nested dicts of NumPy arrays.

    Raises:
      ValueError: it is no such folder, or its arrays take more memory than is free. OSError: it cannot be read.
    """
    free, size = files.free_memory(), sum(plain_files(folder).values())
    needed = size if size > free else sum(map(_bytes, describe(folder).values()))
    if needed > free:
        raise ValueError(f"its arrays take {needed} bytes, but only {free} bytes of memory are free")
    orbax = _orbax()
    with _calmly(folder) as place, orbax.Checkpointer(orbax.PyTreeCheckpointHandler()) as checkpointer:
        tree = getattr(checkpointer.metadata(place).item_metadata, "tree", None)
        numpy = jax.tree.map(lambda _: orbax.RestoreArgs(restore_type=np.ndarray), tree)
        return tree and checkpointer.restore(place, args=orbax.args.PyTreeRestore(restore_args=numpy))


def plain_files(folder: pathlib.Path) -> dict[str, int]:
    """The sizes of all files in a folder, by path.

    Raises:
      ValueError: something is neither a file nor a folder. OSError: something cannot be looked at.
    """

    def fail(error: OSError) -> None:
        raise error

    found = {}
    for place, _, names in os.walk(folder, onerror=fail):
        for name in names:
            file = pathlib.Path(place, name)
            if not file.is_file():
                raise ValueError(f"it has something that is no file, {file.relative_to(folder)}")
            found[file.relative_to(folder).as_posix()] = file.stat().st_size
    return found


def flatten(tree: Tree, part: Callable[[str], str] = escape) -> dict[str, Any]:
    """The leaves of a tree by path, its parts escaped, or as `part` has them, and with slashes between.

    Raises:
      ValueError: two leaves of one path.
    """
    found: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = "/".join(part(jax.tree_util.keystr((key,), simple=True)) for key in path) or part("")
        if name in found:
            raise ValueError(f"Two leaves have the path '{path_name(path)}'; rename one of them.")
        found[name] = leaf
    return found


def readable(path: str) -> str:
    """An escaped path as `task_params.path_name` has it."""
    return "/".join(map(unescape, path.split("/")))


def _nest(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts of leaves by path, which any program that has Orbax can read."""
    tree: dict[str, Any] = {}
    for name, leaf in leaves.items():
        *outer, last = name.split("/")
        place = tree
        for part in outer:
            place = place.setdefault(part, {})
        place[last] = leaf
    return tree


def _kind(name: str, form: Any) -> Kind:
    """Type and shape by an array's description in Zarr's format, version 2 or 3."""
    try:
        if "chunks" in form:
            dtype, chunks = form["dtype"], form["chunks"]
        else:
            dtype, chunks = form["data_type"], form["chunk_grid"]["configuration"]["chunk_shape"]
        dtype = np.dtype(dtype) if isinstance(dtype, str) else None
        shape = tuple(whole("a side", side, most=2**63 - 1) for side in form["shape"])
        chunks = tuple(whole("a side", side, least=1, most=2**63 - 1) for side in chunks)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"its array {name} has a form that cannot be read ({error})") from None
    if dtype is None or dtype.hasobject or len(shape) != len(chunks):
        raise ValueError(f"its array {name} has a form that cannot be")
    kind = Kind(dtype.name, shape)
    count = math.prod(-(-side // chunk) for side, chunk in zip(shape, chunks, strict=True))
    if count > CHUNKS or _bytes(Kind(dtype.name, chunks)) > 2 * _bytes(kind) + 2**20:
        raise ValueError(f"its array {name} of shape {shape} is stored in {count} chunks of shape {chunks}")
    return kind


def _bytes(kind: Kind) -> int:
    return np.dtype(kind.dtype).itemsize * math.prod(kind.shape)


def _orbax() -> Any:
    import orbax.checkpoint

    return orbax.checkpoint


def _checkpointer() -> Any:
    return _orbax().Checkpointer(_orbax().StandardCheckpointHandler())


@contextlib.contextmanager
def _calmly(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """The folder by a path for libraries, whose own logs are dropped and whose errors become one line.

    Raises:
      StoreError: what the libraries raise, but for errors of the system and of memory.
    """
    silent = lambda record: False
    logger, hook = logging.getLogger("absl"), sys.unraisablehook
    closed = lambda error: isinstance(error, RuntimeError) and str(error) == "Event loop is closed"
    sys.unraisablehook = lambda told: None if closed(told.exc_value) else hook(told)
    logger.addFilter(silent)
    try:
        with _plain(folder) as place:
            try:
                yield place
            except (OSError, MemoryError):
                raise
            except Exception as error:
                time.sleep(SETTLED)
                reason = " ".join(str(error).split()).partition(" [tensorstore_spec")[0] or type(error).__name__
                raise StoreError(reason.replace(str(place), str(folder))) from error
    finally:
        logger.removeFilter(silent)
        sys.unraisablehook = hook


@contextlib.contextmanager
def _plain(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """A path of the folder in which no library finds a pattern, an address or an escape: its own, or through a link."""
    ordinary = re.compile(r"[\w.,+=@ /-]+", re.ASCII)
    places = [place for place in (tempfile.gettempdir(), "/tmp", "/var/tmp") if ordinary.fullmatch(place)]
    if ordinary.fullmatch(str(folder)) or jax.process_count() > 1 or not places:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="cljax-", dir=places[0], ignore_cleanup_errors=True) as place:
        link = pathlib.Path(place, "link")
        link.symlink_to(folder if folder.exists() else folder.parent)
        yield link if folder.exists() else link / folder.name
