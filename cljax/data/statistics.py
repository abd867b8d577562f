"""Mean and standard deviation of a data set, for the network's standardisation."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from cljax.data.on_demand import Images


def channel_statistics(arrays: Iterable[np.ndarray]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of uint8 inputs over 255, or of float inputs as they are.

    uint8 is counted exactly, value by value; floats are summed in float64. A standard deviation of 0 becomes 1.

    Args:
      arrays: `[n, ..., C]`, of one dtype.

    Returns:
      mean and standard deviation, C numbers each.

    Raises:
      ValueError: no examples, or of uint8 and others.

    Example:
      >>> channel_statistics([np.array([[0], [255]], np.uint8)])
      ((0.5,), (0.5,))
    """
    counts: Any = 0
    pieces: list[np.ndarray] = []
    for array in arrays:
        if array.dtype == np.uint8:
            counts = counts + count(array)
        else:
            pieces += [array[i : i + 1024].reshape(-1, array.shape[-1]) for i in range(0, len(array), 1024)]
    if pieces and np.any(counts):
        raise ValueError("Some examples are uint8, others are not: give them in one dtype.")
    if not pieces and not np.any(counts):
        raise ValueError("There are no examples to take mean and standard deviation of.")
    if not pieces:
        levels = np.arange(256) / 255
        share = counts / counts.sum(axis=1, keepdims=True)
        mean = share @ levels
        variance = (share * (levels - mean[:, None]) ** 2).sum(axis=1)
    else:
        number = sum(len(piece) for piece in pieces)
        mean = sum(piece.sum(axis=0, dtype=np.float64) for piece in pieces) / number
        variance = sum(((piece - mean) ** 2).sum(axis=0) for piece in pieces) / number
    std = np.sqrt(variance)
    return tuple(mean.tolist()), tuple(np.where(std > 0, std, 1.0).tolist())


def statistics_of_rows(
    examples: Any, rows: np.ndarray, *, pooled: bool = False
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """`channel_statistics` of some examples, of which a piece at a time is read; of `Images` at most 100,000.

    Args:
      examples: `[n, ..., C]`, or `Images`.
      rows: `[m]` int.
      pooled: whether all C have the numbers that they have together.

    Returns:
      mean and standard deviation, C numbers each.

    Example:
      >>> statistics_of_rows(np.array([[0, 255], [255, 255], [7, 7]], np.uint8), np.array([0, 1]))
      ((0.5, 1.0), (0.5, 1.0))
    """
    channels = examples.shape[-1]
    parts = (rows[start : start + 1024] for start in range(0, len(rows), 1024))
    read = examples.pieces(rows) if isinstance(examples, Images) else map(examples.__getitem__, parts)
    mean, std = channel_statistics(piece.reshape(-1, 1 if pooled else channels) for piece in read)
    return (mean * channels, std * channels) if pooled else (mean, std)


def count(array: np.ndarray) -> np.ndarray:
    """How often each channel has each of the values 0 to 255: `[C, 256]`.

    Example:
      >>> count(np.array([[3], [3], [0]], np.uint8))[0, :4]
      array([1., 0., 0., 2.])
    """
    found = np.zeros((array.shape[-1], 256))
    for channel in range(array.shape[-1]):
        found[channel] += np.bincount(array[..., channel].ravel(), minlength=256)
    return found
