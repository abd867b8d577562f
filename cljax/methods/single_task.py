"""Single-task learning: a network of its own for each task, no transfer and no forgetting."""

from __future__ import annotations

from cljax import task_params
from cljax.methods.common import plain
from cljax.types import Method, Network


def single_task(network: Network) -> Method:
    """Single-task learning: every leaf belongs to a task, normalisation statistics included.

    Args:
      network: an ordinary network.

    Returns:
      The method.

    Example:
      >>> from cljax import networks
      >>> from cljax.methods import single_task
      >>> len(single_task(networks.mlp((8, 8, 1), 2, hidden=(4,))).per_task)
      5

    Reference: the baseline STL of Lee et al., Learning Shared Knowledge for Deep Lifelong Learning using
    Deconvolutional Networks, 2019, section 4.1.
    """
    base = plain("single_task", network)
    params, collections = network.shapes
    every = task_params.leaf_paths(params) + task_params.leaf_paths(collections)
    return base._replace(per_task=every, zero_forgetting=True)
