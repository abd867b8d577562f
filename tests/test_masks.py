"""The algebra of ownership: laws over random owners, hand-worked masks, and networks that keep their old outputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cljax import task_params
from cljax.ownership import masks
from cljax.types import Wire

pack, unpack = jax.jit(masks.pack), jax.jit(masks.unpack, static_argnums=1)
TASKS = 4
SIZE = 6  # of every random array, so that nothing is compiled anew
owners = st.lists(st.sampled_from([0, 1, 2, 3, masks.FREE]), min_size=SIZE, max_size=SIZE).map(
    lambda drawn: jnp.asarray(np.array(drawn, np.int32))
)
laws = settings(max_examples=25, deadline=None)


@given(owners)
@laws
def test_states_of_features(owner):
    seen = np.array([masks.visible(owner, task) for task in range(TASKS)])
    own = np.array([masks.learnable(owner, task) for task in range(TASKS)])
    states = np.array([masks.ternary(owner, task) for task in range(TASKS)])
    assert (seen[1:] >= seen[:-1]).all()  # later tasks see more
    assert (own <= seen).all()
    np.testing.assert_array_equal(own.sum(0), owner != masks.FREE)  # one owner each
    np.testing.assert_array_equal(np.cumsum(own, 0), seen)  # the union of what all tasks so far made
    np.testing.assert_array_equal(states, seen + 1 * own)
    assert states.dtype == np.uint8
    for task in range(TASKS):
        np.testing.assert_array_equal(unpack(pack(states[task]), SIZE), states[task])


@given(owners, owners, st.integers(0, TASKS - 1))
@laws
def test_ternary_weights_follow_the_published_equations(first, last, task):
    mask = np.asarray(masks.weight_mask(first, last, task))
    now = np.outer(masks.visible(first, task), masks.visible(last, task)) * 1.0
    before = np.outer(masks.visible(first, task - 1), masks.visible(last, task - 1)) * 1.0
    np.testing.assert_array_equal(mask, now - before)  # equation 5
    either = np.asarray(masks.learnable(first, task))[:, None] | np.asarray(masks.learnable(last, task))[None]
    np.testing.assert_array_equal(mask, now * either)  # equation 6, among the features there are


@given(owners, owners)
@laws
def test_no_weight_has_two_tasks(first, last):
    ternary = sum(np.asarray(masks.weight_mask(first, last, task)) for task in range(TASKS))
    pruning = sum(np.asarray(masks.weight_mask(first, last, task, rule="pruning")) for task in range(TASKS))
    claimed = np.outer(first != masks.FREE, last != masks.FREE)
    np.testing.assert_array_equal(ternary, claimed)
    np.testing.assert_array_equal(pruning, claimed & ~np.asarray(masks.interference(first, last)))


def test_rules_differ_from_new_into_old_only():
    first, last = jnp.array([0, 1]), jnp.array([0, 1])
    assert masks.weight_mask(first, last, 1).tolist() == [[0, 1], [1, 1]]
    assert masks.weight_mask(first, last, 1, rule="pruning").tolist() == [[0, 1], [0, 1]]
    assert masks.interference(first, last).tolist() == [[False, False], [True, False]]
    with pytest.raises(ValueError, match="rule is 'both', but must be one of ternary, pruning"):
        masks.weight_mask(first, last, 1, rule="both")


@pytest.mark.parametrize("rule", ["ternary", "pruning"])
def test_inputs_and_heads(rule):
    owner = jnp.array([0, 1, 2, masks.FREE])
    into = [masks.weight_mask(None, owner, task, rule=rule).tolist() for task in range(3)]
    assert into == [[[1, 0, 0, 0]], [[0, 1, 0, 0]], [[0, 0, 1, 0]]]
    heads = [masks.weight_mask(owner, None, task, rule=rule)[:, 0].tolist() for task in range(3)]
    assert heads == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0]]
    assert [masks.weight_mask(None, None, task, rule=rule).tolist() for task in range(2)] == [[[1]], [[1]]]


def test_flattened_maps_repeat_their_channels():
    owner, tasks = jnp.array([0, 1, 1]), jnp.array([1, 0])
    mask = masks.weight_mask(owner, tasks, 1, repeat=4, rule="ternary")
    maps = np.zeros([2, 2, 3]) + np.array([0, 1, 1])  # [H, W, C]
    np.testing.assert_array_equal(mask[:, 1], maps.reshape(-1))
    assert mask.shape == (12, 2)
    np.testing.assert_array_equal(masks.interference(owner, tasks, repeat=4)[:, 1], maps.reshape(-1))


def test_the_task_is_data():
    owner = jnp.array([0, 1, 2, masks.FREE])
    every = jax.jit(jax.vmap(lambda task: masks.weight_mask(owner, owner, task)))(jnp.arange(3))
    for task in range(3):
        np.testing.assert_array_equal(every[task], masks.weight_mask(owner, owner, task))


@pytest.mark.parametrize("kind", [np.uint8, np.int16, jnp.uint32])
def test_a_task_is_a_whole_number_of_any_kind(kind):
    owner, task = jnp.array([0, 1, 2, masks.FREE]), kind(1)
    assert masks.ternary(owner, task).tolist() == [1, 2, 0, 0]
    assert masks.weight_mask(None, owner, task).tolist() == [[0, 1, 0, 0]]
    assert masks.weight_mask(owner, None, task).tolist() == [[1], [1], [0], [0]]
    assert masks.claim(owner, task, kind(1)).tolist() == [0, 1, 2, 1]


@given(owners, st.integers(0, SIZE + 2))
@laws
def test_claim(owner, count):
    new = np.asarray(jax.jit(masks.claim)(owner, 7, count))
    free = np.flatnonzero(np.asarray(owner) == masks.FREE)
    expected = np.asarray(owner).copy()
    expected[free[:count]] = 7
    np.testing.assert_array_equal(new, expected)


def test_claim_counts_through_all_axes():
    owner = jnp.array([[masks.FREE, 0], [masks.FREE, masks.FREE]])
    assert masks.claim(owner, 3, 2).tolist() == [[3, 0], [3, masks.FREE]]


@given(
    owners,
    st.lists(st.floats(0, 1, width=32), min_size=SIZE, max_size=SIZE),
    st.floats(0, 1, width=32, allow_subnormal=False),
)
@laws
def test_prune_by_activity(owner, activity, threshold):
    new = np.asarray(masks.prune_by_activity(owner, 1, jnp.array(activity, jnp.float32), threshold=threshold))
    dead = (np.asarray(owner) == 1) & (np.array(activity, np.float32) <= np.float32(threshold))
    np.testing.assert_array_equal(new, np.where(dead, masks.FREE, owner))


def test_a_threshold_is_compared_in_the_activity_s_dtype():
    activity, threshold = jnp.array([0.25, 0.5, 0.75], jnp.bfloat16), np.array([0.25, 0.25, 0.75], np.float32)
    owner = masks.prune_by_activity(jnp.array([1, 1, 1]), 1, activity, threshold=threshold)
    assert owner.tolist() == [masks.FREE, 1, masks.FREE]


def test_claiming_all_and_releasing_the_unused():
    owner = masks.claim(jnp.array([0, masks.FREE, masks.FREE]), 1, 99)
    owner = masks.prune_by_activity(owner, 1, jnp.array([0.0, 0.5, 0.0]), threshold=0.0)
    assert owner.tolist() == [0, 1, masks.FREE]


@given(
    owners,
    st.lists(st.integers(-8, 8), min_size=SIZE, max_size=SIZE),
    st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]),
)
@laws
def test_prune_by_magnitude_against_a_plain_way(owner, weights, fraction):
    owner, weights = owner.reshape(2, 3), jnp.array(weights, jnp.float32).reshape(2, 3)
    new = np.asarray(jax.jit(masks.prune_by_magnitude)(weights, owner, 1, fraction=fraction))
    own, size = np.asarray(owner) == 1, np.abs(weights)
    expected, rank = np.asarray(owner).copy(), round(fraction * own.sum())
    if rank:
        expected[own & (size <= np.sort(size[own])[rank - 1])] = masks.FREE
    np.testing.assert_array_equal(new, expected)


def test_prune_by_magnitude_frees_the_exact_number_of_distinct_weights():
    weights = np.random.default_rng(0).normal(size=(8, 16)).astype(np.float32)
    owner = np.where(np.arange(16) < 4, 0, np.ones([8, 16], np.int32))
    new = np.asarray(jax.jit(masks.prune_by_magnitude)(weights, owner, 1, fraction=0.75))
    freed = new == masks.FREE
    assert freed.sum() == 72
    assert not freed[:, :4].any()
    assert np.abs(weights)[freed].max() < np.abs(weights)[new == 1].min()


@given(st.integers(0, 9), st.integers(0, 2**18 - 1))
@laws
def test_packing_is_exact(count, word):
    states = np.array([[(word >> (2 * index)) & 3 for index in range(count)]] * 2, np.uint8).reshape(2, count)
    packed = pack(states)
    assert packed.shape == (2, -(-count // 4))
    np.testing.assert_array_equal(unpack(packed, count), states)


def test_wrong_types_are_refused():
    with pytest.raises(ValueError, match="owner is float32, but must be int32"):
        masks.visible(jnp.array([0.0]), 0)
    with pytest.raises(ValueError, match="states is int32, but must be uint8"):
        masks.pack(jnp.array([4], jnp.int32))
    with pytest.raises(ValueError, match="packed has shape"):
        masks.unpack(jnp.zeros([1], jnp.uint8), 5)


OWNERS = {"first": jnp.array([0, 1, 0, 2, 1, masks.FREE]), "second": jnp.array([2, 0, 1, masks.FREE, 0])}
SHAPES = {"a": ((3, 6), None, "first"), "b": ((6, 5), "first", "second"), "c": ((5, 4), "second", None)}
WIRING = [Wire(name, inputs, outputs) for name, (_, inputs, outputs) in SHAPES.items()]


INPUTS = np.random.default_rng(2).normal(size=(8, 3)).astype(np.float32)


def random_params(seed):
    draw = np.random.default_rng(seed)
    return {name: draw.normal(size=shape).astype(np.float32) for name, (shape, _, _) in SHAPES.items()}


@jax.jit
def gated(params, gates, inputs):
    hidden = gates["first"][None] * jax.nn.relu(inputs @ params["a"])
    hidden = gates["second"][None] * jax.nn.relu(hidden @ params["b"])
    return hidden @ params["c"]


def gates_of(task):
    return {name: np.asarray(masks.visible(owner, task), np.float32) for name, owner in OWNERS.items()}


def task_mask(name, task, rule):
    _, inputs, outputs = SHAPES[name]
    ends = (OWNERS[end] if end else None for end in (inputs, outputs))
    return np.asarray(masks.weight_mask(*ends, task, rule=rule))


def test_later_tasks_leave_older_ones_every_bit():
    """Weights that the ternary rule lets tasks 1 and 2 change are arbitrary; task 0's logits stay, under its gates."""
    params, other = random_params(0), random_params(1)
    before = np.asarray(gated(params, gates_of(0), INPUTS))
    for task in (1, 2):
        params = {
            name: np.where((task_mask(name, task, "ternary") == 1) & (name != "c"), other[name] * 10, params[name])
            for name in params
        }
        np.testing.assert_array_equal(gated(params, gates_of(0), INPUTS), before)
        assert np.abs(gated(params, gates_of(task), INPUTS) - before).max() > 0.1


def test_pruned_networks_need_no_gates():
    """With interference weights at 0, changes by the pruning rule stay unseen though all gates are open."""
    params, other = random_params(0), random_params(1)
    params["b"] = np.where(masks.interference(OWNERS["first"], OWNERS["second"]), 0, params["b"])
    params["c"] = np.where(np.asarray(masks.visible(OWNERS["second"], 0))[:, None], params["c"], 0)
    everything = {name: np.ones(len(owner), np.float32) for name, owner in OWNERS.items()}
    before = gated(params, everything, INPUTS)
    for task in (1, 2):
        for name in "ab":
            params[name] = np.where(task_mask(name, task, "pruning") == 1, other[name] * 10, params[name])
        np.testing.assert_array_equal(gated(params, everything, INPUTS), before)


@pytest.mark.parametrize("task", [0, 1, 2])
def test_an_extracted_network_has_the_same_logits(task):
    params = jax.device_put(random_params(0))
    gates = {name: np.asarray(masks.visible(owner, task)) for name, owner in OWNERS.items()}
    small = masks.extract(params, WIRING, gates)
    sizes = [gates["first"].sum(), gates["second"].sum()]
    assert [leaf.shape for leaf in small.values()] == [(3, sizes[0]), (sizes[0], sizes[1]), (sizes[1], 4)]
    ones = {name: np.ones(gate.sum(), np.float32) for name, gate in gates.items()}
    np.testing.assert_allclose(gated(small, ones, INPUTS), gated(params, gates_of(task), INPUTS), rtol=1e-5, atol=1e-5)


def test_extract_repeats_channels_and_keeps_other_leaves():
    params = {"dense": {"kernel": jnp.arange(12.0).reshape(6, 2), "bias": jnp.ones(2)}, "other": jnp.ones(3)}
    wiring = [Wire("dense/kernel", "maps", "out", repeat=2), Wire("dense/bias", None, "out")]
    small = masks.extract(params, wiring, {"maps": [True, False, True], "out": [False, True]})
    assert small["dense"]["kernel"].tolist() == [[1.0], [5.0], [7.0], [11.0]]
    assert small["dense"]["bias"].shape == (1,)
    assert small["other"].shape == (3,)
    with pytest.raises(ValueError, match="names 'dens', which is no leaf"):
        masks.extract(params, [Wire("dens", None, None)], {})
    with pytest.raises(ValueError, match="'maps' has 3 features, 1 times"):
        masks.extract(params, [Wire("dense/kernel", "maps", None)], {"maps": [True] * 3})


def test_extract_cuts_statistics_and_gates_too_and_embed_undoes_it():
    wiring = [Wire("dense/kernel", None, "out"), Wire("norm/scale", None, "out"), Wire("head/kernel", "out", None, 2)]
    draw = lambda *shape: jnp.asarray(np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32))
    params = {"dense": {"kernel": draw(4, 3)}, "norm": {"scale": draw(3)}, "head": {"kernel": draw(6, 2)}}
    collections = {
        "batch_stats": {"norm": {"mean": draw(3)}, "other": {"mean": draw(5)}},
        "frozen": {"out": jnp.array([True, False, True])},
        "gates": {"out": jnp.array([1.0, 0.0, 1.0])},
    }
    gates = {"out": collections["gates"]["out"]}
    small = masks.extract(collections, wiring, gates)
    mean = np.asarray(collections["batch_stats"]["norm"]["mean"])
    assert small["batch_stats"]["norm"]["mean"].tolist() == mean[::2].tolist()
    assert small["batch_stats"]["other"]["mean"].shape == (5,)
    assert small["gates"]["out"].tolist() == [1, 1]
    assert small["frozen"]["out"].tolist() == [True, True]
    assert masks.extract({}, wiring, gates) == {}
    same = lambda *trees: all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, trees), strict=True))
    for tree in (params, collections):
        cut = masks.extract(tree, wiring, gates)
        leaves = dict(zip(task_params.leaf_paths(cut), jax.tree.leaves(cut), strict=True))
        zeros = jax.tree.map(lambda leaf: jnp.asarray(np.zeros_like(leaf)), tree)
        wide = masks.embed(zeros, leaves, wiring, gates)
        assert same(cut, masks.extract(wide, wiring, gates))
        if "head" in wide:
            assert not np.asarray(wide["head"]["kernel"])[1::3].any(), "the rest stays"
        assert same(tree, masks.embed(jax.tree.map(np.asarray, tree), leaves, wiring, gates))
    with pytest.raises(ValueError, match=r"'norm/scale' has shape \(3,\), but its kept features need \(2,\)"):
        masks.embed(params, {"norm/scale": np.ones(3)}, wiring, gates)
    with pytest.raises(ValueError, match="names 'dense/kernel', which is no leaf of params"):
        masks.extract({"batch_stats": {"other": {"mean": draw(5)}}}, wiring, gates)


def test_prune_by_magnitude_rounds_to_the_nearest():
    """0.5, 1.5 and 2.25 of one, three and three weights: 0, 2 and 2 are freed, halves going to the even number."""
    prune = jax.jit(masks.prune_by_magnitude)
    weights, owner = np.arange(1, 4, dtype=np.float32), np.zeros(3, np.int32)
    freed = lambda size, fraction: np.sum(
        np.asarray(prune(weights[:size], owner[:size], 0, fraction=fraction)) == masks.FREE
    )
    assert [freed(1, 0.5), freed(3, 0.5), freed(3, 0.75), freed(3, 0.6)] == [0, 2, 2, 2]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda owner: masks.prune_by_magnitude(jnp.ones(2), owner, 0, fraction=-0.1),
        lambda owner: masks.prune_by_magnitude(jnp.ones(2), owner, 0, fraction=float("nan")),
        lambda owner: masks.prune_by_activity(owner, 0, jnp.ones(2), threshold=float("nan")),
        lambda owner: masks.prune_by_activity(owner, 0, jnp.ones(2), threshold=np.array([0.1, -0.1])),
        lambda owner: masks.claim(owner, 0, -1),
        lambda owner: masks.claim(owner, 0, 1.5),
        lambda owner: masks.weight_mask(owner, owner, 0, repeat=0),
        lambda owner: masks.interference(owner, owner, repeat=1.5),
        lambda owner: masks.unpack(masks.pack(jnp.zeros(4, jnp.uint8)), -1),
    ],
)
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="but must be a"):
        wrong(jnp.zeros(2, jnp.int32))
