"""Visits in any order under any of four optimizers, as data: one compiled program, no bit of old logits moves."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
from hypothesis import strategies as st

from cljax import streams, task_params, training
from cljax.storage import checkpoints
from cljax.types import Learner, Output, Sizes, make_clock
from tests import conformance
from tests.plain import make_visit

SETTINGS = training.Settings(batch_size=16, learning_rate=0.05, evaluation_batch=32)

orders = st.lists(st.integers(0, 4), min_size=1, max_size=5).map(lambda drawn: _by_first_visit([0, *drawn]))
"""Visits to up to five tasks, some of them more than once."""


def _by_first_visit(tasks):
    names: dict[int, int] = {}
    return [names.setdefault(task, len(names)) for task in tasks]


def any_optimizer(which, names=tuple(conformance.OPTIMIZERS)):
    """The optimizer of these names with this number, which may be traced; all states are kept."""
    every = [conformance.OPTIMIZERS[name][0] for name in names]

    def update(updates, states, params=None):
        found = [one.update(updates, state, params) for one, state in zip(every, states, strict=True)]
        chosen = jax.tree.map(lambda *leaves: jnp.stack(leaves)[which], *(updates for updates, _ in found))
        return chosen, tuple(state for _, state in found)

    return optax.GradientTransformation(lambda params: tuple(one.init(params) for one in every), update)


def five_tasks():
    """Five tasks of two digits."""
    return streams.split(conformance.digits(), tasks=5)


class Visits:
    """A method on a stream: `start`, `visit` and `logits`, each compiled once, for any of these optimizers."""

    def __init__(self, method, stream, *, epochs=1, optimizers=tuple(conformance.OPTIMIZERS)):
        rates = np.array([conformance.OPTIMIZERS[name][1] for name in optimizers], np.float32)
        self.method, self.stream = method, stream
        self.tables = jax.tree.map(jnp.asarray, stream.tables)
        fractions = [max(1, epochs) for _ in method.phases]
        images = self.tables.examples[:24]

        def engine(which):
            return training.make_engine(
                method,
                any_optimizer(which, optimizers),
                SETTINGS,
                scenario=stream.scenario,
                max_examples=streams.max_examples(stream.tables),
            )

        self.traces = 0

        def visit(learner, clock, which, tables, key):
            self.traces += 1
            learner = learner._replace(hyper={**learner.hyper, "learning_rate": jnp.asarray(rates)[which]})
            one = make_visit(engine(which), longest=max(fractions))
            return one(learner, clock, tables, key, jnp.asarray(fractions, jnp.int32))[0]

        self._start = jax.jit(engine(0).init)
        self.visit = jax.jit(visit)
        tasks = jnp.arange(stream.tables.classes.shape[0], dtype=jnp.int32)
        self.logits = jax.jit(lambda learner: jax.lax.map(lambda t: method.predict(learner, images, t), tasks))

    def start(self, seed=0, **hyper) -> Learner:
        learner = self._start(jax.random.key(seed), self.tables)
        return learner._replace(hyper={**learner.hyper, **{name: jnp.float32(value) for name, value in hyper.items()}})

    def run(self, learner, order, *, which=0, seed=0, after=(), disk=None):
        """Visits tasks in order, `after` others; asserts that no other task's logits change once it was visited.

        With `disk`, a folder, the learner goes there and back after a visit in the middle.
        """
        key, which = jax.random.key(seed), jnp.int32(which)
        before = np.asarray(self.logits(learner))
        for number, task in enumerate(order):
            seen = [*after, *order[:number]]
            clock = make_clock(round=len(seen), task=task, newest=max([*seen, task]), first=task not in seen)
            learner = self.visit(learner, clock, which, self.tables, key)
            if disk is not None and number == (len(order) - 1) // 2:
                checkpoints.save(disk, learner)
                learner = checkpoints.restore(disk, learner).tree
            now = np.asarray(self.logits(learner))
            assert np.isfinite(now).all()
            for old in set(seen) - {task}:
                assert now[old].tobytes() == before[old].tobytes(), (order, number, old)
            assert task in seen or now[task].tobytes() != before[task].tobytes(), "a first visit moves its own task"
            before = now
        assert self.traces == 1
        return learner


def leaving(collections):
    """An output of the network that has nothing but collections."""
    return Output(None, None, None, {}, collections)


def single(method, network, *, tasks=1):
    """A focused learner that never met an engine: params and collections of one task, no optimizer."""
    params, collections, state, hyper = method.init(jax.random.key(0), Sizes(tasks, network.outputs, {}))
    return Learner(params, collections, (), state, hyper, None, task_params.resting(method.per_task, tasks=tasks))
