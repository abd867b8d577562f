"""The L2 soft constraint: fine-tuning that pulls the shared parameters back to where the task began."""

from __future__ import annotations

from cljax.methods.combine import combine
from cljax.methods.common import plain
from cljax.methods.terms import quadratic
from cljax.types import Method, Network, Term


def pull(*, strength: float = 0.05) -> Term:
    r"""The L2 soft constraint: pulls the shared parameters to where the visit began.

    $$ \frac{\lambda_c}{2} \| \theta_s - \theta_{s,0} \|_2^2 $$

    Args:
      strength: lambda_c, the number `strength`.

    Returns:
      The term `l2_constraint`; metric `penalty`.

    Example:
      >>> from cljax.methods import pull
      >>> pull().name
      'l2_constraint'

    Reference: Li and Hoiem, Learning without Forgetting, 2016, section 4.2.
    """
    return quadratic(strength=strength, name="l2_constraint")


def l2_constraint(network: Network, *, strength: float = 0.05, warm_up: float = 0.25) -> Method:
    r"""L2 soft constraint: fine-tuning with a penalty on the way that shared parameters go during a task.

    $$ L = -\log \mathrm{softmax}(z_t)_y + \frac{\lambda_c}{2} \| \theta_s - \theta_{s,0} \|_2^2 $$
    with the shared parameters (weights and biases) as they were just before the visit. The first task has no penalty. A
    new head is first trained alone, as `lwf` does, so that the methods start from the same point.

    Args:
      network: an ordinary network; all leaves of params that are not `per_task` are constrained.
      strength: lambda_c. The paper takes 0.5 for VOC and 0.05 for its other new tasks.
      warm_up: fraction of a visit's epochs for the new head alone, in [0, 1).

    Returns:
      The method. Its metrics are `classification` (nats) and `penalty`, before the strength.

    Raises:
      ValueError: for a number out of range.

    Example:
      >>> from cljax import networks
      >>> from cljax.methods import l2_constraint
      >>> [phase.name for phase in l2_constraint(networks.mlp((8, 8, 1), 2)).phases]
      ['warm-up', 'train']

    Reference: Li and Hoiem, Learning without Forgetting, 2016, section 4.2 and table 2(b).
    """
    base = plain("l2_constraint", network, warm_up=warm_up)
    return combine(base, pull(strength=strength), name="l2_constraint")
