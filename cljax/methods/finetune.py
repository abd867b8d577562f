"""Fine-tuning: train on each task in turn, do nothing against forgetting."""

from __future__ import annotations

import jax.numpy as jnp

from cljax import task_params
from cljax.methods.common import Scope, plain
from cljax.numbers import real
from cljax.types import Clock, Learner, Method, Network, Tree


def finetune(
    network: Network, *, shared_learning_rate: float | None = None, warm_up: float = 0.0, scope: Scope = "auto"
) -> Method:
    r"""Fine-tuning: cross-entropy on the current task alone.

    $$ \theta \leftarrow \arg\min_\theta \mathbb{E}_{(x, y) \sim D_t} \left[ -\log \mathrm{softmax}(z_t(x))_y \right] $$

    Args:
      network: an ordinary network; its `per_task` leaves (the head) belong to a task, all others are shared.
      shared_learning_rate: from the second task on, the rate of shared parameters relative to the others', in [0, 1];
        kept as `hyper['shared_learning_rate']`. The paper's table has 0.1. None: the same rate for all.
      warm_up: fraction of a visit's epochs, in [0, 1), in which a new task's own leaves are trained alone.
      scope: which classes the softmax is over: 'per_task', of an example's own task; or 'concatenated', of all tasks
        seen, so that old outputs are pushed down. 'auto', the first; but with exemplars (`finetune+replay`, `--memory`)
        the second, where the scenario is class-incremental.

    Returns:
      The method, every field filled. Other methods are this one with a few fields replaced.

    Raises:
      ValueError: for an unknown scope, or a number out of range; for 'concatenated', where nothing belongs to a task.

    Example:
      >>> from cljax import networks
      >>> from cljax.methods import finetune
      >>> method = finetune(networks.mlp((8, 8, 1), 2))
      >>> method.name, method.memory_size, method.train_on
      ('finetune', 0, 'current')

    Reference: the baseline of Li and Hoiem, Learning without Forgetting, 2016, section 2; with
    `shared_learning_rate`, table 2(d). Their code starts it from a warm-up, of which the paper says nothing.
    """
    if shared_learning_rate is None:
        return plain("finetune", network, warm_up=warm_up, scope=scope)
    factor = real("finetune's shared_learning_rate", shared_learning_rate, least=0, most=1)
    numbers = {"shared_learning_rate": factor}
    base = plain("finetune", network, warm_up=warm_up, scope=scope, numbers=numbers)

    def update_mask(learner: Learner, clock: Clock) -> tuple[Tree, Tree]:
        params, collections = base.update_mask(learner, clock)
        slower = jnp.where(clock.newest > 0, learner.hyper["shared_learning_rate"], 1.0)
        slow = lambda path, mask: mask if task_params.has_rows(path, learner.rows) else slower * mask
        return task_params.map_leaves(slow, params), collections

    return base._replace(update_mask=update_mask)
