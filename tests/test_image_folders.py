"""Folders of images: what is found, how it is divided, resized, kept, and what is refused."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from cljax import data, streams
from cljax.data import image_folders, keeping
from cljax.data.images import check_memory, resize, with_channels


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """Decoded images go to a folder of the test's own."""
    place = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(place))
    return place


def fill(folder, classes, shape=(4, 6, 3), start=0):
    """Images of one value each, counted upwards from `start` over all classes."""
    for name, count in classes.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            pixels = np.full(shape, start, np.uint8)
            Image.fromarray(pixels[..., 0] if shape[2] == 1 else pixels).save(folder / name / f"{number:03d}.png")
            start += 1


def test_train_and_test_folders_by_hand(tmp_path):
    fill(tmp_path / "train", {"dog": 2, "cat": 3})
    fill(tmp_path / "val", {"cat": 1}, start=50)
    (tmp_path / "train" / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "train" / ".hidden").mkdir()
    loaded = data.load(str(tmp_path), "/nowhere")
    assert loaded.classes == ("cat", "dog")
    assert loaded.images.shape == (6, 4, 6, 3)
    assert loaded.images[:, 0, 0, 0].tolist() == [2, 3, 4, 0, 1, 50]
    assert (loaded.labels.tolist(), loaded.labels.dtype, loaded.train_size) == ([0, 0, 0, 1, 1, 0], np.int32, 5)
    assert loaded.name == tmp_path.name


def test_a_fifth_of_each_class_is_the_test_part_always_the_same(tmp_path):
    fill(tmp_path, {"many": 20, "some": 3, "two": 2, "one": 1}, shape=(2, 2, 1))
    loaded = data.load(str(tmp_path))
    assert loaded.classes == ("many", "one", "some", "two")
    assert np.bincount(loaded.train_labels, minlength=4).tolist() == [16, 1, 2, 1]
    assert np.bincount(loaded.test_labels, minlength=4).tolist() == [4, 0, 1, 1]
    values = loaded.images[:, 0, 0, 0]
    assert sorted(values.tolist()) == list(range(26))  # none twice, none lost
    assert ((values < 20) == (loaded.labels == 0)).all()
    again = data.load(str(tmp_path))
    np.testing.assert_array_equal(loaded.images, again.images)
    assert loaded.images.shape[-1] == 1  # all images are grey
    stream = streams.split(loaded, tasks=2, validation=0, class_order=[0, 2])
    assert stream.tables.train.size.tolist() == [16, 2]


def test_decoded_images_are_kept_until_a_file_changes(tmp_path, cache, monkeypatch):
    fill(tmp_path, {"a": 2, "b": 2})
    first = data.load(str(tmp_path))
    assert len(list((cache / "cljax" / "folders").iterdir())) == 1
    with monkeypatch.context() as patch:
        patch.setattr(image_folders.FolderImages, "__getitem__", lambda *_: pytest.fail("decoded again"))
        np.testing.assert_array_equal(data.load(str(tmp_path)).images, first.images)
    Image.fromarray(np.full((4, 6, 3), 99, np.uint8)).save(tmp_path / "a" / "000.png")
    assert 99 in data.load(str(tmp_path)).images
    for kept in (cache / "cljax" / "folders").iterdir():
        kept.write_bytes(b"spoiled")
    assert 99 in data.load(str(tmp_path)).images


def test_images_of_differing_sizes_need_one(tmp_path):
    fill(tmp_path / "train", {"a": 1}, shape=(4, 6, 3), start=7)
    fill(tmp_path / "test", {"a": 1}, shape=(8, 8, 3), start=9)
    with pytest.raises(ValueError, match=r"differ in size: 000.png is 4x6, 000.png is 8x8.*such as image_size=64"):
        data.load(str(tmp_path))
    loaded = data.load(str(tmp_path), image_size=(5, 3))
    assert loaded.images.shape == (2, 5, 3, 3)
    assert np.unique(loaded.images).tolist() == [7, 9]  # one colour stays one colour
    assert data.load(str(tmp_path), image_size=2).images.shape == (2, 2, 2, 3)


def test_read_on_demand_equals_loaded(tmp_path):
    fill(tmp_path, {"a": 5, "b": 5}, shape=(4, 6, 3))
    loaded, opened = data.load(str(tmp_path), image_size=4), data.open(str(tmp_path), image_size=4)
    assert isinstance(opened.images, data.Images)
    rows = [7, 0, 0, 9]
    np.testing.assert_array_equal(opened.images.take(rows), loaded.images[rows])
    np.testing.assert_array_equal(opened.labels, loaded.labels)
    assert opened[2:] == loaded[2:]
    source = image_folders.scan(tmp_path).images
    assert (len(source), source[3].shape, source[3].dtype) == (10, (4, 6, 3), np.uint8)
    assert data.decoded_bytes(str(tmp_path)) == 10 * 4 * 6 * 3
    assert data.decoded_bytes(str(tmp_path), image_size=2) == 10 * 2 * 2 * 3


def test_modes_palettes_and_turned_photographs(tmp_path):
    (tmp_path / "train" / "a").mkdir(parents=True)
    (tmp_path / "test" / "a").mkdir(parents=True)
    image = Image.fromarray(np.arange(2 * 3, dtype=np.uint8).reshape(2, 3))
    turned = Image.Exif()
    turned[0x0112] = 6  # to be shown turned clockwise by a quarter
    image.save(tmp_path / "train" / "a" / "0.png", exif=turned)
    palette = Image.fromarray(np.full((3, 2, 3), (200, 10, 0), np.uint8)).convert("P", palette=Image.Palette.ADAPTIVE)
    palette.save(tmp_path / "test" / "a" / "0.png")
    loaded = data.load(str(tmp_path))
    assert loaded.images.shape == (2, 3, 2, 3)
    np.testing.assert_array_equal(loaded.images[0, :, :, 1], [[3, 0], [4, 1], [5, 2]])
    assert loaded.images[1, 0, 0].tolist() == [200, 10, 0]


def test_what_is_refused(tmp_path):
    def attempt(name, words):
        with pytest.raises(ValueError, match=words):
            data.load(str(tmp_path / name))

    (tmp_path / "empty").mkdir()
    attempt("empty", "empty has no sub-folders. A folder of images has one for each class")
    (tmp_path / "bare" / "cat").mkdir(parents=True)
    attempt("bare", "cat holds no images")
    fill(tmp_path / "alone" / "train", {"a": 1})
    attempt("alone", "has a folder 'train', but none of test, val, validation")
    fill(tmp_path / "alone" / "test", {"b": 1})
    attempt("alone", "test has the class 'b', which .*train has not")
    fill(tmp_path / "broken", {"a": 2})
    whole = (tmp_path / "broken" / "a" / "001.png").read_bytes()
    (tmp_path / "broken" / "a" / "001.png").write_bytes(b"text")
    attempt("broken", "001.png cannot be read as an image")
    (tmp_path / "broken" / "a" / "001.png").write_bytes(whole[:45])
    attempt("broken", "001.png is a broken image")
    (tmp_path / "deep" / "a").mkdir(parents=True)
    Image.fromarray(np.full((2, 2), 1000, np.uint16)).save(tmp_path / "deep" / "a" / "0.png")
    attempt("deep", "more than eight bits")
    attempt("missing", "There is no folder .*missing. A folder of images has a sub-folder for each class")
    with pytest.raises(ValueError, match="image size is 0"):
        data.load(str(tmp_path / "deep"), image_size=0)


def test_prepared_names_come_before_folders(tmp_path, monkeypatch):
    fill(tmp_path / "mnist", {"a": 2})
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="There is no data set 'mnist'"):
        data.load("mnist", tmp_path / "nowhere")
    assert data.load("./mnist", tmp_path / "nowhere").classes == ("a",)


def test_resizing_and_channels_by_hand():
    checks = np.zeros((1, 4, 4, 1), np.uint8)
    checks[0, :, 2:] = 200  # dark on the left, bright on the right
    np.testing.assert_array_equal(
        resize(checks, 2)[0, :, :, 0],
        np.asarray(Image.fromarray(checks[0, :, :, 0]).resize((2, 2), Image.Resampling.BILINEAR)),
    )
    assert resize(checks, 4) is checks
    assert resize(np.repeat(checks, 3, axis=3), (2, 8)).shape == (1, 2, 8, 3)
    colour = np.array([[[[10, 20, 61]]]], np.uint8)
    assert with_channels(colour, 1).tolist() == [[[[30]]]]
    assert with_channels(with_channels(colour, 1), 3).tolist() == [[[[30, 30, 30]]]]
    assert with_channels(colour.astype(np.float32), 1).item() == pytest.approx(91 / 3)
    with pytest.raises(ValueError, match="of 3 channels cannot be turned into images of 4"):
        with_channels(colour, 4)


def touch(folder, name, like):
    """A file as another process would leave it: the same size, and the same time of modification."""
    about = os.stat(folder / name)
    (folder / name).write_bytes(like)
    os.utime(folder / name, ns=(about.st_atime_ns, about.st_mtime_ns))


def values(path, **options):
    """The images' values and labels, as loaded."""
    loaded = data.load(str(path), **options)
    return loaded.images[:, 0, 0, 0].tolist(), loaded.labels.tolist()


def bitmaps(folder, classes):
    """Images of one size in bytes each, and of one time of modification."""
    for name, numbers in classes.items():
        (folder / name).mkdir(parents=True)
        for number in numbers:
            path = folder / name / f"{number}.bmp"
            Image.fromarray(np.full((2, 2, 3), number, np.uint8)).save(path)
            os.utime(path, (10**9, 10**9))


def test_kept_images_follow_every_change_of_the_files(tmp_path):
    for part in ("train", "test"):
        bitmaps(tmp_path / part, {"a": [1, 2], "b": [3]})
    assert values(tmp_path) == ([1, 2, 3] * 2, [0, 0, 1] * 2)
    train = tmp_path / "train"
    touch(train / "a", "1.bmp", (train / "b" / "3.bmp").read_bytes())
    assert values(tmp_path)[0] == [3, 2, 3, 1, 2, 3]
    for one, other in (("a/2.bmp", "b/3.bmp"), ("a", "b")):  # two files exchanged, then two whole folders
        (train / one).rename(tmp_path / "aside")
        (train / other).rename(train / one)
        (tmp_path / "aside").rename(train / other)
        if one == "a/2.bmp":
            assert values(tmp_path) == ([3, 3, 2, 1, 2, 3], [0, 0, 1] * 2)
    assert values(tmp_path) == ([2, 3, 3, 1, 2, 3], [0, 1, 1, 0, 0, 1])
    other = tmp_path / ".far.bmp"
    Image.fromarray(np.full((2, 2, 3), 77, np.uint8)).save(other)
    (train / "b" / "1.bmp").unlink()
    (train / "b" / "1.bmp").symlink_to(other)
    assert values(tmp_path)[0] == [2, 77, 3, 1, 2, 3]


def test_a_damaged_cache_is_made_again(tmp_path, cache, monkeypatch):
    fill(tmp_path, {"a": 3, "b": 3})
    wanted = data.load(str(tmp_path)).images
    (kept,) = (cache / "cljax" / "folders").iterdir()
    whole, generator = kept.read_bytes(), np.random.default_rng(0)
    broken = [whole[:size] for size in (0, 1, 30, len(whole) // 2, len(whole) - 1)]
    for place in generator.integers(0, len(whole), 60):
        broken.append(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
    for content in [*broken, np.zeros(9).tobytes(), b"PK\x05\x06" + bytes(18)]:
        kept.write_bytes(content)
        np.testing.assert_array_equal(data.load(str(tmp_path)).images, wanted)
    kept.unlink()
    os.mkfifo(kept)
    np.testing.assert_array_equal(data.load(str(tmp_path)).images, wanted)
    assert [entry.is_file() for entry in kept.parent.iterdir()] == [True]
    with monkeypatch.context() as patch:
        patch.setattr(image_folders.FolderImages, "__getitem__", lambda *_: pytest.fail("decoded again"))
        data.load(str(tmp_path))


def test_a_cache_that_cannot_be_written_is_left_alone(tmp_path, monkeypatch):
    fill(tmp_path / "data", {"a": 2})
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(data.load(str(tmp_path / "data")).images) == 2
    assert (tmp_path / "file").read_text() == "no folder"


HOLD = """
import pathlib, sys, time
from cljax.data.keeping import draft
with draft(pathlib.Path(sys.argv[1]), folder=sys.argv[2] == "folder") as path:
    print(path, flush=True)
    time.sleep(100)
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_drafts_of_killed_processes_are_removed_and_those_in_use_are_not(kind, tmp_path):
    (tmp_path / ".draft-of my own").mkdir()
    (tmp_path / ".draft-a1b2c3d4").symlink_to(tmp_path / ".draft-of my own")
    with subprocess.Popen([sys.executable, "-c", HOLD, tmp_path, kind], stdout=subprocess.PIPE, text=True) as process:
        held = process.stdout.readline().strip()
        keeping.clear(tmp_path)
        assert os.path.exists(held)
        process.kill()
    keeping.keep_arrays(tmp_path / "kept", "made of this", {})
    names = {".draft-of my own", ".draft-a1b2c3d4", "kept"}
    assert {entry.name for entry in tmp_path.iterdir()} == names
    with pytest.raises(KeyboardInterrupt), keeping.draft(tmp_path, folder=kind == "folder"):
        raise KeyboardInterrupt
    assert {entry.name for entry in tmp_path.iterdir()} == names


def test_images_in_folders_of_a_class_are_its_own(tmp_path):
    fill(tmp_path / "train", {"n01": 2, "n01/images": 3, "n01/images/more": 1, "n02/images": 2})
    (tmp_path / "train" / "n01" / "n01_boxes.txt").write_text("0.JPEG 0 0 1 1")
    (tmp_path / "train" / "n01" / "__MACOSX").mkdir()
    (tmp_path / "train" / "n01" / "__MACOSX" / "x.png").write_bytes(b"none")
    (tmp_path / "train" / "n01" / "._000.png").write_bytes(b"none")
    fill(tmp_path / "val", {"n01/images": 1, "n02": 1}, start=50)
    (tmp_path / "train" / "n01" / "001.png").rename(tmp_path / "train" / "n01" / "001.JPEG")  # told by its content
    assert values(tmp_path) == ([0, 1, 2, 3, 4, 5, 6, 7, 50, 51], [0] * 6 + [1] * 2 + [0, 1])


def test_tiny_imagenets_own_layout_is_refused_until_its_images_are_in_folders(tmp_path):
    fill(tmp_path / "train", {"n01/images": 2, "n02/images": 2})
    fill(tmp_path / "val", {"images": 2})
    fill(tmp_path / "test", {"images": 2})
    (tmp_path / "val" / "val_annotations.txt").write_text("000.png\tn01\t0\t0\t1\t1\n")
    with pytest.raises(ValueError, match=r"test has no labels: its images are not in folders named as the classes of"):
        data.load(str(tmp_path))
    (tmp_path / "val" / "images").rename(tmp_path / "val" / "n02")
    assert values(tmp_path)[1] == [0, 0, 1, 1, 1, 1]


def test_an_unlabelled_test_part_is_not_used_where_a_labelled_one_is(tmp_path):
    fill(tmp_path / "train", {"a": 2, "b": 2})
    fill(tmp_path / "test", {"": 3}, start=90)
    fill(tmp_path / "Validation", {"a": 1, "b": 1}, start=50)
    assert values(tmp_path)[0] == [0, 1, 2, 3, 50, 51]


def test_a_class_may_be_called_train(tmp_path):
    fill(tmp_path, {"bus": 2, "car": 2, "test": 2, "train": 2})
    loaded = data.load(str(tmp_path))
    assert loaded.classes == ("bus", "car", "test", "train")
    assert sorted(loaded.images[:, 0, 0, 0].tolist()) == list(range(8))


def test_what_would_be_left_out_is_refused(tmp_path):
    def attempt(name, words, **classes):
        for place, count in classes.items():
            fill(tmp_path / name, {place.replace("_", "/"): count})
        with pytest.raises(ValueError, match=words) as error:
            data.load(str(tmp_path / name))
        assert "\n" not in str(error.value)

    attempt("beside", "'train', with folders of images, beside .* 'extra' with images", train_a=1, test_a=1, extra=1)
    attempt("lone", "has a folder 'test', but none called train", test_a=1)
    attempt("above", "sets/mine is in a class, but has parts", **{"sets/mine_train_a": 1, "sets/mine_test_a": 1})
    fill(tmp_path / "stray", {"a": 1, "": 1})
    attempt("stray", r"stray/000.png is in no class. Move it into the folder of its class, .*stray/CLASS, or away")
    fill(tmp_path / "flat" / "train", {"": 2})
    attempt("flat", "has a folder 'train', but none of")
    fill(tmp_path / "flat" / "test", {"a": 2})
    attempt("flat", "train/000.png is in no class")
    fill(tmp_path / "named", {"a": 2})
    (tmp_path / "named" / "a" / "001.png").rename(tmp_path / "named" / "a" / "image")
    attempt("named", "a/image is an image, but is not named as one. Add its format")
    (tmp_path / "named" / "a" / "image").rename(tmp_path / "named" / "a" / "001.heic")
    attempt("named", "001.heic is an image of a format that is not read")
    fill(tmp_path / "linked", {"a": 1})
    (tmp_path / "linked" / "a" / "more").symlink_to(tmp_path / "linked")
    attempt("linked", "a/more is a link to a folder")
    fill(tmp_path / "pipe", {"a": 2})
    os.mkfifo(tmp_path / "pipe" / "a" / "x.png")
    os.mkfifo(tmp_path / "pipe" / "a" / "notes")  # no image, and never opened
    attempt("pipe", "x.png is not a regular file")


def test_a_class_may_be_a_link(tmp_path):
    fill(tmp_path / "far", {"cats": 2})
    fill(tmp_path / "here", {"dogs": 2}, start=5)
    (tmp_path / "here" / "cats").symlink_to(tmp_path / "far" / "cats")
    assert sorted(values(tmp_path / "here")[0]) == [0, 1, 5, 6]


def test_names_that_are_not_utf8(tmp_path):
    root = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    fill(pathlib.Path(root), {os.fsdecode(b"na\xefve"): 3, "plain": 3})
    for one in (data.load(root), data.open(root), data.load(root, image_size=2)):
        assert (one.name, one.classes) == (r"caf\xe9", (r"na\xefve", "plain"))
    (pathlib.Path(root) / "plain" / os.fsdecode(b"\xff.png")).write_bytes(b"none")
    with pytest.raises(ValueError, match=r"\\xff.png cannot be read as an image") as error:
        data.load(root)
    str(error.value).encode()


def test_names_of_folders_that_there_cannot_be(tmp_path, monkeypatch):
    for name in (
        "x" * 300,
        "./" + "x" * 300,
        "~nobody-of-this-name/x",
        "a\0b",
        "",
        "/" + "y/" * 3000,
        b"bytes",
        5,
        None,
    ):
        for read in (data.load, data.open, data.decoded_bytes):
            if read is data.decoded_bytes and isinstance(name, str) and name[:2] in ("xx", "./", "/y"):
                assert read(name, tmp_path) == 0
                continue
            with pytest.raises(ValueError, match=r"folder|data set") as error:
                read(name, tmp_path)
            assert len(str(error.value)) < 1500
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # as where the user is not known
    with pytest.raises(ValueError, match="no such home folder is known"):
        data.load("~")


@pytest.mark.parametrize(
    "size", [0, -1, 2.5, True, "32", (3,), (3, 4, 5), 10**6, 10**30, (2**20, 2**20), float("nan"), None]
)
def test_sizes_are_checked_before_anything_is_read(size, tmp_path):
    fill(tmp_path, {"a": 2})
    if size is None:
        data.load(str(tmp_path), image_size=size)
        return
    for read in (data.load, data.open, data.decoded_bytes):
        with pytest.raises(ValueError, match="image size"):
            read("digits" if read is data.decoded_bytes else str(tmp_path), image_size=size)
    with pytest.raises(ValueError, match="image size"):
        data.combine([data.load(str(tmp_path))], image_size=size)


def test_what_does_not_fit_into_memory_is_said_before(tmp_path):
    fill(tmp_path, {"a": 2})
    with pytest.raises(ValueError, match=r"take .* GB as an array, but .* GB of memory are free. Give a smaller"):
        check_memory("x", (10**6, 9000, 9000, 3))
    source = image_folders.scan(tmp_path, 9000)
    images = image_folders.FolderImages(source.images.paths * 10**4, (9000, 9000), 3)
    many = image_folders.Folder(images, source.labels, 1, ("a",))
    with pytest.raises(ValueError, match="of memory"):
        image_folders.decode(many, tmp_path / "kept", "mine")


def test_a_folder_that_cannot_be_entered_is_named(tmp_path, monkeypatch):
    fill(tmp_path, {"a": 2})

    def refuse(path):
        raise PermissionError(13, "Permission denied", os.fspath(path))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ValueError, match=r"cannot be read \(Permission denied\). Make it readable"):
        data.load(str(tmp_path))
