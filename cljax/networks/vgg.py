"""VGG-16: thirteen 3x3 convolutions in five blocks, and two wide hidden layers."""

from collections.abc import Sequence

import flax.linen as nn

from cljax.networks.cnn import cnn
from cljax.networks.layers import Normalization
from cljax.networks.linen import Scalars, check_inputs
from cljax.numbers import real
from cljax.types import Network

CHANNELS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
DENSE = (4096, 4096)


def vgg16(
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
    """VGG-16: blocks of 2, 2, 3, 3 and 3 convolutions, each closed by 2x2 pooling, two dense layers of 4096, the head.

    It is `cnn` with these sizes, so that parameters and gates are named as there: `conv_0_0` to `conv_4_2`, `dense_0`,
    `dense_1`, `head`, and the norms. The paper has none.

    Args:
      inputs: shape of one example, `(H, W, C)`, both sides at least 32.
      outputs: number of logits.
      width: by which the features of all hidden layers are multiplied.
      dropout: rate after each dense layer.
      normalization: `'batch'`, `'feature'` (see `FeatureNorm`) or None, of convolutions and dense layers.
      norm_after: whether a norm comes after its ReLU instead of before it; the gate comes last either way.
      mean: of inputs in [0, 1], one number or one for each channel.
      std: the standard deviation, in the same form.
      per_task: leaf paths that belong to a task; the head's if None.

    Returns:
      The network: 138,357,544 parameters with a head of 1000, 12,416 gated features.

    Raises:
      ValueError: for images too small.

    Example:
      >>> import jax
      >>> from cljax.networks import vgg16
      >>> params, collections = vgg16().shapes
      >>> sum(leaf.size for leaf in jax.tree.leaves(params)), sum(gate.size for gate in collections['gates'].values())
      (138357544, 12416)

    Reference: Simonyan and Zisserman, Very Deep Convolutional Networks for Large-Scale Image Recognition, 2015, table
    1, column D.
    """
    return _vgg(CHANNELS, inputs, outputs, width, dropout, normalization, norm_after, mean, std, per_task)


def vgg16_reduced(
    inputs: Sequence[int] = (64, 64, 3),
    outputs: int = 20,
    *,
    width: float = 1.0,
    dropout: float = 0.5,
    normalization: Normalization = None,
    norm_after: bool = False,
    mean: Scalars = 0.0,
    std: Scalars = 1.0,
    per_task: Sequence[str] | None = None,
) -> Network:
    """The VGG-16 of the TFM paper for Tiny ImageNet: without the last three convolutions and the last pooling.

    Arguments are those of `vgg16`, but images need sides of at least 16.

    Returns:
      The network, with 10,880 gated features.

    Raises:
      ValueError: for images too small.

    Example:
      >>> from cljax.networks import vgg16_reduced
      >>> _, collections = vgg16_reduced().shapes
      >>> sum(gate.size for gate in collections['gates'].values())
      10880

    Reference: Masana et al., Ternary Feature Masks, 2021, section 4 and table 1.
    """
    return _vgg(CHANNELS[:-1], inputs, outputs, width, dropout, normalization, norm_after, mean, std, per_task)


def _vgg(
    blocks: Sequence[Sequence[int]],
    inputs: Sequence[int],
    outputs: int,
    width: float,
    dropout: float,
    normalization: Normalization,
    norm_after: bool,
    mean: Scalars,
    std: Scalars,
    per_task: Sequence[str] | None,
) -> Network:
    least = 2 ** len(blocks)
    if min(check_inputs(inputs, images=True)[:2]) < least:
        raise ValueError(
            f"This VGG-16 needs images of at least {least}x{least} pixels, but the inputs have shape {tuple(inputs)}."
        )
    width = real("width", width, above=0)
    scale = lambda features: max(1, round(width * features))
    return cnn(
        inputs,
        outputs,
        channels=tuple(tuple(map(scale, block)) for block in blocks),
        dense=tuple(map(scale, DENSE)),
        dense_dropout=dropout,
        normalization=normalization,
        norm_after=norm_after,
        kernel_init=nn.initializers.he_normal(),
        mean=mean,
        std=std,
        per_task=per_task,
    )
