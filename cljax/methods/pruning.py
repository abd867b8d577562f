"""Pruning by activity: how many of its features a task can give back before its accuracy falls."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from cljax import importance, metrics
from cljax.ownership import Owner, masks
from cljax.trees import pick
from cljax.types import Array, Batch, Clock, Fold, Learner, Output, single_label_of


def prune_within_margin(
    look: Callable[[Learner, Owner, Array], Output],
    learners: Learner,
    clock: Clock,
    fold: Fold,
    sound: Array,
    multiples: Sequence[float],
) -> tuple[Owner, Array]:
    r"""Prunes the task's features of least activity, as many as validation accuracy allows.

    $$ \{ i : \mathbb{E}_S |h_{l,i}| \le k \, \mathrm{mean}_j \, \mathbb{E}_S |h_{l,j}| \} \text{ are free again} $$
    with the largest multiple k at which a learner's accuracy is no more than `hyper['margin']` below the best of all
    learners before pruning. Without validation examples it is the first multiple.

    Args:
      look: `(learner, owner, inputs) -> output`, in evaluation mode, with the features that these owners show.
      learners: focused `[C, ...]`, their `method_state.owner` the owners of each gate's features.
      clock: of the visit.
      fold: over the task's examples: training ones give the activity, validation ones the accuracy.
      sound: `[C]` bool, the learners that may be the best, or within the margin.
      multiples: k, in ascending order; the first is 0.

    Returns:
      The owners `[C, ...]`; and which learners were within the margin before, `[C]` bool.

    Reference: Golkar, Kagan and Cho, Continual Learning via Neural Pruning, 2019, sections 2.1 and 2.2.
    """
    owners, tried = learners.method_state.owner, jnp.asarray(multiples, jnp.float32)

    def observe(sums: Owner, batch: Batch) -> Owner:
        def activity(learner: Learner) -> Owner:
            found = look(learner, learner.method_state.owner, batch.inputs).activations
            mean = importance.unit_activity({name: found[name] for name in owners}, weights=batch.weights)
            return jax.tree.map(lambda leaf: jnp.sum(batch.weights) * leaf.astype(jnp.float32), mean)

        return jax.tree.map(jnp.add, sums, lax.map(activity, learners))

    sums = fold(observe, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), owners))

    def release(owner: Owner, sums: Owner, multiple: Array) -> Owner:
        free = lambda o, a: masks.prune_by_activity(o, clock.task, a, threshold=multiple * jnp.mean(a))
        return jax.tree.map(free, owner, sums)  # sums serve as well as means: both sides have the same factor

    def count(carry: tuple[Array, Array], batch: Batch) -> tuple[Array, Array]:
        classes, single = pick(clock.classes, clock.task), single_label_of(clock, clock.task)

        def right(learner: Learner, sums: Owner, multiple: Array) -> Array:
            logits = look(learner, release(learner.method_state.owner, sums, multiple), batch.inputs).logits
            return jnp.sum(batch.weights * metrics.correct(logits, batch.labels, classes, single_label=single))

        every = lambda pair: lax.map(lambda multiple: right(pair[0], pair[1], multiple), tried)
        return carry[0] + lax.map(every, (learners, sums)), carry[1] + jnp.sum(batch.weights)

    none = (jnp.zeros((*sound.shape, len(multiples)), jnp.float32), jnp.float32(0.0))
    correct, examples = fold(count, none, "validation")
    # Counts of examples, so that rounding decides nothing.
    best = jnp.max(jnp.where(sound, correct[:, 0], 0.0))
    bar = (best - learners.hyper["margin"] * examples - 1e-3)[:, None]
    within = (correct >= bar) & sound[:, None] & (examples > 0)
    chosen = jnp.max(jnp.where(within, jnp.arange(len(multiples)), 0), axis=1)
    return jax.vmap(release)(owners, sums, tried[chosen]), within[:, 0]
