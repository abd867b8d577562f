"""Joint training: the examples of all tasks seen so far, each with its own head. The upper bound of most papers."""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp

from cljax import losses
from cljax.methods.common import (
    forward,
    mean,
    one_head_labels,
    outputs_of,
    plain,
    require_own_leaves,
    seen_tasks,
    update_masks,
)
from cljax.numbers import check_option
from cljax.task_params import flatten_heads
from cljax.types import Array, Batch, Clock, Learner, Method, Network, Tree, single_label_of

Sampling = Literal["pooled", "balanced"]
Scope = Literal["per_task", "concatenated"]


def joint(network: Network, *, sampling: Sampling = "pooled", scope: Scope = "per_task") -> Method:
    r"""Joint training: at task t, cross-entropy on the examples of tasks 0 to t, each by its own task's leaves.

    $$ \theta \leftarrow \arg\min_\theta \mathbb{E}_{(x, y, s) \sim D_0 \cup \dots \cup D_t}
    \left[ -\log \mathrm{softmax}(z_s(x))_y \right] $$

    It keeps all data, so it is no continual learner but what one is compared to. In the class-incremental scenario it
    is that with scope 'concatenated' only: softmaxes over one task's classes each never learn to tell tasks apart (ten
    digits in five tasks: 42 to 64% instead of 97%), and over a single class learn nothing.

    Args:
      network: an ordinary network. All `per_task` leaves stay stacked; those of all tasks seen train, others keep their
        bits.
      sampling: 'pooled', each epoch has all examples of all tasks once; or 'balanced', as many of each task as the
        current task has, drawn anew each epoch, in batches of equal shares, so that no task outweighs another.
      scope: a softmax over the classes of each example's own task, for a task that is known at test time; or one over
        all classes seen ('concatenated'), for the class-incremental scenario. In the command:
        `--set joint.scope=concatenated`.

    Returns:
      The method.

    Raises:
      ValueError: for an unknown option; for 'concatenated', where nothing belongs to a task.

    Example:
      >>> from cljax import networks
      >>> joint(networks.mlp((8, 8, 1), 2)).train_on
      'seen'

    Reference: the baseline "Joint Training" of Li & Hoiem, Learning without Forgetting, 2016, section 2; 'balanced' by
    section 3, implementation details. There, batches of one task each alternate.
    """
    check_option("joint's sampling", sampling, Sampling)
    check_option("joint's scope", scope, Scope)
    base = plain("joint", network)
    if scope == "concatenated":
        require_own_leaves("joint with one softmax over all tasks' heads", network)

    def loss(params: Tree, learner: Learner, clock: Clock, batch: Batch, key: Array | None):
        output = forward(network, base.view, params, learner, clock, batch.inputs, key=key)
        if scope == "concatenated":
            if clock.single_label is not None:
                raise ValueError(
                    "Some tasks are single-label, others are not, so that no one softmax is over the classes of all: "
                    "leave joint's scope at 'per_task'."
                )
            labels, classes = one_head_labels(batch, clock), outputs_of(clock, seen_tasks(learner, clock))
            each = losses.cross_entropy(flatten_heads(output.logits), labels, classes=classes)
        else:
            logits = output.logits
            if logits.ndim == 3:
                logits = jnp.take_along_axis(logits, batch.tasks[None, :, None], axis=0)[0]
            classes, single = clock.classes[batch.tasks], single_label_of(clock, batch.tasks)
            each = losses.cross_entropy(logits, batch.labels, classes=classes, single_label=single)
        return mean(each, batch.weights), (output, {})

    return base._replace(
        loss=loss,
        update_mask=lambda learner, clock: update_masks(learner, seen_tasks(learner, clock), True),
        stacked=network.per_task,
        train_on="balanced" if sampling == "balanced" else "seen",
    )
