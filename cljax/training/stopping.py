"""Stopping by patience, as one pure step after each epoch."""

from __future__ import annotations

import jax.numpy as jnp

from cljax.training.state import Patience, PhaseState
from cljax.trees import select
from cljax.types import Array, Learner, Tree


def snapshot(learner: Learner) -> dict[str, Tree]:
    """The parts of a learner that are restored from the best epoch: all that a step changes but the optimizer's."""
    return {"params": learner.params, "collections": learner.collections, "method_state": learner.method_state}


def wait(state: PhaseState, loss: Array, learning_rate: Array, stopping: Patience) -> PhaseState:
    """The patience schedule, after an epoch with this validation loss at this undiminished rate."""
    improved = loss < state.best_loss
    best = select(improved, snapshot(state.learner), state.best)
    patience = jnp.where(improved, jnp.int32(stopping.patience), state.patience - 1)
    drop = patience <= 0
    factor = jnp.where(drop, state.factor / stopping.factor, state.factor)
    learner = state.learner
    if stopping.restore_at_drop:
        learner = select(drop, learner._replace(**best), learner)
    return state._replace(
        learner=learner,
        best=best,
        best_loss=jnp.where(improved, loss, state.best_loss),
        patience=jnp.where(drop, jnp.int32(stopping.patience), patience),
        factor=factor,
        done=drop & (learning_rate * factor < stopping.minimum_learning_rate),
    )
