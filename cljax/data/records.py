"""Data sets that TFDS has prepared as ArrayRecord files, read split by split."""

from __future__ import annotations

import functools
import io
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from cljax.data.images import Size, height_and_width
from cljax.data.prepared import recipe

_PIECE = 1024


class Records:
    """The images of a split, read and decoded when they are asked for; see `streaming.Source`.

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
        return f"the split '{self._split}' in {self._builder.data_path}"

    def __len__(self) -> int:
        """The number of images."""
        return self._length

    def __getitem__(self, row: int) -> np.ndarray:
        """One image."""
        return self.__getitems__([row])[0]

    def __getitems__(self, rows: list[int]) -> list[np.ndarray]:
        """Several images, read by one call."""
        return [self._image(record) for record in self._records.__getitems__(list(rows))]

    def labels(self) -> np.ndarray:
        """Reads all labels, `[n]` int64."""
        return np.asarray([record["label"] for record in self._every()], np.int64)

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Reads everything: images `[n, *shape]`, labels `[n]` int64."""
        images, labels = np.empty((len(self), *self.shape), self._dtype), np.empty(len(self), np.int64)
        for row, record in enumerate(self._every()):
            images[row], labels[row] = self._image(record), record["label"]
        return images, labels

    def _every(self) -> Iterator[dict[str, Any]]:
        for start in range(0, len(self), _PIECE):
            yield from self._records.__getitems__(list(range(start, min(start + _PIECE, len(self)))))

    def _image(self, record: dict[str, Any]) -> np.ndarray:
        from PIL import Image

        picture: Any = Image.open(io.BytesIO(record["image"]))
        if self._size is not None:
            picture = picture.resize(self._size[::-1], Image.Resampling.BILINEAR)
        return np.asarray(picture).reshape(self.shape)

    @functools.cached_property
    def _records(self) -> Any:
        """TFDS's data source, images not decoded."""
        import tensorflow_datasets as tfds

        decoders = {"image": tfds.decode.SkipDecoding()}
        return self._builder.as_data_source(split=self._split, decoders=decoders)


def open_builder(name: str, folder: pathlib.Path, size: Size | None = None) -> tuple[Any, str]:
    """TFDS's builder of a prepared data set that is image classification, and the name of its test split.

    Args:
      name: of the data set, for the errors.
      folder: of the prepared version.
      size: what images will be resized to.

    Raises:
      ValueError: another kind of data set, without the splits needed, not prepared as ArrayRecord files, or with images
        that differ in size and no size is given.
    """
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
            f"without TensorFlow. Prepare it anew as ArrayRecord files: {recipe(name)}."
        )
    shape = features["image"].shape
    if None in shape and size is None:
        raise ValueError(
            f"The images of the data set {name!r} differ in size (shape {shape}), but one size is needed. Give the "
            f"size to resize them to: data.load(..., image_size=64) (--image-size 64)."
        )
    if size is not None and features["image"].np_dtype != np.uint8:
        raise ValueError(
            f"The images of the data set {name!r} are {features['image'].np_dtype}; only uint8 is resized."
        )
    return builder, test
