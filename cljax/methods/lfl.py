"""Less-forgetting learning: the features that enter the head are kept, and so is the boundary of a shared head."""

from __future__ import annotations

from cljax import losses, task_params
from cljax.methods.combine import combine
from cljax.methods.common import leaves_read, mean
from cljax.methods.distilling import own_output
from cljax.methods.finetune import finetune
from cljax.methods.terms import numbers, strength_of
from cljax.numbers import real
from cljax.types import Batch, Clock, Learner, Method, Network, Output, Teacher, Term


def features(*, strength: float = 0.05) -> Term:
    r"""Less-forgetting learning's term: keeps the features that enter the head, and the boundary of a shared head.

    $$ \frac{\lambda_e}{2} \| f(x; \theta) - f(x; \theta^*) \|_2^2 $$
    the mean over examples, with the features before the head's dropout: the student's of its forward pass in training,
    the teacher's in evaluation mode, without dropout and by stored normalisation statistics. Where one head serves all
    tasks, no bit of it moves after the first task.

    Args:
      strength: lambda_e, the number `strength`.

    Returns:
      The term `lfl`; metric `features`, half the squared distance.

    Raises:
      ValueError: for a number out of range.

    Example:
      >>> from cljax.methods import features
      >>> features().name
      'lfl'

    Reference: Jung et al., Less-Forgetting Learning in Deep Neural Networks, 2016, equation 3.
    """
    strength = real("lfl's strength", strength, least=0)

    def loss(params, learner: Learner, clock: Clock, batch: Batch, key, student: Output, teacher: Teacher):
        own, taught = (own_output(output, clock).features for output in (student, teacher.respond(batch)))
        kept = 0.5 * mean(losses.feature_distillation(own, taught), batch.weights)
        return strength_of(learner, clock, kept) * kept, {"features": kept}

    init = numbers(strength=strength)
    return Term("lfl", init, loss=loss, teacher=True, strengths=("strength",), freezes=boundary)


def lfl(network: Network, *, strength: float = 0.05) -> Method:
    r"""Less-forgetting learning (LfL): fine-tuning that keeps the features of the examples at hand.

    $$ L = -\log \mathrm{softmax}(z_t)_y + \frac{\lambda_e}{2} \| f(x; \theta) - f(x; \theta^*) \|_2^2 $$
    with the features f that enter the head, those of the network just before the visit in evaluation mode. Where one
    head serves all tasks, its boundary stays as the first task has drawn it; heads that belong to a task train with it.

    Args:
      network: an ordinary network.
      strength: lambda_e. Published code sums over a batch where this is its mean.

    Returns:
      The method. Its metrics are `classification` (nats) and `features`, half the mean squared distance.

    Raises:
      ValueError: for a number out of range.

    Example:
      >>> from cljax import networks
      >>> from cljax.methods import lfl
      >>> lfl(networks.mlp((8, 8, 1), 2)).name
      'lfl'

    Reference: Jung et al., Less-Forgetting Learning in Deep Neural Networks, 2016, section 3 and algorithm 1.
    """
    return combine(finetune(network), features(strength=strength), name="lfl")


def boundary(network: Network) -> tuple[str, ...]:
    """The leaves of the head: those of params that the features do not depend on."""
    moves = leaves_read(network, lambda output: output.features)
    return tuple(path for path in task_params.leaf_paths(network.shapes[0]) if path not in moves)
