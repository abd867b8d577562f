"""A progressive network: a column per task that reads all earlier columns, by `lax.switch`."""

import jax
import jax.numpy as jnp
from jax import lax

from cljax import networks, task_params
from cljax.methods.common import everything, plain, task_loss
from cljax.types import Output, Sizes


def progressive(inputs, outputs, *, width=16, mean=0.0, std=1.0):
    column = networks.mlp(inputs, outputs, hidden=(width, width), mean=mean, std=std)
    base = plain("progressive", column)

    def init(key, sizes):
        params, collections, _, _ = base.init(key, sizes)
        params["lateral"] = 0.1 * jax.random.normal(
            jax.random.fold_in(key, 7), (sizes.tasks, width, width), jnp.float32
        )
        return params, collections, {}, {}

    def affine(layer, values):
        return values @ layer["kernel"] + layer["bias"][None, :]

    def first(params, images):
        flat = images.reshape(images.shape[0], -1)
        return jax.nn.relu(affine(params["dense_0"], flat))

    def forward(columns, images):
        """Logits and features of the last of some columns."""
        lower = [first(params, images) for params in columns]
        own = columns[-1]
        summed = affine(own["dense_1"], lower[-1])
        for index, other in enumerate(lower[:-1]):
            summed = summed + other @ own["lateral"][index]
        features = jax.nn.relu(summed)
        return affine(own["head"], features), features

    def read(stacks, own, images, task):
        images = networks.standardize(images, mean, std, dtype=own["head"]["bias"].dtype)

        def branch(last):
            def run(own):
                earlier = [jax.tree.map(lambda leaf, index=index: leaf[index], stacks) for index in range(last)]
                return forward([*lax.stop_gradient(earlier), own], images)

            return run

        tasks = stacks["lateral"].shape[0]
        return lax.switch(task, [branch(last) for last in range(tasks)], own)

    def loss(params, learner, clock, batch, key):
        logits, features = read(learner.rows.params, params, batch.inputs, clock.task)
        output = Output(logits, features, features, {}, learner.collections)
        return task_loss(logits, clock, batch), (output, {})

    def update_mask(learner, clock):
        """Later columns read the first layer of earlier ones: at a revisit it stays as it is."""
        newest = (clock.task == clock.newest).astype(jnp.float32)
        trains = lambda path, leaf: newest if path.startswith("dense_0/") else jnp.float32(1.0)
        return task_params.map_leaves(trains, learner.params), everything(learner.collections)

    def predict(learner, images, task):
        own = task_params.take_row(learner.params, task, learner.rows)
        return read(learner.params, own, images, task)[0]

    every = task_params.leaf_paths(jax.eval_shape(lambda key: init(key, Sizes(1, outputs, {})), jax.random.key(0))[0])
    return base._replace(
        init=init,
        loss=loss,
        update_mask=update_mask,
        predict=predict,
        per_task=every,
        zero_forgetting=True,
    )
