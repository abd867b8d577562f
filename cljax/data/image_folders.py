"""A folder of images, one sub-folder a class: its files, read one at a time or decoded once and kept."""

from __future__ import annotations

import os
import pathlib
from typing import NamedTuple

import numpy as np

from cljax.data import pictures
from cljax.data.images import Size, check_memory, height_and_width
from cljax.data.keeping import identity, keep_arrays, kept_arrays
from cljax.files import expand, open_regular, shown

TEST_SHARE = 0.2
"""The part of each class that is the test part of a folder that has none."""

_TRAIN_NAMES = ("train", "training")
_TEST_NAMES = ("test", "testing", "val", "valid", "validation")
_NO_CLASSES = ("__macosx", "@eadir")
"""Folders that systems put beside one's own."""
_OTHER_IMAGES = (".avif", ".eps", ".heic", ".heif", ".ico", ".j2k", ".jp2", ".jxl", ".psd", ".svg", ".tga")
_BEGINNINGS = (b"\x89PNG\r\n", b"\xff\xd8\xff", b"GIF8", b"II*\0", b"MM\0*", b"RIFF")
"""Of image files, whatever they are called."""


class Folder(NamedTuple):
    """The images of a folder, training part first.

    Attributes:
      images: read on demand.
      labels: `[n]` int32.
      train_size: how many of the first ones are for training.
      classes: the sub-folders' names, sorted.
    """

    images: FolderImages
    labels: np.ndarray
    train_size: int
    classes: tuple[str, ...]


class FolderImages:
    """A random-access source of image files: `len`, and `[row]` reads and decodes one, `[H, W, C]` uint8.

    Args:
      paths: of the files.
      size: height and width that images are resized to.
      channels: 1 or 3.
    """

    def __init__(self, paths: list[pathlib.Path], size: tuple[int, int], channels: int) -> None:
        self.paths, self.shape = paths, (*size, channels)

    def __len__(self) -> int:
        """The number of images."""
        return len(self.paths)

    def __getitem__(self, row: int) -> np.ndarray:
        """Reads one image.

        Raises:
          ValueError: a file that is no image, or a broken one.
        """
        *size, channels = self.shape
        return pictures.decode(self.paths[row], shown(self.paths[row]), channels, (size[0], size[1]))

    def identity(self) -> str:
        """A digest of all that the images depend on: the files' states, size and channels."""
        try:
            return identity(self.paths, self.shape, pictures.DECODER)
        except OSError as error:
            raise ValueError(f"{shown(error.filename)} cannot be read ({error.strerror}). Restore it.") from error


def scan(path: str | os.PathLike, image_size: Size | None = None) -> Folder:
    """Finds the images of a folder and divides them.

    The sub-folders of `train` and of `test` (else `val`, `validation`) are the classes; of these the first whose
    sub-folders are classes of `train` is used. Where there is no `train`, or where it is a class, having images of its
    own and other classes beside it, the folder's own sub-folders are the classes, and a part of each, drawn by a fixed
    seed, is the test part: of n images `round(0.2 n)`, at least one, but never the last. A class has the images of its
    folder and of all folders in that. Images are grey if all are, else in colour; of an animation, or of several pages,
    the first counts.

    Images are the files named as `pictures.NAMES` has it; hidden ones are left out, and so are files that are no
    images.

    Args:
      path: of the folder.
      image_size: what images are resized to (the whole image, height and width each on its own); None where all have
        one size.

    Raises:
      ValueError: no classes, a class without images, images that would be left out (beside the classes, of another
        format, or named otherwise), a class of the test part that the training part lacks, parts that cannot be told
        from classes, images of differing sizes and no `image_size`, a file that is no image, pixels of more than eight
        bits, a folder that cannot be read.
    """
    wanted = None if image_size is None else height_and_width(image_size)
    root = expand(path)
    try:
        return _scan(root, wanted)
    except OSError as error:
        place = shown(error.filename or root)
        raise ValueError(
            f"{place} cannot be read ({error.strerror or error}). Make it readable, or move it."
        ) from error


def decode(folder: Folder, place: pathlib.Path, name: str) -> np.ndarray:
    """All images as one array `[n, H, W, C]` uint8, kept in the file `place` until a file of the folder changes.

    It is left alone where it cannot be written.
    """
    images, key = folder.images, folder.images.identity()
    shape = (len(images), *images.shape)
    check_memory(name, shape)
    kept = kept_arrays(place, key, ("images",))
    if kept is not None:
        return kept["images"]
    decoded = np.empty(shape, np.uint8)
    for row in range(len(images)):
        decoded[row] = images[row]
    keep_arrays(place, key, {"images": decoded})
    return decoded


def _scan(root: pathlib.Path, wanted: tuple[int, int] | None) -> Folder:
    found, held = _parts(root)
    names = tuple(found)
    pairs = [(file, names.index(name)) for part in (found, held) for name, files in part.items() for file in files]
    paths = [file for file, _ in pairs]
    heads = [pictures.head(file) for file in paths]
    if wanted is None and len({size for size, _ in heads}) > 1:
        other = next(number for number, (size, _) in enumerate(heads) if size != heads[0][0])
        raise ValueError(
            f"The images of {shown(root)} differ in size: {shown(paths[0].name)} is {_words(heads[0][0])}, "
            f"{shown(paths[other].name)} is {_words(heads[other][0])}. Give the size to resize them to, such as "
            f"image_size=64."
        )
    size = heads[0][0] if wanted is None else wanted
    channels = 1 if all(grey for _, grey in heads) else 3
    labels = np.asarray([label for _, label in pairs], np.int32)
    return Folder(FolderImages(paths, size, channels), labels, sum(map(len, found.values())), names)


_Classes = dict[str, list[pathlib.Path]]


def _parts(root: pathlib.Path) -> tuple[_Classes, _Classes]:
    """The files of each class, for training and for the test."""
    folders = _listed(root)[0]
    train = next((one for name in _TRAIN_NAMES for one in folders if one.name.casefold() == name), None)
    tests = [one for name in _TEST_NAMES for one in folders if one.name.casefold() == name]
    parts = tests if train is None else [train, *tests]
    if not parts:
        return _divide(_classes(root))
    beside = next((one for one in folders if one not in parts and _images(one)), None)
    divided = next((part for part in parts if any(map(_images, _listed(part)[0]))), None)
    if beside is not None and divided is None:  # they are classes, whatever they are called
        return _divide(_classes(root))
    if beside is not None and divided is not None:
        raise ValueError(
            f"{shown(root)} has the folder {divided.name!r}, with folders of images, beside the folder "
            f"{shown(beside.name)!r} with images, so that parts cannot be told from classes. Move what is no part "
            f"elsewhere; or, if {divided.name!r} is a class, put its images right into it."
        )
    if train is None:
        raise ValueError(f"{shown(root)} has a folder {tests[0].name!r}, but none called train. Add one.")
    if not tests:
        raise ValueError(f"{shown(root)} has a folder {train.name!r}, but none of test, val, validation. Add one.")
    _check_stray(root)
    found = _classes(train)
    named = [{shown(one.name) for one in _listed(test)[0] if _images(one)} for test in tests]
    chosen = next((number for number, names in enumerate(named) if names & set(found)), 0)
    test, names = tests[chosen], named[chosen]
    if not names or names - set(found) == {"images"}:  # as in Kaggle's ImageNet, and in Tiny ImageNet
        raise ValueError(
            f"{shown(test)} has no labels: its images are not in folders named as the classes of {shown(train)} are. "
            f"Move each into the folder of its class, {shown(test)}/CLASS, by the list that comes with them; or add a "
            f"part whose images are in such folders (test, val, validation)."
        )
    if unknown := sorted(names - set(found)):
        raise ValueError(f"{shown(test)} has the class {unknown[0]!r}, which {shown(train)} has not.")
    return found, _classes(test)


def _divide(found: _Classes) -> tuple[_Classes, _Classes]:
    """A part of each class, drawn by a fixed seed, as the test part."""
    held = {}
    for label, (name, files) in enumerate(found.items()):
        count = min(max(1, int(TEST_SHARE * len(files) + 0.5)), len(files) - 1)
        chosen = set(np.random.default_rng([0, label]).permutation(len(files))[:count].tolist())
        held[name] = [file for number, file in enumerate(files) if number in chosen]
        found[name] = [file for number, file in enumerate(files) if number not in chosen]
    return found, held


def _classes(root: pathlib.Path) -> _Classes:
    """The image files of each sub-folder, both sorted by name."""
    _check_stray(root)
    folders = _listed(root)[0]
    if not folders:
        raise ValueError(
            f"{shown(root)} has no sub-folders. A folder of images has one for each class, with its images."
        )
    found: _Classes = {}
    for folder in folders:
        files = _images(folder)
        if not files:
            raise ValueError(f"{shown(folder)} holds no images. Put images there, or remove the folder.")
        if shown(folder.name) in found:
            raise ValueError(
                f"{shown(root)} has two folders whose names are shown as {shown(folder.name)!r}. Rename one."
            )
        found[shown(folder.name)] = files
    return found


def _listed(root: pathlib.Path) -> tuple[list[pathlib.Path], list[pathlib.Path]]:
    """The sub-folders and the other files, both sorted by name, without hidden ones."""
    with os.scandir(root) as entries:
        names = sorted((one.name, os.path.isdir(one.path) if one.is_symlink() else one.is_dir()) for one in entries)
    seen = [(root / name, folder) for name, folder in names if name[0] != "." and name.casefold() not in _NO_CLASSES]
    return [path for path, folder in seen if folder], [path for path, folder in seen if not folder]


def _check_stray(root: pathlib.Path) -> None:
    """Refuses images beside the folders of classes, or of parts."""
    if stray := next(filter(_is_image, _listed(root)[1]), None):
        raise ValueError(
            f"{shown(stray)} is in no class. Move it into the folder of its class, {shown(root)}/CLASS, or away."
        )


def _images(folder: pathlib.Path) -> list[pathlib.Path]:
    """The image files of a folder and of all within it, sorted by their paths.

    Raises:
      ValueError: an image that would be left out.
    """
    found: list[pathlib.Path] = []
    waiting = [folder]
    while waiting:
        place = waiting.pop()
        inner, files = _listed(place)
        found += filter(_is_image, files)
        waiting += inner
        within = {one.name.casefold() for one in inner}
        if within.intersection(_TRAIN_NAMES) and within.intersection(_TEST_NAMES):
            raise ValueError(
                f"{shown(place)} is in a class, but has parts for training and for the test. Give that folder itself, "
                f"or put the parts above the classes, train/CLASS."
            )
        if linked := next((one for one in inner if one.is_symlink()), None):
            raise ValueError(
                f"{shown(linked)} is a link to a folder, which is followed only where it is a class. Move its images "
                f"here, or remove it."
            )
    return sorted(found, key=lambda path: path.parts)


def _is_image(path: pathlib.Path) -> bool:
    """Whether a file is an image by its name.

    Raises:
      ValueError: it is one by its content alone, or of a format that is not read.
    """
    ending = path.suffix.lower()
    if ending in pictures.NAMES:
        return True
    if ending in _OTHER_IMAGES:
        raise ValueError(
            f"{shown(path)} is an image of a format that is not read ({', '.join(pictures.FORMATS)} are). Convert or "
            f"remove it."
        )
    if path.is_file():
        with open_regular(path) as file:
            beginning = file.read(12)
        if beginning.startswith(_BEGINNINGS) and (beginning[:4] != b"RIFF" or beginning[8:] == b"WEBP"):
            raise ValueError(
                f"{shown(path)} is an image, but is not named as one. Add its format to its name, such as .png, or "
                f"remove it."
            )
    return False


def _words(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
