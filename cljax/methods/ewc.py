"""Elastic weight consolidation: what mattered to earlier tasks is held in place."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from cljax import importance, losses
from cljax.methods.combine import combine
from cljax.methods.distilling import own_output
from cljax.methods.finetune import finetune
from cljax.methods.terms import quadratic, shared
from cljax.numbers import check_option, whole
from cljax.types import Array, Batch, Clock, Fold, Learner, Method, Network, Respond, Term, Tree

Fisher = Literal["exact", "sampled", "empirical", "batched"]


def consolidation(*, strength: float = 100.0, fisher: Fisher = "exact", chunk: int = 32) -> Term:
    r"""Elastic weight consolidation: pulls each shared parameter by its Fisher information for the tasks before.

    $$ \frac{\lambda}{2} \sum_i F_i (\theta_i - \theta^*_i)^2 $$

    F is the sum over visits of the diagonal Fisher information of the task's softmax at the visit's end, the mean over
    its training examples, in evaluation mode; $\theta^*$ is where the last visit ended. Labels are single.

    Args:
      strength: lambda, the number `strength`.
      fisher: which quantity; see `cljax.importance.fisher`. 'exact' costs K gradients an example, others one.
      chunk: how many examples' gradients are held in memory at once.

    Returns:
      The term `ewc`; state `importance`, metric `penalty`.

    Raises:
      ValueError: for an unknown kind of Fisher information, or a number out of range.

    Example:
      >>> consolidation(strength=10.0).name
      'ewc'

    Reference: Kirkpatrick et al., Overcoming Catastrophic Forgetting in Neural Networks, 2017, equation 3; one penalty
    for all old tasks as in Schwarz et al., Progress and Compress, 2018, equation 8, with gamma 1.
    """
    check_option("ewc's fisher", fisher, Fisher)
    chunk = whole("ewc's chunk", chunk, least=1)

    def measure(learner: Learner, clock: Clock, fold: Fold, key: Array, respond: Respond) -> Tree:
        start = shared(learner.params, learner)

        def add(carry: tuple[Tree, Array, Array], batch: Batch) -> tuple[Tree, Array, Array]:
            if batch.labels.ndim == 2:
                raise ValueError("ewc's Fisher information is of a softmax, but the labels are several an example.")

            def log_prob(params: Tree, inputs: Array) -> Array:
                whole = jax.tree.map(lambda own, given: own if given is None else given, learner.params, params)
                size = len(inputs)
                one = Batch(*(leaf[:size] for leaf in batch._replace(weights=jnp.ones_like(batch.weights))))
                logits = own_output(respond(whole, one._replace(inputs=inputs)), clock).logits
                return jax.nn.log_softmax(losses.mask_logits(logits, clock.classes[clock.task]))

            total, examples, number = carry
            found = importance.fisher(
                log_prob,
                start,
                batch.inputs,
                batch.labels,
                kind=fisher,
                key=jax.random.fold_in(key, number),
                weights=batch.weights,
                chunk=chunk,
            )
            count = jnp.sum(batch.weights)
            total = jax.tree.map(lambda sum, leaf: sum + count.astype(leaf.dtype) * leaf, total, found)
            return total, examples + count, number + 1

        zero = (jax.tree.map(jnp.zeros_like, start), jnp.float32(0), jnp.int32(0))
        total, examples, _ = fold(add, zero)
        return jax.tree.map(lambda leaf: leaf / jnp.maximum(examples, 1).astype(leaf.dtype), total)

    return quadratic(strength=strength, measure=measure, name="ewc")


def ewc(network: Network, *, strength: float = 100.0, fisher: Fisher = "exact", chunk: int = 32) -> Method:
    r"""Elastic weight consolidation (EWC): fine-tuning that holds each shared parameter by its Fisher information.

    $$ L = -\log \mathrm{softmax}(z_t)_y + \frac{\lambda}{2} \sum_i F_i (\theta_i - \theta^*_i)^2 $$
    See `consolidation` for F and for the arguments. The strength that works depends on the task and on the kind of
    Fisher information: publications have 1 to 10,000.

    Args:
      network: an ordinary network; all leaves of params that are not `per_task` are held.
      strength: lambda.
      fisher: which quantity is called Fisher information; see `cljax.importance.fisher`.
      chunk: how many examples' gradients are held in memory at once.

    Returns:
      The method. Its metrics are `classification` (nats) and `penalty`, half the weighted squared distance.

    Raises:
      ValueError: for an unknown option, or a number out of range; in training, for labels of several classes each.

    Example:
      >>> from cljax import networks
      >>> ewc(networks.mlp((8, 8, 1), 2), strength=10.0).name
      'ewc'

    Reference: Kirkpatrick et al., Overcoming Catastrophic Forgetting in Neural Networks, 2017, equation 3.
    """
    return combine(finetune(network), consolidation(strength=strength, fisher=fisher, chunk=chunk), name="ewc")
