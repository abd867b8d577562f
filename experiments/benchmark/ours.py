"""Each method of cljax in its second task: two steps whose losses can be compared, and the time of an epoch."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cljax import networks, streams, task_params, training
from cljax.training.engine import with_even_size
from cljax.training.plan import in_stream
from cljax.types import Batch, Method, Network, make_clock

CLASSES, RATE = 10, 0.01
SLIGHTLY = 0.01
"""How far through the epoch HAT is compared: gates are not so steep there that PyTorch's sigmoid has no gradient."""


@dataclasses.dataclass(frozen=True)
class Size:
    """Widths of the perceptron, features of the convolutions, examples of a step, steps of an epoch."""

    width: int = 1000
    channels: tuple[int, ...] = (32, 64)
    dense: int = 64
    batch_size: int = 128
    steps: int = 8


NETWORKS: dict[str, Callable[[Size], Network]] = {
    "mlp": lambda size: networks.mlp((28, 28, 1), CLASSES, hidden=(size.width,) * 2),
    "mlp_norm": lambda size: networks.mlp((28, 28, 1), CLASSES, hidden=(size.width,) * 2, normalization="feature"),
    "cnn": lambda size: networks.cnn((32, 32, 3), CLASSES, channels=_blocks(size), dense=(size.dense,)),
    "cnn_pooled": lambda size: networks.cnn((32, 32, 3), CLASSES, channels=_blocks(size), dense=(), pooled=True),
}

Found = tuple[list[float], dict[str, np.ndarray]]
"""The losses of some steps, and the parameters after them, by name."""


class Ours:
    """The second task's visit of a method here, its images on the device."""

    def __init__(self, method: Method, size: Size) -> None:
        self.size, self.method = size, method
        generator = np.random.default_rng(0)
        examples = size.batch_size * size.steps
        self.images = generator.integers(0, 256, (examples, *method.network.inputs), np.uint8)
        self.labels = generator.integers(0, CLASSES, examples).astype(np.int32)
        self.labels[:CLASSES] = np.arange(CLASSES)
        part = (self.images, self.labels, self.images[:20], self.labels[:20])
        stream = streams.from_tasks([part] * 2, validation=0.0)
        self.tables = jax.device_put(stream.tables)
        settings = training.Settings(batch_size=size.batch_size, learning_rate=RATE)
        optimizer = optax.sgd(1.0, momentum=0.9)
        most = {"train": examples, "validation": 1, "test": 20}
        self.engine = training.make_engine(method, optimizer, settings, scenario="task", max_examples=most)
        self.key, last = jax.random.key(0), len(method.phases) - 1
        learner = jax.jit(self.engine.init)(self.key, self.tables)
        learner = self.visit(learner, make_clock(round=0, task=0, phase=last, first=True))
        learner = jax.jit(self.engine.end_visit)(learner, make_clock(round=0, task=0, phase=last))
        self.clock = make_clock(round=1, task=1, phase=last, newest=1, progress=SLIGHTLY)
        learner = self.visit(learner, self.clock)
        self.teacher = named(learner.params)
        self.learner = self.moved(learner, generator)
        self.mask = jax.jit(method.update_mask)(self.learner, self.clock)
        self.state = jax.jit(self.engine.begin_phase)(self.learner, self.clock, self.tables, self.key)
        known = lambda tables: with_even_size(tables, examples)  # as of `training.drive`
        epoch = lambda state, clock, tables, key: self.engine.epoch(state, clock, known(tables), key)
        self.epoch = jax.jit(epoch, donate_argnums=0)

    def visit(self, learner: Any, clock: Any) -> Any:
        """Begins a visit."""
        return jax.jit(self.engine.begin_visit)(learner, clock, self.tables, self.key)

    def moved(self, learner: Any, generator: np.random.Generator) -> Any:
        """The learner some way into its visit: parameters moved, importance and attention as tasks leave them."""
        near = lambda leaf: leaf + 0.01 * generator.standard_normal(leaf.shape).astype(np.float32)
        trains = jax.jit(self.method.update_mask)(learner, self.clock)[0]
        params = jax.tree.map(lambda leaf, mask: jnp.where(mask > 0, near(leaf), leaf), learner.params, trains)

        def known(path: Any, leaf: Any) -> Any:
            parts = set(task_params.path_name(path).split("/"))
            return generator.uniform(0, 1, leaf.shape).astype(np.float32) if parts & {"importance", "taken"} else leaf

        state = jax.tree_util.tree_map_with_path(known, learner.method_state)
        return jax.tree.map(jnp.asarray, learner._replace(params=params, method_state=state))

    def steps(self, count: int) -> Found:
        """The losses of so many steps on the first batches, and the parameters after them."""
        learner, found = self.learner, []
        for step in range(count):
            images, labels = self.batch(step)
            ones = jnp.ones(len(labels))
            place = jnp.arange(len(labels), dtype=jnp.int32)
            batch = Batch(jnp.asarray(images), jnp.asarray(labels), jnp.ones_like(place), place, ones)
            clock = in_stream(self.clock, self.tables, "task")
            learner, loss, _ = self.engine.step(learner, self.mask, clock, batch, self.key)
            found.append(float(loss))
        return found, named(learner.params)

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """The examples of a step, in the order of the data."""
        part = slice(step * self.size.batch_size, (step + 1) * self.size.batch_size)
        return self.images[part], self.labels[part]

    def time(self) -> float:
        """Trains an epoch; seconds a step."""
        begun = time.perf_counter()
        self.state, log = self.epoch(self.state, self.clock, self.tables, self.key)
        jax.block_until_ready((self.state, log))
        return (time.perf_counter() - begun) / self.size.steps


def named(tree: Any) -> dict[str, np.ndarray]:
    """Leaves by path; of heads that are kept stacked, one for each task, else the new task's alone."""
    found = {}
    for path, leaf in leaves(tree):
        name, values = task_params.path_name(path), np.asarray(leaf)
        if not name.startswith("head/"):
            found[name] = values
        elif values.ndim == (3 if name.endswith("kernel") else 2):
            found |= {f"{name}/{task}": row for task, row in enumerate(values)}
        else:
            found[f"{name}/1"] = values
    return found


def apart(one: Found, other: Found) -> float:
    """The largest difference of a loss or parameter, relative to the largest of its kind."""
    (losses, params), (others, found) = one, other
    relative = lambda mine, two: float(np.max(np.abs(mine - two)) / max(float(np.max(np.abs(two))), 1e-6))
    return max(
        relative(np.asarray(losses), np.asarray(others)), *(relative(params[name], found[name]) for name in params)
    )


def leaves(tree: Any) -> list:
    """Leaves with their paths."""
    return jax.tree_util.tree_flatten_with_path(tree)[0]


def _blocks(size: Size) -> tuple[tuple[int, ...], ...]:
    return tuple((features,) for features in size.channels)
