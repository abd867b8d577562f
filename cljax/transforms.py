r"""Gradient transformations for continual learning: frozen weights that stay frozen to the bit.

Freezing is a property of the update, not of the gradient. Momentum, Adam and weight decay move a weight whose gradient
is zero, so `with_update_mask` masks the final update as well, and `keep_masked` leaves a frozen weight's bits alone.

Optimizers are at unit rate: `optax.sgd(1.0, momentum=0.9)`, `optax.adamw(1.0, weight_decay=1e-2)`, `rmsprop_tf1()`.
They give a direction, sign included, and the training loop multiplies the final update by the learning rate and by the
phase's factor, so that the rate is data: it can be searched over, batched and scheduled without tracing anew.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from cljax import task_params
from cljax.numbers import real
from cljax.types import Array, Tree


def with_update_mask(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    r"""Lets a traced mask in [0, 1] scale every update, and freeze a parameter where it is 0.

    .. math::
        u = \begin{cases} -0.0 & m = 0 \\ m \cdot \mathrm{inner}(g \cdot [m \neq 0]) & \text{otherwise} \end{cases}

    The inner transformation sees zero gradients at frozen places (so that norms and moments leave them out, and an
    infinite or NaN gradient there does no harm), and whatever it makes of them (momentum, weight decay) is discarded.
    What it keeps for each weight, found by the leaf's path and shape, does not age there: a weight that is trained
    again finds it as it was. A count that all leaves share, such as Adam's, goes on: a leaf that was frozen while
    others were trained, as in a warm-up, begins without the correction of its moments' bias, by steps up to three times
    as long.
    -0.0 is the neutral element of addition: adding 0.0 would turn a parameter of -0.0 into 0.0. Selection stands in
    for multiplication, since `0 * inf` is NaN. Masks between 0 and 1 scale the update, not the gradient.

    Args:
      inner: the whole optimizer; nothing that produces updates of its own may come after the mask.

    Returns:
      A transformation whose `update(updates, state, params, *, mask)` needs `mask`: a tree like the parameters, each
      leaf in [0, 1], a scalar or of the parameter's rank with axes that broadcast. The state is the inner one's.

    Raises:
      ValueError: where a mask does not broadcast to its parameter, or the structures differ.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from cljax.transforms import with_update_mask
      >>> optimizer = with_update_mask(optax.sgd(1.0, momentum=0.9))
      >>> params = {'old': jnp.ones([2]), 'new': jnp.ones([2])}
      >>> state = optimizer.init(params)
      >>> mask = {'old': jnp.float32(0), 'new': jnp.array([1.0, 0.5])}
      >>> updates, state = optimizer.update(params, state, params, mask=mask)
      >>> updates['old'].tolist(), updates['new'].tolist()
      ([-0.0, -0.0], [-1.0, -0.5])
    """
    inner = optax.with_extra_args_support(inner)

    def update(updates: Tree, state: Tree, params: Tree | None = None, *, mask: Tree, **extra: Any):
        task_params.check_scales("mask", mask, "updates", updates)
        before, params_like = state, updates
        updates = jax.tree.map(lambda g, m: jnp.where(m == 0, jnp.zeros((), g.dtype), g), updates, mask)
        with jax.numpy_dtype_promotion("standard"):  # Optax's Adam raises a float to an integer power
            updates, state = inner.update(updates, state, params, **extra)
        scale = lambda u, m: jnp.where(m == 0, jnp.asarray(-0.0, u.dtype), jnp.asarray(m, u.dtype) * u)
        return jax.tree.map(scale, updates, mask), _keep_slots(before, state, params_like, mask)

    return optax.GradientTransformationExtraArgs(inner.init, update)


def _keep_slots(old: Tree, new: Tree, params: Tree, mask: Tree) -> Tree:
    """An optimizer's new state, but its old values where they are a parameter's and that is frozen."""
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(mask), strict=True)
    found = dict(zip(task_params.leaf_paths(params), pairs, strict=True))
    there = set(task_params.leaf_paths(new))
    below = lambda place, name: f"{place}/{name}" if place and name else place or name
    whole = functools.cache(lambda place: all(below(place, name) in there for name in found))

    def keep(path: str, now: Array, before: Array) -> Array:
        parts = path.split("/")
        halves = [("/".join(parts[:first]), "/".join(parts[first:])) for first in range(len(parts) + 1)]
        own = [(place, name) for place, name in halves if name in found]
        own.sort(key=lambda one: not whole(one[0]))  # a module may be called mu: there all parameters are below 0/mu
        leaf, part = found[own[0][1]] if own else (None, None)
        fits = leaf is not None and jnp.shape(leaf) == jnp.shape(now) and jnp.issubdtype(now.dtype, jnp.inexact)
        return jnp.where(part == 0, before, now) if fits else now

    same = jax.tree.structure(new) == jax.tree.structure(old)  # type: ignore[operator]
    return task_params.map_leaves(keep, new, old) if same else new


def keep_masked(old: Tree, new: Tree, mask: Tree) -> Tree:
    r"""Takes the new parameters, but the old ones' bits where the mask is 0.

    .. math:: \theta' = \theta_{\text{old}} \text{ where } m = 0, \text{ else } \theta_{\text{new}}

    A masked update of -0.0 is not enough: XLA on CPU flushes denormal numbers to zero in every addition.

    Args:
      old: a tree of floating-point arrays, before the step.
      new: a tree like it, after the step.
      mask: a tree like them, each leaf a scalar or of the parameter's rank.

    Returns:
      The parameters, in the dtypes of `new`.

    Raises:
      ValueError: where a mask does not broadcast to its parameter, or the structures differ.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.transforms import keep_masked
      >>> keep_masked([jnp.array([1.0, 2.0])], [jnp.array([6.0, 7.0])], [jnp.array([0.0, 1.0])])
      [Array([1., 7.], dtype=float32)]
    """
    task_params.check_same("new", new, "old", old, shapes=False)
    task_params.check_scales("mask", mask, "old", old)
    return jax.tree.map(lambda o, n, m: jnp.where(m == 0, o, n), old, new, mask)


def rmsprop_tf1(*, decay: float = 0.9, epsilon: float = 1e-10) -> optax.GradientTransformationExtraArgs:
    r"""RMSProp as in TensorFlow 1: the mean square starts at one, and epsilon is inside the root. At unit rate.

    .. math::
        v \leftarrow \rho v + (1 - \rho) g^2, \qquad u = -\frac{g}{\sqrt{v + \epsilon}}, \qquad v_0 = 1

    Starting at one makes about the first `1 / (1 - decay)` steps much smaller than starting at zero, as Optax does.

    Args:
      decay: :math:`\rho`.
      epsilon: :math:`\epsilon`.

    Returns:
      The transformation, without momentum. Wrap it in `per_task` for a separate history per task.

    Raises:
      ValueError: where decay is below 0 or not below 1, or epsilon is below 0.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.transforms import rmsprop_tf1
      >>> optimizer = rmsprop_tf1()
      >>> updates, state = optimizer.update(jnp.array([0.5]), optimizer.init(jnp.zeros([1])))
      >>> print(f'{updates[0]:.5f}')  # -0.5 / sqrt(0.9 + 0.1 * 0.25)
      -0.51988

    Reference: Tieleman and Hinton, Lecture 6.5, RMSProp, 2012; the defaults are those of `tf.train.RMSPropOptimizer`.
    """
    decay, epsilon = real("decay", decay, least=0, below=1), real("epsilon", epsilon, least=0)
    return optax.rmsprop(1.0, decay=decay, eps=epsilon, initial_scale=1.0, eps_in_sqrt=True)


class PerTaskState(NamedTuple):
    """State of `per_task`. Leaves below an attribute `task_slots` have rows `[T, ...]`, one a task.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from cljax.transforms import PerTaskState, per_task
      >>> isinstance(per_task(optax.adam(1e-3)).init(jnp.zeros([2])), PerTaskState)
      True
    """

    task_slots: Tree


def per_task(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Gives every task an optimizer state of its own, kept from one visit to the next.

    The state is marked, not changed: the training loop stores one row a task for whatever lies below `task_slots`, and
    hands over the visited task's row, so that a step costs the same however many tasks there are.

    Args:
      inner: any transformation.

    Returns:
      The same transformation, its state wrapped in `PerTaskState`.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from cljax.transforms import per_task
      >>> optimizer = per_task(optax.sgd(1.0, momentum=0.9))
      >>> state = optimizer.init(jnp.zeros([2]))
      >>> type(state).__name__, state.task_slots[0].trace.tolist()
      ('PerTaskState', [0.0, 0.0])
    """
    inner = optax.with_extra_args_support(inner)

    def update(updates: Tree, state: PerTaskState, params: Tree | None = None, **extra: Any):
        updates, slots = inner.update(updates, state.task_slots, params, **extra)
        return updates, PerTaskState(slots)

    return optax.GradientTransformationExtraArgs(lambda params: PerTaskState(inner.init(params)), update)
