"""Data sets that TFDS has prepared as ArrayRecord files, read split by split."""

from __future__ import annotations

import functools
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from cljax.data import declared, pictures
from cljax.data.images import Size, check_memory, height_and_width
from cljax.data.keeping import identity
from cljax.data.prepared import recipe
from cljax.files import shown
from cljax.numbers import show

_PIECE = 1024


class Records:
    """The images of a split, read and decoded when they are asked for; see `on_demand.Source`.

    As TFDS decodes them: not turned by an orientation tag. Channels are those declared.

    Args:
      builder: TFDS's, with features `image` and `label`.
      split: such as `'train'`.
      size: what images are resized to, each whole; None: as they are.

    Attributes:
      shape: of an image.
    """

    def __init__(self, builder: Any, split: str, size: Size | None = None) -> None:
        self._builder, self._split, self._size = builder, split, None if size is None else height_and_width(size)
        image = builder.info.features["image"]
        self.shape: tuple[int, ...] = tuple(image.shape) if self._size is None else (*self._size, image.shape[-1])
        self._dtype, self._length = image.np_dtype, int(builder.info.splits[split].num_examples)

    def __repr__(self) -> str:
        """The split and its folder."""
        return f"the split '{self._split}' in {shown(self._builder.data_path)}"

    def __len__(self) -> int:
        """The number of images."""
        return self._length

    def __getitem__(self, row: int) -> np.ndarray:
        """One image."""
        return self.__getitems__([row])[0]

    def __getitems__(self, rows: list[int]) -> list[np.ndarray]:
        """Several images, read by one call."""
        return [self._image(row, record) for row, record in zip(rows, self._read(rows), strict=True)]

    def identity(self) -> str:
        """A digest of the split's files, and of what they are resized to."""
        return version_identity(pathlib.Path(self._builder.data_path), self._split, self._size, pictures.DECODER)

    def labels(self) -> np.ndarray:
        """Reads all labels, `[n]` int64."""
        return np.asarray([record["label"] for _, record in self._every()], np.int64)

    def arrays(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Reads everything of a data set of this name: images `[n, *shape]`, labels `[n]` int64."""
        shape = (len(self), *self.shape)
        check_memory(name, shape)
        images, labels = np.empty(shape, self._dtype), np.empty(len(self), np.int64)
        for row, record in self._every():
            images[row], labels[row] = self._image(row, record), record["label"]
        return images, labels

    def has_labels(self) -> bool:
        """Whether the first, middle or last example has a label, which is -1 where there is none."""
        rows = sorted({0, len(self) // 2, len(self) - 1})
        return any(record["label"] >= 0 for record in self._read(rows))

    def _every(self) -> Iterator[tuple[int, dict[str, Any]]]:
        for start in range(0, len(self), _PIECE):
            rows = list(range(start, min(start + _PIECE, len(self))))
            yield from zip(rows, self._read(rows), strict=True)

    def _read(self, rows: Sequence[int]) -> Sequence[dict[str, Any]]:
        """Records, images not decoded."""
        try:
            return self._records.__getitems__(list(rows))
        except (RuntimeError, ValueError, IndexError, KeyError, TypeError, OSError) as error:  # Riegeli's, protobuf's
            raise declared.damaged(repr(self), error) from error

    def _image(self, row: int, record: dict[str, Any]) -> np.ndarray:
        what, floats = f"Example {row} of {self!r}", self._dtype == np.float32  # which are stored as their four bytes
        channels = 4 if floats else self.shape[-1]
        image = pictures.decode(bytes(record["image"]), what, channels, self._size, turn=False)
        image = np.ascontiguousarray(image).view(np.float32) if floats else image
        if image.shape != self.shape:
            raise pictures.PictureError(
                f"{what} has the shape {image.shape}, but the set declares {self.shape}. Prepare it again."
            )
        return image

    @functools.cached_property
    def _records(self) -> Any:
        """TFDS's data source, images not decoded."""
        import tensorflow_datasets as tfds

        decoders = {"image": tfds.decode.SkipDecoding()}
        return self._builder.as_data_source(split=self._split, decoders=decoders)


def version_identity(folder: pathlib.Path, *more: object) -> str:
    """A digest of a prepared version's files, and of what else decides.

    Raises:
      DamagedError: a file that is a link to nowhere, or a folder that cannot be read.
    """
    try:
        names = sorted(name for name in os.listdir(folder) if not name.startswith((".", "cljax-")))
        return identity([folder / name for name in names], *more)
    except OSError as error:
        raise declared.damaged(shown(error.filename or folder), error.strerror or error) from error


def open_builder(name: str, folder: pathlib.Path, size: Size | None = None) -> tuple[Any, str]:
    """TFDS's builder of a prepared data set that is image classification, and the name of its test split.

    That is the first of `test` and `validation` that has labels.

    Args:
      name: of the data set, for the errors.
      folder: of the prepared version.
      size: what images will be resized to.

    Raises:
      ValueError: files that are damaged, features that are not TFDS's own, another kind of data set, without the splits
        needed, not prepared as ArrayRecord files, or with images that differ in size and no size is given.
    """
    import tensorflow_datasets as tfds

    about = declared.read(folder)
    own = {f"{one.__module__}.{one.__qualname__}" for one in vars(tfds.features).values() if isinstance(one, type)}
    if unknown := sorted(about.kinds - own):
        raise ValueError(
            f"The data set {name!r} has a feature of the class {show(unknown[0])}, which is none of TFDS's and would "
            f"be imported. Read it yourself and pass NumPy arrays to data.from_arrays."
        )
    if about.file_format != "array_record":
        raise ValueError(
            f"The data set {name!r} is prepared as {about.file_format} files, which cannot be read without TensorFlow. "
            f"Prepare it anew as ArrayRecord files: {recipe(name)}."
        )
    declared.check_files(folder, about, ("train", "test", "validation"))
    try:
        builder = tfds.builder_from_directory(folder.absolute())
        features, splits = dict(builder.info.features), sorted(builder.info.splits)
    except Exception as error:  # TFDS's and protobuf's, of what the files say
        raise declared.damaged(shown(folder), error) from error
    image, label = features.get("image"), features.get("label")
    if not (isinstance(image, tfds.features.Image) and isinstance(label, tfds.features.ClassLabel) and about.shape):
        raise ValueError(
            f"The data set {name!r} is not image classification: it needs a feature 'image' (an image) and a feature "
            f"'label' (a class), but has {', '.join(sorted(features))}. Read it yourself and pass NumPy arrays to "
            f"data.from_arrays."
        )
    tests = [split for split in ("test", "validation") if about.splits.get(split)]
    if not about.splits.get("train") or not tests:
        raise ValueError(
            f"The data set {name!r} has the splits {', '.join(splits) or 'none'}, but 'train' and 'test' (or "
            f"'validation') are needed, with examples. Divide it yourself and pass NumPy arrays to data.from_arrays."
        )
    shape = image.shape
    if len(shape) != 3 or shape[-1] is None:
        raise ValueError(
            f"The images of the data set {name!r} have the shape {shape}, but height, width and a number of channels "
            f"are needed. Read it yourself and pass NumPy arrays to data.from_arrays."
        )
    if None in shape and size is None:
        raise ValueError(
            f"The images of the data set {name!r} differ in size (shape {shape}), but one size is needed. Give the "
            f"size to resize them to: data.load(..., image_size=64) (--image-size 64)."
        )
    if image.np_dtype not in (np.uint8, np.float32):
        raise ValueError(f"The images of the data set {name!r} are {image.np_dtype}; only uint8 and float32 are read.")
    if size is not None and image.np_dtype != np.uint8:
        raise ValueError(f"The images of the data set {name!r} are {image.np_dtype}; only uint8 is resized.")
    test = next((split for split in tests if Records(builder, split, size).has_labels()), None)
    if test is None:
        raise ValueError(
            f"The data set {name!r} has no labels in {' and '.join(map(repr, tests))}. Divide 'train' yourself and "
            f"pass NumPy arrays to data.from_arrays."
        )
    return builder, test
