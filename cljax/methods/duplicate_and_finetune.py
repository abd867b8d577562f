"""Duplicating and fine-tuning: each task gets a copy of an earlier task's whole network, and trains it."""

from __future__ import annotations

from cljax.methods.copy_at_begin import Source, copy_at_begin
from cljax.methods.single_task import single_task
from cljax.types import Method, Network


def duplicate_and_finetune(network: Network, *, source: Source = "first") -> Method:
    r"""Duplicating and fine-tuning: a network for each task, which begins as a copy of an earlier task's.

    $$ \theta_t \leftarrow \arg\min_\theta \mathbb{E}_{(x, y) \sim D_t} \left[ -\log \mathrm{softmax}(z(x; \theta))_y
    \right] \quad \text{from} \quad \theta_0 \;\; (\text{or } \theta_{t-1}) $$
    Only the head begins anew. Nothing is forgotten, at the price of a network a task, in storage and, where a task is
    not told, in time.

    Args:
      network: an ordinary network; its `per_task` leaves are the head, which is not copied.
      source: whose parameters and normalisation statistics a new task begins with: the first task's, or the last one's
        before it.

    Returns:
      The method.

    Raises:
      ValueError: for an unknown source.

    Example:
      >>> from cljax import networks
      >>> from cljax.methods import duplicate_and_finetune
      >>> duplicate_and_finetune(networks.mlp((8, 8, 1), 2)).zero_forgetting
      True

    Reference: the baseline of Li and Hoiem, Learning without Forgetting, 2016, section 1 and figure 1.
    """
    method = single_task(network)._replace(name="duplicate_and_finetune")
    return copy_at_begin(method, source=source, drawn=network.per_task)
