"""Herding and nearest means against plain loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cljax import memory


def check_herd(features, members, rank, count):
    """Each pick's mean is as near as any candidate's, all formed and compared in double precision; ties may differ."""
    features = np.asarray(features, np.float64)
    features = features / np.linalg.norm(features, axis=1, keepdims=True)
    mean, picks = features[members].mean(0), []
    for place in range(min(count, len(members))):
        left = [index for index in members if index not in picks]
        distances = {index: np.linalg.norm(mean - features[[*picks, index]].mean(0)) for index in left}
        (pick,) = np.flatnonzero(rank == place)
        assert distances[pick] <= min(distances.values()) + 1e-5
        picks.append(pick)
    assert (rank == memory.UNPICKED).sum() == len(rank) - len(picks)


herd = jax.jit(memory.herd, static_argnums=2)


@given(st.integers(0, 2**16), st.sets(st.integers(0, 11), min_size=1), st.sampled_from([1, 4, 12]))
@settings(max_examples=25, deadline=None)
def test_herding_against_a_plain_way(seed, members, count):
    features = np.random.default_rng(seed).normal(size=(12, 3)).astype(np.float32) * 5
    members = sorted(members)
    weights = np.isin(np.arange(12), members).astype(np.float32)
    rank = np.asarray(herd(jnp.asarray(features), jnp.asarray(weights), count))
    check_herd(features, members, rank, count)
    assert rank.dtype == np.int32


def test_fewer_picks_are_the_first_of_more():
    features = jax.random.normal(jax.random.key(0), [30, 8])
    many = np.asarray(herd(features, jnp.ones(30), 20))
    for count in (1, 7, 20):
        few = np.asarray(herd(features, jnp.ones(30), count))
        np.testing.assert_array_equal(few, np.where(many < count, many, memory.UNPICKED))


def test_herded_means_are_nearer_than_random_ones():
    features = jax.random.normal(jax.random.key(0), [100, 8]) + 1
    unit = np.asarray(features / jnp.linalg.norm(features, axis=1, keepdims=True))
    rank = np.asarray(herd(features, jnp.ones(100), 10))
    herded = np.linalg.norm(unit[rank < 10].mean(0) - unit.mean(0))
    rng = np.random.default_rng(0)
    others = [np.linalg.norm(unit[rng.choice(100, 10, replace=False)].mean(0) - unit.mean(0)) for _ in range(200)]
    assert herded < min(others)


def test_the_unit_length_form_is_the_reference_recursion():
    """For unit features the nearest mean is the greatest product with w, where w <- w + mean - picked."""
    features = np.random.default_rng(3).normal(size=(20, 6))
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    mean = unit.mean(0)
    w, picks = mean.copy(), []
    while len(picks) < 8:
        scores = unit @ w
        scores[picks] = -np.inf
        picks.append(int(np.argmax(scores)))
        w += mean - unit[picks[-1]]
    rank = np.asarray(herd(jnp.asarray(features, jnp.float32), jnp.ones(20), 8))
    assert [int(np.flatnonzero(rank == place)[0]) for place in range(8)] == picks


@pytest.mark.parametrize("count", [0, 3])
def test_nothing_to_pick(count):
    rank = herd(jnp.ones([4, 2]), jnp.zeros(4), count)
    assert rank.tolist() == [memory.UNPICKED] * 4
    assert memory.herd(jnp.ones([4, 2]), jnp.ones(4), 0).tolist() == [memory.UNPICKED] * 4


def test_equal_and_zero_features_are_all_picked_once():
    assert sorted(memory.herd(jnp.ones([4, 2]), jnp.ones(4), 4).tolist()) == [0, 1, 2, 3]
    rank = herd(jnp.array([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]]), jnp.ones(3), 3)
    assert sorted(rank.tolist()) == [0, 1, 2]


def test_herding_by_hand():
    """The mean is (1.6, 0.2) / 3. Squared distances: of one, 0.222, 1.156, 0.756; of the first and one, 0.189, 0.289.

    So the second is picked before the third, which is nearer the mean.
    """
    features = jnp.array([[1.0, 0.0], [0.0, 2.0], [3.0, -4.0]])
    assert herd(features, jnp.ones(3), 3).tolist() == [0, 1, 2]


def test_all_classes_at_once_are_each_class_alone():
    features = jax.random.normal(jax.random.key(0), [20, 4])
    labels = jnp.array([0, 1, 3, -1, 7] * 4, jnp.int32)  # of four classes, the third has none; two labels are no class
    found = np.asarray(jax.jit(memory.herd_classes, static_argnums=(2, 3))(features, labels, 4, 3))
    for label in range(4):
        mine = np.asarray(labels) == label
        np.testing.assert_array_equal(found[mine], np.asarray(herd(features, mine.astype(np.float32), 3))[mine])
    assert (found[np.isin(labels, [-1, 7])] == memory.UNPICKED).all()
    assert sorted(found[np.asarray(labels) == 3].tolist()) == [0, 1, 2, memory.UNPICKED]
    with pytest.raises(ValueError, match="classes is 0"):
        memory.herd_classes(features, labels, 0, 3)


def test_a_choice_by_rank_shrinks_from_the_last_on():
    """Seven of group 0, two of group 1: of four, two each, the first by rank; of six, the one more is of group 0."""
    groups = jnp.array([0, 0, 0, 1, 0, 0, 1, 0, 0, memory.NO_GROUP])
    rank = jnp.array([5, 1, 9, 8, 0, 4, 2, 3, 7, 6], jnp.uint32)
    chosen = lambda count: memory.balanced_choice(jax.random.key(1), groups, count, rank).tolist()
    assert [set(chosen(4)[:2]), set(chosen(4)[2:])] == [{4, 6}, {1, 3}]
    assert chosen(6)[:4] == chosen(4)
    assert chosen(6)[4:] == [7, 5]
    assert chosen(10)[4:] == [7, 5, 0, 8, 2, 10]


def test_classes_by_vmap():
    features = jax.random.normal(jax.random.key(0), [20, 4])
    labels = jnp.arange(20) % 3
    weights = (labels[None] == jnp.arange(3)[:, None]).astype(jnp.float32)
    ranks = jax.jit(jax.vmap(lambda member: memory.herd(features, member, 5)))(weights)
    for label in range(3):
        np.testing.assert_array_equal(ranks[label], herd(features, weights[label], 5))
        assert set(np.flatnonzero(ranks[label] < 5)) <= set(np.flatnonzero(labels == label))


def test_nearest_mean_against_a_plain_way():
    rng = np.random.default_rng(0)
    features, means = rng.normal(size=(40, 5)) * 3, rng.normal(size=(6, 5))
    valid = np.array([True, False, True, True, False, True])
    expected, distances = [], []
    for feature in features:
        row = [
            np.linalg.norm(feature / np.linalg.norm(feature) - mean / np.linalg.norm(mean)) ** 2 if there else np.inf
            for mean, there in zip(means, valid, strict=True)
        ]
        distances.append(row)
        expected.append(int(np.argmin(row)))
    arguments = jnp.asarray(features, jnp.float32), jnp.asarray(means, jnp.float32), jnp.asarray(valid)
    nearest = memory.nearest_mean(*arguments)
    assert nearest.tolist() == expected
    assert nearest.dtype == jnp.int32
    np.testing.assert_allclose(memory.mean_distances(*arguments), distances, rtol=1e-4, atol=1e-5)


def test_lengths_do_not_matter():
    means = jnp.array([[10.0, 0.0], [0.1, 0.1]])
    assert memory.nearest_mean(jnp.array([[1.0, 0.9], [0.01, 0.0]]), means, jnp.array([True, True])).tolist() == [1, 0]


def test_what_is_no_number_is_no_class():
    features, means = jnp.array([[jnp.nan, 1.0], [1.0, 0.0]]), jnp.array([[1.0, 0.0], [0.0, 1.0]])
    assert memory.nearest_mean(features, means, jnp.array([True, True])).tolist() == [-1, 0]
    assert memory.nearest_mean(features, means, jnp.array([False, False])).tolist() == [-1, -1]
    broken = means.at[0].set(jnp.nan)
    assert memory.nearest_mean(features[1:], broken, jnp.array([True, True])).tolist() == [1]


def test_examples_of_weight_0_have_no_part_in_herding_be_they_nan():
    features = jnp.array([[jnp.nan, 1.0], [1.0, 0.0], [0.8, 0.6], [0.6, 0.8]])
    assert (
        memory.herd(features, jnp.array([0.0, 1.0, 1.0, 1.0]), 2).tolist()[1:]
        == memory.herd(features[1:], jnp.ones(3), 2).tolist()
    )
    for count in (-1, 1.5, 2**31):
        with pytest.raises(ValueError, match=r"count is .*whole number from 0"):
            memory.herd(features, jnp.ones(4), count)


def test_labels_of_few_bits_are_of_no_class_that_they_cannot_hold():
    labels = np.array([-56, 0], np.int8)  # 200, of eight bits
    assert memory.herd_classes(jnp.ones((2, 2)), labels, 201, 1).tolist() == [memory.UNPICKED, 0]
    with pytest.raises(ValueError, match="labels is float32, but must be whole numbers"):
        memory.herd_classes(jnp.ones((2, 2)), np.float32(labels), 201, 1)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_long_features_of_half_precision_have_a_direction(dtype):
    """Their squares add up to more than float16 can hold."""
    features = (100 * jax.random.normal(jax.random.key(0), [12, 300])).astype(dtype)
    exact, every = features.astype(jnp.float32), jnp.ones(12)
    np.testing.assert_allclose(memory.unit(features).astype(jnp.float32), memory.unit(exact), rtol=0.01)
    assert memory.herd(features, every, 6).tolist() == memory.herd(memory.unit(features), every, 6).tolist()
    means, valid = features[:4], jnp.ones(4, bool)
    assert memory.nearest_mean(features, means, valid)[:4].tolist() == [0, 1, 2, 3]
    assert (
        memory.nearest_mean(features, means, valid).tolist()
        == memory.nearest_mean(exact, means.astype(jnp.float32), valid).tolist()
    )


def test_distances_of_zero_and_of_long_features_have_gradients():
    """Dead features, as after a rectifier, stay where they are; those whose squares overflow have a direction."""
    distance = lambda features: memory.mean_distances(features, jnp.eye(2), jnp.ones(2, bool))[0, 0]
    np.testing.assert_array_equal(jax.grad(distance)(jnp.zeros((1, 2))), 0)
    np.testing.assert_allclose(memory.unit(np.array([[3e20, 4e20], [3e-25, 4e-25]], np.float32)), [[0.6, 0.8]] * 2)
    with pytest.raises(ValueError, match="features is int32, but must be floating point"):
        memory.unit(np.array([[3, 4]], np.int32))
