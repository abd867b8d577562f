"""Methods whose rate or gradient is amended as a paper has it: whatever the method, whatever the optimizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from cljax.numbers import real
from cljax.training.plan import epoch_table
from cljax.types import Array, Batch, Clock, Learner, Method, Phase, Schedule, Tree


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
      >>> from cljax.training import with_learning_rate_decay
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

    def falling(number: int, rate: Array, clock: Clock) -> Array:
        epochs = jnp.asarray(before[:, number])[clock.round] + clock.epoch
        return rate / (1 + jnp.float32(decay) * epochs.astype(jnp.float32))

    return _with_rate(method, falling)


def with_milestones(
    method: Method, schedule: Schedule, *, milestones: Sequence[float] = (0.75,), factor: float = 0.1
) -> Method:
    r"""Lets the learning rate fall in steps within each phase, and begin anew with the next.

    .. math:: r \leftarrow f^k r

    Args:
      method: the method; its phases' own factors still apply.
      schedule: the stream's.
      milestones: parts of a phase, in (0, 1), after which the rate falls; k of them are behind. An epoch may be cut in
        two. Of a phase that patience may shorten, parts of all its epochs count.
      factor: f, above 0.

    Returns:
      The method.

    Raises:
      ValueError: for a number out of range.

    Example:
      >>> from cljax import methods, networks, streams
      >>> from cljax.training import with_milestones
      >>> from cljax.types import make_clock
      >>> method = methods.finetune(networks.mlp((8, 8, 1), 2))
      >>> falling = with_milestones(method, streams.lifelong(3, 8), milestones=(0.5, 0.75))
      >>> [round(float(falling.phases[0].learning_rate(make_clock(epoch=epoch))), 3) for epoch in (3, 4, 6)]
      [1.0, 0.1, 0.01]
    """
    parts = [real("A milestone", part, above=0.0, below=1.0) for part in milestones]
    factor = real("factor", factor, above=0.0)

    def stepped(number: int, rate: Array, clock: Clock) -> Array:
        for part in parts:
            begin = jnp.asarray(part * _epochs(method, schedule, number), jnp.float32)[clock.round]
            # An epoch's last step has progress 1, as much as the next one's first has done.
            before = (_done(clock) < begin) | (clock.epoch.astype(jnp.float32) + 1 <= begin)
            rate = rate * jnp.where(before, jnp.float32(1), jnp.float32(factor))
        return rate

    return _with_rate(method, stepped)


def with_cosine(method: Method, schedule: Schedule) -> Method:
    r"""Lets the learning rate fall along half a cosine, to 0 at a phase's last step, and begin anew with the next.

    .. math:: r \leftarrow \frac{1 + \cos(\pi d)}{2} \, r

    Args:
      method: the method; its phases' own factors still apply.
      schedule: the stream's; d is the part of a phase's epochs in it that is done.

    Returns:
      The method.

    Example:
      >>> from cljax import methods, networks, streams
      >>> from cljax.training import with_cosine
      >>> from cljax.types import make_clock
      >>> method = with_cosine(methods.finetune(networks.mlp((8, 8, 1), 2)), streams.lifelong(3, 8))
      >>> round(float(method.phases[0].learning_rate(make_clock(epoch=4))), 3)
      0.5

    Reference: Loshchilov and Hutter, SGDR: Stochastic Gradient Descent with Warm Restarts, 2017, equation 5.
    """

    def cosine(number: int, rate: Array, clock: Clock) -> Array:
        epochs = jnp.asarray(np.maximum(_epochs(method, schedule, number), 1), jnp.float32)
        done = _done(clock) / epochs[clock.round]
        return rate * (1 + jnp.cos(jnp.float32(np.pi) * jnp.minimum(done, 1))) / 2

    return _with_rate(method, cosine)


def _with_rate(method: Method, change: Callable[[int, Array, Clock], Array]) -> Method:
    """The method with phases whose learning rate is `change(number of the phase, its own rate, clock)`."""

    def changed(number: int, phase: Phase) -> Phase:
        return phase._replace(learning_rate=lambda clock: change(number, phase.learning_rate(clock), clock))

    return method._replace(phases=tuple(changed(*one) for one in enumerate(method.phases)))


def _epochs(method: Method, schedule: Schedule, number: int) -> np.ndarray:
    """How many epochs a phase has in each round."""
    return np.maximum(epoch_table(method, schedule)[:, number], 0)


def _done(clock: Clock) -> Array:
    """Epochs of the phase that are done, with the part of the present one."""
    return clock.epoch.astype(jnp.float32) + clock.progress


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
      >>> from cljax.training import with_summed_loss
      >>> with_summed_loss(methods.finetune(networks.mlp((8, 8, 1), 2))).name
      'finetune'
    """

    def adjust_gradients(gradients: Tree, learner: Learner, clock: Clock, batch: Batch) -> Tree:
        gradients = method.adjust_gradients(gradients, learner, clock, batch)
        count = jnp.sum(batch.weights)
        return jax.tree.map(lambda leaf: leaf * count.astype(leaf.dtype), gradients)

    return method._replace(adjust_gradients=adjust_gradients)
