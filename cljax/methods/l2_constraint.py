"""The L2 soft constraint: fine-tuning that pulls the shared parameters back to where the task began."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax

from cljax import losses, task_params
from cljax.methods.common import plain
from cljax.numbers import real
from cljax.types import Array, Batch, Clock, Fold, Learner, Method, Network, Sizes, Tree


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
      >>> [phase.name for phase in l2_constraint(networks.mlp((8, 8, 1), 2)).phases]
      ['warm-up', 'train']

    Reference: Li and Hoiem, Learning without Forgetting, 2016, section 4.2 and table 2(b).
    """
    strength = real("l2_constraint's strength", strength, least=0)
    warm_up = real("l2_constraint's warm_up", warm_up, least=0, below=1)
    base = plain("l2_constraint", network, warm_up=warm_up)
    last = len(base.phases) - 1

    def shared(params: Tree) -> Tree:
        return task_params.map_leaves(
            lambda path, leaf: None if task_params.ends_with(path, network.per_task) else leaf, params
        )

    def init(key: Array, sizes: Sizes) -> tuple[Tree, Tree, Tree, dict[str, Array]]:
        params, collections, _, _ = base.init(key, sizes)
        return params, collections, {"anchor": shared(params)}, {"strength": jnp.float32(strength)}

    def anchor(learner: Learner) -> Learner:
        return learner._replace(method_state={"anchor": shared(learner.params)})

    def loss(params: Tree, learner: Learner, clock: Clock, batch: Batch, key: Array | None):
        classification, (output, _) = base.loss(params, learner, clock, batch, key)
        penalty = 0.5 * losses.quadratic_penalty(shared(params), learner.method_state["anchor"])
        weight = jnp.where(clock.newest > 0, learner.hyper["strength"], 0.0).astype(penalty.dtype)
        return classification + weight * penalty, (
            output,
            {"classification": classification, "penalty": penalty},
        )

    def begin_task(learner: Learner, clock: Clock, fold: Fold, key: Array) -> Learner:
        return anchor(learner)

    def end_phase(learner: Learner, clock: Clock, fold: Fold, key: Array) -> Learner:
        return lax.cond(clock.phase == last, anchor, lambda learner: learner, learner)

    return base._replace(init=init, begin_task=begin_task, loss=loss, end_phase=end_phase)
