"""Hard parameter sharing: shared lower layers, each task its own upper layers."""

from __future__ import annotations

import jax

from cljax import rows
from cljax.methods.finetune import finetune
from cljax.numbers import whole
from cljax.types import Method, Network


def hard_sharing(network: Network, *, own_layers: int = 1) -> Method:
    """Hard parameter sharing: besides the head, the last hidden layers belong to a task; all below is shared.

    Trained on one task after another it is fine-tuning with more task-specific layers; with a multi-task schedule it
    is the multi-task baseline of the same name.

    Args:
      network: a network with `wiring`, in the order of its layers.
      own_layers: how many layers below the head belong to a task, counted by kernels.

    Returns:
      The method.

    Raises:
      ValueError: where the network has no wiring or too few layers.

    Example:
      >>> from cljax import networks
      >>> hard_sharing(networks.mlp((8, 8, 1), 2, hidden=(4, 4))).per_task
      ('dense_1/bias', 'dense_1/kernel', 'head/bias', 'head/kernel')

    Reference: the baseline HPS of Lee et al., Deconvolutional Factorized CNN, 2019, section 5.
    """
    return finetune(network)._replace(name="hard_sharing", per_task=last_layers("hard_sharing", network, own_layers))


def last_layers(method: str, network: Network, own_layers: int) -> tuple[str, ...]:
    """The leaves of the head and of the last hidden layers, their norms' statistics included.

    Args:
      method: whose name an error gives.
      network: a network with `wiring`, in the order of its layers.
      own_layers: how many layers below the head, counted by kernels.

    Returns:
      Leaf paths, in the order of the network's leaves.

    Raises:
      ValueError: where the network has no wiring or too few layers.
    """
    hidden = [wire for wire in network.wiring if wire.path.endswith("kernel") and wire.outputs is not None]
    own_layers = whole(f"{method}'s own_layers", own_layers)
    if not 1 <= own_layers < len(hidden):
        raise ValueError(
            f"{method} gives each task its own last {own_layers} hidden layers, but the network's wiring lists "
            f"{len(hidden)}, of which at least one must stay shared. Choose own_layers from 1 to {len(hidden) - 1}, "
            f"or a deeper network."
        )
    own_gates = {wire.outputs for wire in hidden[-own_layers:]}
    own = {wire.path for wire in network.wiring if wire.outputs in own_gates} | set(network.per_task)
    params, collections = jax.eval_shape(network.init, jax.random.key(0))
    statistics = {
        path
        for path in rows.leaf_paths(collections)
        if any(module_of(path).endswith(module_of(name)) for name in own) and not path.startswith(("gates/", "frozen/"))
    }
    every = rows.leaf_paths(params) + rows.leaf_paths(collections)
    return tuple(path for path in every if path in own | statistics)


def module_of(path: str) -> str:
    """The path of the module a leaf belongs to, with a slash before it."""
    return "/" + path.rpartition("/")[0]
