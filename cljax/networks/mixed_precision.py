"""Mixed precision: a network that computes in bfloat16 and learns in float32."""

import functools

import jax
import jax.numpy as jnp

from cljax.types import Array, Network, Tree


def in_bfloat16(network: Network) -> Network:
    """The same network, whose layers compute in bfloat16; parameters, statistics, loss and updates stay in float32.

    Parameters and inputs are rounded to bfloat16 (8 bits of mantissa) where the network is entered, and logits,
    features, maps and activations are float32 again where it is left; between `encode` and `decode` the maps are
    bfloat16's. Gradients reach the float32 parameters, so that small updates are not lost, and update masks, owners and
    teachers are as without. The moments of `BatchNorm` are computed and kept in float32. bfloat16 has float32's range:
    no loss has to be scaled.

    On GPU and TPU the products of large layers take a fraction of the time and maps half of the memory; on a CPU it is
    slower.

    Args:
      network: of float32 parameters.

    Returns:
      The network.

    Example:
      >>> import jax
      >>> from cljax import networks
      >>> exact = networks.mlp((2,), 2, hidden=(3,))
      >>> rough = networks.in_bfloat16(exact)
      >>> params, collections = rough.init(jax.random.key(0))
      >>> logits = rough.apply(params, collections, jax.numpy.ones((1, 2))).logits
      >>> params['head']['kernel'].dtype, logits.dtype
      (dtype('float32'), dtype('float32'))
      >>> bool((logits == logits.astype('bfloat16').astype('float32')).all())  # what bfloat16 can tell apart
      True

    Reference: Micikevicius et al., Mixed Precision Training, 2018, section 3.1; Kalamkar et al., A Study of BFLOAT16
    for Deep Learning Training, 2019.
    """

    def encode(params: Tree, collections: Tree, inputs: Array, *, train: bool, key: Array | None):
        maps, activations, after = network.encode(_rounded(params), collections, inputs, train=train, key=key)
        return _restored(maps), _restored(activations), after

    def decode(params: Tree, collections: Tree, maps: Array, *, train: bool, key: Array | None):
        outputs, activations, after = network.decode(
            _rounded(params), collections, _rounded(maps), train=train, key=key
        )
        return _restored(outputs), _restored(activations), after

    return network._replace(encode=encode, decode=decode)


def _cast(tree: Tree, old: jnp.dtype, new: jnp.dtype) -> Tree:
    return jax.tree.map(lambda leaf: leaf.astype(new) if leaf.dtype == old else leaf, tree)


_rounded = functools.partial(_cast, old=jnp.dtype("float32"), new=jnp.dtype("bfloat16"))
_restored = functools.partial(_cast, old=jnp.dtype("bfloat16"), new=jnp.dtype("float32"))
