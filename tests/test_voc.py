"""PASCAL VOC's classification: what a tiny devkit of either year gives, by hand, and what is refused."""

import os

import numpy as np
import pytest
from PIL import Image

from cljax import data, metrics, streams
from cljax.data.on_demand import ReadError

CLASSES = ("diningtable", "dog", "train")  # one is called as a split is
MARKS = {  # of each image, by the classes' order
    "train": {"000012": (1, -1, -1), "000005": (-1, 1, 0)},
    "val": {"000007": (0, 1, -1)},
    "test": {"000003": (-1, -1, 1), "000001": (1, 0, -1), "000002": (0, 0, 0)},
}
SIZES = {"000012": (7, 5), "000005": (5, 9), "000007": (16, 16), "000003": (3, 8), "000001": (20, 6), "000002": (4, 4)}


def pack(folder, *, test):
    """A devkit's folder of one year, with lists of `test` or without, and its images, each of another size."""
    lists = folder / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (folder / "JPEGImages").mkdir()
    splits = {**MARKS, "trainval": {**MARKS["train"], **MARKS["val"]}}
    for split in splits if test else ("train", "val", "trainval"):
        (lists / f"{split}.txt").write_text("".join(f"{identity}\n" for identity in splits[split]))
        for place, label in enumerate(CLASSES):
            lines = [f"{identity} {marks[place]:2d}\n" for identity, marks in splits[split].items()]
            (lists / f"{label}_{split}.txt").write_text("".join(lines))
        for identity in splits[split]:
            pixels = np.random.default_rng(int(identity)).integers(0, 256, (*SIZES[identity], 3), np.uint8)
            Image.fromarray(pixels).save(folder / "JPEGImages" / f"{identity}.jpg")
    return folder


def resized(folder, identity, height, width):
    """An image as Pillow itself decodes and resizes it."""
    with Image.open(folder / "JPEGImages" / f"{identity}.jpg") as picture:
        return np.asarray(picture.convert("RGB").resize((width, height), Image.Resampling.BILINEAR))


def test_a_year_with_test_lists_by_hand(tmp_path):
    folder = pack(tmp_path / "VOC2007", test=True)
    assert (folder / "ImageSets" / "Main" / "dog_trainval.txt").read_text() == "000012 -1\n000005  1\n000007  1\n"
    opened = data.open_voc(folder, image_size=(6, 4))
    assert (opened.name, opened.classes, opened.train_size) == ("VOC2007", CLASSES, 3)
    assert isinstance(opened.images, data.Images)
    assert (opened.images.shape, opened.images.dtype) == ((6, 6, 4, 3), np.uint8)
    assert (opened.labels.dtype, opened.labels.flags.c_contiguous) == (np.float32, True)
    assert opened.train_labels.tolist() == [[1, 0, 0], [0, 1, 0], [0, 1, 0]]
    assert opened.test_labels.tolist() == [[0, 0, 1], [1, 0, 0], [0, 0, 0]]
    for part, identities in (("train", ["000012", "000005", "000007"]), ("test", ["000003", "000001", "000002"])):
        expected = [resized(folder, identity, 6, 4) for identity in identities]
        np.testing.assert_array_equal(getattr(opened, f"{part}_images").take([0, 1, 2]), expected)


def test_a_year_without_test_lists_by_hand(tmp_path):
    folder = pack(tmp_path / "VOC2012", test=False)
    (folder / "ImageSets" / "Main" / "._dog_train.txt").write_bytes(b"\0\5")  # what some systems leave beside files
    (folder / "ImageSets" / "Main" / "test.txt").write_text("000001\n")  # ids without labels
    opened = data.open_voc(str(folder), image_size=8, difficult=0.25, name="voc")
    assert (opened.name, opened.classes, opened.train_size) == ("voc", CLASSES, 2)
    assert opened.train_labels.tolist() == [[1, 0, 0], [0, 1, 0.25]]
    assert opened.test_labels.tolist() == [[0.25, 1, 0]]
    assert opened.images.shape == (3, 8, 8, 3)
    expected = [resized(folder, identity, 8, 8) for identity in ("000007", "000012")]
    np.testing.assert_array_equal(opened.images.take([2, 0]), expected)


def test_nothing_is_decoded_until_it_is_asked_for(tmp_path):
    folder = pack(tmp_path / "VOC2007", test=True)
    whole = (folder / "JPEGImages" / "000007.jpg").read_bytes()
    (folder / "JPEGImages" / "000007.jpg").write_bytes(whole[:-40])
    (folder / "JPEGImages" / "000003.jpg").write_text("text")
    opened = data.open_voc(folder, image_size=4)
    assert opened.images.take([0, 1, 4, 5]).shape == (4, 4, 4, 3)
    with pytest.raises(ReadError, match=r"data set 'VOC2007' could not be read: .*000007.jpg is a broken image"):
        opened.images.take([2])
    with pytest.raises(ReadError, match=r"000003.jpg cannot be read as an image"):
        opened.images.take([3])


def test_grey_images_have_three_channels_too(tmp_path):
    folder = pack(tmp_path / "VOC2012", test=False)
    Image.fromarray(np.full((9, 3), 77, np.uint8)).save(folder / "JPEGImages" / "000012.jpg")
    image = data.open_voc(folder, image_size=(2, 5)).images[0]
    assert image.shape == (2, 5, 3)
    assert np.unique(image).tolist() == [77]


def test_a_stream_of_it_keeps_labels_and_order(tmp_path):
    opened = data.open_voc(pack(tmp_path / "VOC2007", test=True), image_size=4, difficult=0.25)
    arrays = opened.train_images, opened.train_labels, opened.test_images, opened.test_labels
    tables = streams.from_tasks([arrays], validation=0).tables
    np.testing.assert_array_equal(tables.train.labels, opened.train_labels)
    np.testing.assert_array_equal(tables.test.labels, opened.test_labels)
    np.testing.assert_array_equal(tables.examples.take(tables.test.index), opened.test_images.take([0, 1, 2]))


def test_difficult_images_can_be_left_out_of_average_precision(tmp_path):
    labels = data.open_voc(pack(tmp_path / "VOC2007", test=True), image_size=4, difficult=0.5).test_labels
    assert labels.tolist() == [[0, 0, 1], [1, 0.5, 0], [0.5, 0.5, 0.5]]
    scores = np.array([[1, 0, 1], [2, 0, 2], [3, 0, 3]], np.float32)  # the difficult image comes first everywhere
    counted = metrics.average_precision(scores, labels)
    ignored = metrics.average_precision(scores, labels, weights=labels != 0.5)
    np.testing.assert_allclose(counted, [1 / 2, np.nan, 1 / 3], rtol=1e-6)
    np.testing.assert_allclose(ignored, [1, np.nan, 1 / 2], rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("dog_val", "000007 2\n", r"dog_val.txt has '000007 2' in line 1, but .* its mark, 1, -1 or 0. Unpack"),
        ("dog_train", "000012 -1\n000005\n", r"dog_train.txt has '000005' in line 2, but each line must be the id"),
        ("dog_train", "000012 -1\n\n000005  1\n", r"dog_train.txt has '' in line 2"),
        ("dog_train", "000012 -1\n000005  1 1\n", r"dog_train.txt has '000005 1 1' in line 2"),
        ("dog_train", b"000012 -1\n\xff\xfe\n", r"dog_train.txt has .* in line 2"),
        ("dog_train", "", r"dog_train.txt has '' in line 1, but each line must be the id"),
        ("dog_train", None, r"There is no list .*dog_train.txt. Each class has one for each split"),
        ("dog_val", None, r"There is no list .*dog_val.txt. Each class has one for each split. Unpack the archives"),
        (
            "train_train",
            "000005 -1\n000012  0\n",
            r"train_train.txt differs from diningtable_train.txt in line 1: it names 000005, not 000012. .*Unpack",
        ),
        ("dog_train", "000012 -1\n", r"dog_train.txt differs .* in line 2: it names no image, not 000005"),
        ("dog_val", "000007 -1\n000012 -1\n", r"dog_val.txt differs .* in line 2: it names 000012, not no image"),
        ("dog_test", "000003 -1\n", r"There is no list .*diningtable_test.txt"),
    ],
)
def test_lists_that_are_refused(tmp_path, name, text, words):
    folder = pack(tmp_path / "VOC2012", test=False)
    file = folder / "ImageSets" / "Main" / f"{name}.txt"
    if text is None:
        file.unlink()
    elif isinstance(text, bytes):
        file.write_bytes(text)
    else:
        file.write_text(text)
    with pytest.raises(ValueError, match=words):
        data.open_voc(folder, image_size=4)


def test_what_else_is_refused(tmp_path):
    folder = pack(tmp_path / "VOCdevkit" / "VOC2007", test=True)

    def attempt(words, path=folder, **options):
        with pytest.raises(ValueError, match=words):
            data.open_voc(path, **{"image_size": 4, **options})

    no_lists = r"has no lists ImageSets/Main/CLASS_train.txt. Give the folder of one year, such as VOCdevkit/VOC2007"
    attempt(f"nowhere {no_lists}", tmp_path / "nowhere")
    attempt(f"VOCdevkit {no_lists}", tmp_path / "VOCdevkit")
    for wrong in (-0.1, 1.5, float("nan")):
        attempt(rf"difficult is {wrong}, but must be a label from 0 \(no object\) to 1 \(an object\)", difficult=wrong)
    attempt("image size is 0", image_size=0)
    lists = folder / "ImageSets" / "Main"
    (lists / "dog_test.txt").rename(lists / "aside")
    os.mkfifo(lists / "dog_test.txt")
    attempt("dog_test.txt is not a regular file")
    (lists / "dog_test.txt").unlink()
    (lists / "dog_test.txt").symlink_to("dog_test.txt")
    attempt(r"dog_test.txt cannot be read \(Too many levels")
    (lists / "dog_test.txt").unlink()
    (lists / "dog_test.txt").write_text("../../x 1\n")
    attempt(r"dog_test.txt has '../../x 1' in line 1")
    (lists / "aside").rename(lists / "dog_test.txt")
    (folder / "JPEGImages" / "000001.jpg").unlink()
    attempt(r"There is no image .*JPEGImages.000001.jpg, which the lists in .*Main name. Unpack the archives again")
