"""Folders of images: what is found, how it is divided, resized, kept, and what is refused."""

import numpy as np
import pytest
from PIL import Image

from cljax import data, streams
from cljax.data import folders
from cljax.data.images import resize, with_channels


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """Decoded images go to a folder of the test's own."""
    place = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(place))
    return place


def fill(folder, classes, shape=(4, 6, 3), start=0):
    """Images of one value each, counted upwards from `start` over all classes."""
    for name, count in classes.items():
        (folder / name).mkdir(parents=True)
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
        patch.setattr(folders.FolderImages, "__getitem__", lambda *_: pytest.fail("decoded again"))
        np.testing.assert_array_equal(data.load(str(tmp_path)).images, first.images)
    Image.fromarray(np.full((4, 6, 3), 99, np.uint8)).save(tmp_path / "a" / "000.png")
    assert 99 in data.load(str(tmp_path)).images
    for kept in (cache / "cljax" / "folders").iterdir():
        kept.write_bytes(b"spoiled")
    assert 99 in data.load(str(tmp_path)).images


def test_images_of_differing_sizes_need_one(tmp_path):
    fill(tmp_path / "train", {"a": 1}, shape=(4, 6, 3), start=7)
    fill(tmp_path / "test", {"a": 1}, shape=(8, 8, 3), start=9)
    with pytest.raises(ValueError, match=r"differ in size: 000.png is 4x6, 000.png is 8x8.*--image-size 64"):
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
    source = folders.scan(tmp_path).images
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
