"""Ternary feature masks: hand-worked masks, growth, normalisation, and bits of old tasks."""

from __future__ import annotations

import functools
import tempfile

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cljax import metrics, networks, task_params, transforms
from cljax.methods.owned import Owned
from cljax.methods.tfm import tfm
from cljax.ownership import layout, masks
from cljax.ownership.usage import reused
from cljax.types import Batch, make_clock
from tests.zero_forgetting import Visits, five_tasks, orders, single

KEY = jax.random.key(0)
INPUTS = np.random.default_rng(0).normal(size=(9, 5)).astype(np.float32)


def small(**options):
    return networks.mlp((5,), 2, **{"hidden": (4, 3), "normalization": "feature", **options})


@functools.partial(jax.jit, static_argnums=0)
def begin(method, learner, clock):
    return method.begin_task(learner, clock, None, KEY)


@functools.partial(jax.jit, static_argnums=0)
def mask_of(method, learner, clock):
    return method.update_mask(learner, clock)[0]


def grown(method, network, tasks):
    """The learner when tasks 0 to `tasks` - 1 have begun, untrained."""
    learner = single(method, network, tasks=tasks)
    for task in range(tasks):
        learner = begin(method, learner, make_clock(task=task))
    return learner


def named(tree):
    return {
        path: np.asarray(leaf) for path, leaf in zip(task_params.leaf_paths(tree), jax.tree.leaves(tree), strict=True)
    }


def test_masks_of_three_tasks_by_hand():
    network = small()
    method = tfm(network, growth=0.3)
    learner = grown(method, network, 3)
    assert learner.method_state.owner["dense_0"].tolist() == [0, 0, 1, 1], "ceil(1.2) each, until the layer is full"
    assert learner.method_state.owner["dense_1"].tolist() == [0, 1, 2], "ceil(0.9) each"
    first, second, third = (named(mask_of(method, learner, make_clock(task=task))) for task in range(3))
    assert first["dense_0/kernel"].tolist() == [[1, 1, 0, 0]]
    assert second["dense_0/kernel"].tolist() == [[0, 0, 1, 1]]
    assert third["dense_0/kernel"].tolist() == [[0, 0, 0, 0]]
    assert first["dense_1/kernel"].tolist() == [[1, 0, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert second["dense_1/kernel"].tolist() == [[0, 1, 0], [0, 1, 0], [1, 1, 0], [1, 1, 0]]
    assert third["dense_1/kernel"].tolist() == [[0, 0, 1], [0, 0, 1], [0, 0, 1], [0, 0, 1]]
    assert [mask["dense_1/bias"].tolist() for mask in (first, second, third)] == np.eye(3).tolist()
    seen = [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    assert [mask["head/kernel"][:, 0].tolist() for mask in (first, second, third)] == seen
    assert [mask["norm_1/scale"].tolist() for mask in (first, second, third)] == seen
    again = named(mask_of(method, learner, make_clock(task=0, newest=2, first=False)))
    for path, mask in again.items():
        np.testing.assert_array_equal(mask, first[path] if path.startswith(("head", "norm")) else 0 * first[path])


def test_on_a_convolutional_network_equation_5_is_equation_6_and_no_weight_has_two_tasks():
    network = networks.cnn((4, 4, 1), 2, channels=((5,), (3,)), dense=(4,))
    method = tfm(network, growth=(0.4, 0.2, 0.6))
    learner = grown(method, network, 3)
    owner = learner.method_state.owner
    total = 0
    for task in range(3):
        found = named(mask_of(method, learner, make_clock(task=task)))
        for path, first, last in (
            ("conv_1_0", "conv_0_0", "conv_1_0"),
            ("dense_0", "conv_1_0", "dense_0"),
        ):
            seen = lambda name, t: np.asarray(owner[name]) <= t
            new = np.logical_or.outer(
                seen(first, task) & ~seen(first, task - 1), seen(last, task) & ~seen(last, task - 1)
            )
            now, before = (np.outer(seen(first, t), seen(last, t)) for t in (task, task - 1))
            mask = found[f"{path}/kernel"].reshape(-1, *now.shape)
            np.testing.assert_array_equal(mask, np.broadcast_to(now ^ before, mask.shape))
            np.testing.assert_array_equal(mask[0], now & new)
        total = total + found["conv_1_0/kernel"]
        assert found["conv_1_0/kernel"].shape == (1, 1, 5, 3)
        assert found["dense_0/kernel"].shape == (3, 4)
    claimed = np.outer(owner["conv_0_0"] <= 2, owner["conv_1_0"] <= 2)
    np.testing.assert_array_equal(total[0, 0], claimed)


def test_flattened_maps_repeat_their_channels():
    network = networks.cnn((4, 4, 1), 2, channels=((3,),), dense=(4,))
    method = tfm(network, growth=0.3)
    learner = grown(method, network, 2)
    mask = np.asarray(mask_of(method, learner, make_clock(task=1))["dense_0"]["kernel"])
    owner = np.asarray(learner.method_state.owner["conv_0_0"])
    assert mask.shape == (12, 4)
    for place in range(4):
        np.testing.assert_array_equal(mask[3 * place : 3 * place + 3, 0], owner == 1)  # unit 0 is task 0's


@given(growth=st.floats(0, 1), tasks=st.integers(1, 5))
@settings(max_examples=25, deadline=None)
def test_growth_is_a_rounded_up_part_of_each_layer_and_stops_at_full_width(growth, tasks):
    traces, begin, learner = _growing()
    learner = learner._replace(hyper={**learner.hyper, "growth": jnp.float32(growth)})
    for task in range(tasks):
        learner = begin(learner, make_clock(task=task))
    for name, width in (("dense_0", 30), ("dense_1", 7)):
        owner = np.asarray(learner.method_state.owner[name])
        step = int(np.ceil(np.float32(growth) * width - 1e-4))
        expected = [min(step, max(0, width - task * step)) for task in range(tasks)]
        assert [(owner == task).sum() for task in range(tasks)] == expected
        assert (np.diff(owner.astype(np.int64)) >= 0).all(), "in order of place"
    assert len(traces) == 1


@functools.cache
def _growing():
    network = small(hidden=(30, 7))
    method = tfm(network, growth=0.2)
    traces: list = []

    @jax.jit
    def begin(learner, clock):
        traces.append(clock)
        return method.begin_task(learner, clock, None, KEY)

    return traces, begin, single(method, network)


def test_a_tenth_of_thirty_is_three_and_a_schedule_s_last_number_goes_on():
    network = small(hidden=(30, 100))
    owner = np.asarray(grown(tfm(network, growth=(0.55, 0.05)), network, 4).method_state.owner["dense_1"])
    assert [int((owner == task).sum()) for task in range(4)] == [55, 5, 5, 5]
    owner = np.asarray(grown(tfm(network, growth=0.1), network, 2).method_state.owner["dense_0"])
    assert [int((owner == task).sum()) for task in range(2)] == [3, 3]
    packed = masks.pack(masks.ternary(owner, 1))
    assert packed.size == 8, "two bits a feature"
    np.testing.assert_array_equal(masks.unpack(packed, 30), [1] * 3 + [2] * 3 + [0] * 24)


def test_by_default_the_first_task_claims_55_percent_and_the_others_share_the_rest():
    network = small(hidden=(100, 40))
    owner = grown(tfm(network), network, 10).method_state.owner
    assert np.bincount(np.asarray(owner["dense_0"])).tolist() == [55, *[5] * 9], "the paper's schedule"
    assert np.bincount(np.asarray(owner["dense_1"])).tolist() == [22, *[2] * 9]
    owner = grown(tfm(network), network, 4).method_state.owner["dense_0"]
    assert np.bincount(np.asarray(owner)).tolist() == [55, 15, 15, 15]
    assert grown(tfm(network), network, 1).method_state.owner["dense_0"].tolist() == [0] * 55 + [masks.FREE] * 45


def test_the_lowest_growth_within_the_margin_is_chosen():
    network = small()
    method = tfm(network, candidates=(0.6, 0.2, 0.4), margin=0.02)
    learner = single(method, network)
    offered = method.search.candidates(learner, make_clock(), None)["growth"]
    np.testing.assert_allclose(offered, [0.2, 0.4, 0.6])
    started = tfm(network, growth=0.5, candidates=(0.1, 0.2)).search
    for newest, growth in ((0, [0.5, 0.5]), (1, [0.1, 0.2])):
        offered = started.candidates(learner, make_clock(newest=newest), None)["growth"]
        np.testing.assert_allclose(offered, growth, rtol=1e-6)
        assert offered.dtype == jnp.float32
    again = started.candidates(learner, make_clock(newest=1, first=False), None)["growth"]
    assert again[0] == again[1], "where nothing is claimed there is one candidate"
    stacked = jax.tree.map(lambda leaf: np.stack([leaf] * 3), learner)
    cases = ([0.5, 0.79, 0.8], 1), ([0.79, 0.7, 0.8], 0), ([0.5, 0.78, 0.8], 1), ([0.5, 0.6, 0.7], 2), ([np.nan] * 3, 0)
    for scores, index in cases:
        found, same = method.search.choose(jnp.asarray(scores, jnp.float32), stacked, make_clock(), None)
        assert (int(found), same) == (index, stacked)


class Theirs(nn.Module):
    """A user's own module."""

    @nn.compact
    def __call__(self, images, train: bool):
        values = nn.max_pool(nn.relu(nn.Conv(6, (3, 3))(images)), (2, 2), strides=(2, 2))
        values = nn.relu(nn.Dense(7)(values.reshape(values.shape[0], -1)))
        return nn.Dense(2, name="classifier")(nn.Dropout(0.2, deterministic=not train)(values))


@functools.cache
def visits(network="mlp"):
    stream = five_tasks()
    if network == "mlp":
        scale = {"normalization": "feature", "mean": stream.mean, "std": stream.std}
        made = networks.mlp((8, 8, 1), 2, hidden=(8, 6), **scale)
    else:
        own = ("classifier/kernel", "classifier/bias")
        made = networks.from_linen(Theirs(), (8, 8, 1), outputs=2, per_task=own, gates=("Conv_0", "Dense_0"))
    return Visits(tfm(made, growth=0.2), stream)


@given(
    network=st.sampled_from(["mlp", "theirs"]),
    growth=st.floats(0, 0.7),
    which=st.integers(0, 3),
    order=orders,
    seed=st.integers(0, 3),
    to_disk=st.booleans(),
)
@settings(max_examples=10, deadline=None)
def test_no_bit_of_old_logits_moves_for_any_network_growth_order_and_optimizer(
    network, growth, which, order, seed, to_disk
):
    made = visits(network)
    with tempfile.TemporaryDirectory() as place:
        made.run(made.start(seed, growth=growth), order, which=which, seed=seed, disk=place if to_disk else None)


def test_a_user_s_module_grows_until_it_is_full():
    made = visits("theirs")
    owner = made.run(made.start(1, growth=0.3), [0, 1, 0, 2, 1]).method_state.owner
    assert np.bincount(owner["Dense_0"]).tolist() == [3, 3, 1]


def test_a_layer_that_does_not_grow_still_learns_and_shifts_of_masked_features_do_not_leak():
    made = visits()
    learner = made.run(made.start(growth=0.5), [0, 1])
    frozen = made.run(learner._replace(hyper={**learner.hyper, "growth": jnp.float32(0.0)}), [2], after=[0, 1])
    owner = frozen.method_state.owner
    assert not any(np.any(np.asarray(leaf) == 2) for leaf in owner.values())
    params, before = (jax.tree.map(np.asarray, each.params) for each in (frozen, learner))
    for name in ("dense_0", "dense_1"):
        assert params[name]["kernel"].tobytes() == before[name]["kernel"].tobytes()
    assert (params["head"]["kernel"][2] != before["head"]["kernel"][2]).any()
    assert (params["norm_0"]["bias"][2] != 0).all(), "its own shift of all older features"
    hidden = np.asarray(owner["dense_1"]) > 0
    norm = params["norm_1"]
    shifted = {**norm, "bias": norm["bias"].copy()}
    shifted["bias"][0, hidden] = 7
    moved = frozen._replace(params={**params, "norm_1": shifted})
    np.testing.assert_array_equal(*(np.asarray(made.logits(each))[0] for each in (moved, frozen)))
    assert (norm["bias"][0][~hidden] != 0).any()


def test_without_feature_normalisation_it_stays_the_identity_and_weights_into_old_features_may_start_at_zero():
    network = small()
    method = tfm(network, growth=0.5, feature_normalization=False, zero_init_new_to_old=True)
    assert method.per_task == network.per_task
    learner = single(method, network, tasks=2)
    learner = begin(method, learner, make_clock(task=0))
    before = learner.params["dense_1"]["kernel"]
    learner = begin(method, learner, make_clock(task=1))
    mask = mask_of(method, learner, make_clock(task=1))
    assert not any(np.any(mask[f"norm_{index}"][name]) for index in range(2) for name in ("scale", "bias"))
    expected = np.asarray(before).copy()
    assert learner.method_state.owner["dense_1"].tolist() == [0, 0, 1]
    expected[2:, :2] = 0
    np.testing.assert_array_equal(learner.params["dense_1"]["kernel"], expected)


def test_without_weights_from_new_features_into_old_ones_old_features_are_for_all_tasks_what_they_were():
    network = small(hidden=(6, 5), normalization=None)
    method = tfm(network, growth=0.4, connections="into_new")
    learner = grown(method, network, 1)
    first = named(learner.params)
    learner = begin(method, learner, make_clock(task=1))
    owner = {name: np.asarray(leaf) for name, leaf in learner.method_state.owner.items()}
    assert owner["dense_1"].tolist() == [0, 0, 1, 1, masks.FREE]
    mask = named(mask_of(method, learner, make_clock(task=1)))
    for name in ("dense_0", "dense_1"):
        new = np.broadcast_to(owner[name] == 1, first[f"{name}/kernel"].shape)
        if name == "dense_1":  # from what is free nothing is trained either
            new = new & (owner["dense_0"] <= 1)[:, None]
        np.testing.assert_array_equal(np.broadcast_to(mask[f"{name}/kernel"], new.shape), new)
    into_old = np.outer(owner["dense_0"] == 1, owner["dense_1"] == 0)
    expected = np.where(into_old, 0, first["dense_1/kernel"])
    np.testing.assert_array_equal(learner.params["dense_1"]["kernel"], expected)
    moved = jax.tree.map(np.add, learner.params, mask_of(method, learner, make_clock(task=1)))

    @jax.jit
    def look(params, task):
        shown = method.view(params, learner.collections, learner.method_state, task, None)
        return network.apply(*shown, INPUTS).activations

    before, after = (
        jax.tree.map(np.asarray, look(params, jnp.int32(task))) for task, params in enumerate((learner.params, moved))
    )
    for name, leaf in owner.items():
        np.testing.assert_array_equal(after[name][:, leaf == 0], before[name][:, leaf == 0])
        assert np.abs(after[name][:, leaf == 1]).max() > 0
        assert (before[name][:, leaf == 1] == 0).all()


def test_with_binary_masks_a_task_is_a_network_of_its_own_features():
    """Its logits are those of its features cut out, and no weight of another task is in them."""
    network = small(hidden=(6, 5), normalization=None)
    method = tfm(network, growth=0.4, connections="binary")
    learner = grown(method, network, 2)

    @jax.jit
    def look(task):
        shown = method.view(learner.params, learner.collections, learner.method_state, task, jnp.int32(1))
        return shown[1]["gates"], network.apply(*shown, INPUTS).logits

    for task in range(2):
        own = {name: np.flatnonzero(np.asarray(leaf) == task) for name, leaf in learner.method_state.owner.items()}
        gates, found = look(jnp.int32(task))
        assert {name: np.flatnonzero(leaf).tolist() for name, leaf in gates.items()} == {
            name: leaf.tolist() for name, leaf in own.items()
        }
        params = jax.tree.map(np.asarray, learner.params)
        values, entering = INPUTS, np.arange(5)
        for name in ("dense_0", "dense_1"):
            kernel, bias = params[name]["kernel"][np.ix_(entering, own[name])], params[name]["bias"][own[name]]
            values, entering = np.maximum(values @ kernel + bias, 0), own[name]
        logits = values @ params["head"]["kernel"][entering] + params["head"]["bias"]
        np.testing.assert_allclose(found, logits, rtol=1e-5, atol=1e-6)
        mask = named(mask_of(method, learner, make_clock(task=task)))
        assert (mask["dense_1/kernel"][np.ix_(own["dense_0"], own["dense_1"])] == 1).all()
    found = reused(learner.params, layout("tfm", network).wires, learner.method_state.owner, 1)
    assert not any(leaf.any() for leaf in found.values()), "none is reported as reused"


def test_the_first_task_s_normalisation_may_stay_the_identity():
    """Of four tasks three are then stored, and AlexNet's masks with them: the 0.2 MB that the paper prints."""
    stored = functools.partial(metrics.overhead_bytes, features=9344)
    assert stored("feature_normalization", tasks=3) + stored("ternary_feature_mask", tasks=4) == 233_600
    network = small()
    for which, trains in (("later", [0, 1]), (True, [1, 1]), (False, [0, 0])):
        method = tfm(network, growth=0.5, feature_normalization=which)
        learner = grown(method, network, 2)
        for task, expected in enumerate(trains):
            mask = mask_of(method, learner, make_clock(task=task))["norm_0"]
            owner = np.asarray(learner.method_state.owner["dense_0"])
            for part in mask.values():
                np.testing.assert_array_equal(part, expected * (owner <= task))
    with pytest.raises(ValueError, match="tfm's feature_normalization is 'none', but must be True, False or 'later'"):
        tfm(network, feature_normalization="none")


DRIFT = {  # after masking gradients only: (state carried over from the task before, fresh state)
    "sgd": (optax.sgd(0.1), False, False),
    "momentum": (optax.sgd(0.1, momentum=0.9), True, False),
    "decay": (optax.chain(optax.add_decayed_weights(1e-3), optax.sgd(0.1)), True, True),
    "adam": (optax.adam(0.01), True, False),
    "adamw": (optax.adamw(0.01, weight_decay=1e-2), True, True),
    "rmsprop": (optax.rmsprop(0.01), False, False),
}


def test_masked_gradients_do_not_freeze_masked_updates_do():
    """Twenty steps on task 1: how far do the weights of task 0 move?"""
    network = small(hidden=(6, 6))
    method = tfm(network, growth=0.4)
    images = np.random.default_rng(0).normal(size=(16, 5)).astype(np.float32)
    labels, zeros = (images[:, 0] > 0).astype(np.int32), np.zeros(16, np.int32)
    batch = Batch(images, labels, zeros, np.arange(16), np.ones(16, np.float32))
    start = grown(method, network, 1)
    after = begin(method, start, make_clock(task=1))
    clocks = [make_clock(task=task, classes=np.ones([2, 2], bool)) for task in range(2)]

    @functools.partial(jax.jit, static_argnums=(0, 4))
    def steps(optimizer, learner, clock, state, masked):
        mask = method.update_mask(learner, clock)[0]
        guarded = transforms.with_update_mask(optimizer)

        def body(_, carry):
            params, state = carry
            gradients = jax.grad(lambda p: method.loss(p, learner, clock, batch, None)[0])(params)
            if masked:
                updates, state = guarded.update(gradients, state, params, mask=mask)
                return transforms.keep_masked(params, optax.apply_updates(params, updates), mask), state
            gradients = jax.tree.map(lambda g, m: g * m, gradients, mask)
            with jax.numpy_dtype_promotion("standard"):
                updates, state = optimizer.update(gradients, state, params)
            return optax.apply_updates(params, updates), state

        params, state = jax.lax.fori_loop(0, 20, body, (learner.params, state))
        frozen = jax.tree.map(
            lambda new, old, m: jnp.max(jnp.where(m == 0, jnp.abs(new - old), 0.0)), params, learner.params, mask
        )
        return params, state, jnp.max(jnp.stack(jax.tree.leaves(frozen)))

    for name, (optimizer, carried, fresh) in DRIFT.items():
        params, momenta, _ = steps(optimizer, start, clocks[0], optimizer.init(start.params), True)
        second = after._replace(params=params)
        drift = {
            (state, masked): steps(optimizer, second, clocks[1], value, masked)[2]
            for state, value in {"carried": momenta, "fresh": optimizer.init(params)}.items()
            for masked in (False, True)
        }
        assert (float(drift["carried", False]) > 1e-5) == carried, (name, drift)
        assert (float(drift["fresh", False]) > 1e-5) == fresh, (name, drift)
        assert float(drift["carried", True]) == 0
        assert float(drift["fresh", True]) == 0


def test_what_does_not_fit_is_refused_with_the_cure():
    with pytest.raises(ValueError, match=r"batch normalisation.*normalization='feature'"):
        tfm(small(normalization="batch"))
    with pytest.raises(ValueError, match=r"head for each task.*clnp"):
        tfm(small(per_task=()))
    with pytest.raises(ValueError, match=r"growth is 1.5, but must be a finite number"):
        tfm(small(), growth=1.5)
    with pytest.raises(ValueError, match="connections is 'all', but must be one of ternary, into_new, binary"):
        tfm(small(), connections="all")
    with pytest.raises(ValueError, match="either a schedule or chosen"):
        tfm(small(), growth=(0.5, 0.1), candidates=(0.1,))
    with pytest.raises(ValueError, match=r"has none\. Use one of"):
        tfm(small()._replace(wiring=()))
    ungated = tuple(w._replace(outputs=None) if w.path == "dense_0/kernel" else w for w in small().wiring)
    with pytest.raises(ValueError, match="'dense_0/kernel' has none"):
        tfm(small()._replace(wiring=ungated))


def test_the_state_is_one_owner_a_feature():
    network = small()
    state = single(tfm(network), network).method_state
    assert isinstance(state, Owned)
    assert all(np.all(np.asarray(leaf) == masks.FREE) for leaf in state.owner.values())
