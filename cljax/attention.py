r"""Attention: where the last feature maps are active, or see a class. Differentiable, maps and importances both.

A map is what `losses.attention_distillation` compares; it normalises, these functions do not.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from cljax.losses import known_labels
from cljax.numbers import check_dtype, check_shape
from cljax.types import AnyArray, Array


def grad_cam(decode: Callable[[Array], Array], maps: AnyArray, class_index: AnyArray) -> Array:
    r"""Gradient-weighted class activation maps of any head.

    $$ Q_{hw} = \mathrm{ReLU} \Big( \sum_k \alpha_k A_{hwk} \Big), \qquad
    \alpha_k = \frac{1}{HW} \sum_{hw} \frac{\partial z_c}{\partial A_{hwk}} $$

    It is differentiable in the maps and in whatever `decode` closes over, through the importances too: their gradient
    is of second order, and where the head is linear that costs next to nothing.

    Args:
      decode: `maps -> logits [B, K]`, each example's logits depending on its own maps only (evaluation mode).
      maps: `[B, H, W, C]`, floating point.
      class_index: `[B]` int32, the class c of each example.

    Returns:
      `[B, H, W]`, at least 0, not normalised; NaN where c is no class; all zero where no position speaks for the class.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.attention import grad_cam
      >>> maps = jnp.array([[[[1.0, 0.0]], [[0.0, 3.0]]]])
      >>> head = lambda maps: maps.mean((1, 2)) @ jnp.array([[2.0, 0.0], [-1.0, 4.0]])
      >>> grad_cam(head, maps, jnp.array([1]))  # half the kernel's column, (0, 2): the second position sees class 1
      Array([[[0.],
              [6.]]], dtype=float32)

    Reference: Selvaraju et al., Grad-CAM, 2017, equations 1 and 2; Dhar et al., Learning without Memorizing, 2019,
    equation 2 with the average over positions that its text describes.
    """
    check_shape("maps", maps, "B", "H", "W", "C")
    check_shape("class_index", class_index, maps.shape[0])
    check_dtype("class_index", class_index, "int")

    def score(maps: Array) -> tuple[Array, Array]:
        logits = decode(maps)
        check_shape("What decode returns", logits, maps.shape[0], "K")
        known = known_labels(class_index, logits.shape[-1])[1]
        return jnp.sum(logits * jax.nn.one_hot(class_index, logits.shape[-1], dtype=logits.dtype)), known

    slopes, known = jax.grad(score, has_aux=True)(maps)
    return _activation(maps, jnp.mean(slopes, axis=(1, 2)), known)


def pooled_linear_cam(maps: AnyArray, kernel: AnyArray, class_index: AnyArray) -> Array:
    r"""Class activation maps of a linear head on globally average-pooled maps: `grad_cam` in closed form.

    $$ Q_{hw} = \mathrm{ReLU} \Big( \frac{1}{HW} \sum_k w_{kc} A_{hwk} \Big) $$

    Args:
      maps: `[B, H, W, C]`, those that enter the pooling.
      kernel: `[C, K]`, of the head.
      class_index: `[B]` int32, the class c of each example.

    Returns:
      `[B, H, W]`, at least 0, not normalised; NaN where c is no class.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.attention import pooled_linear_cam
      >>> maps = jnp.array([[[[1.0, 0.0]], [[0.0, 3.0]]]])
      >>> pooled_linear_cam(maps, jnp.array([[2.0, 0.0], [-1.0, 4.0]]), jnp.array([1]))
      Array([[[0.],
              [6.]]], dtype=float32)

    Reference: Zhou et al., Learning Deep Features for Discriminative Localization, 2016, equation 2, rectified.
    """
    check_shape("maps", maps, "B", "H", "W", "C")
    check_shape("kernel", kernel, maps.shape[-1], "K")
    check_shape("class_index", class_index, maps.shape[0])
    check_dtype("class_index", class_index, "int")
    places, known = known_labels(class_index, kernel.shape[1])
    return _activation(maps, kernel.T[places] / (maps.shape[1] * maps.shape[2]), known)


def activation_map(maps: AnyArray) -> Array:
    r"""Where the maps are active, whatever for.

    $$ Q_{hw} = \sum_k A_{hwk}^2 $$

    Args:
      maps: `[B, H, W, C]`.

    Returns:
      `[B, H, W]`, at least 0, not normalised.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.attention import activation_map
      >>> activation_map(jnp.array([[[[1.0, 2.0]], [[0.0, -3.0]]]]))
      Array([[[5.],
              [9.]]], dtype=float32)

    Reference: Zagoruyko and Komodakis, Paying More Attention to Attention, 2017, section 3.1, the sum of powers, p = 2.
    """
    check_shape("maps", maps, "B", "H", "W", "C")
    return jnp.sum(maps**2, axis=-1)


def _activation(maps: AnyArray, importance: AnyArray, known: AnyArray) -> Array:
    """The rectified sum of maps `[B, H, W, C]` weighted by importance `[B, C]`; its gradient at 0 is 0."""
    activation = jax.nn.relu(jnp.einsum("bhwc,bc->bhw", maps, importance))
    return jnp.where(known[:, None, None], activation, jnp.nan)
