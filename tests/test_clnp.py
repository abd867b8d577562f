"""Neural pruning: hand-worked masks and thresholds, interference, frozen statistics, and bits of old tasks."""

from __future__ import annotations

import functools
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cljax import networks, streams, task_params, training
from cljax.methods.clnp import clnp
from cljax.ownership import masks
from cljax.ownership.usage import diagnostics, reused
from cljax.training.driver import drive
from cljax.types import Batch, Phase, make_clock
from tests import conformance
from tests.zero_forgetting import Visits, five_tasks, orders, single

KEY = jax.random.key(0)
FREE = masks.FREE
CLOCK = make_clock(classes=np.ones([1, 2], bool))
shares = jax.jit(diagnostics, static_argnums=0)


def small(**options):
    return networks.mlp((5,), 2, **{"hidden": (4, 3), **options})


def owning(learner, **owner):
    owner = {name: jnp.asarray(np.asarray(value, np.int32)) for name, value in owner.items()}
    return learner._replace(method_state=learner.method_state._replace(owner=owner))


def batch_of(inputs, labels):
    zeros, ones = np.zeros(len(labels), np.int32), np.ones(len(labels), np.float32)
    return Batch(np.asarray(inputs, np.float32), np.asarray(labels), zeros, np.arange(len(labels)), ones)


def folding(train, validation):
    def fold(fn, carry, split="train"):
        for batch in {"train": train, "validation": validation}[split]:
            carry = fn(carry, batch)
        return carry

    return fold


def test_masks_of_three_tasks_by_hand():
    network = small(normalization="batch")
    method = clnp(network)
    learner = owning(single(method, network), dense_0=[0, 0, 1, 1], dense_1=[0, 1, FREE])
    mask_of = jax.jit(lambda *given: method.update_mask(*given)[0])
    update_mask = lambda learner, clock: jax.tree.map(np.asarray, mask_of(learner, clock))
    first, second = (update_mask(learner, make_clock(task=task)) for task in range(2))
    claimed = jax.jit(lambda learner, clock: method.begin_task(learner, clock, None, KEY))(learner, make_clock(task=2))
    assert claimed.method_state.owner["dense_1"].tolist() == [0, 1, 2]
    third = update_mask(claimed, make_clock(task=2))
    assert first["dense_1"]["kernel"].tolist() == [[1, 0, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert second["dense_1"]["kernel"].tolist() == [[0, 1, 0]] * 4, "no weight from new units into old ones"
    assert third["dense_1"]["kernel"].tolist() == [[0, 0, 1]] * 4
    assert third["dense_0"]["kernel"].tolist() == [[0, 0, 0, 0]], "the layer is spent"
    for name in ("scale", "bias"):
        assert [mask["norm_1"][name].tolist() for mask in (first, second, third)] == np.eye(3).tolist()
    seen = [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    assert [mask["head"]["kernel"][:, 0].tolist() for mask in (first, second, third)] == seen
    again = update_mask(claimed, make_clock(task=1, newest=2, first=False))
    assert again["head"]["kernel"][:, 0].tolist() == [1, 1, 0]
    assert all(
        (leaf == 0).all() for name in ("dense_0", "dense_1", "norm_0", "norm_1") for leaf in again[name].values()
    )


def test_a_task_begins_with_new_free_weights_and_leaves_all_others():
    network = small(normalization="batch")
    method = clnp(network)
    learner = owning(single(method, network), dense_0=[0, FREE, 0, FREE], dense_1=[0, FREE, 0])
    statistics = jax.tree.map(lambda leaf: np.asarray(leaf) + np.float32(3), learner.collections["batch_stats"])
    learner = learner._replace(collections={**learner.collections, "batch_stats": statistics})
    begin = jax.jit(lambda learner, key: method.begin_task(learner, make_clock(task=1), None, key))
    after, (fresh, _) = begin(learner, jax.random.key(9)), network.init(jax.random.key(9))
    for name, columns in (("dense_0", [1, 3]), ("dense_1", [1])):
        expected = np.asarray(learner.params[name]["kernel"]).copy()
        expected[:, columns] = np.asarray(fresh[name]["kernel"])[:, columns]
        np.testing.assert_array_equal(after.params[name]["kernel"], expected)
    assert after.collections["batch_stats"]["norm_0"]["mean"].tolist() == [3, 0, 3, 0]
    assert after.collections["batch_stats"]["norm_1"]["var"].tolist() == [4, 1, 4]
    np.testing.assert_array_equal(after.params["head"]["kernel"], learner.params["head"]["kernel"])
    assert after.method_state.owner["dense_0"].tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize("l1", [0.5, (0.1, 0.2, 0.3)])
def test_l1_acts_on_the_free_weights_of_each_kernel_alone(l1):
    network = small()
    method, plain = clnp(network, l1=l1), clnp(network, l1=0.0)
    learner = owning(single(method, network), dense_0=[0, 1, 1, FREE], dense_1=[0, 0, 1])
    batch = batch_of(np.random.default_rng(0).normal(size=(6, 5)), [0, 1, 0, 1, 1, 0])
    clock = make_clock(task=1, classes=np.ones([2, 2], bool))
    mask = jax.tree.map(np.asarray, jax.jit(method.update_mask)(learner, clock)[0])

    @functools.partial(jax.jit, static_argnums=0)
    def gradients(one, learner, key):
        """The loss, and its gradient by the free weights, as a train step makes it."""
        of = lambda params: one.loss(params, learner, clock, batch, key)[0]
        value, found = jax.value_and_grad(of)(learner.params)
        found = one.adjust_gradients(found, learner, clock, batch)
        return value, jax.tree.map(lambda gradient, free: gradient * free, found, mask)

    def look(one, key):
        with_hyper = learner._replace(hyper=single(one, network).hyper)
        return jax.tree.map(np.asarray, gradients(one, with_hyper, key))

    strengths = dict(zip(("dense_0", "dense_1", "head"), np.broadcast_to(l1, 3), strict=True))
    for key in (None, jax.random.key(1)):  # validation and training
        (value, with_l1), (plain_value, without) = look(method, key), look(plain, key)
        for name, alpha in strengths.items():
            difference = with_l1[name]["kernel"] - without[name]["kernel"]
            expected = alpha * np.sign(learner.params[name]["kernel"]) * mask[name]["kernel"]
            np.testing.assert_allclose(difference, expected, atol=1e-6)
            np.testing.assert_array_equal(with_l1[name]["bias"], without[name]["bias"])
        assert value == plain_value, "the loss is the cross-entropy"
    assert (mask["dense_0"]["kernel"][0] == [0, 1, 1, 0]).all()


def test_l1_acts_on_the_affines_of_a_batch_normalisation_with_the_strength_of_the_kernel_before():
    """It undoes the kernel's size: a feature goes by its scale and shift. In a residual network a gate has several."""
    network = networks.resnet((8, 8, 1), 2, blocks=(1, 1), channels=(2, 4), normalization="batch")
    kernels = [path for path in task_params.leaf_paths(network.shapes[0]) if path.endswith("kernel")]
    kernels = [wire.path for wire in network.wiring if wire.path in kernels]
    method = clnp(network, l1=tuple(range(1, len(kernels) + 1)))
    learner = single(method, network)
    signs = task_params.map_leaves(lambda path, leaf: jnp.where(path.endswith("bias"), -3.0, leaf), learner.params)
    learner = learner._replace(params=signs)
    zero = jax.tree.map(jnp.zeros_like, signs)
    added = task_params.by_path(method.adjust_gradients(zero, learner, make_clock(classes=np.ones([2, 2], bool)), None))
    for norm, kernel in (
        ("stem_norm", "stem"),
        ("block_0_0/norm_0", "block_0_0/conv_0"),
        ("block_0_0/norm_1", "block_0_0/conv_1"),
        ("block_1_0/shortcut_norm", "block_1_0/shortcut"),
        ("block_1_0/norm_1", "block_1_0/conv_1"),
    ):
        alpha = 1 + kernels.index(f"{kernel}/kernel")
        np.testing.assert_array_equal(added.pop(f"{norm}/scale"), alpha)
        np.testing.assert_array_equal(added.pop(f"{norm}/bias"), -alpha)
    assert not np.any(added["head/bias"])


@pytest.mark.parametrize("kind", ["feature-wise", "a task's own"])
def test_l1_leaves_other_norms_alone(kind):
    """What a kernel's size still goes through, and what only one task sees."""
    network = small(normalization="feature" if kind == "feature-wise" else "batch")
    if kind == "a task's own":
        network = network._replace(per_task=(*network.per_task, "norm_0/scale", "norm_0/bias"))
    method = clnp(network, l1=0.5)
    learner = single(method, network)
    zero = jax.tree.map(jnp.zeros_like, learner.params)
    added = method.adjust_gradients(zero, learner, make_clock(classes=np.ones([2, 2], bool)), None)
    assert np.any(added["dense_0"]["kernel"])
    assert not any(map(np.any, jax.tree.leaves(added["norm_0"])))


def two_layers(activity, head):
    layer = lambda kernel: {"kernel": np.array(kernel, np.float32), "bias": np.zeros(len(kernel[0]), np.float32)}
    return {"dense_0": layer(np.diag(activity)), "head": layer(head)}


def pruning_case(margin):
    """Four units of activity 1, .5, .1, 0 (mean .4): the third decides one validation example in ten."""
    network = networks.mlp((4,), 2, hidden=(4,))
    method = clnp(network, margin=margin, thresholds=(2.0, 0.2, 0.5))
    learner = single(method, network)
    params = two_layers([1, 0.5, 0.1, -1], [[1, 0], [0, 1], [0, 1], [1, 1]])
    learner = owning(learner._replace(params=params), dense_0=[0, 0, 0, 0])
    unit = lambda *places: np.eye(4)[list(places)]
    train = [batch_of(unit(0, 1), [0, 0]), batch_of(unit(2, 3), [1, 1])]
    validation = [batch_of(unit(0, 0, 0, 0, 0, 0, 1, 1, 1, 2), [0] * 6 + [1] * 4)]
    return network, method, learner, folding(train, validation)


@pytest.mark.parametrize(
    ("margin", "kept"),
    [(0.0, [0, 0, 0, FREE]), (0.1, [0, 0, FREE, FREE]), (0.39, [0, 0, FREE, FREE]), (0.4, [0, FREE, FREE, FREE])],
)
def test_the_largest_threshold_within_the_margin_by_hand(margin, kept):
    """Accuracy is 1, 1, .9, .6 at k = 0, .2, .5, 2 (thresholds 0, .02, .05, .2 on mean activities of .25 to 0)."""
    _, method, learner, fold = pruning_case(margin)
    end = jax.jit(lambda learner, clock: method.end_phase(learner, clock, fold, KEY))
    after = end(learner, CLOCK)
    assert after.method_state.owner["dense_0"].tolist() == kept
    gone, head = np.array(kept) == FREE, np.asarray(after.params["head"]["kernel"])
    np.testing.assert_array_equal(head[gone], 0)
    np.testing.assert_array_equal(head[~gone], learner.params["head"]["kernel"][~gone])
    again = end(owning(learner, dense_0=[0] * 4), CLOCK._replace(first=jnp.bool_(False)))
    assert again.method_state.owner["dense_0"].tolist() == [0] * 4, "a second visit prunes nothing"


def test_without_validation_examples_only_dead_units_go():
    _, method, learner, fold = pruning_case(0.5)
    empty = lambda fn, carry, split="train": fold(fn, carry) if split == "train" else carry
    after = jax.jit(lambda learner: method.end_phase(learner, CLOCK, empty, KEY))(learner)
    assert after.method_state.owner["dense_0"].tolist() == [0, 0, 0, FREE]


def graceful_case(margin):
    """Two trained candidates, by hand; of ten validation examples unit 0 has four, units 1 to 3 have 1, 3 and 2.

    Accuracies at k = 0, .2, .5: 1, .7, .7 with 4, 3, 3 units; .9, .9, .7 with 4, 3, 2.
    """
    network = networks.mlp((4,), 2, hidden=(4,))
    method = clnp(network, margin=margin, thresholds=(0.2, 0.5), candidates=((1e-5, 0.1), (1e-4, 0.3)))
    learner = single(method, network)
    zero, one = [1, 0], [0, 1]
    made = []
    for activity, heads in (
        ([1, 0.5, 0.1, 0.5], [zero, one, one, one]),
        ([1, 0.1, 1, 0.25], [zero, zero, one, one]),
    ):
        made.append(owning(learner._replace(params=two_layers(activity, heads)), dense_0=[0, 0, 0, 0]))
    unit = lambda *places: np.eye(4)[list(places)]
    train = [batch_of(unit(0, 1), [0, 1]), batch_of(unit(2, 3), [1, 1])]
    validation = [batch_of(unit(0, 0, 0, 0, 1, 2, 2, 2, 3, 3), [0] * 4 + [1] * 6)]
    learners = jax.tree.map(lambda *leaves: np.stack(leaves), *made)
    return method, learners, folding(train, validation), np.array([1, 0.9], np.float32)


@pytest.mark.parametrize(
    ("margin", "index", "kept"),
    [
        (0.0, 0, [0, 0, 0, 0]),
        (0.1, 1, [0, FREE, 0, 0]),
        (0.2, 1, [0, FREE, 0, 0]),  # pruned to its own best less .2 it would have .7 and be out: four units were kept
        (0.3, 1, [0, FREE, 0, FREE]),
    ],
)
def test_every_candidate_is_pruned_as_far_as_the_best_of_all_allows_and_the_sparsest_wins(margin, index, kept):
    method, learners, fold, scores = graceful_case(margin)
    offered = method.search.candidates(None, make_clock(), scores)
    np.testing.assert_allclose(offered["l1"], [1e-5, 1e-4])
    np.testing.assert_allclose(offered["learning_rate"], [0.1, 0.3])
    found, after = jax.jit(lambda learners: method.search.choose(scores, learners, CLOCK, fold))(learners)
    assert int(found) == index
    after = jax.tree.map(lambda leaf: np.asarray(leaf)[index], after)
    owner, head = after.method_state.owner["dense_0"], after.params["head"]["kernel"]
    assert owner.tolist() == kept
    expected = np.where(owner[:, None] == FREE, 0, learners.params["head"]["kernel"][index])
    np.testing.assert_array_equal(head, expected)


def test_graceful_forgetting_leaves_out_what_diverged_and_prunes_nothing_at_a_later_visit():
    method, learners, fold, _ = graceful_case(0.3)
    choose = jax.jit(lambda scores, clock: method.search.choose(scores, learners, clock, fold))
    found, _ = choose(np.array([1, -1], np.float32), CLOCK)
    assert int(found) == 0
    again = CLOCK._replace(first=jnp.bool_(False))
    found, after = choose(np.array([0.5, 0.9], np.float32), again)
    assert int(found) == 1, "0.5 is not near 0.9"
    assert not np.any(after.method_state.owner["dense_0"])
    assert method.end_phase(learners, make_clock(), fold, KEY) is learners, "pruned only once all are trained"


def test_the_candidate_chosen_is_pruned_before_it_is_fine_tuned_in_both_drivers():
    stream = conformance.stream(epochs=4)
    network = networks.mlp((8, 8, 1), 3, hidden=(6,), mean=stream.mean, std=stream.std)
    method = clnp(network, margin=0.2, candidates=((1e-4, 0.05), (1e-2, 0.1)), fine_tune=0.5)
    settings, optimizer = training.Settings(learning_rate=0.05, validate=True), optax.sgd(1.0, momentum=0.9)
    whole = training.make_run(method, optimizer, stream, settings)(jax.random.key(0), stream.tables)
    driven = drive(method, optimizer, [(0, stream)], settings)
    for ours, other in zip(whole.epochs, driven.epochs, strict=True):
        assert np.isfinite(ours).all(axis=(0, 2)).tolist() == [True, True], "two epochs of each phase, for each task"
        np.testing.assert_allclose(ours, other[0], rtol=1e-5, atol=1e-6)
    for ours, other in zip(jax.tree.leaves(whole.learner), jax.tree.leaves(driven.learners[0]), strict=True):
        np.testing.assert_allclose(ours, other, rtol=1e-5, atol=1e-6)
    owner = np.asarray(driven.learners[0].method_state.owner["dense_0"])
    assert (owner == FREE).any(), "the last task gave units back"
    cut = np.asarray(driven.learners[0].params["head"]["kernel"])[2][owner == FREE]
    assert (cut == 0).all(), "and fine-tuning did not bring them in again"


@functools.cache
def visits(kind="mlp"):
    stream = five_tasks()
    common = {"normalization": "batch", "mean": stream.mean, "std": stream.std}
    if kind == "mlp":
        network = networks.mlp((8, 8, 1), 2, hidden=(10, 8), dropout=0.2, **common)
    else:
        network = networks.cnn((8, 8, 1), 2, channels=((6, 5),), dense=(7,), **common)
    return network, Visits(clnp(network, fine_tune=0.5 if kind == "mlp" else 0.0), stream)


@functools.cache
def open_gates(kind):
    """`learner -> logits` of every task with all gates open, compiled once."""
    network, made = visits(kind)

    def logits(learner, task):
        gates = jax.tree.map(jnp.ones_like, learner.collections["gates"])
        params = task_params.take_row(learner.params, task, learner.rows)
        return network.apply(params, {**learner.collections, "gates": gates}, made.tables.examples[:24]).logits

    return jax.jit(lambda learner: jax.lax.map(lambda task: logits(learner, task), jnp.arange(5, dtype=jnp.int32)))


@given(
    kind=st.sampled_from(["mlp", "cnn"]),
    l1=st.sampled_from([0.0, 1e-4, 1e-2]),
    margin=st.floats(0, 0.3),
    which=st.integers(0, 3),
    order=orders,
    seed=st.integers(0, 3),
    to_disk=st.booleans(),
)
@settings(max_examples=10, deadline=None)
def test_no_bit_of_old_logits_moves_and_no_interference_weight_survives(kind, l1, margin, which, order, seed, to_disk):
    made = visits(kind)[1]
    with tempfile.TemporaryDirectory() as place:
        start, disk = made.start(seed, l1=l1, margin=margin), place if to_disk else None
        learner = made.run(start, order, which=which, seed=seed, disk=disk)
    owner = {name: np.asarray(leaf) for name, leaf in learner.method_state.owner.items()}
    names = ("dense_0", "dense_1") if kind == "mlp" else ("conv_0_0", "conv_0_1")
    between = owner[names[0]][:, None] > owner[names[1]][None]
    assert (np.asarray(learner.params[names[1]]["kernel"])[..., between] == 0).all()
    last = owner["dense_1" if kind == "mlp" else "dense_0"]
    for task in set(order):
        assert (np.asarray(learner.params["head"]["kernel"])[task][last > task] == 0).all()
    logits = np.asarray(made.logits(learner))
    for task, found in enumerate(open_gates(kind)(learner)):
        if task in order:
            np.testing.assert_allclose(found, logits[task], rtol=1e-6, atol=1e-6)


def test_units_of_old_tasks_compute_what_they_did_and_layers_say_how_they_are_shared():
    network, made = visits()
    learner = made.run(made.start(margin=0.3), [0])
    owner = jax.tree.map(np.asarray, learner.method_state.owner)
    assert all((leaf == FREE).any() and (leaf == 0).any() for leaf in owner.values())
    later = made.run(learner, [1], after=[0])

    @jax.jit
    def activations(learner):
        params = task_params.take_row(learner.params, jnp.int32(0), learner.rows)
        return network.apply(params, shown(learner), made.tables.examples[:24]).activations

    before, after = (jax.tree.map(np.asarray, activations(one)) for one in (learner, later))
    for name, leaf in owner.items():
        assert before[name][..., leaf == 0].tobytes() == after[name][..., leaf == 0].tobytes()
    found = jax.tree.map(np.asarray, shares(network, later))
    for name, owner in later.method_state.owner.items():
        owner = np.asarray(owner)
        for task in range(2):
            assert found.used[name][task] == np.float32((owner <= task).mean())
            assert found.newly_used[name][task] == np.float32((owner == task).mean())
            np.testing.assert_allclose(found.free[name][task], (owner > task).mean(), rtol=1e-6)
        assert found.reused[name][0] == 0
        assert found.reused[name][1] == np.float32((owner == 0).mean()), "without exact zeros every unit feeds it"


def test_reuse_by_hand_goes_through_older_units_to_the_task():
    wires = {wire.path: wire for wire in small(hidden=(3, 2)).wiring}
    params = {
        "dense_0": {"kernel": np.ones([5, 3]), "bias": np.zeros(3)},
        "dense_1": {"kernel": np.array([[1, 0], [0, 0.2], [0, 0]]), "bias": np.zeros(2)},
        "head": {"kernel": np.array([[0, 0], [0, -3]]), "bias": np.zeros(2)},
    }
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf.astype(np.float32)), params)
    owner = {"dense_0": jnp.asarray(np.zeros(3, np.int32)), "dense_1": jnp.asarray(np.zeros(2, np.int32))}
    for threshold, first, last in ((0.0, [False, True, False], [False, True]), (0.5, [False] * 3, [False, True])):
        found = reused(params, wires, owner, 1, threshold=threshold)
        assert (found["dense_0"].tolist(), found["dense_1"].tolist()) == (first, last)
    own = {**owner, "dense_1": jnp.asarray(np.array([1, 0], np.int32))}
    assert reused(params, wires, own, 1)["dense_0"].tolist() == [True, True, False]
    assert not reused(params, wires, owner, 0)["dense_0"].any(), "nothing is older than task 0"


def shown(learner):
    gates = {name: (owner <= 0).astype(jnp.float32) for name, owner in learner.method_state.owner.items()}
    return {**learner.collections, "gates": gates}


def test_a_spent_network_transfers_by_its_head():
    network, made = visits()
    learner = made.run(made.start(margin=0.0), [0])
    spent = learner.method_state._replace(owner=jax.tree.map(np.zeros_like, learner.method_state.owner))
    learner = learner._replace(method_state=spent)
    later = made.run(learner, [1], after=[0])
    assert not any(np.asarray(leaf)[1:].any() for leaf in shares(network, later).newly_used.values())
    assert (np.asarray(later.params["head"]["kernel"])[1] != np.asarray(learner.params["head"]["kernel"])[1]).all()


def test_a_shared_head_is_divided_among_tasks():
    data = conformance.digits()
    stream = streams.permuted(data, tasks=3, epochs=1)
    network = networks.mlp((8, 8, 1), 10, hidden=(24, 48), mean=stream.mean, std=stream.std, per_task=())
    made = Visits(clnp(network, margin=0.3, l1=1e-3), stream, epochs=12, optimizers=("adam",))
    learner = made.run(made.start(), [0, 1, 2, 0])
    owner = np.asarray(learner.method_state.owner["dense_1"])
    assert ((owner == 1).any(), (owner == 2).any()) == (True, True)
    assert (np.asarray(learner.params["head"]["bias"]) == 0).all()
    task, cleared = jnp.int32(1), np.array(learner.params["head"]["kernel"])
    cleared[owner != 1] = 5
    moved = learner._replace(params={**learner.params, "head": {**learner.params["head"], "kernel": cleared}})
    images = made.tables.examples[:24]
    predict = jax.jit(made.method.predict)
    seen, same = (np.asarray(predict(each, images, task)) for each in (learner, moved))
    assert (seen == same).all(), "it sees its own units alone"
    found = jax.tree.map(np.asarray, shares(network, learner))
    assert found.reused["dense_0"][2] > 0
    np.testing.assert_allclose(found.used["dense_1"] + found.free["dense_1"], 1, rtol=1e-6)


def test_what_does_not_fit_is_refused_with_the_cure():
    with pytest.raises(ValueError, match="2 numbers for 3 kernels"):
        clnp(small(), l1=(1e-5, 1e-5))
    with pytest.raises(ValueError, match="another form"):
        clnp(small(), candidates=(((1e-5,) * 3, 0.1),))
    stream = conformance.stream()
    phases = (Phase("a", searched=False), Phase("b"))
    for wrong in (phases, phases[:1]):
        with pytest.raises(ValueError, match="those that are not searched must come last"):
            training.check(conformance.build("clnp", stream)._replace(phases=wrong), stream, training.Settings())
    with pytest.raises(ValueError, match=r"fine_tune is .*, but must be a finite number"):
        clnp(small(), fine_tune=1.0)
    network = small(normalization="batch")
    with pytest.raises(ValueError, match=r"statistics.*normalization='batch'"):
        clnp(network._replace(per_task=(*network.per_task, "batch_stats/norm_0/mean")))
    bare = lambda key: (network.init(key)[0], {k: v for k, v in network.init(key)[1].items() if k != "frozen"})
    with pytest.raises(ValueError, match="frozen"):
        clnp(network._replace(init=bare))


def test_surplus_examples_have_no_part_in_pruning():
    """Of batches of four; means are of examples, not of batches: activities are 2/4, .5/4, .1/4 and 0."""
    network = networks.mlp((4,), 2, hidden=(4,))
    method = clnp(network, margin=0.1, thresholds=(0.2,))
    _, _, learner, _ = pruning_case(0.1)
    learner = learner._replace(hyper=single(method, network).hyper)
    unit = lambda *places: np.eye(4)[list(places)]
    weighed = lambda batch, *weights: batch._replace(weights=np.array(weights, np.float32))
    train = [
        weighed(batch_of(unit(0, 0, 1, 3), [0] * 4), 1, 1, 1, 0),
        weighed(batch_of(unit(2, 3, 3, 3), [1] * 4), 1, 0, 0, 0),
    ]
    surplus = weighed(batch_of(unit(2, 2, 2, 2), [1] * 4), 0, 0, 0, 0)
    real = batch_of(unit(0, 0, 0, 0, 0, 0, 1, 1, 1, 2), [0] * 6 + [1] * 4)
    end = jax.jit(lambda learner: method.end_phase(learner, CLOCK, folding(train, [real, surplus]), KEY))
    assert end(learner).method_state.owner["dense_0"].tolist() == [0, 0, FREE, FREE]


def test_fine_tuning_is_at_a_tenth_of_the_rate_and_its_end_prunes_nothing():
    network = networks.mlp((4,), 2, hidden=(4,))
    method = clnp(network, margin=0.4, thresholds=(2.0,), fine_tune=0.25)
    _, _, learner, fold = pruning_case(0.4)
    learner = learner._replace(hyper=single(method, network).hyper)
    assert [float(phase.learning_rate(make_clock())) for phase in method.phases] == [1.0, np.float32(0.1)]
    end = jax.jit(lambda clock: method.end_phase(learner, clock, fold, KEY).method_state.owner["dense_0"])
    assert end(CLOCK).tolist() == [0, FREE, FREE, FREE]
    assert end(CLOCK._replace(phase=jnp.int32(1))).tolist() == [0] * 4
