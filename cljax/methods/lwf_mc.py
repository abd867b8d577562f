"""LwF-MC: class-incremental learning with sigmoid outputs, old ones distilled; iCaRL without exemplars."""

from __future__ import annotations

from cljax.methods.combine import combine
from cljax.methods.distilling import old_scores
from cljax.methods.growing_head import growing_head
from cljax.types import Method, Network, Term


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
      >>> from cljax.methods import lwf_mc
      >>> lwf_mc(networks.mlp((8, 8, 1), 2)).stacked
      ('head/kernel', 'head/bias')

    Reference: Rebuffi et al., iCaRL: Incremental Classifier and Representation Learning, 2017, section 4.1 and
    algorithm 3.
    """
    base = growing_head("lwf_mc", network, classification="bce_new", push_unseen=push_unseen)
    return combine(base, Term("lwf_mc", loss=old_scores, all_heads=True, teacher=True), name="lwf_mc")
