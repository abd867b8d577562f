"""How tasks share a network whose features have owners: what each made, what it reuses of older ones, what is free."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from cljax import metrics, task_params
from cljax.ownership import masks
from cljax.ownership.gates import Owner, layout
from cljax.types import Array, Learner, Network, Tree, Wire


def reused(
    params: Tree,
    wiring: dict[str, Wire],
    owner: Owner,
    task: ArrayLike,
    *,
    threshold: float = 0.0,
    own: tuple[str, ...] = (),
) -> Owner:
    r"""The older tasks' features that feed a task: its head, features of its own, or older ones that feed it in turn.

    .. math:: r_i = [\mathrm{owner}_i < t] \wedge \exists j : |W_{ij}| > \theta \wedge (\mathrm{owner}_j = t \vee r_j)

    Args:
      params: focused on the task.
      wiring: wires by path, of `layout`.
      owner: owners of each gate's features.
      task: int scalar.
      threshold: the absolute value that a weight must exceed to count.
      own: gates that show a task its own features only, as of `ownership.apply_gates`: older ones there are closed.

    Returns:
      `{gate: [C] bool}`.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.ownership.usage import reused
      >>> from cljax.types import Wire
      >>> found = reused({'head': jnp.array([[1.0], [0.0], [1.0]])}, {'head': Wire('head', 'gate', None)},
      ...                {'gate': jnp.array([0, 0, 1])}, 1)
      >>> found['gate'].tolist()
      [True, False, False]

    Reference: Golkar et al., Continual Learning via Neural Pruning, 2019, section 2.1.
    """
    task = jnp.asarray(task, jnp.int32)
    leaves = task_params.by_path(params)
    found = {name: jnp.zeros(leaf.shape, jnp.bool_) for name, leaf in owner.items()}
    for path, wire in reversed(wiring.items()):
        if wire.inputs is None:
            continue
        kernel = leaves[path]
        strong = (jnp.abs(kernel) > threshold).any(axis=tuple(range(kernel.ndim - 2)))
        used = jnp.ones([1], jnp.bool_)
        if wire.outputs is not None:
            used = masks.learnable(owner[wire.outputs], task) | found[wire.outputs]
        feeds = (strong & used[None, :]).any(axis=1).reshape(wire.repeat, -1).any(axis=0)
        if wire.inputs not in own:
            found[wire.inputs] |= feeds & (owner[wire.inputs] < task)
    return found


class Diagnostics(NamedTuple):
    """Parts of each layer's features, `{gate: [T]}` float32 in [0, 1], one number after each task.

    Attributes:
      used: owned by this task or an earlier one.
      newly_used: made by this task.
      reused: made by earlier tasks and feeding this one; see `reused`.
      free: owned by none of them; 0 where the layer is spent, so that later tasks can only transfer there.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.ownership.usage import Diagnostics
      >>> parts = [{'dense_0': jnp.array(values)} for values in ([0.5, 0.75], [0.5, 0.25], [0.0, 0.5], [0.5, 0.25])]
      >>> Diagnostics(*parts).free['dense_0'].tolist()  # after the first task, after the second
      [0.5, 0.25]
    """

    used: Owner
    newly_used: Owner
    reused: Owner
    free: Owner


def diagnostics(network: Network, learner: Learner, *, threshold: float = 0.0) -> Diagnostics:
    """How tasks shared out the features of each layer, and what they reuse.

    Args:
      network: the method's.
      learner: at rest, its `method_state.owner` the owners of each gate's features, as of `tfm` and `clnp`.
      threshold: the absolute value that a weight must exceed to count as reuse.

    Returns:
      `Diagnostics`.

    Raises:
      ValueError: for a network without gates.

    Example:
      >>> import jax
      >>> import optax
      >>> from cljax import data, methods, networks, streams, training
      >>> from cljax.ownership.usage import diagnostics
      >>> network = networks.mlp((8, 8, 1), 2, hidden=(10,))
      >>> tables = streams.split(data.load('digits'), tasks=5).tables
      >>> learner = training.make_learner(methods.tfm(network), optax.sgd(1.0), tables, 0.1, jax.random.key(0))
      >>> diagnostics(network, learner).free['dense_0'].tolist()  # no task has claimed a feature yet
      [1.0, 1.0, 1.0, 1.0, 1.0]

    Reference: Golkar, Kagan and Cho, Continual Learning via Neural Pruning, 2019, section 2.1 and figure 3.
    """
    read, owner = layout("diagnostics", network), learner.method_state.owner
    own = (read.shared_head,) if read.shared_head else ()

    def one(task: Array) -> Diagnostics:
        params = task_params.take_row(learner.params, task, learner.rows)
        found = reused(params, read.wires, owner, task, threshold=threshold, own=own)
        parts = jax.tree.map(lambda leaf: jnp.mean(leaf, dtype=jnp.float32), found)
        used, newly_used, free = metrics.feature_usage(owner, task)
        return Diagnostics(used, newly_used, parts, free)

    return jax.vmap(one)(jnp.arange(learner.rows.tasks, dtype=jnp.int32))
