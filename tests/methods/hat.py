"""Hard attention to the task: embeddings that gate units, soft update masks, gradient compensation."""

import functools

import jax
import jax.numpy as jnp

from cljax import task_params
from cljax.methods.common import everything, forward, plain, task_loss


def hat(network, *, strength=0.75, scale=400.0):
    wires = {wire.path: wire for wire in network.wiring}
    names = sorted({wire.outputs for wire in network.wiring if wire.outputs is not None})

    def view(params, collections, state, task, newest, slope=scale):
        gates = {name: jax.nn.sigmoid(slope * params["hat"][name]) for name in names}
        return {name: leaf for name, leaf in params.items() if name != "hat"}, {**collections, "gates": gates}

    base = plain("hat", network, view=view)

    def init(key, sizes):
        params, collections, _, _ = base.init(key, sizes)
        keys = jax.random.split(jax.random.fold_in(key, 7), len(names))
        sizes = {name: collections["gates"][name].shape for name in names}
        params["hat"] = {
            name: jax.random.normal(one, sizes[name], jnp.float32) for name, one in zip(names, keys, strict=True)
        }
        state = {"cumulative": {name: jnp.zeros(sizes[name], jnp.float32) for name in names}}
        return params, collections, state, {"strength": jnp.float32(strength)}

    def slope(clock):
        return 1 / scale + (scale - 1 / scale) * clock.progress

    def loss(params, learner, clock, batch, key):
        now = functools.partial(view, slope=scale if key is None else slope(clock))
        output = forward(network, now, params, learner, clock, batch.inputs, key=key)
        free = {name: 1 - learner.method_state["cumulative"][name] for name in names}
        gates = now(params, learner.collections, None, clock.task, None)[1]["gates"]
        used = sum(jnp.sum(gates[name] * free[name]) for name in names)
        sparsity = used / sum(jnp.sum(free[name]) for name in names)
        value = task_loss(output.logits, clock, batch) + learner.hyper["strength"] * sparsity
        return value, (output, {"sparsity": sparsity})

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

        kept = {name: everything(tree) for name, tree in learner.collections.items()}
        kept["gates"] = jax.tree.map(jnp.zeros_like, kept["gates"])
        return task_params.map_leaves(free, learner.params), kept

    def after_step(previous, learner, clock, batch, gradients):
        clamped = {name: jnp.clip(leaf, -6, 6) for name, leaf in learner.params["hat"].items()}
        return learner._replace(params={**learner.params, "hat": clamped})

    def end_phase(learner, clock, fold, key):
        gates = view(learner.params, learner.collections, None, clock.task, None)[1]["gates"]
        taken = jax.tree.map(jnp.maximum, learner.method_state["cumulative"], gates)
        return learner._replace(method_state={"cumulative": taken})

    return base._replace(
        init=init,
        loss=loss,
        adjust_gradients=adjust_gradients,
        update_mask=update_mask,
        after_step=after_step,
        end_phase=end_phase,
        per_task=(*network.per_task, *(f"hat/{name}" for name in names)),
    )
