"""Loading data sets by name: prepared TFDS files or a folder of images, decoded once or read on demand."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import pathlib

import numpy as np

from cljax.data import declared, image_folders, pictures
from cljax.data.arrays import PARTS, check_labels
from cljax.data.dataset import Dataset, from_arrays
from cljax.data.images import Size, height_and_width
from cljax.data.keeping import keep_arrays, kept_arrays
from cljax.data.on_demand import Images
from cljax.data.prepared import KNOWN, cache_folder, data_folder, find, folder_name, prepared
from cljax.data.records import Records, open_builder, version_identity
from cljax.files import folder_path
from cljax.numbers import show


def load(name: str, data_dir: str | os.PathLike | None = None, *, image_size: Size | None = None) -> Dataset:
    """Loads `'digits'`, an image-classification set that TFDS has prepared as ArrayRecord files, or a folder of images.

    A TFDS set needs a feature `image`, a feature `label`, a split `train` and a split `test` (else `validation`, also
    where `test` has no labels). A folder has a sub-folder for each class, or such folders in `train` and in `test` (or
    `val`); without these, a fifth of each class, drawn by a fixed seed, is the test part; `image_folders.scan` has the
    details. Images are PNG, JPEG, GIF, BMP, WebP, TIFF or PPM files of at most eight bits. They are decoded once; the
    arrays are kept until a file changes, beside TFDS's files where that folder can be written, of a folder in
    `$XDG_CACHE_HOME/cljax` or `~/.cache/cljax`.

    Args:
      name: as TFDS calls it, with the configuration where there is one: `'cifar100'`, `'rock_you/config'`; or the path
        of a folder of images.
      data_dir: where TFDS's prepared data sets are. By default `$TFDS_DATA_DIR`, else `~/tensorflow_datasets`; for the
        digits, which are prepared on demand, `$TFDS_DATA_DIR`, else `$XDG_CACHE_HOME/cljax` or `~/.cache/cljax`.
      image_size: resize all images to it (a side, or height and width), each whole, by bilinear interpolation; needed
        where they differ in size.

    Raises:
      ValueError: no such data set (the message says what there is), one that is damaged or not image classification, or
        one of images that differ in size where no `image_size` is given, or that do not fit into memory.

    Example:
      >>> from cljax.data import load
      >>> load("digits").train_images.shape  # doctest: +SKIP
      (1438, 8, 8, 1)
    """
    name, image_size = _checked(name, image_size)
    if _is_folder(name, data_dir):
        return _load_folder(name, image_size)
    folder, size = find(name, data_dir), "" if image_size is None else "-{}x{}".format(*image_size)
    place, key = folder / f"cljax-decoded{size}.npz", version_identity(folder, pictures.DECODER)
    arrays = kept_arrays(place, key, ("classes", *PARTS))
    if arrays is None:
        builder, test = open_builder(name, folder, image_size)
        arrays = {"classes": np.asarray(builder.info.features["label"].names)}
        for part, split in (("train", "train"), ("test", test)):
            arrays[f"{part}_images"], arrays[f"{part}_labels"] = Records(builder, split, image_size).arrays(name)
        keep_arrays(place, key, arrays, mode=_mode(folder))
    return from_arrays(*(arrays[part] for part in PARTS), classes=[str(one) for one in arrays["classes"]], name=name)


def open(name: str, data_dir: str | os.PathLike | None = None, *, image_size: Size | None = None) -> Dataset:
    """Opens a data set that need not fit into memory: its images are read, and decoded, whenever they are asked for.

    As `load` but for that: the same sets, and the same images and labels in the same order. Labels are read once, and
    kept beside the files for the next time, where that folder can be written. For the host driver.

    Args:
      name: as in `load`.
      data_dir: as in `load`.
      image_size: as in `load`.

    Returns:
      The data set; its `images` are `on_demand.Images`.

    Raises:
      ValueError: as in `load`, and for images that are not uint8.

    Example:
      >>> open("digits").train_images.take([0, 1]).shape  # doctest: +SKIP
      (2, 8, 8, 1)
    """
    name, image_size = _checked(name, image_size)
    if _is_folder(name, data_dir):
        title, found = folder_name(folder_path(name)), image_folders.scan(name, image_size)
        images = Images([found.images], found.images.shape, name=title)
        return Dataset(images, found.labels, found.train_size, found.classes, title)
    folder = find(name, data_dir)
    builder, test = open_builder(name, folder, image_size)
    features = builder.info.features
    if features["image"].np_dtype != np.uint8:
        raise ValueError(
            f"The images of the data set {name!r} are {features['image'].np_dtype}; only uint8 is read on demand. Load "
            f"them (--driver scan)."
        )
    records = [Records(builder, split, image_size) for split in ("train", test)]
    parts, place, key = ("train_labels", "test_labels"), folder / "cljax-labels.npz", version_identity(folder)
    decoded = version_identity(folder, pictures.DECODER)
    kept = kept_arrays(folder / "cljax-decoded.npz", decoded, parts) or kept_arrays(place, key, parts)
    if kept is None:
        kept = dict(zip(parts, (part.labels() for part in records), strict=True))
        keep_arrays(place, key, kept, mode=_mode(folder))
    images, classes = Images(records, records[0].shape, name=name), tuple(features["label"].names)
    pairs = zip(parts, records, strict=True)
    labels = [check_labels(kept[part], rows, part, f"the {part[:-7]} images", len(classes)) for part, rows in pairs]  # type: ignore
    return Dataset(images, np.concatenate(labels), len(records[0]), classes, name)


def decoded_bytes(name: str, data_dir: str | os.PathLike | None = None, *, image_size: Size | None = None) -> int:
    """How many bytes the images of a data set take as an array, by its JSON files or the heads of a folder's images.

    Returns:
      The bytes; 0 for a set that is not prepared or not image classification, on which `load` has something to say.

    Example:
      >>> from cljax import data
      >>> data.decoded_bytes('digits')  # comes with scikit-learn, and is no set of files
      0
    """
    name, image_size = _checked(name, image_size)
    if _is_folder(name, data_dir):
        try:
            images = image_folders.scan(name, image_size).images
        except ValueError:
            return 0
        return len(images) * math.prod(images.shape)
    folder = prepared(data_folder(data_dir)).get(name)
    try:
        about = None if folder is None else declared.read(folder)
    except declared.DamagedError:
        return 0
    if about is None or about.shape is None:
        return 0
    shape = about.shape if image_size is None else (*image_size, about.shape[-1])
    count = sum(sum(about.splits.get(split, ())) for split in ("train", "test", "validation"))
    return count * math.prod(side or 0 for side in shape)


def _load_folder(name: str, image_size: Size | None) -> Dataset:
    """A folder of images, decoded or as kept from the last time."""
    path = folder_path(name)
    found, title = image_folders.scan(path, image_size), folder_name(path)
    digest = hashlib.sha256(os.fsencode(path.resolve()) + repr(image_size).encode()).hexdigest()
    cache = cache_folder() / "folders"
    with contextlib.suppress(OSError):
        cache.mkdir(parents=True, exist_ok=True)
    images = image_folders.decode(found, cache / f"{digest[:32]}.npz", title)
    return Dataset(images, found.labels, found.train_size, found.classes, title)


def _mode(folder: pathlib.Path) -> int:
    """Who may read what is kept: those who may read the data."""
    return (folder / "dataset_info.json").stat().st_mode & 0o777


def _is_folder(name: str, data_dir: str | os.PathLike | None) -> bool:
    """Whether a name is the path of a folder of images; names of data sets come first."""
    known = name in ("digits", *KNOWN) or name in prepared(data_folder(data_dir))
    return not known and os.path.isdir(folder_path(name))


def _checked(name: str | os.PathLike, size: Size | None) -> tuple[str, tuple[int, int] | None]:
    """The name of a data set, or the path of a folder, as text, and the size of images."""
    if not isinstance(name, str | os.PathLike):
        such = "the name of a data set, such as 'digits', or the path of a folder of images"
        raise ValueError(f"name is {show(name)}, but must be {such}.")
    name = name if isinstance(name, str) and name else str(folder_path(name))
    return name, None if size is None else height_and_width(size)
