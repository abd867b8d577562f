"""Reading the tensors of a safetensors file."""

from __future__ import annotations

import math
import os
from typing import Any

import jax.numpy as jnp
import numpy as np

from cljax import files
from cljax.numbers import whole

TYPES = {
    f"{name}{8 * size}": np.dtype(f"<{kind}{size}")
    for name, kind, sizes in (("I", "i", (1, 2, 4, 8)), ("U", "u", (1, 2, 4, 8)), ("F", "f", (2, 4, 8)))
    for size in sizes
} | {"BOOL": np.dtype(np.bool_), "BF16": np.dtype(jnp.bfloat16)}

HEADER_BYTES = 100_000_000
"""Most bytes of a header, by the format."""


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads a file: a header's length in 8 bytes, the header as JSON, the raw data.

    As the format demands, the tensors' data lie one after the other without a gap and fill the rest of the file.

    Args:
      path: of the file.

    Returns:
      `{name: tensor}`, dots in names being slashes here.

    Raises:
      ValueError: another kind of file, one that is truncated or contradicts itself, a type that NumPy has not, or two
        tensors of one name. OSError: it cannot be read.

    Example:
      >>> import pathlib, tempfile
      >>> import numpy as np
      >>> from cljax.storage.safetensors import read
      >>> header = b'{"dense.bias": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}'
      >>> with tempfile.TemporaryDirectory() as place:
      ...     file = pathlib.Path(place, 'a.safetensors')
      ...     _ = file.write_bytes(len(header).to_bytes(8, 'little') + header + np.array([1, 2], '<f4').tobytes())
      ...     read(file)
      {'dense/bias': array([1., 2.], dtype=float32)}
    """
    with files.open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size - 8
        length = int.from_bytes(file.read(8), "little")
        if not 0 <= length <= min(size, HEADER_BYTES):
            raise ValueError("it is no safetensors file, or truncated")
        header = files.parse_json(file.read(length), "its header")
        if not isinstance(header, dict):
            raise ValueError("its header is no JSON object")
        entries = {name: _entry(name, entry) for name, entry in header.items() if name != "__metadata__"}
        end, found = 0, {}
        for name, (dtype, shape, begins, ends) in sorted(entries.items(), key=lambda item: item[1][2:]):
            if begins != end:
                raise ValueError(f"its tensor {name[:60]} begins at byte {begins}, not at {end} where the last ends")
            if ends - begins != dtype.itemsize * math.prod(shape):
                raise ValueError(f"its tensor {name[:60]} has {ends - begins} bytes, not those of {dtype}{shape}")
            if ends > size - length:
                raise ValueError("it is truncated")
            values: np.ndarray = np.frombuffer(file.read(ends - begins), dtype)
            if dtype == np.bool_ and values.view(np.uint8).max(initial=0) > 1:
                raise ValueError(f"its tensor {name[:60]} has bytes that are neither false nor true")
            end, found[name] = ends, values.reshape(shape)
    if end != size - length:
        raise ValueError(f"it has {size - length - end} bytes more than its tensors")
    named = {name.replace(".", "/"): found[name] for name in entries}
    if len(named) < len(found):
        raise ValueError("two of its tensors have one name, where dots are slashes")
    return named


def _entry(name: str, entry: Any) -> tuple[np.dtype, list[int], int, int]:
    """Type, shape, and where the data begin and end."""
    what = f"its tensor {name[:60]}"
    if not (isinstance(entry, dict) and set(entry) == {"dtype", "shape", "data_offsets"}):
        raise ValueError(f"{what} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in TYPES:
        raise ValueError(f"{what} is of the type {str(dtype)[:60]}, which is not among those known")
    if not (isinstance(shape, list) and isinstance(offsets, list) and len(shape) <= 32 and len(offsets) == 2):
        raise ValueError(f"{what} has no shape, or no two offsets")
    begins, ends = (whole(f"an offset of {what}", offset, most=2**63 - 1) for offset in offsets)
    return TYPES[dtype], [whole(f"a side of {what}", side, most=2**63 - 1) for side in shape], begins, ends
