"""A user's script, for type checkers: own arrays and model, a run, a drive, a method of one's own. Nothing runs it."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from cljax import data, losses, methods, metrics, networks, streams, training
from cljax.types import Clock, Learner, Method, Network, Tree


class Model(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        hidden = nn.relu(nn.Dense(16)(x.reshape(len(x), -1)))
        return nn.Dense(2)(nn.Dropout(0.1, deterministic=not train)(hidden))


def careful(network: Network, *, slowdown: float = 0.1) -> Method:
    base = methods.finetune(network)

    def update_mask(learner: Learner, clock: Clock) -> tuple[Tree, Tree]:
        params, collections = base.update_mask(learner, clock)
        factor = jnp.where(clock.newest > 0, slowdown, 1.0)
        return jax.tree.map(lambda mask: factor * mask, params), collections

    return base._replace(name="careful", update_mask=update_mask)


def told(event: training.Event) -> None:
    print(f"{event.method} {event.task} {event.loss:.2f}")


def main() -> None:
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (40, 8, 8, 1), np.uint8), np.arange(40) % 4
    dataset = data.from_arrays(images, labels, images[:8], [0, 1, 2, 3] * 2, classes=["a", "b", "c", "d"])
    stream = streams.split(dataset, tasks=2, epochs=(2, 1), class_order=np.array([3, 1, 0, 2]))
    own = streams.from_tasks([(images, labels % 2, images, labels % 2), ((images, labels % 2), (images, labels % 2))])
    network = networks.from_linen(
        Model(), stream.tables.examples.shape[1:], outputs=2, mean=stream.mean, std=stream.std
    )
    method = methods.combine(careful(network), methods.distillation(strength=2.0), methods.consolidation())
    run = training.make_run(method, optax.adam(1e-3), stream)
    result = run(jax.random.key(0), stream.tables)
    for experience in streams.experiences(stream):
        inputs, targets = experience.train
        logits = method.predict(result.learner, inputs, experience.task)
        found = losses.cross_entropy(logits, targets)
        print(experience.classes, float(found.mean()), np.asarray(logits).argmax(axis=-1).shape)
    accuracy = result.evaluation.accuracy
    print(float(metrics.average_accuracy(accuracy)), float(metrics.forgetting(np.asarray(accuracy))))
    seeds = jax.vmap(run, in_axes=(0, None))(jax.random.split(jax.random.key(0), 3), stream.tables)
    interval = metrics.mean_and_interval(metrics.average_accuracy(seeds.evaluation.accuracy))
    print(interval.mean, interval.half_width)
    outcome = training.drive(method, optax.adam(1e-3), [(0, stream)], training.Settings(batch_size=8), report=told)
    longer = streams.append(stream, own)
    pairs = [(seed, longer) for seed in range(2)]
    print(training.drive(methods.freezing(network), optax.sgd(0.1), pairs, past=None, hypers=[{}, {}]).traces)
    params, collections = networks.export_task(method, result.learner, 1)
    teacher = network.apply(params, collections, images).logits
    print(losses.distillation(np.zeros((40, 2), np.float32), np.asarray(teacher), temperature=2.0).mean())
    given = training.given_params(methods.finetune(network), {"params": params})
    mlp = networks.mlp((8, 8, 1), 2, hidden=[16], mean=np.array([0.5]), std=0.25)
    print(jax.tree.map(jnp.shape, mlp.init(jax.random.key(0))[0]), outcome.seconds.sum(), given.keys())
