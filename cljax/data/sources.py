"""Data sets as arrays in memory: from prepared TFDS files, decoded once, or from a user's own arrays."""

from __future__ import annotations

import difflib
import io
import json
import math
import os
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from cljax.data import folders
from cljax.data.checks import check_images, check_labels, check_pair
from cljax.data.images import Size, height_and_width
from cljax.data.records import Records
from cljax.data.streaming import Images
from cljax.data.superclasses import Groups

_DECODED, _LABELS = "cljax-decoded.npz", "cljax-labels.npz"
_KNOWN = ("cifar10", "cifar100", "fashion_mnist", "mnist")


class Dataset(NamedTuple):
    """Labelled images, training part first, in one array that all streams share.

    Attributes:
      images: `[n, H, W, C]` uint8 (or float32; or vectors `[n, D]`); `streaming.Images` where they are read on demand.
      labels: `[n]` int32, or `[n, K]` float32 in [0, 1], multi-label.
      train_size: number of training examples; those that follow are the test part.
      classes: K names.
      name: such as `'digits'`.
      groups: named groups of classes, `((name, classes), ...)`: the data sets of `combine`.
      statistics: mean and standard deviation a channel that the network is to standardise by; those of the training
        images where None.
    """

    images: Any
    labels: np.ndarray
    train_size: int
    classes: tuple[str, ...]
    name: str
    groups: Groups = ()
    statistics: tuple[tuple[float, ...], tuple[float, ...]] | None = None

    @property
    def train_images(self) -> Any:
        """The training part's images, a view."""
        return self.images[: self.train_size]

    @property
    def train_labels(self) -> np.ndarray:
        """The training part's labels, a view."""
        return self.labels[: self.train_size]

    @property
    def test_images(self) -> Any:
        """The test part's images, a view."""
        return self.images[self.train_size :]

    @property
    def test_labels(self) -> np.ndarray:
        """The test part's labels, a view."""
        return self.labels[self.train_size :]


def from_arrays(
    train_images: Any,
    train_labels: Any,
    test_images: Any,
    test_labels: Any,
    *,
    classes: Sequence[str] | None = None,
    name: str = "arrays",
) -> Dataset:
    """Makes a data set of NumPy arrays.

    Args:
      train_images: `[n, H, W, C]` or `[n, D]`, uint8 (0 to 255) or float32.
      train_labels: `[n]` whole numbers 0..K-1, or `[n, K]` float32 in [0, 1], multi-label.
      test_images: like `train_images`, n may differ.
      test_labels: like `train_labels`.
      classes: K names; numbers where None, K being the largest training label plus one (or the number of columns).
      name: of the data set.

    Raises:
      TypeError, ValueError: wrong dtypes, ranks or lengths, differing shapes, labels out of range, NaN or infinity.

    Example:
      >>> images = np.zeros((6, 4, 4, 1), np.uint8)
      >>> data = from_arrays(images, [0, 1, 2, 0, 1, 2], images[:3], [0, 1, 2])
      >>> data.classes, data.train_size, data.test_images.shape
      (('0', '1', '2'), 6, (3, 4, 4, 1))
    """
    train_images, test_images = check_images(train_images, "train_images"), check_images(test_images, "test_images")
    check_pair(train_images, test_images, "train_images", "test_images")
    count = None if classes is None else len(classes)
    train_labels = check_labels(train_labels, train_images, "train_labels", "train_images", count)
    if count is None:
        count = train_labels.shape[1] if train_labels.ndim == 2 else int(train_labels.max()) + 1
    test_labels = check_labels(test_labels, test_images, "test_labels", "test_images", count)
    if train_labels.ndim != test_labels.ndim:
        raise ValueError(
            f"train_labels have shape {train_labels.shape}, but test_labels have shape {test_labels.shape}. "
            f"Either both are whole numbers [n], or both are float32 [n, K]."
        )
    images = np.concatenate([train_images, test_images])
    labels = np.concatenate([train_labels, test_labels])
    names = tuple(str(label) for label in (range(count) if classes is None else classes))
    return Dataset(images, labels, len(train_images), names, name)


def load(name: str, data_dir: str | os.PathLike | None = None, *, image_size: Size | None = None) -> Dataset:
    """Loads `'digits'`, an image-classification set that TFDS has prepared as ArrayRecord files, or a folder of images.

    A TFDS set needs a feature `image`, a feature `label`, a split `train` and a split `test` (else `validation`). A
    folder has a sub-folder for each class, or such folders in `train` and in `test` (or `val`); without these, a fifth
    of each class, drawn by a fixed seed, is the test part. Images are decoded once; the arrays are kept for the next
    time, beside TFDS's files where that folder can be written, of a folder in `$XDG_CACHE_HOME/cljax` or
    `~/.cache/cljax`.

    Args:
      name: as TFDS calls it, with the configuration where there is one: `'cifar100'`, `'rock_you/config'`; or the path
        of a folder of images.
      data_dir: where TFDS's prepared data sets are. By default `$TFDS_DATA_DIR`, else `~/tensorflow_datasets`; for the
        digits, which are prepared on demand, `$TFDS_DATA_DIR`, else `$XDG_CACHE_HOME/cljax` or `~/.cache/cljax`.
      image_size: resize all images to it (a side, or height and width), each whole, by bilinear interpolation; needed
        where they differ in size.

    Raises:
      ValueError: no such data set (the message says what there is), one that is not image classification, or one of
        images that differ in size where no `image_size` is given.

    Example:
      >>> load("digits").train_images.shape  # doctest: +SKIP
      (1438, 8, 8, 1)
    """
    if _is_folder(name, data_dir):
        found = folders.scan(name, image_size)
        images = folders.decode(found, _cache() / "folders")
        return Dataset(images, found.labels, found.train_size, found.classes, _folder_name(name))
    folder = _folder(name, data_dir)
    kept = _DECODED if image_size is None else "cljax-decoded-{}x{}.npz".format(*height_and_width(image_size))
    arrays = _decoded(folder, file_name=kept)
    if arrays is None:
        arrays = _decode(name, folder, image_size)
        _keep(folder, arrays, kept)
    data = from_arrays(
        *(arrays[part] for part in ("train_images", "train_labels", "test_images", "test_labels")),
        classes=[str(label) for label in arrays["classes"]],
        name=name,
    )
    return data


def open(name: str, data_dir: str | os.PathLike | None = None, *, image_size: Size | None = None) -> Dataset:
    """Opens a data set that need not fit into memory: its images are read, and decoded, whenever they are asked for.

    As `load` but for that: the same sets, and the same images and labels in the same order. Labels are read once, and
    kept beside the files for the next time, where that folder can be written. For the host driver.

    Args:
      name: as in `load`.
      data_dir: as in `load`.
      image_size: as in `load`, for a folder of images; TFDS's sets are read on demand in their own size.

    Returns:
      The data set; its `images` are `streaming.Images`.

    Raises:
      ValueError: as in `load`, and for images that are not uint8.

    Example:
      >>> open("digits").train_images.take([0, 1]).shape  # doctest: +SKIP
      (2, 8, 8, 1)
    """
    if _is_folder(name, data_dir):
        found = folders.scan(name, image_size)
        images = Images([found.images], found.images.shape, name=_folder_name(name))
        return Dataset(images, found.labels, found.train_size, found.classes, _folder_name(name))
    if image_size is not None:
        raise ValueError(
            f"The images of {name!r} are read on demand in their own size. Load them, to resize them once."
        )
    folder = _folder(name, data_dir)
    builder, test = _checked(name, folder)
    image = builder.info.features["image"]
    if image.np_dtype != np.uint8:
        raise ValueError(f"The images of the data set {name!r} are {image.np_dtype}; only uint8 is read on demand.")
    records = [Records(builder, split, image.shape) for split in ("train", test)]
    parts = ("train_labels", "test_labels")
    kept = _decoded(folder, parts) or _decoded(folder, parts, _LABELS)
    if kept is None:
        kept = dict(zip(parts, (part.labels() for part in records), strict=True))
        _keep(folder, kept, _LABELS)
    images = Images(records, image.shape, name=name)
    labels = np.concatenate([kept[part] for part in parts]).astype(np.int32)
    return Dataset(images, labels, len(records[0]), tuple(builder.info.features["label"].names), name)


def decoded_bytes(name: str, data_dir: str | os.PathLike | None = None, *, image_size: Size | None = None) -> int:
    """How many bytes the images of a data set take as an array, by its JSON files or the heads of a folder's images.

    Returns:
      The bytes; 0 for a set that is not prepared or not image classification, on which `load` has something to say.
    """
    if _is_folder(name, data_dir):
        try:
            images = folders.scan(name, image_size).images
        except ValueError:
            return 0
        return len(images) * math.prod(images.shape)
    folder = _prepared(_directory(data_dir)).get(name)
    if folder is None:
        return 0
    try:
        splits = json.loads((folder / "dataset_info.json").read_text())["splits"]
        features = json.loads((folder / "features.json").read_text())["featuresDict"]["features"]
        shape = [int(size) for size in features["image"]["image"]["shape"]["dimensions"]]
        if image_size is not None:
            shape[:2] = height_and_width(image_size)
        used = [split for split in splits if split["name"] in ("train", "test", "validation")]
        return sum(sum(map(int, split["shardLengths"])) for split in used) * math.prod(shape)
    except (OSError, KeyError, ValueError):
        return 0


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
        registered one, or is broken. OSError: the folder cannot be written.

    Example:
      >>> prepare("mnist")  # doctest: +SKIP
      PosixPath('/home/me/tensorflow_datasets/mnist/3.0.1')
    """
    if name not in ("digits", *_KNOWN):
        close = difflib.get_close_matches(name, ("digits", *_KNOWN))
        raise ValueError(
            f"The data set {name!r} is none of those prepared here, which are digits, {', '.join(_KNOWN)}: "
            + (f"did you mean {' or '.join(map(repr, close))}?" if close else f"{_recipe(name)}.")
        )
    directory = _directory(data_dir)
    if name in ("digits", *_prepared(directory)):
        return _folder(name, data_dir)
    return _build(name, directory, archives, verify=verify)


def available(data_dir: str | os.PathLike | None = None) -> list[tuple[str, str, bool]]:
    """Lists the data sets that `load` knows: `(name, one-line description, prepared)`.

    Those prepared in `data_dir` (by default as in `load`), then those that TFDS could prepare.
    """
    found = {name: _describe(folder) for name, folder in _prepared(_directory(data_dir)).items()}
    rows = [(name, text, True) for name, text in sorted(found.items())]
    if "digits" not in found:
        ready = data_dir is None and "digits" in _prepared(_cache())
        rows.insert(0, ("digits", "1,797 images 8x8x1, 10 classes, of scikit-learn; prepared on first use", ready))
    rows += [(name, "not prepared: " + _recipe(name), False) for name in _KNOWN if name not in found]
    return rows


def _directory(data_dir: str | os.PathLike | None) -> pathlib.Path:
    return pathlib.Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def _cache() -> pathlib.Path:
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "cljax"


def _is_folder(name: str, data_dir: str | os.PathLike | None) -> bool:
    """Whether a name is the path of a folder of images; names of data sets come first."""
    known = name in ("digits", *_KNOWN) or name in _prepared(_directory(data_dir))
    return not known and pathlib.Path(name).expanduser().is_dir()


def _folder_name(path: str) -> str:
    return pathlib.Path(path).expanduser().resolve().name


def _prepared(directory: pathlib.Path) -> dict[str, pathlib.Path]:
    """The newest version's folder of every prepared data set (`name` or `name/configuration`)."""
    found: dict[str, tuple[tuple[int, ...], pathlib.Path]] = {}
    for pattern in ("[!.]*/*/dataset_info.json", "[!.]*/*/*/dataset_info.json"):
        for path in directory.glob(pattern):
            parts = path.parent.name.split(".")
            if not all(part.isdigit() for part in parts):
                continue
            name = path.parent.parent.relative_to(directory).as_posix()
            version = tuple(int(part) for part in parts)
            if name not in found or found[name][0] < version:
                found[name] = (version, path.parent)
    return {name: folder for name, (_, folder) in found.items()}


def _folder(name: str, data_dir: str | os.PathLike | None) -> pathlib.Path:
    """The folder of a prepared data set; the digits are prepared on demand."""
    directory = _directory(data_dir)
    found = _prepared(directory)
    if name in found:
        return found[name]
    if name == "digits":
        if data_dir:
            return _build(name, directory)
        try:
            return _build(name, directory if os.environ.get("TFDS_DATA_DIR") else _cache())
        except OSError:
            return _build(name, _cache())  # a shared $TFDS_DATA_DIR is often not ours to write
    names = sorted({"digits", *found})
    close = difflib.get_close_matches(name, sorted({*names, *_KNOWN}), n=3)
    raise ValueError(
        f"There is no data set {name!r} in {directory}. "
        + (f"Did you mean {' or '.join(repr(match) for match in close)}? " if close and name not in close else "")
        + f"Ready for use: {', '.join(names)}. A folder of images is named by its path. Any "
        f"image-classification set that TFDS has prepared as ArrayRecord files can be used: "
        f"{_recipe(close[0] if close else name)}; "
        f"and $TFDS_DATA_DIR, or the option data_dir, says where prepared sets are."
    )


def _build(
    name: str, directory: pathlib.Path, archives: str | os.PathLike | None = None, *, verify: bool = True
) -> pathlib.Path:
    from cljax.data import builders

    return builders.prepare(name, directory, archives, verify=verify)


def _recipe(name: str) -> str:
    if name in _KNOWN:
        return f"prepare it once with `cljax data prepare {name}` (or cljax.data.prepare), which downloads it"
    return f"prepare it once with `tfds build {name} --file_format=array_record`, for which TFDS may need TensorFlow"


def _describe(folder: pathlib.Path) -> str:
    """Sizes from the folder's JSON files alone, without importing TFDS."""
    try:
        splits = json.loads((folder / "dataset_info.json").read_text()).get("splits", [])
        features = json.loads((folder / "features.json").read_text())["featuresDict"]["features"]
        shape = "x".join(features["image"]["image"]["shape"]["dimensions"])
        classes = features["label"]["classLabel"]["numClasses"]
    except (OSError, KeyError, ValueError):
        return "prepared, but not image classification"
    sizes = [f"{sum(map(int, split.get('shardLengths', []))):,} {split['name']}" for split in splits]
    return f"images {shape}, {classes} classes, {' and '.join(sizes)} examples"


def _decode(name: str, folder: pathlib.Path, image_size: Size | None = None) -> dict[str, np.ndarray]:
    """Reads, decodes and resizes both splits of a prepared data set through TFDS's data source."""
    import tensorflow_datasets as tfds
    from PIL import Image

    builder, test = _checked(name, folder, image_size)
    features = builder.info.features
    shape = (
        features["image"].shape if image_size is None else (*height_and_width(image_size), features["image"].shape[-1])
    )
    arrays = {"classes": np.asarray(features["label"].names)}
    for part, split in (("train", "train"), ("test", test)):
        source = builder.as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()})
        images = np.empty((len(source), *shape), features["image"].np_dtype)
        labels = np.empty(len(source), np.int64)
        for start in range(0, len(source), 1024):
            rows = range(start, min(start + 1024, len(source)))
            for row, example in zip(rows, source.__getitems__(list(rows)), strict=True):
                picture: Any = Image.open(io.BytesIO(example["image"]))
                if image_size is not None:
                    picture = picture.resize((shape[1], shape[0]), Image.Resampling.BILINEAR)
                images[row] = np.asarray(picture).reshape(shape)
                labels[row] = example["label"]
        arrays |= {f"{part}_images": images, f"{part}_labels": labels}
    return arrays


def _checked(name: str, folder: pathlib.Path, image_size: Size | None = None) -> tuple[Any, str]:
    """TFDS's builder of a prepared data set that is image classification, and the name of its test split."""
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(folder)
    features, splits = dict(builder.info.features), sorted(builder.info.splits)
    if not isinstance(features.get("image"), tfds.features.Image) or not isinstance(
        features.get("label"), tfds.features.ClassLabel
    ):
        raise ValueError(
            f"The data set {name!r} is not image classification: it needs a feature 'image' (an image) and a feature "
            f"'label' (a class), but has {', '.join(sorted(features))}. Read it yourself and pass NumPy arrays to "
            f"data.from_arrays."
        )
    test = next((split for split in ("test", "validation") if split in splits), None)
    if "train" not in splits or test is None:
        raise ValueError(
            f"The data set {name!r} has the splits {', '.join(splits)}, but 'train' and 'test' (or 'validation') are "
            f"needed. Divide it yourself and pass NumPy arrays to data.from_arrays."
        )
    if builder.info.file_format.value != "array_record":
        raise ValueError(
            f"The data set {name!r} is prepared as {builder.info.file_format.value} files, which cannot be read "
            f"without TensorFlow. Prepare it anew as ArrayRecord files: {_recipe(name)}."
        )
    shape = features["image"].shape
    if None in shape and image_size is None:
        raise ValueError(
            f"The images of the data set {name!r} differ in size (shape {shape}), but one size is needed. Give the "
            f"size to resize them to: data.load(..., image_size=64) (--image-size 64)."
        )
    if image_size is not None and features["image"].np_dtype != np.uint8:
        raise ValueError(
            f"The images of the data set {name!r} are {features['image'].np_dtype}; only uint8 is resized."
        )
    return builder, test


def _decoded(
    folder: pathlib.Path, names: Sequence[str] | None = None, file_name: str = _DECODED
) -> dict[str, np.ndarray] | None:
    """The kept arrays (those named only), or None where there are none, or none that can be read."""
    try:
        with np.load(folder / file_name, allow_pickle=False) as file:
            return {name: file[name] for name in names or file.files}
    except (OSError, ValueError, EOFError, KeyError):
        return None


def _keep(folder: pathlib.Path, arrays: dict[str, np.ndarray], file_name: str = _DECODED) -> None:
    """Keeps decoded arrays beside their files, atomically; leaves it where the folder cannot be written."""
    try:
        handle, draft = tempfile.mkstemp(prefix=".draft-", suffix=".npz", dir=folder)
    except OSError:
        return
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
        os.chmod(draft, (folder / "dataset_info.json").stat().st_mode & 0o777)
        os.replace(draft, folder / file_name)
    except OSError:
        pathlib.Path(draft).unlink(missing_ok=True)
