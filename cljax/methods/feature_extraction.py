"""Feature extraction: the first task's features, never changed again, and a two-layer classifier for each new task."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from cljax import rows
from cljax.methods.finetune import check_network, depends_on_own, finetune, task_loss
from cljax.methods.freezing import require_own_leaves
from cljax.numbers import real, whole
from cljax.types import Array, Batch, Clock, Learner, Method, Network, Phase, Tree

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
      >>> from cljax import networks
      >>> method = feature_extraction(networks.mlp((8, 8, 1), 2, hidden=(16,)), hidden=32)
      >>> params, _, _, _ = method.init(jax.random.key(0))
      >>> [layer['kernel'].shape for layer in params['added_classifier'].values()]
      [(16, 32), (32, 2)]

    Reference: the baseline of Li and Hoiem, Learning without Forgetting, 2016, section 3, implementation details.
    """
    check_network(network)
    require_own_leaves("feature_extraction", network)
    base = finetune(network)
    hidden = whole("feature_extraction's hidden", hidden, least=1)
    dropout = real("feature_extraction's dropout", dropout, least=0, below=1)
    learning_rate_factor = real("feature_extraction's learning_rate_factor", learning_rate_factor, above=0)
    if depends_on_own(network, lambda output: output.features):
        raise ValueError(
            f"feature_extraction classifies the features of the first task's network, but here the features depend on "
            f"leaves that belong to a task: {', '.join(network.per_task)}. Leave only the head in per_task."
        )
    params, collections = jax.eval_shape(network.init, jax.random.key(0))
    inputs = jax.ShapeDtypeStruct((1, *network.inputs), jnp.float32)
    features = jax.eval_shape(lambda *given: network.apply(*given).features, params, collections, inputs).shape[-1]
    sizes = {"hidden": (features, hidden), "output": (hidden, network.outputs)}
    own = tuple(f"{CLASSIFIER}/{layer}/{leaf}" for layer in sizes for leaf in ("kernel", "bias"))

    def init(key: Array) -> tuple[Tree, Tree, Tree, dict[str, Array]]:
        params, collections, state, hyper = base.init(key)
        draw = jax.nn.initializers.lecun_normal()
        keys = dict(zip(sizes, jax.random.split(jax.random.fold_in(key, 1)), strict=True))
        classifier = {
            layer: {"kernel": draw(keys[layer], shape, jnp.float32), "bias": jnp.zeros(shape[1], jnp.float32)}
            for layer, shape in sizes.items()
        }
        return {**params, CLASSIFIER: classifier}, collections, state, hyper

    def classify(classifier: Tree, values: Array, key: Array | None) -> Array:
        values = jax.nn.relu(dense(classifier["hidden"], values))
        if key is not None and dropout:
            kept = jax.random.bernoulli(key, 1 - dropout, values.shape)
            values = jnp.where(kept, values / (1 - dropout), 0)
        return dense(classifier["output"], values)

    def loss(params: Tree, learner: Learner, clock: Clock, batch: Batch, key: Array | None):
        def whole(params: Tree):
            return base.loss(bare(params), learner, clock, batch, key)

        def frozen(params: Tree):
            stop = lambda path, leaf: leaf if rows.has_rows(path, learner.rows) else lax.stop_gradient(leaf)
            output = network.apply(rows.map_leaves(stop, bare(params)), learner.collections, batch.inputs)
            logits = jnp.where(clock.task > 0, classify(params[CLASSIFIER], output.features, key), output.logits)
            return task_loss(logits, learner, clock, batch), (learner.collections, {})

        return lax.cond(clock.newest > 0, frozen, whole, params)

    def update_mask(learner: Learner, clock: Clock) -> Tree:
        def one(path: str, leaf: Array) -> Array:
            if path.startswith(CLASSIFIER + "/"):
                return (clock.task > 0).astype(jnp.float32)
            return (clock.task == 0 if rows.has_rows(path, learner.rows) else clock.newest == 0).astype(jnp.float32)

        return rows.map_leaves(one, learner.params)

    def predict(learner: Learner, inputs: Array, task: Array) -> Array:
        params = rows.take_row(learner.params, task, learner.rows)
        collections = rows.take_row(learner.collections, task, learner.rows)
        output = network.apply(bare(params), collections, inputs)
        return jnp.where(task > 0, classify(params[CLASSIFIER], output.features, None), output.logits)

    faster = Phase(learning_rate=lambda clock: jnp.where(clock.task > 0, jnp.float32(learning_rate_factor), 1.0))
    return base._replace(
        name="feature_extraction",
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
