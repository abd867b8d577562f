"""Images of one size and number of channels: resized with Pillow, grey repeated, colour averaged."""

from __future__ import annotations

from typing import Any

import numpy as np

Size = int | tuple[int, int]
"""The side of square images, or height and width, in pixels."""


def height_and_width(size: Size) -> tuple[int, int]:
    """Both sides.

    Raises:
      ValueError: not one or two positive whole numbers.

    Example:
      >>> height_and_width(32), height_and_width((32, 48))
      ((32, 32), (32, 48))
    """
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) != 2 or any(not isinstance(side, int) or side < 1 for side in sides):
        raise ValueError(f"The image size is {size}, but must be a number of pixels, or height and width.")
    return sides[0], sides[1]


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
    made = np.empty((len(images), height, width, images.shape[-1]), np.uint8)
    for number, image in enumerate(images):
        picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
        made[number] = as_array(picture.resize((width, height), Image.Resampling.BILINEAR), image.shape[-1])
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


def as_array(picture: Any, channels: int) -> np.ndarray:
    """A Pillow image as `[H, W, C]` uint8."""
    array = np.asarray(picture)
    return array[..., None] if channels == 1 else array
