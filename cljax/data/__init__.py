"""Data sets: TFDS's prepared files without TensorFlow, the digits, own arrays; in memory, or read on demand."""

from cljax.data.combining import combine
from cljax.data.sources import Dataset, available, decoded_bytes, from_arrays, load, open, prepare
from cljax.data.streaming import Images

__all__ = ["Dataset", "Images", "available", "combine", "decoded_bytes", "from_arrays", "load", "open", "prepare"]
