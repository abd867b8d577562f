"""What methods use of a network, and what they keep for each task."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from cljax.numbers import whole
from cljax.types import Tree


class Capacity(NamedTuple):
    """Parts of each layer's features, in [0, 1], after a task: trees like the ownership, of float32 scalars.

    Attributes:
      used: owned by this task or an earlier one.
      newly_used: owned by this task.
      free: neither, 1 - used.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax import metrics
      >>> used, new, free = metrics.capacity({'dense_0': jnp.array([0, 1, 1, 9])}, task=1)
      >>> float(used['dense_0']), float(new['dense_0']), float(free['dense_0'])
      (0.75, 0.5, 0.25)
    """

    used: Tree
    newly_used: Tree
    free: Tree


def feature_usage(owner: Tree, task: ArrayLike) -> Capacity:
    """How much of each layer is used, newly used and free after a task.

    Args:
      owner: a tree of int32 arrays: the task that made each feature (or weight), a larger number where it is free. As
        tasks are numbered by first visit, the final ownership tells of every earlier task too.
      task: int scalar.

    Returns:
      The parts; see `Capacity`.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.metrics import feature_usage
      >>> used, newly_used, free = feature_usage({'conv': jnp.array([0, 1, 1, 2, 9, 9, 9, 9])}, 1)
      >>> float(used['conv']), float(newly_used['conv']), float(free['conv'])
      (0.375, 0.25, 0.625)
    """
    task = jnp.asarray(task, jnp.int32)
    part = lambda rule: jax.tree.map(lambda leaf: jnp.mean(rule(jnp.asarray(leaf), task), dtype=jnp.float32), owner)
    return Capacity(*map(part, (jnp.less_equal, jnp.equal, jnp.greater)))


BITS = {
    "weight_mask": ("weights", 1),
    "soft_feature_mask": ("features", 32),
    "ternary_feature_mask": ("features", 2),
    "feature_normalization": ("features", 64),
}
"""What a task adds: per weight or per feature, how many bits."""


def overhead_bytes(kind: str, *, tasks: int, weights: int = 0, features: int = 0) -> int:
    """Bytes that a method keeps for its tasks, beyond the network itself. On the host.

    - `'weight_mask'`: 1 bit a weight and task (PackNet);
    - `'soft_feature_mask'`: one float32 a feature and task (HAT);
    - `'ternary_feature_mask'`: 2 bits a feature and task (TFM);
    - `'feature_normalization'`: two float32 a feature and task (TFM's scale and shift, on top of its masks). Where the
      first task's is the identity and not stored, count one task fewer.

    Args:
      kind: one of these.
      tasks: the number of tasks stored.
      weights: the network's number of weights, for `'weight_mask'`.
      features: its number of masked features, for the others.

    Returns:
      Whole bytes, rounded up.

    Raises:
      ValueError: for any other kind, or where the count that it needs is missing.

    Example:
      >>> from cljax.metrics import overhead_bytes
      >>> overhead_bytes('weight_mask', weights=54_547_712, tasks=4)  # AlexNet
      27273856
      >>> overhead_bytes('ternary_feature_mask', features=9_344, tasks=4)
      9344

    Reference: Masana et al., Ternary Feature Masks, 2021, section 2 and figure 1.
    """
    if kind not in BITS:
        raise ValueError(f"kind is '{kind}'; it must be one of {', '.join(BITS)}.")
    unit, bits = BITS[kind]
    tasks, count = whole("tasks", tasks), whole(unit, {"weights": weights, "features": features}[unit], most=2**63)
    if not count:
        raise ValueError(f"The overhead of '{kind}' grows with the number of {unit}; pass {unit}=... (positive).")
    return -(-count * bits * tasks // 8)
