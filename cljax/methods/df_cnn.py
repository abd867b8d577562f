"""DF-CNN: each task's convolution kernels are synthesised from a knowledge base that all tasks share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import jax

from cljax import filters, task_params
from cljax.filters import Kind, Sizes
from cljax.methods.common import check_network, plain
from cljax.numbers import check_kind, several, whole
from cljax.types import Array, Method, Network, Tree


def _layers(names: tuple[str, ...], *sizes: Sizes) -> dict[str, Sizes]:
    return {f"conv_{name}/kernel": one for name, one in zip(names, sizes, strict=True)}


_CIFAR, _MNIST, _OFFICE_HOME = ("0_0", "0_1", "1_0", "1_1"), ("0_0", "1_0"), ("0_0", "1_0", "2_0", "3_0")
CIFAR = _layers(_CIFAR, Sizes(16, 24), Sizes(24, 48), Sizes(32, 64), Sizes(36, 72))
"""The paper's sizes for `networks.df_cnn_base('cifar', 10)`, 8.0M parameters in ten tasks; then its others."""
CIFAR_REDUCED = _layers(_CIFAR, Sizes(18, 24), Sizes(18, 24), Sizes(18, 24), Sizes(36, 48))
"""2.8M with the reduced network (24, 24, 48, 48 features, 32 dense). The paper does not print these; they are ours."""
CIFAR_REDUCED_MULTI_TASK = _layers(_CIFAR, Sizes(12, 12), Sizes(18, 12), Sizes(24, 24), Sizes(24, 36))
"""The same for ten and five binary tasks, 2.3M and 1.2M; ours too."""
CIFAR_DIRECT = _layers(_CIFAR, Sizes(24), Sizes(48), Sizes(64), Sizes(72))
CIFAR_TC2 = _layers(_CIFAR, Sizes(12, 24, 2), Sizes(12, 24, 12), Sizes(24, 48, 12), Sizes(24, 48, 24))
MNIST_HETEROGENEOUS = _layers(_MNIST, Sizes(12, 24), Sizes(24, 48))
MNIST_HOMOGENEOUS = _layers(_MNIST, Sizes(12, 24), Sizes(40, 64))
MNIST_DIRECT_HETEROGENEOUS = _layers(_MNIST, Sizes(24), Sizes(48))
MNIST_DIRECT_HOMOGENEOUS = _layers(_MNIST, Sizes(24), Sizes(64))
MNIST_TC2 = _layers(_MNIST, Sizes(12, 24, 1), Sizes(24, 48, 16))
"""Those of the public code: 1.2M in ten tasks and 0.6M in five, where the paper prints 1.5M and 0.8M."""
OFFICE_HOME = _layers(_OFFICE_HOME, Sizes(24, 48), Sizes(64, 128), Sizes(64, 128), Sizes(64, 128))

Paper = Literal[
    "cifar",
    "cifar_reduced",
    "cifar_reduced_multi_task",
    "cifar_direct",
    "cifar_tc2",
    "mnist_heterogeneous",
    "mnist_homogeneous",
    "mnist_direct_heterogeneous",
    "mnist_direct_homogeneous",
    "mnist_tc2",
    "office_home",
]
PAPER: dict[str, dict[str, Sizes]] = {
    "cifar": CIFAR,
    "cifar_reduced": CIFAR_REDUCED,
    "cifar_reduced_multi_task": CIFAR_REDUCED_MULTI_TASK,
    "cifar_direct": CIFAR_DIRECT,
    "cifar_tc2": CIFAR_TC2,
    "mnist_heterogeneous": MNIST_HETEROGENEOUS,
    "mnist_homogeneous": MNIST_HOMOGENEOUS,
    "mnist_direct_heterogeneous": MNIST_DIRECT_HETEROGENEOUS,
    "mnist_direct_homogeneous": MNIST_DIRECT_HOMOGENEOUS,
    "mnist_tc2": MNIST_TC2,
    "office_home": OFFICE_HOME,
}
"""The constants above by name, as the command's `--set df_cnn.sizes=cifar` gives them."""


def kind_of(sizes: str) -> Kind:
    """The kind of synthesis that named sizes are of.

    Example:
      >>> from cljax.methods.df_cnn import kind_of
      >>> kind_of('cifar_reduced'), kind_of('cifar_tc2')
      ('df', 'tc2')
    """
    kinds: tuple[Kind, ...] = ("direct", "tc2")
    return next((kind for kind in kinds if kind in sizes), "df")


def df_cnn(network: Network, *, kind: Kind = "df", sizes: Paper | Mapping[str, Sequence[int]] | None = None) -> Method:
    r"""Deconvolutional factorised CNN: soft sharing of convolution kernels between tasks.

    $$ D_t^{(l)} = \mathrm{deconv}(L^{(l)}; V_t^{(l)}) + b_{V,t}^{(l)}, \qquad
       W_t^{(l)} = \sum_c D^{(l)}_{t,(\cdot,\cdot,c)} U^{(l)}_{t,(c,\cdot,\cdot)} $$

    In every layer l the knowledge base L is shared, and the task's mapping (V, b_V, U) and all else belong to the
    task: biases, dense layers, head, normalisation. A visit trains the task's own leaves and the knowledge bases on
    the task's loss. Other tasks' mappings stay, but their kernels move with the knowledge bases: forgetting, or reverse
    transfer. The kernels are synthesised once a step; `networks.export_task` makes a plain network of one task.

    As in the public code, the factors and the biases of the convolutions, as arrays of shape (1, 1, 1, C), are drawn
    Glorot-uniform; all else is drawn as the network has it, for the paper `networks.df_cnn_base`. Its optimizer is
    RMSProp with a history of its own for each task, `transforms.per_task(transforms.rmsprop_tf1())`, on the loss summed
    over the batch, `training.with_summed_loss`, at a rate that falls with the epochs of all tasks,
    `training.with_learning_rate_decay`. Sum and mean differ for long, not at the beginning alone: the history starts at
    ones, and beside a mean's gradients, which are a batch's size smaller, these ones and epsilon weigh a batch's size
    squared more.

    Args:
      network: any network with convolution kernels: leaves of rank 4 in its params.
      kind: `'df'`; `'direct'`, without the contraction; or `'tc2'`, with two contractions. See `cljax.filters`.
      sizes: of factors, `{leaf path: Sizes}` such as `CIFAR`, or the name of such a constant, `'cifar'`; for layers
        not named, `filters.default_sizes`.

    Returns:
      The method. In its params a layer's `kernel` is a dict of factors.

    Raises:
      ValueError: where the network has no convolutions; where sizes name no kernel, or do not fit one.

    Example:
      >>> import jax
      >>> from cljax import networks, types
      >>> from cljax.methods import df_cnn
      >>> method = df_cnn(networks.cnn((8, 8, 1), 2, channels=((4,),), dense=()))
      >>> params, _, _, _ = method.init(jax.random.key(0), types.Sizes(2, 2, {}))
      >>> sorted((name, leaf.shape) for name, leaf in params['conv_0_0']['kernel'].items())
      [('bias', (4,)), ('contraction', (4, 1, 4)), ('deconvolution', (3, 3, 4, 2)), ('knowledge_base', (2, 2, 2))]

    Reference: Lee, Stokes and Eaton, Learning Shared Knowledge for Deep Lifelong Learning using Deconvolutional
    Networks, 2019, equations 1 and 2, algorithm 1, appendix A.
    """
    check_network(network)
    like, collections = network.shapes
    shapes = {path: leaf.shape for path, leaf in task_params.by_path(like).items()}
    chosen = {path: filters.default_sizes(shape, kind=kind) for path, shape in shapes.items() if len(shape) == 4}
    if not chosen:
        raise ValueError(
            "df_cnn synthesises convolution kernels, but this network has none (no leaf of rank 4 in its params). "
            "Take one that has: networks.cnn, or --network cnn in the command."
        )
    if isinstance(sizes, str) and sizes not in PAPER:
        raise ValueError(f"The sizes of the DF-CNN paper are {', '.join(PAPER)}; there are none of {sizes!r}.")
    given = PAPER[sizes] if isinstance(sizes, str) else {} if sizes is None else sizes
    if isinstance(sizes, str) and (kind != kind_of(sizes) or given.keys() != chosen.keys()):
        raise ValueError(
            f"The sizes {sizes!r} are of the kind {kind_of(sizes)!r} and of the kernels {', '.join(given)}, but this "
            f"is {kind!r}, and the network has {', '.join(chosen)}. Name others, or give them a kernel at a time."
        )
    check_kind("df_cnn's sizes", given, Mapping, "{leaf path: sizes}, or the name of the paper's")
    if stray := [path for path in given if path not in chosen]:
        raise ValueError(
            f"sizes names '{stray[0]}', which is no convolution kernel of the network. Its kernels are: "
            f"{', '.join(chosen)}."
        )
    for path, one in given.items():
        such = f"one to five numbers: {', '.join(Sizes._fields)}"
        one = several(f"df_cnn's sizes of '{path}'", one, such, least=1, most=len(Sizes._fields))
        chosen[path] = Sizes(*(whole(f"a number of df_cnn's sizes of '{path}'", size, least=1) for size in one))
    siblings = {f"{path.rpartition('/')[0]}/bias" for path in chosen}
    drawn = [path for path, shape in shapes.items() if path in chosen or (path in siblings and len(shape) == 1)]

    def init_params(key: Array) -> tuple[Tree, Tree]:
        key, own = jax.random.split(key)
        params, collections = network.init(key)

        def draw(path: str, leaf: Array) -> Tree:
            if path not in drawn:
                return leaf
            key = jax.random.fold_in(own, drawn.index(path))
            if path in chosen:
                return filters.init_factors(key, leaf.shape, chosen[path], kind=kind, dtype=leaf.dtype)
            return filters.glorot_uniform(key, (1, 1, 1, *leaf.shape), leaf.dtype).reshape(leaf.shape)

        return task_params.map_leaves(draw, params), collections

    def view(params: Tree, collections: Tree, method_state: Tree, task: Array, newest: Array | None):
        return filters.synthesize_tree(params, like), collections

    shared = {f"{path}/knowledge_base" for path in chosen}
    every = task_params.leaf_paths(jax.eval_shape(init_params, jax.random.key(0))[0]) + task_params.leaf_paths(
        collections
    )
    return plain("df_cnn", network, view=view)._replace(
        init=lambda key, sizes: (*init_params(key), {}, {}),
        per_task=tuple(path for path in every if path not in shared),
    )
