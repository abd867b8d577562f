"""PackNet: pruning and masks worked by hand, counts by layer, and what the first task alone trains."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cljax import methods, networks
from cljax.methods.packnet import Packed, packnet
from cljax.ownership import masks
from cljax.training.plan import epoch_table
from cljax.types import Batch, Schedule, make_clock
from tests.zero_forgetting import single

KEY = jax.random.key(0)
FREE = masks.FREE


def case():
    """One hidden layer of three units on two inputs; the bias is free to the first task alone."""
    network = networks.mlp((2,), 2, hidden=(3,))
    method = packnet(network, prune=(0.5, 0.6))
    learner = single(method, network)
    kernel = jnp.array([[0.1, -2.0, 0.3], [-0.4, 0.5, 3.0]])
    params = {**learner.params, "dense_0": {"kernel": kernel, "bias": jnp.array([1.0, 2.0, 3.0])}}
    return method, learner._replace(params=params)


def end(method, learner, **clock):
    return jax.jit(lambda learner: method.end_phase(learner, make_clock(**clock), None, KEY))(learner)


def begin(method, learner, **clock):
    return method.begin_task(learner, make_clock(**clock), None, KEY)


def test_two_tasks_prune_and_retrain_by_hand():
    method, learner = case()
    owner = lambda learner: learner.method_state.owner["dense_0"]["kernel"].tolist()
    mask = lambda learner, **clock: method.update_mask(learner, make_clock(**clock))[0]["dense_0"]
    learner = begin(method, learner)
    assert mask(learner)["kernel"].tolist() == [[1, 1, 1], [1, 1, 1]]
    first = end(method, learner)
    assert owner(first) == [[FREE, 0, FREE], [FREE, 0, 0]], "of six the three smallest are free"
    np.testing.assert_array_equal(first.params["dense_0"]["kernel"], np.float32([[0, -2, 0], [0, 0.5, 3]]))
    assert mask(first, phase=1)["kernel"].tolist() == [[0, 1, 0], [0, 1, 1]]
    assert float(mask(first, phase=1)["bias"]) == 1
    same = end(method, first, phase=1)
    assert owner(same) == owner(first), "the end of the second phase prunes nothing"

    first = begin(method, first, task=1)
    trains = mask(first, task=1)
    assert trains["kernel"].tolist() == [[1, 0, 1], [1, 0, 0]], "of the second task what the first gave back"
    assert float(trains["bias"]) == 0
    moved = jnp.where(np.array(trains["kernel"]) == 1, jnp.array([[7.0, 0, -5.0], [6.0, 0, 0]]), 0)
    kernel = first.params["dense_0"]["kernel"] + moved
    second = first._replace(params={**first.params, "dense_0": {**first.params["dense_0"], "kernel": kernel}})
    second = end(method, second, task=1)
    assert owner(second) == [[1, 0, FREE], [FREE, 0, 0]], "of its three the two smallest: round(0.6 * 3)"
    np.testing.assert_array_equal(second.params["dense_0"]["kernel"], np.float32([[7, -2, 0], [0, 0.5, 3]]))
    assert mask(second, task=1, phase=1)["kernel"].tolist() == [[1, 0, 0], [0, 0, 0]]
    assert mask(second, task=1, first=False)["kernel"].tolist() == [[1, 0, 0], [0, 0, 0]], "a further visit, the newest"
    older = method.update_mask(second, make_clock(task=0, newest=1, first=False))[0]
    assert older["dense_0"]["kernel"].tolist() == [[0, 0, 0], [0, 0, 0]]
    assert float(older["head"]["kernel"]) == float(older["head"]["bias"]) == 1
    again = end(method, second, task=1, first=False)
    assert owner(again) == owner(second)


def test_a_task_computes_with_its_own_and_older_weights_and_free_ones_are_its_own_until_it_is_pruned():
    method, learner = case()
    owner = {
        "dense_0": {"kernel": jnp.array([[0, 1, 2], [FREE, 1, 0]]), "bias": None},
        "head": dict.fromkeys(["bias", "kernel"]),
    }
    state, kernel = Packed(owner), np.asarray(learner.params["dense_0"]["kernel"])
    show = lambda task, newest: method.view(learner.params, learner.collections, state, task, newest)[0]["dense_0"]
    seen = {0: [[1, 0, 0], [0, 0, 1]], 1: [[1, 1, 0], [0, 1, 1]], 2: [[1, 1, 1], [0, 1, 1]]}
    for task, shown in seen.items():
        for newest in (None, jnp.int32(3), jnp.int32(task)):
            np.testing.assert_array_equal(show(jnp.int32(task), newest)["kernel"], kernel * np.array(shown))
    together = jax.vmap(show, in_axes=(0, None))(jnp.arange(3, dtype=jnp.int32), jnp.int32(3))
    np.testing.assert_array_equal(together["kernel"], kernel * np.array(list(seen.values())))


def test_each_layer_of_a_convolutional_network_keeps_its_part_for_each_task():
    """By a plain sort: half of the first task's weights, then a quarter of what is free, in every layer."""
    network = networks.cnn((6, 6, 2), 3, channels=((4,), (5,)), dense=(7,), normalization="batch")
    method = packnet(network)
    learner = single(method, network, tasks=3)
    layers = ("conv_0_0", "conv_1_0", "dense_0")
    assert [leaf.shape for leaf in jax.tree.leaves(learner.method_state.owner)] == [(3, 3, 2, 4), (3, 3, 4, 5), (5, 7)]
    prune = jax.jit(lambda learner, task: method.end_phase(learner, make_clock(task=task), None, KEY))
    free = {name: np.ones(learner.params[name]["kernel"].shape, bool) for name in layers}
    for task, part in enumerate((0.5, 0.75, 0.75)):
        drawn = network.init(jax.random.key(task))[0]
        now = {
            name: {
                **learner.params[name],
                "kernel": jnp.where(free[name], drawn[name]["kernel"], learner.params[name]["kernel"]),
            }
            for name in layers
        }
        trained = begin(method, learner, task=task)._replace(params={**learner.params, **now})
        learner = prune(trained, task)
        for name in layers:
            before, after = (np.asarray(one.params[name]["kernel"]) for one in (trained, learner))
            places = np.flatnonzero(free[name])
            ranked = places[np.argsort(np.abs(before.ravel()[places]), kind="stable")]
            expected = before.copy().ravel()
            expected[ranked[: round(part * len(places))]] = 0
            np.testing.assert_array_equal(after.ravel(), expected)
            owner = np.asarray(learner.method_state.owner[name]["kernel"])
            assert (owner == task).sum() == len(places) - round(part * len(places))
            free[name] = owner == FREE


def test_what_a_task_gives_back_is_of_no_importance_to_it():
    network = networks.mlp((2,), 2, hidden=(3,))
    method = methods.combine(packnet(network), methods.consolidation())
    learner = begin(method, single(method, network))
    batch = Batch(
        jnp.array([[1.0, 2.0], [3.0, -1.0]]), jnp.array([0, 1]), jnp.zeros(2, int), jnp.arange(2), jnp.ones(2)
    )
    fold = lambda fn, carry, split="train": fn(carry, batch)
    classes = jnp.ones([2, 2], bool)
    for phase in range(2):
        learner = method.end_phase(learner, make_clock(phase=phase, classes=classes), fold, KEY)
    free = np.asarray(learner.method_state.base.owner["dense_0"]["kernel"]) == FREE
    importance = np.asarray(learner.method_state.terms["ewc"]["importance"]["dense_0"]["kernel"])
    assert free.sum() == 3
    assert (importance[free] == 0).all()
    assert (importance[~free] > 0).any()


def test_biases_normalisation_and_its_statistics_are_the_first_task_s():
    network = networks.mlp((5,), 2, hidden=(4,), normalization="batch")
    method = packnet(network)
    learner = single(method, network, tasks=2)
    for task, phase, trains in ((0, 0, 1), (0, 1, 1), (1, 0, 0), (1, 1, 0)):
        mask, moves = method.update_mask(learner, make_clock(task=task, phase=phase))
        alike = [mask["dense_0"]["bias"], *mask["norm_0"].values(), *jax.tree.leaves(moves["batch_stats"])]
        assert [float(one) for one in alike] == [trains] * 5
        assert [float(one) for one in mask["head"].values()] == [1, 1]
        shown = method.view(learner.params, learner.collections, learner.method_state, jnp.int32(task), jnp.int32(task))
        assert shown[1]["frozen"]["dense_0"].tolist() == [task > 0] * 4
    inputs = jax.random.normal(KEY, (8, 5))
    params, collections = method.view(
        learner.params, learner.collections, learner.method_state, jnp.int32(1), jnp.int32(1)
    )
    in_training, settled = (network.apply(params, collections, inputs, key=key).logits for key in (KEY, None))
    np.testing.assert_array_equal(in_training, settled)


def test_a_third_of_the_epochs_retrains_at_a_tenth_of_the_rate():
    method = packnet(networks.mlp((5,), 2))
    assert [float(phase.learning_rate(make_clock())) for phase in method.phases] == [1.0, np.float32(0.1)]
    assert all(phase.fresh_optimizer for phase in method.phases)
    assert epoch_table(method, Schedule(np.array([0, 1]), np.array([30, 3]), None)).tolist() == [[20, 10], [2, 1]]
    assert [phase.name for phase in packnet(networks.mlp((5,), 2), retrain=0.0).phases] == ["train"]


def test_what_does_not_fit_is_refused_with_the_cure():
    network = networks.mlp((5,), 2, hidden=(4,), normalization="batch")
    with pytest.raises(ValueError, match=r"packnet shares normalisation statistics.*normalization='batch'"):
        packnet(network._replace(per_task=(*network.per_task, "batch_stats/norm_0/mean")))
    with pytest.raises(ValueError, match=r"packnet's prune has no number"):
        packnet(network, prune=())
    with pytest.raises(ValueError, match=r"packnet's prune is 1.5"):
        packnet(network, prune=(0.5, 1.5))
