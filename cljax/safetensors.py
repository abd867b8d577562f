"""The old name of `cljax.storage.safetensors`."""

from cljax.storage.safetensors import *  # noqa: F403
