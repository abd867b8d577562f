"""Learning without Forgetting's variants: cached responses, more task-specific layers."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cljax import losses, networks, task_params
from cljax.methods.common import as_it_is, depends_on_own, forward, leaves_read
from cljax.methods.distilling import cached
from cljax.methods.lwf import lwf
from cljax.types import Learner, Network, Sizes, Term, make_clock
from tests import conformance
from tests.shared import assert_close, bits, sequential, small
from tests.test_lwf import STUDENT, TEACHER, batch_of, learner_of, phases_of, table

MOMENTUM, RATE = conformance.OPTIMIZERS["momentum"]


@pytest.mark.parametrize("name", ["responses", "start"])
def test_unknown_variants_are_refused(name):
    with pytest.raises(ValueError, match=f"lwf's {name} is 'other', but must be one of"):
        lwf(table(), **{name: "other"})


# Cached responses


def with_responses(learner, responses):
    state = learner.method_state
    return learner._replace(method_state=state._replace(terms={"lwf": {"responses": responses}}))


@functools.cache
def cached_and_not():
    """For both ways: the method, a learner in its second visit, the program of a phase."""
    found = {}
    for responses in ("recomputed", "cached"):
        method = lwf(small(conformance.stream()), responses=responses)
        engine, learner, begin_visit, phase = phases_of(method, MOMENTUM)
        focused = phase(begin_visit(learner, make_clock()), make_clock(phase=1))[2]
        learner = engine.end_visit(focused, make_clock())
        found[responses] = method, begin_visit(learner, make_clock(task=1)), phase
    return found


def test_the_cache_holds_the_teacher_s_logits_of_every_training_image():
    method, learner, _ = cached_and_not()["cached"]
    stream = conformance.stream()
    size, start = stream.tables.train.size, stream.tables.train.start
    cache = np.asarray(learner.method_state.terms["lwf"]["responses"])
    assert cache.shape == (3, size.max(), 3)
    assert size[1] % 32, "the last batch of the fold is a partial one"
    images = stream.tables.examples[stream.tables.train.index[start[1] : start[1] + size[1]]]
    before = learner.method_state.teacher
    learner = learner._replace(collections=before["collections"])
    teach = lambda *given: forward(method.network, as_it_is, *given, make_clock(task=1), images, key=None).logits
    taught = jax.jit(teach)(before["params"], learner)
    np.testing.assert_allclose(cache[:, : size[1]], taught, rtol=1e-5, atol=1e-6)
    assert np.abs(cache[:, size[1] :]).max() > 0, "what follows is still the first task's, of more images"


def test_a_cached_term_begins_a_task_as_it_does_alone():
    begin = lambda learner, clock, *_: learner._replace(method_state={**learner.method_state, "begun": clock.task})
    state = {"begun": jnp.int32(0), "responses": jnp.zeros((1, 4, 2))}
    learner = Learner({}, {}, (), state, {}, None, task_params.resting([]))
    term = cached(Term("own", begin_task=begin))
    found = term.begin_task(learner, make_clock(task=2), lambda fn, carry: carry, None, None)
    assert int(found.method_state["begun"]) == 2


def test_training_on_cached_responses_is_training_on_recomputed_ones():
    """At a first visit, where images are not augmented; at a further one the cache, another task's, is not read."""
    ends = {}
    for responses, (_, learner, phase) in cached_and_not().items():
        for number in (0, 1):
            learner = phase(learner, make_clock(task=1, phase=number))[2]
        learner = with_responses(learner, jnp.full((3, 120, 3), jnp.nan)) if responses == "cached" else learner
        again = phase(learner, make_clock(round=2, task=1, phase=1, first=False))[2]
        ends[responses] = learner.params, again.params
    assert_close(ends["recomputed"], ends["cached"])
    assert np.isfinite(np.asarray(ends["cached"][1]["head"]["kernel"])).all()


def test_the_cache_is_read_in_training_at_a_first_visit_alone():
    method, learner, _ = cached_and_not()["cached"]
    stream = conformance.stream()
    batch = sequential(stream.tables, stream.tables.train, 1, 0, 8)
    other = with_responses(learner, jnp.zeros((3, 400, 3)))
    clock = make_clock(task=1, phase=1, classes=stream.tables.classes)

    @jax.jit
    def response(learner, clock, key, batch=batch):
        return method.loss(learner.params, learner, clock, batch, key)[1][1]["response"]

    key = jax.random.key(0)
    assert response(other, clock, key) != response(learner, clock, key)
    again = clock._replace(first=jnp.bool_(False))
    assert response(other, again, key) == response(learner, again, key)
    assert response(other, clock, None) == response(learner, clock, None)
    mixed = batch._replace(tasks=batch.tasks.at[0].set(0))  # whose position is a place in another task's table
    assert response(other, clock, key, mixed) == response(learner, clock, key, mixed)


def test_a_shared_head_s_responses_are_cached_once():
    method = lwf(table(per_task=()), responses="cached")
    cache = method.init(jax.random.key(0), Sizes(5, 3, {"train": 7}))[2].terms["lwf"]["responses"]
    assert cache.shape == (1, 7, 3)
    learner, clock = learner_of(method, STUDENT, TEACHER, 3), make_clock(task=1, classes=np.ones([3, 3], bool))
    learner = with_responses(learner, cache)
    fold = lambda fn, carry: fn(carry, batch_of(1)._replace(weights=jnp.array([1.0, 0.0])))
    learner = jax.jit(lambda learner: method.begin_task(learner, clock, fold, jax.random.key(0)))(learner)
    cache = np.asarray(learner.method_state.terms["lwf"]["responses"])
    np.testing.assert_array_equal(cache[0, 0], STUDENT[0])
    np.testing.assert_array_equal(cache[0, 1:], 0)
    of = jax.jit(lambda learner, key: method.loss(learner.params, learner, clock, batch_of(1), key))
    value, (_, metrics) = of(learner, jax.random.key(0))
    distilled = jax.jit(functools.partial(losses.distillation, temperature=2.0))
    expected = distilled(STUDENT, np.stack([STUDENT[0], np.zeros(3, np.float32)])).mean()
    np.testing.assert_allclose(metrics["response"], expected, rtol=1e-6)
    assert value > metrics["response"]


# More task-specific layers


def test_all_tasks_layers_are_read_at_once():
    """In `encode` (mlp) and in `decode` (cnn): logits of each task as if alone, what lies below computed once."""
    stream = conformance.stream()
    wide = networks.mlp((8, 8, 1), 3, hidden=(6, 5, 4), mean=stream.mean, std=stream.std)
    deep = networks.cnn((8, 8, 1), 3, channels=((2,), (3,)), dense=(5,), mean=stream.mean, std=stream.std)
    images = jnp.asarray(stream.tables.examples[:4])
    for network, layers, products in ((wide, 2, 4), (deep, 1, 2)):
        method = lwf(network, own_layers=layers)
        assert len(method.stacked) == 2 + 2 * layers
        key = jax.random.key(0)
        resting = task_params.resting(method.per_task, method.stacked, tasks=3)
        stacked, collections = jax.jit(jax.vmap(network.init))(jax.random.split(key, 3))
        kept = task_params.map_leaves(
            lambda path, leaf, resting=resting: leaf if task_params.has_rows(path, resting) else leaf[0], stacked
        )
        collections = jax.tree.map(lambda leaf: leaf[0], collections)
        learner = Learner(kept, collections, (), {}, {}, None, resting)
        read = lambda params, learner=learner, network=network: (
            forward(network, as_it_is, params, learner, make_clock(), images, key=None).logits
        )

        @jax.jit
        def alone(kept, task, resting=resting, collections=collections, network=network):
            return network.apply(task_params.take_row(kept, task, resting), collections, images).logits

        assert_close(jax.jit(read)(kept), jnp.stack([alone(kept, jnp.int32(task)) for task in range(3)]))
        assert str(jax.make_jaxpr(read)(kept)).count("dot_general") == products


@functools.cache
def deep_visits():
    """All variants at once, with normalisation: learners before and after the second visit's two phases."""
    network = small(conformance.stream(), hidden=(6, 5), normalization="batch")
    method = lwf(network, own_layers=1, responses="cached")
    engine, learner, begin_visit, phase = phases_of(method)
    focused = phase(begin_visit(learner, make_clock()), make_clock(phase=1))[2]
    first = engine.end_visit(focused, make_clock())
    begun = begin_visit(first, make_clock(task=1))
    warmed = phase(begun, make_clock(task=1))[2]
    joined = phase(warmed, make_clock(task=1, phase=1))[2]
    assert engine.step.traces == 1
    return {"drawn": learner, "first": first, "begun": begun, "warmed": warmed, "joined": joined}


def named(learner):
    trees = (learner.params, {name: leaf for name, leaf in learner.collections.items() if name == "batch_stats"})
    return {
        path: leaf
        for tree in trees
        for path, leaf in zip(task_params.leaf_paths(tree), jax.tree.leaves(tree), strict=True)
    }


def moved(before, after, *, ndim):
    """The leaves, or the rows of kept leaves as `path, task`, whose bits differ."""
    found = set()
    for path, old in named(before).items():
        new = named(after)[path]
        if old.ndim == ndim[path]:
            found |= {path} if bits(old) != bits(new) else set()
        else:
            found |= {(path, task) for task in range(3) if bits(old[task]) != bits(new[task])}
    return found


OWN = ("dense_1/kernel", "dense_1/bias", "norm_1/scale", "norm_1/bias", "head/kernel", "head/bias")
STATISTICS = ("batch_stats/norm_1/mean", "batch_stats/norm_1/var")
SHARED = ("dense_0/kernel", "dense_0/bias", "norm_0/scale", "norm_0/bias")


def test_each_phase_moves_its_own_rows_normalisation_statistics_included():
    visits = deep_visits()
    network = small(conformance.stream(), hidden=(6, 5), normalization="batch")
    params, collections = network.shapes
    bare = Learner(params, collections, (), {}, {}, None, None)
    ndim = {path: leaf.ndim for path, leaf in named(bare).items()}
    of = lambda task: {(path, task) for path in (*OWN, *STATISTICS)}
    shared = {*SHARED, "batch_stats/norm_0/mean", "batch_stats/norm_0/var"}
    assert moved(visits["drawn"], visits["first"], ndim=ndim) == of(0) | shared
    assert moved(visits["begun"], visits["warmed"], ndim=ndim) == of(1)
    assert moved(visits["warmed"], visits["joined"], ndim=ndim) == of(0) | of(1) | shared


@pytest.mark.parametrize("start", ["first", "last", "drawn"])
def test_a_new_task_s_layers_begin_as_an_earlier_task_s_but_the_head_anew(start):
    before = deep_visits()["first"]
    network = small(conformance.stream(), hidden=(6, 5), normalization="batch")
    method = lwf(network, own_layers=1, start=start)
    begun = method.begin_task(task_params.focus(before, jnp.int32(2)), make_clock(task=2), None, None)
    source = {"first": 0, "last": 1, "drawn": 2}[start]
    for path, leaf in named(before).items():
        now, row = named(begun)[path], 2 if path.startswith("head/") else source
        if path in (*OWN, *STATISTICS):
            assert bits(now) == bits(leaf.at[2].set(leaf[row])), path
        else:
            assert bits(now) == bits(leaf), path
    if start == "first":
        held, teacher = named(deep_visits()["begun"]), deep_visits()["begun"].method_state.teacher["params"]
        assert bits(held["dense_1/kernel"][1]) == bits(held["dense_1/kernel"][0])
        assert bits(held["head/kernel"][1]) != bits(held["head/kernel"][0])
        assert bits(teacher["dense_1"]["kernel"]) == bits(held["dense_1/kernel"])


def test_layers_of_a_task_s_own_below_shared_statistics_are_refused():
    stream = conformance.stream()
    network = small(stream, hidden=(6, 5), normalization="batch")
    own = ("dense_1/kernel", "dense_1/bias", *network.per_task)
    with pytest.raises(ValueError, match=r"statistics all tasks share \(.*batch_stats/norm_1/mean.*own_last_layers"):
        lwf(network._replace(per_task=own))
    lwf(network._replace(per_task=(*own, *STATISTICS)))
    lwf(small(stream, hidden=(6, 5))._replace(per_task=own))
    with pytest.raises(ValueError, match=r"The last 2 hidden layers cannot be a task's own.* from 1 to 1"):
        lwf(network, own_layers=2)
    assert not depends_on_own(network._replace(per_task=()), lambda output: output.logits)


def test_what_a_pass_reads_is_found_whatever_it_is_made_of():
    """Loops, branches, custom rules and references: as a batch of two parameters in place of one shows it."""

    def pass_of(apply):
        def init(key):
            return {name: jnp.ones(3) for name in ("used", "unused", "looped")}, {}

        def encode(params, collections, inputs, *, train, key):
            return apply(params, inputs), {}, collections

        decode = lambda params, collections, maps, **_: ((maps, maps), {}, collections)
        return Network(init, encode, decode, (), (), (3,), 3)

    def loops(params, inputs):
        other = jnp.exp(params["unused"])
        both = jax.lax.fori_loop(0, 3, lambda _, carry: carry * params["looped"][None, :], inputs)
        return jnp.where(inputs > 0, jax.nn.relu(both + params["used"][None, :]), jnp.zeros_like(other)[None, :])

    def kept(params, inputs):
        place = jax.new_ref(jnp.zeros(3))
        place[...] = params["used"] * params["looped"]
        return inputs * place[...][None, :]

    for apply in (loops, jax.jit(loops), jax.checkpoint(loops), kept):
        assert leaves_read(pass_of(apply), lambda output: output.features) == {"used", "looped"}
