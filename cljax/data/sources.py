"""Loading data sets by name: prepared TFDS files or a folder of images, decoded once or read on demand."""

from __future__ import annotations

import json
import math
import os
import pathlib

import numpy as np

from cljax.data import folders
from cljax.data.dataset import Dataset, from_arrays
from cljax.data.images import Size, height_and_width
from cljax.data.keeping import keep_arrays, kept_arrays
from cljax.data.prepared import KNOWN, cache_folder, data_folder, find, prepared
from cljax.data.records import Records, open_builder
from cljax.data.streaming import Images


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
        images = folders.decode(found, cache_folder() / "folders")
        return Dataset(images, found.labels, found.train_size, found.classes, _folder_name(name))
    folder = find(name, data_dir)
    size = "" if image_size is None else "-{}x{}".format(*height_and_width(image_size))
    place = folder / f"cljax-decoded{size}.npz"
    arrays = kept_arrays(place)
    if arrays is None:
        builder, test = open_builder(name, folder, image_size)
        arrays = {"classes": np.asarray(builder.info.features["label"].names)}
        for part, split in (("train", "train"), ("test", test)):
            arrays[f"{part}_images"], arrays[f"{part}_labels"] = Records(builder, split, image_size).arrays()
        keep_arrays(place, arrays, like=folder / "dataset_info.json")
    return from_arrays(
        *(arrays[part] for part in ("train_images", "train_labels", "test_images", "test_labels")),
        classes=[str(label) for label in arrays["classes"]],
        name=name,
    )


def open(name: str, data_dir: str | os.PathLike | None = None, *, image_size: Size | None = None) -> Dataset:
    """Opens a data set that need not fit into memory: its images are read, and decoded, whenever they are asked for.

    As `load` but for that: the same sets, and the same images and labels in the same order. Labels are read once, and
    kept beside the files for the next time, where that folder can be written. For the host driver.

    Args:
      name: as in `load`.
      data_dir: as in `load`.
      image_size: as in `load`.

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
    folder = find(name, data_dir)
    builder, test = open_builder(name, folder, image_size)
    features = builder.info.features
    if features["image"].np_dtype != np.uint8:
        raise ValueError(
            f"The images of the data set {name!r} are {features['image'].np_dtype}; only uint8 is read on demand. Load "
            f"them (--driver scan)."
        )
    records = [Records(builder, split, image_size) for split in ("train", test)]
    parts, place = ("train_labels", "test_labels"), folder / "cljax-labels.npz"
    kept = kept_arrays(folder / "cljax-decoded.npz", parts) or kept_arrays(place, parts)
    if kept is None:
        kept = dict(zip(parts, (part.labels() for part in records), strict=True))
        keep_arrays(place, kept, like=folder / "dataset_info.json")
    images = Images(records, records[0].shape, name=name)
    labels = np.concatenate([kept[part] for part in parts]).astype(np.int32)
    return Dataset(images, labels, len(records[0]), tuple(features["label"].names), name)


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
    folder = prepared(data_folder(data_dir)).get(name)
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


def _is_folder(name: str, data_dir: str | os.PathLike | None) -> bool:
    """Whether a name is the path of a folder of images; names of data sets come first."""
    known = name in ("digits", *KNOWN) or name in prepared(data_folder(data_dir))
    return not known and pathlib.Path(name).expanduser().is_dir()


def _folder_name(path: str) -> str:
    return pathlib.Path(path).expanduser().resolve().name
