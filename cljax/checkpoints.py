"""The old name of `cljax.storage.checkpoints`."""

from cljax.storage.checkpoints import *  # noqa: F403
