"""Parameters under other names and in another layout, PyTorch's: names that would fit, and arrays turned round."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cljax.types import Wire

TORCH = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
"""What PyTorch calls the leaves of a normalisation, and Flax; any other `weight` is a kernel."""


def plain(name: str) -> str:
    """A name with slashes, as paths have them.

    Example:
      >>> plain('features.0.weight')
      'features/0/weight'
    """
    return name.replace(".", "/")


def turned(name: str, value: Any, channels: int = 1) -> np.ndarray:
    r"""A leaf in Flax's layout: dense kernels are `[in, out]`, convolutions `[height, width, in, out]`.

    What is called `weight` is taken for PyTorch's, `[out, in]` and `[out, in, height, width]`; all else stays.

    Args:
      name: of the leaf, as it was saved.
      value: the leaf.
      channels: C of the maps that enter flattened; their order then changes too, from C, H, W to H, W, C.

    Example:
      >>> turned('fc.weight', np.arange(4).reshape(1, 4), channels=2).tolist()
      [[0], [2], [1], [3]]
      >>> turned('conv.weight', np.zeros((8, 3, 5, 5))).shape
      (5, 5, 3, 8)
    """
    array = np.asarray(value)
    if plain(name).split("/")[-1] != "weight" or array.ndim < 2:
        return array
    if array.ndim == 2:
        rows = array.T.reshape(channels, -1, len(array))
        return np.ascontiguousarray(rows.transpose(1, 0, 2).reshape(-1, len(array)))
    return np.ascontiguousarray(array.transpose(*range(2, array.ndim), 1, 0))


def flattened(path: str, shape: Sequence[int], inputs: Sequence[int], wiring: Sequence[Wire]) -> int:
    """C of the maps that a network flattens before a dense kernel; 1 where it flattens none.

    Args:
      path: of the kernel.
      shape: of the kernel.
      inputs: shape of one example.
      wiring: of the network.

    Example:
      >>> flattened('dense_0/kernel', (32, 16), (8, 8, 3), [Wire('dense_0/kernel', 'conv', 'dense_0', repeat=4)])
      8
      >>> flattened('dense_0/kernel', (192, 16), (8, 8, 3), [])
      3
    """
    repeat = next((wire.repeat for wire in wiring if wire.path == path), 1)
    if len(shape) != 2:
        return 1
    if repeat > 1:
        return shape[0] // repeat
    return inputs[-1] if len(inputs) == 3 and shape[0] == int(np.prod(inputs)) else 1


def renamed(
    given: Mapping[str, Any],
    names: Mapping[str, str],
    wanted: Mapping[str, Sequence[int]],
    inputs: Sequence[int],
    wiring: Sequence[Wire],
) -> dict[str, Any]:
    """Leaves by a network's own paths and in its layout; those that have its paths already stay as they are.

    Args:
      given: `{name: array}`.
      names: `{given name: leaf path}`; what it does not name is left out.
      wanted: `{leaf path: shape}`.
      inputs: shape of one example of the network.
      wiring: of the network.

    Raises:
      ValueError: a name or a path that there is not; a dense kernel that seems to come after maps flattened in another
        order, in a network that does not tell.

    Example:
      >>> renamed({'fc.weight': np.ones((2, 4)), 'head/bias': 3}, {'fc.weight': 'head/kernel'}, {'head/kernel': (4, 2),
      ...         'head/bias': (2,)}, (4,), [])['head/kernel'].shape
      (4, 2)
    """
    leaves, moved, found = {plain(name): value for name, value in given.items()}, set(map(plain, names)), {}
    weights = [np.shape(value) for name, value in leaves.items() if name.endswith("/weight")]
    fan_outs, maps = {shape[0] for shape in weights if len(shape) > 1}, any(len(shape) == 4 for shape in weights)
    for name, path in names.items():
        if plain(name) not in leaves:
            raise ValueError(f"names has '{name}', but the given leaves are: {', '.join(given)}.")
        if path not in wanted:
            raise ValueError(f"names has '{path}' for '{name}', but the network's leaves are: {', '.join(wanted)}.")
        if path in found:
            raise ValueError(f"names gives the leaf '{path}' twice, once as '{name}'. Leave one of them out.")
        value, shape = leaves[plain(name)], np.shape(leaves[plain(name)])
        dense = plain(name).endswith("/weight") and len(shape) == 2
        if dense and maps and not wiring and shape[1] not in fan_outs:
            raise ValueError(
                f"'{name}' of shape {shape} seems to read flattened maps, in PyTorch's order C, H, W, and the network "
                f"does not tell how many. Leave it out of names, and give '{path}' in the order H, W, C: "
                f"weight.reshape(-1, C, H, W).transpose(2, 3, 1, 0).reshape({tuple(wanted[path])})."
            )
        found[path] = turned(name, value, flattened(path, shape[::-1], inputs, wiring))
    return {**{name: value for name, value in given.items() if name in wanted and name not in moved}, **found}


def suggested(given: Mapping[str, Any], wanted: Mapping[str, Sequence[int]]) -> dict[str, str]:
    """Names that would fit: for each layer the first of the given ones, in order, that has its leaves by shape.

    Layers of the same shapes are taken in the order of their names; look whether that is right.

    Args:
      given: `{name: array}`, PyTorch's or Flax's.
      wanted: `{leaf path: shape}`, a collection's name first.

    Returns:
      `{given name: leaf path}`; layers that nothing fits are left out.

    Example:
      >>> given = {'fc2.weight': np.zeros((2, 4)), 'fc2.bias': np.zeros(2), 'fc1.weight': np.zeros((4, 9))}
      >>> suggested(given, {'dense_0/kernel': (9, 4), 'head/bias': (2,), 'head/kernel': (4, 2)})
      {'fc1.weight': 'dense_0/kernel', 'fc2.bias': 'head/bias', 'fc2.weight': 'head/kernel'}
    """
    layers: dict[str, dict[str, tuple[str, tuple[int, ...]]]] = {}
    for name, value in given.items():
        layer, _, leaf = plain(name).rpartition("/")
        array = np.asarray(value)
        if leaf == "weight" and array.ndim > 1:
            leaf, array = "kernel", turned(name, array)
        layers.setdefault(layer, {})[TORCH.get(leaf, leaf)] = (name, array.shape)
    own: dict[str, dict[str, tuple[str, tuple[int, ...]]]] = {}
    modules = {path.rpartition("/")[0] for path in wanted}
    for path, shape in wanted.items():
        module, _, leaf = path.rpartition("/")
        inner = module.partition("/")[2]  # of a collection, whose name comes first
        own.setdefault(inner if inner in modules else module, {})[leaf] = (path, tuple(shape))
    found, left = {}, sorted(layers, key=_order)
    for layer in sorted(own, key=_order):
        shapes = {leaf: shape for leaf, (_, shape) in own[layer].items()}
        fits = lambda name, shapes=shapes: all(
            leaf in layers[name] and layers[name][leaf][1] == shape for leaf, shape in shapes.items()
        )
        chosen = next((name for name in left if fits(name)), None)
        if chosen is not None:
            left.remove(chosen)
            found.update({layers[chosen][leaf][0]: path for leaf, (path, _) in own[layer].items()})
    return found


def _order(name: str) -> list[tuple[int, str]]:
    """By numbers where names have them: `layer10` after `layer2`."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"([0-9]+)", name)]
