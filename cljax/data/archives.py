"""The official archives of MNIST, Fashion-MNIST and CIFAR: downloaded or taken from a folder, verified, and read."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import math
import os
import pathlib
import struct
import sys
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cljax.files import folder_path, open_regular

Registered = Mapping[str, Any]
"""`{address: TFDS's UrlInfo}`, with `size`, `checksum` (SHA-256) and `filename`."""


CONTENT_BYTES = 512 << 20
"""Most bytes that an archive is unpacked to; the official ones have up to 184 million."""


class ArchiveError(ValueError):
    """An archive is missing, cannot be downloaded, is not the registered one, or cannot be read."""


def take(name: str, registered: Registered, folder: str | os.PathLike, *, verify: bool = True) -> dict[str, Any]:
    """Finds the archives of a data set in a folder, or in the folder's sub-folder of the data set's name.

    Args:
      name: of the data set.
      registered: its archives.
      folder: where they are, under their official file names.
      verify: whether sizes and checksums must be the registered ones.

    Returns:
      `{address: path}`.

    Raises:
      ArchiveError: naming all that are missing, or the first that is another than registered.
    """
    root = folder_path(folder)
    root = root / name if os.path.isdir(root / name) else root
    paths = {url: root / info.filename for url, info in registered.items()}
    if missing := [url for url, path in paths.items() if not os.path.isfile(path)]:
        raise ArchiveError(
            f"{root} lacks {', '.join(registered[url].filename for url in missing)} of the data set {name!r}. Download "
            f"them on a machine with a network, from {', '.join(missing)}, and put them there under these names."
        )
    if verify:
        for url, path in paths.items():
            check(name, path, registered[url], url)
    return paths


def download(name: str, registered: Registered, folder: pathlib.Path) -> dict[str, Any]:
    """Downloads the archives of a data set into a folder, and verifies them.

    Raises:
      ArchiveError: naming the address and the way without a network.
    """
    import requests

    paths = {}
    for url, info in registered.items():
        print(f"Downloading {info.filename} ({info.size})", file=sys.stderr)
        paths[url] = folder / info.filename
        try:
            with requests.get(url, stream=True, timeout=30) as answer, paths[url].open("wb") as file:
                answer.raise_for_status()
                for piece in answer.iter_content(1 << 20):
                    file.write(piece)
                    if file.tell() > int(info.size):  # it is another file
                        break
        except requests.RequestException as error:
            raise ArchiveError(
                f"{info.filename} of the data set {name!r} could not be downloaded ({type(error).__name__}). Where "
                f"there is no network, download {', '.join(registered)} elsewhere, put the files into one folder, and "
                f"give that: `cljax data prepare {name} --from FOLDER`, or data.prepare({name!r}, archives=FOLDER)."
            ) from error
        check(name, paths[url], info, url)
    return paths


def check(name: str, path: pathlib.Path, info: Any, url: str) -> None:
    """Checks that a file is the registered one, by size and SHA-256.

    Raises:
      ArchiveError: it is another.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest() if size == int(info.size) else ""
    if digest != info.checksum:
        found = f"{size} bytes" if size != int(info.size) else f"SHA-256 {digest}"
        wanted = f"{int(info.size)} bytes" if size != int(info.size) else info.checksum
        raise ArchiveError(
            f"{path} is not the official archive of the data set {name!r}: it has {found}, not {wanted}. It may have "
            f"been cut short: download it anew from {url}. If its contents are meant to differ, say so with "
            f"--no-verify (data.prepare: verify=False)."
        )


class LocalFiles:
    """Stands in for TFDS's download manager: addresses to files that are there already."""

    downloaded_size = 0

    def __init__(self, paths: Mapping[str, Any]) -> None:
        self._paths = paths

    def download(self, urls: Any) -> Any:
        """The paths of one address, or of a dictionary of addresses."""
        return {key: self._paths[url] for key, url in urls.items()} if isinstance(urls, dict) else self._paths[urls]


def read_idx(path: str | os.PathLike, sides: tuple[int, ...]) -> np.ndarray:
    """Reads a gzipped idx file of bytes: a magic number that tells the rank, the sizes, the values.

    Args:
      path: of the file.
      sides: of each entry: height and width of images, none of labels.

    Returns:
      `[n, *sides]` uint8.

    Raises:
      ArchiveError: not gzip, another kind of file, more than `CONTENT_BYTES`, or too short or too long for its own
        sizes.
    """
    rank = 1 + len(sides)
    with _readable(path), open_regular(path) as packed, gzip.open(packed) as file:
        head = file.read(4 + 4 * rank)
        if len(head) < 4 + 4 * rank or int.from_bytes(head[:4], "big") != 0x0800 + rank:
            raise ArchiveError(
                f"{path} is not an idx file of {'images' if rank == 3 else 'labels'}: it does not begin with the "
                f"number {0x0800 + rank}. Look whether images and labels have been exchanged."
            )
        count, *found = np.frombuffer(head, ">i4", rank, offset=4).tolist()
        if tuple(found) != sides or not 0 <= count * math.prod(sides) <= CONTENT_BYTES:
            raise ArchiveError(
                f"{path} says that it holds {[count, *found]} values, but it is to hold entries of the size "
                f"{list(sides)}, of at most {CONTENT_BYTES} bytes in all."
            )
        content = _read(file, count * math.prod(sides) + 1)  # one more tells whether it is too long
    if len(content) != count * math.prod(sides):
        size = "more" if len(content) > count * math.prod(sides) else len(content)
        raise ArchiveError(f"{path} says that it holds {[count, *sides]} values, but holds {size}; it is broken.")
    return np.frombuffer(content, np.uint8).reshape(count, *sides)


def read_members(path: str | os.PathLike, wanted: Sequence[str]) -> dict[str, bytes]:
    """Reads files of a gzipped tar archive, going through it once and writing nothing.

    Args:
      path: of the archive.
      wanted: the files' names.

    Raises:
      ArchiveError: no such archive, no such file in it, one that is a link or has holes, more than `CONTENT_BYTES`.
    """
    found: dict[str, bytes] = {}
    with contextlib.ExitStack() as stack:
        stack.enter_context(_readable(path))
        file = stack.enter_context(gzip.open(stack.enter_context(open_regular(path))))
        bounded: Any = _Bounded(file, os.fspath(path))
        for member in (archive := stack.enter_context(tarfile.open(fileobj=bounded, mode="r|"))):
            if member.name not in wanted:
                continue
            content = archive.extractfile(member) if member.isreg() and not member.issparse() else None
            if content is None or member.size > CONTENT_BYTES:
                raise ArchiveError(f"{path} has {member.name!r} not as a plain file, or too large. Download it anew.")
            found[member.name] = content.read()
    if missing := next((name for name in wanted if name not in found), None):
        raise ArchiveError(f"{path} has no file {missing!r}; it is not the binary version, which alone is read here.")
    return found


def read_names(content: bytes, classes: int, what: str) -> list[str]:
    """The names of classes, one a line.

    Raises:
      ArchiveError: another number of names, one twice, or no UTF-8.
    """
    names = content.decode("utf-8", "replace").split()
    if len(names) != classes or len(set(names)) != classes or "\ufffd" in "".join(names):
        raise ArchiveError(f"{what} has {len(set(names))} names of classes, not {classes}; it is broken.")
    return names


def check_range(labels: np.ndarray, classes: int, what: str) -> None:
    """Checks that labels are below the number of classes.

    Raises:
      ArchiveError: one is not.
    """
    if labels.size and labels.max() >= classes:
        place = int(np.argmax(labels >= classes))
        raise ArchiveError(f"{what} has the label {labels[place]} (example {place}), but there are {classes} classes.")


def read_records(content: bytes, labels: int, what: str) -> tuple[np.ndarray, np.ndarray]:
    """Reads CIFAR's binary records: label bytes, then 3,072 bytes of red, green and blue, row by row.

    Args:
      content: the bytes.
      labels: number of label bytes of a record.
      what: how errors call it.

    Returns:
      images `[n, 32, 32, 3]` uint8, labels `[n, labels]` uint8.

    Raises:
      ArchiveError: not a whole number of records.

    Example:
      >>> images, labels = read_records(bytes([7]) + bytes(range(256)) * 12, 1, "a file")
      >>> images.shape, images[0, 0, 5].tolist(), labels.tolist()
      ((1, 32, 32, 3), [5, 5, 5], [[7]])
    """
    length = labels + 3072
    if not content or len(content) % length:
        raise ArchiveError(f"{what} holds {len(content)} bytes, which are not records of {length} bytes; it is broken.")
    rows = np.frombuffer(content, np.uint8).reshape(-1, length)
    return np.ascontiguousarray(rows[:, labels:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)), rows[:, :labels]


@contextlib.contextmanager
def _readable(path: str | os.PathLike):
    """Says which file it is that cannot be unpacked."""
    try:
        yield
    except ArchiveError:
        raise
    except (OSError, EOFError, ValueError, OverflowError, struct.error, tarfile.TarError, zlib.error) as error:
        raise ArchiveError(f"{path} cannot be unpacked ({error}). Download it anew.") from error


def _read(file: Any, most: int) -> bytes:
    """Reads so many bytes, or up to the end, in pieces: memory grows only with what there is."""
    pieces: list[bytes] = []
    while most and (piece := file.read(min(most, 1 << 20))):
        pieces.append(piece)
        most -= len(piece)
    return b"".join(pieces)


class _Bounded:
    """A file that is read to `CONTENT_BYTES` at most."""

    def __init__(self, file: Any, path: str) -> None:
        self._file, self._path, self._left = file, path, CONTENT_BYTES

    def read(self, size: int) -> bytes:
        """Reads bytes."""
        if size > self._left:
            raise ArchiveError(f"{self._path} holds more than {CONTENT_BYTES} bytes, which the official one does not.")
        content = self._file.read(size)
        self._left -= len(content)
        return content
