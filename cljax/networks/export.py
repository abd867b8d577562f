"""Exporting a task: its model as a plain network, without the continual learner around it."""

import jax.numpy as jnp

from cljax import task_params
from cljax.numbers import check_kind
from cljax.types import Array, Learner, Method, Tree


def export_task(method: Method, learner: Learner, task: Array | int) -> tuple[Tree, Tree]:
    """The parameters and collections with which the ordinary network is one task's model.

    They are what the method's view shows of the task's own rows: the kernels that DF-CNN synthesises, the gates of what
    the task sees under TFM and CLNP; the other tasks are left behind. The logits are those of `predict`, for every
    method that predicts with the network and the task's view alone.

    `masks.extract` then cuts closed features off: the small params and collections go into the same network.

    Args:
      method: the learner's.
      learner: at rest.
      task: int32 scalar, traced or not.

    Returns:
      `(params, collections)`, like those of `network.init`: `method.network.apply(params, collections, inputs)`.

    Raises:
      TypeError: where the method is none.
      ValueError: for a task that there is not; where the method puts parameters of its own into the forward pass, so
        that those it shows are not the network's.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from cljax import methods, networks, task_params
      >>> from cljax.networks import export_task
      >>> from cljax.ownership import masks
      >>> from cljax.types import Learner
      >>> method = methods.finetune(networks.mlp((2,), 3, hidden=(4,)))
      >>> params, collections = method.network.init(jax.random.key(0))
      >>> resting = task_params.resting(method.per_task, tasks=2)
      >>> learner = Learner(task_params.expand(params, 2, resting), collections, (), {}, {}, None, resting)
      >>> params, collections = export_task(method, learner, 1)
      >>> method.network.apply(params, collections, jnp.ones((5, 2))).logits.shape
      (5, 3)
      >>> cut = [masks.extract(tree, method.network.wiring, collections['gates']) for tree in (params, collections)]
      >>> method.network.apply(*cut, jnp.ones((5, 2))).logits.shape
      (5, 3)
    """
    if not isinstance(method, Method):
        raise TypeError("export_task takes the learner's method, then the learner and a task.")
    check_kind("learner", learner, Learner, "a learner at rest, such as result.learner")
    task_params.check_task(task, learner.rows.tasks)
    row = jnp.asarray(task, jnp.int32)
    trees = (learner.params, learner.collections, learner.method_state)
    like, _ = method.network.shapes
    own, *others = (task_params.take_row(tree, row, learner.rows) for tree in trees)
    try:
        params, collections = method.view(own, others[0], others[1], row, None)
        task_params.check_same("It", params, "the network", like)
    except ValueError as error:
        raise ValueError(
            f"This learner's task cannot be exported: its parameters are not those of the network, which has "
            f"{', '.join(task_params.leaf_paths(like))}; the learner has {', '.join(task_params.leaf_paths(own))}. "
            f"Give the method that the learner was made for. One that puts parameters of its own into the forward "
            f"pass has no plain network."
        ) from error
    return params, collections
