"""Methods compose: the laws of `combine`, on small real networks, and what each term must be by hand."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cljax import methods, networks, streams, task_params, training
from cljax.ownership import masks
from cljax.training.step import init_shapes, make_learner
from cljax.types import Sizes, Term, make_clock
from tests import conformance
from tests.shared import assert_close, bits, small
from tests.zero_forgetting import Visits, orders

TERMS = {
    "lwf": methods.distillation,
    "l2_constraint": methods.pull,
    "ewc": methods.consolidation,
    "lfl": methods.features,
    "lwm": methods.attention,
    "si": methods.synaptic_intelligence,
}
NUMBERS = (
    *("lwf.strength", "l2_constraint.strength", "ewc.strength", "lfl.strength", "si.strength"),
    *("lwm.beta", "lwm.gamma"),
)
close = functools.partial(assert_close, rtol=2e-5, atol=2e-5)
REPLAY = functools.partial(methods.exemplars, memory_size=12)
READER = Term("reader", all_heads=True)
"""Reads all heads and adds nothing: the base with its heads kept stacked."""


def pooled(normalization="batch"):
    """A small convolutional network, for its maps."""
    stream = conformance.stream()
    common = {"mean": stream.mean, "std": stream.std, "dropout": 0.2}
    return networks.cnn((8, 8, 1), 3, channels=((4,),), dense=(), pooled=True, normalization=normalization, **common)


LIMITS = streams.max_examples(conformance.stream().tables)


def tables():
    return jax.tree.map(jnp.asarray, conformance.stream().tables)


@functools.cache
def program(*names):
    """Fine-tuning with these terms, in mid-run.

    Returns the method; `(seed, clock, numbers) -> learner, clock, batch`, focused; and, of these and a key, the loss,
    its gradients and metrics.
    """
    method = methods.combine(methods.finetune(pooled()), *(TERMS.get(name, lambda: READER)() for name in names))
    data = tables()

    @jax.jit
    def make(seed, clock, numbers):
        draw = jax.random.key(seed)
        learner = training.make_learner(method, optax.sgd(1.0), data, 0.1, draw, LIMITS)
        away = lambda tree, size, number: jax.tree.map(
            lambda leaf: leaf + size * jax.random.normal(jax.random.fold_in(draw, number), leaf.shape), tree
        )
        terms = {name: jax.tree.map(jnp.abs, away(own, 1.0, 2)) for name, own in learner.method_state.terms.items()}
        learner = learner._replace(
            params=away(learner.params, 0.2, 1),
            method_state=learner.method_state._replace(terms=terms),
            hyper={name: numbers.get(name, value) for name, value in learner.hyper.items()},
        )
        batch = streams.sequential(data, data.train, clock.task, jnp.int32(0), 16)
        return task_params.focus(learner, clock.task), clock._replace(classes=data.classes), batch

    @jax.jit
    def go(seed, clock, key, numbers):
        learner, clock, batch = make(seed, clock, numbers)
        of = lambda params: method.loss(params, learner, clock, batch, key)
        (value, (_, metrics)), gradients = jax.value_and_grad(of, has_aux=True)(learner.params)
        return value, gradients, metrics

    return method, make, go


strengths = st.fixed_dictionaries({name: st.floats(0, 3, width=32) for name in NUMBERS})
places = st.sampled_from([(0, 0, True), (1, 1, True), (2, 2, True), (0, 1, False), (1, 2, False)])


def clock_of(place):
    task, newest, first = place
    return make_clock(task=task, newest=newest, first=first)


def run(names, seed, place, numbers):
    numbers = {name: jnp.float32(value) for name, value in numbers.items()}
    return program(*names)[2](seed, clock_of(place), jax.random.key(seed), numbers)


SCALED = {
    "lwf.strength": "lwf.response",
    "l2_constraint.strength": "l2_constraint.penalty",
    "ewc.strength": "ewc.penalty",
    "lfl.strength": "lfl.features",
    "si.strength": "si.penalty",
    "lwm.beta": "lwm.distillation",
    "lwm.gamma": "lwm.attention",
}


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 99), places, strengths)
def test_the_loss_is_the_sum_and_so_is_its_gradient(seed, place, numbers):
    """Of the base's loss, and of each term's metric times its strength; the gradient is linear in the strengths."""
    alone, whole = run(["reader"], seed, place, {}), run(TERMS, seed, place, numbers)
    values = {name: float(whole[2][metric]) for name, metric in SCALED.items()}
    np.testing.assert_allclose(whole[2]["classification"], alone[0], rtol=1e-5)
    added = sum(np.float32(numbers[name]) * value for name, value in values.items()) if place[1] else 0
    np.testing.assert_allclose(whole[0], alone[0] + added, rtol=2e-5)
    none = dict.fromkeys(NUMBERS, 0.0)
    each = [run(TERMS, seed, place, {**none, name: numbers[name]})[1] for name in NUMBERS]
    close(whole[1], jax.tree.map(lambda base, *terms: base + sum(one - base for one in terms), alone[1], *each))
    if place[1]:
        assert all(value > 0 for name, value in values.items() if name != "lwm.gamma")
    else:
        close(whole[1], alone[1])


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 99), places, strengths)
def test_the_order_of_terms_matters_by_rounding_alone(seed, place, numbers):
    forwards, backwards = (run(names, seed, place, numbers) for names in (TERMS, [*TERMS][::-1]))
    close(forwards, backwards)


@functools.cache
def visits(base, *terms):
    stream = conformance.stream()
    return Visits(methods.combine(base(stream), *(make() for make in terms)), stream)


def mlp(stream, normalization="batch"):
    return small(stream, hidden=(6, 5), normalization=normalization, dropout=0.2)


def finetune(stream):
    return methods.finetune(mlp(stream))


@settings(max_examples=2, deadline=None)
@given(st.integers(0, 99), places)
def test_a_term_of_strength_0_changes_no_bit_of_a_step(seed, place):
    """Of its loss, its gradients, its update masks; op by op, for two programs of the same sum round differently."""

    made = {}

    def step(names):
        method, make, _ = program(*names)
        learner, clock, batch = make(seed, clock_of(place), dict.fromkeys(NUMBERS, jnp.float32(0)))
        learner = learner._replace(params=made.setdefault("params", learner.params))  # drawn by programs, too
        with jax.disable_jit():
            of = lambda params: method.loss(params, learner, clock, batch, jax.random.key(seed))[0]
            return *jax.value_and_grad(of)(learner.params), method.update_mask(learner, clock)

    base, whole = step(["reader"]), step(TERMS)
    assert bits(base[:2]) == bits(whole[:2])
    for mask in jax.tree.leaves(whole[2][0].pop("head")):
        assert mask.reshape(-1).tolist() == [float(task == place[0]) for task in range(3)]
    del base[2][0]["head"]  # the reader has no strength, and old heads train with it
    assert bits(base[2]) == bits(whole[2])


def owned(stream):
    """CLNP, its penalty and its pruning included."""
    return methods.clnp(pooled(), l1=1e-3)


def ternary(stream):
    return methods.tfm(mlp(stream, "feature"))


@settings(max_examples=4, deadline=None)
@given(orders.filter(lambda order: max(order) < 3), st.integers(0, 3), strengths)
@pytest.mark.parametrize("base", [owned, ternary])
def test_a_base_that_forgets_nothing_forgets_nothing_under_all_terms_and_a_memory(base, order, which, numbers):
    """No bit of an old task's logits moves, nor of its head, in any order of visits, under any optimizer."""
    names = [name for name in TERMS if name != "lwm" or base is owned]
    both = visits(base, *(TERMS[name] for name in names), REPLAY)
    assert both.method.zero_forgetting
    numbers = {name: value for name, value in numbers.items() if name.partition(".")[0] in names}
    both.run(both.start(which, **numbers), order, which=which)


# Names


def test_a_name_gives_a_method_with_its_parameters():
    network = mlp(conformance.stream())
    given = {"lwf.temperature": 4.0, "lwf.warm_up": 0.0, "ewc.strength": 7.0, "replay.memory_size": 9}
    method = methods.build("lwf+ewc+replay", network, given)
    assert (method.name, method.memory_size, len(method.phases)) == ("lwf+ewc+replay", 9, 1)
    hyper = init_shapes(method)[3]
    assert set(hyper) == {"strength", "temperature", "ewc.strength", "ewc.decay"}
    _, _, _, numbers = method.init(jax.random.key(0), Sizes(3, 3, LIMITS))
    assert {name: float(value) for name, value in numbers.items()} == {
        "strength": 1.0,
        "temperature": 4.0,
        "ewc.strength": 7.0,
        "ewc.decay": 1.0,
    }
    assert methods.build("finetune", network).name == "finetune"
    swept = training.check_hypers(method, [0, 1], [{"ewc.strength": 1}, {"ewc.strength": 2}])
    assert [float(one["ewc.strength"]) for one in swept] == [1.0, 2.0]


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("ewe", r"There is no method 'ewe'\. There are: clnp, den, df_cnn, .*, tfm\."),
        ("lwf+", r"'' cannot be added to a method\. What can: ewc, l2_constraint, lfl, lwf, lwm, mas, replay, si\."),
        ("lwf+clnp", "'clnp' cannot be added to a method"),
        ("lwf+ewc+ewc", r"'lwf\+ewc\+ewc' has 'ewc' twice"),
        ("ewc+ewc", "has 'ewc' twice"),
    ],
)
def test_names_that_there_are_not(name, error):
    with pytest.raises(ValueError, match=error):
        methods.build(name, mlp(conformance.stream()))


def test_parameters_that_there_are_not():
    network = mlp(conformance.stream())
    for key in ("growth", "ewc.warm_up", "lwm.beta"):
        with pytest.raises(
            ValueError, match=rf"lwf\+ewc has no parameter '{key}'. There are: lwf.temperature, .*ewc.chunk"
        ):
            methods.build("lwf+ewc", network, {key: 1})
    with pytest.raises(ValueError, match="ewc's strength is -1"):
        methods.build("lwf+ewc", network, {"ewc.strength": -1})
    with pytest.raises(ValueError, match=r"ewc's ewc\.strength is given twice"):
        methods.build("ewc", network, {"ewc.strength": 1, "strength": 2})
    with pytest.raises(ValueError, match="Two terms are called 'lwf'"):
        methods.combine(methods.finetune(network), methods.distillation(), methods.distillation())
    nested = methods.combine(methods.combine(methods.finetune(network), methods.pull()), methods.pull())
    with pytest.raises(ValueError, match=r"two numbers called 'l2_constraint\.strength'"):
        init_shapes(nested)
    with pytest.raises(ValueError, match="joint has the examples of earlier tasks anyway"):
        methods.build("joint+replay", network)


def test_a_teacher_is_kept_once_where_the_base_keeps_one():
    network = mlp(conformance.stream())
    teachers = lambda name: [
        state.teacher for state in (init_shapes(methods.build(name, network))[2],) if state.teacher is not None
    ]
    assert not teachers("lwf+lfl")
    assert not teachers("lwf+ewc")
    assert teachers("l2_constraint+lwf"), "its anchor is no teacher"
    (anchor,) = teachers("l2_constraint")
    assert set(anchor) == {"params"}
    assert anchor["params"]["head"] == {"bias": None, "kernel": None}


def test_a_visit_of_the_first_task_ends_too_where_the_last_phase_is_for_later_ones():
    stream = conformance.stream()
    method = methods.build("den+ewc+replay", small(stream), {"replay.memory_size": 20})
    settings = training.Settings(batch_size=16, learning_rate=0.05, evaluation_batch=32)
    learner = training.drive(method, optax.sgd(1.0), [(0, stream)], settings, rounds=1).learners[0]
    assert learner.memory.valid.sum() == 20
    assert np.asarray(learner.method_state.terms["ewc"]["importance"]["dense_0"]["kernel"]).any()


def test_leaves_that_there_are_not_are_refused():
    network = small(conformance.stream())
    term = Term("mine", lambda learner, sizes: ({}, {}), freezes=lambda network: ("haed/kernel",))
    with pytest.raises(ValueError, match="The term 'mine' freezes 'haed/kernel', which is no leaf of the network"):
        methods.combine(methods.finetune(network), term)
    with pytest.raises(ValueError, match="'haed/kernel' in drawn is no leaf of finetune's network, which has dense_0/"):
        methods.copy_at_begin(methods.finetune(network), drawn=("haed/kernel",))


def test_state_of_a_term_that_its_init_does_not_make_is_refused():
    step = lambda before, learner, *_: learner._replace(method_state={"n": jnp.int32(1)})
    stream = conformance.stream()
    method = methods.combine(methods.finetune(mlp(stream, None)), Term("mine", after_step=step))
    with pytest.raises(TypeError, match=r"term 'mine' returns the state .*which its init did not make"):
        training.make_run(method, optax.sgd(0.1), stream)(jax.random.key(0), stream.tables)


def test_two_memories_are_refused():
    two = methods.exemplars(memory_size=20), methods.exemplars(memory_size=30)._replace(name="more")
    with pytest.raises(ValueError, match="replay and more have a memory each, but a learner has one"):
        methods.combine(methods.finetune(mlp(conformance.stream(), None)), *two)


@pytest.mark.parametrize(("base", "moves"), [("finetune", False), ("single_task", True)])
def test_a_head_is_a_shared_one_where_the_base_gives_no_task_its_own(base, moves):
    method = methods.build(f"{base}+lfl", small(conformance.stream())._replace(per_task=()))
    init = lambda: make_learner(method, optax.sgd(1.0), conformance.stream().tables, 0.1, jax.random.key(0))
    mask = jax.jit(lambda: method.update_mask(task_params.focus(init(), jnp.int32(1)), make_clock(task=1))[0])()
    assert np.all(mask["head"]["kernel"]) == moves


def test_a_term_s_hooks_get_its_own_state_and_numbers_and_what_they_change_is_kept():
    network = mlp(conformance.stream(), None)

    def init(learner, sizes):
        return {"seen": jnp.zeros(sizes.tasks), "steps": jnp.int32(0), "heads": jnp.int32(0)}, {
            "size": jnp.float32(3.0)
        }

    def begin_task(learner, clock, fold, key, respond):
        assert set(learner.method_state) == {"seen", "steps", "heads"}
        count = fold(lambda total, batch: total + batch.weights.sum(), jnp.float32(0))
        seen = learner.method_state["seen"].at[clock.task].set(learner.hyper["size"] * count)
        return learner._replace(method_state={**learner.method_state, "seen": seen})

    def after_step(previous, learner, clock, batch, gradients):
        assert jax.tree.structure(gradients) == jax.tree.structure(learner.params)
        steps = previous.method_state["steps"] + 1
        return learner._replace(method_state={**learner.method_state, "steps": steps})

    def end_visit(learner, clock, fold, key, respond):
        def add(total, batch):
            return total + respond(learner.params, batch).logits.shape[0]

        heads = fold(add, learner.method_state["heads"])  # of all tasks, once a batch
        params = {
            **learner.params,
            "dense_0": jax.tree.map(lambda leaf: jnp.full_like(leaf, 7), learner.params["dense_0"]),
        }
        return learner._replace(params=params, method_state={**learner.method_state, "heads": heads})

    term = Term("mine", init, begin_task, after_step=after_step, end_visit=end_visit, all_heads=True)
    both = Visits(methods.combine(methods.lwf(network), term), conformance.stream(), optimizers=("momentum",))
    learner, size = both.start(), conformance.stream().tables.train.size
    for number, task in enumerate([0, 1, 0]):
        clock = make_clock(round=number, task=task, newest=min(number, 1), first=number < 2)
        learner = both.visit(learner, clock, jnp.int32(0), both.tables, jax.random.key(0))
    state = learner.method_state.terms["mine"]
    assert state["seen"].tolist() == [3 * size[0], 3 * size[1], 0]
    steps = [-(-int(one) // 16) for one in size]
    assert int(state["steps"]) == 2 * (2 * steps[0] + steps[1]), "two phases a visit"
    batches = [-(-int(one) // 32) for one in size]
    assert int(state["heads"]) == 3 * (2 * batches[0] + batches[1])
    assert (np.asarray(learner.params["dense_0"]["kernel"]) == 7).all()


@pytest.mark.parametrize("name", ["tfm+lwf", "clnp+ewc"])
def test_a_search_of_the_base_goes_on_and_given_features_are_the_first_task_s(name):
    """Candidates are trained on the sum, the one chosen, pruned, is measured; the owners handed on are the base's."""
    stream, first = conformance.stream(epochs=1), name.partition("+")[0]
    pruned = {"clnp.candidates": ((1e-4, 0.05), (1e-3, 0.02)), "clnp.margin": 0.3}
    options = {"tfm": {"tfm.candidates": (0.2, 0.6)}, "clnp": pruned}[first]
    method = methods.build(name, small(stream), options)
    run = training.make_run(
        method, optax.sgd(1.0), stream, training.Settings(batch_size=16, learning_rate=0.05, evaluation_batch=32)
    )
    result = run(jax.random.key(0), stream.tables)
    prints = np.asarray(result.evaluation.fingerprint)
    assert all((prints[task:, task] == prints[task, task]).all() for task in range(3))
    assert run.step.traces == 1
    owner = result.learner.method_state.owner
    assert {name: leaf.shape for name, leaf in owner.items()} == {"dense_0": (6,)}
    if first == "clnp":
        free = np.asarray(owner["dense_0"]) == masks.FREE
        importance = np.asarray(result.learner.method_state.terms["ewc"]["importance"]["dense_0"]["kernel"])
        assert free.any()
        assert importance[:, ~free].any()
        assert not importance[:, free].any()
        anchor = result.learner.method_state.teacher["params"]["dense_0"]
        assert bits(anchor) == bits(result.learner.params["dense_0"])
    wide = methods.build(name, small(stream))
    leaves = training.given_params(wide, small(stream, hidden=(3,)).init(jax.random.key(1))[0])
    both = Visits(wide, stream, optimizers=("momentum",))
    learner = training.start_from(wide, both.start(), leaves)
    learner = both.visit(learner, make_clock(), jnp.int32(0), both.tables, jax.random.key(0))
    given = learner.method_state.owner["dense_0"].tolist()
    assert given[:3] == [0, 0, 0] or first == "clnp", "which gives inactive ones back"
    assert set(given[3:]) == {masks.FREE}
