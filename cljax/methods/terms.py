"""What terms share: quadratic penalties, shared parameters, numbers."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from cljax import losses, task_params
from cljax.methods.distilling import old_tasks
from cljax.numbers import real
from cljax.trees import put
from cljax.types import Array, Batch, Clock, Fold, Learner, Output, Respond, Sizes, Teacher, Term, TermInit, Tree

Importance = Callable[[Learner, Clock, Fold, Array, Respond], Tree]
"""`(learner, clock, fold, key, respond) -> tree` like the shared parameters, measured at the end of a visit."""


def shared(tree: Tree, learner: Learner) -> Tree:
    """A tree like params, None in place of the leaves that belong to a task."""
    return task_params.map_leaves(lambda path, leaf: None if task_params.has_rows(path, learner.rows) else leaf, tree)


def held(name: str, learner: Learner) -> Tree:
    """What a penalty of this name holds in place: the shared parameters, of which there must be some."""
    own = shared(learner.params, learner)
    if not jax.tree.leaves(own):
        raise ValueError(f"{name} holds what tasks share, but here each leaf belongs to a task: leave {name} out.")
    return own


def numbers(**values: float) -> TermInit:
    """The `init` of a term that has numbers and no state."""
    return lambda learner, sizes: ({}, {name: jnp.float32(value) for name, value in values.items()})


def strength_of(learner: Learner, clock: Clock, value: Array) -> Array:
    """The number `strength`, in the dtype of what it scales; 0 in the first task, when there is nothing to keep."""
    return jnp.where(clock.newest > 0, learner.hyper["strength"], 0.0).astype(value.dtype)


def quadratic(
    *,
    strength: float,
    measure: Importance | None = None,
    decay: float | None = None,
    half: bool = True,
    name: str = "quadratic",
) -> Term:
    r"""Pulls the shared parameters to where the visit began, each by its importance for the tasks before.

    $$ \frac{\lambda}{2} \sum_i \Omega_i (\theta_i - \theta^*_i)^2, \qquad \Omega \leftarrow \gamma \Omega + \Omega_t $$

    Args:
      strength: lambda, at least 0; the number `strength`.
      measure: gives $\Omega_t$ at the end of each visit, a further one too. None: $\Omega$ is 1 for all.
      decay: gamma, in [0, 1]; then the number `decay`. None: 1.
      half: whether there is the factor of one half.
      name: the term's.

    Returns:
      The term. Its state is `importance`, its metric `penalty`, before the strength.

    Raises:
      ValueError: for a number out of range.

    Example:
      >>> from cljax.methods import quadratic
      >>> quadratic(strength=0.1).anchor
      True

    Reference: Kirkpatrick et al., Overcoming Catastrophic Forgetting in Neural Networks, 2017, equation 3; Schwarz et
    al., Progress and Compress, 2018, equation 8, for gamma.
    """
    given = {"strength": real(f"{name}'s strength", strength, least=0)}
    if decay is not None:
        given["decay"] = real(f"{name}'s decay", decay, least=0, most=1)

    def loss(params, learner: Learner, clock: Clock, batch: Batch, key, student: Output, teacher: Teacher):
        weights = None if measure is None else learner.method_state["importance"]
        both = shared(params, learner), shared(teacher.params, learner)
        penalty = (0.5 if half else 1.0) * losses.quadratic_penalty(*both, weights)
        return strength_of(learner, clock, penalty) * penalty, {"penalty": penalty}

    def init(learner: Learner, sizes: Sizes) -> tuple[dict[str, Tree], dict[str, Array]]:
        own, (_, found) = held(name, learner), numbers(**given)(learner, sizes)
        return {} if measure is None else {"importance": jax.tree.map(jnp.zeros_like, own)}, found

    term = Term(name, init, loss=loss, anchor=True, strengths=("strength",))
    if measure is None:
        return term

    def end_visit(learner: Learner, clock: Clock, fold: Fold, key: Array, respond: Respond) -> Learner:
        found, kept = measure(learner, clock, fold, key, respond), learner.method_state["importance"]
        if decay is not None:
            kept = jax.tree.map(lambda leaf: learner.hyper["decay"].astype(leaf.dtype) * leaf, kept)
        return learner._replace(method_state={"importance": jax.tree.map(jnp.add, kept, found)})

    return term._replace(end_visit=end_visit)


def separate_quadratic(*, strength: float, measure: Importance, name: str = "quadratic") -> Term:
    r"""Pulls the shared parameters to where each earlier task ended, each by its importance for that task.

    $$ \frac{\lambda}{2} \sum_{k} \sum_i \Omega_{k, i} (\theta_i - \theta^*_{k, i})^2 $$
    over the tasks k seen but the current one. A further visit to a task takes the place of what was kept of it.

    Args:
      strength: lambda, at least 0; the number `strength`.
      measure: gives $\Omega_k$ at the end of each visit.
      name: the term's.

    Returns:
      The term. Its state is `importance` and `anchors`, `[T, ...]` each; its metric `penalty`, before the strength.

    Raises:
      ValueError: for a number out of range.

    Reference: Kirkpatrick et al., Overcoming Catastrophic Forgetting in Neural Networks, 2017, section 2.1: a penalty
    for each task.
    """
    strength = real(f"{name}'s strength", strength, least=0)

    def init(learner: Learner, sizes: Sizes) -> tuple[dict[str, Tree], dict[str, Array]]:
        rows = lambda: jax.tree.map(lambda leaf: jnp.zeros((sizes.tasks, *leaf.shape), leaf.dtype), held(name, learner))
        return {"importance": rows(), "anchors": rows()}, {"strength": jnp.float32(strength)}

    def loss(params, learner: Learner, clock: Clock, batch: Batch, key, student: Output, teacher: Teacher):
        state = learner.method_state
        of_task = jax.vmap(losses.quadratic_penalty, in_axes=(None, 0, 0))
        each = of_task(shared(params, learner), state["anchors"], state["importance"])
        penalty = 0.5 * jnp.sum(jnp.where(old_tasks(learner, clock), each, 0))
        return strength_of(learner, clock, penalty) * penalty, {"penalty": penalty}

    def end_visit(learner: Learner, clock: Clock, fold: Fold, key: Array, respond: Respond) -> Learner:
        found = {
            "importance": measure(learner, clock, fold, key, respond),
            "anchors": shared(learner.params, learner),
        }
        return learner._replace(method_state=put(learner.method_state, found, clock.task))

    return Term(name, init, loss=loss, end_visit=end_visit, strengths=("strength",))
