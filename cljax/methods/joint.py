"""Joint training: the examples of all tasks seen so far, each with its own head. The upper bound of most papers."""

from __future__ import annotations

from typing import Literal, get_args

import jax.numpy as jnp

from cljax import losses
from cljax.methods.finetune import apply_kept, finetune, mean
from cljax.types import Array, Batch, Clock, Learner, Method, Network, Tree, single_label_of

Sampling = Literal["pooled", "balanced"]


def joint(network: Network, *, sampling: Sampling = "pooled") -> Method:
    r"""Joint training: at task t, cross-entropy on the examples of tasks 0 to t, each by its own task's leaves.

    $$ \theta \leftarrow \arg\min_\theta \mathbb{E}_{(x, y, s) \sim D_0 \cup \dots \cup D_t}
    \left[ -\log \mathrm{softmax}(z_s(x))_y \right] $$

    It keeps all data, so it is no continual learner but what one is compared to.

    Args:
      network: an ordinary network. All `per_task` leaves stay stacked and train whole.
      sampling: 'pooled', each epoch has all examples of all tasks once; or 'balanced', as many of each task as the
        current task has, drawn anew each epoch, in batches of equal shares, so that no task outweighs another.

    Returns:
      The method.

    Raises:
      ValueError: for an unknown sampling.

    Example:
      >>> from cljax import networks
      >>> joint(networks.mlp((8, 8, 1), 2)).draws_from
      'seen'

    Reference: the baseline "Joint Training" of Li & Hoiem, Learning without Forgetting, 2016, section 2; 'balanced' by
    section 3, implementation details. There, batches of one task each alternate.
    """
    if sampling not in get_args(Sampling):
        raise ValueError(f"joint's sampling is {sampling!r}, but must be one of {', '.join(get_args(Sampling))}.")

    def loss(params: Tree, learner: Learner, clock: Clock, batch: Batch, key: Array | None):
        del clock
        output = apply_kept(network, learner, params, batch.inputs, key=key)
        chosen = jnp.take_along_axis(output.logits, batch.tasks[None, :, None], axis=0)[0]
        classes = learner.classes[batch.tasks]
        single = single_label_of(learner, batch.tasks)
        each = losses.cross_entropy(chosen, batch.labels, classes=classes, single_label=single)
        value = mean(each, batch.weights)
        return value, (output.collections, {})

    draws_from = "balanced" if sampling == "balanced" else "seen"
    return finetune(network)._replace(name="joint", loss=loss, keeps_rows=network.per_task, draws_from=draws_from)
