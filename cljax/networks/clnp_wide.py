"""The wide network of the CLNP paper: convolutions only, the last of which is the head."""

from collections.abc import Mapping, Sequence

import flax.linen as nn
import jax.numpy as jnp

from cljax.networks.layers import Convolution, Cut, Normalization, activate, make_norm
from cljax.networks.linen import Scalars, chain_network, check_inputs, check_numbers
from cljax.numbers import real
from cljax.types import Array, Network

LAYERS = ((128, 1, "SAME"), (256, 2, "VALID"), (512, 1, "VALID"), (1024, 2, "SAME"), (2048, 1, "VALID"))
"""Features, stride and padding of the 3x3 convolutions before the head's."""


class _Wide(Cut):
    outputs: int
    channels: tuple[int, ...]
    normalization: Normalization

    def setup(self) -> None:
        layers = zip(self.channels, LAYERS, strict=True)
        self.conv = [Convolution(features, 3, stride, padding) for features, (_, stride, padding) in layers]
        self.conv_norm = [make_norm(self.normalization) for _ in LAYERS]
        self.head = nn.Dense(self.outputs)

    def encode(self, inputs: Array, gates: Mapping[str, Array], frozen: Mapping[str, Array], *, train: bool):
        activations: dict[str, Array] = {}
        values = inputs
        for index, (layer, norm) in enumerate(zip(self.conv, self.conv_norm, strict=True)):
            name = f"conv_{index}"
            values = activate(layer, norm, values, gate=gates[name], frozen=frozen.get(name), train=train)
            activations[name] = values
        return values, activations

    def decode(self, maps: Array, gates: Mapping[str, Array], frozen: Mapping[str, Array], *, train: bool):
        """The average over all positions of a 3x3 convolution is a dense layer on averages of the maps."""
        height, width = maps.shape[1] - 2, maps.shape[2] - 2
        means = [maps[:, y : y + height, x : x + width].mean((1, 2)) for y in range(3) for x in range(3)]
        features = jnp.concatenate(means, axis=1)
        return (self.head(features), features), {}


def clnp_wide(
    inputs: Sequence[int] = (32, 32, 3),
    outputs: int = 10,
    *,
    width: float = 1.0,
    normalization: Normalization = "batch",
    mean: Scalars = 0.0,
    std: Scalars = 1.0,
    per_task: Sequence[str] | None = None,
) -> Network:
    """The wide network of the CLNP paper, which has no dense layer: its logits are averages of a convolution's maps.

    Five 3x3 convolutions of 128, 256, 512, 1024 and 2048 features, each followed by norm, ReLU and gate; the second and
    fourth have stride 2; the first and fourth are padded. The sixth gives the logits, averaged over all positions,
    which is a dense layer on the averages of the maps over the places that each of its 3x3 weights meets: those are the
    features, and its kernel is `head`. Parameters are `conv_i`, `conv_norm_i` and `head`; a gate has its layer's name.

    Args:
      inputs: shape of one example, `(H, W, C)`, both sides at least 17.
      outputs: number of logits.
      width: by which the features of all hidden layers are multiplied.
      normalization: `'batch'`, `'feature'` (see `FeatureNorm`) or None.
      mean: of inputs in [0, 1], one number or one for each channel.
      std: the standard deviation, in the same form.
      per_task: leaf paths that belong to a task; the head's if None, and `()` for the paper's single head.

    Returns:
      The network: 25.1 million weights before the head.

    Raises:
      ValueError: for images too small.

    Example:
      >>> from cljax.networks import clnp_wide
      >>> params, collections = clnp_wide().shapes
      >>> sum(params[f'conv_{layer}']['kernel'].size for layer in range(5)), params['head']['kernel'].shape
      (25070976, (18432, 10))

    Reference: Golkar, Kagan and Cho, Continual Learning via Neural Pruning, 2019, table 3.
    """
    check_numbers(inputs, outputs, [], [])
    real("width", width, above=0)
    shape = check_inputs(inputs, images=True)
    if min(shape[:2]) < 17:
        raise ValueError(f"clnp_wide needs images of at least 17x17 pixels, but the inputs have shape {shape}.")
    channels = tuple(max(1, round(width * features)) for features, *_ in LAYERS)
    layers = [(f"conv_{index}", f"conv_norm_{index}", size, 1) for index, size in enumerate(channels)]
    module = _Wide(outputs, channels, normalization)
    return chain_network(
        module, shape, outputs, layers, 9, normalization=normalization, per_task=per_task, mean=mean, std=std
    )
