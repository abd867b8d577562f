"""Memory-aware synapses: what moves the network's outputs is held in place, and no label is needed to know it."""

from __future__ import annotations

import jax.numpy as jnp

from cljax import importance
from cljax.methods.combine import combine
from cljax.methods.finetune import finetune
from cljax.methods.measuring import Outputs, over_task
from cljax.methods.terms import quadratic
from cljax.numbers import whole
from cljax.types import Array, Batch, Method, Network, Term, Tree


def memory_aware_synapses(*, strength: float = 0.1, chunk: int = 32) -> Term:
    r"""Memory-aware synapses: pulls each shared parameter by how strongly it moves the outputs of the tasks before.

    $$ \lambda \sum_i \Omega_i (\theta_i - \theta^*_i)^2, \qquad \Omega_i \leftarrow
    \Omega_i + \frac{1}{N} \sum_x \left| \frac{\partial \|z_t(x)\|_2^2}{\partial \theta_i} \right| $$
    with the logits $z_t$ of the task just learned, over its training examples, in evaluation mode; $\theta^*$ is where
    the last visit ended. No label is read.

    Args:
      strength: lambda, the number `strength`.
      chunk: how many examples' gradients are held in memory at once.

    Returns:
      The term `mas`; state `importance`, metric `penalty`.

    Raises:
      ValueError: for a number out of range.

    Example:
      >>> from cljax.methods import memory_aware_synapses
      >>> memory_aware_synapses(strength=0.5).name
      'mas'

    Reference: Aljundi et al., Memory Aware Synapses, 2018, sections 4.1 and 4.2.
    """
    chunk = whole("mas's chunk", chunk, least=1)

    def measure(outputs: Outputs, classes: Array, params: Tree, batch: Batch, key: Array) -> Tree:
        used = lambda params, inputs: jnp.where(classes, outputs(params, inputs), 0)
        return importance.memory_aware(used, params, batch.inputs, weights=batch.weights, chunk=chunk)

    return quadratic(strength=strength, measure=over_task(measure), half=False, name="mas")


def mas(network: Network, *, strength: float = 0.1, chunk: int = 32) -> Method:
    r"""Memory-aware synapses (MAS): fine-tuning that holds each shared parameter by its weight in earlier outputs.

    $$ L = -\log \mathrm{softmax}(z_t)_y + \lambda \sum_i \Omega_i (\theta_i - \theta^*_i)^2 $$
    See `memory_aware_synapses` for the importance and for the arguments.

    Args:
      network: an ordinary network; all leaves of params that are not `per_task` are held.
      strength: lambda; the paper has 1, at which plain SGD with momentum diverges on digits.
      chunk: how many examples' gradients are held in memory at once.

    Returns:
      The method. Its metrics are `classification` (nats) and `penalty`, the weighted squared distance.

    Raises:
      ValueError: for a number out of range.

    Example:
      >>> from cljax import networks
      >>> from cljax.methods import mas
      >>> mas(networks.mlp((8, 8, 1), 2)).name
      'mas'

    Reference: Aljundi et al., Memory Aware Synapses, 2018, section 4.
    """
    return combine(finetune(network), memory_aware_synapses(strength=strength, chunk=chunk), name="mas")
