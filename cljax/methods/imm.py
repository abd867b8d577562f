"""Incremental moment matching: tasks are learned one after the other, and their networks merged into one."""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from cljax import importance, task_params
from cljax.methods.combine import combine
from cljax.methods.common import own_task, plain, seen_tasks
from cljax.methods.measuring import Fisher, fisher_information
from cljax.methods.terms import quadratic
from cljax.numbers import check_option, real
from cljax.trees import put
from cljax.types import Array, Batch, Clock, Fold, Learner, Method, Network, Sizes, Tree

Merge = Literal["mode", "mean"]


class Posteriors(NamedTuple):
    """What incremental moment matching keeps.

    Attributes:
      means: `[T, ...]`, what tasks share (parameters, normalisation statistics) as it was when each task ended.
      precisions: `[T, ...]`, the Fisher information then, of the parameters; None where the mean is taken.
      merged: what `predict` computes with.
      current: bool, whether nothing was trained since the merge.
    """

    means: tuple[Tree, Tree]
    precisions: Tree
    merged: tuple[Tree, Tree]
    current: Array


def imm(
    network: Network,
    *,
    merge: Merge = "mode",
    strength: float = 0.01,
    mixing: float = 1.0,
    fisher: Fisher = "exact",
    chunk: int = 32,
) -> Method:
    r"""Incremental moment matching (IMM): the networks of all tasks are merged at each visit's end.

    $$ \text{mode:} \quad \theta^*_i = \frac{\sum_k \alpha_k F_{k, i} \theta_{k, i}}{\sum_k \alpha_k F_{k, i}},
    \qquad \text{mean:} \quad \theta^* = \sum_k \alpha_k \theta_k, \qquad
    L = -\log \mathrm{softmax}(z_t)_y + \frac{\lambda}{2} \| \theta - \theta_{t-1} \|_2^2 $$

    A task begins with the last one's parameters (weight-transfer), to which training is pulled back (L2-transfer). Both
    are those before the merge: $\theta^*$ is what `predict` computes with, once a visit has ended, and no visit starts
    from it. Merged is what tasks share; leaves that belong to a task stay as they are, and so do parameters in which no
    task has any Fisher information. Normalisation statistics are merged by the mean. A further visit to a task takes
    the place of its $\theta_k$ and $F_k$.

    The learner holds 2 T times the shared parameters, T times for the mean.

    Args:
      network: an ordinary network.
      merge: the mode of the mixture of posteriors, or the mean.
      strength: lambda, of L2-transfer; 0: none.
      mixing: how much the task just visited weighs beside each other one; at 1 all alpha are alike.
      fisher: which quantity is called Fisher information; see `cljax.importance.fisher`.
      chunk: how many examples' gradients are held in memory at once; of fisher 'batched', the size of a batch.

    Returns:
      The method. Its metrics are `classification` (nats) and `penalty`, half the squared distance.

    Raises:
      ValueError: for an unknown word, or a number out of range; in training with 'mode', for labels of several classes
        each.

    Example:
      >>> from cljax import networks
      >>> from cljax.methods import imm
      >>> imm(networks.mlp((8, 8, 1), 2), merge='mean').name
      'imm'

    Reference: Lee et al., Overcoming Catastrophic Forgetting by Incremental Moment Matching, 2017, sections 3 and 4.
    """
    check_option("imm's merge", merge, Merge)
    mixing = real("imm's mixing", mixing, least=0)
    measure = fisher_information("imm", fisher, chunk)

    def kept(params: Tree, collections: Tree) -> tuple[Tree, Tree]:
        """What is merged, None elsewhere."""
        common = lambda path, leaf: None if task_params.ends_with(path, network.per_task) else leaf
        counted = lambda path, leaf: common(path, leaf) if path.startswith("batch_stats/") else None
        return task_params.map_leaves(common, params), task_params.map_leaves(counted, collections)

    def view(params: Tree, collections: Tree, state: Posteriors, task: Array, newest: Array | None):
        if newest is not None:  # in training
            return params, collections
        show = lambda merged, leaf: leaf if merged is None else jnp.where(state.current, merged, leaf)
        return jax.tree.map(show, state.merged, (params, collections), is_leaf=lambda leaf: leaf is None)

    base = plain("imm", network, view=view)

    def init(key: Array, sizes: Sizes) -> tuple[Tree, Tree, Posteriors, dict[str, Array]]:
        params, collections, *_ = base.init(key, sizes)
        rows = lambda tree: jax.tree.map(lambda leaf: jnp.zeros((sizes.tasks, *leaf.shape), leaf.dtype), tree)
        own = kept(params, collections)
        state = Posteriors(rows(own), rows(own[0]) if merge == "mode" else None, own, jnp.bool_(False))
        return params, collections, state, {"mixing": jnp.float32(mixing)}

    def after_step(previous: Learner, learner: Learner, clock: Clock, batch: Batch, gradients: Tree) -> Learner:
        return learner._replace(method_state=learner.method_state._replace(current=jnp.bool_(False)))

    def end_phase(learner: Learner, clock: Clock, fold: Fold, key: Array) -> Learner:
        respond = lambda params, batch: base.loss(params, learner, clock, batch, None)[1][0]
        state, own = learner.method_state, kept(learner.params, learner.collections)
        means = put(state.means, own, clock.task)
        alpha = jnp.where(own_task(learner, clock), learner.hyper["mixing"], 1.0)
        alpha = jnp.where(seen_tasks(learner, clock), alpha, 0.0)
        precisions = state.precisions
        if merge == "mode":
            precisions = put(precisions, measure(learner, clock, fold, key, respond), clock.task)
        merged = (
            importance.moment_matching(means[0], alpha, precisions, otherwise=own[0]),
            importance.moment_matching(means[1], alpha, otherwise=own[1]),
        )
        return learner._replace(method_state=Posteriors(means, precisions, merged, jnp.bool_(True)))

    merging = base._replace(init=init, after_step=after_step, end_phase=end_phase)
    return combine(merging, quadratic(strength=strength, name="imm"), name="imm")
