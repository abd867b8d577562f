"""Data sets: the digits' builder, prepared TFDS sets, arrays, and what errors say."""

import dataclasses
import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import requests
from sklearn.datasets import load_digits

from cljax import data
from cljax.data import builders, digits, superclasses
from cljax.data.builders import prepare, silence
from cljax.data.statistics import channel_statistics


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """A folder with the digits prepared."""
    folder = tmp_path_factory.mktemp("tfds")
    prepare("digits", folder)
    return folder


def arrays(count=6, classes=3, shape=(4, 4, 1), dtype=np.uint8):
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (count, *shape)).astype(dtype)
    return images, np.arange(count) % classes


def test_digits_round_trip_equals_scikit_learn(cache):
    source = load_digits()
    loaded = data.load("digits", cache)
    _, _, test = digits.arrays()
    wanted = np.floor(source.images * 255 / 16 + 0.5).astype(np.uint8)[..., None]  # no value ends in one half
    np.testing.assert_array_equal(loaded.train_images, wanted[~test])
    np.testing.assert_array_equal(loaded.test_images, wanted[test])
    np.testing.assert_array_equal(loaded.train_labels, source.target[~test])
    np.testing.assert_array_equal(loaded.test_labels, source.target[test])
    assert loaded.images.dtype == np.uint8
    assert loaded.labels.dtype == np.int32
    assert loaded.images.max() == 255
    assert loaded.classes == tuple("0123456789")
    assert (loaded.train_size, len(loaded.images), loaded.name) == (1438, 1797, "digits")
    per_class = np.bincount(source.target)
    np.testing.assert_array_equal(np.bincount(loaded.test_labels), (per_class + 2) // 5)


def test_digits_are_read_by_the_stock_data_source(cache):
    import tensorflow_datasets as tfds

    source = tfds.data_source("digits", split="train", data_dir=cache, download=False)
    loaded = data.load("digits", cache)
    assert len(source) == loaded.train_size
    for row in (0, 700, 1437):
        np.testing.assert_array_equal(source[row]["image"], loaded.train_images[row])
        assert source[row]["label"] == loaded.train_labels[row]
    assert "tensorflow" not in sys.modules


def test_decoded_arrays_are_kept_and_equal(cache):
    first = data.load("digits", cache)
    kept = cache / "digits" / "1.0.0" / "cljax-decoded.npz"
    assert kept.exists()
    kept.write_bytes(b"not an archive")  # a spoiled file is decoded anew
    again = data.load("digits", cache)
    np.testing.assert_array_equal(first.images, again.images)
    with np.load(kept) as file:
        np.testing.assert_array_equal(file["test_labels"], first.test_labels)
    assert not list(kept.parent.glob(".draft*"))


PREPARE = """
import sys
from cljax import data
loaded = data.load("digits")
assert loaded.train_images.shape == (1438, 8, 8, 1)
assert "tensorflow" not in sys.modules
"""


def test_two_processes_prepare_at_once_in_silence(tmp_path):
    environment = {**os.environ, "TFDS_DATA_DIR": str(tmp_path)}
    command = [sys.executable, "-W", "error", "-c", PREPARE]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    pair = [subprocess.Popen(command, env=environment, **pipes) for _ in range(2)]
    for process in pair:
        assert process.communicate(timeout=120) == (b"", b"")
        assert process.returncode == 0
    assert [path.name for path in (tmp_path / "digits").iterdir()] == ["1.0.0"]


def test_prepare_that_loses_the_race_leaves_the_winner(tmp_path, monkeypatch):
    plain = os.rename

    def rename(source, target, **options):
        plain(source, target, **options)
        if target == tmp_path / "digits" / "1.0.0":  # as if another process had been faster
            raise OSError("the folder is not empty")

    monkeypatch.setattr(os, "rename", rename)
    place = prepare("digits", tmp_path)
    assert (place / "dataset_info.json").exists()
    assert [path.name for path in place.parent.iterdir()] == ["1.0.0"]


def test_a_failed_preparation_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("disk full")

    monkeypatch.setattr(digits.Digits, "download_and_prepare", fail)
    with pytest.raises(RuntimeError, match="disk full"):
        prepare("digits", tmp_path)
    assert list((tmp_path / "digits").iterdir()) == []


def idx(values):
    """An array of bytes in the gzipped idx format."""
    header = np.array([0x0800 + values.ndim, *values.shape], ">i4").tobytes()
    return gzip.compress(header + values.astype(np.uint8).tobytes())


def tar(folder, name, contents):
    """A gzipped tar archive of `{file: bytes}`."""
    with tarfile.open(folder / name, "w:gz") as packed:
        for file, content in contents.items():
            member = tarfile.TarInfo(file)
            member.size = len(content)
            packed.addfile(member, io.BytesIO(content))


def mnist_archives(folder):
    """The four files of the MNIST family with three training and two test images; returns the images."""
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 28)).astype(np.uint8)
    labels = np.array([7, 0, 9, 1, 4])
    for file, rows in (("train", slice(0, 3)), ("t10k", slice(3, 5))):
        (folder / f"{file}-images-idx3-ubyte.gz").write_bytes(idx(images[rows]))
        (folder / f"{file}-labels-idx1-ubyte.gz").write_bytes(idx(labels[rows]))
    return images


def cifar_archive(folder, builder):
    """An archive of the CIFAR family with one image a file; returns the pixels, `[n, 3, 32, 32]`."""
    about = builder._cifar_info.fget(builder)
    files, keys = [*about.train_files, *about.test_files], about.label_keys
    pixels = np.random.default_rng(0).integers(0, 256, (len(files), 3, 32, 32)).astype(np.uint8)
    contents = {file: bytes([index + 1] * len(keys)) + pixels[index].tobytes() for index, file in enumerate(files)}
    sizes = {"label": 10 if builder is builders.Cifar10 else 100, "coarse_label": 20}
    for key, file in zip(keys, about.label_files, strict=True):
        contents[file] = "\n".join(f"{key}{number}" for number in range(sizes[key])).encode() + b"\n\n"
    name = builder.url_infos[about.url].filename
    tar(folder, name, {about.prefix + file: content for file, content in contents.items()})
    return pixels


def read(name, folder, source):
    """Prepares a data set from archives and reads it back, through the stock data source and as arrays."""
    import tensorflow_datasets as tfds

    data.prepare(name, folder, archives=source, verify=False)
    parts = [tfds.data_source(name, split=split, data_dir=folder) for split in ("train", "test")]
    return parts, data.load(name, folder)


@pytest.mark.parametrize("builder", [builders.Mnist, builders.FashionMnist])
def test_mnist_family_from_its_archives(builder, tmp_path, capfd):
    source = tmp_path / "archives" / builder.name  # a sub-folder of the data set's name
    source.mkdir(parents=True)
    images = mnist_archives(source)
    parts, loaded = read(builder.name, tmp_path, source.parent)
    assert [len(part) for part in parts] == [3, 2]
    for part, found, labels, wanted in (
        ("train", loaded.train_images, loaded.train_labels, images[:3]),
        ("test", loaded.test_images, loaded.test_labels, images[3:]),
    ):
        order = [int(np.flatnonzero((wanted == image[..., 0]).all((1, 2)))[0]) for image in found]
        assert sorted(order) == list(range(len(wanted)))
        assert labels.tolist() == [{"train": [7, 0, 9], "test": [1, 4]}[part][row] for row in order]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("builder", [builders.Cifar10, builders.Cifar100])
def test_cifar_family_from_its_archive(builder, tmp_path):
    pixels = cifar_archive(tmp_path, builder)
    count, classes = len(pixels), 10 if builder is builders.Cifar10 else 100
    parts, loaded = read(builder.name, tmp_path, tmp_path)
    assert [len(part) for part in parts] == [count - 1, 1]
    assert loaded.classes == tuple(f"label{number}" for number in range(classes))
    np.testing.assert_array_equal(sorted(loaded.labels), np.arange(count) + 1)
    for image, label in zip(loaded.images, loaded.labels, strict=True):
        np.testing.assert_array_equal(image, pixels[label - 1].transpose(1, 2, 0))
    assert parts[1][0]["id"] == b"test_00000"


def test_every_archive_has_a_registered_checksum():
    for builder in (builders.Mnist, builders.FashionMnist, builders.Cifar10, builders.Cifar100):
        assert len(builder.url_infos) == (4 if "mnist" in builder.name else 1)
        assert all(len(info.checksum) == 64 and info.size > 0 for info in builder.url_infos.values())


def test_archives_that_are_not_the_registered_ones_are_refused(tmp_path, monkeypatch):
    mnist_archives(tmp_path)
    with pytest.raises(ValueError, match=r"is not the official archive.* bytes, not .*--no-verify"):
        data.prepare("mnist", tmp_path, archives=tmp_path)
    registered = {}
    for url, info in builders.Mnist.url_infos.items():
        content = (tmp_path / info.filename).read_bytes()
        registered[url] = dataclasses.replace(info, size=len(content), checksum=hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(builders.Mnist, "url_infos", registered)
    spoiled = tmp_path / "t10k-labels-idx1-ubyte.gz"
    good = spoiled.read_bytes()
    spoiled.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))  # the same size, another bit
    with pytest.raises(ValueError, match=r"t10k-labels-idx1-ubyte.gz is not .*SHA-256 [0-9a-f]{64}, not"):
        data.prepare("mnist", tmp_path, archives=tmp_path)
    assert not (tmp_path / "mnist").exists()
    spoiled.write_bytes(good)
    assert data.prepare("mnist", tmp_path, archives=tmp_path) == tmp_path / "mnist" / "3.0.1"


def test_missing_and_broken_archives(tmp_path):
    images = mnist_archives(tmp_path)
    place = tmp_path / "out"

    def attempt(name="mnist"):
        return data.prepare(name, place, archives=tmp_path, verify=False)

    with pytest.raises(ValueError, match=r"lacks cifar-10-binary.tar.gz .*from https://.*cifar-10-binary.tar.gz"):
        attempt("cifar10")
    labels = tmp_path / "train-labels-idx1-ubyte.gz"
    broken = [
        (idx(images[:3]), "not an idx file of labels: it does not begin with the number 2049"),
        (idx(np.zeros(2)), "holds 3 images, but .* holds 2 labels"),
        (b"plain", "cannot be unpacked"),
        (gzip.compress(gzip.decompress(idx(np.zeros(3)))[:-1]), r"says that it holds \[3\] values, but holds 2"),
    ]
    for content, words in broken:
        labels.write_bytes(content)
        with pytest.raises(ValueError, match=words):
            attempt()
    tar(tmp_path, "cifar-10-binary.tar.gz", {"cifar-10-batches-py/data_batch_1": b"pickle"})
    with pytest.raises(ValueError, match=r"no file 'cifar-10-batches-bin.*it is not the binary version"):
        attempt("cifar10")
    names = " ".join("abcdefghij").encode()
    tar(
        tmp_path,
        "cifar-10-binary.tar.gz",
        {
            **{
                f"cifar-10-batches-bin/{file}": bytes(3073)
                for file in builders.Cifar10._cifar_info.fget(builders.Cifar10).train_files
            },
            "cifar-10-batches-bin/test_batch.bin": bytes(3072),
            "cifar-10-batches-bin/batches.meta.txt": names,
        },
    )
    with pytest.raises(ValueError, match="holds 3072 bytes, which are not records of 3073 bytes"):
        attempt("cifar10")
    assert [path for path in place.rglob("*") if path.is_file()] == []


class Answer:
    """What a web server answers."""

    def __init__(self, content):
        self.content = content

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def raise_for_status(self):
        if self.content is None:
            raise requests.HTTPError("404")

    def iter_content(self, size):
        return [self.content[at : at + 7] for at in range(0, len(self.content), 7)]


def test_downloads_are_verified_and_their_lack_names_the_way_without_a_network(tmp_path, monkeypatch, capsys):
    (tmp_path / "web").mkdir()
    cifar_archive(tmp_path / "web", builders.Cifar10)
    content = (tmp_path / "web" / "cifar-10-binary.tar.gz").read_bytes()
    answers = {}
    monkeypatch.setattr(requests, "get", lambda url, **_: answers[url])
    (url,) = builders.Cifar10.url_infos
    answers[url] = Answer(None)
    with pytest.raises(
        ValueError, match=r"not be downloaded \(HTTPError\).*`cljax data prepare cifar10 --from FOLDER`"
    ):
        data.prepare("cifar10", tmp_path)
    answers[url] = Answer(content)
    with pytest.raises(ValueError, match="not the official archive"):
        data.prepare("cifar10", tmp_path)
    assert list((tmp_path / "cifar10").iterdir()) == []
    info = dataclasses.replace(
        builders.Cifar10.url_infos[url], size=len(content), checksum=hashlib.sha256(content).hexdigest()
    )
    monkeypatch.setattr(builders.Cifar10, "url_infos", {url: info})
    data.prepare("cifar10", tmp_path)
    assert data.load("cifar10", tmp_path).train_size == 5
    assert [path.name for path in (tmp_path / "cifar10").iterdir()] == ["3.0.2"]  # the archive is not kept
    assert capsys.readouterr().err.count("Downloading cifar-10-binary.tar.gz") == 3


def test_digits_go_to_the_cache_where_no_data_folder_is_named_or_it_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
    assert data.load("digits").train_size == 1438
    assert [path.name for path in (tmp_path / "own" / "cljax" / "digits").iterdir()] == ["1.0.0"]
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "file"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert data.load("digits").train_size == 1438
    assert (tmp_path / "cljax" / "digits" / "1.0.0").exists()
    with pytest.raises(OSError, match="file"):
        data.load("digits", tmp_path / "file")  # a folder that was asked for is not replaced


def test_prepare_refuses_other_names(tmp_path, cache):
    with pytest.raises(ValueError, match=r"'svhn' is none of those prepared here.*`tfds build svhn --file_format"):
        data.prepare("svhn", tmp_path)
    with pytest.raises(ValueError, match="did you mean 'mnist'"):
        data.prepare("mnst", tmp_path)
    assert data.prepare("digits", cache) == cache / "digits" / "1.0.0"


def test_available(cache, monkeypatch):
    rows = {name: (text, prepared) for name, text, prepared in data.available(cache)}
    assert rows["digits"] == ("images 8x8x1, 10 classes, 1,438 train and 359 test examples", True)
    assert rows["mnist"][1] is False
    assert rows["mnist"][0] == (
        "not prepared: prepare it once with `cljax data prepare mnist` (or cljax.data.prepare), which downloads it"
    )
    monkeypatch.setenv("TFDS_DATA_DIR", str(cache / "nowhere"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache / "nowhere"))
    assert data.available()[0][::2] == ("digits", False)


def test_an_unknown_data_set_names_its_neighbours(cache):
    with pytest.raises(ValueError, match=r"There is no data set 'cifar1O'") as error:
        data.load("cifar1O", cache)
    for words in ("'cifar10'", "Ready for use: digits.", "cljax data prepare cifar10", "$TFDS_DATA_DIR", str(cache)):
        assert words in str(error.value)


def prepared(folder, features, splits, **options):
    """Prepares a small TFDS set of one example a split."""
    import tensorflow_datasets as tfds
    from PIL import Image

    class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = "tiny"
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(number) for number, split in enumerate(splits)}

        def _generate_examples(self, number):
            image = np.full((2, 3, 3), 40 * number + 5, np.uint8)
            values = {"image": Image.fromarray(image), "label": number, "text": "words"}
            yield number, {name: values[name] for name in features}

    with silence():
        Tiny(data_dir=folder, file_format="array_record", **options).download_and_prepare()


def test_any_prepared_set_with_named_classes_and_a_validation_split(tmp_path):
    import tensorflow_datasets as tfds

    label = tfds.features.ClassLabel(names=["cat", "dog"])
    prepared(tmp_path, {"image": tfds.features.Image(shape=(2, 3, 3)), "label": label}, ["train", "validation"])
    loaded = data.load("tiny", tmp_path)
    assert loaded.classes == ("cat", "dog")
    assert loaded.images.shape == (2, 2, 3, 3)
    np.testing.assert_array_equal(loaded.images[:, 0, 0, 0], [5, 45])
    np.testing.assert_array_equal(loaded.labels, [0, 1])
    assert "tiny" in [name for name, _, ready in data.available(tmp_path) if ready]


@pytest.mark.parametrize(
    ("shape", "features", "splits", "words"),
    [
        ((2, 3, 3), ["image", "text"], ["train", "test"], "is not image classification.*has image, text"),
        ((2, 3, 3), ["image", "label"], ["train"], "has the splits train, but 'train' and 'test'"),
        ((None, None, 3), ["image", "label"], ["train", "test"], r"differ in size \(shape \(None, None, 3\)\)"),
    ],
)
def test_sets_of_another_kind_are_refused(tmp_path, shape, features, splits, words):
    import tensorflow_datasets as tfds

    kinds = {
        "image": tfds.features.Image(shape=shape),
        "label": tfds.features.ClassLabel(num_classes=2),
        "text": tfds.features.Text(),
    }
    prepared(tmp_path, {name: kinds[name] for name in features}, splits)
    with pytest.raises(ValueError, match=f"'tiny'.*{words}"):
        data.load("tiny", tmp_path)


def test_files_that_need_tensorflow_are_refused(tmp_path, cache):
    folder = tmp_path / "digits" / "1.0.0"
    folder.mkdir(parents=True)
    for name in ("dataset_info.json", "features.json"):
        (folder / name).write_text((cache / "digits" / "1.0.0" / name).read_text())
    info = json.loads((folder / "dataset_info.json").read_text()) | {"fileFormat": "tfrecord"}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(ValueError, match=r"prepared as tfrecord files.*tfds build digits --file_format=array_record"):
        data.load("digits", tmp_path)


def test_the_newest_version_is_loaded(tmp_path, cache):
    for version in ("1.0.0", "1.10.0", "1.9.0"):
        folder = shutil.copytree(cache / "digits" / "1.0.0", tmp_path / "digits" / version)
        features = json.loads((folder / "features.json").read_text())
        classes = 10 + int(version.split(".")[1])
        features["featuresDict"]["features"]["label"]["classLabel"]["numClasses"] = str(classes)
        (folder / "features.json").write_text(json.dumps(features))
    assert len(data.load("digits", tmp_path).classes) == 20


def test_from_arrays_keeps_one_array_and_views():
    images, labels = arrays()
    made = data.from_arrays(images, labels, images[:3], labels[:3], classes=["a", "b", "c"], name="mine")
    np.testing.assert_array_equal(made.train_images, images)
    np.testing.assert_array_equal(made.test_labels, labels[:3])
    assert made.train_images.base is made.images
    assert (made.labels.dtype, made.classes, made.name) == (np.int32, ("a", "b", "c"), "mine")


def test_from_arrays_multi_label_and_vectors():
    labels = np.array([[0, 1], [1, 1], [0.5, 0]], np.float32)
    vectors = np.arange(6, dtype=np.float32).reshape(3, 2)
    made = data.from_arrays(vectors, labels, vectors[:1], labels[:1])
    assert made.labels.dtype == np.float32
    assert made.classes == ("0", "1")
    np.testing.assert_array_equal(made.images, [[0, 1], [2, 3], [4, 5], [0, 1]])


IMAGES, LABELS = arrays()
NAN = IMAGES.astype(np.float32)
NAN[[2, 4], 1, 1, 0] = np.nan, np.inf
SOFT = np.full((6, 2), 0.25, np.float32)
ONE_HOT = np.eye(3)[LABELS]
CHANNELS_FIRST = np.zeros((6, 3, 8, 8), np.uint8)


@pytest.mark.parametrize(
    ("given", "kind", "words"),
    [
        ((IMAGES.astype(int), LABELS, IMAGES, LABELS), TypeError, "train_images are int64.*uint8.*float32"),
        ((CHANNELS_FIRST, LABELS, IMAGES, LABELS), ValueError, r"channels first.*numpy.moveaxis\(images, 1, -1\)"),
        (
            (IMAGES[..., 0], LABELS, IMAGES, LABELS),
            ValueError,
            r"train_images have shape \(6, 4, 4\).*\[\.\.\., None\]",
        ),
        ((IMAGES[:0], LABELS[:0], IMAGES, LABELS), ValueError, "train_images have shape.*hold no examples"),
        ((IMAGES, LABELS, IMAGES[:0], LABELS[:0]), ValueError, "test_images have shape.*hold no examples"),
        ((NAN, LABELS, IMAGES, LABELS), ValueError, "NaN or infinity in 2 of 6 examples, the first.*example 2"),
        ((IMAGES, LABELS, IMAGES[:, :3], LABELS), ValueError, r"\(4, 4, 1\).*\(3, 4, 1\).*must be the same"),
        ((IMAGES, LABELS, IMAGES.astype(np.float32), LABELS), ValueError, "uint8.*float32.*must be the same"),
        ((IMAGES, LABELS[:5], IMAGES, LABELS), ValueError, "train_images hold 6 examples, but train_labels hold 5"),
        ((IMAGES, LABELS, IMAGES, LABELS[:5]), ValueError, "test_images hold 6 examples, but test_labels hold 5"),
        ((IMAGES, LABELS - 1, IMAGES, LABELS), ValueError, "train_labels are out of range: example 0 has label -1"),
        ((IMAGES, LABELS, IMAGES, LABELS + 1), ValueError, "test_labels.*example 2 has label 3, but.* 0 to 2"),
        ((IMAGES, LABELS.astype(float), IMAGES, LABELS), TypeError, "train_labels are float64"),
        ((IMAGES, LABELS[:, None], IMAGES, LABELS), ValueError, r"shape \(6, 1\).*Give labels\[:, 0\]"),
        ((IMAGES, ONE_HOT, IMAGES, ONE_HOT), ValueError, r"add up to 1 .*a sigmoid each.*labels.argmax\(axis=1\)"),
        ((IMAGES, ONE_HOT.astype(int), IMAGES, LABELS), ValueError, r"labels.argmax\(axis=1\) of one-hot"),
        ((IMAGES, SOFT * 8, IMAGES, SOFT), ValueError, "example 0 has label .*must be 0 to 1"),
        ((IMAGES, SOFT, IMAGES, SOFT[:, :1]), ValueError, "test_labels have 1 columns, but there are 2 classes"),
        ((IMAGES, SOFT, IMAGES, LABELS % 2), ValueError, r"train_labels have shape \(6, 2\), but test_labels"),
        ((IMAGES, SOFT * np.nan, IMAGES, SOFT), ValueError, "train_labels hold NaN or infinity in 6 of 6"),
    ],
)
def test_arrays_are_checked_first(given, kind, words):
    with pytest.raises(kind, match=words) as error:
        data.from_arrays(*given)
    assert "\n" not in str(error.value)


def test_float64_is_taken_as_float32():
    made = data.from_arrays(IMAGES / 255, LABELS, IMAGES / 255, LABELS)
    assert made.images.dtype == np.float32
    np.testing.assert_array_equal(made.train_images, (IMAGES / 255).astype(np.float32))
    several = data.from_arrays(IMAGES, SOFT.astype(float), IMAGES, SOFT)
    np.testing.assert_array_equal(several.labels, np.concatenate([SOFT, SOFT]))
    assert several.labels.dtype == np.float32
    with pytest.raises(ValueError, match="train_images hold NaN or infinity in 6 of 6"):
        data.from_arrays(np.full((6, 2), 1e300), LABELS, np.ones((6, 2)), LABELS)


def test_labels_beyond_the_given_classes():
    with pytest.raises(ValueError, match=r"train_labels are out of range: example 2 has label 2, but.* 0 to 1"):
        data.from_arrays(IMAGES, LABELS, IMAGES, LABELS, classes=["a", "b"])


@pytest.mark.parametrize("wrong", [2**32 + 1, 2**31, 2**62, -(2**32), 2**20, -1])
@pytest.mark.parametrize("dtype", [np.int64, np.uint64])
def test_labels_are_checked_before_they_are_cast(wrong, dtype):
    labels = LABELS.astype(dtype)
    if wrong < 0 and dtype == np.uint64:
        wrong += 2**64
    labels[4] = wrong
    for given in ((IMAGES, labels, IMAGES, LABELS), (IMAGES, LABELS, IMAGES, labels)):
        for classes in (None, ["a", "b", "c"]):
            with pytest.raises(ValueError, match=f"_labels are out of range: example 4 has label {wrong}, but"):
                data.from_arrays(*given, classes=classes)


def test_labels_and_names_that_are_none():
    for labels, kind, words in (
        (LABELS + 0.5, TypeError, "train_labels are float64"),
        ([2**70] * 6, TypeError, "train_labels are object"),
        (LABELS > 0, TypeError, "train_labels are bool"),
        ([[1], [2, 3]], ValueError, "train_labels are no array"),
        (SOFT[:, :0], ValueError, "and so no classes"),
        (list("abcdef"), TypeError, "train_labels are <U1"),
    ):
        with pytest.raises(kind, match=words) as error:
            data.from_arrays(IMAGES, labels, IMAGES, LABELS)
        assert "\n" not in str(error.value)
    for classes in ("abc", 3):
        with pytest.raises(TypeError, match="must be a list of names"):
            data.from_arrays(IMAGES, LABELS, IMAGES, LABELS, classes=classes)
    with pytest.raises(ValueError, match=r"A class of the superclass 'x' is 0.5, but must be a whole number"):
        superclasses.groups_of(["a", "b"], {"x": [0.5]})
    with pytest.raises(ValueError, match=r"datasets has \[.*, which is no data set"):
        data.combine([IMAGES])
    with pytest.raises(ValueError, match="no examples to take mean"):
        channel_statistics([])


def test_rows_that_are_none():
    images = data.Images([IMAGES], (4, 4, 1), name="few")
    for rows in ([0.5], ["0"], [True, False], [2**63], [-1], [6], [None]):
        with pytest.raises(IndexError):
            images.take(rows)
    assert images.take([]).shape == (0, 4, 4, 1)
    assert images.take(np.array([1, 1], np.uint8)).shape == (2, 4, 4, 1)
    with pytest.raises(ValueError, match="'none' need at least one source"):
        data.Images([], (4, 4, 1), name="none")


def test_images_read_on_demand_tell_what_they_depend_on():
    images = data.Images([IMAGES], (4, 4, 1), name="few")
    other = IMAGES.copy()
    other[0, 0, 0, 0] += 1
    again = data.Images([IMAGES.copy()], (4, 4, 1), name="again")
    assert images.identity() == again.identity()
    different = [data.Images([other], (4, 4, 1), name="few"), images[1:], images[:5]]
    assert len({one.identity() for one in (images, *different)}) == 4


def test_statistics_equal_numpy():
    images = np.random.default_rng(1).integers(0, 256, (50, 4, 4, 3)).astype(np.uint8)
    images[..., 2] = 51
    mean, std = channel_statistics([images[:20], images[20:]])
    scaled = images / 255.0
    np.testing.assert_allclose(mean, scaled.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std[:2], scaled.std((0, 1, 2))[:2], rtol=1e-12)
    assert std[2] == 1.0
    floats = scaled.astype(np.float32)
    mean, std = channel_statistics([floats])
    np.testing.assert_allclose(mean, floats.mean((0, 1, 2), dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(std[:2], floats.std((0, 1, 2), dtype=np.float64)[:2], rtol=1e-12)
    assert all(isinstance(number, float) for number in mean + std)
