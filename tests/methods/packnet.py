"""PackNet: train the free weights, prune them, retrain what is kept: phases that are traced data."""

import jax
import jax.numpy as jnp

from cljax import task_params
from cljax.methods.common import everything, plain
from cljax.ownership import masks
from cljax.types import Phase


def packnet(network, *, fraction=0.5):

    def packed(path, learner_rows):
        return path.endswith("kernel") and not task_params.has_rows(path, learner_rows)

    resting = task_params.resting(network.per_task)

    def view(params, collections, state, task, newest):
        # While it trains, a task uses the free weights too; after its pruning they are zero and stay so.
        trains = False if newest is None else task == newest
        return pruned(params, state["owner"], lambda o: (o <= task) | ((o == masks.FREE) & trains)), collections

    base = plain("packnet", network, view=view)

    def init(key, sizes):
        params, collections, _, _ = base.init(key, sizes)
        owner = task_params.map_leaves(
            lambda path, leaf: jnp.full(leaf.shape, masks.FREE, jnp.int32) if packed(path, resting) else None, params
        )
        return params, collections, {"owner": owner}, {"fraction": jnp.float32(fraction)}

    def pruned(params, owner, shown):
        hide = lambda o, p: p if o is None else jnp.where(shown(o), p, jnp.zeros((), p.dtype))
        return jax.tree.map(hide, owner, params, is_leaf=lambda leaf: leaf is None)

    def update_mask(learner, clock):
        newest, training = clock.task == clock.newest, (clock.phase == 0) & clock.first

        def trained(path, leaf):
            if task_params.has_rows(path, learner.rows):
                return jnp.float32(1.0)
            if not packed(path, learner.rows):
                return (clock.newest == 0).astype(jnp.float32)
            owner = learner.method_state["owner"]
            for part in path.split("/"):
                owner = owner[part]
            mine = jnp.where(training, owner == masks.FREE, owner == clock.task)
            return (mine & newest).astype(jnp.float32)

        return task_params.map_leaves(trained, learner.params), everything(learner.collections)

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

    return base._replace(
        init=init,
        update_mask=update_mask,
        end_phase=end_phase,
        phases=(Phase("train", 0.5), Phase("retrain", 0.5)),
        zero_forgetting=True,
    )
