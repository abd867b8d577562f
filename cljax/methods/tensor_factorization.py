"""Tensor factorisation: the convolution kernels of all tasks together, as one Tucker product for each layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from cljax import filters, task_params, tucker
from cljax.filters import TUCKER
from cljax.methods.common import check_network, plain
from cljax.numbers import INT32, real, several, whole
from cljax.types import Array, Learner, Method, Network, Sizes, Tree


def tensor_factorization(network: Network, *, ranks: float | Mapping[str, Sequence[int]] = 1.0) -> Method:
    r"""Tensor factorisation: all tasks' kernels of a layer are a Tucker product, of which a task owns one row.

    $$ W_{t,hwio} = \sum_{r_1 \dots r_5} S_{r_1 \dots r_5} U^{(1)}_{h r_1} U^{(2)}_{w r_2} U^{(3)}_{i r_3}
    U^{(4)}_{o r_4} U^{(5)}_{t r_5} $$
    In each convolution the core S and four factors are shared; the row of the fifth and all else belong to the task:
    biases, dense layers, head, normalisation. A visit trains the task's own leaves and what is shared on the
    task's loss, so it is meant for many tasks at once: a multi-task schedule (`streams.multi_task`). One after the
    other, tasks forget as kernels move.

    It begins with random kernels of about the size of the network's own, cut to the ranks; or with trained single-task
    models, by `start_from_models`. The DF-CNN paper found it good from these alone; there random kernels are uniform in
    [0, 1], here they are centred.

    Args:
      network: any network with convolution kernels: leaves of rank 4 in its params.
      ranks: a part of each axis' length, in (0, 1], rounded up, the number of tasks being one: at 1.0 the product is
        any tensor. Or `{leaf path: (r_1, ..., r_5)}`, and full ranks for layers not named; `tucker.numerical_ranks`
        finds some for trained kernels. With fewer tasks the last is their number.

    Returns:
      The method. In its params a convolution's `kernel` is a dict: `core` and the factors `filters.TUCKER`.

    Raises:
      ValueError: where the network has no convolutions; where ranks name no kernel, or are out of range.

    Example:
      >>> import jax
      >>> from cljax import networks
      >>> from cljax.methods import tensor_factorization
      >>> from cljax.types import Sizes
      >>> method = tensor_factorization(networks.cnn((8, 8, 1), 2, channels=((4,),), dense=()), ranks=0.5)
      >>> params, _, _, _ = method.init(jax.random.key(0), Sizes(3, 2, {}))
      >>> {name: leaf.shape for name, leaf in params['conv_0_0']['kernel'].items()}
      {'core': (2, 2, 1, 2, 2), 'height': (3, 2), 'width': (3, 2), 'inputs': (1, 1), 'outputs': (4, 2), 'task': (2,)}

    Reference: Yang and Hospedales, Deep Multi-Task Representation Learning: A Tensor Factorisation Approach, 2017; the
    baseline TF of Lee et al., Learning Shared Knowledge for Deep Lifelong Learning using Deconvolutional Networks,
    2019, appendix C, whose ranks are full.
    """
    check_network(network)
    like, collections = network.shapes
    kernels = {path: leaf.shape for path, leaf in task_params.by_path(like).items() if leaf.ndim == 4}
    if not kernels:
        raise ValueError(
            "tensor_factorization factorises convolution kernels, but this network has none (no leaf of rank 4 in its "
            "params). Take one that has: networks.cnn, or --network cnn in the command."
        )
    part = 1.0 if isinstance(ranks, Mapping) else real("tensor_factorization's ranks", ranks, above=0, most=1)
    given = _given(ranks if isinstance(ranks, Mapping) else {}, kernels)

    def ranks_of(path: str, tasks: int) -> list[int]:
        lengths = (*kernels[path], tasks)
        chosen = given.get(path) or [math.ceil(part * length - 1e-9) for length in lengths]
        size = math.prod(lengths)
        return [min(rank, length, size // length) for rank, length in zip(chosen, lengths, strict=True)]

    def init(key: Array, sizes: Sizes) -> tuple[Tree, Tree, Tree, dict[str, Array]]:
        key, own = jax.random.split(key)
        params, collections = network.init(key)
        drawn = jax.vmap(lambda key: network.init(key)[0])(jax.random.split(own, sizes.tasks))

        def factorise(path: str, leaf: Array, several: Array) -> Tree:
            if path not in kernels:
                return leaf
            chosen = ranks_of(path, sizes.tasks)
            *keys, last = jax.random.split(jax.random.fold_in(own, list(kernels).index(path)), len(TUCKER))
            pairs = list(zip(leaf.shape, chosen, strict=False))
            draw = lambda key, pair: jnp.linalg.qr(jax.random.normal(key, pair, leaf.dtype))[0]
            bases = [draw(*one) for one in zip(keys, pairs, strict=True)]
            cut = [*(basis.T for basis in bases), jnp.eye(chosen[-1], dtype=leaf.dtype)]
            core = tucker.product(jnp.moveaxis(several[: chosen[-1]], 0, -1), cut)
            size = math.sqrt(math.prod(length / rank for length, rank in pairs))  # makes up for what is cut
            row = jax.random.normal(last, (chosen[-1],), leaf.dtype)
            factors = dict(zip(TUCKER, [*bases, row / jnp.linalg.norm(row)], strict=True))
            return {"core": size * core, **factors}

        return task_params.map_leaves(factorise, params, drawn), collections, {}, {}

    def view(params: Tree, collections: Tree, method_state: Tree, task: Array, newest: Array | None):
        return filters.synthesize_tree(params, like), collections

    params, *_ = jax.eval_shape(lambda key: init(key, Sizes(1, network.outputs, {})), jax.random.key(0))
    shared = {f"{path}/{name}" for path in kernels for name in ("core", *TUCKER[:-1])}
    every = task_params.leaf_paths(params) + task_params.leaf_paths(collections)
    own = tuple(path for path in every if path not in shared)
    return plain("tensor_factorization", network, view=view)._replace(init=init, per_task=own)


def _given(ranks: Mapping[str, Sequence[int]], kernels: Mapping[str, tuple[int, ...]]) -> dict[str, list[int]]:
    """The ranks that are given, checked."""
    found = {}
    for path, numbers in ranks.items():
        if path not in kernels:
            raise ValueError(
                f"tensor_factorization's ranks name '{path}', which is no convolution kernel of the network. Its "
                f"kernels are: {', '.join(kernels)}."
            )
        such, each = f"one number for each of {', '.join(TUCKER)}", len(TUCKER)
        numbers = several(f"tensor_factorization's ranks of '{path}'", numbers, such, least=each, most=each)
        name = f"a number of tensor_factorization's ranks of '{path}'"
        most = (*kernels[path], INT32)
        found[path] = [whole(name, one, least=1, most=length) for one, length in zip(numbers, most, strict=True)]
    return found


def start_from_models(learner: Learner, models: Learner) -> Learner:
    """A learner of `tensor_factorization` that begins as near as its ranks allow to trained single-task models.

    Every layer's kernels, of all tasks at once, are decomposed (`tucker.decompose`); all else is taken over as it is.
    A run goes on from it as from a past of no rounds, `training.Past`.

    Args:
      learner: new, at rest, of `tensor_factorization`.
      models: at rest, of `single_task`, of the same network and number of tasks.

    Returns:
      The learner, at rest.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from cljax import data, methods, networks, streams, training
      >>> from cljax.methods import start_from_models, tensor_factorization
      >>> tables = streams.split(data.load('digits'), tasks=5).tables
      >>> network = networks.cnn((8, 8, 1), 2, channels=((4,),), dense=())
      >>> make = lambda method: training.make_learner(method, optax.sgd(1.0), tables, 0.1, jax.random.key(0))
      >>> models, method = make(methods.single_task(network)), tensor_factorization(network)
      >>> learner = jax.jit(start_from_models)(make(method), models)
      >>> logits = [one.predict(of, tables.examples[:2], 3)
      ...           for one, of in ((methods.single_task(network), models), (method, learner))]
      >>> bool(jnp.allclose(*logits, atol=1e-5))
      True

    Reference: Yang and Hospedales, 2017, section 3.4; TF (Distillation) of Lee et al., 2019, table 2.
    """

    def place(stack: Array, mine: Any) -> Any:
        if not isinstance(mine, Mapping):
            return stack
        core, factors = tucker.decompose(jnp.moveaxis(stack, 0, -1), mine["core"].shape)
        return {"core": core, **dict(zip(TUCKER, factors, strict=True))}

    params = jax.tree.map(place, models.params, learner.params)
    return learner._replace(params=params, collections=models.collections)
