r"""Importance: how much each parameter, or each unit, matters to what was learned.

Gradients are taken per example, by `vmap` of `grad`: the square of a batch's mean gradient is another quantity, smaller
by about the batch's size and zero where examples disagree. Importances are means over examples, so that batches of one
task are joined by their total weights. Use networks in evaluation mode: without dropout, with fixed statistics.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from cljax.losses import at_least_float32, known_labels
from cljax.numbers import INT32, check_dtype, check_shape, real, whole
from cljax.task_params import check_floating, check_same
from cljax.trees import varying
from cljax.types import AnyArray, Array, Tree


def _mean_over_examples(tree: Tree, weights: AnyArray) -> Tree:
    """The weighted mean over the leading axis of every leaf; 0 where all weights are 0."""
    share = _share(weights)
    return jax.tree.map(lambda leaf: _sum(share, leaf), tree)


def _sum(share: Array, leaf: Array) -> Array:
    """The sum of the leading axis, each entry by its share, in full precision on any device."""
    leaf = at_least_float32(leaf)
    return jnp.tensordot(share.astype(leaf.dtype), leaf, axes=1, precision=lax.Precision.HIGHEST)


def _share(weights: AnyArray) -> Array:
    """Each example's part of the total weight; 0 where that is 0."""
    weights = at_least_float32(weights)
    total = jnp.sum(weights)
    return weights / jnp.where(total > 0, total, 1)


def _mean_in_chunks(
    function: Callable[..., Tree], params: Tree, examples: tuple, weights: AnyArray, chunk: int | None
) -> Tree:
    """The weighted mean of `function(*example)`, like params, over examples, of which `chunk` are held at once."""
    size = len(weights)
    chunk = size if chunk is None else whole("chunk", chunk, least=1)
    if chunk >= size:
        return _like(params, _mean_over_examples(jax.vmap(function)(*examples), weights))
    share, *rows = _in_rows((_share(weights), *examples), chunk)

    def add(carry: Tree, parts: tuple) -> tuple[Tree, None]:
        share, *batch = parts
        values = jax.vmap(function)(*batch)
        return jax.tree.map(lambda sum, leaf: sum + _sum(share, leaf), carry, values), None

    zeros = jax.tree.map(lambda param: at_least_float32(jnp.zeros_like(param)), params)
    zeros = varying(zeros, share, *rows, *jax.tree.leaves(params))
    return _like(params, lax.scan(add, zeros, (share, *rows))[0])


def _like(params: Tree, tree: Tree) -> Tree:
    """A tree in its parameters' dtypes, whatever it was added up in."""
    return jax.tree.map(lambda leaf, param: leaf.astype(jnp.asarray(param).dtype), tree, params)


def _in_rows(parts: tuple, chunk: int) -> list[Array]:
    """Weights `[B]` and examples `[B, ...]` as rows `[n, chunk, ...]`; surplus places have weight 0."""
    weights, *examples = parts
    padding = -len(weights) % chunk
    padded = jnp.concatenate([weights, jnp.zeros(padding, weights.dtype)])
    wrapped = [jnp.concatenate([part, part[:padding]]) for part in examples]
    return [part.reshape(-1, chunk, *part.shape[1:]) for part in (padded, *wrapped)]


def _weighted(inputs: AnyArray, weights: AnyArray | None) -> tuple[Array, Array]:
    """Examples `[B, ...]` and weights; in place of one of weight 0, whose gradient may be NaN, one that counts."""
    inputs = jnp.asarray(inputs)
    if weights is None:
        return inputs, varying(jnp.ones(inputs.shape[:1], jnp.float32), inputs)
    check_shape("weights", weights, inputs.shape[0])
    weights = jnp.asarray(weights)
    counts = (weights != 0).reshape(-1, *(1,) * (inputs.ndim - 1))
    first = jnp.argmax(weights != 0)
    spare = jnp.where(weights[first] != 0, inputs[first], jnp.zeros_like(inputs[first]))
    return jnp.where(counts, inputs, spare), weights


def fisher(
    log_prob_fn: Callable[[Tree, Array], Array],
    params: Tree,
    inputs: AnyArray,
    labels: AnyArray | None = None,
    *,
    kind: Literal["exact", "sampled", "empirical", "batched"] = "exact",
    key: AnyArray | None = None,
    weights: AnyArray | None = None,
    chunk: int | None = None,
) -> Tree:
    r"""The diagonal of the Fisher information of a classifier.

    .. math::
        F_i = \frac{1}{B} \sum_b \mathbb{E}_{y \sim p(y | x_b)}
        \left( \frac{\partial \log p(y | x_b)}{\partial \theta_i} \right)^2

    Publications and libraries call four quantities by this name, and results depend on the choice:

    - `'exact'`: the expectation as written, over all classes;
    - `'sampled'`: one label drawn from the network's output for each example; equal to it on average;
    - `'empirical'`: the example's own label; it vanishes where the network is certain and right;
    - `'batched'`: the square of the mean gradient over a batch, own labels. Not a Fisher information; for comparison
      with code that takes it for one.

    Args:
      log_prob_fn: `(params, inputs [b, ...]) -> [b, K]`, normalised log-probabilities (logits make the result NaN), in
        evaluation mode. Called on batches of one example, but by `'batched'`.
      params: any tree of floating-point arrays.
      inputs: `[B, ...]`; those of weight 0 have no part, whatever they are.
      labels: `[B]` int; not used by `'exact'` and `'sampled'`. One that is no class makes the result NaN, unless its
        example has weight 0.
      kind: see above.
      key: PRNG key, for `'sampled'`.
      weights: `[B]` float, the examples' weights in the mean; None: 1.
      chunk: how many examples' gradients to hold in memory at once; None: all. The result is the same, but for
        `'batched'`: there it is the size of a batch, of which the mean is taken; None: all examples are one.

    Returns:
      A tree like `params`, not negative.

    Raises:
      ValueError: for any other kind, or where it lacks labels or key; for a chunk below 1; for leaves that are no
        floating-point arrays.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from cljax.importance import fisher
      >>> log_prob = lambda kernel, x: jax.nn.log_softmax(x @ kernel)
      >>> print(fisher(log_prob, jnp.zeros([1, 2]), jnp.array([[2.0]])))  # x^2 p (1 - p) for each class
      [[1. 1.]]

    Reference: Kirkpatrick et al., Overcoming Catastrophic Forgetting in Neural Networks, 2017; van de Ven, On the
    Computation of the Fisher Information in Continual Learning, 2025.
    """
    if kind not in ("exact", "sampled", "empirical", "batched"):
        raise ValueError(f"kind is '{kind}'; it must be 'exact', 'sampled', 'empirical' or 'batched'.")
    check_floating("params", params)
    inputs, weights = _weighted(inputs, weights)
    params = varying(params, inputs)

    def log_probs_of(params: Tree, inputs: Array) -> Array:
        logs = log_prob_fn(params, inputs)
        check_shape("What log_prob_fn returns", logs, len(inputs), "K")
        total = jax.nn.logsumexp(lax.stop_gradient(at_least_float32(logs)), axis=-1, keepdims=True)
        return logs * jnp.where(jnp.abs(total) < 0.1, 1, jnp.nan).astype(logs.dtype)

    def log_probs(params: Tree, example: Array) -> Array:
        return log_probs_of(params, example[None])[0]

    def square(tree: Tree) -> Tree:
        return jax.tree.map(lambda leaf: jnp.square(at_least_float32(leaf)), tree)

    def at_label(example: Array, label: Array) -> Tree:
        return square(jax.grad(lambda params: chosen(log_probs(params, example), label))(params))

    def chosen(logs: Array, label: Array) -> Array:
        place, known = known_labels(label, logs.shape[-1])
        return logs[place] * jnp.where(known, 1.0, jnp.nan).astype(logs.dtype)

    def at_sample(example: Array, example_key: Array) -> Tree:
        logs, pull_back = jax.vjp(lambda params: log_probs(params, example), params)
        label = jax.random.categorical(example_key, logs)
        return square(pull_back(jax.nn.one_hot(label, len(logs), dtype=logs.dtype))[0])

    def expected(example: Array) -> Tree:
        logs, pull_back = jax.vjp(lambda params: log_probs(params, example), params)

        def add(total: Tree, one: tuple[Array, Array]) -> tuple[Tree, None]:
            probability, direction = one
            squares = square(pull_back(direction)[0])
            return jax.tree.map(lambda sum, s: sum + probability.astype(s.dtype) * s, total, squares), None

        classes = jnp.exp(logs), varying(jnp.eye(len(logs), dtype=logs.dtype), logs)
        zeros = jax.tree.map(lambda param: at_least_float32(jnp.zeros_like(param)), params)
        return lax.scan(add, varying(zeros, logs), classes)[0]

    if kind == "exact":
        return _mean_in_chunks(expected, params, (inputs,), weights, chunk)
    if kind == "sampled":
        if key is None:
            raise ValueError("kind 'sampled' draws labels from the network's output; pass key=jax.random.key(...).")
        keys = jax.random.split(key, len(inputs))
        return _mean_in_chunks(at_sample, params, (inputs, keys), weights, chunk)
    if labels is None:
        raise ValueError(f"kind '{kind}' takes gradients at the examples' own labels; pass labels, [B] int.")
    labels = labels if hasattr(labels, "dtype") else jnp.asarray(labels)
    check_shape("labels", labels, inputs.shape[0])
    check_dtype("labels", labels, "int")
    places, known = known_labels(labels, INT32)
    labels = jnp.where(weights == 0, 0, jnp.where(known, places, -1))
    if kind == "empirical":
        return _mean_in_chunks(at_label, params, (inputs, labels), weights, chunk)

    def of_batch(weights: Array, inputs: Array, labels: Array) -> Tree:
        def mean_log_prob(params: Tree) -> Array:
            return _mean_over_examples(jax.vmap(chosen)(log_probs_of(params, inputs), labels), weights)

        return square(jax.grad(mean_log_prob)(params))

    chunk = len(inputs) if chunk is None else min(whole("chunk", chunk, least=1), len(inputs))
    batches = _in_rows((weights, inputs, labels), chunk)
    return _mean_in_chunks(of_batch, params, tuple(batches), jnp.sum(batches[0], axis=1), 1)


def memory_aware(
    output_fn: Callable[[Tree, Array], Array],
    params: Tree,
    inputs: AnyArray,
    *,
    weights: AnyArray | None = None,
    chunk: int | None = None,
) -> Tree:
    r"""Memory-aware synapses: how strongly each parameter moves the length of the network's output. Needs no labels.

    .. math:: \Omega_i = \frac{1}{B} \sum_b \left| \frac{\partial \|f(x_b)\|_2^2}{\partial \theta_i} \right|

    Args:
      output_fn: `(params, inputs [b, ...]) -> [b, ...]`, the logits; called on batches of one example.
      params: any tree of floating-point arrays.
      inputs: `[B, ...]`; those of weight 0 have no part, whatever they are.
      weights: `[B]` float, the examples' weights in the mean; None: 1.
      chunk: how many examples' gradients to hold in memory at once; None: all.

    Returns:
      A tree like `params`, not negative.

    Raises:
      ValueError: for leaves that are no floating-point arrays; for a chunk below 1.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.importance import memory_aware
      >>> print(memory_aware(lambda w, x: x @ w, jnp.array([3.0]), jnp.array([[2.0], [-2.0]])))  # 2 w x^2
      [24.]

    Reference: Aljundi et al., Memory Aware Synapses, 2018, section 4.1.
    """
    check_floating("params", params)
    inputs, weights = _weighted(inputs, weights)
    params = varying(params, inputs)

    def sensitivity(example: Array) -> Tree:
        gradient = jax.grad(lambda params: jnp.sum(jnp.square(output_fn(params, example[None]))))(params)
        return jax.tree.map(lambda leaf: jnp.abs(at_least_float32(leaf)), gradient)

    return _mean_in_chunks(sensitivity, params, (inputs,), weights, chunk)


def path_integral(total: Tree, gradients: Tree, before: Tree, after: Tree) -> Tree:
    r"""One step's share in the fall of the loss, added up along the path of training.

    .. math:: \omega_i \leftarrow \omega_i - g_i (\theta'_i - \theta_i)

    Args:
      total: a tree like the parameters, :math:`\omega`; zeros at a task's begin, float32 where they are of half
        precision, in which a sum of many steps stands still.
      gradients: of the task's loss alone, without a penalty, at `before`.
      before: the parameters before the step.
      after: and after it.

    Returns:
      The new total. Summed over parameters and steps it is, to first order, the loss that training took away.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.importance import path_integral
      >>> path_integral(jnp.zeros(1), jnp.array([2.0]), jnp.array([1.0]), jnp.array([0.5])).tolist()
      [1.0]

    Reference: Zenke et al., Continual Learning Through Synaptic Intelligence, 2017, equation 3.
    """
    for name, tree in (("gradients", gradients), ("before", before), ("after", after)):
        check_same(name, tree, "total", total)

    def step(total: Array, gradient: Array, old: Array, new: Array) -> Array:
        return total - (at_least_float32(gradient) * at_least_float32(new - old)).astype(jnp.result_type(total))

    return jax.tree.map(step, total, gradients, before, after)


def path_importance(total: Tree, start: Tree, end: Tree, *, damping: ArrayLike = 0.1) -> Tree:
    r"""A task's importances by synaptic intelligence, from its path integral.

    .. math:: \Omega_i = \frac{\max(\omega_i, 0)}{(\theta^{\mathrm{end}}_i - \theta^{\mathrm{start}}_i)^2 + \xi}

    Add them to those of earlier tasks. The maximum keeps the penalty from rewarding change.

    Args:
      total: a tree like the parameters, :math:`\omega` as of `path_integral`.
      start: the parameters at the task's begin.
      end: and at its end.
      damping: :math:`\xi`, positive.

    Returns:
      A tree like the parameters, not negative.

    Raises:
      ValueError: damping that is not a positive number.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.importance import path_importance
      >>> path_importance(jnp.array([1.0, -1.0]), jnp.zeros(2), jnp.array([0.5, 0.5]), damping=0.25).tolist()
      [2.0, 0.0]

    Reference: Zenke et al., Continual Learning Through Synaptic Intelligence, 2017, equation 5.
    """
    for name, tree in (("start", start), ("end", end)):
        check_same(name, tree, "total", total)
    damping = real("damping", damping, above=0)
    damp = lambda squared: squared + jnp.asarray(damping).astype(squared.dtype)

    def of_leaf(w: Array, a: Array, b: Array) -> Array:
        moved = (b - a).astype(jnp.result_type(w))
        return (jnp.maximum(w, 0) / damp(jnp.square(moved))).astype(jnp.result_type(b))

    return jax.tree.map(of_leaf, total, start, end)


def moment_matching(
    means: Tree, weights: AnyArray, precisions: Tree | None = None, *, otherwise: Tree | None = None
) -> Tree:
    r"""One Gaussian for several tasks' posteriors: incremental moment matching.

    .. math::
        \text{mean:} \quad \theta^*_i = \frac{\sum_k \alpha_k \theta_{k, i}}{\sum_k \alpha_k}, \qquad
        \text{mode:} \quad \theta^*_i = \frac{\sum_k \alpha_k F_{k, i} \theta_{k, i}}{\sum_k \alpha_k F_{k, i}}

    Args:
      means: a tree of `[T, ...]`, each task's parameters.
      weights: `[T]` float, :math:`\alpha`, at least 0; they need not add up to 1.
      precisions: a tree like means, each task's Fisher information, at least 0: the mode. None: the mean.
      otherwise: a tree of `[...]`, the value where no task has any precision; None: 0.

    Returns:
      A tree of `[...]`. Of a single task, its parameters by bits, wherever its precision is above 0.

    Raises:
      ValueError: for leaves that are no floating-point arrays, trees that differ, or weights of other tasks.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.importance import moment_matching
      >>> means, precisions = jnp.array([[0.0, 1.0], [4.0, 3.0]]), jnp.array([[3.0, 0.0], [1.0, 5.0]])
      >>> moment_matching(means, jnp.ones(2)).tolist(), moment_matching(means, jnp.ones(2), precisions).tolist()
      ([2.0, 2.0], [1.0, 3.0])

    Reference: Lee et al., Overcoming Catastrophic Forgetting by Incremental Moment Matching, 2017, equations 3 and 8.
    """
    check_floating("means", means)
    precisions = jax.tree.map(jnp.ones_like, means) if precisions is None else precisions
    otherwise = jax.tree.map(lambda rows: jnp.zeros_like(rows[0]), means) if otherwise is None else otherwise
    check_same("precisions", precisions, "means", means)

    weights = jnp.asarray(weights)
    for rows in jax.tree.leaves(means):
        check_shape("weights", weights, len(rows))

    def merge(rows: Array, precision: Array, other: Array) -> Array:
        share = weights.astype(rows.dtype).reshape(-1, *(1,) * (rows.ndim - 1)) * precision
        largest = jnp.max(
            share, axis=0, keepdims=True
        )  # divided by it, the least precision does not vanish in a product
        share = share / jnp.where(largest > 0, largest, 1)
        total = jnp.sum(share, axis=0)
        return jnp.where(total > 0, jnp.sum(share * rows, axis=0) / jnp.where(total > 0, total, 1), other)

    return jax.tree.map(merge, means, precisions, otherwise)


def unit_activity(activations: Tree, *, weights: AnyArray | None = None) -> Tree:
    r"""The average activity of units, over examples and over space.

    .. math:: a_c = \frac{1}{B S} \sum_{b, s} |h_{b, s, c}|

    Args:
      activations: a tree of `[B, ..., C]`, after the non-linearity, in evaluation mode.
      weights: `[B]` float, the examples' weights in the mean, of which one of 0 has no part; None: 1.

    Returns:
      A tree of `[C]`.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.importance import unit_activity
      >>> unit_activity({'conv': jnp.array([[[1.0, 0.0], [3.0, 0.0]], [[-4.0, 0.0], [0.0, 2.0]]])})['conv'].tolist()
      [2.0, 0.5]

    Reference: Golkar et al., Continual Learning via Neural Pruning, 2019, section 2.2.
    """

    def average(values: Array) -> Array:
        counted, own = _weighted(values, weights)
        per_example = jnp.mean(jnp.abs(counted), axis=tuple(range(1, counted.ndim - 1)))
        return _sum(_share(own), per_example).astype(per_example.dtype)

    return jax.tree.map(average, activations)
