"""Attention in a record, small: maps and the images that they are of, a byte a position, as text."""

from __future__ import annotations

import base64
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cljax.metrics.matrix import last_rounds
from cljax.streams import apply_permutation
from cljax.training.looking import spaced
from cljax.types import Stream

SIDE = 32
"""Images of more pixels a side are averaged to about as many."""
UNKNOWN = 255
"""Stands in maps for what was not measured."""


def packed(values: np.ndarray) -> dict[str, Any]:
    """Bytes as JSON has them: their shape, and Base64.

    Example:
      >>> packed(np.array([[0, 255]], np.uint8))
      {'shape': [1, 2], 'base64': 'AP8='}
    """
    return {"shape": list(values.shape), "base64": base64.b64encode(values.tobytes()).decode()}


def unpacked(found: dict[str, Any]) -> np.ndarray:
    """What `packed` was given.

    Example:
      >>> unpacked({'shape': [1, 2], 'base64': 'AP8='}).tolist()
      [[0, 255]]
    """
    return np.frombuffer(base64.b64decode(found["base64"]), np.uint8).reshape(found["shape"])


def of_tasks(attention: Any, tasks: np.ndarray) -> dict[str, Any]:
    """The attention after each task, of one seed.

    Args:
      attention: `[R, N, h, w]` of an `Evaluation`, at least 0; NaN in a round that was not evaluated.
      tasks: `[R]` int, the task of each round, numbered by first visit.

    Returns:
      `{'maps', 'images'}`: the maps `[T, N, h, w]`, packed, after the rounds of `metrics.first_visits`, each in parts
      of its largest value, 254; all 0 where nothing is seen, `UNKNOWN` where it was not measured. There are no images
      yet.

    Example:
      >>> unpacked(of_tasks([[[[1.0, 2.0]]], [[[0.0, 0.0]]]], np.array([0, 1]))['maps']).tolist()
      [[[[127, 254]]], [[[0, 0]]]]
    """
    maps = np.asarray(attention, np.float64)[last_rounds(tasks)]
    most = maps.max(axis=(-2, -1), keepdims=True)
    parts = np.where(np.isnan(most), UNKNOWN, np.rint(254 * maps / np.where(most == 0, 1, most)))
    return {"maps": packed(parts.astype(np.uint8)), "images": None}


def small(images: Any) -> np.ndarray:
    """Images `[N, H, W, C]` in grey, `[N, h, w]` uint8, from the darkest of them to the brightest.

    Example:
      >>> small(np.array([[[[0.0, 2.0], [4.0, 4.0]]]])).tolist()
      [[[0, 255]]]
    """
    grey = np.asarray(images, np.float64).mean(axis=-1)
    step = max(1, round(max(grey.shape[1:]) / SIDE))
    height, width = (max(1, size // step) for size in grey.shape[1:])
    grey = grey[:, : height * step, : width * step]
    grey = grey.reshape(len(grey), height, -1, width, grey.shape[2] // width).mean(axis=(2, 4))
    low, high = grey.min(), grey.max()
    return np.rint(255 * (grey - low) / (high - low if high > low else 1)).astype(np.uint8)


def images_of(stream: Stream, count: int) -> dict[str, Any] | None:
    """The images that `settings.attention_images` are, as the network sees them, small and packed; None of vectors.

    Example:
      >>> from cljax import data, streams
      >>> images_of(streams.split(data.load('digits'), tasks=5), 4)['shape']
      [4, 8, 8]
    """
    tables = stream.tables
    if len(tables.examples.shape) != 4:
        return None
    images = tables.examples[np.asarray(tables.test.index)[np.asarray(spaced(tables.test, count))]]
    tasks = jnp.zeros(count, jnp.int32)
    return packed(small(apply_permutation(tables.permutation, jnp.asarray(images), tasks)))


def mosaic(found: dict[str, Any], side: int = 64, gap: int = 4) -> np.ndarray:
    """The images, and beside each its maps after each task on it: a row an image, a column a task.

    Args:
      found: of `of_tasks`; without images the maps stand on grey. What was not measured stays empty.
      side: of a tile, in pixels, at least.
      gap: between tiles, transparent.

    Returns:
      `[height, width, 4]` in [0, 1], colours and opacity.

    Example:
      >>> mosaic(of_tasks(np.ones([3, 2, 4, 4]), np.arange(3)), side=8, gap=2).shape
      (18, 38, 4)
      >>> mosaic(of_tasks(np.full([1, 1, 2, 2], np.nan), np.arange(1)), side=2, gap=0)[..., 3].tolist()
      [[1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]]
    """
    from matplotlib import colormaps

    maps = unpacked(found["maps"])
    tasks, count, *shape = maps.shape
    known = np.concatenate([np.ones([1, count]), (maps != UNKNOWN).all(axis=(2, 3))])
    images = unpacked(found["images"]) / 255 if found["images"] else np.full((count, *shape), 0.5)
    times = -(-side // min(images.shape[1:]))
    height, width = (times * size for size in images.shape[1:])
    grey = np.repeat(images.repeat(times, axis=1).repeat(times, axis=2)[..., None], 3, axis=-1)
    heat = np.asarray(jax.image.resize(maps / 254, (tasks, count, height, width), "linear"))
    part = 0.7 * np.clip(heat, 0, 1)[..., None]
    tiles = [grey, *((1 - part) * grey + part * colormaps["turbo"](heat)[..., :3])]
    canvas = np.zeros((count * (height + gap) - gap, len(tiles) * (width + gap) - gap, 4))
    for column, tile in enumerate(tiles):
        for row, one in enumerate(tile):
            place = canvas[row * (height + gap) :, column * (width + gap) :][:height, :width]
            place[..., :3], place[..., 3] = one, known[column, row]
    return canvas
