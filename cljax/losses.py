r"""Losses: classification, distillation of responses, attention and features, and penalties on parameters.

Those of examples return `[B]`, one value an example, in nats: take a mean weighted by the batch's weights. Those of
parameters return a scalar. None has a strength: multiply. Teachers are constants: no gradient flows into them.
"""

from __future__ import annotations

import math
from functools import reduce
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from cljax.numbers import check_dtype, check_option, check_shape, real
from cljax.task_params import check_floating, check_same, check_scales
from cljax.types import AnyArray, Array, Tree

Distance = Literal["l1", "l2"]


def _classes(classes: ArrayLike | None, logits: AnyArray) -> Array:
    """`[B, K]` bool from None, `[K]` or `[B, K]`."""
    check_dtype("logits", logits, "float")
    classes = jnp.asarray(True if classes is None else classes)
    check_dtype("classes", classes, "bool")
    if classes.ndim:
        check_shape("classes", classes, ..., logits.shape[-1])
    return jnp.broadcast_to(classes, logits.shape)


def mask_logits(logits: AnyArray, classes: ArrayLike) -> Array:
    """Sets the logits of classes that do not exist to the least finite number, so that softmax gives them exactly 0.

    No gradient flows into a masked logit, be it infinite or NaN.

    Args:
      logits: `[..., K]`.
      classes: bool `[K]` or `[..., K]`, the classes there are.

    Returns:
      `[..., K]`, of the logits' dtype.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from cljax.losses import mask_logits
      >>> jax.nn.softmax(mask_logits(jnp.array([1.0, 1.0, 9.0]), jnp.array([True, True, False]))).tolist()
      [0.5, 0.5, 0.0]
    """
    logits = jnp.asarray(logits)
    return jnp.where(_classes(classes, logits), logits, jnp.finfo(logits.dtype).min)


def cross_entropy(
    logits: AnyArray, labels: AnyArray, *, classes: ArrayLike | None = None, single_label: ArrayLike | None = None
) -> Array:
    r"""Cross-entropy of one label, or the sum of binary cross-entropies of several.

    .. math::
        \text{int labels:} \quad -\log \frac{e^{z_y}}{\sum_{k \in C} e^{z_k}}, \qquad
        \text{float labels:} \quad -\sum_{k \in C} y_k \log \sigma(z_k) + (1 - y_k) \log (1 - \sigma(z_k))

    Args:
      logits: `[B, K]`.
      labels: `[B]` int, a class each, which must be among `classes`; or `[B, K]` float in [0, 1], multi-label. Where
        they are not, the value is NaN and the gradient 0: an example of weight 0 harms no mean (see `weighted_mean`).
      classes: bool `[K]` or `[B, K]`, the set C of classes there are; None: all. The others have no part in the value,
        and a gradient of exactly 0.
      single_label: bool scalar or `[B]`, which examples' float labels are the probabilities of a single one (one-hot,
        say), whose cross-entropy is the first one; None: none are. Where those among `classes` do not add up to 1, it
        is NaN, as of a class that is not among them.

    Returns:
      `[B]`, nats.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.losses import cross_entropy
      >>> logits = jnp.array([[0.0, 0.0, 5.0]])
      >>> print(cross_entropy(logits, jnp.array([1]), classes=jnp.array([True, True, False])))  # log 2
      [0.6931472]
    """
    check_shape("logits", logits, "B", "K")
    logits, labels = jnp.asarray(logits), labels if hasattr(labels, "dtype") else jnp.asarray(labels)
    valid, whole = _classes(classes, logits), jnp.issubdtype(labels.dtype, jnp.integer)
    if labels.shape != (needed := logits.shape[:1] if whole else logits.shape):
        kind = "a class each, one-hot ones as floating point" if whole else "of several labels, a class each as int"
        raise ValueError(f"labels has shape {labels.shape}, but must be {list(needed)} as {labels.dtype}: {kind}.")
    if whole:
        logits = mask_logits(logits, valid)
        places, known = known_labels(labels, logits.shape[-1])
        every = jnp.arange(logits.shape[-1], dtype=places.dtype)
        own = valid & known[:, None] & (places[:, None] == every[None])
        chosen = jnp.sum(jnp.where(own, logits, 0), axis=-1)  # an index, and its gradient, are more programs on a GPU
        return jnp.where(jnp.any(own, axis=-1), jax.nn.logsumexp(logits, axis=-1) - chosen, jnp.nan)
    labels = jnp.where(valid, labels.astype(logits.dtype), 0)
    known = jnp.all(jnp.abs(labels - 0.5) <= 0.5 + _SLACK, axis=-1)
    labels = jnp.where(known[:, None], labels, 0)  # NaN times a gradient of 0 would be NaN
    values = _binary(logits, labels, valid)
    if single_label is not None:
        logs = jax.nn.log_softmax(mask_logits(logits, valid), axis=-1)
        values = jnp.where(single_label, -jnp.sum(labels * jnp.where(valid, logs, 0), axis=-1), values)
        known &= ~jnp.asarray(single_label) | (jnp.abs(jnp.sum(at_least_float32(labels), axis=-1) - 1) <= 10 * _SLACK)
    return jnp.where(known, values, jnp.nan)


_SLACK = 1e-3
"""How far a multi-label target may be outside [0, 1] by rounding, in half precision too."""


def weighted_mean(values: AnyArray, weights: AnyArray) -> Array:
    r"""The mean over examples of their values, by their weights; an example of weight 0 has no part, be it NaN.

    .. math:: \frac{\sum_{b: w_b \ne 0} w_b v_b}{\sum_b w_b}

    Args:
      values: `[B]`.
      weights: `[B]`, not all of them 0.

    Returns:
      A scalar, of the values' dtype, float32 where they are whole numbers or bool; NaN where all weights are 0.

    Raises:
      ValueError: of other shapes, such as values of all tasks, `[T, B]`.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.losses import weighted_mean
      >>> print(weighted_mean(jnp.array([1.0, 3.0, jnp.nan]), jnp.array([1.0, 1.0, 0.0])))
      2.0
    """
    values, weights = jnp.asarray(values), jnp.asarray(weights)
    check_shape("values", values, *weights.shape)
    values = values if jnp.issubdtype(values.dtype, jnp.floating) else values.astype(jnp.float32)
    wide = at_least_float32(values)
    weights = weights.astype(wide.dtype)
    parts = jnp.where(weights == 0, 0, wide * weights)
    return (jnp.sum(parts) / jnp.sum(weights)).astype(values.dtype)


def at_least_float32(values: AnyArray) -> Array:
    """Numbers of half precision as float32, in which sums of many neither overflow nor stand still; others as they are.

    Args:
      values: floating point, any shape.

    Returns:
      Of the same shape.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.losses import at_least_float32
      >>> at_least_float32(jnp.ones(2, jnp.bfloat16)).dtype
      dtype('float32')
    """
    values = jnp.asarray(values)
    return values.astype(jnp.float32) if values.dtype.itemsize < 4 else values


def known_labels(labels: ArrayLike, count: int) -> tuple[Array, Array]:
    """Class indices that can be indexed with, and which of them are true.

    Args:
      labels: int, any shape.
      count: K, the number of classes.

    Returns:
      int32, 0 in place of what is no class; and bool, whether it is one. Both of the labels' shape.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.losses import known_labels
      >>> places, known = known_labels(jnp.array([2, 3, -1]), 3)
      >>> places.tolist(), known.tolist()
      ([2, 0, 0], [True, False, False])
    """
    exact: Any = labels if hasattr(labels, "dtype") else np.asarray(labels)
    wide = jnp.asarray(exact).astype(jnp.int32)
    exact = exact if exact.dtype.itemsize > 4 else wide  # a large number must not become a small one by the cast
    known = jnp.asarray((exact >= 0) & (exact < count))
    return jnp.where(known, wide, 0), known


def _binary(logits: AnyArray, targets: AnyArray, valid: AnyArray) -> Array:
    """Sum over valid classes of binary cross-entropies, `[B]`; exact for large logits of either sign."""
    logits = jnp.where(valid, logits, 0)
    terms = targets * jax.nn.softplus(-logits) + (1 - targets) * jax.nn.softplus(logits)
    return jnp.sum(jnp.where(valid, terms, 0), axis=-1)


def distillation(
    logits: AnyArray, teacher_logits: AnyArray, *, temperature: ArrayLike, classes: ArrayLike | None = None
) -> Array:
    r"""Knowledge distillation: cross-entropy of softened outputs with a teacher's.

    .. math:: -\sum_k p'_k \log q'_k, \qquad p' = \mathrm{softmax}(t / T), \quad q' = \mathrm{softmax}(z / T)

    It is not multiplied by the squared temperature, and it is the cross-entropy, not the divergence: its least value is
    the teacher's entropy. To a teacher known by its probabilities p, pass :math:`\log p`.

    Args:
      logits: `[B, K]`.
      teacher_logits: `[B, K]`, a constant.
      temperature: T, a positive scalar; where a traced one is not, the value is NaN.
      classes: bool `[K]` or `[B, K]`, the classes there are; None: all.

    Returns:
      `[B]`, nats.

    Raises:
      ValueError: a temperature that is not a positive number.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.losses import distillation
      >>> teacher, student = jnp.array([[2.0, 1.0, 0.0]]), jnp.array([[1.0, 1.0, 1.0]])
      >>> print(distillation(student, teacher, temperature=2.0))  # a uniform student: log 3
      [1.0986123]

    Reference: Li and Hoiem, Learning without Forgetting, 2017, equations 2 and 3.
    """
    check_shape("logits", logits, "B", "K")
    check_shape("teacher_logits", teacher_logits, *logits.shape)
    logits = jnp.asarray(logits)
    valid, temperature = _classes(classes, logits), _temperature(temperature, logits)
    target = jax.nn.softmax(mask_logits(_constant(teacher_logits, logits) / temperature, valid), axis=-1)
    output = jax.nn.log_softmax(mask_logits(logits / temperature, valid), axis=-1)
    return -jnp.sum(target * jnp.where(valid, output, 0), axis=-1)


def _temperature(temperature: ArrayLike, logits: AnyArray) -> Array:
    value = jnp.asarray(real("temperature", temperature, above=0), logits.dtype)
    return jnp.where(value > 0, value, jnp.nan)


def _constant(teacher: AnyArray, like: AnyArray) -> Array:
    return jax.lax.stop_gradient(jnp.asarray(teacher)).astype(like.dtype)


def sigmoid_distillation(
    logits: AnyArray, teacher_logits: AnyArray, *, temperature: ArrayLike = 1.0, classes: ArrayLike | None = None
) -> Array:
    r"""Distillation of independent outputs: the sum of binary cross-entropies with a teacher's.

    .. math:: -\sum_k p_k \log q_k + (1 - p_k) \log (1 - q_k), \qquad p = \sigma(t / T), \quad q = \sigma(z / T)

    Args:
      logits: `[B, K]`.
      teacher_logits: `[B, K]`, a constant.
      temperature: T, a positive scalar, as of `distillation`; of multi-label outputs it softens the pair (p, 1 - p).
      classes: bool `[K]` or `[B, K]`, the classes there are; None: all.

    Returns:
      `[B]`, nats.

    Raises:
      ValueError: as of `distillation`.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.losses import sigmoid_distillation
      >>> print(sigmoid_distillation(jnp.zeros([1, 2]), jnp.array([[3.0, -1.0]])))  # 2 log 2
      [1.3862944]

    Reference: Rebuffi et al., iCaRL, 2017, algorithm 3; Dhar et al., Learning without Memorizing, 2019, equation 1,
    whose second term is left out in print.
    """
    check_shape("logits", logits, "B", "K")
    check_shape("teacher_logits", teacher_logits, *logits.shape)
    logits = jnp.asarray(logits)
    valid, temperature = _classes(classes, logits), _temperature(temperature, logits)
    targets = jax.nn.sigmoid(_constant(teacher_logits, logits) / temperature)
    return _binary(logits / temperature, jnp.where(valid, targets, 0), valid)


def _absolute(values: AnyArray) -> Array:
    """Absolute values with gradient 0 at 0, where that of `jnp.abs` is 1."""
    return jnp.asarray(values) * jax.lax.stop_gradient(jnp.sign(values))


def _absolute_difference(rows: AnyArray, others: AnyArray, rounding: AnyArray) -> Array:
    """The absolute difference of `[B, K]`; 0, and its gradient too, where it is no larger than the rounding is.

    Two programs for the same number seldom agree in its last bits, and the absolute's gradient is of size 1 however
    small the difference: a student that is its teacher would be pushed about by rounding.
    """
    difference = jnp.asarray(rows) - others
    equal = jnp.abs(difference) <= rounding
    return difference * jax.lax.stop_gradient(jnp.where(equal, 0, jnp.sign(difference)))


def _larger(rows: AnyArray, others: AnyArray) -> tuple[Array, float]:
    """The larger of two rows' absolute numbers, and the unit in the last place of 1 in their dtype."""
    return jnp.maximum(jnp.abs(rows), jnp.abs(others)), float(jnp.finfo(rows.dtype).eps)


def _probabilities(logits: AnyArray, teacher_logits: AnyArray, classes: ArrayLike | None) -> tuple[Array, Array]:
    """The student's and the teacher's, `[B, K]`."""
    check_shape("logits", logits, "B", "K")
    check_shape("teacher_logits", teacher_logits, *logits.shape)
    logits = jnp.asarray(logits)
    valid, teacher_logits = _classes(classes, logits), _constant(teacher_logits, logits)
    student, teacher = (jax.nn.softmax(mask_logits(each, valid), axis=-1) for each in (logits, teacher_logits))
    return student, teacher


def l1_response(logits: AnyArray, teacher_logits: AnyArray, *, classes: ArrayLike | None = None) -> Array:
    r"""The absolute change of the outputs' probabilities.

    .. math:: \sum_k |q_k - p_k|, \qquad p = \mathrm{softmax}(t), \quad q = \mathrm{softmax}(z)

    Where the two are equal up to rounding, value and gradient are 0: within 64 units in the last place of the larger
    one, times the largest logit where that is above 1, as a logit's rounding is a factor here; of 16-bit numbers within
    2 units, or as many as the largest logit is. Logits of probability 0, infinite ones too, are not among these.

    Args:
      logits: `[B, K]`.
      teacher_logits: `[B, K]`, a constant.
      classes: bool `[K]` or `[B, K]`, the classes there are; None: all.

    Returns:
      `[B]`, in [0, 2].

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.losses import l1_response
      >>> print(l1_response(jnp.array([[0.0, 0.0]]), jnp.array([[0.0, 50.0]])))  # |1/2 - 0| + |1/2 - 1|
      [1.]

    Reference: Li and Hoiem, Learning without Forgetting, 2017, section 4.2.
    """
    rows = _probabilities(logits, teacher_logits, classes)
    both = jnp.asarray(logits), _constant(teacher_logits, rows[0])
    exponents = (jnp.where(row == 0, 0, each) for row, each in zip(rows, both, strict=True))  # exp(-inf) is exact
    (size, unit), largest = _larger(*rows), jnp.max(_larger(*exponents)[0], axis=-1, keepdims=True)
    near = 64 * jnp.maximum(largest, 1) if unit < 1e-6 else jnp.maximum(largest, 2)
    return jnp.sum(_absolute_difference(*rows, jax.lax.stop_gradient(near * unit * size)), axis=-1)


def l2_response(logits: AnyArray, teacher_logits: AnyArray, *, classes: ArrayLike | None = None) -> Array:
    r"""Half the squared change of the outputs' probabilities.

    .. math:: \tfrac{1}{2} \sum_k (q_k - p_k)^2, \qquad p = \mathrm{softmax}(t), \quad q = \mathrm{softmax}(z)

    Args:
      logits: `[B, K]`.
      teacher_logits: `[B, K]`, a constant.
      classes: bool `[K]` or `[B, K]`, the classes there are; None: all.

    Returns:
      `[B]`, in [0, 1].

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.losses import l2_response
      >>> print(l2_response(jnp.array([[0.0, 0.0]]), jnp.array([[0.0, 50.0]])))  # (1/4 + 1/4) / 2
      [0.25]

    Reference: Li and Hoiem, Learning without Forgetting, 2017, section 4.2.
    """
    student, teacher = _probabilities(logits, teacher_logits, classes)
    return 0.5 * jnp.sum((student - teacher) ** 2, axis=-1)


def attention_distillation(map: AnyArray, teacher_map: AnyArray, *, distance: Distance = "l1") -> Array:
    r"""The distance of two attention maps, each normalised to unit length.

    .. math:: \text{l1:} \quad \sum_j \left| u_j - u'_j \right|, \qquad \text{l2:} \quad \sum_j (u_j - u'_j)^2, \qquad
        u = \frac{Q}{\|Q\|_2}

    Where either map is zero everywhere (its rectifier let nothing through) there is no direction to compare: the value
    and the gradient are 0. So they are, of 'l1', at positions where the two are equal up to rounding: as their numbers
    are sums, of which terms may cancel, within 64 units in the last place of the row's largest; of 16-bit numbers, of
    which that would be half, within half a unit of it, or two of the number.

    Args:
      map: `[B, ...]`, the student's, differentiable.
      teacher_map: of the same shape, a constant.
      distance: 'l1' or 'l2', which is squared.

    Returns:
      `[B]`; unchanged by positive scaling of either map.

    Raises:
      ValueError: for an unknown distance.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.losses import attention_distillation
      >>> print(attention_distillation(jnp.array([[3.0, 4.0]]), jnp.array([[0.0, 1.0]])))  # |0.6 - 0| + |0.8 - 1|
      [0.8]

    Reference: Dhar et al., Learning without Memorizing, 2019, equation 6, and the text below it for 'l2'.
    """
    check_option("The distance", distance, Distance)
    check_shape("teacher_map", teacher_map, *map.shape)
    check_dtype("map", map, "float")
    size = math.prod(map.shape[1:])
    map = jnp.asarray(map)
    rows, teacher_rows = (part.reshape(len(part), size) for part in (map, _constant(teacher_map, map)))
    alive = jnp.any(rows != 0, axis=-1) & jnp.any(teacher_rows != 0, axis=-1)
    units = unit_length(rows), unit_length(teacher_rows)
    if distance == "l2":
        return jnp.where(alive, jnp.sum((units[0] - units[1]) ** 2, axis=-1), 0)
    size, unit = _larger(*units)
    largest = jnp.max(size, axis=-1, keepdims=True, initial=0)
    near = 64 * largest if unit < 1e-6 else jnp.maximum(2 * size, largest / 2)
    return jnp.where(alive, jnp.sum(_absolute_difference(*units, jax.lax.stop_gradient(unit * near)), axis=-1), 0)


def unit_length(rows: AnyArray) -> Array:
    """Rows `[..., D]` scaled to unit length; zero rows stay zero, with a zero gradient. No square over- or underflows.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.losses import unit_length
      >>> print(unit_length(jnp.array([[3e30, 4e30], [0.0, 0.0]])))
      [[0.6 0.8]
       [0.  0. ]]
    """
    rows = jnp.asarray(rows)
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(rows), axis=-1, keepdims=True))
    alive = largest != 0  # NaN stays NaN
    rows = jnp.where(alive, rows / jnp.where(alive, largest, 1), 0)
    wide = at_least_float32(rows)
    return (wide / jnp.sqrt(jnp.where(alive, jnp.sum(wide**2, axis=-1, keepdims=True), 1))).astype(rows.dtype)


def feature_distillation(features: AnyArray, teacher_features: AnyArray) -> Array:
    r"""The squared distance of features from a teacher's.

    .. math:: \|f - f'\|_2^2

    There is no factor of one half: multiply by half the strength where a paper has it (less-forgetting learning).

    Args:
      features: `[B, ...]`, differentiable.
      teacher_features: of the same shape, a constant.

    Returns:
      `[B]`.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.losses import feature_distillation
      >>> print(feature_distillation(jnp.array([[3.0, 4.0]]), jnp.zeros([1, 2])))
      [25.]

    Reference: Jung et al., Less-Forgetting Learning in Deep Neural Networks, 2016, equation 3.
    """
    check_shape("teacher_features", teacher_features, *features.shape)
    check_dtype("features", features, "float")
    return jnp.sum((features - _constant(teacher_features, features)) ** 2, axis=tuple(range(1, features.ndim)))


def quadratic_penalty(params: Tree, anchor: Tree, importance: Tree | None = None) -> Array:
    r"""The weighted squared distance of parameters from an anchor.

    .. math:: \sum_i \Omega_i (\theta_i - \theta^*_i)^2

    There is no factor of one half: multiply by half the strength where a paper has it (elastic weight consolidation),
    by the whole where not (synaptic intelligence, memory-aware synapses).

    Args:
      params: any tree of floating-point arrays.
      anchor: a tree like it, :math:`\theta^*`.
      importance: a tree like it, :math:`\Omega`, each leaf of the parameter's shape or a scalar; None: 1.

    Returns:
      A scalar, of half-precision parameters float32; 0 for an empty tree.

    Raises:
      ValueError: for leaves that are no floating-point arrays, or trees that differ.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.losses import quadratic_penalty
      >>> quadratic_penalty({'w': jnp.array([1.0, 2.0])}, {'w': jnp.array([0.0, 0.0])}, {'w': jnp.array([1.0, 0.5])})
      Array(3., dtype=float32)

    Reference: Kirkpatrick et al., Overcoming Catastrophic Forgetting in Neural Networks, 2017, equation 3.
    """
    check_same("anchor", anchor, "params", params)
    check_floating("params", params)
    squared = lambda p, a: (at_least_float32(p) - at_least_float32(a)) ** 2
    return _weighted_sum(jax.tree.map(squared, params, anchor), importance)


def _weighted_sum(tree: Tree, weights: Tree | None) -> Array:
    tree = jax.tree.map(at_least_float32, tree)
    if weights is not None:
        check_scales("weight", weights, "params", tree)
        with jax.numpy_dtype_promotion("standard"):  # weights of half precision, or of more than the parameters
            tree = jax.tree.map(lambda value, weight: weight * value, tree, weights)
    sums = [jnp.sum(leaf) for leaf in jax.tree.leaves(tree)]
    return reduce(jnp.add, sums) if sums else jnp.float32(0)


def l1_sparsity(params: Tree, weights: Tree | None = None) -> Array:
    r"""The weighted sum of absolute values.

    .. math:: \sum_i \alpha_i |\theta_i|

    Its gradient at 0 is 0. Like any term of a loss it moves frozen weights unless they are masked.

    Args:
      params: any tree of floating-point arrays.
      weights: a tree like it, :math:`\alpha`, each leaf of the parameter's shape or a scalar (0 for biases, a layer's
        own strength, a mask of free weights); None: 1.

    Returns:
      A scalar, of half-precision parameters float32; 0 for an empty tree.

    Raises:
      ValueError: for leaves that are no floating-point arrays, or weights that do not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.losses import l1_sparsity
      >>> l1_sparsity({'kernel': jnp.array([1.0, -2.0]), 'bias': jnp.array([5.0])}, {'kernel': 0.5, 'bias': 0.0})
      Array(1.5, dtype=float32)

    Reference: Golkar et al., Continual Learning via Neural Pruning, 2019, section 2.2.
    """
    check_floating("params", params)
    return _weighted_sum(jax.tree.map(_absolute, params), weights)
