"""The file that an experiment leaves: its results, with what they were found on."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import pathlib
import platform
import shlex
import sys
from typing import Any

import jax

from cljax import report
from cljax.files import write_json


def digest(*decides: Any) -> str:
    """Of all that a result depends on, as JSON has it: for the name of a file that is read instead of a run.

    Example:
      >>> digest({"learning_rate": 0.1}, "lwf") == digest({"learning_rate": 0.2}, "lwf")
      False
    """
    return hashlib.sha256(json.dumps(report.plain(list(decides)), sort_keys=True).encode()).hexdigest()[:12]


def save(module: str, name: str, result: dict[str, Any], config: Any) -> pathlib.Path:
    """Writes results as JSON, with device, versions, configuration and command, and says where.

    Args:
      module: the experiment's, such as `'experiments.benchmark_tasks'`.
      name: of the file; one of a benchmark ends in `_benchmark`, to which the kind of device is added.
      result: as JSON has it.
      config: a dataclass, its `out` the folder.
    """
    device = jax.devices()[0]
    packages = ("cljax", "jax", "flax", "optax", "orbax-checkpoint", "numpy")
    versions = {package: importlib.metadata.version(package) for package in packages}
    facts = {
        "device": device.device_kind,
        "versions": {"python": platform.python_version(), **versions},
        "config": dataclasses.asdict(config),
        "command": shlex.join(["python", "-m", module, *sys.argv[1:]]),
    }
    kind = "cpu" if device.platform == "cpu" else "gpu"
    path = pathlib.Path(config.out) / f"{name}{f'_{kind}' if name.endswith('_benchmark') else ''}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, report.plain({**result, **facts}))
    print(f"written: {path}")
    return path
