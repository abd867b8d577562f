"""Data sets that TFDS has prepared as ArrayRecord files: where they are, what they are, and how one is made."""

from __future__ import annotations

import contextlib
import difflib
import os
import pathlib
import tempfile

from cljax.data import declared
from cljax.data.keeping import clear
from cljax.files import folder_path, shown, user_cache
from cljax.numbers import show

KNOWN = ("cifar10", "cifar100", "fashion_mnist", "mnist")
"""Those that `prepare` makes without TensorFlow, besides the digits."""


def prepare(
    name: str,
    data_dir: str | os.PathLike | None = None,
    *,
    archives: str | os.PathLike | None = None,
    verify: bool = True,
) -> pathlib.Path:
    """Prepares MNIST, Fashion-MNIST, CIFAR-10 or CIFAR-100 for `load`, without TensorFlow.

    The archives are downloaded, or taken from a folder, and verified by the checksums that TFDS has registered.

    Args:
      name: `'mnist'`, `'fashion_mnist'`, `'cifar10'`, `'cifar100'` or `'digits'` (of which nothing is downloaded).
      data_dir: as in `load`.
      archives: a folder with the official archives under their own names (gzipped idx files; CIFAR's binary tar.gz), or
        with a sub-folder of the data set's name that holds them. None downloads them.
      verify: whether archives given must have the registered sizes and checksums; downloads always must.

    Returns:
      The folder of the prepared files. One that is there already is left alone.

    Raises:
      ValueError: another name, with a way to prepare it; an archive that is missing, cannot be downloaded, is not the
        registered one, or is broken; files that are there, but damaged. OSError: the folder cannot be written.

    Example:
      >>> from cljax.data import prepare
      >>> prepare("mnist")  # doctest: +SKIP
      PosixPath('/home/me/tensorflow_datasets/mnist/3.0.1')
    """
    if name not in ("digits", *KNOWN):
        name = _short(name)
        close = difflib.get_close_matches(name, ("digits", *KNOWN))
        raise ValueError(
            f"The data set {name!r} is none of those prepared here, which are digits, {', '.join(KNOWN)}: "
            + (f"did you mean {' or '.join(map(repr, close))}?" if close else f"{recipe(name)}.")
        )
    directory = data_folder(data_dir)
    clear(directory / name)
    if name in ("digits", *prepared(directory)):
        folder = find(name, data_dir)
        declared.check_files(folder, declared.read(folder))
        return folder
    return _build(name, directory, archives, verify=verify)


def available(data_dir: str | os.PathLike | None = None) -> list[tuple[str, str, bool]]:
    """Lists the data sets that `load` knows: `(name, one-line description, prepared)`.

    Those prepared in `data_dir` (by default as in `load`), then those that `prepare` makes. One whose files are damaged
    is not prepared, and its description says what is wrong with it.

    Example:
      >>> from cljax import data
      >>> [name for name, _, prepared in data.available() if name == 'digits' and prepared]
      ['digits']
    """
    found = {name: _describe(folder) for name, folder in prepared(data_folder(data_dir)).items()}
    rows = [(shown(name), *about) for name, about in sorted(found.items())]
    if "digits" not in found:
        ready = data_dir is None and "digits" in prepared(cache_folder())
        rows.insert(0, ("digits", "1,797 images 8x8x1, 10 classes, of scikit-learn; prepared on first use", ready))
    rows += [(name, "not prepared: " + recipe(name), False) for name in KNOWN if name not in found]
    return rows


def data_folder(data_dir: str | os.PathLike | None) -> pathlib.Path:
    """The folder of TFDS's prepared data sets: the one given, else `$TFDS_DATA_DIR`, else `~/tensorflow_datasets`."""
    if given := data_dir or os.environ.get("TFDS_DATA_DIR"):
        return folder_path(given)
    try:
        return folder_path("~/tensorflow_datasets")
    except ValueError:  # there is no home
        return cache_folder()


def cache_folder() -> pathlib.Path:
    """Where decoded folders of images are kept, and the digits where TFDS has no folder of its own."""
    try:
        return user_cache()
    except ValueError:  # there is no home
        return _temporary()


def _temporary() -> pathlib.Path:
    return pathlib.Path(tempfile.gettempdir()) / f"cljax-{os.getuid()}"


def folder_name(path: pathlib.Path) -> str:
    """The name of a folder, as data sets and errors show it."""
    return shown(path.resolve().name) or "images"


def prepared(directory: pathlib.Path) -> dict[str, pathlib.Path]:
    """The newest version's folder of every prepared data set (`name` or `name/configuration`)."""
    found: dict[str, tuple[tuple[int, ...], pathlib.Path]] = {}
    for pattern in ("[!.]*/*/dataset_info.json", "[!.]*/*/*/dataset_info.json"):
        for path in _glob(directory, pattern):
            parts = path.parent.name.split(".")
            if not all(part.isdecimal() and len(part) < 10 for part in parts):
                continue
            name = path.parent.parent.relative_to(directory).as_posix()
            version = tuple(int(part) for part in parts)
            if name not in found or found[name][0] < version:
                found[name] = (version, path.parent)
    return {name: folder for name, (_, folder) in found.items()}


def _glob(directory: pathlib.Path, pattern: str) -> list[pathlib.Path]:
    try:
        return list(directory.glob(pattern))
    except OSError:  # not to be entered, or of too long a name
        return []


def find(name: str, data_dir: str | os.PathLike | None) -> pathlib.Path:
    """The folder of a prepared data set; the digits are prepared on demand."""
    directory = data_folder(data_dir)
    found = prepared(directory)
    if name in found:
        return found[name]
    if name == "digits":
        if data_dir:
            return _build(name, directory)
        places = [cache_folder(), _temporary()]  # a shared $TFDS_DATA_DIR, or a home, is often not ours to write
        for place in [directory, *places] if os.environ.get("TFDS_DATA_DIR") else places:
            with contextlib.suppress(OSError):
                return _build(name, place)
        return _build(name, places[0])
    if name.startswith((".", "/", "~")):
        raise ValueError(f"There is no folder {_short(name)}. A folder of images has a sub-folder for each class.")
    names = sorted({"digits", *found})
    name = _short(name)
    close = difflib.get_close_matches(name, sorted({*names, *KNOWN}), n=3)
    raise ValueError(
        f"There is no data set {name!r} in {shown(directory)}. "
        + (f"Did you mean {' or '.join(repr(match) for match in close)}? " if close and name not in close else "")
        + f"Ready for use: {', '.join(names)}. A folder of images is named by its path. Any "
        f"image-classification set that TFDS has prepared as ArrayRecord files can be used: "
        f"{recipe(close[0] if close else name)}; "
        f"and $TFDS_DATA_DIR, or data_dir (--data-dir), says where prepared sets are."
    )


def _build(
    name: str, directory: pathlib.Path, archives: str | os.PathLike | None = None, *, verify: bool = True
) -> pathlib.Path:
    from cljax.data import builders

    declared.check_path(directory)
    try:
        return builders.prepare(name, directory, archives, verify=verify)
    except OSError as error:
        raise OSError(
            f"The data set {name!r} cannot be prepared in {shown(directory)} ({error.strerror or error}). Choose "
            f"another folder with data_dir (--data-dir) or $TFDS_DATA_DIR."
        ) from error


def _short(name: object) -> str:
    """A name as errors show it."""
    words = shown(str(name))
    return words if len(words) <= 200 else f"{words[:200]}..."


def recipe(name: str) -> str:
    """How to prepare a data set."""
    if name in KNOWN:
        return f"prepare it once with `cljax data prepare {name}` (or cljax.data.prepare), which downloads it"
    return f"prepare it once with `tfds build {name} --file_format=array_record`, for which TFDS may need TensorFlow"


def _describe(folder: pathlib.Path) -> tuple[str, bool]:
    """Sizes from the folder's JSON files, without importing TFDS, and whether its files are as they say."""
    try:
        found = declared.read(folder)
        if found.file_format != "array_record":
            return f"prepared as {found.file_format} files, of which only ArrayRecord is read", False
        if kind := declared.foreign(found):
            return f"has a feature of the class {show(kind)}, which is none of TFDS's", False
        declared.check_files(folder, found)
    except declared.DamagedError as error:
        return str(error), False
    if found.shape is None:
        return "prepared, but not image classification", True
    shape = "x".join("-1" if side is None else str(side) for side in found.shape)
    sizes = [f"{sum(lengths):,} {split}" for split, lengths in found.splits.items()]
    return f"images {shape}, {found.classes} classes, {' and '.join(sizes)} examples", True
