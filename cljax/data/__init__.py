"""Data sets: TFDS's prepared files without TensorFlow, the digits, own arrays; in memory, or read on demand."""

from cljax.data.combining import combine
from cljax.data.dataset import Dataset, from_arrays
from cljax.data.on_demand import Images
from cljax.data.prepared import available, prepare
from cljax.data.sources import decoded_bytes, load, open
from cljax.data.voc import open_voc

__all__ = [
    "Dataset",
    "Images",
    "available",
    "combine",
    "decoded_bytes",
    "from_arrays",
    "load",
    "open",
    "open_voc",
    "prepare",
]
