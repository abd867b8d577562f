"""Images of one size and number of channels: resized with Pillow, grey repeated, colour averaged."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from cljax.data.pictures import PIXELS
from cljax.files import free_memory
from cljax.numbers import whole

Size = int | tuple[int, int]
"""The side of square images, or height and width, in pixels."""


def height_and_width(size: Size) -> tuple[int, int]:
    """Both sides.

    Raises:
      ValueError: not one or two positive whole numbers, or too many pixels.

    Example:
      >>> height_and_width(32), height_and_width((32, 48))
      ((32, 32), (32, 48))
    """
    sides = tuple(size) if isinstance(size, tuple | list) else (size, size)
    if len(sides) != 2:
        raise ValueError(f"The image size is {size}, but must be a number of pixels, or height and width.")
    height, width = (whole("The image size", side, least=1, most=PIXELS) for side in sides)
    if height * width > PIXELS:
        raise ValueError(f"The image size is {height}x{width}, but an image has at most {PIXELS:,} pixels.")
    return height, width


def check_memory(name: str, shape: Sequence[int]) -> None:
    """Checks that images fit into the memory that is free, as one array of bytes.

    Args:
      name: of the data set.
      shape: of the array.

    Raises:
      ValueError: they do not.
    """
    size, memory = math.prod(shape), free_memory()
    if size > memory:
        raise ValueError(
            f"The images of {name!r} take {size / 1e9:,.1f} GB as an array, but {memory / 1e9:,.1f} GB of memory are "
            f"free. Give a smaller image_size (--image-size), or read them on demand (data.open, --driver host)."
        )


def resize(images: np.ndarray, size: Size) -> np.ndarray:
    """Resizes whole images, bilinearly and with smoothing where they shrink; height and width each on its own.

    Args:
      images: `[n, H, W, C]` uint8, one or three channels.
      size: of the result.

    Returns:
      `[n, *size, C]` uint8; the array itself where it has the size already.

    Example:
      >>> resize(np.full((2, 8, 8, 1), 7, np.uint8), 4).shape
      (2, 4, 4, 1)
    """
    from PIL import Image

    height, width = height_and_width(size)
    if images.shape[1:3] == (height, width):
        return images
    shape = (len(images), height, width, images.shape[-1])
    check_memory("resized images", shape)
    made = np.empty(shape, np.uint8)
    for number, image in enumerate(images):
        picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
        made[number] = np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR)).reshape(shape[1:])
    return made


def with_channels(images: np.ndarray, channels: int) -> np.ndarray:
    """Grey images with their channel repeated, or colour images with their channels averaged (halves to even).

    Args:
      images: `[n, H, W, C]`.
      channels: wanted.

    Raises:
      ValueError: another change than from or to one channel.

    Example:
      >>> with_channels(np.array([[[[10, 20, 60]]]], np.uint8), 1).tolist()
      [[[[30]]]]
    """
    if images.shape[-1] == channels:
        return images
    if images.shape[-1] == 1:
        return np.repeat(images, channels, axis=-1)
    if channels == 1:
        mean = images.mean(axis=-1, keepdims=True, dtype=np.float32)
        return (np.rint(mean) if images.dtype == np.uint8 else mean).astype(images.dtype)
    raise ValueError(f"Images of {images.shape[-1]} channels cannot be turned into images of {channels} channels.")
