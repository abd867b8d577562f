"""Ownership over a whole network, by hand: what is shown, trained, severed and drawn anew."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cljax import networks, ownership, task_params
from cljax.ownership import hard_attention, masks
from cljax.types import Wire, make_clock

FREE = masks.FREE
OWNER = {"a": jnp.array([0, 1, FREE]), "b": jnp.array([1, 0])}
WIRES = {
    wire.path: wire
    for wire in (
        Wire("conv/kernel", None, "a"),
        Wire("conv/bias", None, "a"),
        Wire("norm/scale", None, "a"),
        Wire("dense/kernel", "a", "b", repeat=2),
        Wire("head/kernel", "b", None),
        Wire("head/bias", None, None),
    )
}
SHAPES = {
    "conv": {"kernel": (1, 1, 2, 3), "bias": (3,)},
    "norm": {"scale": (3,)},
    "dense": {"kernel": (6, 2)},
    "head": {"kernel": (2, 2), "bias": (2,)},
}
OWN = ("head/kernel", "head/bias", "norm/scale")


def filled(value, shapes=SHAPES):
    return jax.tree.map(lambda shape: jnp.full(shape, value), shapes, is_leaf=lambda leaf: isinstance(leaf, tuple))


def lists(tree):
    return dict(zip(task_params.leaf_paths(tree), (leaf.tolist() for leaf in jax.tree.leaves(tree)), strict=True))


def trained(task, newest, rule="ternary", own=OWN):
    clock = make_clock(task=task, newest=newest)
    return lists(ownership.update_mask(filled(1.0), WIRES, OWNER, clock, task_params.resting(own), rule=rule))


def test_a_task_claims_a_part_of_each_gate_as_far_as_it_is_free_unless_it_has_features_already():
    free = masks.FREE
    owner = {"a": jnp.array([0, 0, free, free, free], jnp.int32), "b": jnp.array([0, free, 0], jnp.int32)}
    claimed = jax.jit(ownership.claim)(owner, 1, 0.4)
    assert lists(claimed) == {"a": [0, 0, 1, 1, free], "b": [0, 1, 0]}, "ceil(1.2) of three, but one is free"
    assert lists(ownership.claim(claimed, 1, 1.0)) == lists(claimed)
    assert lists(ownership.claim(claimed, 2, 1.0)) == {"a": [0, 0, 1, 1, 2], "b": [0, 1, 0]}
    wide = ownership.claim({"a": jnp.full(20_000, masks.FREE)}, 0, 0.33)["a"]
    assert int((wide == 0).sum()) == 6600
    with pytest.raises(ValueError, match="part is 30"):
        ownership.claim(owner, 0, 30)


def test_a_visit_trains_what_its_task_made_and_what_it_sees_of_its_own_rows():
    assert trained(1, 1) == {
        "conv/kernel": [[[[0, 1, 0]]]],
        "conv/bias": [0, 1, 0],
        "dense/kernel": [[1, 0], [1, 1], [0, 0]] * 2,
        "norm/scale": [1, 1, 0],
        "head/kernel": [[1], [1]],
        "head/bias": [1],
    }
    assert trained(1, 1, rule="pruning")["dense/kernel"] == [[1, 0], [1, 0], [0, 0]] * 2


def test_a_task_visited_again_trains_its_own_rows_alone():
    assert trained(0, 1) == {
        "conv/kernel": [[[[0, 0, 0]]]],
        "conv/bias": [0, 0, 0],
        "dense/kernel": [[0, 0]] * 6,
        "norm/scale": [1, 0, 0],
        "head/kernel": [[0], [1]],
        "head/bias": [1],
    }


def test_a_head_that_tasks_share_is_trained_from_the_task_s_own_features_and_has_no_bias():
    shared = trained(1, 1, own=("norm/scale",))
    assert (shared["head/kernel"], shared["head/bias"]) == ([[1], [0]], [0])
    again = trained(0, 1, own=("norm/scale",))
    assert (again["head/kernel"], again["head/bias"]) == ([[0], [0]], [0])
    wires = {path: wire for path, wire in WIRES.items() if path != "head/bias"}  # which no gate is at
    rows = task_params.resting(["norm/scale"])
    found = ownership.update_mask(filled(1.0), wires, OWNER, make_clock(task=1), rows, rule="ternary")
    assert lists(found)["head/bias"] == [0]
    taken = {"a": jnp.ones(3), "b": jnp.array([1.0, 0.25])}
    found = lists(hard_attention.update_mask(filled(1.0), wires, taken, rows))
    assert (found["head/kernel"], found["head/bias"]) == ([[0], [0.75]], [0])


def test_an_own_leaf_without_a_wire_is_trained_whole():
    extra = ownership.update_mask(
        {"extra": jnp.ones(3)}, {}, {}, make_clock(task=0, newest=1), task_params.resting(["extra"]), rule="ternary"
    )
    assert lists(extra) == {"extra": 1}


def test_what_a_task_is_shown():
    collections = {
        "gates": {"a": jnp.ones(3, jnp.bfloat16), "b": jnp.ones(2)},
        "frozen": {"a": jnp.zeros(3, bool)},
        "other": {"x": jnp.ones(1)},
    }
    shown = ownership.apply_gates(collections, OWNER, 1)
    assert lists(shown) == {"gates/a": [1, 1, 0], "gates/b": [1, 1], "frozen/a": [True, False, False], "other/x": [1]}
    assert (shown["gates"]["a"].dtype, shown["gates"]["b"].dtype) == (jnp.bfloat16, jnp.float32)
    own = ownership.apply_gates(collections, OWNER, 1, own=("a",))["gates"]
    assert lists(own) == {"a": [0, 1, 0], "b": [1, 1]}
    for kind in (int, np.uint8, np.int16):
        assert lists(ownership.apply_gates(collections, OWNER, kind(1), newest=kind(1))) == lists(shown)
    again = ownership.apply_gates(collections, OWNER, 0, newest=1)
    assert lists(again) == {"gates/a": [1, 0, 0], "gates/b": [0, 1], "frozen/a": [True] * 3, "other/x": [1]}
    assert "frozen" not in ownership.apply_gates({"gates": collections["gates"]}, OWNER, 0)
    with pytest.raises(ValueError, match=r"owner has .a. of shape"):
        ownership.apply_gates(collections, {**OWNER, "a": jnp.array([0])}, 0)


def test_interference_is_cut_from_newer_into_older_and_from_unseen_into_the_head():
    cut = lists(ownership.cut_interference(filled(1.0), WIRES, OWNER, 0))
    assert cut["dense/kernel"] == [[1, 1], [1, 0], [0, 0]] * 2
    assert cut["head/kernel"] == [[0, 0], [1, 1]]
    alone = lists(ownership.cut_interference(filled(1.0), WIRES, OWNER, 1, only_own=True))
    assert alone["dense/kernel"] == [[1, 1], [1, 0], [1, 1]] * 2
    assert alone["head/kernel"] == [[1, 1], [1, 1]]
    untouched = lists(filled(1.0))
    for path in ("conv/kernel", "conv/bias", "norm/scale", "head/bias"):
        assert cut[path] == alone[path] == untouched[path]


def test_what_older_tasks_have_trained_among_themselves_is_not_severed():
    """From the second task's feature into the first's; the third task's own is cut, and a free one."""
    wires = {"w": Wire("w", "a", "b")}
    owner = {"a": jnp.array([0, 1, 2, FREE]), "b": jnp.array([0, 1, 2])}
    found = ownership.cut_interference({"w": jnp.ones([4, 3])}, wires, owner, 2)
    assert found["w"].tolist() == [[1, 1, 1], [1, 1, 1], [0, 0, 1], [0, 0, 0]]


def test_what_leads_to_free_features_is_drawn_anew():
    drawn = lists(ownership.reinitialize(filled(0.0), filled(1.0), WIRES, OWNER, task_params.resting(OWN)))
    assert drawn == {
        "conv/kernel": [[[[0, 0, 1]] * 2]],
        "conv/bias": [0, 0, 1],
        "norm/scale": [0, 0, 0],
        "dense/kernel": [[0, 0]] * 6,
        "head/kernel": [[0, 0], [0, 0]],
        "head/bias": [0, 0],
    }
    owner = {**OWNER, "b": jnp.array([0, FREE])}
    shared = lists(ownership.reinitialize(filled(0.0), filled(1.0), WIRES, owner, task_params.resting(())))
    assert shared["dense/kernel"] == [[0, 1]] * 6
    assert (shared["head/kernel"], shared["head/bias"]) == ([[0, 0], [1, 1]], [0, 0])
    assert shared["norm/scale"] == [0, 0, 1]
    repeated = {"late": jnp.zeros((6, 1))}
    wire = {"late": Wire("late", "a", None, repeat=2)}
    after = ownership.reinitialize(repeated, {"late": jnp.ones((6, 1))}, wire, OWNER, task_params.resting(()))
    assert lists(after) == {"late": [[0], [0], [1]] * 2}
    statistics = {"norm": {"mean": (3,)}, "loose": {"mean": (3,)}}
    after = ownership.reinitialize(
        filled(0.0, statistics), filled(1.0, statistics), WIRES, OWNER, task_params.resting(())
    )
    assert lists(after) == {"norm/mean": [0, 0, 1], "loose/mean": [0, 0, 0]}
    half = ownership.reinitialize(
        {"conv": {"bias": jnp.zeros(3, jnp.bfloat16)}},
        {"conv": {"bias": jnp.ones(3)}},
        WIRES,
        OWNER,
        task_params.resting(()),
    )
    assert half["conv"]["bias"].dtype == jnp.bfloat16


class State(NamedTuple):
    owner: object


def test_owners_are_known_by_the_gates_that_they_fit():
    gates = {"gates": {"a": jnp.ones(3), "b": jnp.ones(2)}}
    assert ownership.owner_of(State(OWNER), gates) is OWNER
    assert ownership.owner_of(State({"a": OWNER["a"]}), gates) is None
    assert ownership.owner_of(State({**OWNER, "b": jnp.zeros(3, jnp.int32)}), gates) is None
    assert ownership.owner_of(State(3), gates) is None
    assert ownership.owner_of({"owner": OWNER}, gates) is None
    assert lists(ownership.unowned(gates)) == {"a": [FREE] * 3, "b": [FREE] * 2}
    assert ownership.unowned(gates)["a"].dtype == jnp.int32


def test_the_layout_of_a_network():
    own = networks.mlp((2, 2, 1), 2, hidden=(3,), normalization="feature")
    found = ownership.layout("tfm", own)
    assert found.kernels == ("dense_0/kernel", "head/kernel")
    assert found.affines == ("norm_0/scale", "norm_0/bias")
    assert set(found.wires) == {wire.path for wire in own.wiring}
    assert all(path == wire.path for path, wire in found.wires.items())
    assert found.shared_head is None
    shared = own._replace(per_task=())
    assert ownership.layout("clnp", shared).shared_head == "dense_0"


@pytest.mark.parametrize("moves", [True, False])
def test_what_training_changes_beside_the_parameters_must_not_be_shared(moves):
    """A collection of one's own, that a step adds 1 to: refused, unless it belongs to a task."""
    base = networks.mlp((2, 2, 1), 2, hidden=(3,))

    def init(key):
        params, collections = base.init(key)
        return params, {**collections, "count": {"steps": jnp.zeros(1)}}

    def decode(params, collections, maps, *, train, key):
        output, activations, found = base.decode(params, collections, maps, train=train, key=key)
        steps = collections["count"]["steps"] + 1 if train and moves else collections["count"]["steps"]
        return output, activations, {**found, "count": {"steps": steps}}

    network = base._replace(init=init, decode=decode)
    if not moves:
        assert ownership.layout("tfm", network).kernels == ("dense_0/kernel", "head/kernel")
        return
    with pytest.raises(ValueError, match=r"tfm freezes features.*'count/steps', which tasks share"):
        ownership.layout("tfm", network)
    fine = ownership.layout("tfm", network._replace(per_task=(*network.per_task, "count/steps")))
    assert fine.kernels == ("dense_0/kernel", "head/kernel")


def test_networks_that_cannot_be_owned_are_refused():
    network = networks.mlp((2, 2, 1), 2, hidden=(3,))
    bare = lambda key: (network.init(key)[0], {})
    for wrong in (network._replace(wiring=()), network._replace(init=bare)):
        with pytest.raises(ValueError, match="this network has none"):
            ownership.layout("tfm", wrong)
    for path in ("dense_0/kernel", "dense_0/bias"):
        ungated = tuple(wire._replace(outputs=None) if wire.path == path else wire for wire in network.wiring)
        with pytest.raises(ValueError, match=rf"'{path}' has none"):
            ownership.layout("tfm", network._replace(wiring=ungated))
