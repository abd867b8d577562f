"""Methods whose rate or gradient is amended as a paper has it: whatever the method, whatever the optimizer."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from cljax.numbers import real
from cljax.training.plan import epoch_table
from cljax.types import Array, Batch, Clock, Learner, Method, Schedule, Tree


def with_learning_rate_decay(method: Method, schedule: Schedule, *, decay: float) -> Method:
    r"""Lets the learning rate fall with the epochs of all tasks: divided by :math:`1 + d e`.

    Args:
      method: the method; its phases' own factors still apply.
      schedule: the stream's.
      decay: d, at least 0. e counts the epochs before this one, all rounds and phases, as the schedule plans them:
        those that patience saves count.

    Returns:
      The method.

    Raises:
      ValueError: for a negative decay, or one that is not finite.

    Example:
      >>> from cljax import methods, networks, streams
      >>> from cljax.types import make_clock
      >>> method = methods.finetune(networks.mlp((8, 8, 1), 2))
      >>> falling = with_learning_rate_decay(method, streams.lifelong(3, 2000), decay=1 / 4000)
      >>> falling.phases[0].learning_rate(make_clock(round=2))
      Array(0.5, dtype=float32)

    Reference: Lee et al., Learning Shared Knowledge for Deep Lifelong Learning using Deconvolutional Networks, 2019,
    appendix B.3.
    """
    decay = real("decay", decay, least=0.0)
    counts = np.maximum(epoch_table(method, schedule), 0)
    before = (np.cumsum(counts) - counts.reshape(-1)).reshape(counts.shape).astype(np.int32)

    def falling(number: int, own: Callable[[Clock], Array]) -> Callable[[Clock], Array]:
        def learning_rate(clock: Clock) -> Array:
            epochs = jnp.asarray(before[:, number])[clock.round] + clock.epoch
            return own(clock) / (1 + jnp.float32(decay) * epochs.astype(jnp.float32))

        return learning_rate

    return method._replace(
        phases=tuple(
            phase._replace(learning_rate=falling(number, phase.learning_rate))
            for number, phase in enumerate(method.phases)
        )
    )


def with_summed_loss(method: Method) -> Method:
    r"""Has every step follow the gradient of the loss's sum over the batch, in place of its mean.

    .. math:: g \leftarrow g \sum_i w_i

    with the weights w of the batch's examples: 1, and 0 for those that fill up a last one. Logged losses stay means.
    What the method adds to the loss of the examples is multiplied too.

    Args:
      method: the method.

    Returns:
      The method.

    Example:
      >>> from cljax import methods, networks
      >>> with_summed_loss(methods.finetune(networks.mlp((8, 8, 1), 2))).name
      'finetune'
    """

    def adjust_gradients(gradients: Tree, learner: Learner, clock: Clock, batch: Batch) -> Tree:
        gradients = method.adjust_gradients(gradients, learner, clock, batch)
        count = jnp.sum(batch.weights)
        return jax.tree.map(lambda leaf: leaf * count.astype(leaf.dtype), gradients)

    return method._replace(adjust_gradients=adjust_gradients)
