"""Layers whose state and gates are explicit: convolution, normalisation, and the unit that a gate closes."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from cljax.networks.convolution import Padding, convolve
from cljax.numbers import check_shape
from cljax.types import Array

Initializer = Callable[..., Array]
Normalization = Literal["batch", "feature"] | None

default_kernel_init = nn.initializers.lecun_normal()


class Cut(nn.Module):
    """A network that is cut in two at its last maps: `encode`, then `decode`, as `linen.make_network` asks."""

    def __call__(self, inputs: Array, gates: Mapping[str, Array], frozen: Mapping[str, Array], *, train: bool):
        """The logits, the features and what `decode` has activated."""
        maps, _ = self.encode(inputs, gates, frozen, train=train)
        return self.decode(maps, gates, frozen, train=train)


class Convolution(nn.Module):
    """Two-dimensional convolution with the gradients of `convolve`; parameters `kernel` `[h, w, C, C_out]` and `bias`.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from cljax.networks import Convolution
      >>> layer = Convolution(features=8, window=3)
      >>> variables = layer.init(jax.random.key(0), jnp.ones((1, 6, 6, 3)))
      >>> variables['params']['kernel'].shape, layer.apply(variables, jnp.ones((2, 6, 6, 3))).shape
      ((3, 3, 3, 8), (2, 6, 6, 8))
    """

    features: int
    window: int = 3
    stride: int = 1
    padding: Padding = "SAME"
    use_bias: bool = True
    kernel_init: Initializer = default_kernel_init
    bias_init: Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        """Maps `[B, H, W, C]` to `[B, H_out, W_out, features]`."""
        shape = (self.window, self.window, inputs.shape[-1], self.features)
        outputs = convolve(
            inputs, self.param("kernel", self.kernel_init, shape, jnp.float32), stride=self.stride, padding=self.padding
        )
        if self.use_bias:
            outputs = outputs + self.param("bias", self.bias_init, (self.features,), jnp.float32)[None, None, None]
        return outputs


def _promote(*arrays: Array) -> tuple[Array, ...]:
    """The arrays in the widest of their dtypes."""
    dtype = max((array.dtype for array in arrays), key=lambda dtype: dtype.itemsize)
    return tuple(array.astype(dtype) for array in arrays)


def normalize_batch(
    inputs: Array,
    scale: Array,
    bias: Array,
    mean: Array,
    variance: Array,
    *,
    train: bool,
    frozen: Array | None = None,
    momentum: float = 0.9,
    epsilon: float = 1e-5,
) -> tuple[Array, Array, Array]:
    """What `BatchNorm` computes, without a module around it.

    Args:
      inputs: `[B, ..., C]`, normalised over all axes but the last.
      scale: `[C]`.
      bias: `[C]`.
      mean: `[C]`, stored.
      variance: `[C]`, stored.
      train: whether the batch's moments are used.
      frozen: `[C]` bool, channels that keep to the stored ones; none if None.
      momentum: of the stored moments.
      epsilon: added to the variance.

    Returns:
      The outputs `[B, ..., C]`, of the inputs' dtype, and the moments to store, of theirs.

    Example:
      >>> one, zero = jnp.ones(1), jnp.zeros(1)
      >>> outputs, mean, variance = normalize_batch(jnp.array([[0.0], [2.0]]), one, zero, zero, one, train=True)
      >>> outputs.round(2).ravel(), mean, variance
      (Array([-1.,  1.], dtype=float32), Array([0.1], dtype=float32), Array([1.], dtype=float32))
    """
    shape, axes, dtype = inputs.shape[-1:], tuple(range(inputs.ndim - 1)), inputs.dtype
    stored = (mean, variance)
    inputs, mean, variance, scale, bias = _promote(inputs, mean, variance, scale, bias)
    if train:
        frozen = jnp.zeros(shape, jnp.bool_) if frozen is None else frozen
        check_shape("frozen", frozen, *shape)
        batch_mean = jnp.mean(inputs, axes)
        batch_variance = jnp.mean(jnp.square(inputs - jnp.expand_dims(batch_mean, axes)), axes)

        def follow(kept: Array, batch: Array) -> Array:
            wide, batch = _promote(kept, batch)
            moved = jax.lax.stop_gradient(momentum * wide + (1 - momentum) * batch).astype(kept.dtype)
            return jnp.where(frozen, kept, moved)

        stored = (follow(stored[0], batch_mean), follow(stored[1], batch_variance))
        mean = jnp.where(frozen, mean, batch_mean)
        variance = jnp.where(frozen, variance, batch_variance)
    mean, factor, bias = (
        jnp.expand_dims(value, axes) for value in (mean, scale * jax.lax.rsqrt(variance + epsilon), bias)
    )
    return ((inputs - mean) * factor + bias).astype(dtype), *stored


def normalize_features(inputs: Array, scale: Array, bias: Array) -> Array:
    """What `FeatureNorm` computes, `scale_i * x_i + bias_i`, of the inputs' dtype.

    Example:
      >>> normalize_features(jnp.array([[3.0]]), jnp.array([2.0]), jnp.array([1.0]))
      Array([[7.]], dtype=float32)
    """
    axes = tuple(range(inputs.ndim - 1))
    values, scale, bias = _promote(inputs, jnp.expand_dims(scale, axes), jnp.expand_dims(bias, axes))
    return (values * scale + bias).astype(inputs.dtype)


class BatchNorm(nn.Module):
    """Batch normalisation of which single channels can be frozen.

    `scale * (x - mean) / sqrt(variance + epsilon) + bias`, with the batch's moments in training and the stored ones in
    evaluation. A frozen channel uses its stored ones in training too, and they stay, bit by bit: an earlier task's
    feature keeps its value while the others learn. The stored moments follow
    `momentum * stored + (1 - momentum) * batch`, the variance being the biased one. Where statistics are wider than the
    inputs, as float32 beside bfloat16, all is computed in their dtype; the outputs have that of the inputs.

    Parameters `scale`, `bias` `[C]`; collection `batch_stats` with `mean`, `var` `[C]`.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from cljax.networks import BatchNorm
      >>> norm, inputs = BatchNorm(), jnp.array([[0.0, 0.0], [2.0, 2.0]])
      >>> variables = norm.init(jax.random.key(0), inputs, train=False)
      >>> frozen = jnp.array([True, False])
      >>> outputs, state = norm.apply(variables, inputs, train=True, frozen=frozen, mutable='batch_stats')
      >>> outputs.round(2)
      Array([[ 0., -1.],
             [ 2.,  1.]], dtype=float32)
      >>> state['batch_stats']['var']
      Array([1., 1.], dtype=float32)

    Reference: Ioffe and Szegedy, Batch Normalization, 2015, algorithm 1.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, inputs: Array, *, train: bool, frozen: Array | None = None) -> Array:
        """Normalises `[B, ..., C]` over all axes but the last; `frozen` is `[C]` bool, none if None."""
        shape = inputs.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, shape, inputs.dtype)
        bias = self.param("bias", nn.initializers.zeros, shape, inputs.dtype)
        stored_mean = self.variable("batch_stats", "mean", jnp.zeros, shape, inputs.dtype)
        stored_variance = self.variable("batch_stats", "var", jnp.ones, shape, inputs.dtype)
        outputs, mean, variance = normalize_batch(
            inputs,
            scale,
            bias,
            stored_mean.value,
            stored_variance.value,
            train=train,
            frozen=frozen,
            momentum=self.momentum,
            epsilon=self.epsilon,
        )
        if train and not self.is_initializing():
            stored_mean.value, stored_variance.value = mean, variance
        return outputs


class FeatureNorm(nn.Module):
    """Feature normalisation: `scale_i * x_i + bias_i`, an affine map of each feature, without statistics.

    Parameters `scale` (ones at first) and `bias` (zeros) `[C]`. Meant to be task-specific.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.networks import FeatureNorm
      >>> FeatureNorm().apply({'params': {'scale': jnp.array([2.0]), 'bias': jnp.array([1.0])}}, jnp.array([[3.0]]))
      Array([[7.]], dtype=float32)

    Reference: Masana et al., Ternary Feature Masks, 2021, equation 7.
    """

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        """Maps `[B, ..., C]` to the same shape."""
        shape = inputs.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, shape, inputs.dtype)
        bias = self.param("bias", nn.initializers.zeros, shape, inputs.dtype)
        return normalize_features(inputs, scale, bias)


def gate_features(activations: Array, gate: Array) -> Array:
    """Multiplies features by their gate: `activations[..., c] * gate[c]`.

    A feature whose gate is 0 is 0, so that nothing downstream depends on it, unless it overflows (float16 from 65,504).

    Args:
      activations: `[B, ..., C]`.
      gate: `[C]`, usually 0 or 1; takes the activations' dtype.

    Returns:
      `[B, ..., C]`.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.networks import gate_features
      >>> gate_features(jnp.array([[3.0, 4.0]]), jnp.array([0.0, 1.0]))
      Array([[0., 4.]], dtype=float32)
    """
    check_shape("gate", gate, activations.shape[-1])
    return activations * jnp.expand_dims(gate.astype(activations.dtype), tuple(range(activations.ndim - 1)))


def make_norm(normalization: Normalization) -> nn.Module | None:
    """Makes the norm of that name: `'batch'`, `'feature'` or None.

    Raises:
      ValueError: for another name.

    Example:
      >>> make_norm('batch').momentum, make_norm(None)
      (0.9, None)
    """
    if normalization not in (None, "batch", "feature"):
        raise ValueError(f"normalization is 'batch', 'feature' or None, not {normalization!r}.")
    return {"batch": BatchNorm, "feature": FeatureNorm}[normalization]() if normalization else None


def apply_norm(norm: nn.Module | None, values: Array, *, train: bool, frozen: Array | None = None) -> Array:
    """Normalises by `BatchNorm`, `FeatureNorm` or None, which leaves the values as they are; arguments as `activate`'s.

    Example:
      >>> apply_norm(None, jnp.ones(2), train=False)
      Array([1., 1.], dtype=float32)
    """
    if isinstance(norm, BatchNorm):
        return norm(values, train=train, frozen=frozen)
    return values if norm is None else norm(values)


def activate(
    layer: nn.Module,
    norm: nn.Module | None,
    inputs: Array,
    *,
    gate: Array,
    frozen: Array | None = None,
    train: bool,
    norm_after: bool = False,
) -> Array:
    """A hidden unit's whole path: layer, norm, ReLU, gate. The gate comes last, so that no norm's shift passes it.

    `gate * relu(norm(layer(inputs)))`, or with `norm_after` `gate * norm(relu(layer(inputs)))`

    Args:
      layer: `Convolution` or `flax.linen.Dense`, bound.
      norm: `BatchNorm`, `FeatureNorm` or None, bound.
      inputs: `[B, ...]`.
      gate: `[C]`, multiplies the features.
      frozen: `[C]` bool, the channels that `BatchNorm` normalises with its stored moments; None for other norms.
      train: whether `BatchNorm` uses the batch's moments.
      norm_after: whether the norm comes after the ReLU.

    Returns:
      The gated activations `[B, ..., C]`.

    Example:
      >>> import flax.linen as nn
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from cljax.networks import activate
      >>> class Hidden(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, inputs, gate):
      ...         return activate(nn.Dense(2, kernel_init=nn.initializers.ones), None, inputs, gate=gate, train=False)
      >>> Hidden().init_with_output(jax.random.key(0), jnp.ones((1, 3)), jnp.array([1.0, 0.0]))[0]
      Array([[3., 0.]], dtype=float32)
    """
    normalize = partial(apply_norm, norm, train=train, frozen=frozen)
    outputs = layer(inputs)
    return gate_features(normalize(nn.relu(outputs)) if norm_after else nn.relu(normalize(outputs)), gate)
