"""Whether closed gates cut a network as its wiring says, tried out on random parameters."""

import math
from collections.abc import Iterator, Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from cljax import task_params
from cljax.types import Array, Network, Tree, Wire

Closed = Mapping[str, Array | np.ndarray]
"""The closed features of each gate, `{gate: [C] bool}`."""


def check_gates(network: Network) -> None:
    """Checks that open features, and the logits, do not depend on closed ones: on no weight into nor out of them.

    A method that forgets nothing lets later tasks change those weights. So random features are closed, of every gate at
    once, and all that leads to them and comes from them is drawn anew: no bit of what is open may change. Every pair of
    a gate's features is apart at least once. Weights and images are positive, so that nothing hides behind a ReLU, and
    drawn from both signs; and images are large once, as what limits the features' length mixes them only there.

    Args:
      network: with gates.

    Raises:
      ValueError: naming the gate, or what still reads its closed features.

    Example:
      >>> from cljax import networks
      >>> from cljax.networks import check_gates
      >>> check_gates(networks.mlp((3,), 2, hidden=(4,), normalization='feature'))
    """
    like = network.shapes
    wires = {wire.path: wire for wire in network.wiring}
    modules = {_module(path): wire for path, wire in wires.items() if wire.inputs is None}
    names = list(dict.fromkeys(wire.outputs for wire in network.wiring if wire.outputs is not None))
    sizes = {name: like[1]["gates"][name].size for name in names}

    @jax.jit
    def look(first: tuple, second: tuple, example: Array, closed: Closed, scale: Array, into: Array, out: Array):
        def mix(wire: Wire | None, leaf: Array, other: Array) -> Array:
            if wire is None:
                return leaf
            change = jnp.zeros((1, 1), jnp.bool_)
            if wire.inputs is not None:
                change |= out & jnp.tile(closed[wire.inputs], wire.repeat)[:, None]
            if wire.outputs is not None:
                change |= into & closed[wire.outputs][None, :]
            shape = change.shape[-1:] if leaf.ndim == 1 else (1,) * (leaf.ndim - 2) + change.shape
            return jnp.where(change.reshape(shape), other, leaf)

        scaled = jax.tree.map(lambda leaf: leaf * scale.astype(leaf.dtype), second[0])
        params = task_params.map_leaves(lambda path, *both: mix(wires.get(path), *both), first[0], scaled)
        of_module = lambda path: modules.get(_module(path.partition("/")[2]))
        collections = task_params.map_leaves(lambda path, *both: mix(of_module(path), *both), first[1], second[1])
        gates = {name: (~closed[name]).astype(leaf.dtype) for name, leaf in like[1]["gates"].items()}
        output = network.apply(params, {**collections, "gates": gates}, example)
        return output.activations, output.logits

    array, flag = jax.ShapeDtypeStruct, jax.ShapeDtypeStruct((), jnp.bool_)
    both = (like[0], {name: value for name, value in like[1].items() if name != "gates"})
    masks = {name: array((size,), jnp.bool_) for name, size in sizes.items()}
    images = array((2, *network.inputs), jnp.float32)
    program = look.lower(both, both, images, masks, array((), jnp.float32), flag, flag).compile()
    with jax.ensure_compile_time_eval():  # one's own jit may be around, and this is not a part of it
        for *drawn, closed, scale in _draws(both, network.inputs, sizes):
            changed = lambda into, out, given=(*drawn, closed, scale): jax.device_get(
                program(*given, np.bool_(into), np.bool_(out))
            )
            before, after = changed(False, False), changed(True, True)
            if _difference(names, closed, before, after) is None or not np.isfinite(after[1]).all():
                continue  # an overflow in a closed feature, infinity times 0, says nothing
            if (gate := _difference(names, closed, before, changed(False, True))) is not None:
                read = [wire for wire in network.wiring if wire.outputs == (gate or None) and wire.inputs is not None]
                raise ValueError(
                    f"{_module(read[0].path)!r} still reads features that the gate {read[0].inputs!r} has closed: "
                    "something between the two (a norm's shift, a nonlinearity with f(0) != 0, a skip connection, "
                    "features that change places, a transposition before flattening), or a kernel that is normalised "
                    "over its inputs, lets them through. Gate the last submodule before the nonlinearity, of layers "
                    "that form a chain."
                )
            gate = _difference(names, closed, before, after)
            where = f"The open features of the gate {gate!r} depend" if gate else "The logits depend"
            raise ValueError(
                f"{where} on weights that lead to closed features, which later tasks train: a method that forgets "
                "nothing would forget. Something mixes features before they are gated: a norm across features "
                "(LayerNorm, RMSNorm, GroupNorm of several channels, L2), a softmax, attention, a skip connection "
                "around the gate. Normalise each feature by itself (networks.FeatureNorm, BatchNorm, GroupNorm with "
                "group_size=1), or gate the layer before, where what follows maps closed features, 0, to 0."
            )


def _module(path: str) -> str:
    return path.rpartition("/")[0]


def _draws(both: tuple[Tree, Tree], shape: tuple[int, ...], sizes: Mapping[str, int]) -> Iterator[tuple]:
    """Two random `(params, collections)`, images, closed features, and a factor on the second params."""
    generator = np.random.default_rng(0)
    places = {name: generator.permutation(size) for name, size in sizes.items()}
    digits = {name: max(1, (size - 1).bit_length()) for name, size in sizes.items()}

    def draw(leaf: jax.ShapeDtypeStruct, *, signed: bool) -> Array:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return jnp.zeros(leaf.shape, leaf.dtype)
        count = math.prod(leaf.shape[:-1])  # the fan-in of a kernel, so that a layer keeps the size of what it is given
        values = generator.random(leaf.shape, np.float32)
        values = (values - 0.5) * np.float32(3.4 / math.sqrt(count)) if signed else (values + 0.5) / np.float32(count)
        return jnp.asarray(values, leaf.dtype)

    for signed in (False, True):
        params = [jax.tree.map(partial(draw, signed=signed), both[0]) for _ in range(2)]
        first, second = ((tree, jax.tree.map(partial(draw, signed=False), both[1])) for tree in params)
        example = generator.uniform(-1.5 if signed else 0.5, 1.5, (2, *shape)).astype(np.float32)
        for digit in range(max(digits.values())):
            bits = {name: (place >> digit % digits[name] & 1).astype(bool) for name, place in places.items()}
            closed = {name: bits[name] != (signed and sizes[name] > 1) for name in sizes}
            yield first, second, example, closed, np.float32(4.0 if digit % 2 else -4.0)
    yield first, second, np.float32(1e4) * example, closed, np.float32(4.0)


def _difference(names: list[str], closed: Closed, before: tuple, after: tuple) -> str | None:
    """The first gate whose open features differ by a bit; the empty string where only the logits do; or None."""
    for name in names:
        if name in before[0]:
            values = [np.asarray(found[0][name])[..., ~closed[name]].tobytes() for found in (before, after)]
            if values[0] != values[1]:
                return name
    return None if np.asarray(before[1]).tobytes() == np.asarray(after[1]).tobytes() else ""
