"""Continual learning as pure JAX functions.

Submodules are imported where they are first used, so that `import cljax` is instant.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cljax import attention as attention
    from cljax import augmentation as augmentation
    from cljax import checkpoints as checkpoints
    from cljax import data as data
    from cljax import files as files
    from cljax import filters as filters
    from cljax import folders as folders
    from cljax import importance as importance
    from cljax import keys as keys
    from cljax import losses as losses
    from cljax import masks as masks
    from cljax import memory as memory
    from cljax import methods as methods
    from cljax import metrics as metrics
    from cljax import networks as networks
    from cljax import numbers as numbers
    from cljax import ownership as ownership
    from cljax import proximal as proximal
    from cljax import references as references
    from cljax import report as report
    from cljax import rows as rows
    from cljax import safetensors as safetensors
    from cljax import sharing as sharing
    from cljax import storage as storage
    from cljax import streams as streams
    from cljax import task_params as task_params
    from cljax import text as text
    from cljax import training as training
    from cljax import transforms as transforms
    from cljax import trees as trees
    from cljax import tucker as tucker
    from cljax import types as types

__version__ = "0.1.0"

__all__ = [
    "attention",
    "augmentation",
    "checkpoints",
    "data",
    "files",
    "filters",
    "folders",
    "importance",
    "keys",
    "losses",
    "masks",
    "memory",
    "methods",
    "metrics",
    "networks",
    "numbers",
    "ownership",
    "proximal",
    "references",
    "report",
    "rows",
    "safetensors",
    "sharing",
    "storage",
    "streams",
    "task_params",
    "text",
    "training",
    "transforms",
    "trees",
    "tucker",
    "types",
]


def __getattr__(name: str) -> Any:
    """Imports a submodule at its first use."""
    if name in __all__:
        return importlib.import_module(f"cljax.{name}")
    raise AttributeError(f"module 'cljax' has no attribute {name!r}")


def __dir__() -> list[str]:
    """The submodules and the version."""
    return [*__all__, "__version__"]
