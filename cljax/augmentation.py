"""Augmentation inside the train step: pure functions of a key and a batch of images, shapes and dtypes kept.

Each draws for every example on its own, works on raw inputs (uint8 as stored, or float32), and is given to a run as
`training.Settings(augment=...)`. Folds, validation and evaluation see the images as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cljax.data.on_demand import Images
from cljax.numbers import check_shape, real, whole
from cljax.types import Array, Batch

Augment = Callable[[Array, Array], Array]
"""`(key, inputs [B, H, W, C]) -> inputs`, of the same shape and dtype."""

_PURPOSE = np.uint32(2**31)
"""Folded into a step's key for its augmentation, so that the step's other random numbers stay as they are."""


def pad_crop(pad: int = 4) -> Augment:
    """Pads with zeros and crops to the old size at a place drawn uniformly: a shift by -pad..pad in each direction.

    Args:
      pad: pixels on each side.

    Raises:
      ValueError: fewer than one pixel; when it is applied, as many as an image has, which could move it out of sight.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from cljax.augmentation import pad_crop
      >>> images = jnp.arange(2 * 8 * 8 * 1, dtype=jnp.uint8).reshape(2, 8, 8, 1)
      >>> pad_crop(1)(jax.random.key(0), images).shape
      (2, 8, 8, 1)

    Source: K. He et al., Deep Residual Learning for Image Recognition, CVPR 2016, section 4.2.
    """
    pad = whole("pad", pad, least=1)

    def augment(key: Array, inputs: Array) -> Array:
        check_shape("inputs", inputs, "B", "H", "W", "C")
        if pad >= min(inputs.shape[1:3]):
            raise ValueError(
                f"pad_crop pads by {pad} pixels, which can move images of shape {inputs.shape[1:]} out of sight. Pad "
                f"by fewer than the shorter side has."
            )
        padded = jnp.pad(inputs, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
        corners = jax.random.randint(key, (inputs.shape[0], 2), 0, 2 * pad + 1, jnp.int32)
        crop = lambda image, corner: lax.dynamic_slice(image, (corner[0], corner[1], 0), inputs.shape[1:])
        return jax.vmap(crop)(padded, corners)

    return augment


def flip() -> Augment:
    """Mirrors each image left to right with probability one half.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from cljax.augmentation import flip
      >>> images = jnp.arange(4, dtype=jnp.uint8).reshape(1, 1, 4, 1)
      >>> sorted({tuple(flip()(jax.random.key(seed), images).ravel().tolist()) for seed in range(9)})
      [(0, 1, 2, 3), (3, 2, 1, 0)]
    """

    def augment(key: Array, inputs: Array) -> Array:
        check_shape("inputs", inputs, "B", "H", "W", "C")
        mirrored = jax.random.bernoulli(key, 0.5, (inputs.shape[0], 1, 1, 1))
        return jnp.where(mirrored, inputs[:, :, ::-1], inputs)

    return augment


def colour_jitter(
    images: Any = None, *, std: float = 0.1, eigenvalues: Any = None, eigenvectors: Any = None
) -> Augment:
    r"""Shifts the colour of each image along the principal components of all pixels' colours.

    $$ x_{hw} + 255 \sum_i \alpha_i \lambda_i p_i, \quad \alpha_i \sim N(0, \text{std}^2) $$
    the same for all pixels of an image, with the eigenvalues and eigenvectors of the covariance of red, green and
    blue, uint8 being scaled to [0, 1]. uint8 is rounded and kept within 0..255; floats are taken as they are (no 255).

    Args:
      images: `[n, H, W, 3]`, those to learn the components from: the training images.
      std: of the factors.
      eigenvalues: `[3]`, instead of `images`; ImageNet's are often given as 0.2175, 0.0188, 0.0045.
      eigenvectors: `[3, 3]`, a column each.

    Raises:
      ValueError: neither images nor components, components of another shape or not finite, images without three
        channels, or a negative std.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import numpy as np
      >>> from cljax.augmentation import colour_jitter
      >>> jitter = colour_jitter(eigenvalues=[1, 0, 0], eigenvectors=np.eye(3))
      >>> moved = jitter(jax.random.key(0), jnp.full((1, 2, 2, 3), 100, jnp.uint8))
      >>> bool((moved[..., 0] != 100).all()), bool((moved[..., 1:] == 100).all())
      (True, True)

    Source: A. Krizhevsky, I. Sutskever and G. Hinton, ImageNet Classification with Deep Convolutional Neural Networks,
    NIPS 2012, section 4.1.
    """
    if (eigenvalues is None) != (eigenvectors is None) or (images is None) == (eigenvalues is None):
        raise ValueError("colour_jitter needs either images to learn the components from, or both of their arrays.")
    std = real("std", std, least=0)
    if images is not None:
        eigenvalues, eigenvectors = colour_components(images)
    eigenvalues, eigenvectors = np.asarray(eigenvalues, np.float32), np.asarray(eigenvectors, np.float32)
    if eigenvalues.shape != (3,) or eigenvectors.shape != (3, 3):
        raise ValueError(
            f"The components have shapes {eigenvalues.shape} and {eigenvectors.shape}, but must have (3,) and (3, 3)."
        )
    if not (np.isfinite(eigenvalues).all() and np.isfinite(eigenvectors).all()):
        raise ValueError("The components hold NaN or infinity, but must be finite numbers.")
    directions = np.float32(std) * eigenvalues[:, None] * eigenvectors.T

    def augment(key: Array, inputs: Array) -> Array:
        check_shape("inputs", inputs, "B", "H", "W", "C")
        if inputs.shape[-1] != 3:
            raise ValueError(f"Colour needs images of three channels, but the inputs have shape {inputs.shape[1:]}.")
        factors = jax.random.normal(key, (inputs.shape[0], 3), jnp.float32)
        shift = jnp.dot(factors, directions, precision=lax.Precision.HIGHEST)[:, None, None, :]
        if inputs.dtype != jnp.uint8:
            return inputs + shift.astype(inputs.dtype)
        moved = inputs.astype(jnp.int32) + jnp.round(255 * shift).astype(jnp.int32)
        return jnp.clip(moved, 0, 255).astype(jnp.uint8)

    return augment


def colour_components(images: Any) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues `[3]`, largest first, and eigenvectors `[3, 3]` (columns) of the covariance of all pixels' colours.

    uint8 is scaled to [0, 1]. Of each eigenvector, the largest component is positive.

    Args:
      images: `[n, H, W, 3]` uint8 or float32, or `data.Images`, of which at most 100,000, evenly spaced, are read.

    Raises:
      ValueError: another shape or dtype, or no image.

    Example:
      >>> import numpy as np
      >>> from cljax.augmentation import colour_components
      >>> values, vectors = colour_components(np.array([[[[0, 0, 0], [255, 0, 0]]]], np.uint8))
      >>> values.tolist(), vectors[:, 0].tolist()
      ([0.25, 0.0, 0.0], [1.0, 0.0, 0.0])
    """
    read_on_demand = isinstance(images, Images)
    images = images if read_on_demand else np.asarray(images)
    if images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f"Colour needs images of three channels [n, H, W, 3], but the images have {images.shape}.")
    if not (images.dtype == np.uint8 or jnp.issubdtype(images.dtype, jnp.floating)) or not len(images):
        raise ValueError(
            f"Colours are learned from images of uint8, or of floating point in [0, 1], but these are {len(images)} of "
            f"{images.dtype}. Convert them: images.astype(np.uint8)."
        )
    scale = 255.0 if images.dtype == np.uint8 else 1.0
    total, products, count = np.zeros(3), np.zeros((3, 3)), 0
    starts = range(0, len(images), 1024)
    for piece in images.pieces() if read_on_demand else (images[start : start + 1024] for start in starts):
        pixels = piece.reshape(-1, 3).astype(np.float64) / scale
        count += len(pixels)
        total += pixels.sum(axis=0)
        products += pixels.T @ pixels
    mean = total / count
    values, vectors = np.linalg.eigh(products / count - np.outer(mean, mean))
    vectors = vectors[:, ::-1] * np.sign(vectors[np.abs(vectors).argmax(axis=0), range(3)])[::-1]
    return np.maximum(values[::-1], 0.0), vectors


def compose(*augments: Augment) -> Augment:
    """One after the other, each with a key of its own.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from cljax.augmentation import compose, flip, pad_crop
      >>> both = compose(pad_crop(1), flip())
      >>> both(jax.random.key(0), jnp.zeros((2, 8, 8, 1), jnp.uint8)).shape
      (2, 8, 8, 1)
    """

    def augment(key: Array, inputs: Array) -> Array:
        for number, one in enumerate(augments):
            inputs = one(jax.random.fold_in(key, number), inputs)
        return inputs

    return augment


def augment_batch(augment: Augment | None, batch: Batch, key: Array) -> Batch:
    """A training step's batch, augmented with a key derived from the step's; the batch itself where `augment` is None.

    Every driver calls this before the step, so that all see the same images.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from cljax.augmentation import augment_batch
      >>> from cljax.types import Batch
      >>> batch = Batch(jnp.array([[1, 2]]), *jnp.zeros((3, 1), jnp.int32), jnp.ones(1))
      >>> augment_batch(lambda key, inputs: inputs + 1, batch, jax.random.key(0)).inputs.tolist()
      [[2, 3]]
    """
    if augment is None:
        return batch
    return batch._replace(inputs=augment(jax.random.fold_in(key, _PURPOSE), batch.inputs))
