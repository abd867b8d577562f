"""What terms share: the quadratic penalty, shared parameters, words that an option may be."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from cljax import losses, task_params
from cljax.numbers import real
from cljax.types import Array, Batch, Clock, Fold, Learner, Output, Respond, Sizes, Teacher, Term, TermInit, Tree

Importance = Callable[[Learner, Clock, Fold, Array, Respond], Tree]
"""`(learner, clock, fold, key, respond) -> tree` like the shared parameters, measured at the end of a visit."""


def shared(tree: Tree, learner: Learner) -> Tree:
    """A tree like params, None in place of the leaves that belong to a task."""
    return task_params.map_leaves(lambda path, leaf: None if task_params.has_rows(path, learner.rows) else leaf, tree)


def numbers(**values: float) -> TermInit:
    """The `init` of a term that has numbers and no state."""
    return lambda learner, sizes: ({}, {name: jnp.float32(value) for name, value in values.items()})


def quadratic(*, strength: float, measure: Importance | None = None, name: str = "quadratic") -> Term:
    r"""Pulls the shared parameters to where the visit began, each by its importance for the tasks before.

    $$ \frac{\lambda}{2} \sum_i \Omega_i (\theta_i - \theta^*_i)^2, \qquad \Omega \leftarrow \Omega + \Omega_t $$

    Args:
      strength: lambda, at least 0; the number `strength`.
      measure: gives $\Omega_t$ at the end of each visit, a further one too. None: $\Omega$ is 1 for all.
      name: the term's.

    Returns:
      The term. Its state is `importance`, its metric `penalty`, before the strength.

    Raises:
      ValueError: for a number out of range.

    Example:
      >>> quadratic(strength=0.1).anchor
      True

    Reference: Kirkpatrick et al., Overcoming Catastrophic Forgetting in Neural Networks, 2017, equation 3.
    """
    strength = real(f"{name}'s strength", strength, least=0)

    def loss(params, learner: Learner, clock: Clock, batch: Batch, key, student: Output, teacher: Teacher):
        weights = None if measure is None else learner.method_state["importance"]
        both = shared(params, learner), shared(teacher.params, learner)
        penalty = 0.5 * losses.quadratic_penalty(*both, weights)
        weight = jnp.where(clock.newest > 0, learner.hyper["strength"], 0.0).astype(penalty.dtype)
        return weight * penalty, {"penalty": penalty}

    term = Term(name, numbers(strength=strength), loss=loss, anchor=True, strengths=("strength",))
    if measure is None:
        return term

    def init(learner: Learner, sizes: Sizes) -> tuple[dict[str, Tree], dict[str, Array]]:
        zeros = jax.tree.map(jnp.zeros_like, shared(learner.params, learner))
        return {"importance": zeros}, {"strength": jnp.float32(strength)}

    def end_visit(learner: Learner, clock: Clock, fold: Fold, key: Array, respond: Respond) -> Learner:
        found = measure(learner, clock, fold, key, respond)
        total = jax.tree.map(jnp.add, learner.method_state["importance"], found)
        return learner._replace(method_state={"importance": total})

    return term._replace(init=init, end_visit=end_visit)
