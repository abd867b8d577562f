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
from collections.abc import Iterator

import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core.utils import tqdm_utils
from tensorflow_datasets.image_classification import cifar, mnist

from cljax.data import archives
from cljax.data.digits import Digits
from cljax.data.keeping import clear, draft
from cljax.files import expand


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
        images, labels = archives.read_idx(paths["images"], (28, 28)), archives.read_idx(paths["labels"], ())
        if len(images) != len(labels):
            raise archives.ArchiveError(
                f"{paths['images']} holds {len(images)} images, but {paths['labels']} holds {len(labels)} labels."
            )
        archives.check_range(labels, 10, str(paths["labels"]))
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield index, {"image": Image.fromarray(image), "label": int(label)}


class _Binary:
    """Reads the binary archives of the CIFAR family: label bytes, then 3,072 bytes of red, green and blue."""

    _cifar_info: cifar.CifarInfo
    info: tfds.core.DatasetInfo

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        about = self._cifar_info
        archive = dl_manager.download(about.url)
        wanted = [about.prefix + file for file in (*about.label_files, *about.train_files, *about.test_files)]
        content = archives.read_members(archive, wanted)
        for key, file in zip(about.label_keys, about.label_files, strict=True):
            feature = self.info.features[key]
            names = archives.read_names(content[about.prefix + file], feature.num_classes, f"{archive} ({file})")
            feature.names = names
        return {
            split: self._generate_examples(
                b"".join(content[about.prefix + file] for file in files), f"{archive} ({', '.join(files)})", f"{split}_"
            )
            for split, files in (("train", about.train_files), ("test", about.test_files))
        }

    def _generate_examples(self, content: bytes, what: str, prefix: str) -> Iterator:
        keys = self._cifar_info.label_keys
        images, labels = archives.read_records(content, len(keys), what)
        for key, column in zip(keys, labels.T, strict=True):
            archives.check_range(column, self.info.features[key].num_classes, what)
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
    and of two processes at once the later finds the place taken and throws its own copy away. What a killed process
    left is removed by the next.

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
    place = expand(data_dir) / name / str(builder.VERSION)
    clear(place.parent)
    if (place / "dataset_info.json").exists():
        return place
    given = archives.take(name, builder.url_infos, source, verify=verify) if source and name != "digits" else None
    place.parent.mkdir(parents=True, exist_ok=True)
    with draft(place.parent, folder=True) as folder:
        made = builder(data_dir=os.fspath(folder.absolute()), file_format="array_record")
        if name != "digits":
            paths = given or archives.download(name, builder.url_infos, folder)
            made._make_download_manager = lambda **_: archives.LocalFiles(paths)
        with silence():
            made.download_and_prepare()
        try:
            os.rename(folder / name / place.name, place)
        except OSError as error:
            if not (place / "dataset_info.json").exists():
                raise OSError(error.errno, f"{place} is in the way. Remove it") from error
    return place
