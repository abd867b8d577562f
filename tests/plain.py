"""One visit to a task, the plain way: its phases one after the other, from the engine's functions alone."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from cljax.training.engine import Engine
from cljax.training.state import EpochLog


class Log(NamedTuple):
    """What a visit leaves: `EpochLog` of `[P, E]`, NaN where no epoch was trained; `[P]` the epochs that were."""

    epochs: EpochLog
    trained: Any


def make_visit(engine: Engine, *, longest: int):
    """`visit(learner, clock, tables, key, epochs) -> (learner, Log)` of the learner at rest; `epochs` `[P]`."""

    def visit(learner, clock, tables, key, epochs):
        def one(focused, given):
            phase, count = given
            now = clock._replace(phase=phase)
            begun = engine.begin_phase(focused, now, tables, key)
            missing = jnp.full(longest, jnp.nan, jnp.float32)

            def body(carry):
                state, log = carry
                place = state.epoch
                state, entry = engine.epoch(state, now, tables, key)
                return state, jax.tree.map(lambda values, value: values.at[place].set(value), log, entry)

            more = lambda carry: (carry[0].epoch < count) & ~carry[0].done
            state, log = lax.while_loop(more, body, (begun, EpochLog(missing, missing, missing)))
            return engine.end_phase(state, now, tables, key)[0], Log(log, state.epoch)

        focused = engine.begin_visit(learner, clock, tables, key)
        phases = jnp.arange(len(epochs), dtype=jnp.int32), jnp.asarray(epochs, jnp.int32)
        focused, logs = lax.scan(one, focused, phases)
        return engine.end_visit(focused, clock), logs

    return visit
