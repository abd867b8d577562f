"""Synaptic intelligence: what brought the loss of earlier tasks down is held in place."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from cljax import importance, losses
from cljax.methods.combine import combine
from cljax.methods.finetune import finetune
from cljax.methods.terms import held, shared, strength_of
from cljax.numbers import real
from cljax.types import Array, Batch, Clock, Fold, Learner, Method, Network, Respond, Sizes, Term, Tree


def synaptic_intelligence(*, strength: float = 1.0, damping: float = 0.1) -> Term:
    r"""Synaptic intelligence: pulls each shared parameter by its share in the fall of earlier tasks' losses.

    $$ c \sum_i \Omega_i (\theta_i - \theta^*_i)^2, \qquad \Omega_i \leftarrow \Omega_i
    + \frac{\max(\omega_i, 0)}{(\theta_i - \theta^*_i)^2 + \xi}, \qquad
    \omega_i = - \sum_{\text{steps}} g_i \, \Delta \theta_i $$
    with $\theta^*$ where the visit began, the steps of the visit, and the gradient g of the loss without this penalty:
    of all that is trained on, what the base and other terms add included. Nothing but a step's own gradients is needed.

    Args:
      strength: c, the number `strength`.
      damping: xi, positive, the number `damping`: the squared way below which a parameter counts as not having moved.

    Returns:
      The term `si`; state `importance`, `path` and `anchor`, metric `penalty`, before the strength.

    Raises:
      ValueError: for a number out of range.

    Example:
      >>> from cljax.methods import synaptic_intelligence
      >>> synaptic_intelligence(strength=0.5).name
      'si'

    Reference: Zenke et al., Continual Learning Through Synaptic Intelligence, 2017, equations 3 to 5.
    """
    numbers = {"strength": real("si's strength", strength, least=0), "damping": real("si's damping", damping, above=0)}

    def init(learner: Learner, sizes: Sizes) -> tuple[dict[str, Tree], dict[str, Array]]:
        own = held("si", learner)
        path = jax.tree.map(lambda leaf: losses.at_least_float32(jnp.zeros_like(leaf)), own)
        state = {"importance": jax.tree.map(jnp.zeros_like, own), "path": path}
        return {**state, "anchor": own}, {name: jnp.float32(value) for name, value in numbers.items()}

    def begin_task(learner: Learner, clock: Clock, fold: Fold, key: Array, respond: Respond) -> Learner:
        anchor = shared(learner.params, learner)  # as the base begins the task with
        return learner._replace(method_state={**learner.method_state, "anchor": anchor})

    def penalty_of(params: Tree, learner: Learner, clock: Clock) -> tuple[Array, Array]:
        state = learner.method_state
        penalty = losses.quadratic_penalty(params, state["anchor"], state["importance"])
        return strength_of(learner, clock, penalty) * penalty, penalty

    def loss(params, learner: Learner, clock: Clock, batch: Batch, key, student, teacher):
        value, penalty = penalty_of(shared(params, learner), learner, clock)
        return value, {"penalty": penalty}

    def after_step(previous: Learner, learner: Learner, clock: Clock, batch: Batch, gradients: Tree) -> Learner:
        before, after, whole = (shared(tree, learner) for tree in (previous.params, learner.params, gradients))
        penalty, _ = jax.grad(penalty_of, has_aux=True)(before, previous, clock)
        task = jax.tree.map(jnp.subtract, whole, penalty)
        path = importance.path_integral(learner.method_state["path"], task, before, after)
        return learner._replace(method_state={**learner.method_state, "path": path})

    def end_visit(learner: Learner, clock: Clock, fold: Fold, key: Array, respond: Respond) -> Learner:
        state, now = learner.method_state, shared(learner.params, learner)
        found = importance.path_importance(state["path"], state["anchor"], now, damping=learner.hyper["damping"])
        total = jax.tree.map(jnp.add, state["importance"], found)
        path = jax.tree.map(jnp.zeros_like, state["path"])
        return learner._replace(method_state={"importance": total, "path": path, "anchor": now})

    return Term("si", init, begin_task, loss, after_step, end_visit, strengths=("strength",))


def si(network: Network, *, strength: float = 1.0, damping: float = 0.1) -> Method:
    r"""Synaptic intelligence (SI): fine-tuning that holds each shared parameter by what it did for earlier losses.

    $$ L = -\log \mathrm{softmax}(z_t)_y + c \sum_i \Omega_i (\theta_i - \theta^*_i)^2 $$
    See `synaptic_intelligence` for the importance.

    Args:
      network: an ordinary network; all leaves of params that are not `per_task` are held.
      strength: c; publications have 0.1 to 1.
      damping: xi, positive.

    Returns:
      The method. Its metrics are `classification` (nats) and `penalty`, the weighted squared distance.

    Raises:
      ValueError: for a number out of range.

    Example:
      >>> from cljax import networks
      >>> from cljax.methods import si
      >>> si(networks.mlp((8, 8, 1), 2)).name
      'si'

    Reference: Zenke et al., Continual Learning Through Synaptic Intelligence, 2017, sections 3 and 5.
    """
    return combine(finetune(network), synaptic_intelligence(strength=strength, damping=damping), name="si")
