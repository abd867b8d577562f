"""How many seeds go side by side: as many as the compiled programs leave memory for."""

from __future__ import annotations

from collections.abc import Sequence

from cljax.numbers import whole
from cljax.storage.checkpoints import Saving
from cljax.training.resume import seeds_together

USED = 0.8
"""The part of the free memory that may be planned with; the rest is for allocators and the host's work."""


def possible(vectorize: bool | int, count: int, saving: Saving | None = None) -> list[int]:
    """How many of some seeds may go side by side, the most first; 0: each by itself, through programs without `vmap`.

    Args:
      vectorize: as of `drive`.
      count: of the seeds.
      saving: where checkpoints may be: what they are of decides.

    Raises:
      ValueError: a number of seeds that cannot be divided like that.

    Example:
      >>> possible(False, 12), possible(6, 12), possible(True, 12)
      ([0], [6], [12, 6, 4, 3, 2, 1])
    """
    if not vectorize:
        return [0]
    if vectorize is not True:
        if count % whole("vectorize", vectorize, least=1):
            raise ValueError(f"{count} seeds cannot run {vectorize} at a time: vectorize must divide their number.")
        return [vectorize]
    sizes = [size for size in range(count, 0, -1) if count % size == 0]
    known = saving and seeds_together(saving)
    return [known] if known in sizes else sizes


def fitting(sizes: Sequence[int], count: int, needed: int, kept: int, free: int | None) -> int:
    """The largest of some sizes that memory takes; the smallest where it takes none.

    Args:
      sizes: how many seeds may go side by side, the most first.
      count: of the seeds.
      needed: bytes that the programs of the first of the sizes need, and others in proportion.
      kept: bytes of these seeds' learners, which stay once they are done.
      free: bytes that are free; None: unknown.

    Example:
      >>> [fitting([12, 6, 4, 3, 2, 1], 12, 1200, 120, free) for free in (1500, 1499, 150, None)]
      [12, 6, 1, 12]
    """
    if free is None:
        return sizes[0]
    most = sizes[0]
    fits = (size for size in sizes if needed * size + kept * (count - size) <= USED * free * most)
    return next(fits, sizes[-1])
