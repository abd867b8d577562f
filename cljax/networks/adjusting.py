"""A network whose layers' outputs are adjusted as it runs: what a method adds before the nonlinearity."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from cljax.networks.layers import Convolution
from cljax.types import Array, Network, Tree


class Layer(NamedTuple):
    """A dense layer or a convolution as it is called.

    Attributes:
      path: of its module in params, such as `'conv_0_0'`.
      inputs: `[B, ..., C]`, what enters it: pooled, flattened, after dropout.
      kernel: `[C, C_out]`, or `[h, w, C, C_out]`.
      apply: `(inputs, kernel) -> outputs` of the same layer with another kernel and no bias, its stride and padding.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.networks import Layer
      >>> layer = Layer('dense_0', jnp.ones((5, 3)), jnp.ones((3, 2)), jnp.matmul)
      >>> layer.apply(layer.inputs, 2 * layer.kernel)[0]
      Array([6., 6.], dtype=float32)
    """

    path: str
    inputs: Array
    kernel: Array
    apply: Callable[[Array, Array], Array]


def adjust_layers(network: Network, adjust: Callable[[Layer, Array], Array]) -> Network:
    """The network, the outputs of whose dense layers and convolutions pass through `adjust(layer, outputs)`.

    The outputs are those before normalisation and nonlinearity, bias included. It also shows what enters each layer.

    Args:
      network: of Flax Linen modules: one of `cljax.networks`, or `from_linen`. Layers of NNX modules are not seen, nor
        is the head of `from_linen`.
      adjust: `(layer, outputs [B, ..., C_out]) -> outputs`, called in the order of the layers.

    Returns:
      The network.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from cljax import networks
      >>> from cljax.networks import adjust_layers
      >>> network = networks.mlp((2,), 1, hidden=(3,))
      >>> zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), network.shapes[0])
      >>> raised = adjust_layers(network, lambda layer, outputs: outputs + 1 if layer.path == 'head' else outputs)
      >>> raised.apply(zeros, network.init(jax.random.key(0))[1], jnp.ones((1, 2))).logits
      Array([[1.]], dtype=float32)
    """

    def intercept(call: Callable, arguments: tuple, options: dict[str, Any], context: Any) -> Any:
        module, outputs = context.module, call(*arguments, **options)
        seen = isinstance(module, nn.Dense | nn.Conv | Convolution) and context.method_name == "__call__"
        if not seen or not module.path:  # a module without a path is none of the network's own
            return outputs

        def apply(inputs: Array, kernel: Array) -> Array:
            same = module.clone(parent=None, name=None, features=kernel.shape[-1], use_bias=False)
            return same.apply({"params": {"kernel": kernel}}, inputs)

        kernel = module.get_variable("params", "kernel")
        return adjust(Layer("/".join(module.path), arguments[0], kernel, apply), outputs)

    def adjusted(function: Callable) -> Callable:
        def run(*arguments: Any, **options: Any) -> Any:
            with nn.intercept_methods(intercept):
                return function(*arguments, **options)

        return run

    return network._replace(encode=adjusted(network.encode), decode=adjusted(network.decode))


def hidden_layers(network: Network) -> dict[str, tuple[Array, Array]]:
    """The layers that read hidden features: all that `adjust_layers` sees but the first and the last, the head.

    Returns:
      `{path: (inputs, kernel)}`, shapes and dtypes for one example, in the order of the calls.

    Raises:
      ValueError: a layer that is called twice; a convolution of several groups.

    Example:
      >>> from cljax import networks
      >>> from cljax.networks import hidden_layers
      >>> found = hidden_layers(networks.cnn((8, 8, 1), 2, channels=((3, 4),), dense=(5,)))
      >>> {path: (inputs.shape, kernel.shape) for path, (inputs, kernel) in found.items()}
      {'conv_0_1': ((1, 8, 8, 3), (3, 3, 3, 4)), 'dense_0': ((1, 64), (64, 5))}
    """
    paths: list[str] = []

    def record(params: Tree, collections: Tree, inputs: Array) -> list[tuple[Array, Array]]:
        called: list[tuple[Array, Array]] = []

        def adjust(layer: Layer, outputs: Array) -> Array:
            paths.append(layer.path)
            called.append((layer.inputs, layer.kernel))
            return outputs

        adjust_layers(network, adjust).apply(params, collections, inputs)
        return called

    shapes = jax.eval_shape(record, *network.shapes, jax.ShapeDtypeStruct((1, *network.inputs), jnp.float32))
    for path, (inputs, kernel) in zip(paths, shapes, strict=True):
        if paths.count(path) > 1 or kernel.shape[-2] != inputs.shape[-1]:
            raise ValueError(f"The layer '{path}' is called more than once, or divides its features into groups.")
    return dict(zip(paths[1:-1], shapes[1:-1], strict=True))
