r"""Hard attention: gates between 0 and 1 that a task learns, and the share of each feature that earlier tasks use.

Where `masks` has one owner a feature, here a feature has a number for each task: how much the task attends to it.
`taken` is the largest of earlier tasks, `{gate: [C]}` in [0, 1], and what it is 1 for may not change.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from cljax import task_params
from cljax.losses import at_least_float32
from cljax.numbers import check_shape, real, whole
from cljax.ownership.gates import shaped
from cljax.types import Array, Tree, Wire

LARGEST_EMBEDDING = 6.0
"""Embeddings are kept between this and its negative."""
LARGEST_EXPONENT = 50.0
"""The compensation's `cosh(s e)` is that of a number between this and its negative."""


def annealed(progress: ArrayLike, *, max_scale: float) -> Array:
    r"""The scale of the gates in the course of an epoch, from almost linear gates to almost steps.

    .. math:: s = \frac{1}{s_{max}} + \Big( s_{max} - \frac{1}{s_{max}} \Big) p

    Args:
      progress: p, in [0, 1], or the nearest of it: 0 at the epoch's first step, 1 at its last.
      max_scale: :math:`s_{max}`, above 0.

    Returns:
      The scale, float32 scalar.

    Raises:
      ValueError: for a largest scale out of range.

    Example:
      >>> [round(float(annealed(progress, max_scale=400.0)), 4) for progress in (0.0, 0.5, 1.0)]
      [0.0025, 200.0013, 400.0]

    Reference: Serrà et al., Overcoming Catastrophic Forgetting with Hard Attention to the Task, 2018, section 2.4.
    """
    least = 1 / real("max_scale", max_scale, above=0)
    progress = jnp.clip(jnp.asarray(progress, jnp.float32), 0, 1)
    return jnp.float32(least) + jnp.float32(max_scale - least) * progress


def gate(embedding: Array, scale: ArrayLike) -> Array:
    r"""The gates of a task: how much it attends to each feature.

    .. math:: a = \sigma(s e), \qquad \frac{\partial a}{\partial e} = s \, \sigma(s e) \, \sigma(-s e)

    The gradient keeps its digits where a gate is open, too: :math:`a (1 - a)` would be 0 from :math:`s e = 17` on.

    Args:
      embedding: `[C]` float.
      scale: s, scalar.

    Returns:
      `[C]` in [0, 1], of the embedding's dtype.

    Example:
      >>> gate(jnp.array([-6.0, 0.0, 6.0]), 400.0).tolist()
      [0.0, 0.5, 1.0]

    Reference: Serrà et al., 2018, section 2.2.
    """
    return jnp.exp(jax.nn.log_sigmoid(jnp.asarray(scale, embedding.dtype) * embedding))


def compensate(gradient: Array, embedding: Array, scale: ArrayLike, *, max_scale: float) -> Array:
    r"""Gives an embedding's gradient the size that it would have with gates of scale 1, whatever the scale is now.

    .. math:: q' = \frac{s_{max} \, (\cosh(s e) + 1)}{s \, (\cosh(e) + 1)} \, q

    which is :math:`s_{max} \, \sigma'(e) \, \partial L / \partial a`. :math:`s e` is kept within 50, so that nothing
    overflows; a gate that is further open or closed gets a gradient that vanishes.

    Args:
      gradient: q, `[C]`.
      embedding: e, `[C]`.
      scale: s, scalar, that of the gates whose gradient it is.
      max_scale: :math:`s_{max}`.

    Returns:
      `[C]`, of the gradient's dtype.

    Example:
      >>> compensate(jnp.array([1.0]), jnp.array([0.0]), 4.0, max_scale=400.0).tolist()
      [100.0]

    Reference: Serrà et al., 2018, section 2.5.
    """
    check_shape("gradient", gradient, *embedding.shape)
    embedding = at_least_float32(embedding)
    scale = jnp.asarray(scale, embedding.dtype)
    bounded = jnp.clip(scale * embedding, -LARGEST_EXPONENT, LARGEST_EXPONENT)
    factor = max_scale / scale * (jnp.cosh(bounded) + 1) / (jnp.cosh(embedding) + 1)
    return (at_least_float32(gradient) * factor).astype(gradient.dtype)


def sparsity(gates: dict[str, Array], taken: dict[str, Array]) -> Array:
    r"""How much of what earlier tasks have left free a task attends to.

    .. math:: R = \frac{\sum_{l,i} a_{l,i} \, (1 - a^{<t}_{l,i})}{\sum_{l,i} (1 - a^{<t}_{l,i})}

    Features that are taken cost nothing. Where all are, it is 0.

    Args:
      gates: `{gate: [C]}`, the task's.
      taken: `{gate: [C]}`, the largest of earlier tasks.

    Returns:
      Scalar in [0, 1].

    Example:
      >>> float(sparsity({'dense_0': jnp.array([1.0, 1.0, 0.0])}, {'dense_0': jnp.array([1.0, 0.0, 0.0])}))
      0.5

    Reference: Serrà et al., 2018, section 2.6.
    """
    task_params.check_same("taken", taken, "gates", gates)
    free = {name: (1 - leaf).astype(gates[name].dtype) for name, leaf in taken.items()}
    used = jnp.sum(jnp.stack([jnp.sum(gates[name] * free[name]) for name in gates]))
    every = jnp.sum(jnp.stack([jnp.sum(leaf) for leaf in free.values()]))
    return used / jnp.maximum(every, jnp.finfo(every.dtype).tiny)


def weight_mask(taken_in: Array | None, taken_out: Array | None, *, repeat: int = 1) -> Array:
    r"""How much each weight may change: nothing where earlier tasks use the features at both of its ends.

    .. math:: 1 - \min(a^{<t}_{l-1,i}, \, a^{<t}_{l,j})

    Args:
      taken_in: `[Cin]` in [0, 1], of the input features; None where all tasks use the inputs: pixels, biases.
      taken_out: `[Cout]`, of the output features; None where all tasks use the outputs: a shared head's.
      repeat: how often the input features repeat, by `jnp.tile`.

    Returns:
      `[Cin * repeat, Cout]` in [0, 1], with 1 in place of an axis that is None.

    Raises:
      ValueError: for a repeat below 1.

    Example:
      >>> weight_mask(jnp.array([1.0, 0.25]), jnp.array([1.0, 0.5, 0.0])).tolist()
      [[0.0, 0.5, 1.0], [0.75, 0.75, 1.0]]

    Reference: Serrà et al., 2018, section 2.3.
    """
    one = jnp.ones([1], jnp.float32)
    first = one if taken_in is None else jnp.tile(taken_in, whole("repeat", repeat, least=1))
    last = one if taken_out is None else taken_out
    return 1 - jnp.minimum(first[:, None], last[None, :])


def update_mask(params: Tree, wiring: dict[str, Wire], taken: dict[str, Array], stacks: task_params.Rows) -> Tree:
    """How much a visit may change each parameter: `weight_mask`, and all of what belongs to the task.

    Args:
      params: focused.
      wiring: wires by path, of `layout`.
      taken: `{gate: [C]}`, the largest of earlier tasks' gates.
      stacks: the learner's `rows`.

    Returns:
      A tree like params of masks in [0, 1] that broadcast. Of a head that all tasks share, the bias has 0, and needs no
      wire.

    Example:
      >>> wires = {'hidden': Wire('hidden', None, 'gate'), 'head': Wire('head', 'gate', None)}
      >>> params, taken = {'hidden': jnp.ones([4, 3]), 'head': jnp.ones([3, 2])}, {'gate': jnp.array([1.0, 0.25, 0.0])}
      >>> update_mask(params, wires, taken, task_params.resting(['head']))
      {'head': Array(1., dtype=float32), 'hidden': Array([[0.  , 0.75, 1.  ]], dtype=float32)}
    """

    def free(path: str, leaf: Array) -> Array:
        if task_params.has_rows(path, stacks):
            return jnp.float32(1.0)
        _, *gates, repeat = wiring.get(path, Wire(path, None, None))
        return shaped(leaf, weight_mask(*(None if gate is None else taken[gate] for gate in gates), repeat=repeat))

    return task_params.map_leaves(free, params)
