"""One growing head: the heads of all tasks as one, for classes whose task is not known."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from cljax import losses
from cljax.methods.common import (
    forward,
    mean,
    one_head_labels,
    outputs_of,
    own_task,
    place_labels,
    plain,
    require_own_leaves,
    seen_tasks,
    update_masks,
)
from cljax.numbers import check_option, flag
from cljax.task_params import flatten_heads
from cljax.types import Array, Batch, Clock, Learner, Method, Network, Tree

Classification = Literal["bce_new", "bce_all", "ce_new", "ce_all"]


def growing_head(name: str, network: Network, *, classification: Classification, push_unseen: bool = False) -> Method:
    r"""Fine-tuning of one growing head, which has a block of outputs for each task.

    | classification | classes | label |
    |---|---|---|
    | `bce_new` | of the current task | yes or no of each: the sum of binary cross-entropies |
    | `bce_all` | all seen | the same |
    | `ce_new` | of the example's task | one of them: the cross-entropy of a softmax |
    | `ce_all` | all seen | the same |

    Float labels (multi-label) are yes or no of each class in every row.

    Args:
      name: the method's.
      network: an ordinary network whose `per_task` leaves are its head; they are kept stacked.
      classification: a row of the table.
      push_unseen: whether the outputs of tasks not yet seen are among the classes too, so that they learn "no"; if not,
        none of their bits changes.

    Returns:
      The method. Its metric is `classification`, nats.

    Raises:
      ValueError: for an unknown option; where nothing belongs to a task, so that the head could not grow.

    Example:
      >>> from cljax import networks
      >>> growing_head('mine', networks.mlp((8, 8, 1), 2), classification='ce_all').stacked
      ('head/kernel', 'head/bias')
    """
    check_option(f"{name}'s classification", classification, Classification)
    push_unseen = flag(f"{name}'s push_unseen", push_unseen)
    base = plain(name, network)
    require_own_leaves(name, network)
    labels_of = place_labels if classification.startswith("bce") else one_head_labels

    def trained(learner: Learner, clock: Clock) -> Array:
        return seen_tasks(learner, clock) | push_unseen

    def classes_of(learner: Learner, clock: Clock, batch: Batch) -> Array:
        if classification == "ce_new":  # an exemplar of an older task is one of that task's classes
            own = jax.nn.one_hot(batch.tasks, learner.rows.tasks, dtype=jnp.bool_)
            return (own[:, :, None] & clock.classes[None]).reshape(len(own), -1)
        new = own_task(learner, clock) | ~seen_tasks(learner, clock)
        return outputs_of(clock, trained(learner, clock) & (new | (classification != "bce_new")))

    def loss(params: Tree, learner: Learner, clock: Clock, batch: Batch, key: Array | None):
        output = forward(network, base.view, params, learner, clock, batch.inputs, key=key)
        logits, labels = flatten_heads(output.logits), labels_of(batch, clock)
        each = losses.cross_entropy(logits, labels, classes=classes_of(learner, clock, batch))
        value = mean(each, batch.weights)
        return value, (output, {"classification": value})

    return base._replace(
        loss=loss,
        update_mask=lambda learner, clock: update_masks(learner, trained(learner, clock), True),
        stacked=network.per_task,
    )
