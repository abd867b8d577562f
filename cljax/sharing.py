"""The old name of `cljax.ownership.usage`."""

from cljax.ownership.usage import *  # noqa: F403
