"""What learns: a network as pure functions, and how its leaves connect gates."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax

from cljax.text import brief
from cljax.types.data import AnyArray, Array, Tree


class Wire(NamedTuple):
    """How a parameter leaf connects gates: its inputs' gate and its outputs' gate.

    Attributes:
      path: the leaf's path in `params`, such as `'conv_0/kernel'`.
      inputs: gate on its input features (the leaf's second-last axis); None where the inputs are the images, or for
        biases and normalisation affines, which have no input.
      outputs: gate on its output features (the leaf's last axis); None where the outputs are logits.
      repeat: how often the input gate repeats (`jnp.tile`): after flattening `[H, W, C]` it is `H * W`.

    Example:
      >>> from cljax import networks
      >>> networks.cnn((8, 8, 1), 2, channels=((3,),), dense=()).wiring[-2]
      Wire(path='head/kernel', inputs='conv_0_0', outputs=None, repeat=16)
    """

    path: str
    inputs: str | None
    outputs: str | None
    repeat: int = 1


class Encode(Protocol):
    """`(params, collections, inputs, *, train, key) -> maps, activations, collections`."""

    def __call__(
        self, params: Tree, collections: Tree, inputs: Array, *, train: bool, key: Array | None
    ) -> tuple[Array, dict[str, Array], Tree]:
        """Maps raw inputs `[B, ...]` to the last feature maps and the gated activations of every gate."""
        ...


class Decode(Protocol):
    """`(params, collections, maps, *, train, key) -> (logits, features), activations, collections`."""

    def __call__(
        self, params: Tree, collections: Tree, maps: Array, *, train: bool, key: Array | None
    ) -> tuple[tuple[Array, Array], dict[str, Array], Tree]:
        """Maps the last feature maps to logits `[B, K]` and to the features `[B, D]` that enter the head."""
        ...


@brief
class Output(NamedTuple):
    """What a whole forward pass gives: logits `[B, K]`, features `[B, D]`, maps, activations and new collections.

    Example:
      >>> import jax
      >>> from cljax import networks
      >>> network = networks.mlp((2,), 3, hidden=(4,))
      >>> output = network.apply(*network.init(jax.random.key(0)), jax.numpy.ones((5, 2)))
      >>> output.logits.shape, output.features.shape, list(output.activations)
      ((5, 3), (5, 4), ['dense_0'])
    """

    logits: Array
    features: Array
    maps: Array
    activations: dict[str, Array]
    collections: Tree


@brief
class Network(NamedTuple):
    """An ordinary single-task network as pure functions; it knows nothing of tasks.

    Attributes:
      init: `key -> (params, collections)`, nested dicts. `collections` holds `batch_stats`, `gates` (`{name: [C]}`,
        ones) and `frozen` (`{name: [C]}` bool) where the network has them.
      encode: images to maps; see `Encode`.
      decode: maps to logits; see `Decode`. The seam is where Grad-CAM, herding and feature distillation cut.
      per_task: full leaf paths (of params, or of collections with the collection's name first) that belong to a task:
        the head, usually. Empty for a shared head.
      wiring: one `Wire` for each gated leaf of params; empty where gates are unknown.
      inputs: shape of one example, such as `(8, 8, 1)`.
      outputs: K, the number of logits of a head.

    Example:
      >>> import jax
      >>> from cljax import networks
      >>> network = networks.mlp((8, 8, 1), 2, hidden=(16,))
      >>> params, collections = network.init(jax.random.key(0))
      >>> network.apply(params, collections, jax.numpy.zeros((5, 8, 8, 1))).logits.shape
      (5, 2)
    """

    init: Callable[[Array], tuple[Tree, Tree]]
    encode: Encode
    decode: Decode
    per_task: tuple[str, ...]
    wiring: tuple[Wire, ...]
    inputs: tuple[int, ...]
    outputs: int

    @property
    def shapes(self) -> tuple[Tree, Tree]:
        """Shapes and dtypes of params and collections, as `jax.ShapeDtypeStruct`; nothing is drawn.

        Example:
          >>> from cljax import networks
          >>> params, collections = networks.mlp((8, 8, 1), 2, hidden=(16,)).shapes
          >>> params['head']['kernel'].shape, collections['gates']['dense_0'].shape
          ((16, 2), (16,))
        """
        return jax.eval_shape(self.init, jax.eval_shape(jax.random.key, 0))

    def apply(self, params: Tree, collections: Tree, inputs: AnyArray, *, key: Array | None = None) -> Output:
        """Encodes and decodes; in training mode where a key is given, in evaluation mode where it is None."""
        inputs = jax.numpy.asarray(inputs)
        train = key is not None
        encode_key, decode_key = (None, None) if key is None else tuple(jax.random.split(key))
        maps, lower, collections = self.encode(params, collections, inputs, train=train, key=encode_key)
        (logits, features), upper, collections = self.decode(params, collections, maps, train=train, key=decode_key)
        return Output(logits, features, maps, {**lower, **upper}, collections)
