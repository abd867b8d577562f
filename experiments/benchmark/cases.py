"""Each method of cljax in its second task, and the same in PyTorch, from the same numbers."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import torch

from cljax import methods, task_params
from cljax.cli.process import use_threads
from cljax.types import Method, Network
from experiments.benchmark import reference
from experiments.benchmark.ours import RATE, SLIGHTLY, Found, Ours, leaves, named
from experiments.saving import command_line, write_result


class Case(NamedTuple):
    """A method, its network, and what plays its part in PyTorch.

    Attributes:
      make: of the network, the method.
      network: by the name in `NETWORKS`.
      reference: a class of `experiments.benchmark.reference`.
      compiles: whether `torch.compile` takes it; of a loss with a gradient inside it does not.
    """

    make: Callable[[Network], Method]
    network: str
    reference: type[reference.Reference]
    compiles: bool = True


CASES = {  # LwM's other distance pulls nothing here where two maps are equal up to rounding, and by 1 in PyTorch
    "finetune": Case(methods.finetune, "mlp", reference.Reference),
    "lwf": Case(methods.lwf, "mlp", reference.LwF),
    "ewc": Case(methods.ewc, "mlp", reference.EWC),
    "hat": Case(methods.hat, "mlp", reference.HAT),
    "tfm": Case(methods.tfm, "mlp_norm", reference.Masked),
    "clnp": Case(methods.clnp, "mlp", reference.Masked),
    "finetune, cnn": Case(methods.finetune, "cnn", reference.Reference),
    "lwf, cnn": Case(methods.lwf, "cnn", reference.LwF),
    "lwm, cnn": Case(functools.partial(methods.lwm, distance="l2"), "cnn_pooled", reference.LwM, False),
    "df_cnn, cnn": Case(methods.df_cnn, "cnn", reference.DFCNN),
}


class Theirs:
    """The same in PyTorch, on one of its devices."""

    def __init__(self, ours: Ours, case: Case, *, compiled: bool = False, device: str = "cpu") -> None:
        self.size, like = ours.size, ours.method.network
        network = reference.mlp if case.network.startswith("mlp") else reference.cnn
        params, teacher = (as_torch(values, like) for values in (named(ours.learner.params), ours.teacher))
        images, labels = torch.from_numpy(ours.images), torch.from_numpy(ours.labels).long()
        move = lambda leaf: leaf.to(device) if isinstance(leaf, torch.Tensor) else leaf
        given = jax.tree.map(move, (images, labels, params, state_of(ours, case, teacher)))
        self.images, self.labels, params, state = given
        self.reference = case.reference(network, params, state, learning_rate=RATE, compiled=compiled)

    def steps(self, count: int) -> Found:
        """As of `Ours`; parameters as PyTorch has them."""
        size, found = self.size.batch_size, []
        for step in range(count):
            part = slice(step * size, (step + 1) * size)
            found.append(float(self.reference.step(self.images[part], self.labels[part])))
        return found, arrays(self.reference.params)

    def time(self) -> float:
        """As of `Ours`."""
        begun, size = time.perf_counter(), self.size.batch_size
        order = torch.randperm(len(self.images), device=self.images.device)
        for step in range(self.size.steps):
            rows = order[step * size : (step + 1) * size]
            loss = self.reference.step(self.images[rows], self.labels[rows])
        loss.item()
        return (time.perf_counter() - begun) / self.size.steps


def write_rows(config: Any, row_of: Callable[[str, Any], dict], name: str, module: str) -> None:
    """Times the cases that `config.only` names, all threads at work, and writes their rows."""
    use_threads()
    if config.threads:
        torch.set_num_threads(config.threads)
    rows = [row_of(case, config) for case in config.only]
    facts = {"torch": torch.__version__, "torch_threads": torch.get_num_threads()}
    write_result(config, name, {"rows": rows, **facts}, command_line(module))


def arrays(params: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Tensors as arrays on the host."""
    return {name: leaf.detach().cpu().numpy() for name, leaf in params.items()}


def state_of(ours: Ours, case: Case, teacher: dict[str, torch.Tensor]) -> dict[str, Any]:
    """What a reference needs besides its parameters."""
    learner = ours.learner
    hyper = {name: float(value) for name, value in learner.hyper.items()}
    kept = {task_params.path_name(path): np.asarray(leaf) for path, leaf in leaves(learner.method_state)}
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


def _tensors(values: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(np.asarray(leaf, np.float32)) for name, leaf in values.items()}
