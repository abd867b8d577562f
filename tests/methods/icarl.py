"""iCaRL: exemplars in a memory of fixed size, chosen by herding; a teacher; the nearest mean of exemplars."""

import jax
import jax.numpy as jnp
from jax import lax

from cljax import losses, memory, task_params
from cljax.methods.common import forward, mean, plain, update_masks
from cljax.task_params import flatten_heads


def icarl(network, *, features, memory_size=50):
    base = plain("icarl", network)
    outputs = network.outputs

    def init(key, sizes):
        params, collections, _, _ = base.init(key, sizes)
        state = {
            "teacher": jax.tree.map(jnp.array, {"params": params, "collections": collections}),
            "means": jnp.zeros((sizes.tasks, outputs, features), jnp.float32),
        }
        return params, collections, state, {}

    def begin_task(learner, clock, fold, key):
        teacher = {"params": learner.params, "collections": learner.collections}
        return learner._replace(method_state={**learner.method_state, "teacher": teacher})

    def embed(learner, inputs):
        own = (task_params.take_row(tree, jnp.int32(0), learner.rows) for tree in (learner.params, learner.collections))
        found = network.apply(*own, inputs).features  # the same for every head
        return found / jnp.maximum(jnp.linalg.norm(found, axis=-1, keepdims=True), 1e-9)

    def loss(params, learner, clock, batch, key):
        output = forward(network, base.view, params, learner, clock, batch.inputs, key=key)
        teacher = learner.method_state["teacher"]
        old = learner._replace(collections=teacher["collections"])
        old_logits = forward(network, base.view, teacher["params"], old, clock, batch.inputs, key=None).logits
        tasks = learner.rows.tasks
        targets = jax.nn.one_hot(batch.tasks * outputs + batch.labels, tasks * outputs, dtype=jnp.float32)
        is_old = (jnp.arange(tasks, dtype=jnp.int32) < clock.newest).repeat(outputs)[None, :]
        targets = jnp.where(is_old, jax.nn.sigmoid(lax.stop_gradient(flatten_heads(old_logits))), targets)
        each = losses.cross_entropy(flatten_heads(output.logits), targets, classes=clock.classes.reshape(-1))
        return mean(each, batch.weights), (output, {})

    def update_mask(learner, clock):
        return update_masks(learner, jnp.ones(learner.rows.tasks, jnp.bool_), True)

    def end_phase(learner, clock, fold, key):
        """Keeps the first m exemplars of each old class, herds m of each new one, and takes all means anew."""
        size, tasks = fold.max_examples["train"], learner.rows.tasks
        seen = clock.classes & (jnp.arange(tasks, dtype=jnp.int32) <= clock.newest)[:, None]
        quota = memory_size // jnp.maximum(jnp.sum(seen, dtype=jnp.int32), 1)

        def collect(carry, batch):
            place = jnp.where(batch.weights > 0, batch.position, size)
            vectors = embed(learner, batch.inputs)
            return (
                carry[0].at[place].set(vectors, mode="drop"),
                carry[1].at[place].set(batch.labels, mode="drop"),
            )

        start = (jnp.zeros((size, features), jnp.float32), jnp.full(size, -1, jnp.int32))
        vectors, labels = fold(collect, start)
        herded = jax.vmap(lambda k: memory.herd(vectors, (labels == k).astype(jnp.float32), min(memory_size, size)))(
            jnp.arange(outputs, dtype=jnp.int32)
        )
        rank = jnp.min(
            jnp.where(labels[None, :] == jnp.arange(outputs, dtype=jnp.int32)[:, None], herded, size), axis=0
        )
        chosen = (labels >= 0) & (rank < quota)

        kept = learner.memory
        classes = kept.tasks * outputs + kept.labels
        same = (classes[:, None] == classes[None, :]) & kept.valid[None, :]
        earlier = jnp.sum(jnp.tril(same, -1), axis=1, dtype=jnp.int32)
        valid = kept.valid & (earlier < quota) & (kept.tasks != clock.task)
        order = jnp.argsort(~valid)
        kept = jax.tree.map(lambda leaf: leaf[order], kept._replace(valid=valid))
        by_rank = jnp.argsort(jnp.where(chosen, rank, size))
        turn = jnp.zeros(size, jnp.int32).at[by_rank].set(jnp.arange(size, dtype=jnp.int32))
        slot = jnp.where(chosen, jnp.sum(kept.valid, dtype=jnp.int32) + turn, memory_size)

        def store(slots, batch):
            place = jnp.where(batch.weights > 0, slot[jnp.clip(batch.position, 0, size - 1)], memory_size)
            put = lambda array, values: array.at[place].set(values, mode="drop")
            return slots._replace(
                inputs=put(slots.inputs, batch.inputs),
                labels=put(slots.labels, batch.labels),
                tasks=put(slots.tasks, batch.tasks),
                valid=put(slots.valid, jnp.ones(place.shape, jnp.bool_)),
            )

        kept = fold(store, kept)
        kept_vectors = embed(learner, kept.inputs)
        member = jax.nn.one_hot(kept.tasks * outputs + kept.labels, tasks * outputs, dtype=jnp.float32) * kept.valid[
            :, None
        ].astype(jnp.float32)
        means = member.T @ kept_vectors / jnp.maximum(member.sum(0), 1.0)[:, None]
        state = {**learner.method_state, "means": means.reshape(tasks, outputs, features)}
        return learner._replace(memory=kept, method_state=state)

    def predict(learner, inputs, task):
        tasks = learner.rows.tasks
        task_params.check_task(task, tasks)
        vectors = embed(learner, inputs)
        means = task_params.of_task(learner.method_state["means"][task], task, tasks)
        means = means / jnp.maximum(jnp.linalg.norm(means, axis=-1, keepdims=True), 1e-9)
        return -jnp.sum((vectors[:, None, :] - means[None, :, :]) ** 2, axis=-1)

    return base._replace(
        init=init,
        begin_task=begin_task,
        loss=loss,
        update_mask=update_mask,
        end_phase=end_phase,
        predict=predict,
        stacked=network.per_task,
        memory_size=memory_size,
    )
