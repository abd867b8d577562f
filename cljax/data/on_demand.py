"""Images that are read when they are asked for, for data that do not fit into memory."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from cljax.numbers import show

STATISTICS = 100_000
"""The number of images, evenly spaced, from which mean and standard deviation are taken where there are more."""

_PIECE, _BYTES = 256, 2**22
"""At most so many images, and bytes, are read together for it: some dozen pieces are held, read ahead."""


class ReadError(OSError):
    """An example could not be read while a run was going on; the message names it, its data set and the cause."""


class Source(Protocol):
    """A random-access source of images of one size, such as the files of a folder.

    Where it has `__getitems__(rows) -> images` too, several are read by one call. Threads call it side by side. An
    `identity()` is a digest of all that its images depend on.
    """

    def __len__(self) -> int:
        """The number of images."""
        ...

    def __getitem__(self, row: int) -> np.ndarray:
        """Reads one image, `[H, W, C]` uint8."""
        ...


class Images:
    """An array `[n, H, W, C]` uint8 of images that are read when they are asked for.

    It has the array's `shape`, `dtype`, `ndim`, `nbytes` and `len`, slices without a step (views, nothing is read),
    and `take(rows)`. It is equal to another with the same rows of the same sources.

    Args:
      sources: random-access sources, one after the other; arrays and other `Images` are sources too.
      shape: of one image, `(H, W, C)`.
      name: how errors call the data.

    Example:
      >>> import numpy as np
      >>> from cljax.data import Images
      >>> images = Images([np.zeros((2, 1, 1, 1), np.uint8), np.full((3, 1, 1, 1), 7, np.uint8)], (1, 1, 1), name="few")
      >>> images.shape, images[1:].take([0, 1, 3])[:, 0, 0, 0].tolist()
      ((5, 1, 1, 1), [0, 7, 7])
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, sources: Sequence[Source], shape: Sequence[int], *, name: str) -> None:
        self._sources, self._name = tuple(sources), name
        if not self._sources:
            raise ValueError(f"The images of '{name}' need at least one source.")
        self._ends = np.cumsum([len(source) for source in sources])
        self._window = range(int(self._ends[-1]))
        self._example = tuple(shape)

    @property
    def shape(self) -> tuple[int, ...]:
        """`(n, H, W, C)`."""
        return (len(self._window), *self._example)

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """The bytes that all images together would take."""
        return int(np.prod(self.shape, dtype=np.int64))

    def __len__(self) -> int:
        """The number of images."""
        return len(self._window)

    def __getitem__(self, place: slice | int | np.ndarray) -> Any:
        """A slice (a view), one image, or an array of those of some rows."""
        if not isinstance(place, slice):
            rows = np.asarray(place)
            if isinstance(place, tuple) or rows.ndim > 1:
                raise IndexError(f"'{self._name}' is read by row numbers alone, not by {show(place)}.")
            return self.take(rows) if rows.ndim else self.take(rows)[0]
        window = self._window[place]
        if window.step != 1:
            raise ValueError(f"The images of '{self._name}' are read on demand and have no slices with a step.")
        view = Images(self._sources, self._example, name=self._name)
        view._window = window
        return view

    def __eq__(self, other: object) -> bool:
        """Whether these are the same rows of the same sources."""
        if not isinstance(other, Images) or self._window != other._window:
            return False
        same = [
            a is b or (isinstance(a, Images) and a == b) for a, b in zip(self._sources, other._sources, strict=False)
        ]
        return len(self._sources) == len(other._sources) and all(same)

    __hash__ = None  # type: ignore[assignment]

    def identity(self) -> str:
        """A digest of these rows as far as their sources tell: by `identity()`, or, of arrays, by their values."""
        digest = hashlib.sha256(repr((self._window, self._example)).encode())
        for source in self._sources:
            if isinstance(source, np.ndarray):
                digest.update(np.ascontiguousarray(source).data)
            about = source.identity() if hasattr(source, "identity") else (type(source).__qualname__, len(source))
            digest.update(f"{about}\n".encode())
        return digest.hexdigest()

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        """Refuses: the images need not fit into memory."""
        raise TypeError(
            f"The images of '{self._name}' are read on demand and are no array. They are for "
            f"training.drive (or --driver host); data.load gives them as an array, and take(rows) reads some."
        )

    def take(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Reads images.

        Args:
          rows: `[B]` whole numbers, any order, also repeated.

        Returns:
          `[B, H, W, C]` uint8, an array of its own.

        Raises:
          IndexError: a row that there is not, or no row number. ReadError: a source fails, or gives something else than
            an image.
        """
        wanted: np.ndarray = np.asarray(rows).reshape(-1)
        if wanted.size and not np.issubdtype(wanted.dtype, np.integer):
            raise IndexError(f"'{self._name}' is read by row numbers, not by {wanted.dtype}.")
        if wanted.size and (wanted.min() < 0 or wanted.max() >= len(self)):
            raise IndexError(f"'{self._name}' has the rows 0 to {len(self) - 1}, not {wanted.min()} or {wanted.max()}.")
        wanted = wanted.astype(np.int64) + self._window.start
        found = np.empty((len(wanted), *self._example), np.uint8)
        owner = np.searchsorted(self._ends, wanted, side="right")
        for number in np.unique(owner):
            places = np.flatnonzero(owner == number)
            local = wanted[places] - (self._ends[number - 1] if number else 0)
            self._read(self._sources[number], local.tolist(), found, places)
        return found

    __getitems__ = take  # images are themselves a source

    def _read(self, source: Any, rows: list[int], found: np.ndarray, places: np.ndarray) -> None:
        """Reads rows of one source into their places."""
        row = rows[0]
        try:
            together = source.__getitems__(rows) if hasattr(source, "__getitems__") else None
            for number, (row, place) in enumerate(zip(rows, places, strict=True)):
                image = np.asarray(source[row] if together is None else together[number])
                if (image.shape, image.dtype) != (self._example, self.dtype):
                    raise ValueError(f"it is {image.dtype} of shape {image.shape}, not uint8 of {self._example}")
                found[place] = image
        except ReadError:
            raise
        except Exception as error:
            raise ReadError(
                f"Example {row} of {source!r} in the data set '{self._name}' could not be read: {error} "
                f"({type(error).__name__}). Restore the file, or prepare the data anew."
            ) from error

    def pieces(self, rows: np.ndarray | None = None) -> Iterator[np.ndarray]:
        """Reads images, all or those of `rows`, piece by piece for their statistics: `STATISTICS`, evenly spaced."""
        rows = np.arange(len(self)) if rows is None else rows
        rows = rows[np.linspace(0, len(rows) - 1, min(len(rows), STATISTICS)).round().astype(np.int64)]
        piece = max(1, min(_PIECE, _BYTES // math.prod(self._example)))
        whole = len(rows) - len(rows) % piece
        if whole:
            yield from batches(self.take, rows[:whole].reshape(-1, piece))
        if whole < len(rows):
            yield self.take(rows[whole:])


def join(parts: Sequence[Any], *, name: str) -> Any:
    """Concatenates arrays, or arrays and `Images`, of which nothing is read."""
    if not any(isinstance(part, Images) for part in parts):
        return np.concatenate(parts)
    return Images(parts, parts[0].shape[1:], name=name)


def batches(read: Callable[[np.ndarray], Any], rows: np.ndarray, *, ahead: Callable | None = None) -> Generator[Any]:
    """Reads batches in order, by Grain's threads, some batches ahead of the one that is asked for.

    Close it (`contextlib.closing`) where it is not read to its end.

    Args:
      read: `rows [B] -> batch`; called by several threads.
      rows: `[steps, B]`.
      ahead: None, or what is done to two batches ahead in a thread of its own, such as `jax.device_put`.

    Yields:
      `steps` batches.
    """
    import grain

    if len(rows) < 2:  # nothing to read ahead
        for one in rows:
            yield (ahead or (lambda batch: batch))(read(one))
        return
    # One thread a processor, and two batches a thread, one read and one waiting, for which memory is taken.
    threads = min(16, max(2, os.cpu_count() or 2))
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    dataset = grain.MapDataset.source(rows).map(read).to_iter_dataset(options)
    if ahead is not None:
        dataset = grain.experimental.ThreadPrefetchIterDataset(dataset.map(ahead), prefetch_buffer_size=2)
    iterator = iter(dataset)
    with contextlib.closing(iterator):
        yield from iterator
