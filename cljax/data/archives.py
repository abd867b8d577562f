"""The official archives of MNIST, Fashion-MNIST and CIFAR: downloaded or taken from a folder, verified, and read."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
import pathlib
import sys
import tarfile
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

Registered = Mapping[str, Any]
"""`{address: TFDS's UrlInfo}`, with `size`, `checksum` (SHA-256) and `filename`."""


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
    root = pathlib.Path(folder).expanduser()
    root = root / name if (root / name).is_dir() else root
    paths = {url: root / info.filename for url, info in registered.items()}
    if missing := [url for url, path in paths.items() if not path.is_file()]:
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
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while size == int(info.size) and (piece := file.read(1 << 20)):
            digest.update(piece)
    if size != int(info.size) or digest.hexdigest() != info.checksum:
        found = f"{size} bytes" if size != int(info.size) else f"SHA-256 {digest.hexdigest()}"
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


def read_idx(path: str | os.PathLike, rank: int) -> np.ndarray:
    """Reads a gzipped idx file of bytes: a magic number that tells the rank, the sizes, the values.

    Args:
      path: of the file.
      rank: 3 for images, 1 for labels.

    Raises:
      ArchiveError: not gzip, another kind of file, or too short or too long for its own sizes.
    """
    with _readable(path), gzip.open(path) as file:
        content = file.read()
    if len(content) < 4 + 4 * rank or int.from_bytes(content[:4], "big") != 0x0800 + rank:
        raise ArchiveError(
            f"{path} is not an idx file of {'images' if rank == 3 else 'labels'}: it does not begin with the number "
            f"{0x0800 + rank}. Look whether images and labels have been exchanged."
        )
    sizes = np.frombuffer(content, ">i4", rank, offset=4).astype(np.int64)
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * rank)
    if len(values) != sizes.prod():
        raise ArchiveError(f"{path} says that it holds {sizes.tolist()} values, but holds {len(values)}; it is broken.")
    return values.reshape(sizes)


def read_member(path: str | os.PathLike, member: str) -> bytes:
    """Reads a file of a gzipped tar archive.

    Raises:
      ArchiveError: no such archive, or no such file in it.
    """
    with _readable(path), tarfile.open(path) as archive:
        try:
            file = archive.extractfile(member)
        except KeyError:
            file = None
        if file is None:
            raise ArchiveError(
                f"{path} has no file {member!r}; it is not the binary version, which alone is read here."
            )
        return file.read()


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
    except (gzip.BadGzipFile, tarfile.ReadError, EOFError, zlib.error) as error:
        raise ArchiveError(f"{path} cannot be unpacked ({error}). Download it anew.") from error
