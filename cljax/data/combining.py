"""Several data sets as one: images of one size and number of channels, classes side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from cljax.data.dataset import Dataset
from cljax.data.images import Size, check_memory, height_and_width, resize, with_channels
from cljax.data.on_demand import Images
from cljax.data.statistics import channel_statistics
from cljax.numbers import show


def combine(
    datasets: Sequence[Dataset], *, image_size: Size | None = None, normalize: Literal["first", "each"] = "first"
) -> Dataset:
    r"""Makes one data set of several, whose classes are a group each, for `streams.sequence`.

    Images get the first data set's size (or `image_size`) and number of channels: grey is repeated, colour averaged.
    With 'first' the network standardises all by mean and standard deviation of the first task, as LwF does; what
    follows keeps its own brightness and contrast. With 'each', each data set is standardised by its own: per channel

    $$ x' = 255 (m + s (x / 255 - m_d) / s_d), \quad s = 1 / (z_1 - z_0), \quad m = -z_0 s $$
    with its own mean and standard deviation, and the network takes m and s, with which all standardised values of all
    data sets, $z_0$ to $z_1$, fit into 0..255. Only rounding is lost: at most s / 510 on the scale of x'. Floats are
    standardised as they are.

    Args:
      datasets: single-label; uint8, or float32 of one shape (also vectors).
      image_size: of all images; the first data set's where None.
      normalize: 'first' or 'each'.

    Returns:
      The data set, training parts first. Its classes are named `data set/class`; `groups` tells whose they are;
      `statistics` are m and s, or None with 'first'.

    Raises:
      ValueError: fewer than one data set, multi-label data, differing dtypes, floats of differing shapes, images
        that are read on demand, another word.

    Example:
      >>> import numpy as np
      >>> from cljax.data import combine, from_arrays
      >>> def filled(value, shape, name):
      ...     images = np.full((2, *shape), value, np.uint8)
      ...     return from_arrays(images, [0, 1], images, [0, 1], name=name)
      >>> both = combine([filled(10, (4, 4, 3), "colour"), filled(90, (8, 8, 1), "grey")])
      >>> both.images.shape, both.classes, both.groups
      ((8, 4, 4, 3), ('colour/0', 'colour/1', 'grey/0', 'grey/1'), (('colour', (0, 1)), ('grey', (2, 3))))
    """
    if normalize not in ("first", "each"):
        raise ValueError(f"normalize is {show(normalize)}, but must be 'first' or 'each'.")
    if not isinstance(datasets, list | tuple) or isinstance(datasets, Dataset) or not datasets:
        what = "one data set" if isinstance(datasets, Dataset) else show(datasets)
        raise ValueError(f"datasets is {what}, but must be a list of one data set or more, such as of data.load.")
    for dataset in datasets:
        if not isinstance(dataset, Dataset):
            raise ValueError(f"datasets has {show(dataset)}, which is no data set. Load it with data.load.")
        if dataset.labels.ndim == 2:
            raise ValueError(f"The data set {dataset.name!r} is multi-label. Use streams.from_tasks for such tasks.")
        if isinstance(dataset.images, Images):
            raise ValueError(
                f"The images of {dataset.name!r} are read on demand, but several data sets are made one array. "
                f"Load them with data.load."
            )
    names = _names(datasets)
    images = _alike(datasets, image_size)
    shared = None
    if normalize == "each":
        statistics = [channel_statistics([one[: part.train_size]]) for one, part in zip(images, datasets, strict=True)]
        channels = len(statistics[0][0])
        shared = _common(statistics) if images[0].dtype == np.uint8 else ((0.0,) * channels, (1.0,) * channels)
        images = [_restandardise(one, own, shared) for one, own in zip(images, statistics, strict=True)]
    first = np.cumsum([0, *(len(dataset.classes) for dataset in datasets)])
    pairs = list(zip(images, datasets, strict=True))
    parts = [one[: part.train_size] for one, part in pairs] + [one[part.train_size :] for one, part in pairs]
    labels = [part.train_labels + base for part, base in zip(datasets, first, strict=False)]
    labels += [part.test_labels + base for part, base in zip(datasets, first, strict=False)]
    return Dataset(
        np.concatenate(parts),
        np.concatenate(labels).astype(np.int32),
        sum(dataset.train_size for dataset in datasets),
        tuple(f"{name}/{label}" for name, dataset in zip(names, datasets, strict=True) for label in dataset.classes),
        "+".join(names),
        groups=tuple((name, tuple(range(first[number], first[number + 1]))) for number, name in enumerate(names)),
        statistics=shared,
    )


def _names(datasets: Sequence[Dataset]) -> list[str]:
    """Their names, made different: a data set may come more than once."""
    names = [dataset.name for dataset in datasets]
    return [name if names.count(name) == 1 else f"{name}-{names[:at].count(name)}" for at, name in enumerate(names)]


def _alike(datasets: Sequence[Dataset], image_size: Size | None) -> list[np.ndarray]:
    """All images in the first's shape (or `image_size`)."""
    first = datasets[0].images
    resizable = first.dtype == np.uint8 and first.ndim == 4
    for dataset in datasets:
        images = dataset.images
        if images.dtype != first.dtype or images.ndim != first.ndim:
            raise ValueError(
                f"The examples of {dataset.name!r} are {images.dtype} of shape {images.shape[1:]}, but those of "
                f"{datasets[0].name!r} are {first.dtype} of shape {first.shape[1:]}. Convert them to one kind."
            )
        if not resizable and (images.shape[1:] != first.shape[1:] or image_size is not None):
            raise ValueError(
                f"Only uint8 images are resized, but the examples of {dataset.name!r} are {images.dtype} of shape "
                f"{images.shape[1:]}. Bring them to one shape beforehand."
            )
    if not resizable:
        return [dataset.images for dataset in datasets]
    size = first.shape[1:3] if image_size is None else height_and_width(image_size)
    check_memory("+".join(_names(datasets)), (sum(len(part.images) for part in datasets), *size, first.shape[-1]))
    return [resize(with_channels(dataset.images, first.shape[-1]), size) for dataset in datasets]


def _common(statistics: Sequence[tuple[Any, Any]]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The m and s with which the standardised values of all data sets just fit into [0, 1]."""
    mean, std = (np.asarray(part) for part in zip(*statistics, strict=True))
    low, high = (-mean / std).min(axis=0), ((1 - mean) / std).max(axis=0)
    scale = 1 / (high - low)
    return tuple((-low * scale).tolist()), tuple(scale.tolist())


def _restandardise(images: np.ndarray, own: tuple[Any, Any], shared: tuple[Any, Any]) -> np.ndarray:
    """Images with another mean and standard deviation a channel; bytes by a table of their 256 values."""
    (mean, std), (new_mean, new_std) = (tuple(np.asarray(part) for part in pair) for pair in (own, shared))
    if images.dtype != np.uint8:
        return ((images - mean) / std * new_std + new_mean).astype(np.float32)
    levels = np.arange(256)[:, None] / 255
    table = np.rint(255 * (new_mean + new_std * (levels - mean) / std)).clip(0, 255).astype(np.uint8)
    made = np.empty_like(images)
    for channel in range(images.shape[-1]):
        made[..., channel] = table[images[..., channel], channel]
    return made
