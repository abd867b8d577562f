"""Residual networks: stages of blocks, each of which adds to one stream of features."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp

from cljax.networks.convolution import max_pool
from cljax.networks.layers import (
    Convolution,
    Cut,
    Initializer,
    Normalization,
    activate,
    apply_norm,
    gate_features,
    make_norm,
)
from cljax.networks.linen import Scalars, check_inputs, check_numbers, head_wires, layer_wires, make_network
from cljax.numbers import check_option, flag, real
from cljax.types import Array, Network, Wire

Stem = Literal["cifar", "imagenet"]
Shortcut = Literal["projection", "padding"]

CHANNELS = (64, 128, 256, 512)
EXPANSION = 4
"""A bottleneck block gives so many times as many features as its 3x3 convolution."""
LARGE = 96
"""From so many pixels a side on, the stem is the ImageNet one by default."""


class _Block(nn.Module):
    """`gate * relu(inputs + branch(inputs))`; `gates` names the gate of each convolution, the stream's last."""

    gates: tuple[str, ...]
    features: tuple[int, ...]
    windows: tuple[int, ...]
    stride: int
    incoming: int
    shortcut_kind: Shortcut
    normalization: Normalization
    kernel_init: Initializer
    last_init: Initializer

    def setup(self) -> None:
        strided, last = self.windows.index(3), len(self.windows) - 1
        self.conv = [
            _convolution(
                features,
                window,
                self.stride if index == strided else 1,
                self.normalization,
                self.last_init if index == last else self.kernel_init,
            )
            for index, (features, window) in enumerate(zip(self.features, self.windows, strict=True))
        ]
        self.norm = [make_norm(self.normalization) for _ in self.features]
        self.changes = self.stride > 1 or self.incoming != self.features[-1]
        if self.changes and self.shortcut_kind == "projection":
            self.shortcut = _convolution(self.features[-1], 1, self.stride, self.normalization, self.kernel_init)
            self.shortcut_norm = make_norm(self.normalization)

    def __call__(self, inputs: Array, gates: Mapping[str, Array], frozen: Mapping[str, Array], *, train: bool):
        *inner, stream = self.gates
        activations: dict[str, Array] = {}
        values = inputs
        for name, layer, norm in zip(inner, self.conv, self.norm, strict=False):
            values = activate(layer, norm, values, gate=gates[name], frozen=frozen.get(name), train=train)
            activations[name] = values
        open_channels = frozen.get(stream)
        values = apply_norm(self.norm[-1], self.conv[-1](values), train=train, frozen=open_channels)
        if not self.changes:
            carried = inputs
        elif self.shortcut_kind == "projection":
            carried = apply_norm(self.shortcut_norm, self.shortcut(inputs), train=train, frozen=open_channels)
        else:
            carried = self._padded(inputs, values.shape[-1])
        return gate_features(nn.relu(carried + values), gates[stream]), activations

    def _padded(self, inputs: Array, features: int) -> Array:
        if (inputs.shape[-1], features) != (self.incoming, self.features[-1]):
            raise ValueError(
                "Features cannot be cut out of a residual network whose shortcuts are padded, for the places of those "
                "that are left would change. Use shortcut='projection', or compute with the gates and no cut."
            )
        more = features - self.incoming
        return jnp.pad(inputs[:, :: self.stride, :: self.stride], ((0, 0),) * 3 + ((more // 2, more - more // 2),))


def _convolution(
    features: int, window: int, stride: int, normalization: Normalization, init: Initializer
) -> Convolution:
    return Convolution(features, window, stride, ((window // 2,) * 2,) * 2, normalization is None, init)


class _ResNet(Cut):
    outputs: int
    stem_features: int
    stem_kind: Stem
    stem_gate: str
    blocks: tuple[tuple[dict[str, Any], ...], ...]
    normalization: Normalization
    kernel_init: Initializer

    def setup(self) -> None:
        window, stride = (7, 2) if self.stem_kind == "imagenet" else (3, 1)
        self.stem = _convolution(self.stem_features, window, stride, self.normalization, self.kernel_init)
        self.stem_norm = make_norm(self.normalization)
        self.block = [[_Block(**options) for options in stage] for stage in self.blocks]
        self.head = nn.Dense(self.outputs)

    def encode(self, inputs: Array, gates: Mapping[str, Array], frozen: Mapping[str, Array], *, train: bool):
        gate = self.stem_gate
        values = activate(self.stem, self.stem_norm, inputs, gate=gates[gate], frozen=frozen.get(gate), train=train)
        if self.stem_kind == "imagenet":
            values = max_pool(values, window=3, stride=2, padding=((1, 1), (1, 1)))
        activations: dict[str, Array] = {} if gate == "stage_0" else {gate: values}
        for number, stage in enumerate(self.block):
            name = f"stage_{number}"
            stream = [values] if name == gate else []
            for block in stage:
                values, inner = block(values, gates, frozen, train=train)
                activations |= inner
                stream.append(values)
            activations[name] = jnp.stack(stream, axis=1)
        return values, activations

    def decode(self, maps: Array, gates: Mapping[str, Array], frozen: Mapping[str, Array], *, train: bool):
        del gates, frozen, train
        features = jnp.mean(maps, axis=(1, 2))
        return (self.head(features), features), {}


def resnet(
    inputs: Sequence[int],
    outputs: int,
    *,
    blocks: Sequence[int] = (2, 2, 2, 2),
    channels: Sequence[int] = CHANNELS,
    bottleneck: bool = False,
    stem: Stem | None = None,
    shortcut: Shortcut = "projection",
    width: float = 1.0,
    normalization: Normalization = "batch",
    mean: Scalars = 0.0,
    std: Scalars = 1.0,
    per_task: Sequence[str] | None = None,
) -> Network:
    r"""A residual network: a stem, stages of blocks, the mean over all positions, the head.

    .. math:: x_{k+1} = g \, \mathrm{relu}(x_k + F_k(x_k))

    F is two 3x3 convolutions, or with `bottleneck` a 1x1, a 3x3 and a 1x1 convolution of 4 times the features; each
    has a norm, and all but the last a ReLU and a gate of its own. Every stage but the first begins with stride 2, in
    its first 3x3 convolution. With a norm, convolutions have no biases.

    Gates: what blocks of a stage add to is one stream, so its features have one gate, `stage_s`, for all blocks of the
    stage, and for the stem where its output is the first stage's stream; else the stem has the gate `stem`. The
    convolutions within a block have `block_s_b/conv_i`. So a feature of a stage has one owner, which trains all that
    adds to it. The activations of a stage's gate are those of all its blocks, `[B, blocks, H, W, C]`.

    Parameters are `stem`, `stem_norm`, `block_s_b/conv_i`, `block_s_b/norm_i`, `block_s_b/shortcut`,
    `block_s_b/shortcut_norm` and `head`. Kernels are drawn as He et al. have them (normal, by fan-out); without batch
    normalisation the last of each block with a variance that is smaller by the number of blocks, so that the stream
    does not grow with depth.

    Args:
      inputs: shape of one example, `(H, W, C)`.
      outputs: number of logits.
      blocks: how many, for each stage.
      channels: features of each stage; with `bottleneck`, of its 3x3 convolutions.
      bottleneck: see above.
      stem: `'cifar'`, a 3x3 convolution; `'imagenet'`, a 7x7 convolution of stride 2 and 3x3 max-pooling of stride 2;
        None: `'imagenet'` for images of at least 96 pixels a side.
      shortcut: where a stage begins with other features or a stride: `'projection'`, a 1x1 convolution with a norm
        (option B of the paper); or `'padding'`, every second position and features of zeros (option A). Padded ones
        join features of two gates without a weight: gates hide them like any, but no weight can cut them.
      width: by which the features of all stages are multiplied.
      normalization: `'batch'`, `'feature'` (see `FeatureNorm`) or None.
      mean: of inputs in [0, 1], one number or one for each channel.
      std: the standard deviation, in the same form.
      per_task: leaf paths that belong to a task; the head's if None.

    Returns:
      The network.

    Raises:
      ValueError: if blocks and channels differ in number, or a number is out of range.

    Example:
      >>> from cljax.networks import resnet
      >>> network = resnet((8, 8, 3), 2, blocks=(1, 1), channels=(4, 6), normalization='feature')
      >>> params, collections = network.shapes
      >>> {name: gate.size for name, gate in collections['gates'].items()}
      {'block_0_0/conv_0': 4, 'block_1_0/conv_0': 6, 'stage_0': 4, 'stage_1': 6}
      >>> [wire for wire in network.wiring if wire.path == 'block_1_0/shortcut/kernel']
      [Wire(path='block_1_0/shortcut/kernel', inputs='stage_0', outputs='stage_1', repeat=1)]

    Reference: He, Zhang, Ren and Sun, Deep Residual Learning for Image Recognition, 2016, figure 5, sections 3.3, 4.2.
    """
    check_numbers(inputs, outputs, [*blocks, *channels], [])
    make_norm(normalization)
    real("width", width, above=0)
    check_option("shortcut", shortcut, Shortcut)
    check_inputs(inputs, images=True)
    if len(blocks) != len(channels) or not blocks:
        raise ValueError(f"blocks has {len(blocks)} stages and channels {len(channels)}: give one number a stage each.")
    kind = ("imagenet" if min(tuple(inputs)[:2]) >= LARGE else "cifar") if stem is None else stem
    check_option("stem", kind, Stem)
    widths = [max(1, round(width * features)) for features in channels]
    windows = (1, 3, 1) if flag("bottleneck", bottleneck) else (3, 3)
    he = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
    calm = he if normalization == "batch" else nn.initializers.variance_scaling(2.0 / sum(blocks), "fan_out", "normal")

    stem_gate = "stem" if bottleneck else "stage_0"
    gates: dict[str, int] = {stem_gate: widths[0]}
    biased = normalization is None
    wiring: list[Wire] = []

    def connect(layer: str, norm: str, before: str | None, after: str) -> None:
        wiring.extend(layer_wires(layer, None if biased else norm, inputs=before, outputs=after, bias=biased))

    connect("stem", "stem_norm", None, stem_gate)
    stages: list[tuple[dict[str, Any], ...]] = []
    before, incoming = stem_gate, widths[0]
    for stage, (count, features) in enumerate(zip(blocks, widths, strict=True)):
        sizes = (features, features, EXPANSION * features) if bottleneck else (features, features)
        options = []
        for index in range(count):
            name, stride = f"block_{stage}_{index}", 2 if stage and not index else 1
            names = (*(f"{name}/conv_{layer}" for layer in range(len(windows) - 1)), f"stage_{stage}")
            gates |= dict(zip(names, sizes, strict=True))
            if shortcut == "padding" and incoming > sizes[-1]:
                raise ValueError(f"Padding cannot make {incoming} features {sizes[-1]}: choose shortcut='projection'.")
            if shortcut == "projection" and (stride > 1 or incoming != sizes[-1]):
                connect(f"{name}/shortcut", f"{name}/shortcut_norm", before, names[-1])
            for layer, (entering, leaving) in enumerate(zip((before, *names[:-1]), names, strict=True)):
                connect(f"{name}/conv_{layer}", f"{name}/norm_{layer}", entering, leaving)
            shape = {"gates": names, "features": sizes, "windows": windows, "stride": stride, "incoming": incoming}
            inits = {"kernel_init": he, "last_init": calm}
            options.append({**shape, "shortcut_kind": shortcut, "normalization": normalization, **inits})
            before, incoming = names[-1], sizes[-1]
        stages.append(tuple(options))
    return make_network(
        _ResNet(outputs, widths[0], kind, stem_gate, tuple(stages), normalization, he),
        inputs,
        outputs,
        gates=gates,
        wiring=[*wiring, *head_wires(before)],
        frozen=tuple(gates) if normalization == "batch" else (),
        per_task=per_task,
        mean=mean,
        std=std,
        check=False,
    )


def resnet18(inputs: Sequence[int] = (224, 224, 3), outputs: int = 1000, **options: Any) -> Network:
    """ResNet-18: four stages of two blocks, 64 to 512 features; options as of `resnet`.

    With a head of 1000 it has 11,689,512 parameters, and for images of 32x32 and a head of 10, 11,173,962. A width of
    20/64 makes the reduced one that continual learning often uses.

    Example:
      >>> import jax
      >>> from cljax.networks import resnet18
      >>> params, _ = resnet18().shapes
      >>> sum(leaf.size for leaf in jax.tree.leaves(params))
      11689512

    Reference: He et al., Deep Residual Learning for Image Recognition, 2016, table 1; the reduced one: Lopez-Paz and
    Ranzato, Gradient Episodic Memory for Continual Learning, 2017, section 5.1.
    """
    return resnet(inputs, outputs, blocks=(2, 2, 2, 2), **options)


def resnet32(inputs: Sequence[int] = (32, 32, 3), outputs: int = 10, **options: Any) -> Network:
    """ResNet-32 for CIFAR: three stages of five blocks, 16, 32 and 64 features; options as of `resnet`.

    With projections, as most continual-learning code has it, it has 466,906 parameters; with `shortcut='padding'`, as
    the paper and iCaRL have it, 464,154.

    Example:
      >>> import jax
      >>> from cljax.networks import resnet32
      >>> params, _ = resnet32(shortcut='padding').shapes
      >>> sum(leaf.size for leaf in jax.tree.leaves(params))
      464154

    Reference: He et al., Deep Residual Learning for Image Recognition, 2016, section 4.2, table 6.
    """
    return resnet(inputs, outputs, blocks=(5, 5, 5), channels=(16, 32, 64), **{"stem": "cifar", **options})


def resnet34(inputs: Sequence[int] = (224, 224, 3), outputs: int = 1000, **options: Any) -> Network:
    """ResNet-34: four stages of 3, 4, 6 and 3 blocks, 64 to 512 features; options as of `resnet`.

    With a head of 1000 it has 21,797,672 parameters, and for images of 32x32 and a head of 10, 21,282,122.

    Example:
      >>> import jax
      >>> from cljax.networks import resnet34
      >>> params, _ = resnet34().shapes
      >>> sum(leaf.size for leaf in jax.tree.leaves(params))
      21797672

    Reference: He et al., Deep Residual Learning for Image Recognition, 2016, table 1.
    """
    return resnet(inputs, outputs, blocks=(3, 4, 6, 3), **options)


def resnet50(inputs: Sequence[int] = (224, 224, 3), outputs: int = 1000, **options: Any) -> Network:
    """ResNet-50: four stages of 3, 4, 6 and 3 bottleneck blocks, 256 to 2048 features; options as of `resnet`.

    With a head of 1000 it has 25,557,032 parameters. Its convolutions, shortcuts aside, give 22,720 features; as each
    stage has one stream, 11,456 of them have owners of their own.

    Example:
      >>> import jax
      >>> from cljax.networks import resnet50
      >>> params, collections = resnet50().shapes
      >>> sum(leaf.size for leaf in jax.tree.leaves(params)), sum(gate.size for gate in collections['gates'].values())
      (25557032, 11456)

    Reference: He et al., Deep Residual Learning for Image Recognition, 2016, table 1, the stride in the 3x3
    convolutions.
    """
    return resnet(inputs, outputs, blocks=(3, 4, 6, 3), bottleneck=True, **options)
