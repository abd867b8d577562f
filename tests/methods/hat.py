"""Hard attention to the task: embeddings that gate units, soft update masks, gradient compensation."""

import jax
import jax.numpy as jnp

from cljax import rows
from cljax.methods import finetune
from cljax.methods.finetune import task_loss


def hat(network, *, strength=0.75, scale=400.0):
    base = finetune(network)
    wires = {wire.path: wire for wire in network.wiring}
    names = sorted({wire.outputs for wire in network.wiring if wire.outputs is not None})

    def init(key):
        params, collections, _, _ = base.init(key)
        keys = jax.random.split(jax.random.fold_in(key, 7), len(names))
        sizes = {name: collections["gates"][name].shape for name in names}
        params["hat"] = {
            name: jax.random.normal(one, sizes[name], jnp.float32) for name, one in zip(names, keys, strict=True)
        }
        state = {"cumulative": {name: jnp.zeros(sizes[name], jnp.float32) for name in names}}
        return params, collections, state, {"strength": jnp.float32(strength)}

    def slope(clock):
        return 1 / scale + (scale - 1 / scale) * clock.progress

    def gated(params, collections, slope):
        gates = {name: jax.nn.sigmoid(slope * params["hat"][name]) for name in names}
        return {**collections, "gates": gates}, gates

    def bare(params):
        return {name: leaf for name, leaf in params.items() if name != "hat"}

    def loss(params, learner, clock, batch, key):
        s = jnp.float32(scale) if key is None else slope(clock)
        collections, gates = gated(params, learner.collections, s)
        output = network.apply(bare(params), collections, batch.inputs, key=key)
        free = {name: 1 - learner.method_state["cumulative"][name] for name in names}
        used = sum(jnp.sum(gates[name] * free[name]) for name in names)
        sparsity = used / sum(jnp.sum(free[name]) for name in names)
        value = task_loss(output.logits, learner, clock, batch) + learner.hyper["strength"] * sparsity
        return value, ({**output.collections, "gates": learner.collections["gates"]}, {"sparsity": sparsity})

    def adjust_gradients(gradients, learner, clock, batch):
        s = slope(clock)

        def compensate(gradient, e):
            factor = scale / s * (jnp.cosh(jnp.clip(s * e, -50, 50)) + 1) / (jnp.cosh(e) + 1)
            return gradient * factor

        return {**gradients, "hat": jax.tree.map(compensate, gradients["hat"], learner.params["hat"])}

    def update_mask(learner, clock):
        taken = learner.method_state["cumulative"]

        def free(path, leaf):
            wire = wires.get(path)
            if wire is None or wire.outputs is None:
                return jnp.float32(1.0)
            leaving = 1 - taken[wire.outputs]
            if wire.inputs is None:
                return leaving.reshape((1,) * (leaf.ndim - 1) + leaving.shape)
            entering = jnp.tile(1 - taken[wire.inputs], wire.repeat)
            both = jnp.maximum(leaving[None, :], entering[:, None])
            return both.reshape((1,) * (leaf.ndim - 2) + both.shape)

        return rows.map_leaves(free, learner.params)

    def after_step(previous, learner, clock, batch, gradients):
        clamped = {name: jnp.clip(leaf, -6, 6) for name, leaf in learner.params["hat"].items()}
        return learner._replace(params={**learner.params, "hat": clamped})

    def end_phase(learner, clock, fold, key):
        _, gates = gated(learner.params, learner.collections, jnp.float32(scale))
        taken = jax.tree.map(jnp.maximum, learner.method_state["cumulative"], gates)
        return learner._replace(method_state={"cumulative": taken})

    def predict(learner, inputs, task):
        params = rows.take_row(learner.params, task, learner.rows)
        collections = rows.take_row(learner.collections, task, learner.rows)
        collections, _ = gated(params, collections, jnp.float32(scale))
        return network.apply(bare(params), collections, inputs).logits

    return base._replace(
        name="hat",
        init=init,
        loss=loss,
        adjust_gradients=adjust_gradients,
        update_mask=update_mask,
        after_step=after_step,
        end_phase=end_phase,
        predict=predict,
        per_task=(*network.per_task, *(f"hat/{name}" for name in names)),
    )
