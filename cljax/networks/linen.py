"""From a Flax Linen module with explicit gates to a `Network` of pure functions."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cljax import task_params
from cljax.networks.gate_checks import check_gates
from cljax.networks.layers import Convolution, Normalization, make_norm
from cljax.numbers import INT32, check_shape, real, several, show, whole
from cljax.types import Array, Network, Tree, Wire

Scalars = float | Sequence[float] | np.ndarray


def standardize(inputs: Array, mean: Scalars = 0.0, std: Scalars = 1.0, *, dtype: Any = None) -> Array:
    """Scales and standardises raw inputs: `(x - mean) / std`, where `x = inputs / 255` if the inputs are integers.

    Args:
      inputs: `[B, ..., C]`, uint8 (scaled to [0, 1]) or floating point (taken as they are).
      mean: one number, or one for each channel.
      std: the standard deviation, in the same form.
      dtype: of the result; float32 for integers and the inputs' own for floats if None.

    Returns:
      `[B, ..., C]`, floating point.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.networks import standardize
      >>> standardize(jnp.array([[0, 255]], jnp.uint8), mean=0.5, std=0.25)
      Array([[-2.,  2.]], dtype=float32)
    """
    integers = jnp.issubdtype(inputs.dtype, jnp.integer)
    dtype = dtype or (jnp.float32 if integers else inputs.dtype)
    values = inputs.astype(dtype)
    if integers:
        values = values / 255
    moments = []
    for name, moment in (("mean", mean), ("std", std)):
        _check_channels(name, moment, inputs.shape)
        value = jnp.asarray(moment, dtype)
        moments.append(jnp.broadcast_to(value, (1,) * (inputs.ndim - 1) + inputs.shape[-1:]))
    return (values - moments[0]) / moments[1]


def check_moments(mean: Scalars, std: Scalars, inputs: Sequence[int]) -> None:
    """Checks the numbers that a network standardises its inputs by.

    Raises:
      ValueError: they are not finite, `std` is not above 0, or there are neither one nor as many as channels.

    Example:
      >>> check_moments(0.5, (0.2, 0.2), (8, 8, 3))
      Traceback (most recent call last):
      ...
      ValueError: std has shape (2,), but the inputs have 3 channels: give one number, or one for each channel.
    """
    for name, moments, bounds in (("mean", mean, {}), ("std", std, {"above": 0})):
        for moment in np.ravel(moments):
            real(name, moment, **bounds)
        _check_channels(name, moments, inputs)


def _check_channels(name: str, moments: Scalars, inputs: Sequence[int]) -> None:
    if np.shape(moments) not in ((), (1,), (inputs[-1],)):
        raise ValueError(
            f"{name} has shape {np.shape(moments)}, but the inputs have {inputs[-1]} channels: "
            "give one number, or one for each channel."
        )


def check_inputs(inputs: Any, *, images: bool = False) -> tuple[int, ...]:
    """Checks the shape of an example.

    Args:
      inputs: the shape.
      images: whether it must be that of an image.

    Returns:
      The shape.

    Raises:
      ValueError: it is none.

    Example:
      >>> check_inputs((3, 32, 32), images=True)
      Traceback (most recent call last):
      ...
      ValueError: inputs is (3, 32, 32), but must be the shape of an image, (height, width, channels): channels last.
    """
    such = (
        "the shape of an image, (height, width, channels)" if images else "the shape of one example, such as (8, 8, 1)"
    )
    shape = tuple(several("inputs", inputs, such, least=3 if images else 1, most=3 if images else INT32))
    for size in shape:
        whole("A side of inputs", size, least=1)
    if images and shape[0] in (1, 3) and min(shape[1:]) > 4:
        raise ValueError(f"inputs is {shape}, but must be {such}: channels last.")
    return shape


def check_numbers(inputs: Sequence[int], outputs: int, widths: Sequence[int], dropout: Sequence[float]) -> None:
    """Checks the numbers that a network is built of.

    Raises:
      ValueError: naming the one that is out of range.
    """
    check_inputs(inputs)
    if isinstance(widths, str) or not isinstance(widths, Sequence):
        raise ValueError(f"A width is of {show(widths)}, but must be of a sequence of whole numbers.")
    for name, values in (("outputs", [outputs]), ("A width", widths)):
        for size in values:
            whole(name, size, least=1)
    for rate in dropout:
        real("dropout", rate, least=0, below=1)


def parameter_dtype(params: Tree) -> Any:
    """The dtype of the parameters, in which a network computes: that of the first leaf.

    Example:
      >>> parameter_dtype({'head': {'kernel': jnp.ones((2, 2))}})
      dtype('float32')
    """
    return jax.tree.leaves(params)[0].dtype


def match_widths(wiring: Sequence[Wire]) -> Any:
    """A context in which gated layers have as many features as their kernels: so a network computes with cut params.

    Args:
      wiring: the network's; dense layers and convolutions whose outputs have a gate take their kernel's width.

    Returns:
      The context, of Flax's method interception.
    """
    gated = {wire.path.rpartition("/")[0] for wire in wiring if wire.outputs is not None}

    def intercept(call: Callable, arguments: tuple, options: dict[str, Any], context: Any) -> Any:
        layer = context.module
        wide = isinstance(layer, nn.Dense | nn.Conv | Convolution) and "/".join(layer.path) in gated
        if wide and layer.has_variable("params", "kernel"):
            object.__setattr__(layer, "features", layer.get_variable("params", "kernel").shape[-1])
        return call(*arguments, **options)

    return nn.intercept_methods(intercept)


def make_network(
    module: nn.Module,
    inputs: Sequence[int],
    outputs: int,
    *,
    gates: Mapping[str, int],
    wiring: Sequence[Wire],
    frozen: Sequence[str] = (),
    per_task: Sequence[str] | None = None,
    mean: Scalars = 0.0,
    std: Scalars = 1.0,
    check: bool = True,
) -> Network:
    """Makes a network of a Linen module that takes its gates as arguments.

    The module has two methods, and its `__call__` is one after the other:

    - `encode(inputs, gates, frozen, *, train) -> maps, activations`
    - `decode(maps, gates, frozen, *, train) -> (logits, features), activations`

    with standardised inputs, `gates` and `frozen` as dicts `{name: [C]}`, and dropout from the stream `'dropout'`. The
    gates and the frozen channels are data that the module never changes; so they are arguments, and in the network's
    collections they are flat: `collections['gates'][name]`, `collections['frozen'][name]`. Both have the gate's name,
    that of the features.

    Args:
      module: the unbound module.
      inputs: shape of one example.
      outputs: number of logits.
      gates: number of features of each gate.
      wiring: as of `Network`.
      frozen: names of the gates whose features pass a `BatchNorm`.
      per_task: leaf paths that belong to a task; those of the module named `head` if None.
      mean: of inputs, one number or one for each channel; see `standardize`.
      std: the standard deviation, in the same form.
      check: whether the wiring is tried out, see `check_gates`; the networks of this package are by its tests.

    Returns:
      The network. Training mode is `train=True`; only then does a collection change, and only `batch_stats`.

    Raises:
      ValueError: if closed features reach open ones.

    Example:
      >>> import flax.linen as nn
      >>> from cljax.networks import make_network
      >>> from cljax.types import Wire
      >>> class Gated(nn.Module):
      ...     def setup(self):
      ...         self.dense, self.head = nn.Dense(4), nn.Dense(2)
      ...     def encode(self, inputs, gates, frozen, *, train):
      ...         maps = nn.relu(self.dense(inputs)) * gates['dense'][None]
      ...         return maps, {'dense': maps}
      ...     def decode(self, maps, gates, frozen, *, train):
      ...         return (self.head(maps), maps), {}
      ...     def __call__(self, inputs, gates, frozen, *, train):
      ...         return self.decode(self.encode(inputs, gates, frozen, train=train)[0], gates, frozen, train=train)
      >>> wiring = [
      ...     Wire('dense/kernel', None, 'dense'), Wire('dense/bias', None, 'dense'),
      ...     Wire('head/kernel', 'dense', None), Wire('head/bias', None, None),
      ... ]
      >>> make_network(Gated(), (3,), 2, gates={'dense': 4}, wiring=wiring).per_task
      ('head/kernel', 'head/bias')
    """
    shape = tuple(inputs)
    check_moments(mean, std, shape)

    @functools.partial(jax.jit, inline=True)  # traced once
    def init(key: Array) -> tuple[Tree, Tree]:
        collections = {
            "gates": {name: jnp.ones(size, jnp.float32) for name, size in gates.items()},
            "frozen": {name: jnp.zeros(gates[name], jnp.bool_) for name in frozen},
        }
        example = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
        variables = module.lazy_init(key, example, collections["gates"], collections["frozen"], train=False)
        rest = {name: value for name, value in variables.items() if name != "params"}
        return variables["params"], {**rest, **{name: value for name, value in collections.items() if value}}

    def run(method: str, params: Tree, collections: Tree, value: Array, train: bool, key: Array | None):
        statistics = {name: collections[name] for name in ("batch_stats",) if name in collections}
        with match_widths(wiring):
            result, updated = module.apply(
                {"params": params, **statistics},
                value,
                collections["gates"],
                collections.get("frozen", {}),
                train=train,
                method=method,
                rngs=None if key is None else {"dropout": key},
                mutable=list(statistics) if train else [],
            )
        return *result, {**collections, **updated}

    def encode(params: Tree, collections: Tree, inputs: Array, *, train: bool, key: Array | None):
        check_shape("inputs", inputs, "B", *shape)
        values = standardize(inputs, mean, std, dtype=parameter_dtype(params))
        return run("encode", params, collections, values, train, key)

    def decode(params: Tree, collections: Tree, maps: Array, *, train: bool, key: Array | None):
        return run("decode", params, collections, maps, train, key)

    if per_task is None:
        per_task = tuple(wire.path for wire in wiring if wire.path.startswith("head/"))
    else:
        leaves = [leaf for tree in jax.eval_shape(init, jax.random.key(0)) for leaf in task_params.leaf_paths(tree)]
        check_paths("per_task", per_task, leaves)
    network = Network(init, encode, decode, tuple(per_task), tuple(wiring), shape, outputs)
    if check and gates:
        check_gates(network)
    return network


def layer_wires(
    layer: str, norm: str | None, *, inputs: str | None, outputs: str, repeat: int = 1, bias: bool = True
) -> list[Wire]:
    """The wires of a gated layer, with bias or without, and of the norm behind it, if there is one.

    Example:
      >>> [wire.path for wire in layer_wires('dense_0', 'norm_0', inputs=None, outputs='dense_0')]
      ['dense_0/kernel', 'dense_0/bias', 'norm_0/scale', 'norm_0/bias']
    """
    affine = [*([f"{layer}/bias"] if bias else []), *([f"{norm}/scale", f"{norm}/bias"] if norm else [])]
    return [Wire(f"{layer}/kernel", inputs, outputs, repeat), *(Wire(path, None, outputs) for path in affine)]


def head_wires(inputs: str | None, repeat: int = 1) -> list[Wire]:
    """The wires of the head, whose outputs are logits.

    Example:
      >>> head_wires('dense_1')[0]
      Wire(path='head/kernel', inputs='dense_1', outputs=None, repeat=1)
    """
    return [Wire("head/kernel", inputs, None, repeat), Wire("head/bias", None, None)]


def chain_network(
    module: nn.Module,
    inputs: Sequence[int],
    outputs: int,
    layers: Sequence[tuple[str, str, int, int]],
    repeat: int = 1,
    *,
    normalization: Normalization,
    **options: Any,
) -> Network:
    """Makes a network whose gated layers form a chain, the head at its end.

    Args:
      module: as of `make_network`; so are inputs, outputs and options.
      layers: of each its name, which is its gate's, that of its norm, its features and how often its inputs' gate
        repeats.
      repeat: the same of the head.
      normalization: whose norms the layers have.

    Raises:
      ValueError: for another normalization.
    """
    make_norm(normalization)
    wiring, before = list[Wire](), None
    for layer, norm, _, times in layers:
        wiring += layer_wires(layer, norm if normalization else None, inputs=before, outputs=layer, repeat=times)
        before = layer
    gates = {layer: size for layer, _, size, _ in layers}
    frozen = tuple(gates) if normalization == "batch" else ()
    wiring += head_wires(before, repeat)
    return make_network(module, inputs, outputs, gates=gates, wiring=wiring, frozen=frozen, check=False, **options)


def check_paths(option: str, paths: Sequence[str], existing: Sequence[str]) -> None:
    """Checks that every path exists.

    Raises:
      ValueError: for one that does not, with a list of those that do.

    Example:
      >>> check_paths('per_task', ('head',), ['head/kernel', 'head/bias'])
      Traceback (most recent call last):
        ...
      ValueError: per_task names 'head', which does not exist. There are: head/kernel, head/bias.
    """
    if isinstance(paths, str):
        raise ValueError(f"{option} is a sequence of paths, not the string {paths!r}: {option}=({paths!r},).")
    for path in paths:
        if path not in existing:
            raise ValueError(f"{option} names {path!r}, which does not exist. There are: {', '.join(existing)}.")
