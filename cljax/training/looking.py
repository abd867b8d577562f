"""Where a network looks for the classes of the first task: what is left of that after each round."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from cljax import streams
from cljax.attention import grad_cam
from cljax.networks import export_task
from cljax.training.step import init_shapes
from cljax.types import Array, Learner, Method, Table, Tables


def spaced(table: Table, count: int) -> Array:
    """The positions, in a split's table, of so many examples of the first task, evenly spaced; `[count]` int32.

    Example:
      >>> import numpy as np
      >>> from cljax.types import Table
      >>> none = np.zeros(9, np.int32)
      >>> spaced(Table(none, none, np.array([0, 6]), np.array([6, 3])), 3).tolist()
      [0, 2, 4]
    """
    start, size = (jnp.asarray(value, jnp.int32)[0] for value in (table.start, table.size))
    return start + jnp.arange(count, dtype=jnp.int32) * size // count


def make_look(method: Method, count: int) -> Callable[[Learner, Tables], Array] | None:
    """Makes the function that says where a learner looks for the labels of the first task's test examples.

    Args:
      method: the learner's.
      count: N, of how many examples, evenly spaced among the task's.

    Returns:
      `(learner, tables) -> [N, h, w]` float32, the `attention.grad_cam` of a learner at rest; of several labels an
      example, of its first. None for no examples, for a network whose last maps have no positions, and for a method
      that puts parameters of its own into the forward pass.

    Example:
      >>> from cljax import methods, networks
      >>> from cljax.training.looking import make_look
      >>> make_look(methods.finetune(networks.mlp((8, 8, 1), 2)), 4) is None
      True
    """
    network = method.network
    if not count:
        return None
    params, collections = network.shapes
    inputs = jax.ShapeDtypeStruct((count, *network.inputs), jnp.float32)
    encode = lambda params, collections, inputs: network.encode(params, collections, inputs, train=False, key=None)[0]
    if jax.eval_shape(encode, params, collections, inputs).ndim != 4:
        return None
    shown = jax.eval_shape(lambda *of: method.view(of[0], of[1], of[2], jnp.int32(0), None), *init_shapes(method)[:3])
    if jax.tree.structure(shown[0]) != jax.tree.structure(params):  # type: ignore[operator]
        return None

    def look(learner: Learner, tables: Tables) -> Array:
        batch, own = streams.gather(tables, tables.test, spaced(tables.test, count)), export_task(method, learner, 0)
        labels = batch.labels if batch.labels.ndim == 1 else jnp.argmax(batch.labels, axis=-1)
        head = lambda maps: network.decode(*own, maps, train=False, key=None)[0][0]
        return grad_cam(head, encode(*own, batch.inputs), labels.astype(jnp.int32)).astype(jnp.float32)

    return look
