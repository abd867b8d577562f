"""PackNet: train the free weights, prune them, retrain what is kept: phases that are traced data."""

import jax
import jax.numpy as jnp

from cljax import masks, rows
from cljax.methods import finetune
from cljax.types import Phase


def packnet(network, *, fraction=0.5):
    base = finetune(network)

    def packed(path, learner_rows):
        return path.endswith("kernel") and not rows.has_rows(path, learner_rows)

    resting = rows.resting(network.per_task)

    def init(key):
        params, collections, _, _ = base.init(key)
        owner = rows.map_leaves(
            lambda path, leaf: jnp.full(leaf.shape, masks.FREE, jnp.int32) if packed(path, resting) else None, params
        )
        return params, collections, {"owner": owner}, {"fraction": jnp.float32(fraction)}

    def pruned(params, owner, shown):
        hide = lambda o, p: p if o is None else jnp.where(shown(o), p, jnp.zeros((), p.dtype))
        return jax.tree.map(hide, owner, params, is_leaf=lambda leaf: leaf is None)

    def loss(params, learner, clock, batch, key):
        # While it trains, a task uses the free weights too; after its pruning they are zero and stay so.
        shown = lambda o: (o <= clock.task) | ((o == masks.FREE) & (clock.task == clock.newest))
        return base.loss(pruned(params, learner.method_state["owner"], shown), learner, clock, batch, key)

    def update_mask(learner, clock):
        newest, training = clock.task == clock.newest, (clock.phase == 0) & clock.first

        def trained(path, leaf):
            if rows.has_rows(path, learner.rows):
                return jnp.float32(1.0)
            if not packed(path, learner.rows):
                return (clock.newest == 0).astype(jnp.float32)
            owner = learner.method_state["owner"]
            for part in path.split("/"):
                owner = owner[part]
            mine = jnp.where(training, owner == masks.FREE, owner == clock.task)
            return (mine & newest).astype(jnp.float32)

        return rows.map_leaves(trained, learner.params)

    def end_phase(learner, clock, fold, key):
        owner = learner.method_state["owner"]

        def prune(o, p):
            if o is None:
                return None
            taken = jnp.where(o == masks.FREE, clock.task, o)
            kept = masks.prune_by_magnitude(p, taken, clock.task, fraction=learner.hyper["fraction"])
            return jnp.where((clock.phase == 0) & clock.first, kept, o)

        owner = jax.tree.map(prune, owner, learner.params, is_leaf=lambda leaf: leaf is None)
        params = pruned(learner.params, owner, lambda o: o != masks.FREE)
        return learner._replace(params=params, method_state={"owner": owner})

    def predict(learner, inputs, task):
        params = pruned(learner.params, learner.method_state["owner"], lambda o: o <= task)
        return base.predict(learner._replace(params=params), inputs, task)

    return base._replace(
        name="packnet",
        init=init,
        loss=loss,
        update_mask=update_mask,
        end_phase=end_phase,
        predict=predict,
        phases=(Phase("train", 0.5), Phase("retrain", 0.5)),
        zero_forgetting=True,
    )
