"""Hard parameter sharing: shared lower layers, each task its own upper layers."""

from __future__ import annotations

from cljax.methods.common import check_network, plain
from cljax.networks.own_layers import own_last_layers
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
      >>> from cljax.methods import hard_sharing
      >>> hard_sharing(networks.mlp((8, 8, 1), 2, hidden=(4, 4))).per_task
      ('dense_1/bias', 'dense_1/kernel', 'head/bias', 'head/kernel')

    Reference: the baseline HPS of Lee et al., Learning Shared Knowledge for Deep Lifelong Learning using
    Deconvolutional Networks, 2019, section 4.1.
    """
    check_network(network)
    own_layers = whole("hard_sharing's own_layers", own_layers, least=1)
    return plain("hard_sharing", own_last_layers(network, own_layers))
