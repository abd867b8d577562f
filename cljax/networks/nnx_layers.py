"""Norms for one's own Flax NNX modules, whose features can have owners: those of `layers`, as NNX modules."""

import jax.numpy as jnp
from flax import nnx

from cljax.networks.layers import normalize_batch, normalize_features
from cljax.types import Array


class FeatureNorm(nnx.Module):
    """Feature normalisation, `scale_i * x_i + bias_i`; see `networks.FeatureNorm`.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.networks.nnx_layers import FeatureNorm
      >>> FeatureNorm(1)(jnp.array([[3.0]]))
      Array([[3.]], dtype=float32)
    """

    def __init__(self, features: int, *, rngs: nnx.Rngs | None = None):
        del rngs  # as other modules of NNX are made
        self.scale, self.bias = nnx.Param(jnp.ones(features)), nnx.Param(jnp.zeros(features))

    def __call__(self, inputs: Array) -> Array:
        """Maps `[B, ..., C]` to the same shape."""
        return normalize_features(inputs, self.scale[...], self.bias[...])


class BatchNorm(nnx.Module):
    """Batch normalisation of which single channels can be frozen; see `networks.BatchNorm`.

    As of `nnx.BatchNorm`, `model.train()` and `model.eval()` set its mode. `networks.from_nnx` hands it the flags.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.networks.nnx_layers import BatchNorm
      >>> norm = BatchNorm(2)
      >>> norm(jnp.array([[0.0, 0.0], [2.0, 2.0]]), frozen=jnp.array([True, False])).round(2)
      Array([[ 0., -1.],
             [ 2.,  1.]], dtype=float32)
      >>> norm.mean[...]
      Array([0. , 0.1], dtype=float32)
    """

    def __init__(
        self,
        features: int,
        *,
        use_running_average: bool = False,
        momentum: float = 0.9,
        epsilon: float = 1e-5,
        rngs: nnx.Rngs | None = None,
    ):
        del rngs
        self.use_running_average, self.momentum, self.epsilon = use_running_average, momentum, epsilon
        self.scale, self.bias = nnx.Param(jnp.ones(features)), nnx.Param(jnp.zeros(features))
        self.mean, self.var = nnx.BatchStat(jnp.zeros(features)), nnx.BatchStat(jnp.ones(features))

    def __call__(self, inputs: Array, *, frozen: Array | None = None) -> Array:
        """Normalises `[B, ..., C]` over all axes but the last; `frozen` is `[C]` bool, none if None."""
        train = not self.use_running_average
        outputs, mean, variance = normalize_batch(
            inputs,
            self.scale[...],
            self.bias[...],
            self.mean[...],
            self.var[...],
            train=train,
            frozen=frozen,
            momentum=self.momentum,
            epsilon=self.epsilon,
        )
        if train:
            self.mean[...], self.var[...] = mean, variance
        return outputs
