"""Each method of cljax in its second task, and the same in PyTorch, from the same numbers."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

from cljax import methods, networks, streams, task_params, training
from cljax.training.plan import in_stream
from cljax.types import Batch, Method, Network, make_clock
from experiments.benchmark import reference

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


class Case(NamedTuple):
    """A method, its network, and what plays its part in PyTorch.

    Attributes:
      make: of the network, the method.
      network: by the name in `NETWORKS`.
      reference: a class of `experiments.benchmark.reference`.
    """

    make: Callable[[Network], Method]
    network: str
    reference: type[reference.Reference]


NETWORKS: dict[str, Callable[[Size], Network]] = {
    "mlp": lambda size: networks.mlp((28, 28, 1), CLASSES, hidden=(size.width,) * 2),
    "mlp_norm": lambda size: networks.mlp((28, 28, 1), CLASSES, hidden=(size.width,) * 2, normalization="feature"),
    "cnn": lambda size: networks.cnn((32, 32, 3), CLASSES, channels=_blocks(size), dense=(size.dense,)),
    "cnn_pooled": lambda size: networks.cnn((32, 32, 3), CLASSES, channels=_blocks(size), dense=(), pooled=True),
}
CASES = {  # LwM's other distance pulls nothing here where two maps are equal up to rounding, and by 1 in PyTorch
    "finetune": Case(methods.finetune, "mlp", reference.Reference),
    "lwf": Case(methods.lwf, "mlp", reference.LwF),
    "ewc": Case(methods.ewc, "mlp", reference.EWC),
    "hat": Case(methods.hat, "mlp", reference.HAT),
    "tfm": Case(methods.tfm, "mlp_norm", reference.Masked),
    "clnp": Case(methods.clnp, "mlp", reference.Masked),
    "finetune, cnn": Case(methods.finetune, "cnn", reference.Reference),
    "lwf, cnn": Case(methods.lwf, "cnn", reference.LwF),
    "lwm, cnn": Case(functools.partial(methods.lwm, distance="l2"), "cnn_pooled", reference.LwM),
    "df_cnn, cnn": Case(methods.df_cnn, "cnn", reference.DFCNN),
}


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
        self.epoch = jax.jit(self.engine.epoch, donate_argnums=0)

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

    def steps(self, count: int) -> tuple[list[float], dict[str, np.ndarray]]:
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


class Theirs:
    """The same in PyTorch."""

    def __init__(self, ours: Ours, case: Case, *, compiled: bool = False) -> None:
        self.size = ours.size
        self.images, self.labels = torch.from_numpy(ours.images), torch.from_numpy(ours.labels).long()
        network = reference.mlp if case.network.startswith("mlp") else reference.cnn
        like = ours.method.network
        params, teacher = (as_torch(values, like) for values in (named(ours.learner.params), ours.teacher))
        self.back = lambda: {name: leaf.detach().numpy() for name, leaf in self.reference.params.items()}
        self.reference = case.reference(
            network, params, state_of(ours, case, teacher), learning_rate=RATE, compiled=compiled
        )

    def steps(self, count: int) -> tuple[list[float], dict[str, np.ndarray]]:
        """As of `Ours`."""
        size, found = self.size.batch_size, []
        for step in range(count):
            part = slice(step * size, (step + 1) * size)
            found.append(float(self.reference.step(self.images[part], self.labels[part])))
        return found, self.back()

    def time(self) -> float:
        """As of `Ours`."""
        begun, size = time.perf_counter(), self.size.batch_size
        order = torch.randperm(len(self.images))
        for step in range(self.size.steps):
            rows = order[step * size : (step + 1) * size]
            loss = self.reference.step(self.images[rows], self.labels[rows])
        loss.item()
        return (time.perf_counter() - begun) / self.size.steps


def state_of(ours: Ours, case: Case, teacher: dict[str, torch.Tensor]) -> dict[str, Any]:
    """What a reference needs besides its parameters."""
    learner = ours.learner
    hyper = {name: float(value) for name, value in learner.hyper.items()}
    kept = {task_params.path_name(path): np.asarray(leaf) for path, leaf in _leaves(learner.method_state)}
    if case.reference is reference.EWC:
        found = {name.rpartition("importance/")[2]: leaf for name, leaf in kept.items() if "importance/" in name}
        return {"teacher": teacher, "importance": as_torch(found, ours.method.network), "strength": hyper["strength"]}
    if case.reference is reference.HAT:
        taken = {name.rpartition("/")[2]: leaf for name, leaf in kept.items() if "taken" in name}
        masks = {name: 1 - mask for name, mask in both_ends(taken, np.minimum).items()}
        state = {"strength": hyper["strength"], "max_scale": 400.0, "progress": SLIGHTLY}
        return {**state, "taken": _tensors(taken), "masks": as_torch(masks, ours.method.network)}
    if case.reference is reference.Masked:
        owner = {name.rpartition("/")[2]: leaf for name, leaf in kept.items() if "owner" in name}
        old, seen = ({name: (leaf <= task) * 1.0 for name, leaf in owner.items()} for task in (0, 1))
        if "l1" in hyper:  # of pruning: into new units alone
            new = {name: seen[name] - old[name] for name in owner}
            masks = {
                name: np.broadcast_to(mask, mask.shape) for name, mask in both_ends(new, lambda _, out: out).items()
            }
        else:
            masks = {
                name: mask - both_ends(old, np.multiply)[name] for name, mask in both_ends(seen, np.multiply).items()
            }
        state = {"l1": hyper.get("l1"), "gates": _tensors(seen)}
        return {**state, "masks": as_torch(masks, ours.method.network)}
    if case.reference is reference.DFCNN:
        layers = sorted({name.rpartition("/")[0] for name in ours.teacher if name.endswith("/contraction")})
        return {"layers": layers, "strides": dict.fromkeys(layers, 2)}
    return {"teacher": teacher, **hyper}


def both_ends(ends: dict[str, np.ndarray], join: Callable) -> dict[str, np.ndarray]:
    """For the weights and biases of a perceptron's layers: `join` of a number of the input and one of the output."""
    found, before = {}, np.ones(1, np.float32)
    for name, after in sorted(ends.items()):
        found[f"{name}/kernel"] = np.asarray(join(before[:, None], after[None, :]), np.float32)
        found[f"{name}/bias"] = np.asarray(join(np.ones_like(after), after), np.float32)
        before = after
    return found


def named(tree: Any) -> dict[str, np.ndarray]:
    """Leaves by path; of heads that are kept stacked, one for each task, else the new task's alone."""
    found = {}
    for path, leaf in _leaves(tree):
        name, values = task_params.path_name(path), np.asarray(leaf)
        if not name.startswith("head/"):
            found[name] = values
        elif values.ndim == (3 if name.endswith("kernel") else 2):
            found |= {f"{name}/{task}": row for task, row in enumerate(values)}
        else:
            found[f"{name}/1"] = values
    return found


def as_torch(values: dict[str, np.ndarray], network: Network) -> dict[str, torch.Tensor]:
    """Parameters as PyTorch has them: outputs first; what reads flattened maps, by channel first."""
    found = {}
    for name, leaf in values.items():
        if name.endswith(("knowledge_base", "deconvolution", "contraction")) or ("/kernel/" in name and leaf.ndim > 2):
            turn = {"knowledge_base": (2, 0, 1), "deconvolution": (3, 2, 0, 1)}.get(name.rpartition("/")[2])
            leaf = leaf.transpose(turn) if turn else leaf
            leaf = leaf[None] if name.endswith("knowledge_base") else leaf
        elif leaf.ndim == 4:
            leaf = leaf.transpose(3, 2, 0, 1)
        elif leaf.ndim == 2:
            leaf = np.broadcast_to(leaf, leaf.shape)
            if name == "dense_0/kernel" and len(network.inputs) == 3 and "conv_0_0" in network.shapes[0]:
                blocks = sum(layer.startswith("conv") for layer in network.shapes[0])
                side, features = network.inputs[0] // 2**blocks, leaf.shape[1]
                leaf = leaf.reshape(side, side, -1, features).transpose(2, 0, 1, 3).reshape(-1, features)
            leaf = leaf.T
        found[name] = torch.tensor(np.ascontiguousarray(leaf))
        if leaf.ndim == 4 and "knowledge" not in name:
            found[name] = found[name].contiguous(memory_format=torch.channels_last)
    return found


def apart(ours: Ours, theirs: Theirs, *, steps: int = 2) -> float:
    """After some steps, the largest difference of a loss or parameter, relative to the largest of its kind."""
    (losses, params), (others, found) = ours.steps(steps), theirs.steps(steps)
    mine = {name: leaf.numpy() for name, leaf in as_torch(params, ours.method.network).items()}
    relative = lambda one, two: float(np.max(np.abs(one - two)) / max(float(np.max(np.abs(two))), 1e-6))
    return max(relative(np.asarray(losses), np.asarray(others)), *(relative(mine[name], found[name]) for name in mine))


def _tensors(values: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(np.asarray(leaf, np.float32)) for name, leaf in values.items()}


def _leaves(tree: Any) -> list:
    return jax.tree_util.tree_flatten_with_path(tree)[0]


def _blocks(size: Size) -> tuple[tuple[int, ...], ...]:
    return tuple((features,) for features in size.channels)
