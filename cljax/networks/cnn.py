"""Convolutional networks whose last maps are flattened or averaged; LeNet, and those of the CLNP and DF-CNN papers."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from cljax.networks.convolution import Padding, convolve, max_pool
from cljax.networks.layers import (
    Convolution,
    Cut,
    Initializer,
    Normalization,
    activate,
    default_kernel_init,
    make_norm,
)
from cljax.networks.linen import Scalars, chain_network, check_inputs, check_numbers
from cljax.numbers import check_kind, flag, several, show, whole
from cljax.types import Array, Network

_BLOCKS = "a list of blocks, each of the features of its convolutions: ((32, 32), (64, 64))"


class Pool(NamedTuple):
    """Max-pooling: window, stride (both spatial axes) and padding, as of `max_pool`. `Pool(1, 1)` does nothing.

    Example:
      >>> from cljax.networks import Pool, cnn
      >>> network = cnn((8, 8, 1), 2, channels=((3,),), dense=(), pool=Pool(window=3, stride=2))
      >>> network.shapes[0]['head']['kernel'].shape
      (27, 2)
    """

    window: int = 2
    stride: int = 2
    padding: Padding = "VALID"


class _CNN(Cut):
    outputs: int
    channels: tuple[tuple[int, ...], ...]
    windows: tuple[int, ...]
    padding: tuple[str, ...]
    pools: tuple[Pool, ...]
    dropout: tuple[float, ...]
    dense_features: tuple[int, ...]
    dense_dropout: float
    pooled: bool
    normalization: Normalization
    norm_after: bool
    kernel_init: Initializer
    bias_init: Initializer

    def setup(self) -> None:
        init: dict[str, Any] = {"kernel_init": self.kernel_init, "bias_init": self.bias_init}
        self.conv = [
            [Convolution(features, window, padding=padding, **init) for features in block]
            for block, window, padding in zip(self.channels, self.windows, self.padding, strict=True)
        ]
        self.conv_norm = [[make_norm(self.normalization) for _ in block] for block in self.channels]
        self.dense = [nn.Dense(features, **init) for features in self.dense_features]
        self.dense_norm = [make_norm(self.normalization) for _ in self.dense_features]
        self.conv_drop = [nn.Dropout(rate) for rate in self.dropout]
        self.dense_drop = nn.Dropout(self.dense_dropout)
        self.head = nn.Dense(self.outputs, **init)

    def encode(self, inputs: Array, gates: Mapping[str, Array], frozen: Mapping[str, Array], *, train: bool):
        unit = partial(activate, train=train, norm_after=self.norm_after)
        activations: dict[str, Array] = {}
        values = inputs
        for block, pool in enumerate(self.pools):
            if block:
                values = self.conv_drop[block - 1](values, deterministic=not train)
            for index, (layer, norm) in enumerate(zip(self.conv[block], self.conv_norm[block], strict=True)):
                name = f"conv_{block}_{index}"
                values = unit(layer, norm, values, gate=gates[name], frozen=frozen.get(name))
                activations[name] = values
            values = max_pool(values, window=pool.window, stride=pool.stride, padding=pool.padding)
        return values, activations

    def decode(self, maps: Array, gates: Mapping[str, Array], frozen: Mapping[str, Array], *, train: bool):
        unit = partial(activate, train=train, norm_after=self.norm_after)
        activations: dict[str, Array] = {}
        features = jnp.mean(maps, axis=(1, 2)) if self.pooled else jax.lax.collapse(maps, 1)
        values = self.conv_drop[-1](features, deterministic=not train)
        for index, (layer, norm) in enumerate(zip(self.dense, self.dense_norm, strict=True)):
            name = f"dense_{index}"
            features = unit(layer, norm, values, gate=gates[name], frozen=frozen.get(name))
            activations[name] = features
            values = self.dense_drop(features, deterministic=not train)
        return (self.head(values), features), activations


def cnn(
    inputs: Sequence[int],
    outputs: int,
    *,
    channels: Sequence[Sequence[int]] = ((32,), (64,)),
    kernel: int | Sequence[int] = 3,
    padding: str | Sequence[str] = "SAME",
    pool: Pool | Sequence[Pool] = Pool(),  # noqa: B008
    dropout: float | Sequence[float] = 0.0,
    dense: Sequence[int] = (128, 128),
    dense_dropout: float = 0.0,
    pooled: bool = False,
    normalization: Normalization = None,
    norm_after: bool = False,
    kernel_init: Initializer = default_kernel_init,
    bias_init: Initializer = nn.initializers.zeros,
    mean: Scalars = 0.0,
    std: Scalars = 1.0,
    per_task: Sequence[str] | None = None,
) -> Network:
    """Blocks of convolutions, each closed by max-pooling, then dense layers, then the head.

    A convolution (stride 1) or dense layer is followed by norm, ReLU and gate; a block by pooling and
    dropout; a dense layer by dropout. The maps are the last pooled ones; the features are those that enter the head.
    Both are as they are before dropout.

    Parameters are `conv_b_i`, `conv_norm_b_i`, `dense_i`, `dense_norm_i` and `head`; a gate has its layer's name.

    Args:
      inputs: shape of one example, `(H, W, C)`.
      outputs: number of logits.
      channels: features of each convolution, one tuple a block.
      kernel: size of the kernels, one number or one for each block.
      padding: of the convolutions, `'SAME'` or `'VALID'`, one word or one for each block.
      pool: one `Pool` or one for each block.
      dropout: rate after each block, one number or one for each block.
      dense: features of each dense layer; may be empty.
      dense_dropout: rate after each dense layer.
      pooled: whether the last maps are averaged over all positions instead of flattened.
      normalization: `'batch'`, `'feature'` (see `FeatureNorm`) or None, of convolutions and dense layers.
      norm_after: whether a norm comes after its ReLU instead of before it; the gate comes last either way.
      kernel_init: initialiser of all kernels.
      bias_init: initialiser of the layers' biases.
      mean: of inputs in [0, 1], one number or one for each channel.
      std: the standard deviation, in the same form.
      per_task: leaf paths that belong to a task; the head's if None.

    Returns:
      The network.

    Raises:
      ValueError: if kernel, padding, pool or dropout are neither one nor as many as the blocks.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from cljax.networks import cnn
      >>> network = cnn((8, 8, 1), 2, channels=((4,), (6,)), dense=(5,))
      >>> params, collections = network.init(jax.random.key(0))
      >>> output = network.apply(params, collections, jnp.zeros((3, 8, 8, 1), jnp.uint8))
      >>> output.maps.shape, output.features.shape, output.logits.shape
      ((3, 2, 2, 6), (3, 5), (3, 2))
      >>> network.wiring[4]
      Wire(path='dense_0/kernel', inputs='conv_1_0', outputs='dense_0', repeat=4)
    """
    pooled, norm_after = flag("pooled", pooled), flag("norm_after", norm_after)
    check_inputs(inputs, images=True)
    if not all(isinstance(block, Sequence) for block in several("channels", channels, _BLOCKS)):
        raise ValueError(f"channels is {show(channels)}, but must be {_BLOCKS}.")
    blocks = tuple(tuple(block) for block in channels)
    if not blocks or not all(blocks):
        raise ValueError("A CNN needs at least one block of at least one convolution: channels=((32,),), for example.")
    dropouts, widths = _each_block("dropout", dropout, len(blocks)), [size for block in blocks for size in block]
    check_numbers(inputs, outputs, [*widths, *dense], [*dropouts, dense_dropout])
    windows = tuple(whole("kernel", size, least=1) for size in _each_block("kernel", kernel, len(blocks)))
    pads = _each_block("padding", (padding,) * len(blocks) if isinstance(padding, str) else padding, len(blocks))
    pools = _each_block("pool", (pool,) * len(blocks) if isinstance(pool, Pool) else pool, len(blocks))
    for one in pools:
        check_kind("pool", one, Pool, "a Pool, such as Pool(2, 2), or a list of them")
    module = _CNN(
        outputs,
        blocks,
        windows,
        pads,
        pools,
        dropouts,
        tuple(dense),
        dense_dropout,
        pooled,
        normalization,
        norm_after,
        kernel_init,
        bias_init,
    )
    layers = [
        (f"conv_{block}_{index}", f"conv_norm_{block}_{index}", size, 1)
        for block, sizes in enumerate(blocks)
        for index, size in enumerate(sizes)
    ]
    repeat = 1 if pooled else _positions(tuple(inputs), blocks, windows, pads, pools)
    for index, size in enumerate(dense):
        layers.append((f"dense_{index}", f"dense_norm_{index}", size, repeat))
        repeat = 1
    return chain_network(
        module, inputs, outputs, layers, repeat, normalization=normalization, per_task=per_task, mean=mean, std=std
    )


def _each_block(name: str, value: Any, blocks: int) -> tuple:
    values = tuple(value) if isinstance(value, Sequence) else (value,) * blocks
    if len(values) != blocks:
        raise ValueError(f"{name} has {len(values)} values for {blocks} blocks of channels; give one, or one a block.")
    return values


def _positions(
    inputs: tuple[int, ...],
    blocks: Sequence[Sequence[int]],
    windows: Sequence[int],
    pads: Sequence[str],
    pools: Sequence[Pool],
) -> int:
    """The number of places H * W of the last maps, which flattening turns into features."""

    def pooled(values: Array) -> Array:
        for block, window, padding, pool in zip(blocks, windows, pads, pools, strict=True):
            for _ in block:
                values = convolve(values, jnp.zeros((window, window, 1, 1)), padding=padding)
            values = max_pool(values, window=pool.window, stride=pool.stride, padding=pool.padding)
        return values

    maps = jax.eval_shape(pooled, jax.ShapeDtypeStruct((1, *inputs[:2], 1), jnp.float32))
    return maps.shape[1] * maps.shape[2]


def clnp_cnn(
    inputs: Sequence[int] = (32, 32, 3),
    outputs: int = 10,
    *,
    mean: Scalars = 0.0,
    std: Scalars = 1.0,
    per_task: Sequence[str] | None = None,
) -> Network:
    """The narrow network of the CLNP paper for CIFAR tasks of ten classes: maps of 32, 16 and 8 positions a side.

    Two blocks of two 3x3 convolutions (32, 64 features), each closed by overlapping 3x3 pooling and dropout of 0.25;
    512 dense features with dropout of 0.5.

    Example:
      >>> from cljax.networks import clnp_cnn
      >>> params, _ = clnp_cnn().shapes
      >>> params['dense_0']['kernel'].shape
      (4096, 512)

    Reference: Golkar, Kagan and Cho, Continual Learning via Neural Pruning, 2019, section 3.2.
    """
    pool = Pool(3, 2, ((1, 1), (1, 1)))
    return cnn(
        inputs,
        outputs,
        channels=((32, 32), (64, 64)),
        dense=(512,),
        pool=pool,
        dropout=0.25,
        dense_dropout=0.5,
        mean=mean,
        std=std,
        per_task=per_task,
    )


def lenet(
    inputs: Sequence[int] = (28, 28, 1),
    outputs: int = 10,
    *,
    normalization: Normalization = None,
    norm_after: bool = False,
    mean: Scalars = 0.0,
    std: Scalars = 1.0,
    per_task: Sequence[str] | None = None,
) -> Network:
    """LeNet-5 as it is mostly used today: ReLU, max-pooling, every convolution reading all features.

    Two 5x5 convolutions of 6 and 16 features, each closed by 2x2 pooling, dense layers of 120 and 84, the head. It was
    made for 32x32; smaller images, such as MNIST's, are padded for the first convolution. It is `cnn` with these sizes.

    Args:
      inputs: shape of one example, `(H, W, C)`, both sides at least 12.
      outputs: number of logits.
      normalization: `'batch'`, `'feature'` (see `FeatureNorm`) or None, of convolutions and dense layers.
      norm_after: whether a norm comes after its ReLU instead of before it; the gate comes last either way.
      mean: of inputs in [0, 1], one number or one for each channel.
      std: the standard deviation, in the same form.
      per_task: leaf paths that belong to a task; the head's if None.

    Returns:
      The network: with a head of 10, 61,706 parameters for MNIST and 62,006 for CIFAR; 226 gated features.

    Raises:
      ValueError: for images too small.

    Example:
      >>> import jax
      >>> from cljax.networks import lenet
      >>> params, collections = lenet().shapes
      >>> sum(leaf.size for leaf in jax.tree.leaves(params)), sum(gate.size for gate in collections['gates'].values())
      (61706, 226)

    Reference: LeCun, Bottou, Bengio and Haffner, Gradient-Based Learning Applied to Document Recognition, 1998, figure
    2, whose third layer reads only some features.
    """
    side = min(check_inputs(inputs, images=True)[:2])
    if side < 12:
        raise ValueError(f"LeNet needs images of at least 12x12 pixels, but the inputs have shape {tuple(inputs)}.")
    return cnn(
        inputs,
        outputs,
        channels=((6,), (16,)),
        kernel=5,
        padding=("SAME" if side < 32 else "VALID", "VALID"),
        dense=(120, 84),
        normalization=normalization,
        norm_after=norm_after,
        mean=mean,
        std=std,
        per_task=per_task,
    )


def df_cnn_base(
    data: Literal["mnist", "cifar", "office_home"],
    outputs: int,
    *,
    size: Literal["base", "large", "reduced"] = "base",
    mean: Scalars = 0.0,
    std: Scalars = 1.0,
) -> Network:
    """The single-task network of the DF-CNN paper for MNIST, CIFAR-10 and CIFAR-100, or Office-Home.

    Kernels are drawn from a truncated normal distribution of standard deviation 0.05, biases are 0.2. Dropout of 0.5
    precedes the first dense layer.

    Args:
      data: which of the paper's three networks; it fixes the shape of the inputs.
      outputs: number of logits: 10, and 13 for Office-Home.
      size: `'base'`; `'large'`, of its larger single-task learners, for CIFAR and Office-Home; or `'reduced'`, of its
        smaller DF-CNN, for CIFAR.
      mean: of inputs in [0, 1], one number or one for each channel.
      std: the standard deviation, in the same form.

    Returns:
      The network. With the paper's outputs: 152,810 parameters (MNIST), 328,426 (CIFAR), 2,679,437 (Office-Home);
      large 934,586 (CIFAR), 12,928,525 (Office-Home).

    Raises:
      ValueError: for another name of data, or a size that the paper does not have for it.

    Example:
      >>> import jax
      >>> from cljax.networks import df_cnn_base
      >>> params, _ = df_cnn_base('cifar', 10).shapes
      >>> sum(leaf.size for leaf in jax.tree.leaves(params))
      328426

    Reference: Lee, Stokes and Eaton, Learning Shared Knowledge for Deep Lifelong Learning using Deconvolutional
    Networks, 2019, section 4.2 and appendix B.3.
    """
    pool, wide = Pool(2, 2, "SAME"), Pool(3, 3, "SAME")
    options: dict[str, dict[str, Any]] = {
        "mnist": {"inputs": (28, 28, 1), "kernel": 5, "pool": pool},
        "cifar": {"inputs": (32, 32, 3), "kernel": 3, "pool": pool},
        "office_home": {"inputs": (128, 128, 3), "kernel": (11, 5, 3, 3), "pool": (wide, wide, pool, pool)},
    }
    widths: dict[tuple[str, str], tuple[Sequence[Sequence[int]], Sequence[int]]] = {
        ("mnist", "base"): (((32,), (64,)), (32,)),
        ("cifar", "base"): (((32, 32), (64, 64)), (64,)),
        ("cifar", "large"): (((48, 48), (96, 96)), (128,)),
        ("cifar", "reduced"): (((24, 24), (48, 48)), (32,)),
        ("office_home", "base"): (((64,), (256,), (256,), (256,)), (256, 64)),
        ("office_home", "large"): (((128,), (256,), (512,), (512,)), (1024, 128)),
    }
    if (data, size) not in widths:
        names = ", ".join(f"{name} ({own})" for name, own in widths)
        raise ValueError(f"The DF-CNN paper has networks for {names}, not for {data!r} ({size}).")
    channels, dense = widths[data, size]
    return cnn(
        outputs=outputs,
        channels=channels,
        dense=dense,
        **options[data],
        dropout=(0.0,) * (len(channels) - 1) + (0.5,),
        kernel_init=nn.initializers.truncated_normal(0.05),
        bias_init=nn.initializers.constant(0.2),
        mean=mean,
        std=std,
    )
