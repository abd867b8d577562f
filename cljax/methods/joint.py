"""Joint training: the examples of all tasks seen so far. The upper bound of most papers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import jax.numpy as jnp

from cljax.methods.common import (
    Scope,
    all_outputs,
    as_it_is,
    check_network,
    forward,
    plain,
    seen_tasks,
    task_loss,
    update_masks,
)
from cljax.numbers import check_option, flag, several, whole
from cljax.types import Array, Batch, Clock, Learner, Method, Network, Sizes, Tree

Sampling = Literal["pooled", "balanced"]


def joint(
    network: Network,
    *,
    sampling: Sampling = "pooled",
    shares: Sequence[int] = (),
    own_part: bool = False,
    scope: Scope = "auto",
) -> Method:
    r"""Joint training: at task t, cross-entropy on the examples of tasks 0 to t, by their tasks' leaves.

    $$ \theta \leftarrow \arg\min_\theta \mathbb{E}_{(x, y, s) \sim D_0 \cup \dots \cup D_t}
    \left[ -\log \mathrm{softmax}(z_s(x))_y \right] $$
    In the class-incremental scenario the softmax is over the outputs of all tasks seen, $[z_0, \dots, z_t]$: softmaxes
    over one task's classes each never learn to tell tasks apart (ten digits in five tasks: 42 to 64% instead of 97%),
    and over a single class learn nothing.

    It keeps all data, so it is no continual learner but what one is compared to.

    Args:
      network: an ordinary network. All `per_task` leaves stay stacked; those of all tasks seen train, others keep their
        bits.
      sampling: 'pooled', each epoch has all examples of all tasks once; or 'balanced', as many of each task as the
        current task has, drawn anew each epoch, in batches of equal shares, so that no task outweighs another.
      shares: in place of `sampling`, how many examples of each task come together, the last number being that of all
        further tasks; an epoch ends when the first task has given all. With (5, 1) and batches of 140, a batch has 50
        of the first of ten tasks and 10 of each other.
      own_part: whether each task's head reads a part of the last hidden layer of its own, all parts being equal but for
        one unit. Needs a network with `wiring`. Later tasks that nobody planned would share parts: leave room.
      scope: a softmax over the classes of each example's own task ('per_task'), or one over all classes seen
        ('concatenated'). 'auto': the second where the scenario is class-incremental, else the first.

    Returns:
      The method.

    Raises:
      ValueError: for an unknown option; for 'concatenated', where nothing belongs to a task; for `own_part`, where the
        network says of no gate that it is the head's, or the layer has fewer units than there are tasks.

    Example:
      >>> from cljax import networks
      >>> from cljax.methods import joint
      >>> joint(networks.mlp((8, 8, 1), 2)).train_on
      'seen'

    Reference: the baseline "Joint Training" of Li & Hoiem, Learning without Forgetting, 2016, section 2; 'balanced' by
    section 3, implementation details. There, batches of one task each alternate. `shares` and
    `own_part`, with the schedule `streams.together`: multi-task training as in Golkar et al., Continual Learning via
    Neural Pruning, 2019, appendix A.
    """
    check_option("joint's sampling", sampling, Sampling)
    shares = several("joint's shares", shares, "a number a task, such as (5, 1)")
    numbers = tuple(whole("joint's share", share, least=1) for share in shares)
    own_part = flag("joint's own_part", own_part)
    check_network(network)
    gates = {wire.inputs for wire in network.wiring if wire.outputs is None and wire.inputs} if own_part else set()
    if own_part and (len(gates) != 1 or not network.per_task):
        raise ValueError(
            "joint's own_part divides the layer below the heads among tasks, but this network's wiring names no such "
            "layer, or its head belongs to no task. Take one of cljax.networks, with its per_task."
        )

    def view(params: Tree, collections: Tree, state: Tree, task: Array, newest: Array | None) -> tuple[Tree, Tree]:
        shown = {name: state["parts"][task].astype(collections["gates"][name].dtype) for name in gates}
        return params, {**collections, "gates": {**collections["gates"], **shown}}

    def init(key: Array, sizes: Sizes) -> tuple[Tree, Tree, Tree, dict[str, Array]]:
        params, collections, state, hyper = base.init(key, sizes)
        for name in gates:
            width = collections["gates"][name].shape[0]
            if width < sizes.tasks:
                raise ValueError(
                    f"joint's own_part divides {width} units among {sizes.tasks} tasks. Take a wider layer."
                )
            owner = jnp.arange(width, dtype=jnp.int32) * sizes.tasks // width
            state = {"parts": owner[None, :] == jnp.arange(sizes.tasks, dtype=jnp.int32)[:, None]}
        return params, collections, state, hyper

    base = plain("joint", network, scope=scope, view=view if own_part else as_it_is)

    def loss(params: Tree, learner: Learner, clock: Clock, batch: Batch, key: Array | None):
        output = forward(network, base.view, params, learner, clock, batch.inputs, key=key)
        seen = seen_tasks(learner, clock) if all_outputs(scope, clock, output.logits) else None
        return task_loss(output.logits, clock, batch, seen), (output, {})

    return base._replace(
        init=init,
        loss=loss,
        update_mask=lambda learner, clock: update_masks(learner, seen_tasks(learner, clock), True),
        stacked=network.per_task,
        train_on=numbers or ("balanced" if sampling == "balanced" else "seen"),
    )
