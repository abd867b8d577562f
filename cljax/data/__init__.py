"""Data sets as arrays in memory: TFDS's prepared files without TensorFlow, the digits, a user's own arrays."""

from cljax.data.sources import Dataset, available, from_arrays, load, prepare

__all__ = ["Dataset", "available", "from_arrays", "load", "prepare"]
