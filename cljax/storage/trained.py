"""Trained parameters in what other programs save: Flax variables, train states, NNX states, managers' folders."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from cljax import files
from cljax.storage import safetensors

BESIDE = ("opt_state", "method_state", "hyper", "memory", "classes", "rows", "single_label", "metrics", "ema_params")
"""What stands beside parameters and is no collection; besides, whatever is a single leaf, such as `step`."""


PICKLES = (".pt", ".pth", ".pkl", ".pickle")


def find(place: pathlib.Path) -> pathlib.Path:
    """The folder of a tree of arrays: itself, or in a manager's step, the newest one in the folder of its steps.

    Raises:
      ValueError: there is none, or several that might be meant.
    """
    if _is_tree(place):
        return place
    folders = [entry for entry in place.iterdir() if entry.is_dir() and "orbax-checkpoint-tmp" not in entry.name]
    trees = [entry for entry in folders if _is_tree(entry)]
    for name in ("default", "state", "params", "model"):
        if (chosen := place / name) in trees:
            return chosen
    steps = [(int(step[1]), entry) for entry in folders if (step := re.fullmatch(r"(?:.*_)?([0-9]{1,18})", entry.name))]
    if steps and not [entry for entry in trees if entry not in dict(steps).values()]:
        return find(max(steps)[1])
    if len(trees) == 1:
        return trees[0]
    what = "has several" if trees else "has no"
    raise ValueError(f"it {what} folders of parameters{': name one of ' if trees else ''}{', '.join(map(str, trees))}")


def read(place: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of a file, safetensors or NumPy's `.npz`, by name, dots in names being slashes here.

    Raises:
      ValueError: it is neither, or damaged.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     np.savez(pathlib.Path(folder, 'a.npz'), **{'dense.bias': np.ones(2)})
      ...     read(pathlib.Path(folder, 'a.npz'))
      {'dense/bias': array([1., 1.])}
    """
    if place.suffix in PICKLES:
        raise ValueError(
            "it is a pickle, which runs what is in it: write numpy.savez('params.npz', **{name: leaf.numpy() for name, "
            "leaf in model.state_dict().items()}) where it was made"
        )
    with files.open_regular(place) as file:
        if file.read(4) != b"PK\x03\x04":
            return safetensors.read(place)
        file.seek(0)
        with np.load(file, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files}
    if not all(isinstance(value, np.ndarray) for value in found.values()):
        raise ValueError("it is a zip file, but no .npz")
    named = {name.replace(".", "/"): value for name, value in found.items()}
    if len(named) < len(found):
        raise ValueError("two of its arrays have one name, where dots are slashes")
    return named


def parameters(leaves: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Params, and collections with the collection's name first, of whatever they came in.

    Args:
      leaves: by path: of params; or of what has them under `params` (Flax variables, also in one another, a
        `TrainState`, a learner), be that one of several things saved together; or of an `nnx.State`, whose leaves are
        below `value` or not, and whose random streams are left out.

    Raises:
      ValueError: several things have `params`.

    Example:
      >>> parameters({'params/params/head/bias': np.ones(1), 'params/batch_stats/norm/mean': np.ones(1), 'step': 3})
      {'head/bias': array([1.]), 'batch_stats/norm/mean': array([1.])}
    """
    leaves = _without_streams(leaves)
    paths = [name.split("/") for name in leaves]
    depth = min((path.index("params") for path in paths if "params" in path[:-1]), default=0)
    owners = {"".join(f"{part}/" for part in path[:depth]) for path in paths if path[depth:-1][:1] == ["params"]}
    if len(owners) > 1:
        raise ValueError(f"it has parameters in several places: {', '.join(sorted(owners))}")
    if not owners:
        return _arrays(leaves.items())
    [owner] = owners
    leaves = {name.removeprefix(owner): leaf for name, leaf in leaves.items() if name.startswith(owner)}
    inner = {name.removeprefix("params/"): leaf for name, leaf in leaves.items() if name.startswith("params/")}
    if any(name.startswith("params/") for name in inner):
        return parameters(inner)
    others = {name: leaf for name, leaf in leaves.items() if not name.startswith("params/")}
    kept = {name: leaf for name, leaf in others.items() if "/" in name and name.split("/")[0] not in BESIDE}
    return _arrays([*inner.items(), *((name.removeprefix("collections/"), leaf) for name, leaf in kept.items())])


def _arrays(leaves: Iterable[tuple[str, Any]]) -> dict[str, np.ndarray]:
    """NumPy arrays by path; where all paths end with `value`, as NNX has it, by what is before."""
    pairs = list(leaves)
    if all(name.endswith("/value") for name, _ in pairs):
        pairs = [(name.removesuffix("/value"), leaf) for name, leaf in pairs]
    found = {name: np.asarray(leaf) for name, leaf in pairs}
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"two leaves have the path '{next(name for name in names if names.count(name) > 1)}'")
    return found


def _is_tree(place: pathlib.Path) -> bool:
    """Whether Orbax has written a tree of arrays to a folder."""
    return any((place / name).is_file() for name in ("_METADATA", "manifest.ocdbt", "checkpoint"))


def _without_streams(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The leaves but for the random streams of NNX, each of which is a key and a count."""
    parts = {name: name.removesuffix("/value").rpartition("/") for name in leaves}
    ends: dict[str, set[str]] = {}
    for owner, _, last in parts.values():
        ends.setdefault(owner, set()).add(last)
    return {name: leaf for name, leaf in leaves.items() if ends[parts[name][0]] != {"key", "count"}}
