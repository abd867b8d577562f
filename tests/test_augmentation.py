"""Augmentation: windows, mirrors and colours by hand, their distributions, and its place in a run."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cljax import augmentation, data, methods, networks, streams, training
from cljax.cli.making import make_augment
from cljax.cli.options import UsageError
from cljax.training.driver import drive
from cljax.types import Batch

KEY = jax.random.key(3)


def images(count=5, shape=(6, 7, 3), low=1, dtype=np.uint8):
    """No value is 0, so that padding shows."""
    return np.random.default_rng(0).integers(low, 256, (count, *shape)).astype(dtype)


@functools.cache
def jitted(name, *arguments):
    return jax.jit(getattr(augmentation, name)(*arguments))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_a_crop_is_a_shifted_window_with_zeros(dtype):
    given, pad = images(dtype=dtype), 2
    made = np.asarray(jitted("pad_crop", pad)(KEY, given))
    assert made.dtype == dtype
    padded = np.pad(given, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    for image, shown in zip(padded, made, strict=True):
        windows = {(y, x): image[y : y + 6, x : x + 7] for y in range(5) for x in range(5)}
        assert sum(np.array_equal(window, shown) for window in windows.values()) == 1


def test_offsets_are_uniform_and_independent():
    marked = np.zeros((20_000, 5, 5, 1), np.uint8)
    marked[:, 2, 2] = 1  # its place after the crop tells the offset
    made = np.asarray(jitted("pad_crop", 2)(KEY, marked))
    counts = made.sum(axis=0)[..., 0]
    assert counts.sum() == 20_000  # none is lost at this padding
    expected = 20_000 / 25
    assert ((counts - expected) ** 2 / expected).sum() < 51.2  # chi-squared of 24 degrees of freedom, 0.1%


def test_a_flip_is_numpys_and_comes_half_of_the_time():
    given = images(4000, (3, 4, 1))
    made = np.asarray(jitted("flip")(KEY, given))
    mirrored = (made == given[:, :, ::-1]).all(axis=(1, 2, 3))
    kept = (made == given).all(axis=(1, 2, 3))
    assert (mirrored ^ kept).all()
    assert abs(mirrored.sum() - 2000) < 3.3 * np.sqrt(1000)


def test_colour_adds_one_vector_to_all_pixels_of_an_image():
    given = images(low=100)
    given[given > 150] = 150  # far from both ends
    jitter = augmentation.colour_jitter(given, std=10)
    made = np.asarray(jitter(KEY, given))
    assert made.dtype == np.uint8
    moved = made.astype(int) - given
    assert (moved == moved[:, :1, :1]).all()
    assert len({tuple(row) for row in moved[:, 0, 0].tolist()}) > 1
    values, vectors = augmentation.colour_components(given)
    factors = np.asarray(jax.random.normal(KEY, (5, 3)))
    expected = np.rint(255 * 10 * (factors * values) @ vectors.T)
    np.testing.assert_array_equal(moved[:, 0, 0], expected)


def test_strength_of_the_colours():
    """Along each component, the shift has mean 0 and the standard deviation std times the eigenvalue."""
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
    jitter = augmentation.colour_jitter(std=0.1, eigenvalues=[5.0, 2.0, 1.0], eigenvectors=turn)
    shift = np.asarray(jitter(KEY, np.zeros((20_000, 1, 1, 3), np.float32)))[:, 0, 0] @ turn
    deviation = np.array([0.5, 0.2, 0.1])
    assert (np.abs(shift.mean(axis=0)) < 4 * deviation / np.sqrt(20_000)).all()
    np.testing.assert_allclose(shift.std(axis=0), deviation, rtol=0.02)
    np.testing.assert_allclose(np.corrcoef(shift.T), np.eye(3), atol=0.03)


def test_colour_stays_within_the_bytes():
    jitter = augmentation.colour_jitter(eigenvalues=[100.0, 0, 0], eigenvectors=np.eye(3))
    made = np.asarray(jitter(KEY, np.full((50, 2, 2, 3), 128, np.uint8)))
    assert set(np.unique(made[..., 0]).tolist()) == {0, 255}
    assert (made[..., 1:] == 128).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_components_are_those_of_the_covariance(dtype):
    given = images(1500, (2, 2, 3), dtype=dtype)
    given[..., 1] = given[..., 0] // 2
    values, vectors = augmentation.colour_components(given)
    pixels = given.reshape(-1, 3).astype(np.float64) / (255 if dtype == np.uint8 else 1)
    covariance = np.cov(pixels.T, bias=True)
    np.testing.assert_allclose(vectors @ np.diag(values) @ vectors.T, covariance, atol=1e-9 * covariance.max())
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(3), atol=1e-12)
    assert (np.diff(values) <= 0).all()
    assert (vectors[np.abs(vectors).argmax(axis=0), range(3)] > 0).all()


def test_composition_gives_each_its_own_key_and_equal_keys_equal_bits():
    given = images()
    both = augmentation.compose(augmentation.pad_crop(2), augmentation.flip())
    expected = jitted("flip")(jax.random.fold_in(KEY, 1), jitted("pad_crop", 2)(jax.random.fold_in(KEY, 0), given))
    np.testing.assert_array_equal(both(KEY, given), expected)
    np.testing.assert_array_equal(both(KEY, given), both(KEY, given))
    assert (np.asarray(both(jax.random.key(4), given)) != np.asarray(expected)).any()


def test_a_batch_is_augmented_with_a_key_of_its_own_or_left_alone():
    given = jnp.asarray(images())
    zeros = jnp.zeros(5, jnp.int32)
    batch = Batch(given, zeros, zeros, zeros, jnp.ones(5))
    assert augmentation.augment_batch(None, batch, KEY) is batch
    seen = []
    made = augmentation.augment_batch(lambda key, inputs: seen.append(key) or inputs[::-1], batch, KEY)
    np.testing.assert_array_equal(made.inputs, given[::-1])
    assert made.labels is batch.labels
    assert (jax.random.key_data(seen[0]) != jax.random.key_data(KEY)).any()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: augmentation.pad_crop(0), "pad is 0"),
        (lambda: augmentation.pad_crop(1.5), "pad is 1.5"),
        (lambda: augmentation.pad_crop(10**10), "pad is 10000000000"),
        (lambda: augmentation.pad_crop(4)(KEY, images(shape=(4, 9, 1))), "out of sight"),
        (lambda: augmentation.colour_jitter(images(), std=float("nan")), "std is nan"),
        (lambda: augmentation.colour_jitter(eigenvalues=[1, 1, np.inf], eigenvectors=np.eye(3)), "NaN or infinity"),
        (lambda: augmentation.colour_jitter(), "either images"),
        (lambda: augmentation.colour_jitter(images(), eigenvalues=[1, 1, 1]), "either images"),
        (lambda: augmentation.colour_jitter(eigenvalues=[1], eigenvectors=np.eye(3)), r"shapes \(1,\)"),
        (lambda: augmentation.colour_jitter(images(), std=-1), "std is -1"),
        (lambda: augmentation.colour_jitter(images(shape=(4, 4, 1))), "three channels"),
        (lambda: augmentation.colour_jitter(np.asarray(images(), np.int32)), r"of int32. Convert them"),
        (lambda: augmentation.colour_jitter(images()[:0]), "these are 0 of uint8"),
        (lambda: augmentation.colour_jitter(images())(KEY, images(shape=(4, 4, 1))), "three channels"),
    ],
)
def test_errors(make, words):
    with pytest.raises(ValueError, match=words):
        make()


# In a run


def recording(network):
    """Fine-tuning that keeps the sum of the inputs of each step's batch, and of each fold's."""
    base = methods.finetune(network)

    def init(key, sizes):
        params, collections, _, hyper = base.init(key, sizes)
        return params, collections, {"steps": jnp.zeros(4, jnp.int32), "folded": jnp.int32(0)}, hyper

    def after_step(previous, learner, clock, batch, gradients):
        place = jnp.round(clock.progress * 3).astype(jnp.int32)
        total = jnp.sum(batch.inputs.astype(jnp.int32) * batch.weights.astype(jnp.int32).reshape(-1, 1, 1, 1))
        state = learner.method_state
        return learner._replace(method_state={**state, "steps": state["steps"].at[place].set(total)})

    def end_phase(learner, clock, fold, key):
        add = lambda carry, batch: (
            carry + jnp.sum(batch.inputs.astype(jnp.int32)[:, 0, 0, 0] * batch.weights.astype(jnp.int32))
        )
        return learner._replace(method_state={**learner.method_state, "folded": fold(add, jnp.int32(0))})

    return base._replace(name="recording", init=init, after_step=after_step, end_phase=end_phase)


@functools.cache
def ones():
    given, labels = np.ones((32, 4, 4, 1), np.uint8), np.arange(32) % 2
    stream = streams.from_tasks([(given, labels, given, labels)], validation=0)
    network = networks.mlp((4, 4, 1), 2, hidden=(2,), mean=stream.mean, std=stream.std)
    return stream, network


def test_each_step_sees_augmented_images_and_folds_see_them_as_they_are():
    stream, network = ones()
    add_one = lambda key, inputs: inputs + jnp.uint8(1)
    augment = augmentation.compose(add_one, augmentation.pad_crop(1))
    settings = training.Settings(batch_size=8, learning_rate=0.05, augment=augment)
    run = training.make_run(recording(network), optax.sgd(1.0), stream, settings)
    state = run(jax.random.key(0), stream.tables).learner.method_state
    sums = state["steps"].tolist()
    assert run.step.traces == 1
    assert all(8 * 2 * 9 <= total < 8 * 2 * 16 for total in sums)  # a crop of 4x4 keeps 9, 12 or 16 pixels
    assert len(set(sums)) > 1  # each step draws anew
    assert int(state["folded"]) == 32
    outcome = drive(recording(network), optax.sgd(1.0), [(0, stream)], settings)
    assert np.asarray(outcome.learners[0].method_state["steps"]).ravel().tolist() == sums  # the same crops


def test_what_does_not_fit_is_refused_before_anything_is_compiled():
    stream, network = ones()
    images = np.ones((4, 4, 4, 1), np.uint8)
    shown = data.from_arrays(images, [0, 1] * 2, images, [0, 1] * 2)
    cases = [
        (streams.permuted(shown, tasks=2), augmentation.flip(), "permute the pixels"),
        (stream, augmentation.colour_jitter(eigenvalues=[1, 1, 1], eigenvectors=np.eye(3)), "three channels"),
        (
            stream,
            lambda key, inputs: inputs[:, :3],
            r"uint8 of shape \(32, 4, 4, 1\) into uint8 of shape \(32, 3, 4, 1\)",
        ),
    ]
    for given, augment, words in cases:
        with pytest.raises(ValueError, match=words):
            training.make_run(methods.finetune(network), optax.sgd(1.0), given, training.Settings(augment=augment))


def test_the_commands_words():
    assert make_augment((), images()) is None
    marked = np.zeros((2000, 16, 16, 3), np.uint8)
    marked[:, 8, 8] = 1
    made = np.asarray(make_augment(("crop", "flip"), marked)(KEY, marked)).sum(axis=(0, 3))
    places = np.argwhere(made)
    # an eighth of 16 pixels up or down; left or right as well, and mirrored (8 becomes 7)
    assert (places.min(axis=0).tolist(), places.max(axis=0).tolist()) == ([6, 5], [10, 10])
    with pytest.raises(UsageError, match=r"three channels \(colour\), but the examples have shape \(4, 4, 1\)"):
        make_augment(("colour",), images(shape=(4, 4, 1)))
    with pytest.raises(UsageError, match="crop needs images"):
        make_augment(("crop",), np.zeros((3, 16), np.uint8))
