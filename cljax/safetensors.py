"""Reading the tensors of a safetensors file."""

from __future__ import annotations

import json
import os
import pathlib

import jax.numpy as jnp
import numpy as np

TYPES = {
    f"{name}{8 * size}": np.dtype(f"<{kind}{size}")
    for name, kind, sizes in (("I", "i", (1, 2, 4, 8)), ("U", "u", (1, 2, 4, 8)), ("F", "f", (2, 4, 8)))
    for size in sizes
} | {"BOOL": np.dtype(np.bool_), "BF16": np.dtype(jnp.bfloat16)}


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads a file: a header's length in 8 bytes, the header as JSON, the raw data.

    Args:
      path: of the file.

    Returns:
      `{name: tensor}`, dots in names being slashes here.

    Raises:
      ValueError: another kind of file, one that is truncated, or a type that NumPy has not.

    Example:
      >>> import tempfile
      >>> header = b'{"dense.bias": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}'
      >>> with tempfile.TemporaryDirectory() as place:
      ...     file = pathlib.Path(place, 'a.safetensors')
      ...     _ = file.write_bytes(len(header).to_bytes(8, 'little') + header + np.array([1, 2], '<f4').tobytes())
      ...     read(file)
      {'dense/bias': array([1., 2.], dtype=float32)}
    """
    content = pathlib.Path(path).read_bytes()
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 or length > len(content) - 8:
        raise ValueError("it is no safetensors file, or truncated")
    header = json.loads(content[8 : 8 + length])
    found = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in TYPES:
            raise ValueError(f"its tensor {name} is of the type {entry['dtype']}, which is not among those known")
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        values = np.frombuffer(content[begin:end], TYPES[entry["dtype"]])
        found[name.replace(".", "/")] = values.reshape(entry["shape"])
    return found
