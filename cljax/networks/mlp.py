"""Multilayer perceptron."""

from collections.abc import Mapping, Sequence
from functools import partial

import flax.linen as nn
import jax

from cljax.networks.layers import Cut, Normalization, activate, make_norm
from cljax.networks.linen import Scalars, chain_network, check_numbers
from cljax.numbers import flag
from cljax.types import Array, Network


class _MLP(Cut):
    outputs: int
    hidden: tuple[int, ...]
    normalization: Normalization
    norm_after: bool
    dropout: float

    def setup(self) -> None:
        self.dense = [nn.Dense(features) for features in self.hidden]
        self.norm = [make_norm(self.normalization) for _ in self.hidden]
        self.drop = nn.Dropout(self.dropout)
        self.head = nn.Dense(self.outputs)

    def encode(self, inputs: Array, gates: Mapping[str, Array], frozen: Mapping[str, Array], *, train: bool):
        unit = partial(activate, train=train, norm_after=self.norm_after)
        activations: dict[str, Array] = {}
        values = jax.lax.collapse(inputs, 1)
        for index, (layer, norm) in enumerate(zip(self.dense, self.norm, strict=True)):
            if index:
                values = self.drop(values, deterministic=not train)
            name = f"dense_{index}"
            values = unit(layer, norm, values, gate=gates[name], frozen=frozen.get(name))
            activations[name] = values
        return values, activations

    def decode(self, maps: Array, gates: Mapping[str, Array], frozen: Mapping[str, Array], *, train: bool):
        del gates, frozen
        return (self.head(self.drop(maps, deterministic=not train)), maps), {}


def mlp(
    inputs: Sequence[int],
    outputs: int,
    *,
    hidden: Sequence[int] = (128, 128),
    normalization: Normalization = None,
    norm_after: bool = False,
    dropout: float = 0.0,
    mean: Scalars = 0.0,
    std: Scalars = 1.0,
    per_task: Sequence[str] | None = None,
) -> Network:
    """Multilayer perceptron: flatten, then dense, norm, ReLU, gate, dropout for each hidden layer, then the head.

    Parameters are `dense_i`, `norm_i` and `head`; the gate of layer i is `dense_i`. The maps are the last hidden
    activations `[B, D]`; the features are the same, as they are before the last dropout.

    Args:
      inputs: shape of one example, such as `(28, 28, 1)`.
      outputs: number of logits.
      hidden: width of each hidden layer, at least one.
      normalization: `'batch'`, `'feature'` (see `FeatureNorm`) or None.
      norm_after: whether a norm comes after its ReLU instead of before it; the gate comes last either way.
      dropout: rate after each hidden layer.
      mean: of inputs in [0, 1], one number or one for each channel.
      std: the standard deviation, in the same form.
      per_task: leaf paths that belong to a task; the head's if None.

    Returns:
      The network.

    Raises:
      ValueError: if there is no hidden layer, or a number is out of range.

    Example:
      >>> import jax
      >>> from cljax.networks import mlp
      >>> network = mlp((8, 8, 1), 2, hidden=(16,))
      >>> params, collections = network.init(jax.random.key(0))
      >>> jax.tree.map(lambda leaf: leaf.shape, params)
      {'dense_0': {'bias': (16,), 'kernel': (64, 16)}, 'head': {'bias': (2,), 'kernel': (16, 2)}}
      >>> network.per_task, collections['gates']['dense_0'].shape
      (('head/kernel', 'head/bias'), (16,))
    """
    check_numbers(inputs, outputs, hidden, [dropout])
    if not hidden:
        raise ValueError("An MLP needs at least one hidden layer: hidden=(128,), for example.")
    module = _MLP(outputs, tuple(hidden), normalization, flag("norm_after", norm_after), dropout)
    layers = [(f"dense_{index}", f"norm_{index}", size, 1) for index, size in enumerate(hidden)]
    return chain_network(
        module, inputs, outputs, layers, normalization=normalization, per_task=per_task, mean=mean, std=std
    )
