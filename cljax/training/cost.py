"""What a method costs: FLOPs of a step as it is written, and bytes kept per task."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from cljax import streams, task_params
from cljax.keys import make_key
from cljax.training.engine import Engine
from cljax.training.plan import in_stream
from cljax.training.state import PhaseState
from cljax.types import Learner, Network, Stream, Tree, make_clock


def step_flops(engine: Engine, stream: Stream, state: PhaseState) -> float | None:
    """FLOPs of one train step as it is written: before the compiler optimises it, so that nothing is compiled.

    Args:
      engine: of `make_engine`.
      stream: for shapes.
      state: of a phase, for shapes.

    Returns:
      FLOPs; None where the compiler does not tell.
    """
    tables = jax.eval_shape(lambda tables: jax.tree.map(jnp.asarray, tables), stream.tables)
    key = jax.eval_shape(lambda: make_key(0))
    clock = jax.eval_shape(lambda tables: in_stream(make_clock(), tables, engine.scenario), tables)

    def first(tables):
        return streams.sequential(tables, tables.train, jnp.int32(0), jnp.int32(0), engine.settings.batch_size)

    batch = jax.eval_shape(first, tables)
    costs = engine.step.lower(state.learner, state.mask, clock, batch, key).cost_analysis()
    return costs.get("flops") if costs else None


def tree_bytes(tree: Tree) -> int:
    """The bytes of a tree's arrays.

    Example:
      >>> tree_bytes({'a': jnp.zeros([3], jnp.float32), 'b': jnp.zeros([2], jnp.uint8)})
      14
    """
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def bytes_per_task(learner: Learner, network: Network) -> float:
    r"""Bytes a learner keeps for each task, beside one set of shared weights.

    $$ \frac{|\theta| + |c| + |s| + |m| - |\theta_\text{shared}| - |c_\text{shared}|}{T} $$
    with params, collections, method state and memory of the learner at rest, and the shared leaves those of the bare
    network which have no rows. What is kept once for all tasks (a teacher, Fisher information) counts by its T-th part;
    the optimizer's state does not count, for a task can be learned without the last one's.

    Args:
      learner: at rest.
      network: the bare network.

    Returns:
      Bytes a task.
    """
    kept = sum(tree_bytes(part) for part in (learner.params, learner.collections, learner.method_state, learner.memory))
    bare = network.shapes
    alone = lambda path, leaf: None if task_params.has_rows(path, learner.rows) else leaf
    shared = [task_params.map_leaves(alone, tree) for tree in bare]
    return (kept - tree_bytes(shared)) / learner.rows.tasks
