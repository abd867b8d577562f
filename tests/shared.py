"""What many tests need: to compare trees, and a small network."""

from __future__ import annotations

import jax
import numpy as np

from cljax import data, networks, streams, task_params

focus = jax.jit(task_params.focus)
gather = jax.jit(streams.gather)
sequential = jax.jit(streams.sequential, static_argnums=4)
"""What many tests begin with, each in one program."""


def bits(tree):
    """The dtype, shape and bytes of every leaf: equal where no bit differs."""
    leaves = map(np.asarray, jax.tree.leaves(tree))
    return [(leaf.dtype, leaf.shape, leaf.tobytes()) for leaf in leaves]


def assert_close(first, second, rtol=1e-5, atol=None):
    """Two trees of one structure hold the same numbers, up to rounding; `atol` is a tenth of `rtol`."""
    atol = rtol / 10 if atol is None else atol
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), first, second)


class Noting:
    """A source of images that notes the rows of each read."""

    def __init__(self, images):
        self.images, self.asked = images, []

    def __len__(self):
        return len(self.images)

    def __getitems__(self, rows):
        self.asked.append(rows)
        return self.images[rows]


def noted(stream):
    """The same stream, its examples read on demand, and the list of what has been read."""
    source = Noting(np.asarray(stream.tables.examples))
    images = data.Images([source], source.images.shape[1:], name="noted")
    return stream._replace(tables=stream.tables._replace(examples=images)), source.asked


def small(like, *, hidden=(6,), **options):
    """An MLP for a stream."""
    shape, outputs = like.tables.examples.shape[1:], like.tables.classes.shape[1]
    return networks.mlp(shape, outputs, hidden=hidden, mean=like.mean, std=like.std, **options)
