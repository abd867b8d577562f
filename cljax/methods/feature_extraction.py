"""Feature extraction: the first task's features, never changed again, and a two-layer classifier for each new task."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from cljax import task_params
from cljax.methods.common import (
    depends_on_own,
    each_task,
    own_task,
    plain,
    require_own_leaves,
    stop_shared,
    task_loss,
    update_masks,
)
from cljax.numbers import real, whole
from cljax.types import Array, Batch, Clock, Learner, Method, Network, Output, Phase, Sizes, Tree

CLASSIFIER = "added_classifier"


def feature_extraction(
    network: Network, *, hidden: int = 4096, learning_rate_factor: float = 5.0, dropout: float = 0.5
) -> Method:
    r"""Feature extraction: after the first task, a network of two layers is trained on the last hidden layer.

    $$ z_t = W'_t \, \mathrm{dropout}(\mathrm{relu}(W_t f(x; \theta_s) + b_t)) + b'_t, \qquad t > 0 $$
    with the features f that enter the first task's head. The network itself is trained on the first task alone, with
    its own head; from then on it runs in evaluation mode, and none of its bits changes. (A further visit to the first
    task trains its head.)

    Args:
      network: an ordinary network with `per_task` leaves, its head.
      hidden: units of the classifier's hidden layer. Each new task has `features * hidden + hidden * K` weights of its
        own: choose fewer for small networks.
      learning_rate_factor: the rate of classifiers relative to that of the first task.
      dropout: rate after the hidden layer; there is none in the frozen part.

    Returns:
      The method.

    Raises:
      ValueError: where nothing belongs to a task, where the features do, or for a number out of range.

    Example:
      >>> import jax
      >>> from cljax import networks
      >>> from cljax.methods import feature_extraction
      >>> from cljax.types import Sizes
      >>> method = feature_extraction(networks.mlp((8, 8, 1), 2, hidden=(16,)), hidden=32)
      >>> params, _, _, _ = method.init(jax.random.key(0), Sizes(2, 2, {}))
      >>> [layer['kernel'].shape for layer in params['added_classifier'].values()]
      [(16, 32), (32, 2)]

    Reference: the baseline of Li and Hoiem, Learning without Forgetting, 2016, section 3, implementation details.
    """
    base = plain("feature_extraction", network)
    require_own_leaves("feature_extraction", network)
    hidden = whole("feature_extraction's hidden", hidden, least=1)
    dropout = real("feature_extraction's dropout", dropout, least=0, below=1)
    learning_rate_factor = real("feature_extraction's learning_rate_factor", learning_rate_factor, above=0)
    if depends_on_own(network, lambda output: output.features):
        raise ValueError(
            f"feature_extraction classifies the features of the first task's network, but here the features depend on "
            f"leaves that belong to a task: {', '.join(network.per_task)}. Leave only the head in per_task."
        )
    params, collections = network.shapes
    inputs = jax.ShapeDtypeStruct((1, *network.inputs), jnp.float32)
    features = jax.eval_shape(lambda *given: network.apply(*given).features, params, collections, inputs)
    layers = {"hidden": (features.shape[-1], hidden), "output": (hidden, network.outputs)}
    own = tuple(f"{CLASSIFIER}/{layer}/{leaf}" for layer in layers for leaf in ("kernel", "bias"))

    def init(key: Array, sizes: Sizes) -> tuple[Tree, Tree, Tree, dict[str, Array]]:
        params, collections, state, hyper = base.init(key, sizes)
        draw, dtype = jax.nn.initializers.lecun_normal(), features.dtype
        keys = dict(zip(layers, jax.random.split(jax.random.fold_in(key, 1)), strict=True))
        classifier = {
            layer: {"kernel": draw(keys[layer], shape, dtype), "bias": jnp.zeros(shape[1], dtype)}
            for layer, shape in layers.items()
        }
        return {**params, CLASSIFIER: classifier}, collections, state, hyper

    def classify(classifier: Tree, values: Array, key: Array | None) -> Array:
        values = jax.nn.relu(dense(classifier["hidden"], values))
        if key is not None and dropout:
            kept = jax.random.bernoulli(key, 1 - dropout, values.shape)
            values = jnp.where(kept, values / (1 - dropout), 0)
        return dense(classifier["output"], values)

    def extract(params: Tree, collections: Tree, task: Array, inputs: Array, key: Array | None) -> Output:
        """Evaluation mode but for the classifier's dropout."""
        output = network.apply(bare(params), collections, inputs)
        classified = classify(params[CLASSIFIER], output.features, key)
        return output._replace(logits=jnp.where(task > 0, classified, output.logits))

    def loss(params: Tree, learner: Learner, clock: Clock, batch: Batch, key: Array | None):
        def frozen(params: Tree):
            one = lambda params, collections, task: extract(params, collections, task, batch.inputs, key)
            output = each_task(one, stop_shared(params, learner), learner, clock)
            return task_loss(output.logits, clock, batch), (output, {})

        whole = lambda params: base.loss(bare(params), learner, clock, batch, key)
        return lax.cond(clock.newest > 0, frozen, whole, params)

    def update_mask(learner: Learner, clock: Clock) -> tuple[Tree, Tree]:
        params, collections = update_masks(learner, own_task(learner, clock), clock.newest == 0)
        later = (clock.task > 0).astype(jnp.float32)

        def one(path: str, mask: Array) -> Array:
            if path.startswith(CLASSIFIER + "/"):
                return later * mask
            return (1 - later) * mask if task_params.has_rows(path, learner.rows) else mask

        return task_params.map_leaves(one, params), collections

    def predict(learner: Learner, inputs: Array, task: Array) -> Array:
        params, collections = (
            task_params.take_row(tree, task, learner.rows) for tree in (learner.params, learner.collections)
        )
        return extract(params, collections, task, inputs, None).logits

    faster = Phase(learning_rate=lambda clock: jnp.where(clock.task > 0, jnp.float32(learning_rate_factor), 1.0))
    return base._replace(
        init=init,
        loss=loss,
        update_mask=update_mask,
        predict=predict,
        phases=(faster,),
        zero_forgetting=True,
        per_task=(*network.per_task, *own),
    )


def bare(params: Tree) -> Tree:
    """The parameters of the network, without the classifier."""
    return {name: leaf for name, leaf in params.items() if name != CLASSIFIER}


def dense(layer: Tree, values: Array) -> Array:
    """A dense layer, `[B, D]` to `[B, E]`."""
    return values @ layer["kernel"] + layer["bias"][None]
