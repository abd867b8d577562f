"""PASCAL VOC's image classification, several classes an image, from the official devkit's lists."""

from __future__ import annotations

import itertools
import os
import pathlib

import numpy as np

from cljax.data.dataset import Dataset
from cljax.data.image_folders import FolderImages
from cljax.data.images import Size, height_and_width
from cljax.data.on_demand import Images
from cljax.data.prepared import folder_name
from cljax.files import folder_path, read_bytes, shown
from cljax.numbers import real, show

LIST_BYTES = 64 << 20
"""Most bytes of a list: an image takes some 15."""


def open_voc(path: str | os.PathLike, *, image_size: Size, difficult: float = 0.0, name: str | None = None) -> Dataset:
    """Opens one year of PASCAL VOC's image classification; images are read, and decoded, whenever they are asked for.

    The folder has `JPEGImages/ID.jpg` and, for each class, lists `ImageSets/Main/CLASS_SPLIT.txt`. Each line is the id
    of an image and a mark: 1 where it has an object of the class, -1 where it has none, 0 where it has only objects
    that are marked difficult. The training part is `trainval` and the test part `test` where there are lists of `test`
    (2007), else `train` and `val` (2012, whose test lists are not public; Li and Hoiem, 2016, do the same).

    VOC's own measure leaves out the difficult images of a class. Here they count as `difficult` says, by default as
    images without the class. `difficult=0.5` tells them apart: with `weights=labels != 0.5`
    `metrics.average_precision` leaves them out too.

    Args:
      path: of the year's folder, such as `'VOCdevkit/VOC2007'`.
      image_size: resize all images to it (a side, or height and width), each whole, by bilinear interpolation.
      difficult: the label, in [0, 1], where an image has only difficult objects of a class.
      name: of the data set; the folder's name where None.

    Returns:
      The data set, images in the lists' order; `images` are `on_demand.Images` in colour, `labels` `[n, K]` float32,
      1 for an object and 0 for none, `classes` sorted by name.

    Raises:
      ValueError: no such folder or list, a list that is no regular file or of more than `LIST_BYTES`, a malformed
        line, a list whose ids are not those of the first class's, an image that is not there, `difficult` outside
        [0, 1], an image size that is none.

    Example:
      >>> from cljax.data import open_voc
      >>> data = open_voc("VOCdevkit/VOC2007", image_size=224)  # doctest: +SKIP
      >>> data.train_size, data.test_labels.shape, data.test_images.take([0]).shape  # doctest: +SKIP
      (5011, (4952, 20), (1, 224, 224, 3))

    Reference: Everingham et al., The PASCAL Visual Object Classes (VOC) Challenge, 2010.
    """
    size = height_and_width(image_size)
    try:
        difficult = real("difficult", difficult, least=0, most=1)
    except ValueError:
        raise ValueError(
            f"difficult is {show(difficult)}, but must be a label from 0 (no object) to 1 (an object)."
        ) from None
    root = folder_path(path)
    lists = root / "ImageSets" / "Main"
    classes = _listed(lists, "train")
    if not classes:
        raise ValueError(
            f"{root} has no lists ImageSets/Main/CLASS_train.txt. Give the folder of one year, such as "
            f"VOCdevkit/VOC2007, of the unpacked training and validation archive."
        )
    splits = ("trainval", "test") if _listed(lists, "test") else ("train", "val")
    parts = [_part(lists, classes, split, {"1": 1.0, "-1": 0.0, "0": difficult}) for split in splits]
    paths = [root / "JPEGImages" / f"{identity}.jpg" for identities, _ in parts for identity in identities]
    if missing := next((file for file in paths if not os.path.isfile(file)), None):
        raise ValueError(
            f"There is no image {shown(missing)}, which the lists in {lists} name. Unpack the archives again, the test "
            f"archive too where there are lists of 'test'."
        )
    name = folder_name(root) if name is None else name
    images = Images([FolderImages(paths, size, 3)], (*size, 3), name=name)
    return Dataset(
        images, np.concatenate([labels for _, labels in parts]), len(parts[0][0]), tuple(map(shown, classes)), name
    )


def _listed(lists: pathlib.Path, split: str) -> tuple[str, ...]:
    """The classes that have a list of a split, sorted."""
    return tuple(sorted(file.name.removesuffix(f"_{split}.txt") for file in lists.glob(f"[!.]*_{split}.txt")))


def _part(
    lists: pathlib.Path, classes: tuple[str, ...], split: str, values: dict[str, float]
) -> tuple[list[str], np.ndarray]:
    """The ids of a split, which all classes' lists must name, and its labels `[n, K]`."""
    if lone := sorted({*classes} ^ {*_listed(lists, split)}):
        missing = lists / f"{lone[0]}_{split if lone[0] in classes else 'train'}.txt"
        raise ValueError(f"There is no list {missing}. Each class has one for each split. Unpack the archives again.")
    files = [lists / f"{label}_{split}.txt" for label in classes]
    found = [_read(file, values) for file in files]
    first = found[0][0]
    for file, (identities, _) in zip(files, found, strict=True):
        if identities != first:
            pairs = enumerate(itertools.zip_longest(identities, first, fillvalue="no image"), 1)
            line, here, there = next((line, *pair) for line, pair in pairs if pair[0] != pair[1])
            raise ValueError(
                f"{file} differs from {files[0].name} in line {line}: it names {here}, not {there}. The lists of all "
                f"classes name the same images in the same order. Unpack them again."
            )
    return first, np.column_stack([labels for _, labels in found]).astype(np.float32)


def _read(file: pathlib.Path, values: dict[str, float]) -> tuple[list[str], list[float]]:
    """The ids of a list, and the labels that their marks stand for."""
    try:
        content = read_bytes(file, LIST_BYTES)
    except OSError as error:
        raise ValueError(f"{shown(file)} cannot be read ({error.strerror}). Unpack the list again.") from error
    pairs = [line.split() for line in content.decode("utf-8", "replace").splitlines()]
    for line, pair in enumerate(pairs or [[]], 1):
        if len(pair) != 2 or pair[1] not in values or "/" in pair[0]:
            raise ValueError(
                f"{file} has {' '.join(pair)!r} in line {line}, but each line must be the id of an image and its "
                f"mark, 1, -1 or 0. Unpack the list again."
            )
    return [identity for identity, _ in pairs], [values[mark] for _, mark in pairs]
