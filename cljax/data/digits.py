"""Scikit-learn's handwritten digits as a TFDS data set, prepared without TensorFlow and without a network.

The 1,797 real 8x8 images come in scikit-learn's wheel, so that the default data set is read from ArrayRecord files
through the same code as every other TFDS data set. Images are handed to TFDS as PIL images: it needs TensorFlow to
encode NumPy arrays.
"""

from __future__ import annotations

import contextlib
import io
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core.utils import tqdm_utils

NAME = "digits"
VERSION = "1.0.0"


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

    name = NAME
    VERSION = tfds.core.Version(VERSION)

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


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keeps TFDS's progress bars and messages from the terminal."""
    active = tqdm_utils._active
    tqdm_utils.display_progress_bar(enable=False)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        tqdm_utils.display_progress_bar(enable=active)


def prepare(data_dir: str | os.PathLike) -> pathlib.Path:
    """Prepares the digits in `data_dir`, where they are not there yet.

    They are written beside their place and moved into it by one rename, so that a killed process leaves nothing half
    done, and of two processes at once the later finds the place taken and throws its own copy away.

    Returns:
      The folder of the prepared version, `data_dir/digits/1.0.0`.

    Raises:
      OSError: the folder cannot be written.
    """
    place = pathlib.Path(data_dir).expanduser() / NAME / VERSION
    if (place / "dataset_info.json").exists():
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    draft = tempfile.mkdtemp(prefix=".draft-", dir=place.parent)
    try:
        with _silence():
            Digits(data_dir=draft, file_format="array_record").download_and_prepare()
        try:
            os.rename(pathlib.Path(draft) / NAME / VERSION, place)
        except OSError:
            if not (place / "dataset_info.json").exists():
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return place
