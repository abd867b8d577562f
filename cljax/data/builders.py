"""Preparing data sets as ArrayRecord files, silently or not, atomically, and without TensorFlow.

TFDS's own MNIST, Fashion-MNIST and CIFAR builders need TensorFlow only to unpack the downloads and to encode images.
The subclasses here read the archives with NumPy and yield PIL images; names, versions, features, addresses and
checksums stay TFDS's, and the stock `tfds.data_source` reads the result.
"""

from __future__ import annotations

import contextlib
import io
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core.utils import tqdm_utils
from tensorflow_datasets.image_classification import cifar, mnist

from cljax.data import archives
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
        images, labels = archives.read_idx(paths["images"], 3), archives.read_idx(paths["labels"], 1)
        if len(images) != len(labels):
            raise archives.ArchiveError(
                f"{paths['images']} holds {len(images)} images, but {paths['labels']} holds {len(labels)} labels."
            )
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield index, {"image": Image.fromarray(image), "label": int(label)}


class _Binary:
    """Reads the binary archives of the CIFAR family: label bytes, then 3,072 bytes of red, green and blue."""

    _cifar_info: cifar.CifarInfo

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        about = self._cifar_info
        archive = dl_manager.download(about.url)
        for key, file in zip(about.label_keys, about.label_files, strict=True):
            names = archives.read_member(archive, about.prefix + file).decode().split()
            self.info.features[key].names = names  # type: ignore[attr-defined]
        return {
            split: self._generate_examples(archive, files, f"{split}_")
            for split, files in (("train", about.train_files), ("test", about.test_files))
        }

    def _generate_examples(self, archive: os.PathLike, files: list[str], prefix: str) -> Iterator:
        keys = self._cifar_info.label_keys
        content = b"".join(archives.read_member(archive, self._cifar_info.prefix + file) for file in files)
        images, labels = archives.read_records(content, len(keys), f"{archive} ({', '.join(files)})")
        for index, (image, row) in enumerate(zip(images, labels.tolist(), strict=True)):
            yield (
                index,
                {"id": f"{prefix}{index:05d}", "image": Image.fromarray(image), **dict(zip(keys, row, strict=True))},
            )


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


def prepare(
    name: str, data_dir: str | os.PathLike, source: str | os.PathLike | None = None, *, verify: bool = True
) -> pathlib.Path:
    """Prepares one of `BUILDERS` in `data_dir`, where it is not there yet.

    It is written beside its place and moved into it by one rename, so that a killed process leaves nothing half done,
    and of two processes at once the later finds the place taken and throws its own copy away.

    Args:
      name: of the data set.
      data_dir: where prepared data sets are.
      source: the folder of the official archives; they are downloaded where it is None. The digits need none.
      verify: whether the archives of `source` must have the registered checksums; downloads always must.

    Returns:
      The folder of the prepared version, such as `data_dir/digits/1.0.0`.

    Raises:
      ArchiveError: an archive is missing, cannot be had, or is another than registered.
      OSError: the folder cannot be written.
    """
    builder = BUILDERS[name]
    place = pathlib.Path(data_dir).expanduser() / name / str(builder.VERSION)
    if (place / "dataset_info.json").exists():
        return place
    given = archives.take(name, builder.url_infos, source, verify=verify) if source and name != "digits" else None
    place.parent.mkdir(parents=True, exist_ok=True)
    draft = tempfile.mkdtemp(prefix=".draft-", dir=place.parent)
    try:
        made = builder(data_dir=draft, file_format="array_record")
        if name != "digits":
            paths = given or archives.download(name, builder.url_infos, pathlib.Path(draft))
            made._make_download_manager = lambda **_: archives.LocalFiles(paths)
        with silence():
            made.download_and_prepare()
        try:
            os.rename(pathlib.Path(draft) / name / place.name, place)
        except OSError:
            if not (place / "dataset_info.json").exists():
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return place
