"""Networks whose last layers belong to a task."""

from __future__ import annotations

from cljax import task_params
from cljax.numbers import whole
from cljax.types import Network


def own_last_layers(network: Network, layers: int) -> Network:
    """The network, its last hidden layers belonging to a task as its head does, their norms' statistics included.

    Args:
      network: with `wiring`, in the order of its layers.
      layers: how many layers below the head, counted by kernels.

    Returns:
      The network with more `per_task` leaves, in the order of its leaves.

    Raises:
      ValueError: where the network has no wiring or too few layers.

    Example:
      >>> from cljax import networks
      >>> from cljax.networks import own_last_layers
      >>> own_last_layers(networks.mlp((8, 8, 1), 2, hidden=(4, 4)), 1).per_task
      ('dense_1/bias', 'dense_1/kernel', 'head/bias', 'head/kernel')
    """
    layers = whole("layers", layers)
    hidden = [wire for wire in network.wiring if wire.path.endswith("kernel") and wire.outputs is not None]
    if not 1 <= layers < len(hidden):
        cure = (
            f"Choose from 1 to {len(hidden) - 1}, or a deeper network."
            if len(hidden) > 1
            else ("Take a deeper network whose gates are known.")
        )
        raise ValueError(
            f"The last {layers} hidden layers cannot be a task's own: the network's wiring lists {len(hidden)}, of "
            f"which at least one must stay shared. {cure}"
        )
    first = network.wiring.index(hidden[-layers])
    own = {wire.path for wire in network.wiring[first:] if wire.outputs is not None} | set(network.per_task)
    params, collections = network.shapes
    statistics = {
        path
        for path in task_params.leaf_paths(collections)
        if any(_module(path).endswith(_module(name)) for name in own) and not path.startswith(("gates/", "frozen/"))
    }
    every = task_params.leaf_paths(params) + task_params.leaf_paths(collections)
    return network._replace(per_task=tuple(path for path in every if path in own | statistics))


def _module(path: str) -> str:
    """The path of the module a leaf belongs to, with a slash before it."""
    return "/" + path.rpartition("/")[0]
