"""Scikit-learn's handwritten digits as a TFDS data set, prepared without TensorFlow and without a network.

The 1,797 real 8x8 images come in scikit-learn's wheel, so that the default data set is read from ArrayRecord files
through the same code as every other TFDS data set. Images are handed to TFDS as PIL images: it needs TensorFlow to
encode NumPy arrays.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image


def arrays() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The images, labels and the division into training and test part.

    Pixels 0..16 are scaled to 0..255, `round(255 v / 16)`. Of each class, in scikit-learn's order, the third of every
    five examples is a test example, which makes the division stratified (20%) and free of any random number.

    Returns:
      images `[1797, 8, 8, 1]` uint8, labels `[1797]` int64, test `[1797]` bool.

    Example:
      >>> images, labels, test = arrays()
      >>> images.shape, int(images.max()), int(test.sum())
      ((1797, 8, 8, 1), 255, 359)

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998.
    """
    from sklearn.datasets import load_digits

    source = load_digits()
    images = np.rint(source.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = source.target.astype(np.int64)
    test = np.zeros(len(labels), np.bool_)
    for label in range(10):
        test[np.flatnonzero(labels == label)[2::5]] = True
    return images, labels, test


class Digits(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """TFDS builder of the handwritten digits; the prepared files are read by the stock `tfds.data_source`."""

    name = "digits"
    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Scikit-learn's handwritten digits: 1,797 images of 8x8 pixels in 10 classes.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1), dtype=np.uint8),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://archive.ics.uci.edu/dataset/80",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        del dl_manager
        return {"train": self._generate_examples(test=False), "test": self._generate_examples(test=True)}

    def _generate_examples(self, test: bool) -> Iterator:
        images, labels, in_test = arrays()
        for index in np.flatnonzero(in_test == test):
            yield int(index), {"image": Image.fromarray(images[index, :, :, 0]), "label": int(labels[index])}
