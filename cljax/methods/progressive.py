"""Progressive networks: a column of its own for each task, which reads the frozen columns of all earlier ones."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from cljax import networks, task_params
from cljax.methods.common import depends_on_own, each_task, plain, task_loss
from cljax.networks.adjusting import Layer
from cljax.numbers import check_option, real
from cljax.trees import pick, put
from cljax.types import Array, Batch, Clock, Learner, Method, Network, Output, Sizes, Tree

LATERALS = "laterals"
Laterals = Literal["separate", "joint"]


def progressive(network: Network, *, laterals: Laterals = "separate", reduction: float | None = None) -> Method:
    r"""Progressive networks: each task has a column, a whole network, into which all earlier columns feed.

    $$ z_t = W_t h_t + b_t + U_t \, \mathrm{relu}\big(V_t [\alpha_{t,c} h_c]_{c<t} + v_t\big) $$
    in a layer that the features h enter, those of earlier columns in evaluation mode. A visit trains the task's column
    and its laterals U, V, v and alpha. Earlier columns never change: when an older task is visited again, only its head
    is trained, the leaves that are the network's `per_task`.

    | laterals | V | units of V | into |
    |---|---|---|---|
    | `separate` | an adapter for each earlier column | C / (reduction (t + 1)) a column, reduction 2 | convolutions |
    | `joint` | one for all of them | C / reduction, reduction 1 | all hidden layers |

    C is the number of features that enter the layer; the number of units is rounded down, and at least 1. There are no
    laterals into the first layer and the head, and in a network without further convolutions `separate` ones go into
    its dense layers. The first is the code of the DF-CNN paper, the second the HAT paper's, where columns are narrow,
    1.117 times the network's width divided by the number of tasks: `joint` adapters of t whole columns are large. (That
    code adds a second bias after U, and shows later columns the earlier ones without their laterals.)

    The earlier columns are computed one after the other, as many as there are; a step of task t costs about t + 1
    forward passes and one backward. Adapters have the width of the widest task's: what a task does not use of it is
    closed and never trained.

    Args:
      network: of Flax Linen modules, such as those of `cljax.networks`; the column.
      laterals: a row of the table.
      reduction: by how much an adapter is narrower than what it reads. None: 2 for `separate`, 1 for `joint`.

    Returns:
      The method. All leaves of the network and of params['laterals'] belong to a task.

    Raises:
      ValueError: for an unknown option or a number out of range; where no layer can have laterals, as in a network of
        NNX modules; where leaves below the head are named as a task's own.

    Example:
      >>> import jax
      >>> from cljax import networks, types
      >>> from cljax.methods import progressive
      >>> method = progressive(networks.mlp((8, 8, 1), 2, hidden=(16, 12)))
      >>> params, _, _, _ = method.init(jax.random.key(0), types.Sizes(3, 2, {}))
      >>> {name: leaf.shape for name, leaf in params['laterals']['dense_1'].items()}
      {'column_scale': (3,), 'adapter_kernel': (1, 16, 4), 'adapter_bias': (4,), 'lateral_kernel': (4, 12)}

    Reference: Rusu et al., Progressive Neural Networks, 2016, equation 2; the public code of Lee et al., Learning
    Shared Knowledge for Deep Lifelong Learning using Deconvolutional Networks, 2019 (`separate`), and of Serra et al.,
    Overcoming Catastrophic Forgetting with Hard Attention to the Task, 2018 (`joint`).
    """
    base, separate = plain("progressive", network), laterals == "separate"
    if depends_on_own(network, lambda output: output.features):
        raise ValueError(
            f"progressive's later columns read the features of earlier ones, which must not change, but leaves below "
            f"them would train again at a task's next visit: {', '.join(network.per_task)}. Let the head alone be "
            f"per_task."
        )
    check_option("progressive's laterals", laterals, Laterals)
    given = reduction if reduction is not None else 2.0 if separate else 1.0
    reduction = real("progressive's reduction", given, above=0)
    hidden = networks.hidden_layers(network)
    convolutions = {path: layer for path, layer in hidden.items() if layer[1].ndim == 4}
    layers = {path.replace("/", "."): layer for path, layer in ((separate and convolutions) or hidden).items()}
    if not layers:
        raise ValueError(
            "progressive feeds earlier columns into the hidden layers after the first, but this network has none that "
            "it can see. Take one with two hidden layers or more, of Flax Linen modules: networks.mlp(..., "
            "hidden=(256, 256)), networks.cnn(...), or networks.from_linen(...)."
        )

    def units(name: str, task: int) -> int:
        """How many units a task's adapter has, for each earlier column or for all of them."""
        return max(1, int(layers[name][0].shape[-1] / (reduction * (task + 1 if separate else 1))))

    def reads(name: str, task: Array, tasks: int, width: int) -> Array:
        """Which earlier columns each unit of a task's adapter reads, `[T, A]` bool."""
        columns = jnp.arange(tasks, dtype=jnp.int32)[:, None]
        read = jnp.broadcast_to(columns < task, (tasks, width))
        if not separate:
            return read
        each = jnp.asarray([units(name, one) for one in range(tasks)], jnp.int32)[task]
        return read & (jnp.arange(width, dtype=jnp.int32)[None, :] // each == columns)

    def init(key: Array, sizes: Sizes) -> tuple[Tree, Tree, Tree, dict[str, Array]]:
        params, *rest = base.init(key, sizes)
        narrow = jax.nn.initializers.truncated_normal(0.05)
        weights = narrow if separate else jax.nn.initializers.lecun_normal()
        scales = narrow if separate else jax.nn.initializers.normal(1.0)
        dtype = jnp.result_type(*jax.tree.leaves(params))  # that of layers may be lower (`networks.in_bfloat16`)

        def draw(name: str, key: Array) -> dict[str, Array]:
            inputs, kernel = layers[name]
            first, second, third = jax.random.split(key, 3)
            width = max(1, *(units(name, task) * (task if separate else 1) for task in range(sizes.tasks)))
            shape = (1 if separate else sizes.tasks, inputs.shape[-1], width)
            return {
                "column_scale": scales(first, (sizes.tasks,), dtype),
                "adapter_kernel": weights(second, shape, dtype),
                "adapter_bias": jnp.full(width, 0.2 if separate else 0.0, dtype),
                "lateral_kernel": weights(third, (*kernel.shape[:-2], width, kernel.shape[-1]), dtype),
            }

        own = {name: draw(name, jax.random.fold_in(key, number)) for number, name in enumerate(layers)}
        return {**params, LATERALS: own}, *rest

    def lateral(name: str, own: Tree, layer: Layer, task: Array, seen: Array) -> Array:
        """What earlier columns, whose inputs of the layer are `[T, B, ..., C]`, add to its outputs."""
        own = {leaf: value.astype(layer.inputs.dtype) for leaf, value in own.items()}
        scale, kernel, bias = own["column_scale"], own["adapter_kernel"], own["adapter_bias"]
        read = reads(name, task, len(scale), len(bias))
        kernel = jnp.where(read[:, None, :], scale[:, None, None] * kernel, 0)
        adapted = jnp.einsum("cb...i,cij->b...j", seen, kernel)
        wide = (1,) * (adapted.ndim - 1)
        adapted = jnp.where(read.any(axis=0).reshape(*wide, -1), jax.nn.relu(adapted + bias.reshape(*wide, -1)), 0)
        return layer.apply(adapted, own["lateral_kernel"])

    def compute(
        params: Tree, collections: Tree, inputs: Array, task: Array, seen: Tree, key: Array | None
    ) -> tuple[Output, Tree]:
        """A column, which reads what entered the layers of those before it; and what enters its own."""
        entering: dict[str, Array] = {}

        def adjust(layer: Layer, outputs: Array) -> Array:
            name = layer.path.replace("/", ".")
            if name not in layers:
                return outputs
            entering[name] = layer.inputs
            return outputs + (lateral(name, params[LATERALS][name], layer, task, seen[name]) if seen else 0)

        own = {name: leaf for name, leaf in params.items() if name != LATERALS}
        return networks.adjust_layers(network, adjust).apply(own, collections, inputs, key=key), entering

    def read_all(
        columns: tuple[Tree, Tree], params: Tree, collections: Tree, inputs: Array, task: Array, key: Array | None
    ) -> Output:
        """The column of a task; `columns` are the params and collections of all, `[T, ...]`, here constants."""
        columns = lax.stop_gradient(columns)
        tasks = len(jax.tree.leaves(columns)[0])

        def add(number: Array, seen: Tree) -> Tree:
            as_given = lambda leaf, like: leaf.astype(like.dtype)
            own, others = jax.tree.map(as_given, pick(columns, number), (params, collections))
            _, entering = compute(own, others, inputs, number, seen, None)
            return put(seen, entering, number)

        shapes = jax.eval_shape(lambda: compute(params, collections, inputs, task, {}, None)[1])
        nothing = {name: jnp.zeros((tasks, *leaf.shape), leaf.dtype) for name, leaf in shapes.items()}
        seen = lax.fori_loop(jnp.int32(0), jnp.clip(task, 0, tasks - 1), add, nothing)
        return compute(params, collections, inputs, task, seen, key)[0]

    def loss(params: Tree, learner: Learner, clock: Clock, batch: Batch, key: Array | None):
        rows, own = learner.rows, (params, learner.collections)
        columns = own if rows.stacked else (rows.params, rows.collections)
        one = lambda params, collections, task: read_all(columns, params, collections, batch.inputs, task, key)
        output = each_task(one, params, learner, clock)
        return task_loss(output.logits, clock, batch), (output, {})

    def update_mask(learner: Learner, clock: Clock) -> tuple[Tree, Tree]:
        newest = (clock.task == clock.newest).astype(jnp.float32)

        def of_laterals(name: str, own: Tree) -> Tree:
            read = reads(name, clock.task, len(own["column_scale"]), len(own["adapter_bias"])).astype(jnp.float32)
            unit, column = jnp.max(read, axis=0), jnp.max(read, axis=1)
            kernel = own["lateral_kernel"]
            return {
                "column_scale": newest * column,
                "adapter_kernel": newest * (unit[None, None, :] if separate else read[:, None, :]),
                "adapter_bias": newest * unit,
                "lateral_kernel": newest * unit.reshape(*(1,) * (kernel.ndim - 2), -1, 1),
            }

        own = lambda path, leaf: jnp.float32(1.0) if task_params.ends_with(path, network.per_task) else newest
        masks = task_params.map_leaves(own, {name: leaf for name, leaf in learner.params.items() if name != LATERALS})
        laterals = {name: of_laterals(name, leaves) for name, leaves in learner.params[LATERALS].items()}
        return {**masks, LATERALS: laterals}, task_params.map_leaves(own, learner.collections)

    def predict(learner: Learner, inputs: Array, task: Array) -> Array:
        columns = learner.params, learner.collections
        params, collections = (task_params.take_row(tree, task, learner.rows) for tree in columns)
        return read_all(columns, params, collections, inputs, jnp.asarray(task, jnp.int32), None).logits

    params, collections, *_ = jax.eval_shape(lambda key: init(key, Sizes(1, network.outputs, {})), jax.random.key(0))
    return base._replace(
        init=init,
        loss=loss,
        update_mask=update_mask,
        predict=predict,
        per_task=task_params.leaf_paths(params) + task_params.leaf_paths(collections),
        zero_forgetting=True,
    )
