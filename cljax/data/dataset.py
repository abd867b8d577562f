"""A data set of labelled images, and one made of a user's own arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from cljax.data.arrays import PARTS, check_classes, check_labels, check_parts
from cljax.data.superclasses import Groups
from cljax.text import brief


@brief
class Dataset(NamedTuple):
    """Labelled images, training part first, in one array that all streams share.

    Attributes:
      images: `[n, H, W, C]` uint8 (or float32; or vectors `[n, D]`); `on_demand.Images` where they are read on demand.
      labels: `[n]` int32, or `[n, K]` float32 in [0, 1], multi-label.
      train_size: number of training examples; those that follow are the test part.
      classes: K names.
      name: such as `'digits'`.
      groups: named groups of classes, `((name, classes), ...)`: the data sets of `combine`.
      statistics: mean and standard deviation a channel that the network is to standardise by; those of a stream's first
        task where None.

    Example:
      >>> from cljax import data
      >>> digits = data.load('digits')
      >>> digits.train_images.shape, digits.test_labels.shape, len(digits.classes)
      ((1438, 8, 8, 1), (359,), 10)
    """

    images: Any
    labels: np.ndarray
    train_size: int
    classes: tuple[str, ...]
    name: str
    groups: Groups = ()
    statistics: tuple[tuple[float, ...], tuple[float, ...]] | None = None

    @property
    def train_images(self) -> Any:
        """The training part's images, a view."""
        return self.images[: self.train_size]

    @property
    def train_labels(self) -> np.ndarray:
        """The training part's labels, a view."""
        return self.labels[: self.train_size]

    @property
    def test_images(self) -> Any:
        """The test part's images, a view."""
        return self.images[self.train_size :]

    @property
    def test_labels(self) -> np.ndarray:
        """The test part's labels, a view."""
        return self.labels[self.train_size :]


def from_arrays(
    train_images: Any,
    train_labels: Any,
    test_images: Any = None,
    test_labels: Any = None,
    *,
    classes: Sequence[str] | None = None,
    name: str = "arrays",
) -> Dataset:
    """Makes a data set of NumPy arrays.

    Args:
      train_images: `[n, H, W, C]` or `[n, D]`, uint8 (0 to 255) or floats.
      train_labels: `[n]` whole numbers 0..K-1, or `[n, K]` floats in [0, 1], multi-label.
      test_images: like `train_images`, n may differ.
      test_labels: like `train_labels`. Two pairs are taken too: `from_arrays((X, y), (X_test, y_test))`.
      classes: K names, of which some may have no example; numbers where None, K being the largest training label plus
        one (or the number of columns), and every class having one.
      name: of the data set.

    Raises:
      TypeError, ValueError: names that are none, wrong dtypes, ranks or lengths, differing shapes, channels first,
        labels out of range, with gaps between them, or one-hot; NaN or infinity.

    Example:
      >>> import numpy as np
      >>> from cljax.data import from_arrays
      >>> images = np.zeros((6, 4, 4, 1), np.uint8)
      >>> data = from_arrays(images, [0, 1, 2, 0, 1, 2], images[:3], [0, 1, 2])
      >>> data.classes, data.train_size, data.test_images.shape
      (('0', '1', '2'), 6, (3, 4, 4, 1))
    """
    if classes is not None and (isinstance(classes, str | bytes) or not isinstance(classes, Sequence | np.ndarray)):
        raise TypeError(f"classes are {type(classes).__name__}, but must be a list of names.")
    if test_images is None and test_labels is None:
        pairs = [list(pair) for pair in (train_images, train_labels) if isinstance(pair, tuple | list)]
        if [len(pair) for pair in pairs] != [2, 2]:
            raise TypeError(
                "test_images and test_labels are missing. Give train_images, train_labels, test_images, test_labels, "
                "or two pairs, (X, y), (X_test, y_test): where there is no test part, set one aside."
            )
        (train_images, train_labels), (test_images, test_labels) = pairs
    count, given = None if classes is None else len(classes), (train_images, train_labels, test_images, test_labels)
    train_images, train_labels, test_images, test_labels = check_parts(PARTS, *given, count)
    if count is None:
        count = train_labels.shape[1] if train_labels.ndim == 2 else int(train_labels.max()) + 1
        if train_labels.ndim == 1:
            check_classes(train_labels, count, "train_labels")
        check_labels(test_labels, test_images, "test_labels", "test_images", count)
    images = np.concatenate([train_images, test_images])
    labels = np.concatenate([train_labels, test_labels])
    names = tuple(str(label) for label in (range(count) if classes is None else classes))
    return Dataset(images, labels, len(train_images), names, name)
