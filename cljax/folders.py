"""The old name of `cljax.storage.folders`."""

from cljax.storage.folders import *  # noqa: F403
