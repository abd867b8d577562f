"""Ternary feature masks: ownership of features, and growth chosen per task by `training.search`."""

import jax.numpy as jnp

from cljax import masks, rows
from cljax.methods import finetune


def tfm(network, *, growth=(0.2, 0.4, 0.6), margin=0.015):
    wires = {wire.path: wire for wire in network.wiring}
    own = tuple(path for path in wires if wires[path].inputs is None and path.startswith("norm_"))
    base = finetune(network._replace(per_task=(*network.per_task, *own)))

    def init(key):
        params, collections, _, _ = base.init(key)
        owner = {name: jnp.full(gate.shape, masks.FREE, jnp.int32) for name, gate in collections["gates"].items()}
        return params, collections, {"owner": owner}, {"growth": jnp.float32(growth[0])}

    def gated(collections, owner, task):
        gates = {name: masks.visible(leaf, task).astype(jnp.float32) for name, leaf in owner.items()}
        return {**collections, "gates": gates}

    def begin_task(learner, clock, fold, key):
        def grow(owner):
            count = jnp.ceil(learner.hyper["growth"] * owner.size).astype(jnp.int32)
            return masks.claim(owner, clock.task, count)

        owner = {name: grow(leaf) for name, leaf in learner.method_state["owner"].items()}
        return learner._replace(method_state={"owner": owner})

    def loss(params, learner, clock, batch, key):
        collections = gated(learner.collections, learner.method_state["owner"], clock.task)
        value, (updated, metrics) = base.loss(params, learner._replace(collections=collections), clock, batch, key)
        return value, ({**updated, "gates": learner.collections["gates"]}, metrics)

    def update_mask(learner, clock):
        owner = learner.method_state["owner"]

        def trained(path, leaf):
            if rows.has_rows(path, learner.rows):
                return jnp.float32(1.0)
            wire = wires[path]
            entering = None if wire.inputs is None else owner[wire.inputs]
            mask = masks.weight_mask(entering, owner[wire.outputs], clock.task, repeat=wire.repeat)
            mask = mask * (clock.task == clock.newest).astype(jnp.float32)
            return mask[0] if leaf.ndim == 1 else mask.reshape((1,) * (leaf.ndim - 2) + mask.shape)

        return rows.map_leaves(trained, learner.params)

    def predict(learner, inputs, task):
        collections = gated(learner.collections, learner.method_state["owner"], task)
        return base.predict(learner._replace(collections=collections), inputs, task)

    def candidates(learner, clock):
        return {"growth": jnp.asarray(growth, jnp.float32)}

    def choose(scores, learners, clock):
        """The lowest growth within a margin of the best."""
        return jnp.argmax(scores >= jnp.max(scores) - margin).astype(jnp.int32)

    return base._replace(
        name="tfm",
        init=init,
        begin_task=begin_task,
        loss=loss,
        update_mask=update_mask,
        predict=predict,
        candidates=candidates,
        choose=choose,
        forgets_nothing=True,
    )
