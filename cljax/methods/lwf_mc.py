"""LwF-MC: class-incremental learning with sigmoid outputs, old ones distilled; iCaRL without exemplars."""

from __future__ import annotations

from cljax import losses
from cljax.methods.common import (
    flatten_heads,
    forward,
    mean,
    outputs_of,
    place_labels,
    plain,
    require_own_leaves,
    seen_tasks,
    update_masks,
)
from cljax.methods.teacher import old_tasks, renew_teacher, snapshot, teach
from cljax.types import Array, Batch, Clock, Learner, Method, Network, Sizes, Tree


def lwf_mc(network: Network, *, push_unseen: bool = True) -> Method:
    r"""LwF-MC: one growing head of sigmoid outputs, new classes learned by label, old ones from the teacher.

    $$ L = -\sum_k \tilde y_k \log \sigma(z_k) + (1 - \tilde y_k) \log (1 - \sigma(z_k)), \qquad
    \tilde y_k = \begin{cases} \sigma(t_k) & k \text{ an old class} \\ y_k & \text{else} \end{cases} $$
    with the logits t of the teacher, the network as it was just before the visit, in evaluation mode. There is neither
    temperature nor strength. The sum over classes is a sum: the official code takes a mean, so that its rate of 2.0 for
    100 classes is 0.02 here. The prediction is the largest output of all classes seen (scenario 'class').

    Args:
      network: an ordinary network whose `per_task` leaves are its head: a block of outputs for each task.
      push_unseen: whether outputs of classes not yet seen are pushed to 0, as in the official code, whose head has all
        outputs from the start; if not, they are left out and none of their bits changes.

    Returns:
      The method. Its metrics are `classification` and `distillation`, in nats.

    Raises:
      ValueError: where nothing belongs to a task, so that the head could not grow.

    Example:
      >>> from cljax import networks
      >>> lwf_mc(networks.mlp((8, 8, 1), 2)).stacked
      ('head/kernel', 'head/bias')

    Reference: Rebuffi et al., iCaRL: Incremental Classifier and Representation Learning, 2017, section 4.1 and
    algorithm 3.
    """
    base = plain("lwf_mc", network)
    require_own_leaves("lwf_mc", network)

    def init(key: Array, sizes: Sizes) -> tuple[Tree, Tree, Tree, dict[str, Array]]:
        params, collections, _, _ = base.init(key, sizes)
        return params, collections, {"teacher": snapshot(params, collections)}, {}

    def loss(params: Tree, learner: Learner, clock: Clock, batch: Batch, key: Array | None):
        old, learned = old_tasks(learner, clock), trained(learner, clock)
        student = forward(network, base.view, params, learner, clock, batch.inputs, key=key)
        teacher_logits = teach(network, learner, clock, batch.inputs)
        logits, teacher_logits = flatten_heads(student.logits), flatten_heads(teacher_logits)
        targets = place_labels(batch, clock).astype(logits.dtype)
        new = outputs_of(clock, learned & ~old)
        classification = mean(losses.cross_entropy(logits, targets, classes=new), batch.weights)
        each = losses.sigmoid_distillation(logits, teacher_logits, classes=outputs_of(clock, old))
        distillation = mean(each, batch.weights)
        metrics = {"classification": classification, "distillation": distillation}
        return classification + distillation, (student, metrics)

    def trained(learner: Learner, clock: Clock) -> Array:
        return seen_tasks(learner, clock) | push_unseen

    return base._replace(
        init=init,
        begin_task=renew_teacher,
        loss=loss,
        update_mask=lambda learner, clock: update_masks(learner, trained(learner, clock), True),
        end_phase=renew_teacher,
        stacked=network.per_task,
    )
