"""The old name of `cljax.task_params`."""

from cljax.task_params import *  # noqa: F403
