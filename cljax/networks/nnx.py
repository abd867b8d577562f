"""Any user's Flax NNX module as a `Network`, through plain dicts: no NNX type is in the pytree."""

from collections.abc import Callable, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

from cljax.networks.linen import Scalars, check_paths, parameter_dtype, standardize
from cljax.types import Array, Network, Tree


class _Recorder(nnx.Module):
    """Stands in for the head and keeps what enters it."""

    def __init__(self, head: Callable[[Array], Array]):
        self.head = head
        self.seen: Any = nnx.static([])

    def __call__(self, features: Array) -> Array:
        logits = self.head(features)
        self.seen.append((features, logits))
        return logits


def from_nnx(
    model: nnx.Module | Callable[[nnx.Rngs], nnx.Module],
    inputs: Sequence[int],
    *,
    outputs: int,
    head: str = "head",
    per_task: Sequence[str] | None = None,
    encode_method: str | None = None,
    decode_method: str | None = None,
    mean: Scalars = 0.0,
    std: Scalars = 1.0,
) -> Network:
    """Makes a network of any Flax NNX module, with its dropout and its `BatchNorm`, as it is.

    `nnx.Param` become params and `nnx.BatchStat` the collection `batch_stats`, nested dicts by attribute, an index of
    a list as a string. Mode is what `model.train()` and `model.eval()` set. In training mode, each random stream of
    the model starts from a key of its own, folded from the step's.

    Without methods given, `encode` runs the module and keeps what enters the head, and `decode` applies the head
    alone; maps and features are then both that. With `encode_method` and `decode_method`, which composed must be the
    module's `__call__`, the maps are what the first returns, and Grad-CAM can see them.

    Args:
      model: a module, trained maybe (`init` returns its values, whatever the key), or a function of `nnx.Rngs` that
        makes one (`init` draws new values). Called with standardised inputs `[B, ...]`, it returns logits `[B, K]`.
      inputs: shape of one example.
      outputs: K.
      head: attribute path of the submodule whose outputs are the logits, such as `'head'` or `'layers/2'`.
      per_task: full leaf paths of params (or of batch_stats, with that name first) that belong to a task; the head's
        if None.
      encode_method: name of the module's method `inputs -> maps`.
      decode_method: name of its method `maps -> logits`.
      mean: of inputs in [0, 1], one number or one for each channel.
      std: the standard deviation, in the same form.

    Returns:
      The network; its wiring is empty.

    Raises:
      ValueError: if the module has no such head, or its outputs are not the logits `[B, K]`; if a path of per_task
        does not exist; if the module keeps other state than parameters, batch statistics and random streams.

    Example:
      >>> class Small(nnx.Module):
      ...     def __init__(self, rngs):
      ...         self.hidden, self.head = nnx.Linear(4, 8, rngs=rngs), nnx.Linear(8, 2, rngs=rngs)
      ...     def __call__(self, inputs):
      ...         return self.head(nnx.relu(self.hidden(inputs)))
      >>> network = from_nnx(Small, (4,), outputs=2)
      >>> params, collections = network.init(jax.random.key(0))
      >>> jax.tree.map(lambda leaf: leaf.shape, params)
      {'head': {'bias': (2,), 'kernel': (8, 2)}, 'hidden': {'bias': (8,), 'kernel': (4, 8)}}
    """
    if (encode_method is None) != (decode_method is None):
        raise ValueError("Give both encode_method and decode_method, or neither.")
    shape = tuple(inputs)
    create = (lambda rngs: model) if isinstance(model, nnx.Module) else model
    template = model if isinstance(model, nnx.Module) else nnx.eval_shape(lambda: create(nnx.Rngs(0)))
    graphs: dict[bool, Any] = {}
    for train in (False, True):
        copy = nnx.clone(template)
        copy.train() if train else copy.eval()
        parts: Any = nnx.split(copy, nnx.Param, nnx.BatchStat, nnx.RngState, ...)
        graphs[train], params_like, statistics_like, streams, rest = parts
    if rest:
        raise ValueError(
            f"The module keeps state that is neither nnx.Param, nnx.BatchStat nor random: {_names(rest)}. "
            "Make it one of these, or a plain attribute."
        )

    def init(key: Array) -> tuple[Tree, Tree]:
        parts: Any = nnx.split(create(nnx.Rngs(key)), nnx.Param, nnx.BatchStat, ...)
        _, params, statistics, _ = parts
        return _to_dict(params), {"batch_stats": _to_dict(statistics)} if statistics else {}

    def merge(params: Tree, collections: Tree, train: bool, key: Array | None) -> nnx.Module:
        key = jax.random.key(0) if key is None else key
        started = []
        for index, (path, variable) in enumerate(nnx.to_flat_state(streams)):
            is_key = jnp.issubdtype(variable.dtype, jax.dtypes.prng_key)
            value = jax.random.fold_in(key, index) if is_key else jnp.zeros(variable.shape, variable.dtype)
            started.append((path, variable.replace(value)))
        return nnx.merge(
            graphs[train],
            _to_state(params, params_like),
            _to_state(collections.get("batch_stats", {}), statistics_like),
            nnx.from_flat_state(started),
        )

    def finish(built: nnx.Module, collections: Tree, train: bool) -> Tree:
        if not train or "batch_stats" not in collections:
            return collections
        return {**collections, "batch_stats": _to_dict(nnx.state(built, nnx.BatchStat))}

    def record(built: nnx.Module, method: str, value: Array) -> tuple[Array, Array]:
        """Runs a method with a recorder in the head's place; returns the logits and what entered the head."""
        owner, name = _find(built, head)
        own = _get(owner, name)
        recorder = _Recorder(own)
        _set(owner, name, recorder)
        logits = getattr(built, method)(value)
        _set(owner, name, own)
        if not recorder.seen or recorder.seen[-1][1] is not logits:
            raise ValueError(f"The outputs of {head!r} are not the module's logits. Name its last layer: head='...'.")
        return logits, recorder.seen[-1][0]

    def encode(params: Tree, collections: Tree, inputs: Array, *, train: bool, key: Array | None):
        chex.assert_shape(inputs, (None, *shape))
        values = standardize(inputs, mean, std, dtype=parameter_dtype(params))
        built = merge(params, collections, train, key)
        maps = getattr(built, encode_method)(values) if encode_method else record(built, "__call__", values)[1]
        return maps, {}, finish(built, collections, train)

    def decode(params: Tree, collections: Tree, maps: Array, *, train: bool, key: Array | None):
        built = merge(params, collections, train, key)
        logits, features = (
            record(built, decode_method, maps) if decode_method else (_get(*_find(built, head))(maps), maps)
        )
        return (logits, features), {}, finish(built, collections, train)

    def forward(key: Array) -> tuple[Array, Tree, Tree]:
        params, collections = init(key)
        maps, _, _ = encode(params, collections, jnp.zeros((1, *shape)), train=False, key=None)
        return decode(params, collections, maps, train=False, key=None)[0][0], params, collections

    logits, params, collections = jax.eval_shape(forward, jax.random.key(0))
    if logits.shape != (1, outputs):
        raise ValueError(f"The module's logits of one example have shape {logits.shape}, but outputs={outputs}.")
    leaves = ["/".join(path) for path in flatten_dict(params)]
    existing = leaves + ["/".join(path) for path in flatten_dict(collections)]
    if per_task is None:
        per_task = tuple(path for path in leaves if path.startswith(f"{head}/"))
    check_paths("per_task", per_task, existing)
    return Network(init, encode, decode, tuple(per_task), (), shape, outputs)


def _names(state: nnx.State) -> str:
    return ", ".join("/".join(map(str, path)) for path, _ in nnx.to_flat_state(state))


def _to_dict(state: nnx.State) -> Tree:
    return unflatten_dict({tuple(map(str, path)): leaf.get_value() for path, leaf in nnx.to_flat_state(state)})


def _to_state(values: Tree, like: nnx.State) -> nnx.State:
    flat = flatten_dict(values)
    pairs = [(path, leaf.replace(flat[tuple(map(str, path))])) for path, leaf in nnx.to_flat_state(like)]
    return nnx.from_flat_state(pairs)


def _find(model: nnx.Module, path: str) -> tuple[Any, str | int]:
    """The owner of the submodule at a path, and its name there."""
    names: list[str | int] = [int(name) if name.isdigit() else name for name in path.split("/")]
    owner: Any = model
    for name in names[:-1]:
        owner = _get(owner, name)
    _get(owner, names[-1])
    return owner, names[-1]


def _get(owner: Any, name: str | int) -> Any:
    try:
        return owner[name] if isinstance(name, int) else getattr(owner, name)
    except (AttributeError, IndexError, TypeError) as error:
        raise ValueError(f"The module has no submodule {name!r} where head='...' looks for its last layer.") from error


def _set(owner: Any, name: str | int, value: Any) -> None:
    if isinstance(name, int):
        owner[name] = value
    else:
        setattr(owner, name, value)
