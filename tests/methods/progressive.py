"""A progressive network: a column per task that reads all earlier columns, by `lax.switch`."""

import jax
import jax.numpy as jnp
from jax import lax

from cljax import networks, rows
from cljax.methods import finetune
from cljax.methods.finetune import task_loss


def progressive(inputs, outputs, *, tasks, width=16, mean=0.0, std=1.0):
    column = networks.mlp(inputs, outputs, hidden=(width, width), mean=mean, std=std)
    base = finetune(column)

    def init(key):
        params, collections, _, _ = base.init(key)
        params["lateral"] = 0.1 * jax.random.normal(jax.random.fold_in(key, 7), (tasks, width, width), jnp.float32)
        return params, collections, {}, {}

    def affine(layer, values):
        return values @ layer["kernel"] + layer["bias"][None, :]

    def first(params, images):
        flat = images.reshape(images.shape[0], -1)
        return jax.nn.relu(affine(params["dense_0"], flat))

    def forward(columns, images):
        """Logits of the last of some columns."""
        lower = [first(params, images) for params in columns]
        own = columns[-1]
        summed = affine(own["dense_1"], lower[-1])
        for index, other in enumerate(lower[:-1]):
            summed = summed + other @ own["lateral"][index]
        return affine(own["head"], jax.nn.relu(summed))

    def logits(stacks, own, images, task):
        images = networks.standardize(images, mean, std, dtype=own["head"]["bias"].dtype)

        def branch(last):
            def run(own):
                earlier = [jax.tree.map(lambda leaf, index=index: leaf[index], stacks) for index in range(last)]
                return forward([*lax.stop_gradient(earlier), own], images)

            return run

        return lax.switch(task, [branch(last) for last in range(tasks)], own)

    def loss(params, learner, clock, batch, key):
        found = logits(learner.rows.params, params, batch.inputs, clock.task)
        return task_loss(found, learner, clock, batch), (learner.collections, {})

    def update_mask(learner, clock):
        """Later columns read the first layer of earlier ones: at a revisit it stays as it is."""
        newest = (clock.task == clock.newest).astype(jnp.float32)
        read = lambda path, leaf: newest if path.startswith("dense_0/") else jnp.float32(1.0)
        return rows.map_leaves(read, learner.params)

    def predict(learner, images, task):
        own = rows.take_row(learner.params, task, learner.rows)
        return logits(learner.params, own, images, task)

    every = rows.leaf_paths(jax.eval_shape(init, jax.random.key(0))[0])
    return base._replace(
        name="progressive",
        init=init,
        loss=loss,
        update_mask=update_mask,
        predict=predict,
        per_task=every,
        zero_forgetting=True,
    )
