"""Any user's Flax Linen module as a `Network`, unchanged: its head found, its features captured, its layers gated."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from cljax.networks.gate_checks import check_gates
from cljax.networks.layers import BatchNorm, gate_features
from cljax.networks.linen import (
    Scalars,
    check_inputs,
    check_moments,
    check_paths,
    match_widths,
    parameter_dtype,
    standardize,
)
from cljax.numbers import check_shape, show
from cljax.types import Array, Network, Tree, Wire

GATED = "gated_activations"
"""The collection in which gated activations leave the module, also out of `nn.remat`."""
_INVERTED = ("deterministic", "use_running_average", "eval", "inference")


class _Call(NamedTuple):
    """A call of a submodule: its path, an unbound copy, its arguments, its (gated) outputs, the params it saw."""

    path: str
    module: nn.Module
    arguments: tuple
    options: dict[str, Any]
    outputs: Any
    params: Tree


class _Run(NamedTuple):
    """A run of a method: its result, the calls within it in order of their ends, gated activations, new variables."""

    result: Any
    calls: list[_Call]
    activations: dict[str, Array]
    updated: Tree


class _Source(NamedTuple):
    """The user's module, its keyword for training mode, and the methods whose composition is its `__call__`."""

    module: nn.Module
    train_argument: str | None
    methods: tuple[str | None, ...]

    def mode(self, train: bool) -> dict[str, Any]:
        return {self.train_argument: train != (self.train_argument in _INVERTED)} if self.train_argument else {}

    def init(self, key: Array, shape: tuple[int, ...]) -> Tree:
        variables = self.module.init(key, jnp.zeros((1, *shape), jnp.float32), **self.mode(False))
        return {name: value for name, value in variables.items() if name != "intermediates"}

    def run(
        self,
        method: str | None,
        variables: Tree,
        value: Array,
        gates: Mapping[str, Array],
        train: bool = False,
        key: Array | None = None,
        frozen: Mapping[str, Array] | None = None,
    ) -> _Run:
        calls: list[_Call] = []
        frozen = frozen or {}

        def intercept(call: Callable, arguments: tuple, options: dict[str, Any], context: Any) -> Any:
            path = "/".join(context.module.path)
            if context.method_name == "__call__" and path in frozen:
                options = {"frozen": frozen[path], **options}
            result = call(*arguments, **options)
            if context.method_name == "__call__" and path:
                if path in gates:
                    result = gate_features(result, gates[path])
                    context.module.sow(GATED, "gated", result, reduce_fn=lambda _, last: last, init_fn=lambda: None)
                own = context.module.variables.get("params", {})
                calls.append(_Call(path, context.module.clone(parent=None), arguments, options, result, own))
            return result

        with nn.intercept_methods(intercept):
            result, updated = self.module.apply(
                variables,
                value,
                **self.mode(train),
                method=method,
                rngs=None if key is None else {"dropout": key},
                mutable=[GATED, *(name for name in variables if train and name != "params")],
            )
        updated = dict(updated)
        activations = {"/".join(path[:-1]): leaf for path, leaf in flatten_dict(updated.pop(GATED, {})).items()}
        return _Run(result, calls, activations, updated)

    def evaluate(self, variables: Tree, value: Any, gates: Mapping[str, Array]) -> tuple[Any, list[_Call]]:
        calls: list[_Call] = []
        for method in self.methods:
            value, more, _, _ = self.run(method, variables, value, gates)
            calls += more
        return value, calls


def from_linen(
    module: nn.Module,
    inputs: Sequence[int],
    *,
    outputs: int,
    per_task: Sequence[str] | str = "last",
    train_argument: str | None = "train",
    encode_method: str | None = None,
    decode_method: str | None = None,
    gates: Sequence[str] = (),
    mean: Scalars = 0.0,
    std: Scalars = 1.0,
) -> Network:
    """Makes a network of any Flax Linen module, with its dropout and its `BatchNorm`, as it is.

    The seam: the head is the innermost submodule whose outputs are the logits (the very array that the module
    returns). Without methods given, `encode` runs the module and keeps the head's input, and `decode` applies the head
    alone; maps and features are then both what enters the head. With `encode_method` and `decode_method`, which
    composed must be the module's `__call__`, the maps are what the first returns, and Grad-CAM can see them.

    Gates: the outputs of each named submodule are multiplied by `collections['gates'][path]` `[C]`, and are its
    activations. Name the last submodule before the nonlinearity (the norm, where there is one); the nonlinearity must
    map 0 to 0. The wiring assumes that the layers form a chain, in the order in which they are called, and that nothing
    mixes features before they are gated, as a norm across features does; this is tried out on random parameters, see
    `check_gates`. Gates reach into `nn.remat`, not into `nn.scan` and `nn.vmap`.

    Norms: `networks.FeatureNorm` has a scale and shift that can belong to a task, as `tfm` has it. The channels of
    `networks.BatchNorm` can be frozen, as `clnp` needs it: where all the module's batch statistics are of such norms,
    and each feeds a gate, the network has the flags `collections['frozen']`. docs/own_networks.md has examples.

    Training mode gives dropout the `'dropout'` stream and lets all the module's collections change. To start from
    trained variables, replace the initialisation: `network._replace(init=lambda key: (params, collections))`.

    Args:
      module: unbound; called with standardised inputs `[B, ...]`, it returns logits `[B, K]`.
      inputs: shape of one example.
      outputs: K.
      per_task: full leaf paths of params (or of collections, their name first) that belong to a task, such as
        `'Dense_2/kernel'` and `'batch_stats/BatchNorm_0/mean'`; `'last'` is the head's leaves.
      train_argument: the module's keyword for training mode (one of the name `deterministic`, `use_running_average`,
        `eval` or `inference` gets its opposite); None if there is no such keyword.
      encode_method: of the module, by name: `inputs -> maps`.
      decode_method: of the module, by name: `maps -> logits` or `maps -> (logits, features)`.
      gates: paths of submodules, such as `('Conv_0', 'Block_1/Dense_0')`.
      mean: of inputs in [0, 1], one number or one for each channel.
      std: the standard deviation, in the same form.

    Returns:
      The network; its wiring is empty without gates.

    Raises:
      ValueError: if the logits are not `[B, K]`; if the head cannot be found; if a path of per_task or gates does not
        exist; if gated layers do not form a chain, or closed features reach open ones.

    Example:
      >>> import flax.linen as nn
      >>> from cljax.networks import from_linen
      >>> class Small(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, inputs, train):
      ...         hidden = nn.BatchNorm(use_running_average=not train)(nn.Dense(8)(inputs))
      ...         return nn.Dense(2)(nn.Dropout(0.5, deterministic=not train)(nn.relu(hidden)))
      >>> network = from_linen(Small(), (4,), outputs=2, gates=('BatchNorm_0',))
      >>> network.per_task
      ('Dense_1/bias', 'Dense_1/kernel')
      >>> network.wiring[-2]
      Wire(path='Dense_1/kernel', inputs='BatchNorm_0', outputs=None, repeat=1)
    """
    if (encode_method is None) != (decode_method is None):
        raise ValueError("Give both encode_method and decode_method, or neither.")
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"module is {show(module)}, but must be a Flax Linen module, built, such as nn.Dense(2). "
            f"networks.from_nnx takes an NNX module."
        )
    shape, split = check_inputs(inputs), encode_method is not None
    check_moments(mean, std, shape)
    source = _Source(module, train_argument, (encode_method, decode_method) if split else (None,))
    try:
        shapes = jax.eval_shape(lambda key: source.init(key, shape), jax.random.key(0))
    except TypeError as error:
        if f"unexpected keyword argument {train_argument!r}" not in str(error):
            raise
        raise TypeError(
            f"{type(module).__name__} takes no argument {train_argument!r}, which would say that it is trained. Give "
            f"train_argument=None where it computes the same then, or the name of its own, such as 'deterministic'."
        ) from error
    names = [name for name in shapes if name != "params"]
    head, calls = _find_head(source, shapes, shape, outputs, needed=per_task == "last")

    leaves = {"/".join(path): leaf for path, leaf in flatten_dict(shapes["params"]).items()}
    states = ["/".join((name, *path)) for name in names for path in flatten_dict(shapes[name])]
    if per_task == "last":
        per_task = tuple(path for path in leaves if head is not None and path.startswith(f"{head.path}/"))
    check_paths("per_task", per_task, [*leaves, *states])
    sizes = {call.path: call.outputs[-1] for call in calls if call.outputs}
    check_paths("gates", gates, [path for path in sizes if head is None or path != head.path])
    sizes = {path: sizes[path] for path in gates}
    wiring = chain(calls, leaves, sizes) if gates else ()
    norms = frozen_norms([call.path for call in calls if isinstance(call.module, BatchNorm)], wiring, shapes)

    @functools.partial(jax.jit, inline=True)  # traced once
    def init(key: Array) -> tuple[Tree, Tree]:
        collections = source.init(key, shape)
        params = collections.pop("params")
        if gates:
            collections["gates"] = {path: jnp.ones(size, jnp.float32) for path, size in sizes.items()}
        if norms:
            collections["frozen"] = {gate: jnp.zeros(sizes[gate], jnp.bool_) for gate in norms.values()}
        return params, collections

    def run(method: str | None, params: Tree, collections: Tree, value: Array, train: bool, key: Array | None):
        variables = {"params": params, **{name: collections[name] for name in names}}
        frozen = {path: collections["frozen"][gate] for path, gate in norms.items()}
        with match_widths(wiring):
            done = source.run(method, variables, value, collections.get("gates", {}), train, key, frozen)
        entering = [call.arguments[0] for call in done.calls if head is not None and call.path == head.path]
        same = lambda old, new: jnp.asarray(new).astype(old.dtype)  # Flax widens bfloat16 statistics
        kept = {name: jax.tree.map(same, collections[name], value) for name, value in done.updated.items()}
        return done.result, entering, done.activations, {**collections, **kept}

    def encode(params: Tree, collections: Tree, inputs: Array, *, train: bool, key: Array | None):
        check_shape("inputs", inputs, "B", *shape)
        values = standardize(inputs, mean, std, dtype=parameter_dtype(params))
        result, entering, activations, collections = run(encode_method, params, collections, values, train, key)
        return result if split else entering[0], activations, collections

    def decode(params: Tree, collections: Tree, maps: Array, *, train: bool, key: Array | None):
        if head is not None and not split:
            own = params
            for name in head.path.split("/"):
                own = own[name]
            return (head.module.apply({"params": own}, maps), maps), {}, collections
        result, entering, activations, collections = run(decode_method, params, collections, maps, train, key)
        return (result if isinstance(result, tuple) else (result, entering[0])), activations, collections

    network = Network(init, encode, decode, tuple(per_task), wiring, shape, outputs)
    if gates:
        _, collections = network.shapes
        example = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
        found = jax.eval_shape(network.apply, shapes["params"], collections, example).activations
        if lost := sorted(set(sizes) - set(found)):
            raise ValueError(
                f"The activations of the gate {lost[0]!r} cannot be had: its submodule is called within nn.scan, "
                "nn.vmap or another lifted transformation that keeps them to itself (nn.remat and nn.jit do not). Gate "
                "a submodule outside of it."
            )
        check_gates(network)
    return network


def frozen_norms(paths: Sequence[str], wiring: Sequence[Wire], collections: Tree) -> dict[str, str]:
    """The gate of each batch normalisation whose channels can be frozen; none, where some statistics cannot be.

    Args:
      paths: of all such norms.
      wiring: the network's.
      collections: with `batch_stats`, if there are any.

    Example:
      >>> wires = [Wire('norm/scale', None, 'norm')]
      >>> statistics = {'norm': {'mean': 0.0}}
      >>> frozen_norms(['norm'], wires, {'batch_stats': statistics})
      {'norm': 'norm'}
      >>> frozen_norms(['norm'], wires, {'batch_stats': {**statistics, 'other': {'mean': 0.0}}})
      {}
    """
    gates = {wire.path.rpartition("/")[0]: wire.outputs for wire in wiring if wire.inputs is None and wire.outputs}
    found = {path: gates[path] for path in paths if path in gates}
    moved = {"/".join(path[:-1]) for path in flatten_dict(collections.get("batch_stats", {}))}
    return found if set(found) == moved else {}


def _find_head(
    source: _Source, shapes: Tree, shape: tuple[int, ...], outputs: int, *, needed: bool
) -> tuple[_Call | None, list[_Call]]:
    """The innermost submodule whose outputs are the logits, and all calls, their outputs as shapes."""
    found: list[Any] = []

    def evaluate(variables: Tree, value: Array) -> None:
        result, calls = source.evaluate(variables, value, {})
        logits = result[0] if isinstance(result, tuple) else result
        heads = [call for call in calls if call.outputs is logits]
        found.extend((heads[0] if heads else None, needed or not isinstance(result, tuple), jnp.shape(logits)))
        if heads and len(source.methods) == 1:
            given = variables["params"]
            for name in heads[0].path.split("/"):
                given = given.get(name, {})
            if any(a is not b for a, b in zip(*map(jax.tree.leaves, (heads[0].params, given)), strict=True)):
                raise ValueError(
                    f"The head {heads[0].path!r} does not compute with its own parameters, but with what a wrapper "
                    "(nn.WeightNorm, nn.SpectralNorm) makes of them. Give encode_method and decode_method."
                )
        found.append([call._replace(outputs=getattr(call.outputs, "shape", ())) for call in calls])

    jax.eval_shape(evaluate, shapes, jax.ShapeDtypeStruct((1, *shape), jnp.float32))
    head, needed, size, calls = found
    if size != (1, outputs):
        raise ValueError(f"The module's logits of one example have shape {size}, but outputs={outputs}.")
    if head is None and needed:
        raise ValueError(
            "The module's logits are not the outputs of any of its submodules, so the head is not known. Give "
            "encode_method and decode_method, the latter returning (logits, features), and name the leaves of per_task."
        )
    if head is not None and needed and (len(head.arguments) != 1 or head.options):
        raise ValueError(f"The head {head.path!r} is not called with one array. Give encode_method and decode_method.")
    return head, calls


def chain(calls: Sequence[Any], leaves: Mapping[str, Any], sizes: Mapping[str, int]) -> tuple[Wire, ...]:
    """Wires layers, in the order of their calls: between two gates the first kernel reads one, the last feeds one."""
    wiring: list[Wire] = []
    segment: list[str] = []
    before: str | None = None

    def close(after: str | None) -> None:
        kernels = [path for path in segment if len(leaves[path].shape) > 1]
        last = segment.index(kernels[-1]) if kernels else 0
        feeding = {path.rsplit("/", 1)[0] for path in segment[last:]}
        for path in segment:
            shape = leaves[path].shape
            reads = before if kernels and path == kernels[0] else None
            feeds = after if path.rsplit("/", 1)[0] in feeding else None
            size = sizes[reads] if reads else 1
            if (reads and shape[-2] % size) or (feeds and shape[-1] != sizes[feeds]):
                raise ValueError(
                    f"{path} has shape {shape}, which does not fit the gates {reads!r} on its inputs and {feeds!r} on "
                    f"its outputs: gates need layers that form a chain."
                )
            wiring.append(Wire(path, reads, feeds, shape[-2] // size if reads else 1))

    seen: set[str] = set()
    for call in calls:
        own = [path for path in leaves if path.rsplit("/", 1)[0] == call.path and path not in seen]
        segment += sorted(own, key=lambda path: (-len(leaves[path].shape), path))
        seen.update(own)
        if call.path in sizes:
            close(call.path)
            segment, before = [], call.path
    close(None)
    if seen != set(leaves):
        raise ValueError(f"No submodule owns {', '.join(sorted(set(leaves) - seen))}, so gates cannot be wired.")
    return tuple(wiring)
