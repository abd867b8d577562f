"""Preparing data sets as ArrayRecord files, silently or not, atomically, and without TensorFlow.

TFDS's own MNIST, Fashion-MNIST and CIFAR builders need TensorFlow only to unpack the downloads and to encode images.
The subclasses here unpack with the standard library and yield PIL images; names, versions, features, addresses and
checksums stay TFDS's, and the stock `tfds.data_source` reads the result.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import pathlib
import shutil
import tarfile
import tempfile
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core.utils import tqdm_utils
from tensorflow_datasets.image_classification import cifar, mnist

from cljax.data.digits import Digits


class _Idx:
    """Reads the four gzipped idx files of the MNIST family."""

    URL: str

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        kinds = {"images": "images-idx3", "labels": "labels-idx1"}
        return {
            split: self._generate_examples(
                dl_manager.download({kind: f"{self.URL}{file}-{end}-ubyte.gz" for kind, end in kinds.items()})
            )
            for split, file in (("train", "train"), ("test", "t10k"))
        }

    def _generate_examples(self, paths: dict[str, os.PathLike]) -> Iterator:
        with gzip.open(paths["images"]) as file:
            content = file.read()
        count, height, width = np.frombuffer(content, ">i4", 3, offset=4)
        images = np.frombuffer(content, np.uint8, offset=16).reshape(count, height, width)
        with gzip.open(paths["labels"]) as file:
            labels = np.frombuffer(file.read(), np.uint8, offset=8)
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield index, {"image": Image.fromarray(image), "label": int(label)}


class _Binary:
    """Reads the binary archives of the CIFAR family: label bytes, then 3,072 bytes of red, green and blue."""

    _cifar_info: cifar.CifarInfo

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        about = self._cifar_info
        archive = dl_manager.download(about.url)
        for key, file in zip(about.label_keys, about.label_files, strict=True):
            self.info.features[key].names = self._read(archive, file).decode().split()  # type: ignore[attr-defined]
        return {
            split: self._generate_examples(archive, files, f"{split}_")
            for split, files in (("train", about.train_files), ("test", about.test_files))
        }

    def _read(self, archive: os.PathLike, file: str) -> bytes:
        with tarfile.open(archive) as unpacked:
            member = unpacked.extractfile(self._cifar_info.prefix + file)
            assert member is not None, f"{file} is a folder"
            return member.read()

    def _generate_examples(self, archive: os.PathLike, files: list[str], prefix: str) -> Iterator:
        keys = self._cifar_info.label_keys
        content = b"".join(self._read(archive, file) for file in files)
        rows = np.frombuffer(content, np.uint8).reshape(-1, len(keys) + 3072)
        for index, row in enumerate(rows):
            image = row[len(keys) :].reshape(3, 32, 32).transpose(1, 2, 0)
            labels = {key: int(label) for key, label in zip(keys, row, strict=False)}
            yield index, {"id": f"{prefix}{index:05d}", "image": Image.fromarray(np.ascontiguousarray(image)), **labels}


class Mnist(_Idx, mnist.MNIST, skip_registration=True):  # type: ignore[call-arg]
    """MNIST: 70,000 images 28x28x1 in 10 classes."""

    name = "mnist"
    url_infos = mnist.MNIST.url_infos


class FashionMnist(_Idx, mnist.FashionMNIST, skip_registration=True):  # type: ignore[call-arg]
    """Fashion-MNIST: 70,000 images 28x28x1 in 10 classes."""

    name = "fashion_mnist"
    url_infos = mnist.FashionMNIST.url_infos


class Cifar10(_Binary, cifar.Cifar10, skip_registration=True):  # type: ignore[call-arg]
    """CIFAR-10: 60,000 images 32x32x3 in 10 classes."""

    name = "cifar10"
    url_infos = cifar.Cifar10.url_infos


class Cifar100(_Binary, cifar.Cifar100, skip_registration=True):  # type: ignore[call-arg]
    """CIFAR-100: 60,000 images 32x32x3 in 100 classes."""

    name = "cifar100"
    url_infos = cifar.Cifar100.url_infos


BUILDERS = {builder.name: builder for builder in (Digits, Mnist, FashionMnist, Cifar10, Cifar100)}


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Keeps TFDS's progress bars and messages from terminal and notebook."""
    active = tqdm_utils._active
    tqdm_utils.display_progress_bar(enable=False)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        tqdm_utils.display_progress_bar(enable=active)


def prepare(name: str, data_dir: str | os.PathLike) -> pathlib.Path:
    """Prepares one of `BUILDERS` in `data_dir`, where it is not there yet.

    It is written beside its place and moved into it by one rename, so that a killed process leaves nothing half done,
    and of two processes at once the later finds the place taken and throws its own copy away. All but the digits are
    downloaded, with progress shown.

    Returns:
      The folder of the prepared version, such as `data_dir/digits/1.0.0`.

    Raises:
      OSError: the folder cannot be written.
    """
    builder = BUILDERS[name]
    place = pathlib.Path(data_dir).expanduser() / name / str(builder.VERSION)
    if (place / "dataset_info.json").exists():
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    draft = tempfile.mkdtemp(prefix=".draft-", dir=place.parent)
    try:
        with silence() if name == "digits" else contextlib.nullcontext():
            builder(data_dir=draft, file_format="array_record").download_and_prepare(
                download_config=tfds.download.DownloadConfig(try_download_gcs=False)
            )
        try:
            os.rename(pathlib.Path(draft) / name / place.name, place)
        except OSError:
            if not (place / "dataset_info.json").exists():
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return place
