"""The old name of `cljax.ownership.masks`."""

from cljax.ownership.masks import *  # noqa: F403
