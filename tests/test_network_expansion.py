"""Network expansion: copies by loops in NumPy, old logits by bits, who owns and trains what, and with LwF."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cljax import methods, networks, ownership, task_params
from cljax.ownership import masks
from cljax.training.step import make_learner
from cljax.types import Batch, Tables, make_clock
from tests.shared import focus

TASKS, CLASSES = 3, 2
CLASSES_OF = np.ones((TASKS, CLASSES), bool)
NETWORK = networks.cnn((4, 4, 1), CLASSES, channels=((4,),), dense=(12, 9), normalization="batch")
INPUTS = np.random.default_rng(0).normal(size=(5, 4, 4, 1)).astype(np.float32)


draw_sources = jax.jit(ownership.draw_sources)


@functools.cache
def made(name="network_expansion", old="frozen"):
    """The method; a learner at rest of random numbers; `(learner, task, key) -> learner` that begins a task."""
    method = methods.build(name, NETWORK, {"old": old})
    tables = Tables(*(None,) * 5, CLASSES_OF)
    learner = jax.jit(lambda key: make_learner(method, optax.sgd(1.0), tables, 0.1, key))(jax.random.key(0))
    drawn = np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: (drawn.normal(size=leaf.shape) * 0.7).astype(leaf.dtype), learner.params)
    moments = lambda leaf: drawn.uniform(0.5, 1.5, size=leaf.shape).astype(leaf.dtype)
    statistics = jax.tree.map(moments, learner.collections["batch_stats"])
    learner = learner._replace(params=params, collections={**learner.collections, "batch_stats": statistics})

    @jax.jit
    def begin(learner, task, key):
        clock = make_clock(round=0, classes=CLASSES_OF)._replace(task=task, newest=task)
        focused = method.begin_task(task_params.focus(learner, task), clock, None, key)
        return task_params.write_back(focused, task)

    return method, learner, begin


def begun(tasks, **options):
    """The method, and the learner at rest after the beginnings of so many tasks."""
    method, learner, begin = made(**options)
    for task in range(tasks):
        learner = begin(learner, jnp.int32(task), jax.random.key(task))
    return method, learner


def owner_of(learner):
    state = learner.method_state
    return getattr(state, "base", state).owner


def test_new_units_are_a_quarter_of_the_first_task_s():
    """Of 12 units 8 and twice 2, of 9 units 7 and twice 1, 1.5 rounded down. Lower layers do not grow."""
    _, learner = begun(TASKS)
    counts = {name: np.bincount(leaf, minlength=TASKS).tolist() for name, leaf in owner_of(learner).items()}
    assert counts == {"conv_0_0": [4, 0, 0], "dense_0": [8, 2, 2], "dense_1": [7, 1, 1]}


@pytest.mark.parametrize(("width", "tasks", "new"), [(5120, 2, 1024), (7, 10, 0)])
def test_the_paper_s_1024_of_4096(width, tasks, new):
    method = methods.network_expansion(networks.mlp((1,), 1, hidden=(width,)))
    make = lambda: make_learner(method, optax.sgd(1.0), Tables(*(None,) * 5, np.ones((tasks, 1), bool)), 0.1, key)
    key, owner = jax.random.key(0), {"dense_0": np.full(width, masks.FREE, np.int32)}
    learner = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), jax.eval_shape(make))
    learner = learner._replace(hyper={"growth": np.float32(0.25)})
    learner = learner._replace(method_state=learner.method_state._replace(owner=owner))
    begin = jax.jit(lambda learner, clock: method.begin_task(learner, clock, None, key))
    counts = lambda learner, task: np.sum(np.asarray(learner.method_state.owner["dense_0"]) == task)
    found = begin(task_params.focus(learner, jnp.int32(0)), make_clock(task=0))
    assert counts(found, 0) == width - (tasks - 1) * new
    assert counts(begin(found, make_clock(task=1)), 1) == new


def test_sources_are_different_older_units():
    owner = {"gate": np.array([0, 0, 1, 1, 2, 2, 2, masks.FREE], np.int32)}
    draw = jax.vmap(lambda key: ownership.draw_sources(key, owner, 2)["gate"])
    found = np.asarray(jax.jit(lambda key: draw(jax.random.split(key, 200)))(jax.random.key(0)))
    np.testing.assert_array_equal(np.delete(found, [4, 5, 6], axis=1), np.tile([0, 1, 2, 3, 7], (200, 1)))
    new = found[:, 4:7]
    assert set(new.ravel()) == {0, 1, 2, 3}
    assert all(len(set(row)) == 3 for row in new)
    often = np.bincount(new.ravel()) / new.size
    np.testing.assert_allclose(often, 0.25, atol=0.05)
    crowded = {"gate": np.array([0, 1, 1], np.int32)}
    assert draw_sources(jax.random.key(0), crowded, 1)["gate"].tolist() == [0, 0, 0]
    assert draw_sources(jax.random.key(0), crowded, 0)["gate"].tolist() == [0, 1, 2]


def test_widening_is_that_of_loops():
    params, collections = jax.jit(NETWORK.init)(jax.random.key(0))
    layout = ownership.layout("mine", NETWORK)
    sources = {"conv_0_0": [0, 1, 1, 1], "dense_0": [0, 1, 2, 3, 4, 5, 6, 7, 8, 2, 2, 5], "dense_1": [*range(7), 3, 0]}
    arrays = {name: np.array(places, np.int32) for name, places in sources.items()}
    widen = jax.jit(lambda tree: ownership.widen(tree, layout.wires, arrays))
    params, found = (jax.tree.map(np.asarray, tree) for tree in (params, widen(params)))

    def plain(kernel, first, last):
        """Input i is of feature i % C; a weight is the source's, divided among the copies of its input's source."""
        expected, count = np.array(kernel), len(first or ())
        for i, j in np.ndindex(*kernel.shape[-2:]):
            if last[j] != j:
                place = i - i % count + first[i % count] if first else i
                copies = first.count(first[i % count]) if first else 1
                expected[..., i, j] = kernel[..., place, last[j]] / copies
        return expected

    for name, first, last in (
        ("conv_0_0", None, "conv_0_0"),
        ("dense_0", "conv_0_0", "dense_0"),
        ("dense_1", "dense_0", "dense_1"),
    ):
        expected = plain(params[name]["kernel"], sources.get(first), sources[last])
        np.testing.assert_allclose(found[name]["kernel"], expected, rtol=1e-6)
        np.testing.assert_array_equal(found[name]["bias"], params[name]["bias"][arrays[last]])
    np.testing.assert_array_equal(found["head"]["kernel"], params["head"]["kernel"])
    statistics = jax.tree.map(lambda leaf: np.arange(leaf.size, dtype=leaf.dtype), collections["batch_stats"])
    copied = widen(statistics)["dense_norm_0"]["mean"]
    assert copied.tolist() == sources["dense_0"]


@pytest.mark.parametrize("options", [{}, {"old": "trained"}, {"name": "network_expansion+lwf", "old": "trained"}])
def test_not_a_bit_of_old_logits_changes_by_expanding(options):
    """New units are shown to old tasks where all is trained; the weights out of them are 0, but those trained since."""
    method, before = begun(1, **options)
    _, _, begin = made(**options)

    @jax.jit
    def train(learner, task):
        clock = make_clock(phase=1, classes=CLASSES_OF)._replace(task=task, newest=task)
        focused = task_params.focus(learner, task)
        noise = lambda leaf: jax.random.normal(jax.random.key(2), leaf.shape)
        move = lambda path, leaf, mask: leaf if path.startswith("head") else leaf + mask * noise(leaf)
        params = task_params.map_leaves(move, focused.params, method.update_mask(focused, clock)[0])
        return task_params.write_back(focused._replace(params=params), task)

    predict = jax.jit(lambda learner, task: method.predict(learner, INPUTS, task))

    @jax.jit
    def gates(learner):
        trees = learner.params, learner.collections, learner.method_state
        return method.view(*trees, jnp.int32(0), None)[1]["gates"]

    for task in (1, 2):
        before = train(before, jnp.int32(task - 1))
        old = np.asarray([predict(before, jnp.int32(one)) for one in range(task)])
        after = begin(before, jnp.int32(task), jax.random.key(task))
        now = np.asarray([predict(after, jnp.int32(one)) for one in range(task)])
        assert old.tobytes() == now.tobytes()
        assert np.ptp(now) > 0.1
        opened = jax.tree.map(lambda gate: int(np.sum(gate)), gates(after))
        total = {"dense_0": 8 + 2 * task, "dense_1": 7 + task} if options else {"dense_0": 8, "dense_1": 7}
        assert opened == {"conv_0_0": 4, **total}
        before = after


def test_a_new_unit_computes_what_its_source_does():
    method, learner = begun(2)

    @jax.jit
    def activations_of(learner):
        trees = learner.params, learner.collections
        own = (task_params.take_row(tree, jnp.int32(1), learner.rows) for tree in trees)
        return NETWORK.apply(*method.view(*own, learner.method_state, jnp.int32(1), None), INPUTS).activations

    activations = activations_of(learner)
    _, first, begin = made()
    owner = owner_of(begin(first, jnp.int32(0), jax.random.key(0)))
    owner = {name: np.where(np.asarray(owner_of(learner)[name]) == 1, 1, leaf) for name, leaf in owner.items()}
    sources = draw_sources(jax.random.key(1), owner, 1)
    for name in ("dense_0", "dense_1"):
        new = np.flatnonzero(owner[name] == 1)
        assert len(new)
        twins = np.asarray(activations[name])
        np.testing.assert_allclose(twins[:, new], twins[:, np.asarray(sources[name])[new]], rtol=1e-5, atol=1e-5)


@functools.partial(jax.jit, static_argnums=0)
def update_mask(method, learner, clock):
    focused = task_params.focus(learner, clock.task)
    wide = lambda mask, leaf: jnp.broadcast_to(mask, leaf.shape)
    trees = zip(method.update_mask(focused, clock), (focused.params, focused.collections), strict=True)
    return [jax.tree.map(wide, *pair) for pair in trees]


def masks_of(method, learner, task, **place):
    return jax.tree.map(np.asarray, update_mask(method, learner, make_clock(task=task, classes=CLASSES_OF, **place)))


def test_the_new_head_first_then_what_enters_new_units_and_nothing_else():
    method, learner = begun(2)
    params, statistics = masks_of(method, learner, 1)
    assert not any(np.any(leaf) for name in params if name != "head" for leaf in params[name].values())
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(statistics))
    assert params["head"]["bias"].all()
    params, _ = masks_of(method, learner, 1, phase=1)
    owner = {name: np.asarray(leaf) for name, leaf in owner_of(learner).items()}
    for name, inputs in (("conv_0_0", None), ("dense_0", "conv_0_0"), ("dense_1", "dense_0")):
        new = owner[name] == 1
        seen = np.tile(owner[inputs] <= 1, 4 if name == "dense_0" else 1) if inputs else np.ones(1, bool)
        expected = np.broadcast_to(seen[:, None] & new[None, :], params[name]["kernel"].shape)
        np.testing.assert_array_equal(params[name]["kernel"] == 1, expected)
        np.testing.assert_array_equal(params[name]["bias"] == 1, new)
    assert np.array_equal(params["head"]["kernel"][:, 0] == 1, owner["dense_1"] <= 1)


def test_trained_with_lwf_all_that_is_not_free_is_trained_and_old_heads_hold_it():
    method, learner = begun(2, name="network_expansion+lwf", old="trained")
    params, _ = masks_of(method, learner, 1, phase=1)
    used = {name: np.asarray(leaf) <= 1 for name, leaf in owner_of(learner).items()}
    np.testing.assert_array_equal(params["dense_1"]["kernel"] == 1, used["dense_0"][:, None] & used["dense_1"])
    assert (params["head"]["bias"].any(axis=1) == [True, True, False]).all(), "the old head and the new one"
    assert not masks_of(method, learner, 1)[0]["dense_1"]["kernel"].any(), "in the warm-up the new head alone"
    focused = focus(learner, 1)
    labels, ones = np.zeros(5, np.int32), np.ones(5, np.int32)
    batch = Batch(INPUTS, labels, ones, np.ones(5, np.float32), ones)
    clock = make_clock(task=1, phase=1, classes=CLASSES_OF)
    only = jax.jit(
        jax.value_and_grad(lambda params: method.loss(params, focused, clock, batch, None)[1][1]["lwf.response"])
    )
    value, gradients = only(focused.params)
    taught = np.asarray(jax.jit(method.predict)(learner, INPUTS, jnp.int32(0)), np.float64) / 2
    log_p = taught - np.log(np.exp(taught).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(value, -(np.exp(log_p) * log_p).sum(axis=1).mean(), rtol=1e-5)
    assert all(np.max(np.abs(leaf)) < 1e-6 for leaf in jax.tree.leaves(gradients)), "student and teacher are the same"


def test_a_network_with_a_shared_head_is_refused():
    with pytest.raises(ValueError, match="network_expansion needs a head for each task"):
        methods.network_expansion(networks.mlp((3,), 2, hidden=(4,), per_task=()))
