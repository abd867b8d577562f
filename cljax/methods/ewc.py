"""Elastic weight consolidation: what mattered to earlier tasks is held in place."""

from __future__ import annotations

from typing import Literal

from cljax.methods.combine import combine
from cljax.methods.finetune import finetune
from cljax.methods.measuring import Fisher, fisher_information
from cljax.methods.terms import quadratic, separate_quadratic
from cljax.numbers import check_option
from cljax.types import Method, Network, Term

Penalty = Literal["online", "separate"]


def consolidation(
    *,
    strength: float = 30.0,
    fisher: Fisher = "exact",
    penalty: Penalty = "online",
    decay: float = 1.0,
    chunk: int = 32,
) -> Term:
    r"""Elastic weight consolidation: pulls each shared parameter by its Fisher information for the tasks before.

    $$ \text{online:} \quad \frac{\lambda}{2} \sum_i F_i (\theta_i - \theta^*_i)^2, \quad F \leftarrow \gamma F + F_t;
    \qquad \text{separate:} \quad \frac{\lambda}{2} \sum_{k \ne t} \sum_i F_{k, i} (\theta_i - \theta^*_{k, i})^2 $$

    $F_t$ is the diagonal Fisher information of the task's softmax at the visit's end, the mean over its training
    examples, in evaluation mode. Online, there is one F for all visits, and $\theta^*$ is where the last one ended;
    separate, each task has its own F and its own $\theta^*_k$, which a further visit to it replaces. Labels are single.

    Args:
      strength: lambda, the number `strength`.
      fisher: which quantity; see `cljax.importance.fisher`. 'exact' costs K gradients an example, others one.
      penalty: one for all earlier tasks ('online'), or one each ('separate'), for 2 T times the parameters in memory.
      decay: gamma, in [0, 1], of 'online'; then the number `decay`.
      chunk: how many examples' gradients are held in memory at once; of fisher 'batched', the size of a batch.

    Returns:
      The term `ewc`; state `importance`, and `anchors` where separate, metric `penalty`.

    Raises:
      ValueError: for an unknown word, or a number out of range; for a decay of separate penalties.

    Example:
      >>> from cljax.methods import consolidation
      >>> consolidation(strength=10.0).name
      'ewc'

    Reference: Kirkpatrick et al., Overcoming Catastrophic Forgetting in Neural Networks, 2017, equation 3 and section
    2.1 (separate); Schwarz et al., Progress and Compress, 2018, equations 8 and 9 (online).
    """
    check_option("ewc's penalty", penalty, Penalty)
    measure = fisher_information("ewc", fisher, chunk)
    if penalty == "online":
        return quadratic(strength=strength, measure=measure, decay=decay, name="ewc")
    if decay != 1:
        raise ValueError(f"ewc's decay is {decay}, but separate penalties have none: choose penalty='online'.")
    return separate_quadratic(strength=strength, measure=measure, name="ewc")


def ewc(
    network: Network,
    *,
    strength: float = 30.0,
    fisher: Fisher = "exact",
    penalty: Penalty = "online",
    decay: float = 1.0,
    chunk: int = 32,
) -> Method:
    r"""Elastic weight consolidation (EWC): fine-tuning that holds each shared parameter by its Fisher information.

    $$ L = -\log \mathrm{softmax}(z_t)_y + \frac{\lambda}{2} \sum_i F_i (\theta_i - \theta^*_i)^2 $$
    See `consolidation` for F and for the arguments. The strength that works depends on the task and on the kind of
    Fisher information: publications have 1 to 10,000. Gradient descent is unstable where strength times learning rate
    times F is above 2 to 4: on permuted digits, at rate 0.05 and without clipping of gradients, 50 is the best and one
    of four seeds diverges at 100.

    Args:
      network: an ordinary network; all leaves of params that are not `per_task` are held.
      strength: lambda.
      fisher: which quantity is called Fisher information; see `cljax.importance.fisher`.
      penalty: one for all earlier tasks, or one each.
      decay: gamma, by which earlier tasks count less at each visit's end.
      chunk: how many examples' gradients are held in memory at once; of fisher 'batched', the size of a batch.

    Returns:
      The method. Its metrics are `classification` (nats) and `penalty`, half the weighted squared distance.

    Raises:
      ValueError: for an unknown option, or a number out of range; in training, for labels of several classes each.

    Example:
      >>> from cljax import networks
      >>> from cljax.methods import ewc
      >>> ewc(networks.mlp((8, 8, 1), 2), strength=10.0).name
      'ewc'

    Reference: Kirkpatrick et al., Overcoming Catastrophic Forgetting in Neural Networks, 2017, equation 3.
    """
    term = consolidation(strength=strength, fisher=fisher, penalty=penalty, decay=decay, chunk=chunk)
    return combine(finetune(network), term, name="ewc")
