"""Superposition of many models into one: each task reads the shared weights through a context of its own."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from cljax import task_params
from cljax.methods.common import check_network, plain
from cljax.types import Array, Method, Network, Sizes, Tree

CONTEXT = "context"
"""The collection of contexts: for each kernel that tasks share, the signs of its inputs."""


def superposition(network: Network) -> Method:
    r"""Superposition of many models into one (PSP): a task multiplies each layer's inputs by a context of its own.

    $$ y_l = W_l \, (c^t_l \odot x_l) + b_l, \qquad c^t_{l,i} \in \{-1, 1\} $$

    The contexts are random, each sign as likely as the other, and never change; pixels have one too. Only what one is
    beside another counts, so the first task's is all 1, and a network that is trained already can begin as it is. For
    other contexts what a task has put into W is noise with mean 0, the smaller the more inputs a layer has. All weights
    are shared and trained by every task, so it forgets, by and by. Multiplying a kernel's rows is the same as
    multiplying its inputs, and that is how it is done; the inputs of a convolution are its patches, so that each place
    in the window has its own sign.

    A head of the task's own, and all else that belongs to a task, has no context and needs none. Biases and
    normalisation are the same for all tasks; let them belong to the task where that hurts:
    `network._replace(per_task=(*network.per_task, 'dense_0/bias'))`.

    Of the paper's contexts these are the binary ones. Complex ones need a network of complex numbers, and rotations a
    matrix for each task, as wide and high as a layer has inputs.

    Args:
      network: any in which tasks share a kernel: a leaf of two axes or more, the last its outputs.

    Returns:
      The method. The contexts are a collection, of bool: true is 1, false -1.

    Raises:
      ValueError: where tasks share no kernel.

    Example:
      >>> import jax
      >>> from cljax import networks, types
      >>> from cljax.methods import superposition
      >>> method = superposition(networks.mlp((8, 8, 1), 2, hidden=(16,)))
      >>> _, collections, _, _ = method.init(jax.random.key(0), types.Sizes(2, 2, {}))
      >>> collections['context']['dense_0']['kernel'].shape
      (64,)

    Reference: Cheung, Terekhov, Chen, Agrawal and Olshausen, Superposition of Many Models into One, 2019: binary
    superposition, `pspBinary`.
    """
    check_network(network)
    like, _ = network.shapes

    own = lambda path: task_params.ends_with(path, network.per_task)
    bound = [path for path, leaf in task_params.by_path(like).items() if leaf.ndim > 1 and not own(path)]
    if not bound:
        raise ValueError(
            "superposition gives a context to every kernel that tasks share, but in this network they share none. Give "
            "it a hidden layer, or leave a kernel out of per_task."
        )

    def view(params: Tree, collections: Tree, method_state: Tree, task: Array, newest: Array | None):
        first = jnp.asarray(task, jnp.int32) == 0

        def bind(context: Array | None, leaf: Array) -> Array:
            return leaf if context is None else jnp.where(context[..., None] | first, leaf, -leaf)

        return jax.tree.map(bind, collections[CONTEXT], params, is_leaf=lambda leaf: leaf is None), collections

    def init(key: Array, sizes: Sizes) -> tuple[Tree, Tree, Tree, dict[str, Array]]:
        key, own = jax.random.split(key)
        params, collections = network.init(key)

        def draw(path: str, leaf: Array) -> Array | None:
            if path not in bound:
                return None
            return jax.random.bernoulli(jax.random.fold_in(own, bound.index(path)), shape=leaf.shape[:-1])

        return params, {**collections, CONTEXT: task_params.map_leaves(draw, params)}, {}, {}

    per_task = (*network.per_task, *(f"{CONTEXT}/{path}" for path in bound))
    return plain("superposition", network, view=view)._replace(init=init, per_task=per_task)
