"""Prepared data sets and archives that are damaged, hostile or unlabelled: refused by name, or read as declared."""

import gzip
import io
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from cljax import data
from cljax.data import archives, builders, pictures, prepared
from cljax.data.builders import silence

RECORDS = "digits-train.array_record-00000-of-00001"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with the digits prepared, and nothing kept beside them."""
    folder = tmp_path_factory.mktemp("whole")
    builders.prepare("digits", folder)
    return folder


@pytest.fixture
def digits(whole, tmp_path):
    """A copy to be spoiled: the folder of the version."""
    return shutil.copytree(whole, tmp_path / "tfds") / "digits" / "1.0.0"


def refused(folder, words, kind=ValueError):
    """Loading and opening say what is wrong, in one paragraph, and the list of sets does not say that it is ready."""
    for read in (data.load, data.open):
        with pytest.raises(kind, match=words) as error:
            read("digits", folder.parent.parent)
        assert "\n" not in str(error.value)
    (row,) = [row for row in data.available(folder.parent.parent) if row[0] == "digits"]
    assert row[2] is False
    assert "\n" not in row[1]


def edited(path, *keys, value):
    """A JSON file with another value at a place."""
    top = entry = json.loads(path.read_text())
    for key in keys[:-1]:
        entry = entry[key]
    entry[keys[-1]] = value
    path.write_text(json.dumps(top))


def remade(path, content=None):
    """Another file in its place: with a content, or a pipe."""
    path.unlink()
    os.mkfifo(path) if content is None else path.write_bytes(content)


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json", RECORDS])
def test_damaged_files_are_named(name, digits):
    file = digits / name
    content = file.read_bytes()
    for broken, words in (
        (content[:-1], ""),
        (content[: len(content) // 2], ""),
        (b"", ""),
        (None, "not a regular file"),
    ):
        remade(file, broken)
        refused(
            digits, rf"{name} is damaged \(.*{words}.*Remove the folder of its version, and prepare the data set again"
        )
    file.unlink()
    if name != "dataset_info.json":
        refused(digits, f"{name} is damaged")
    file.mkdir()
    refused(digits, f"{name} is damaged")
    if name == RECORDS:
        file.rmdir()
        for target in ("nowhere", name):  # a link to itself
            file.symlink_to(target)
            refused(digits, f"{name} is damaged")
            file.unlink()


@pytest.mark.parametrize(
    "text", ["[]", "5", "null", "{}", "[" * 10**5, '{"a":' * 900 + "1" + "}" * 900, '{"name": NaN}']
)
def test_json_of_another_kind_is_refused(text, digits):
    whole = {name: (digits / name).read_text() for name in ("dataset_info.json", "features.json")}
    for name in whole:
        (digits / name).write_text(text)
        for read in (data.load, data.open):
            with pytest.raises(ValueError, match=r"damaged|not image classification"):
                read("digits", digits.parent.parent)
        data.available(digits.parent.parent)
        assert data.decoded_bytes("digits", digits.parent.parent) == 0
        (digits / name).write_text(whole[name])


@pytest.mark.parametrize(
    ("name", "keys", "value", "words"),
    [
        ("features.json", ("label", "classLabel", "numClasses"), str(2**40), "number of classes is 1099511627776, but"),
        ("features.json", ("label", "classLabel", "numClasses"), "-1", "number of classes is '-1', but"),
        ("features.json", ("image", "image", "shape", "dimensions"), ["8", "8", str(2**62)], "a side is 4611686"),
        ("dataset_info.json", ("splits", 0, "shardLengths"), ["-1"], "an example count is '-1', but"),
        ("dataset_info.json", ("splits", 0, "shardLengths"), [10**30], "an example count is 1000000"),
        ("dataset_info.json", ("splits", 0, "shardLengths"), ["1437"], "it has 1438 examples, not 1437"),
        ("dataset_info.json", ("splits", 0, "shardLengths"), ["1438", "3"], "00000-of-00002 is damaged .it is missing"),
        ("dataset_info.json", ("splits", 0, "name"), "../../train", "is no name"),
    ],
)
def test_numbers_that_cannot_be_are_refused(name, keys, value, words, digits):
    keys = ("featuresDict", "features", *keys) if name == "features.json" else keys
    edited(digits / name, *keys, value=value)
    refused(digits, f"{words}")


def test_a_flipped_bit_of_the_records_is_named(digits):
    content = bytearray((digits / RECORDS).read_bytes())
    content[5000] ^= 1
    (digits / RECORDS).write_bytes(content)
    for read in (data.load, data.open):
        with pytest.raises(ValueError, match=r"the split 'train' in .*1.0.0 is damaged \(.*hash mismatch") as error:
            read("digits", digits.parent.parent)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("form", ["now", "older"])
def test_features_have_no_module_imported(form, digits):
    (digits / "evil_module.py").write_text(f"open({str(digits / 'ran')!r}, 'w')")
    if form == "now":
        edited(digits / "features.json", "featuresDict", "features", "image", "pythonClassName", value="evil_module.X")
    else:
        (digits / "features.json").write_text(json.dumps({"type": "evil_module.X", "content": {}}))
    sys.path.insert(0, str(digits))
    try:
        refused(digits, "has a feature of the class 'evil_module.X', which is none of TFDS's and would be imported")
    finally:
        sys.path.remove(str(digits))
    assert not (digits / "ran").exists()
    assert "evil_module" not in sys.modules


def test_the_names_of_labels_are_no_pipe(digits):
    os.mkfifo(digits / "label.labels.txt")
    refused(digits, "label.labels.txt is damaged .it is not a regular file")


def test_a_set_prepared_again_is_not_read_as_before(digits):
    root = digits.parent.parent
    first = data.load("digits", root)
    assert data.open("digits", root).labels.tolist() == first.labels.tolist()
    about = os.stat(digits / RECORDS)
    test = "digits-test.array_record-00000-of-00001"
    for name in (RECORDS, test):  # the parts exchanged, at the same sizes and times
        (digits / name).rename(digits / f"{name}.aside")
    (digits / f"{test}.aside").rename(digits / RECORDS)
    (digits / f"{RECORDS}.aside").rename(digits / test)
    for name in (RECORDS, test):
        os.utime(digits / name, ns=(about.st_atime_ns, about.st_mtime_ns))
    info = json.loads((digits / "dataset_info.json").read_text())
    lengths = [split["shardLengths"] for split in info["splits"]]
    for split, length in zip(info["splits"], reversed(lengths), strict=True):
        split["shardLengths"] = length
    about = os.stat(digits / "dataset_info.json")
    (digits / "dataset_info.json").write_text(json.dumps(info))
    os.utime(digits / "dataset_info.json", ns=(about.st_atime_ns, about.st_mtime_ns))
    for again in (data.load("digits", root), data.open("digits", root)):
        assert again.train_size == 359
        assert again.train_labels.tolist() == first.test_labels.tolist()
        np.testing.assert_array_equal(again.images[0], first.test_images[0])


def test_what_another_decoder_made_is_made_again(digits, monkeypatch):
    root = digits.parent.parent
    data.load("digits", root)
    monkeypatch.setattr(pictures, "DECODER", "another")
    monkeypatch.setattr(pictures, "decode", lambda *_, **__: np.full((8, 8, 1), 7, np.uint8))
    assert np.unique(data.load("digits", root).images).tolist() == [7]


def test_digits_go_to_a_folder_for_the_time_being_where_no_other_can_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert prepared.find("digits", None) == tmp_path / f"cljax-{os.getuid()}" / "digits" / "1.0.0"


def test_without_a_home_data_go_to_a_folder_for_the_time_being(tmp_path, monkeypatch):
    for name in ("HOME", "XDG_CACHE_HOME", "TFDS_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # as where the user is not known
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = tmp_path / f"cljax-{os.getuid()}"
    assert prepared.data_folder(None) == prepared.cache_folder() == folder
    assert data.prepare("digits") == folder / "digits" / "1.0.0"


@pytest.mark.parametrize("name", ["cljax-decoded.npz", "cljax-labels.npz"])
def test_kept_arrays_that_are_damaged_are_made_again(name, digits):
    read = data.load if "decoded" in name else data.open
    wanted = read("digits", digits.parent.parent).labels
    content = (digits / name).read_bytes()
    for broken in (content[:-1], content[: len(content) // 2], content[:9000] + b"\1" + content[9001:], None):
        remade(digits / name, broken)
        np.testing.assert_array_equal(read("digits", digits.parent.parent).labels, wanted)
        assert (digits / name).is_file()
        with np.load(digits / name) as file:
            np.testing.assert_array_equal(np.concatenate([file["train_labels"], file["test_labels"]]), wanted)


def made(folder, shape, examples, classes=5, splits=("train", "test")):
    """Prepares a set called tiny of encoded images: `{split: [(bytes, label), ...]}`."""

    class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = "tiny"
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=shape),
                "label": tfds.features.ClassLabel(num_classes=classes),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(part) for split, part in examples.items()}

        def _generate_examples(self, part):
            for number, (content, label) in enumerate(part):
                yield number, {"image": io.BytesIO(content), "label": label}

    with silence():
        Tiny(data_dir=folder, file_format="array_record").download_and_prepare()


def encoded(pixels, mode, kind="PNG", **options):
    """An image file."""
    buffer = io.BytesIO()
    pixels = Image.fromarray(np.asarray(pixels, np.uint8)).convert("RGB")
    (pixels.quantize(8) if mode == "P" else pixels.convert(mode)).save(buffer, kind, **options)
    return buffer.getvalue()


def test_images_have_the_channels_declared_whatever_is_stored(tmp_path):
    pixels = np.zeros((2, 4, 3), np.uint8) + np.array([[[200], [10], [30], [90]]], np.uint8)
    stored = [encoded(pixels, mode) for mode in ("P", "L", "RGB", "RGBA", "LA")]
    stored.append(encoded(pixels, "CMYK", "TIFF"))
    exif = Image.Exif()
    exif[0x0112] = 6  # TFDS does not turn images
    stored.append(encoded(pixels, "RGB", "PNG", exif=exif))
    part = [(content, number % 5) for number, content in enumerate(stored)]
    for folder, shape in (("grey", (2, 4, 1)), ("colour", (None, None, 3))):
        made(tmp_path / folder, shape, {"train": part, "test": part[:1]})
        size = None if folder == "grey" else (2, 4)
        loaded = data.load("tiny", tmp_path / folder, image_size=size)
        opened = data.open("tiny", tmp_path / folder, image_size=size)
        assert loaded.images.shape == (8, 2, 4, shape[-1])
        for image in loaded.images:
            np.testing.assert_array_equal(image, pixels[..., : shape[-1]])
        np.testing.assert_array_equal(opened.images.take(range(8)), loaded.images)


def test_images_that_are_not_as_declared_are_named(tmp_path):
    deep = io.BytesIO()
    Image.fromarray(np.full((2, 4), 4000, np.uint16)).save(deep, "PNG")
    turned, broken = encoded(np.zeros((4, 2, 3)), "L"), encoded(np.zeros((2, 4, 3)), "L")[:45]
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 2\n%%EndComments\n"
    for number, (content, words) in enumerate(
        [
            (turned, r"has the shape \(4, 2, 1\), but the set declares \(2, 4, 1\)"),
            (deep.getvalue(), "has pixels of more than eight bits"),
            (broken, "is a broken image"),
            (eps, "cannot be read as an image of the formats PNG"),
        ]
    ):
        good = encoded(np.zeros((2, 4, 3)), "L")
        made(tmp_path / str(number), (2, 4, 1), {"train": [(good, 0), (content, 1)], "test": [(good, 0)]})
        with pytest.raises(ValueError, match=f"Example 1 of the split 'train' in .*tiny/1.0.0 {words}"):
            data.load("tiny", tmp_path / str(number))


def test_the_labelled_part_is_the_test_part(tmp_path):
    one = encoded(np.zeros((2, 4, 3)), "L")
    parts = {"train": [(one, 0)] * 3, "test": [(one, -1)] * 2, "validation": [(one, 4)]}
    made(tmp_path / "three", (2, 4, 1), parts)
    for read in (data.load, data.open):
        assert read("tiny", tmp_path / "three").test_labels.tolist() == [4]
    made(tmp_path / "two", (2, 4, 1), {name: parts[name] for name in ("train", "test")})
    made(tmp_path / "some", (2, 4, 1), {"train": [(one, 0), (one, -1)], "test": [(one, 1)]})
    for read in (data.load, data.open):
        with pytest.raises(ValueError, match=r"'tiny' has no labels in 'test'. Divide 'train' yourself"):
            read("tiny", tmp_path / "two")
        with pytest.raises(ValueError, match="train_labels are out of range: example 1 has label -1"):
            read("tiny", tmp_path / "some")


def test_paths_that_are_patterns_or_not_utf8(whole, tmp_path):
    for name in ("[a]", "x@5", "a[0:3]", "a*b", "~x"):
        root = shutil.copytree(whole, tmp_path / name)
        assert data.load("digits", root).train_size == data.open("digits", root).train_size == 1438
    root = pathlib.Path(shutil.copytree(whole, os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")))
    refused(
        root / "digits" / "1.0.0", r"caf\\xe9/digits/1.0.0 is not UTF-8, but the path of prepared data sets must be"
    )
    with pytest.raises(ValueError, match="is not UTF-8"):
        data.prepare("digits", os.fsdecode(os.fsencode(tmp_path) + b"/\xe9"))


KILLED = """
import os, pathlib, signal, sys
from cljax.data import builders, digits
digits.Digits.download_and_prepare = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
builders.prepare("digits", sys.argv[1])
"""


def test_what_a_killed_preparation_left_is_removed_by_the_next(whole, tmp_path):
    subprocess.run([sys.executable, "-c", KILLED, tmp_path], check=False)
    assert [path.name[:7] for path in (tmp_path / "digits").iterdir()] == [".draft-"]
    shutil.copytree(whole / "digits" / "1.0.0", tmp_path / "digits" / "1.0.0")  # by another process, meanwhile
    data.prepare("digits", tmp_path)
    assert [path.name for path in (tmp_path / "digits").iterdir()] == ["1.0.0"]


def test_a_folder_in_the_way_is_named(tmp_path):
    (tmp_path / "digits" / "1.0.0" / "mine").mkdir(parents=True)
    with pytest.raises(OSError, match=r"cannot be prepared in .*1.0.0 is in the way. Remove it"):
        data.prepare("digits", tmp_path)
    assert [path.name for path in (tmp_path / "digits").rglob("*")] == ["1.0.0", "mine"]


IDX = np.array([0x0803, 3, 28, 28], ">i4").tobytes()


def test_compressed_bombs_are_not_unpacked(tmp_path):
    path, begun = tmp_path / "images.gz", time.perf_counter()
    zeros = gzip.compress(bytes(1 << 20))
    with path.open("wb") as file:
        file.write(gzip.compress(IDX))
        for _ in range(3000):  # three gigabytes
            file.write(zeros)
    with pytest.raises(archives.ArchiveError, match=r"says that it holds \[3, 28, 28\] values, but holds more"):
        archives.read_idx(path, (28, 28))
    assert time.perf_counter() - begun < 5
    for head in (
        [0x0803, 2**31 - 1, 28, 28],
        [0x0803, -1, 28, 28],
        [0x0803, 3, 2**31 - 1, 2**31 - 1],
        [0x0803, 3, 28, 29],
    ):
        path.write_bytes(gzip.compress(np.array(head, ">i4").tobytes()))
        with pytest.raises(
            archives.ArchiveError, match=r"but it is to hold entries of the size \[28, 28\], of at most"
        ):
            archives.read_idx(path, (28, 28))
    with pytest.raises(archives.ArchiveError, match="not an idx file of labels"):
        archives.read_idx(path, ())


def packed(path, members):
    """A gzipped tar archive of headers and contents."""
    with gzip.open(path, "wb") as file:
        for header, content in members:
            file.write(header.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512))
        file.write(bytes(1024))


def entry(name="x", size=0, kind=tarfile.REGTYPE, target=""):
    """A header of a tar archive."""
    made = tarfile.TarInfo(name)
    made.size, made.type, made.linkname = size, kind, target
    return made


def test_archives_of_links_holes_and_bombs(tmp_path, monkeypatch):
    path = tmp_path / "x.tar.gz"
    sparse = bytearray(entry(size=0, kind=tarfile.GNUTYPE_SPARSE).tobuf(tarfile.GNU_FORMAT))
    sparse[483:495] = tarfile.itn(1 << 40, 12, tarfile.GNU_FORMAT)  # its size, of which nothing is stored
    sparse[148:156] = b"%06o\0 " % tarfile.calc_chksums(bytes(sparse))[0]

    class Raw:
        def tobuf(self, _):
            return bytes(sparse)

    for members, words in {
        "sparse": ([(Raw(), b"")], "'x' not as a plain file, or too large"),
        "link": ([(entry(kind=tarfile.SYMTYPE, target="x"), b"")], "'x' not as a plain file"),
        "hard": ([(entry(kind=tarfile.LNKTYPE, target="x"), b"")], "'x' not as a plain file"),
        "folder": ([(entry(kind=tarfile.DIRTYPE), b"")], "'x' not as a plain file"),
        "large": ([(entry(size=1 << 40), b"")], "not as a plain file, or too large|cannot be unpacked"),
        "short": ([(entry(size=5000), b"abc")], "cannot be unpacked"),
        "name": ([(entry(kind=tarfile.GNUTYPE_LONGNAME, size=1 << 40), b"")], "holds more than|cannot be unpacked"),
        "other": ([(entry("y"), b"")], "has no file 'x'; it is not the binary version"),
    }.values():
        packed(path, members)
        with pytest.raises(archives.ArchiveError, match=words):
            archives.read_members(path, ["x"])
    packed(path, [(entry("x", 3), b"abc"), (entry("../../y", 2), b"de")])
    assert archives.read_members(path, ["x"]) == {"x": b"abc"}
    monkeypatch.setattr(archives, "CONTENT_BYTES", 1 << 20)
    packed(path, [(entry("y", 2 << 20), bytes(2 << 20)), (entry("x", 3), b"abc")])
    with pytest.raises(archives.ArchiveError, match="holds more than 1048576 bytes"):
        archives.read_members(path, ["x"])


def test_archives_that_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    for name in ("pipe", "folder", "loop", "gone"):
        for read in (lambda path: archives.read_idx(path, ()), lambda path: archives.read_members(path, ["x"])):
            with pytest.raises(archives.ArchiveError, match=f"{name} cannot be unpacked"):
                read(tmp_path / name)
    for place in (tmp_path / "pipe", tmp_path / "loop", "x" * 300, tmp_path / "gone"):
        with pytest.raises(ValueError, match=r"lacks .*train-images-idx3-ubyte.gz"):
            data.prepare("mnist", tmp_path, archives=place)
    with pytest.raises(ValueError, match="no such home folder is known"):
        data.prepare("mnist", tmp_path, archives="~nobody-of-this-name")


def test_labels_and_names_of_archives_are_checked():
    with pytest.raises(archives.ArchiveError, match=r"a file has the label 10 \(example 1\), but there are 10 classes"):
        archives.check_range(np.array([3, 10, 9], np.uint8), 10, "a file")
    archives.check_range(np.array([9], np.uint8), 10, "a file")
    assert archives.read_names(b"a\nb\n\n", 2, "a file") == ["a", "b"]
    for content in (b"a\n", b"a\nb\nc", b"a\na", b"a\n\xff"):
        with pytest.raises(archives.ArchiveError, match="names of classes, not 2; it is broken"):
            archives.read_names(content, 2, "a file")
