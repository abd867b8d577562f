"""Grad-CAM against its closed form, against finite differences of second order, and where there is nothing to see."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cljax import losses
from cljax.attention import grad_cam, pooled_linear_cam


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def test_grad_cam_of_a_pooled_linear_head_is_the_closed_form_and_so_are_its_gradients(float64):
    maps, kernel, bias, index = draw(5, 3, 4, 6), draw(6, 7, seed=1), draw(7, seed=2), np.array([0, 6, 3, 3, 1])
    weights = draw(5, 3, 4, seed=3)

    def by_gradient(maps, kernel):
        return grad_cam(lambda maps: maps.mean((1, 2)) @ kernel + bias[None, :], maps, index)

    def closed(maps, kernel):
        return pooled_linear_cam(maps, kernel, index)

    def both(cam):
        def weighted(maps, kernel):
            found = cam(maps, kernel)
            return (weights * found).sum(), found

        return jax.jit(jax.grad(weighted, argnums=(0, 1), has_aux=True))(maps, kernel)

    looks = [both(cam) for cam in (by_gradient, closed)]
    gradients, (found, expected) = [slopes for slopes, _ in looks], (np.asarray(cam) for _, cam in looks)
    assert found.shape == (5, 3, 4)
    assert found.dtype == jnp.float64
    assert 0 < (found > 0).mean() < 1
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)
    for first, second in zip(*gradients, strict=True):
        assert np.abs(second).max() > 1e-2
        np.testing.assert_allclose(first, second, rtol=1e-11, atol=1e-13)


def test_the_definition_by_hand():
    """One importance a map: the mean of the class score's derivative over positions, then the rectified sum."""
    maps, weight = draw(1, 2, 2, 2), draw(2, 2, 2, 3, seed=1).astype(np.float32)
    head = lambda maps: jnp.einsum("bhwc,hwck->bk", maps**2, weight)  # its derivative is 2 * maps * weight
    importance = (2 * maps[0] * weight[..., 1]).mean((0, 1))
    expected = np.maximum(maps[0] @ importance, 0)
    found = jax.jit(grad_cam, static_argnums=0)(head, maps, np.array([1]))
    np.testing.assert_allclose(found, [expected], rtol=1e-5, atol=1e-7)


def test_the_gradient_of_a_non_linear_head_s_map_is_that_of_finite_differences(float64):
    maps, hidden, head = draw(2, 2, 3, 4), draw(24, 5, seed=1), draw(5, 3, seed=2)
    index, teacher = np.array([2, 0]), np.abs(draw(2, 2, 3, seed=3))

    @jax.jit
    def loss(maps, hidden, head):
        decode = lambda maps: jnp.tanh(maps.reshape(2, -1) @ hidden) @ head
        return losses.attention_distillation(grad_cam(decode, maps, index), teacher).sum()

    arguments = (maps, hidden, head)
    gradients = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(*arguments)
    for place, gradient in enumerate(map(np.asarray, gradients)):
        direction = draw(*gradient.shape, seed=4 + place)

        def along(step, place=place, direction=direction):
            moved = list(arguments)
            moved[place] = moved[place] + step * direction
            return float(loss(*moved))

        slope = (along(1e-5) - along(-1e-5)) / 2e-5
        assert abs(slope) > 1e-2
        np.testing.assert_allclose((gradient * direction).sum(), slope, rtol=1e-6)


@pytest.mark.parametrize("cam", ["gradient", "closed form"])
def test_where_nothing_speaks_for_the_class_map_and_gradients_are_zero(cam):
    kernel, index = -np.ones([3, 2], np.float32), np.array([0, 1])

    def loss(maps, kernel):
        if cam == "gradient":
            found = grad_cam(lambda maps: maps.mean((1, 2)) @ kernel, maps, index)
        else:
            found = pooled_linear_cam(maps, kernel, index)
        return losses.attention_distillation(found, jnp.ones([2, 2, 2])).sum() + found.sum()

    slopes = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    for maps in (np.zeros([2, 2, 2, 3], np.float32), np.ones([2, 2, 2, 3], np.float32)):
        value, gradients = slopes(maps, kernel)
        assert value == 0
        for gradient in gradients:
            np.testing.assert_array_equal(gradient, 0)


def test_wrong_shapes_are_refused():
    maps, kernel = np.ones([2, 2, 2, 3], np.float32), np.ones([3, 4], np.float32)
    decode = lambda maps: maps.mean((1, 2)) @ kernel
    for index in (np.array([0]), np.array([0.0, 1.0])):
        with pytest.raises(ValueError, match="class_index"):
            grad_cam(decode, maps, index)
        with pytest.raises(ValueError, match="class_index"):
            pooled_linear_cam(maps, kernel, index)
    with pytest.raises(ValueError, match="kernel has shape"):
        pooled_linear_cam(maps, kernel.T, np.array([0, 1]))
    with pytest.raises(ValueError, match="maps has shape"):
        grad_cam(decode, maps[0], np.array([0, 1]))
    with pytest.raises(ValueError, match="What decode returns has shape"):
        grad_cam(lambda maps: decode(maps[:1]), maps, np.array([0, 1]))
    with pytest.raises(ValueError, match="maps has shape"):
        pooled_linear_cam(maps[0], kernel, np.array([0, 1]))


POOLED = lambda maps, kernel, label: grad_cam(lambda maps: maps.mean((1, 2)) @ kernel, maps, label)


@pytest.mark.parametrize("cam", [POOLED, pooled_linear_cam])
def test_a_class_that_does_not_exist_has_no_map(cam):
    maps, kernel = np.ones([4, 2, 2, 3], np.float32), np.ones([3, 2], np.float32)
    found = np.asarray(jax.jit(cam)(maps, kernel, np.array([0, -1, 2, 1])))
    assert np.isnan(found).all(axis=(1, 2)).tolist() == [False, True, True, False]
    np.testing.assert_allclose(found[[0, 3]], 3 / 4)
