"""A split of a data set that TFDS has prepared as ArrayRecord files, as a source of images."""

from __future__ import annotations

import functools
import io
from typing import Any

import numpy as np


class Records:
    """The images of a split, read and decoded when they are asked for; see `streaming.Source`.

    Args:
      builder: TFDS's, with features `image` and `label`.
      split: such as `'train'`.
      shape: of an image.
    """

    def __init__(self, builder: Any, split: str, shape: tuple[int, ...]) -> None:
        self._builder, self._split, self._shape = builder, split, tuple(shape)
        self._length = int(builder.info.splits[split].num_examples)

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
        from PIL import Image

        found = self._records.__getitems__(list(rows))
        return [np.asarray(Image.open(io.BytesIO(one["image"]))).reshape(self._shape) for one in found]

    def labels(self) -> np.ndarray:
        """Reads all labels, `[n]` int64."""
        pieces = [range(start, min(start + 1024, len(self))) for start in range(0, len(self), 1024)]
        return np.asarray([one["label"] for rows in pieces for one in self._records.__getitems__(list(rows))], np.int64)

    @functools.cached_property
    def _records(self) -> Any:
        """TFDS's data source, images not decoded."""
        import tensorflow_datasets as tfds

        decoders = {"image": tfds.decode.SkipDecoding()}
        return self._builder.as_data_source(split=self._split, decoders=decoders)
