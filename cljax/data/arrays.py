"""Checks of a user's arrays, made before anything else: each error names the thing and the cure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cljax.data.on_demand import Images

CLASSES = 1 << 20
"""Most classes of a data set: the labels are less."""


def check_images(images: Any, what: str) -> Any:
    """Checks inputs: uint8 or floats `[n, H, W, C]` (or vectors `[n, D]`), not empty, finite.

    Args:
      images: the array, or `Images`.
      what: how errors call it, such as `'train_images'`.

    Returns:
      The array itself; other floats as float32.

    Raises:
      TypeError: wrong dtype. ValueError: wrong rank, channels first, no examples, or a value that is not finite.

    Example:
      >>> check_images([[0.5, 1.0]], "train_images").dtype
      dtype('float32')
      >>> check_images(np.zeros((9, 3, 32, 32)), "train_images")
      Traceback (most recent call last):
      ...
      ValueError: train_images have shape (9, 3, 32, 32), which is channels first, ...numpy.moveaxis(images, 1, -1).
    """
    if isinstance(images, Images):  # checked as they are read
        return images
    images = _float32(_array(images, what))
    if images.dtype not in (np.dtype(np.uint8), np.dtype(np.float32)):
        raise TypeError(
            f"{what} are {images.dtype}, but inputs must be uint8 (0 to 255) or floats. Convert them, by "
            f"images.astype(numpy.uint8) where they are whole numbers from 0 to 255, else by "
            f"images.astype(numpy.float32)."
        )
    if images.ndim not in (2, 4):
        raise ValueError(
            f"{what} have shape {images.shape}, but inputs must be images [n, H, W, C] or vectors [n, D]. "
            f"Grey images need a last axis of one channel: images[..., None]."
        )
    if images.ndim == 4 and images.shape[1] in (1, 3) and min(images.shape[2:]) > 4:
        raise ValueError(
            f"{what} have shape {images.shape}, which is channels first, but images must be [n, H, W, C]. Move the "
            f"channels last: numpy.moveaxis(images, 1, -1)."
        )
    if images.size == 0:
        raise ValueError(f"{what} have shape {images.shape} and so hold no examples. At least one is needed.")
    _check_finite(images, what)
    return images


def check_labels(labels: Any, images: np.ndarray, what: str, images_what: str, classes: int | None) -> np.ndarray:
    """Checks labels: whole numbers `[n]` in 0..K-1, or floats `[n, K]` in [0, 1] (multi-label).

    Args:
      labels: the array.
      images: the inputs they belong to.
      what: how errors call the labels.
      images_what: how errors call the inputs.
      classes: K; None where it is not known yet (then it is at most `CLASSES`).

    Returns:
      The labels, int32 `[n]` or float32 `[n, K]`.

    Raises:
      TypeError: wrong dtype. ValueError: wrong shape, another length than the images, out of range, not finite.
    """
    labels = _array(labels, what)
    multi_label = np.issubdtype(labels.dtype, np.floating)
    kinds = "labels must be whole numbers [n], a class each, or floats [n, K] in [0, 1], several classes each"
    if not ((multi_label and labels.ndim == 2) or np.issubdtype(labels.dtype, np.integer)):
        cure = "numpy.unique(labels, return_inverse=True) gives numbers, and the classes they stand for"
        raise TypeError(f"{what} are {labels.dtype} of shape {labels.shape}, but {kinds}: {cure}.")
    if labels.ndim != (2 if multi_label else 1):
        cures = {1: "labels[:, 0]"} if labels.ndim == 2 else {}
        cure = cures.get(labels.shape[-1], "labels.argmax(axis=1) of one-hot ones, labels.astype(float) of several")
        raise ValueError(f"{what} are {labels.dtype} of shape {labels.shape}, but {kinds}. Give {cure}.")
    labels = _float32(labels)
    if len(labels) != len(images):
        raise ValueError(
            f"{images_what} hold {len(images)} examples, but {what[0].lower()}{what[1:]} hold {len(labels)} labels. "
            f"There must be one label for each example."
        )
    if multi_label:
        _check_finite(labels, what)
        wrong = np.flatnonzero(((labels < 0) | (labels > 1)).any(axis=1))
        allowed, cure = "0 to 1", "Multi-label targets are probabilities."
        if not labels.shape[1]:
            raise ValueError(f"{what} have shape {labels.shape} and so no classes. At least one is needed.")
        if not wrong.size and classes is not None and labels.shape[1] != classes:
            raise ValueError(f"{what} have {labels.shape[1]} columns, but there are {classes} classes, a column each.")
    else:
        upper = CLASSES if classes is None else classes
        wrong = np.flatnonzero((labels < 0) | (labels >= upper))
        allowed = f"0 to {upper - 1}"
        cure = "Number the classes from 0, and give the same classes to the training and the test part."
    if wrong.size:
        raise ValueError(
            f"{what} are out of range: example {wrong[0]} has label {labels[wrong[0]]}, but labels must be {allowed}. "
            f"{cure}"
        )
    return labels if multi_label else labels.astype(np.int32)


PARTS = ("train_images", "train_labels", "test_images", "test_labels")


def check_parts(
    what: Sequence[str],
    train_images: Any,
    train_labels: Any,
    test_images: Any,
    test_labels: Any,
    classes: int | None = None,
) -> tuple[Any, np.ndarray, Any, np.ndarray]:
    """Checks the arrays of both parts, each by itself and the parts beside each other.

    Args:
      what: how errors call the four.
      train_images, train_labels, test_images, test_labels: the arrays.
      classes: as of `check_labels`.

    Returns:
      The four, as of `check_images` and `check_labels`.

    Raises:
      TypeError: as of these. ValueError: likewise; or parts of different shapes.
    """
    train_images, test_images = check_images(train_images, what[0]), check_images(test_images, what[2])
    check_pair(train_images, test_images, what[0], what[2])
    train_labels = check_labels(train_labels, train_images, what[1], what[0], classes)
    check_several(train_labels, what[1])
    test_labels = check_labels(test_labels, test_images, what[3], what[2], classes)
    if train_labels.ndim != test_labels.ndim:
        raise ValueError(
            f"{what[1]} have shape {train_labels.shape}, but {what[3]} have shape {test_labels.shape}. Either both are "
            f"whole numbers [n], or both are floats [n, K]."
        )
    return train_images, train_labels, test_images, test_labels


def check_classes(labels: np.ndarray, count: int, what: str) -> None:
    """Checks that each of so many classes has a training example, as it has not where labels are others' numbers.

    Raises:
      ValueError: naming the classes and the cure.
    """
    present = np.unique(labels)
    if len(present) != count:
        missing = int(np.argmin(np.append(present == np.arange(len(present)), False)))
        raise ValueError(
            f"{what} go up to {count - 1}, but none is {missing}. Classes are numbered from 0, without gaps: "
            f"numpy.searchsorted(numpy.unique(train_labels), labels) numbers the labels of both parts alike."
        )


def check_several(labels: np.ndarray, what: str) -> None:
    """Checks that float labels are several classes an example, each by a sigmoid, and not one-hot.

    Raises:
      ValueError: naming the cure.

    Example:
      >>> check_several(np.eye(3, dtype=np.float32)[[2, 0]], "train_labels")
      Traceback (most recent call last):
      ...
      ValueError: train_labels add up to 1 for every example, ... labels.argmax(axis=1).
    """
    if labels.ndim == 2 and labels.shape[1] > 1 and np.allclose(labels.sum(axis=1), 1, atol=1e-3):
        raise ValueError(
            f"{what} add up to 1 for every example, as one-hot labels do, but float labels say of each class whether "
            f"an example has it, whatever its others (a sigmoid each). Give one class an example: "
            f"labels.argmax(axis=1)."
        )


def check_pair(train: np.ndarray, test: np.ndarray, train_what: str, test_what: str) -> None:
    """Checks that two arrays have examples of the same shape and dtype.

    Raises:
      ValueError: they differ.
    """
    if train.shape[1:] != test.shape[1:] or train.dtype != test.dtype:
        raise ValueError(
            f"{train_what} have examples of shape {train.shape[1:]} ({train.dtype}), but {test_what} have examples of "
            f"shape {test.shape[1:]} ({test.dtype}). All must be the same: resize, pad or convert them beforehand."
        )


def _float32(array: np.ndarray) -> np.ndarray:
    """Floats as float32; all else as it is."""
    if not np.issubdtype(array.dtype, np.floating) and array.dtype.name != "bfloat16":
        return array
    with np.errstate(over="ignore"):  # infinity, which is refused
        return array.astype(np.float32, copy=False)


def _array(given: Any, what: str) -> np.ndarray:
    try:
        return np.asarray(given)
    except (ValueError, OverflowError) as error:  # rows of differing lengths
        raise ValueError(f"{what} are no array ({error}). Give all examples one shape.") from error


def _check_finite(array: np.ndarray, what: str) -> None:
    if not np.issubdtype(array.dtype, np.floating):
        return
    wrong = np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(axis=1))
    if wrong.size:
        raise ValueError(
            f"{what} hold NaN or infinity in {wrong.size} of {len(array)} examples, the first being example "
            f"{wrong[0]}. Remove or repair them: a single such value spoils every weight."
        )
