"""DEN: selection, drift, splitting, penalties, what is given back and what is trained, each worked by hand."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from cljax import methods, networks, ownership, proximal, task_params
from cljax.methods.den import DUPLICATE, EXPAND, HEAD, RETRAIN, Stamped
from cljax.ownership import masks
from cljax.types import Batch, Wire, make_clock
from tests.zero_forgetting import single

FREE, CLASSES = masks.FREE, np.ones((2, 2), bool)
KEY = jax.random.key(0)
INPUTS = np.random.default_rng(0).normal(size=(6, 4, 4, 1)).astype(np.float32)


def clock(task=1, phase=RETRAIN, **place):
    return make_clock(task=task, phase=phase, classes=CLASSES, **place)


@functools.cache
def drawn_net():
    """Inputs 2, layers of 4 and 3 units, 2 classes; drawn by hand, 0 where there is no edge."""
    network = networks.mlp((2,), 2, hidden=(4, 3))
    method = methods.den(network)
    params = {
        "dense_0": {"kernel": jnp.array([[1.0, 2, 3, 4], [5, 0, 6, 7]]), "bias": jnp.zeros(4)},
        "dense_1": {"kernel": jnp.array([[1.0, 0, 0], [0, 2, 0], [0, 0, 3], [4, 0, 5]]), "bias": jnp.zeros(3)},
        "head": {"kernel": jnp.array([[0.5, 0], [0, 0], [0, 9]]), "bias": jnp.zeros(2)},
    }
    owner = {"dense_0": jnp.array([0, 0, 0, FREE]), "dense_1": jnp.array([0, 0, FREE])}
    learner = jax.jit(lambda: single(method, network, tasks=2))()
    state = Stamped(owner, {**params, "head": {"kernel": None, "bias": None}})
    return method, learner._replace(params=params, method_state=state)


@functools.cache
def jitted(name):
    return jax.jit(getattr(drawn_net()[0], name))


def masks_of(learner, when):
    mask = jitted("update_mask")(learner, when)[0]
    return jax.tree.map(lambda part, leaf: np.broadcast_to(part, leaf.shape).astype(int), mask, learner.params)


def test_the_head_first_then_what_is_connected_to_it_by_weights_that_are_not_zero():
    """The head reads unit 0 of layer 2 (unit 2 is free), which reads unit 0 of layer 1 (unit 3 is free)."""
    _, learner = drawn_net()
    head = masks_of(learner, clock(phase=HEAD))
    assert not any(np.any(leaf) for layer in ("dense_0", "dense_1") for leaf in head[layer].values())
    assert head["head"]["kernel"].tolist() == [[1, 1], [1, 1], [0, 0]]
    assert head["head"]["bias"].all()
    found = masks_of(learner, clock(phase=RETRAIN))
    assert found["dense_0"]["kernel"].tolist() == [[1, 0, 0, 0], [1, 0, 0, 0]]
    assert found["dense_0"]["bias"].tolist() == [1, 0, 0, 0]
    assert found["dense_1"]["kernel"].tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert found["dense_1"]["bias"].tolist() == [1, 0, 0]
    assert found["head"]["kernel"].tolist() == [[1, 1], [0, 0], [0, 0]]


def test_without_new_units_a_stage_of_expansion_trains_nothing():
    _, learner = drawn_net()
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(masks_of(learner, clock(phase=EXPAND))))
    kept = masks_of(learner, clock(phase=DUPLICATE))
    assert not np.any(kept["dense_1"]["kernel"])
    assert kept["head"]["kernel"].tolist() == [[1, 1], [1, 1], [0, 0]]


def test_new_units_train_all_weights_that_touch_them_and_a_first_task_what_it_has():
    _, learner = drawn_net()
    owner = {"dense_0": jnp.array([0, 0, 1, FREE]), "dense_1": jnp.array([0, 0, 1])}
    grown = learner._replace(method_state=learner.method_state._replace(owner=owner))
    found = masks_of(grown, clock(phase=EXPAND))
    assert found["dense_0"]["kernel"].tolist() == [[0, 0, 1, 0]] * 2
    assert found["dense_1"]["kernel"].tolist() == [[0, 0, 1], [0, 0, 1], [1, 1, 1], [0, 0, 0]]
    assert found["head"]["kernel"].tolist() == [[0, 0], [0, 0], [1, 1]]
    assert not found["head"]["bias"].any()
    first = masks_of(learner, clock(task=0))
    assert first["dense_1"]["kernel"].tolist() == [[1, 1, 0], [1, 1, 0], [1, 1, 0], [0, 0, 0]]
    older = masks_of(grown, clock(task=0, newest=1, first=False))
    assert not np.any(older["dense_0"]["kernel"])
    assert older["head"]["kernel"].tolist() == [[1, 1], [1, 1], [0, 0]]


def test_a_task_computes_with_units_of_its_time_or_earlier():
    method, learner = drawn_net()
    state = learner.method_state._replace(
        owner={"dense_0": jnp.array([0, 1, 2, FREE]), "dense_1": jnp.array([1, 0, 2])}
    )
    gates = lambda task: method.view(learner.params, learner.collections, state, jnp.int32(task), None)[1]["gates"]
    assert [gates(task)["dense_0"].tolist() for task in range(3)] == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0]]
    assert [gates(task)["dense_1"].tolist() for task in range(3)] == [[0, 1, 0], [1, 1, 0], [1, 1, 1]]


def test_proximal_steps_are_the_minima_of_their_penalties():
    """Of (w - v)^2 / 2 + a |w|, and of the same with norms of vectors, on a fine grid and along the vector."""
    values, grid = np.float32([-1.3, -0.2, 0.0, 0.45, 2.0]), np.linspace(-3, 3, 6001)
    costs = (grid[:, None] - values) ** 2 / 2 + 0.4 * np.abs(grid)[:, None]
    np.testing.assert_allclose(proximal.soft_threshold(jnp.asarray(values), 0.4), grid[costs.argmin(0)], atol=1e-3)
    norms, parts = np.float32([0.0, 0.3, 0.4, 0.5, 2.0]), np.linspace(0, 1, 10001)
    costs = (parts[:, None] - 1) ** 2 * norms**2 / 2 + 0.4 * parts[:, None] * norms
    factor = np.asarray(proximal.group_factor(jnp.asarray(norms), 0.4))
    np.testing.assert_allclose(factor[1:], parts[costs.argmin(0)][1:], atol=1e-4)
    assert factor[:3].tolist() == [0, 0, 0]
    lost = jnp.array([np.nan])  # a diverged weight is no zero
    assert np.isnan(proximal.soft_threshold(lost, 0.4)).all()
    assert np.isnan(proximal.group_factor(lost, 0.4)).all()


def test_penalties_act_in_their_stages_and_on_new_units_as_groups():
    _, learner = drawn_net()
    owner = {"dense_0": jnp.array([0, 0, 1, 1]), "dense_1": jnp.array([0, 0, FREE])}
    learner = learner._replace(
        method_state=learner.method_state._replace(owner=owner),
        hyper={**learner.hyper, "l1": jnp.float32(1.0), "group_lasso": jnp.float32(2.5)},
    )
    bias = {**learner.params["dense_0"], "bias": jnp.array([1.0, 1, 12, 0])}
    kernel = jnp.array([[1.0, 2, 4, 2.5], [5, 0, 5, 3]])
    params = {**learner.params, "dense_0": {**bias, "kernel": kernel}}
    after = lambda when: jitted("after_step")(learner, learner._replace(params=params), when, None, None).params
    thin = np.float32([[0, 1, 3, 1.5], [4, 0, 4, 2]])
    np.testing.assert_array_equal(after(clock(task=0))["dense_0"]["kernel"], thin)
    np.testing.assert_array_equal(after(clock(phase=HEAD))["dense_0"]["kernel"], thin)  # which the mask then undoes
    for same in (clock(phase=RETRAIN), clock(phase=DUPLICATE), clock(phase=EXPAND, first=False)):
        jax.tree.map(np.testing.assert_array_equal, after(same), params)
    grouped = after(clock(phase=EXPAND))["dense_0"]
    left = 1 - 2.5 / 13  # of the norm of 3, 4 and 12; that of 1.5 and 2 is 2.5, and all of it goes
    np.testing.assert_allclose(grouped["kernel"], thin * np.float32([1, 1, left, 0]), rtol=1e-6)
    np.testing.assert_allclose(grouped["bias"], np.float32([1, 1, 12 * left, 0]), rtol=1e-6)


def test_a_pull_to_where_the_task_began_in_retraining_alone():
    _, learner = drawn_net()
    learner = learner._replace(params=jax.tree.map(lambda leaf: leaf + 2, learner.params))
    zeros = jax.tree.map(jnp.zeros_like, learner.params)
    adjust = jitted("adjust_gradients")
    found = adjust(zeros, learner, clock(phase=RETRAIN), None)
    assert (np.asarray(found["dense_0"]["kernel"]) == 1).all()
    assert not np.any(found["head"]["kernel"])
    for when in (clock(phase=EXPAND), clock(task=0), clock(first=False)):
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(adjust(zeros, learner, when, None)))


def test_drift_is_of_what_older_tasks_see():
    method, learner = drawn_net()
    state = learner.method_state
    owner = {"dense_0": jnp.array([0, 0, 1, FREE]), "dense_1": jnp.array([0, 0, 0])}
    moved = jnp.array([[3.0, 0, 0], [0, 0.1, 0], [7, 7, 7], [8, 8, 8]])
    layer = {"kernel": learner.params["dense_1"]["kernel"] + moved, "bias": jnp.array([4.0, 0, 0])}
    wires = ownership.layout("mine", method.network).wires
    found = ownership.drift({**learner.params, "dense_1": layer}, state.previous, wires, owner, 1)
    np.testing.assert_allclose(found["dense_1"], [5, 0.1, 0], rtol=1e-5)
    assert not np.any(found["dense_0"])


def test_the_most_drifted_are_split_where_few_units_are_free():
    owner = jnp.array([0, 1, FREE, 0, 0, FREE, 0])
    drift = jnp.array([0.3, 9.0, 8.0, 0.05, 0.7, 0.0, 0.5])
    found, sources = ownership.claim_copies(owner, 1, drift, threshold=0.1)
    assert found.tolist() == [0, 1, 1, 0, 0, 1, 0]
    assert sources.tolist() == [0, 1, 4, 3, 4, 6, 6]
    found, sources = ownership.claim_copies(owner, 1, drift, threshold=0.6)
    assert (found.tolist(), sources.tolist()) == ([0, 1, 1, 0, 0, FREE, 0], [0, 1, 4, 3, 4, 5, 6])
    found, sources = ownership.claim_copies(owner, 1, drift, threshold=0.7)
    assert (found.tolist(), sources.tolist()) == (owner.tolist(), list(range(7)))


@functools.cache
def convolutional():
    """A learner of random weights, as the stage of expansion leaves it; what it computed before, and how it ends."""
    network = networks.cnn((4, 4, 1), 2, channels=((8,),), dense=(10,))
    method = methods.den(network, drift_threshold=0.0)
    learner = jax.jit(lambda: single(method, network, tasks=2))()
    drawn = np.random.default_rng(1)
    random = lambda leaf: jnp.asarray(drawn.normal(size=leaf.shape), leaf.dtype)
    params = jax.tree.map(random, learner.params)
    owner = {"conv_0_0": jnp.array([0, 0, 0, 1, 1, FREE, FREE, FREE]), "dense_0": jnp.array([0] * 4 + [1] + [FREE] * 5)}
    previous = task_params.map_leaves(lambda path, leaf: None if path.startswith("head") else leaf, params)
    moved = jax.tree.map(random, params)
    wires = ownership.layout("mine", network).wires
    chosen = {name: leaf == 0 for name, leaf in owner.items()}
    chosen["conv_0_0"] = chosen["conv_0_0"].at[1].set(False)
    within = lambda path, leaf: ownership.between(leaf, wires[path], chosen)
    change = task_params.map_leaves(within, params)
    params = jax.tree.map(lambda leaf, part, new: jnp.where(part == 1, new, leaf), params, change, moved)
    empty = params["conv_0_0"]
    params["conv_0_0"] = {"kernel": empty["kernel"].at[..., 4].set(0), "bias": empty["bias"].at[4].set(0)}
    learner = learner._replace(params=params, method_state=Stamped(owner, previous))
    logits = jax.jit(
        lambda params, owner, task: (
            network.apply(
                *method.view(params, learner.collections, Stamped(owner, previous), task, None), INPUTS
            ).logits
        )
    )
    end = jax.jit(lambda learner, when: method.end_phase(learner, when, fold_of(jnp.zeros(6, jnp.int32)), KEY))
    return learner, logits, end


def fold_of(labels):
    ones = jnp.ones(len(labels), jnp.int32)
    batch = Batch(jnp.asarray(INPUTS), labels, ones, ones, jnp.ones(len(labels), jnp.float32))

    def fold(fn, carry, split="train"):
        return fn(carry, batch)

    fold.max_examples = {"train": len(labels)}
    return fold


def test_units_that_are_zero_are_given_back_and_every_unit_that_drifted_is_split():
    """Channels 0 and 2 and all dense units have moved: copies are at the first free places, the most drifted first."""
    learner, logits, end = convolutional()
    after = end(learner, clock(phase=EXPAND))
    owner = after.method_state.owner
    assert owner["conv_0_0"].tolist() == [0, 0, 0, 1, 1, 1, FREE, FREE]  # 4 was given back, and is a copy's now
    assert owner["dense_0"].tolist() == [0] * 4 + [1] * 5 + [FREE]
    previous, state = learner.method_state.previous, learner.method_state
    norm = lambda unit: np.linalg.norm(
        learner.params["conv_0_0"]["kernel"][..., unit] - previous["conv_0_0"]["kernel"][..., unit]
    )
    bias = lambda unit: learner.params["conv_0_0"]["bias"][unit] - previous["conv_0_0"]["bias"][unit]
    drift = {unit: np.hypot(norm(unit), bias(unit)) for unit in (0, 2)}
    for place, unit in zip((4, 5), sorted(drift, key=drift.get, reverse=True), strict=True):
        np.testing.assert_array_equal(
            after.params["conv_0_0"]["kernel"][..., place], learner.params["conv_0_0"]["kernel"][..., unit]
        )
    head = {"head": learner.params["head"]}  # an older task's, which no later task changes
    old = np.asarray(logits({**previous, **head}, state.owner, 0))
    now = np.asarray(logits({**after.params, **head}, owner, 0))
    drifted = np.asarray(logits(learner.params, state.owner, 0))
    assert now.tobytes() == old.tobytes(), "older tasks compute what they did before the task, by bits"
    assert np.ptp(now) > 1
    assert np.abs(now - drifted).max() > 1
    own = lambda learner: np.asarray(logits(learner.params, learner.method_state.owner, 1))
    np.testing.assert_allclose(own(after), own(learner), rtol=1e-4, atol=1e-4)
    assert np.ptp(own(after)) > 1


def test_units_are_added_where_the_loss_is_above_the_threshold_and_disturb_nobody():
    learner, logits, end = convolutional()
    own = np.asarray(logits(learner.params, learner.method_state.owner, 1), np.float64)
    loss = (np.log(np.exp(own).sum(axis=1)) - own[:, 0]).mean()
    old = np.asarray(logits(learner.params, learner.method_state.owner, 0))
    grown = lambda threshold, when: end(
        learner._replace(
            hyper={**learner.hyper, "loss_threshold": jnp.float32(threshold), "expansion": jnp.float32(2)}
        ),
        when,
    )
    added = lambda after: [int(jnp.sum(leaf == 1)) for leaf in after.method_state.owner.values()]
    none, some = [2, 1], [4, 3]
    assert added(grown(loss * 1.001, clock(phase=RETRAIN))) == none
    after = grown(loss * 0.999, clock(phase=RETRAIN))
    assert added(after) == some
    for when in (clock(phase=DUPLICATE), clock(phase=RETRAIN, first=False), clock(task=0, phase=RETRAIN)):
        assert added(grown(0.0, when)) == none
    assert np.asarray(logits(after.params, after.method_state.owner, 0)).tobytes() == old.tobytes()
    channels, units = (np.asarray(leaf) for leaf in after.method_state.owner.values())
    into_old = np.asarray(after.params["dense_0"]["kernel"])[np.ix_(np.tile(channels == 1, 4), units == 0)]
    assert into_old.size == 4 * 4 * 4
    assert not into_old.any()
    from_free = np.asarray(after.params["dense_0"]["kernel"])[np.ix_(np.tile(channels == FREE, 4), units == 1)]
    assert from_free.size == 4 * 3
    assert not from_free.any(), "or the norm of what leads into a new unit would never be 0"


def test_a_later_task_begins_with_new_free_weights_no_unit_and_a_stamp_of_what_there_is():
    method, learner = drawn_net()
    learner = learner._replace(params=jax.tree.map(lambda leaf: leaf + 2, learner.params))
    begun = jax.jit(lambda learner: method.begin_task(learner, clock(), None, KEY))(learner)
    fresh, _ = method.network.init(KEY)
    for name, free in (("dense_0", 3), ("dense_1", 2)):
        expected = np.asarray(learner.params[name]["kernel"]).copy()
        expected[:, free] = np.asarray(fresh[name]["kernel"])[:, free]
        np.testing.assert_array_equal(begun.params[name]["kernel"], expected)
        np.testing.assert_array_equal(begun.method_state.previous[name]["kernel"], expected)
        assert begun.method_state.owner[name].tolist() == learner.method_state.owner[name].tolist()
    assert begun.method_state.previous["head"] == {"kernel": None, "bias": None}
    empty = {name: jnp.full_like(leaf, FREE) for name, leaf in learner.method_state.owner.items()}
    first = learner._replace(method_state=learner.method_state._replace(owner=empty))
    owner = method.begin_task(first, clock(task=0), None, KEY).method_state.owner
    assert [leaf.tolist() for leaf in owner.values()] == [[0, 0, FREE, FREE], [0, 0, FREE]]  # half, rounded up


def test_the_loss_that_decides_on_units_is_the_mean_over_examples_of_batches_that_are_not_full():
    learner, logits, _ = convolutional()
    network = networks.cnn((4, 4, 1), 2, channels=((8,),), dense=(10,))
    method = methods.den(network, drift_threshold=0.0)
    own = np.asarray(logits(learner.params, learner.method_state.owner, 1), np.float64)
    labels = np.array([[0] * 6, [1] * 6])
    each = np.log(np.exp(own).sum(axis=1)) - own[np.arange(6)[None], labels].reshape(2, 6)
    loss = (each[0].sum() + each[1, 0]) / 7
    assert abs(loss - (each[0].mean() + each[1, 0]) / 2) > 0.05 * loss
    ones = jnp.ones(6, jnp.int32)
    make = lambda labels, weights: Batch(
        jnp.asarray(INPUTS), jnp.asarray(labels), ones, ones, jnp.asarray(weights, jnp.float32)
    )
    batches = make(labels[0], [1] * 6), make(labels[1], [1, 0, 0, 0, 0, 0])
    fold = lambda fn, carry, split="train": functools.reduce(fn, batches, carry)
    end = jax.jit(lambda learner: method.end_phase(learner, clock(phase=RETRAIN), fold, KEY).method_state.owner)
    for factor, added in ((1.001, 2), (0.999, 4)):
        hyper = {**learner.hyper, "loss_threshold": jnp.float32(factor * loss), "expansion": jnp.float32(2)}
        assert int(jnp.sum(end(learner._replace(hyper=hyper))["conv_0_0"] == 1)) == added


def test_a_visit_has_four_stages_and_the_first_one_alone_the_second():
    phases = {phase.name: (phase.fraction, phase.skip_first_task) for phase in drawn_net()[0].phases}
    assert phases == {
        "head": (0.1, True),
        "retrain": (0.4, False),
        "expand": (0.25, True),
        "duplicate": (0.25, True),
    }


def test_the_norm_of_what_leads_into_a_dead_unit_has_no_slope():
    """A group lasso zeroes whole columns: there the root's slope is infinite, beside it it is w / |w|."""
    wires = {"w": Wire("w", None, "gate")}
    norms = lambda kernel: ownership.incoming_norms({"w": kernel}, wires)["gate"].sum()
    slope = jax.grad(norms)(jnp.array([[3.0, 0.0], [4.0, 0.0]]))
    np.testing.assert_allclose(slope, [[0.6, 0], [0.8, 0]], rtol=1e-6)
