"""Elastic weight consolidation: an anchor and Fisher information that move at every task's end."""

import jax
import jax.numpy as jnp

from cljax import importance, losses, rows
from cljax.methods import finetune


def ewc(network, *, strength=100.0):
    base = finetune(network)

    def init(key, sizes):
        params, collections, _, _ = base.init(key, sizes)
        state = {"anchor": jax.tree.map(jnp.array, params), "fisher": jax.tree.map(jnp.zeros_like, params)}
        return params, collections, state, {"strength": jnp.float32(strength)}

    def shared(tree, learner):
        return rows.map_leaves(lambda path, leaf: None if rows.has_rows(path, learner.rows) else leaf, tree)

    def loss(params, learner, clock, batch, key):
        value, (output, metrics) = base.loss(params, learner, clock, batch, key)
        anchor, fisher = (shared(learner.method_state[name], learner) for name in ("anchor", "fisher"))
        penalty = learner.hyper["strength"] / 2 * losses.quadratic_penalty(shared(params, learner), anchor, fisher)
        return value + penalty, (output, {**metrics, "penalty": penalty})

    def end_phase(learner, clock, fold, key):
        classes = clock.classes[clock.task]

        def log_prob(params, inputs):
            logits = network.apply(params, learner.collections, inputs).logits
            return jax.nn.log_softmax(losses.mask_logits(logits, classes))

        def add(total, batch):
            # The empirical Fisher of one example at a time, so that surplus examples can have weight 0.
            def one(inputs, label, weight):
                found = importance.fisher(log_prob, learner.params, inputs[None], label[None], kind="empirical")
                return jax.tree.map(lambda leaf: weight * leaf, found)

            each = jax.vmap(one)(batch.inputs, batch.labels, batch.weights)
            count = jnp.sum(batch.weights)
            return jax.tree.map(lambda sum, leaf: sum + leaf.sum(0), total[0], each), total[1] + count

        zero = jax.tree.map(jnp.zeros_like, learner.params)
        total, count = fold(add, (zero, jnp.float32(0.0)))
        fisher = jax.tree.map(lambda old, new: old + new / count, learner.method_state["fisher"], total)
        return learner._replace(method_state={"anchor": learner.params, "fisher": fisher})

    return base._replace(name="ewc", init=init, loss=loss, end_phase=end_phase)
