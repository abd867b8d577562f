"""The same methods in plain PyTorch, as a careful author writes them: images in memory, no loop over examples.

Nothing here is of cljax. Parameters are torch's (`Linear`: out by in; convolutions: out, in, height, width), by the
names that networks have here. A method is a `Reference`: its loss, and what it does to gradients and parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Tensors = dict[str, Tensor]


def scaled(images: Tensor) -> Tensor:
    """Images as networks take them: uint8 `[B, H, W, C]` to float32 `[B, C, H, W]` in memory's order, in [0, 1]."""
    return images.float().div_(255).permute(0, 3, 1, 2)


def mlp(params: Tensors, images: Tensor, gates: Tensors | None = None) -> tuple[Tensor, Tensor]:
    """The last features of a perceptron, with scale and shift after each layer where there are some, and gates."""
    values, layer = scaled(images).permute(0, 2, 3, 1).flatten(1), 0
    while f"dense_{layer}/kernel" in params:
        values = functional.linear(values, params[f"dense_{layer}/kernel"], params[f"dense_{layer}/bias"])
        if f"norm_{layer}/scale" in params:
            values = values * params[f"norm_{layer}/scale"] + params[f"norm_{layer}/bias"]
        values = values.relu()
        if gates is not None:
            values = values * gates[f"dense_{layer}"]
        layer += 1
    return values, values


def cnn(params: Tensors, images: Tensor, gates: Tensors | None = None) -> tuple[Tensor, Tensor]:
    """The last features and maps of blocks of one 3x3 convolution and pooling; pooled without dense layers."""
    del gates
    values, block = scaled(images).contiguous(memory_format=torch.channels_last), 0
    while f"conv_{block}_0/kernel" in params:
        values = functional.conv2d(
            values, params[f"conv_{block}_0/kernel"], params[f"conv_{block}_0/bias"], padding="same"
        )
        values = functional.max_pool2d(values.relu(), 2)
        block += 1
    if "dense_0/kernel" not in params:
        return values.mean(dim=(2, 3)), values
    features = functional.linear(values.flatten(1), params["dense_0/kernel"], params["dense_0/bias"]).relu()
    return features, values


def head(params: Tensors, features: Tensor, task: int) -> Tensor:
    """The logits of a task's head."""
    return functional.linear(features, params[f"head/kernel/{task}"], params[f"head/bias/{task}"])


class Reference:
    """Fine-tuning, and what other methods change of it.

    Args:
      network: `mlp` or `cnn`.
      params: by name; those of a head with `/0` for the old task and `/1` for the new one.
      state: what the method needs besides: see each.
      learning_rate: of SGD with momentum of 0.9.
      compiled: whether loss and gradient go through `torch.compile`.
    """

    def __init__(
        self, network: Callable, params: Tensors, state: dict[str, Any], *, learning_rate: float, compiled: bool = False
    ) -> None:
        self.network, self.params, self.state = network, params, state
        for leaf in params.values():
            leaf.requires_grad_(True)
        self.optimizer = torch.optim.SGD(params.values(), lr=learning_rate, momentum=0.9)
        self._loss = torch.compile(self.loss, dynamic=False) if compiled else self.loss

    def step(self, images: Tensor, labels: Tensor) -> Tensor:
        """A step; returns the loss before it."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._loss(images, labels)
        loss.backward()
        with torch.no_grad():
            self.adjust()
            self.optimizer.step()
            self.after()
        return loss.detach()

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """The mean over the batch."""
        features, _ = self.network(self.params, images)
        return functional.cross_entropy(head(self.params, features, 1), labels)

    def adjust(self) -> None:
        """Changes gradients."""

    def after(self) -> None:
        """Changes parameters after the step."""


class LwF(Reference):
    """The old head may be several, one below the other. state: `teacher`, parameters; `temperature`; `strength`."""

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        features, _ = self.network(self.params, images)
        with torch.no_grad():
            taught = head(self.state["teacher"], self.network(self.state["teacher"], images)[0], 0)
        new = head(self.params, features, 1)
        each = lambda logits: (logits / self.state["temperature"]).unflatten(1, (-1, new.shape[1]))
        softened = functional.log_softmax(each(head(self.params, features, 0)), dim=2)
        kept = -(functional.softmax(each(taught), dim=2) * softened).sum(dim=(1, 2)).mean()
        return functional.cross_entropy(new, labels) + self.state["strength"] * kept


class EWC(Reference):
    """state: `teacher`, parameters; `importance`; `strength`."""

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        teacher, pull = self.state["teacher"], 0.0
        for name, importance in self.state["importance"].items():
            pull = pull + (importance * (self.params[name] - teacher[name]) ** 2).sum()
        return super().loss(images, labels) + 0.5 * self.state["strength"] * pull


class LwM(Reference):
    """Of squared distances. state: `teacher`, parameters; `beta`; `gamma`."""

    def looks(self, params: Tensors, maps: Tensor, top: Tensor, *, trained: bool) -> Tensor:
        """The Grad-CAM of each example's class, of unit length."""
        score = head(params, maps.mean(dim=(2, 3)), 0).gather(1, top[:, None]).sum()
        (slope,) = torch.autograd.grad(score, maps, create_graph=trained)
        seen = (slope.mean(dim=(2, 3), keepdim=True) * maps).sum(dim=1).relu().flatten(1)
        return functional.normalize(seen, dim=1)

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        teacher = self.state["teacher"]
        with torch.no_grad():
            taught_features, taught_maps = self.network(teacher, images)
            taught = head(teacher, taught_features, 0).sigmoid()
        features, maps = self.network(self.params, images)
        old, new = head(self.params, features, 0), head(self.params, features, 1)
        wanted, top = functional.one_hot(labels, new.shape[1]).float(), old.argmax(dim=1)
        binary = functional.binary_cross_entropy_with_logits
        found = binary(new, wanted, reduction="sum") + self.state["beta"] * binary(old, taught, reduction="sum")
        theirs = self.looks(teacher, taught_maps.requires_grad_(), top, trained=False).detach()
        ours = self.looks(self.params, maps, top, trained=True)
        sees = (ours.detach() > 0).any(dim=1) & (theirs > 0).any(dim=1)  # nothing is kept of a map that is 0
        apart = (((ours - theirs) ** 2).sum(dim=1) * sees).sum()
        return (found + self.state["gamma"] * apart) / len(images)


class Masked(Reference):
    """Tasks own features: gradients are masked. state: `gates`; `masks` by parameter; `l1`, or None."""

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        features, _ = self.network(self.params, images, self.state["gates"])
        return functional.cross_entropy(head(self.params, features, 1), labels)

    def adjust(self) -> None:
        for name, leaf in self.params.items():
            if self.state["l1"] and name.endswith(("kernel", "kernel/1")) and leaf.grad is not None:
                leaf.grad.add_(leaf.sign(), alpha=self.state["l1"])
            if name in self.state["masks"] and leaf.grad is not None:
                leaf.grad.mul_(self.state["masks"][name])


class HAT(Reference):
    """state: `taken` by layer; `masks` by parameter; `strength`; `max_scale`; `progress`, in [0, 1]."""

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        largest = self.state["max_scale"]
        self.scale = 1 / largest + (largest - 1 / largest) * self.state["progress"]
        embeddings = {name: self.params[f"task_embedding/{name}"] for name in self.state["taken"]}
        gates = {name: torch.sigmoid(self.scale * leaf) for name, leaf in embeddings.items()}
        free = {name: 1 - leaf for name, leaf in self.state["taken"].items()}
        used = sum((gates[name] * free[name]).sum() for name in gates)
        features, _ = self.network(self.params, images, gates)
        value = functional.cross_entropy(head(self.params, features, 1), labels)
        return value + self.state["strength"] * used / sum(leaf.sum() for leaf in free.values())

    def adjust(self) -> None:
        for name, mask in self.state["masks"].items():
            self.params[name].grad.mul_(mask)
        for name in self.state["taken"]:
            leaf = self.params[f"task_embedding/{name}"]
            above = torch.cosh((self.scale * leaf).clamp(-50, 50)) + 1
            leaf.grad.mul_(self.state["max_scale"] / self.scale * above / (torch.cosh(leaf) + 1))

    def after(self) -> None:
        for name in self.state["taken"]:
            self.params[f"task_embedding/{name}"].clamp_(-6, 6)


class DFCNN(Reference):
    """Kernels from factors: `NAME/knowledge_base` `[1, c_base, h, w]`, `NAME/deconvolution` `[c_base, c, p, p]` ...

    state: `layers`, names of kernels; `strides`.
    """

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        made = dict(self.params)
        for layer in self.state["layers"]:
            base, filters, bias, tensor = (
                self.params[f"{layer}/{part}"] for part in ("knowledge_base", "deconvolution", "bias", "contraction")
            )
            padding = (filters.shape[-1] - 1) // 2
            basis = functional.conv_transpose2d(base, filters, bias, self.state["strides"][layer], padding)[0]
            made[layer] = torch.einsum("cyx,cio->oiyx", basis, tensor)
        features, _ = self.network(made, images)
        return functional.cross_entropy(head(made, features, 1), labels)
