"""Any user's Flax NNX module as a `Network`, through plain dicts: no NNX type is in the pytree."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen, nnx
from flax.traverse_util import flatten_dict, unflatten_dict

from cljax.networks.adaptors import chain, frozen_norms
from cljax.networks.gate_checks import check_gates
from cljax.networks.layers import gate_features
from cljax.networks.linen import Scalars, check_inputs, check_moments, check_paths, parameter_dtype, standardize
from cljax.networks.nnx_layers import BatchNorm
from cljax.numbers import check_shape, show
from cljax.types import Array, Network, Tree, Wire


class _Standing(nnx.Module):
    """Stands in for a submodule: what is called in its place."""

    def __init__(self, call: Callable[..., Array]):
        self.call: Any = nnx.static(call)

    def __call__(self, *arguments: Any, **options: Any) -> Array:
        return self.call(*arguments, **options)


class _Call(NamedTuple):
    """A call of a submodule: its path, what entered it, its (gated) outputs, or their shape."""

    path: str
    entering: Any
    outputs: Any


def from_nnx(
    model: nnx.Module | Callable[[nnx.Rngs], nnx.Module],
    inputs: Sequence[int],
    *,
    outputs: int,
    head: str = "head",
    per_task: Sequence[str] | None = None,
    encode_method: str | None = None,
    decode_method: str | None = None,
    gates: Sequence[str] = (),
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

    Gates are as of `from_linen`, the submodules named by attribute, and so are norms: `networks.nnx_layers` has
    `FeatureNorm` and a `BatchNorm` whose channels can be frozen. docs/own_networks.md has examples.

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
      gates: attribute paths of submodules that have parameters, such as `('norm', 'layers/0')`.
      mean: of inputs in [0, 1], one number or one for each channel.
      std: the standard deviation, in the same form.

    Returns:
      The network; its wiring is empty without gates.

    Raises:
      ValueError: if the module has no such head, or its outputs are not the logits `[B, K]`; if a path of per_task or
        gates does not exist; if gated layers do not form a chain, or closed features reach open ones; if the module
        keeps other state than parameters, batch statistics and random streams.

    Example:
      >>> import jax
      >>> from flax import nnx
      >>> from cljax.networks import from_nnx
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
    shape, made = check_inputs(inputs), isinstance(model, nnx.Module)
    check_moments(mean, std, shape)
    if isinstance(model, linen.Module) or not (made or callable(model)):
        raise TypeError(
            f"model is {show(model)}, but must be an nnx.Module, or a function that makes one of nnx.Rngs, such as its "
            f"class. networks.from_linen takes a Linen module."
        )
    create: Any = (lambda rngs: model) if made else model
    template: Any = model if made else nnx.eval_shape(lambda: create(nnx.Rngs(0)))
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
        collections = {"batch_stats": _to_dict(statistics)} if statistics else {}
        if gates:
            collections["gates"] = {path: jnp.ones(size, jnp.float32) for path, size in sizes.items()}
        if norms:
            collections["frozen"] = {gate: jnp.zeros(sizes[gate], jnp.bool_) for gate in norms.values()}
        return _to_dict(params), collections

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

    def run(built: nnx.Module, method: str, value: Array, collections: Tree, watched: Sequence[str] = ()):
        """Runs a method, its gated features multiplied; the result, the calls of the head, gates, norms, and others."""
        calls: list[_Call] = []

        def stand_in(path: str, own: Callable[..., Array]) -> _Standing:
            def call(*arguments: Any, **options: Any) -> Array:
                if path in norms:
                    options = {"frozen": collections["frozen"][norms[path]], **options}
                outputs = own(*arguments, **options)
                if path in sizes:
                    outputs = gate_features(outputs, collections["gates"][path])
                calls.append(_Call(path, arguments[0] if arguments else None, outputs))
                return outputs

            return _Standing(call)

        paths = sorted({head, *sizes, *norms, *watched}, key=lambda path: -path.count("/"))  # inner ones first
        replaced = []
        for path in paths:
            owner, name = _find(built, path)
            own = _get(owner, name)
            _set(owner, name, stand_in(path, own))
            replaced.append((owner, name, own))
        result = getattr(built, method)(value)
        for owner, name, own in reversed(replaced):
            _set(owner, name, own)
        return result, calls

    def entering(result: Array, calls: list[_Call]) -> Array:
        heads = [call for call in calls if call.path == head]
        if not heads or heads[-1].outputs is not result:
            raise ValueError(f"The outputs of {head!r} are not the module's logits. Name its last layer: head='...'.")
        return heads[-1].entering

    def activations_of(calls: list[_Call]) -> dict[str, Array]:
        return {call.path: call.outputs for call in calls if call.path in sizes}

    def encode(params: Tree, collections: Tree, inputs: Array, *, train: bool, key: Array | None):
        check_shape("inputs", inputs, "B", *shape)
        values = standardize(inputs, mean, std, dtype=parameter_dtype(params))
        built = merge(params, collections, train, key)
        maps, calls = run(built, encode_method or "__call__", values, collections)
        maps = maps if encode_method else entering(maps, calls)
        return maps, activations_of(calls), finish(built, collections, train)

    def decode(params: Tree, collections: Tree, maps: Array, *, train: bool, key: Array | None):
        built = merge(params, collections, train, key)
        if not decode_method:
            return (_get(*_find(built, head))(maps), maps), {}, finish(built, collections, train)
        logits, calls = run(built, decode_method, maps, collections)
        return (logits, entering(logits, calls)), activations_of(calls), finish(built, collections, train)

    def forward(key: Array) -> tuple[Array, Tree, Tree]:
        params, collections = init(key)
        maps, _, _ = encode(params, collections, jnp.zeros((1, *shape)), train=False, key=None)
        return decode(params, collections, maps, train=False, key=None)[0][0], params, collections

    sizes: dict[str, int] = {}
    norms: dict[str, str] = {}
    logits, params, collections = jax.eval_shape(forward, jax.random.key(0))
    if logits.shape != (1, outputs):
        raise ValueError(f"The module's logits of one example have shape {logits.shape}, but outputs={outputs}.")
    leaves = ["/".join(path) for path in flatten_dict(params)]
    existing = leaves + ["/".join(path) for path in flatten_dict(collections)]
    if per_task is None:
        per_task = tuple(path for path in leaves if path.startswith(f"{head}/"))
    check_paths("per_task", per_task, existing)
    wiring: tuple[Wire, ...] = ()
    if gates:
        owners = list(dict.fromkeys(path.rpartition("/")[0] for path in leaves))
        inside = [path.split("/")[:depth] for path in owners for depth in range(1, path.count("/") + 2)]
        there = [path for path in dict.fromkeys(map("/".join, inside)) if callable(_get(*_find(template, path)))]
        check_paths("gates", gates, [path for path in there if path != head])
        calls = _watch(run, merge, params, collections, shape, (encode_method, decode_method), (*owners, *gates))
        sizes.update({call.path: call.outputs[-1] for call in calls if call.path in gates})
        if lost := [path for path in gates if path not in sizes]:
            raise ValueError(f"The submodule {lost[0]!r} is not called, so that nothing can be gated. Name another.")
        flat = {"/".join(path): leaf for path, leaf in flatten_dict(params).items()}
        wiring = chain(calls, flat, {path: sizes[path] for path in gates})
        built = merge(params, collections, False, None)
        own = [path for path in owners if isinstance(_get(*_find(built, path)), BatchNorm)]
        norms.update(frozen_norms(own, wiring, collections))
    network = Network(init, encode, decode, tuple(per_task), wiring, shape, outputs)
    if gates:
        check_gates(network)
    return network


def _watch(run: Callable, merge: Callable, params: Tree, collections: Tree, shape: tuple, methods: tuple, paths: tuple):
    """The calls of these submodules in the order of their ends, their outputs as shapes."""
    found: list[_Call] = []

    def evaluate(params: Tree, collections: Tree, value: Array) -> None:
        for method in [method for method in methods if method] or ["__call__"]:
            value, calls = run(merge(params, collections, False, None), method, value, collections, paths)
            found.extend(call._replace(entering=None, outputs=jnp.shape(call.outputs)) for call in calls)

    jax.eval_shape(evaluate, params, collections, jax.ShapeDtypeStruct((1, *shape), jnp.float32))
    return found


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
        there = [str(one) for one, _ in nnx.iter_children(owner)] if isinstance(owner, nnx.Module) else []
        raise ValueError(
            f"The module has no submodule {name!r} where head='...' looks for its last layer. "
            f"There are: {', '.join(there) or 'none'}."
        ) from error


def _set(owner: Any, name: str | int, value: Any) -> None:
    if isinstance(name, int):
        owner[name] = value
    else:
        setattr(owner, name, value)
