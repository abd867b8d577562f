"""Baking: one task's model as a plain network, without the continual learner around it."""

import chex
import jax
import jax.numpy as jnp

from cljax import filters, numbers, ownership, task_params
from cljax.types import Learner, Network, Tree

Array = jax.Array


def export_task(network: Network, learner: Learner, task: Array | int) -> tuple[Tree, Tree]:
    """The parameters and collections with which the ordinary network is one task's model.

    Leaves that belong to a task give their row, factors of kernels (see `cljax.filters`) the kernel they stand for, and
    where features have owners (TFM, CLNP) the gates show what the task sees; the other tasks are left behind. The
    logits are those of `predict`, for every method that predicts with the network and the task's parameters alone.

    `masks.extract` then cuts closed features off: the small params and collections go into the same network.

    Args:
      network: the one the method was made for, `method.network`.
      learner: at rest.
      task: int32 scalar, traced or not.

    Returns:
      `(params, collections)`, like those of `network.init`: `network.apply(params, collections, inputs)`.

    Raises:
      ValueError: for a task that there is not; where the learner's parameters are not those of the network, up to rows
        and factors: for a learner of another network, one whose method puts parameters of its own into the forward
        pass, or one whose single weights have owners, which its method masks.

    Example:
      >>> from cljax import networks, task_params
      >>> from cljax.ownership import masks
      >>> network = networks.mlp((2,), 3, hidden=(4,))
      >>> params, collections = network.init(jax.random.key(0))
      >>> resting = task_params.resting(network.per_task)
      >>> learner = Learner(task_params.expand(params, 2, resting), collections, (), {}, {}, None, None, resting)
      >>> params, collections = export_task(network, learner, 1)
      >>> network.apply(params, collections, jnp.ones((5, 2))).logits.shape
      (5, 3)
      >>> cut = [masks.extract(tree, network.wiring, collections['gates']) for tree in (params, collections)]
      >>> network.apply(*cut, jnp.ones((5, 2))).logits.shape
      (5, 3)
    """
    if learner.classes is not None and not isinstance(task, jax.core.Tracer):
        task = numbers.whole("task", task, most=len(learner.classes) - 1)
    row = jnp.asarray(task, jnp.int32)
    like, _ = jax.eval_shape(network.init, jax.random.key(0))
    params = task_params.take_row(learner.params, row, learner.rows)
    try:
        made = filters.synthesize_tree(params, like)
        chex.assert_trees_all_equal_shapes(made, like)
    except (ValueError, AssertionError) as error:
        raise ValueError(
            f"This learner cannot be exported to the network: their parameters differ. The network has "
            f"{', '.join(task_params.leaf_paths(like))}; the learner has "
            f"{', '.join(task_params.leaf_paths(params))}. Pass the network that its method was made for "
            f"(method.network); a method with parameters of its own in the forward pass has no plain network."
        ) from error
    collections = task_params.take_row(learner.collections, row, learner.rows)
    owner = ownership.owner_of(learner.method_state, collections)
    if owner is None and "owner" in {
        name for path in task_params.leaf_paths(learner.method_state) for name in path.split("/")
    }:
        raise ValueError(
            "This learner cannot be exported to the network: its method masks single weights by their owners, which "
            "are not those of the network's gates. Mask the parameters as the method's predict does, and use them."
        )
    if owner is not None:
        shared = ownership.layout("export_task", network).shared_head
        collections = ownership.apply_gates(collections, owner, row, own=(shared,) if shared else ())
    return made, collections
