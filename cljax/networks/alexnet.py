"""AlexNet: five convolutions, the first with large strided kernels, and two wide hidden layers."""

from collections.abc import Mapping, Sequence
from functools import partial

import flax.linen as nn
import jax

from cljax.networks.convolution import Padding, max_pool
from cljax.networks.layers import Convolution, Cut, Normalization, activate, make_norm
from cljax.networks.linen import Scalars, chain_network, check_inputs, check_numbers
from cljax.numbers import flag, real
from cljax.types import Array, Network

CONVOLUTIONS: tuple[tuple[int, int, int, Padding, bool], ...] = (
    (64, 11, 4, ((2, 2), (2, 2)), True),
    (192, 5, 1, "SAME", True),
    (384, 3, 1, "SAME", False),
    (256, 3, 1, "SAME", False),
    (256, 3, 1, "SAME", True),
)
"""Features, window, stride and padding of each convolution, and whether 3x3 pooling of stride 2 follows."""
DENSE = (4096, 4096)


class _AlexNet(Cut):
    outputs: int
    channels: tuple[int, ...]
    dense_features: tuple[int, ...]
    dropout: float
    normalization: Normalization
    norm_after: bool

    def setup(self) -> None:
        init = nn.initializers.he_normal()
        self.conv = [
            Convolution(features, window, stride, padding, kernel_init=init)
            for features, (_, window, stride, padding, _) in zip(self.channels, CONVOLUTIONS, strict=True)
        ]
        self.dense = [nn.Dense(features, kernel_init=init) for features in self.dense_features]
        self.conv_norm = [make_norm(self.normalization) for _ in self.conv]
        self.dense_norm = [make_norm(self.normalization) for _ in self.dense]
        self.drop = nn.Dropout(self.dropout)
        self.head = nn.Dense(self.outputs)

    def encode(self, inputs: Array, gates: Mapping[str, Array], frozen: Mapping[str, Array], *, train: bool):
        unit = partial(activate, train=train, norm_after=self.norm_after)
        activations: dict[str, Array] = {}
        values = inputs
        for index, (layer, norm, (*_, pooled)) in enumerate(zip(self.conv, self.conv_norm, CONVOLUTIONS, strict=True)):
            name = f"conv_{index}"
            values = unit(layer, norm, values, gate=gates[name], frozen=frozen.get(name))
            activations[name] = values
            values = max_pool(values, window=3, stride=2) if pooled else values
        return values, activations

    def decode(self, maps: Array, gates: Mapping[str, Array], frozen: Mapping[str, Array], *, train: bool):
        unit = partial(activate, train=train, norm_after=self.norm_after)
        activations: dict[str, Array] = {}
        features = values = jax.lax.collapse(maps, 1)
        for index, (layer, norm) in enumerate(zip(self.dense, self.dense_norm, strict=True)):
            name = f"dense_{index}"
            features = unit(layer, norm, values, gate=gates[name], frozen=frozen.get(name))
            activations[name] = features
            values = self.drop(features, deterministic=not train)
        return (self.head(values), features), activations


def alexnet(
    inputs: Sequence[int] = (224, 224, 3),
    outputs: int = 1000,
    *,
    width: float = 1.0,
    dropout: float = 0.5,
    normalization: Normalization = None,
    norm_after: bool = False,
    mean: Scalars = 0.0,
    std: Scalars = 1.0,
    per_task: Sequence[str] | None = None,
) -> Network:
    """AlexNet as it is mostly used today: one column of 64, 192, 384, 256, 256 features, no response normalisation.

    Convolutions of 11x11 (stride 4, padding 2), 5x5 and three times 3x3; 3x3 pooling of stride 2 after the first, the
    second and the last; two dense layers of 4096, each followed by dropout; the head. Parameters are `conv_0` to
    `conv_4`, `dense_0`, `dense_1` and `head`, and the norms' `conv_norm_i` and `dense_norm_i`; a gate has its layer's
    name. The maps are the last pooled ones, flattened in the order height, width, feature.

    The network of 2012 had two columns of together 96, 256, 384, 384, 256 features, three of its convolutions within
    a column, and normalised responses; its parameters do not fit here.

    Args:
      inputs: shape of one example, `(H, W, C)`, both sides at least 63.
      outputs: number of logits.
      width: by which the features of all hidden layers are multiplied.
      dropout: rate after each dense layer.
      normalization: `'batch'`, `'feature'` (see `FeatureNorm`) or None, of convolutions and dense layers.
      norm_after: whether a norm comes after its ReLU instead of before it; the gate comes last either way.
      mean: of inputs in [0, 1], one number or one for each channel.
      std: the standard deviation, in the same form.
      per_task: leaf paths that belong to a task; the head's if None.

    Returns:
      The network: 61,100,840 parameters with a head of 1000, 9,344 gated features.

    Raises:
      ValueError: for images too small.

    Example:
      >>> import jax
      >>> from cljax.networks import alexnet
      >>> params, collections = alexnet().shapes
      >>> sum(leaf.size for leaf in jax.tree.leaves(params)), sum(gate.size for gate in collections['gates'].values())
      (61100840, 9344)

    Reference: Krizhevsky, One weird trick for parallelizing convolutional neural networks, 2014, footnote 1; after
    Krizhevsky, Sutskever and Hinton, ImageNet Classification with Deep Convolutional Neural Networks, 2012.
    """
    check_numbers(inputs, outputs, [], [dropout])
    real("width", width, above=0)
    shape = check_inputs(inputs, images=True)
    height, width_of_maps = (_after_convolutions(side) for side in shape[:2])
    if min(height, width_of_maps) < 1:
        raise ValueError(f"AlexNet needs images of at least 63x63 pixels, but the inputs have shape {shape}.")
    channels = tuple(max(1, round(width * features)) for features, *_ in CONVOLUTIONS)
    dense = tuple(max(1, round(width * features)) for features in DENSE)
    module = _AlexNet(outputs, channels, dense, dropout, normalization, flag("norm_after", norm_after))
    layers = [(f"conv_{index}", f"conv_norm_{index}", size, 1) for index, size in enumerate(channels)]
    for index, size in enumerate(dense):
        layers.append((f"dense_{index}", f"dense_norm_{index}", size, 1 if index else height * width_of_maps))
    return chain_network(
        module, shape, outputs, layers, normalization=normalization, per_task=per_task, mean=mean, std=std
    )


def _after_convolutions(side: int) -> int:
    """The positions along one side of the last maps: 6 of 224."""
    for _, window, stride, padding, pooled in CONVOLUTIONS:
        if padding != "SAME":
            side = (side + 4 - window) // stride + 1
        side = (side - 3) // 2 + 1 if pooled else side
    return side
