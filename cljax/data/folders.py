"""A folder of images, one sub-folder a class: its files, read one at a time or decoded once and kept."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
from typing import Any, NamedTuple

import numpy as np

from cljax.data.images import Size, as_array, height_and_width
from cljax.data.keeping import keep

TEST_SHARE = 0.2
"""The part of each class that is the test part of a folder that has none."""

_TEST_NAMES = ("test", "val", "validation")


class Folder(NamedTuple):
    """The images of a folder, training part first.

    Attributes: images, read on demand; labels `[n]` int32; train_size; classes, the sub-folders' names, sorted.
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
        from PIL import Image, ImageOps

        height, width, channels = self.shape
        with _opened(self.paths[row]) as file:
            picture = ImageOps.exif_transpose(file).convert("L" if channels == 1 else "RGB")
        if picture.size != (width, height):
            picture = picture.resize((width, height), Image.Resampling.BILINEAR)
        return as_array(picture, channels)


def scan(path: str | os.PathLike, image_size: Size | None = None) -> Folder:
    """Finds the images of a folder and divides them.

    The sub-folders of `train` and of `test` (or `val`, `validation`) are the classes. Where there is no `train`, the
    folder's own sub-folders are, and a part of each class, drawn by a fixed seed, is the test part: of n images
    `round(0.2 n)`, at least one, but never the last. Images are grey if all are, else in colour.

    Args:
      path: of the folder.
      image_size: what images are resized to (the whole image, height and width each on its own); None where all have
        one size.

    Raises:
      ValueError: no classes, a class without images, a class of the test part that the training part lacks, images of
        differing sizes and no `image_size`, a file that is no image, pixels of more than eight bits.
    """
    wanted = None if image_size is None else height_and_width(image_size)
    root = pathlib.Path(path).expanduser()
    if (root / "train").is_dir():
        found = _classes(root / "train")
        test = next((root / name for name in _TEST_NAMES if (root / name).is_dir()), None)
        if test is None:
            raise ValueError(f"{root} has a folder 'train', but none of {', '.join(_TEST_NAMES)}. Add one.")
        held = _classes(test)
        if unknown := sorted(set(held) - set(found)):
            raise ValueError(f"{test} has the class {unknown[0]!r}, which {root / 'train'} has not.")
    else:
        found, held = _classes(root), {}
        for label, (name, files) in enumerate(found.items()):
            count = min(max(1, int(TEST_SHARE * len(files) + 0.5)), len(files) - 1)
            chosen = set(np.random.default_rng([0, label]).permutation(len(files))[:count].tolist())
            held[name] = [file for number, file in enumerate(files) if number in chosen]
            found[name] = [file for number, file in enumerate(files) if number not in chosen]
    names = tuple(found)
    pairs = [(file, names.index(name)) for part in (found, held) for name, files in part.items() for file in files]
    paths = [file for file, _ in pairs]
    heads = [_head(file) for file in paths]
    if wanted is None and len({size for size, _ in heads}) > 1:
        other = next(number for number, (size, _) in enumerate(heads) if size != heads[0][0])
        raise ValueError(
            f"The images of {root} differ in size: {paths[0].name} is {_words(heads[0][0])}, {paths[other].name} is "
            f"{_words(heads[other][0])}. Give the size to resize them to: image_size=64 (--image-size 64)."
        )
    size = heads[0][0] if wanted is None else wanted
    channels = 1 if all(grey for _, grey in heads) else 3
    labels = np.asarray([label for _, label in pairs], np.int32)
    return Folder(FolderImages(paths, size, channels), labels, sum(map(len, found.values())), names)


def decode(folder: Folder, cache: pathlib.Path) -> np.ndarray:
    """All images as one array `[n, H, W, C]` uint8, kept in `cache` until a file of the folder changes.

    The cache is left alone where it cannot be written.
    """
    images = folder.images
    digest = hashlib.sha256(repr(images.shape).encode())
    for path in images.paths:
        about = path.stat()
        digest.update(f"{path.resolve()}\0{about.st_size}\0{about.st_mtime_ns}\n".encode())
    place = cache / f"{digest.hexdigest()[:32]}.npy"
    try:
        kept = np.load(place, allow_pickle=False)
        if kept.shape == (len(images), *images.shape):
            return kept
    except (OSError, ValueError, EOFError):
        pass
    decoded = np.empty((len(images), *images.shape), np.uint8)
    for row in range(len(images)):
        decoded[row] = images[row]
    with contextlib.suppress(OSError):
        cache.mkdir(parents=True, exist_ok=True)
    keep(place, lambda file: np.save(file, decoded, allow_pickle=False))
    return decoded


def _classes(root: pathlib.Path) -> dict[str, list[pathlib.Path]]:
    """The image files of each sub-folder, both sorted by name."""
    from PIL import Image

    known = set(Image.registered_extensions())
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    found = {
        folder.name: sorted(
            file for file in folder.iterdir() if file.suffix.lower() in known and not file.name.startswith(".")
        )
        for folder in folders
    }
    if not found:
        raise ValueError(f"{root} has no sub-folders. A folder of images has one for each class, with its images.")
    for name, files in found.items():
        if not files:
            raise ValueError(f"{root / name} holds no images. Put images there, or remove the folder.")
    return found


def _head(path: pathlib.Path) -> tuple[tuple[int, int], bool]:
    """Height and width as shown, and whether the image is grey, from the file's head."""
    with _opened(path) as picture:
        if picture.mode[0] in "IF":
            raise ValueError(f"{path} has pixels of more than eight bits ({picture.mode}). Convert it to eight.")
        turned = picture.getexif().get(0x0112, 1) in (5, 6, 7, 8)
        return picture.size if turned else picture.size[::-1], picture.mode in ("1", "L", "LA")


def _opened(path: pathlib.Path) -> Any:
    """A context with the Pillow image of a file."""
    return _Opened(path)


class _Opened:
    """Opens an image and says which file it is that cannot be read."""

    def __init__(self, path: pathlib.Path) -> None:
        self._path = path

    def __enter__(self) -> Any:
        """The image."""
        from PIL import Image, UnidentifiedImageError

        try:
            self._image = Image.open(self._path)
        except (OSError, UnidentifiedImageError) as error:
            raise ValueError(f"{self._path} cannot be read as an image. Repair or remove it.") from error
        return self._image

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        """Closes the file."""
        self._image.close()
        if isinstance(error, OSError | SyntaxError):
            raise ValueError(f"{self._path} is a broken image ({error}). Repair or remove it.") from error


def _words(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
