"""Joint training: the examples of all tasks seen so far. The upper bound of most papers."""

from __future__ import annotations

from typing import Literal

from cljax.methods.common import Scope, all_outputs, forward, plain, seen_tasks, task_loss, update_masks
from cljax.numbers import check_option
from cljax.types import Array, Batch, Clock, Learner, Method, Network, Tree

Sampling = Literal["pooled", "balanced"]


def joint(network: Network, *, sampling: Sampling = "pooled", scope: Scope = "auto") -> Method:
    r"""Joint training: at task t, cross-entropy on the examples of tasks 0 to t, by their tasks' leaves.

    $$ \theta \leftarrow \arg\min_\theta \mathbb{E}_{(x, y, s) \sim D_0 \cup \dots \cup D_t}
    \left[ -\log \mathrm{softmax}(z_s(x))_y \right] $$
    In the class-incremental scenario the softmax is over the outputs of all tasks seen, $[z_0, \dots, z_t]$: softmaxes
    over one task's classes each never learn to tell tasks apart (ten digits in five tasks: 42 to 64% instead of 97%),
    and over a single class learn nothing.

    It keeps all data, so it is no continual learner but what one is compared to.

    Args:
      network: an ordinary network. All `per_task` leaves stay stacked; those of all tasks seen train, others keep their
        bits.
      sampling: 'pooled', each epoch has all examples of all tasks once; or 'balanced', as many of each task as the
        current task has, drawn anew each epoch, in batches of equal shares, so that no task outweighs another.
      scope: a softmax over the classes of each example's own task ('per_task'), or one over all classes seen
        ('concatenated'). 'auto': the second where the scenario is class-incremental, else the first.

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
    base = plain("joint", network, scope=scope)

    def loss(params: Tree, learner: Learner, clock: Clock, batch: Batch, key: Array | None):
        output = forward(network, base.view, params, learner, clock, batch.inputs, key=key)
        seen = seen_tasks(learner, clock) if all_outputs(scope, clock, output.logits) else None
        return task_loss(output.logits, clock, batch, seen), (output, {})

    return base._replace(
        loss=loss,
        update_mask=lambda learner, clock: update_masks(learner, seen_tasks(learner, clock), True),
        stacked=network.per_task,
        train_on="balanced" if sampling == "balanced" else "seen",
    )
