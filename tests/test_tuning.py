"""Choosing numbers without the future: the rule on scores made by hand, and one small run beside the same by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cljax import methods, report, streams, training
from cljax.methods.tuning import standing
from cljax.report import schema
from cljax.training.search import repeats
from cljax.types import Learner, Search, Sizes, make_clock
from tests import conformance
from tests.plain import make_visit
from tests.shared import small

SGD = optax.sgd(1.0, momentum=0.9)
NONE = -1.0
CONFIG = {"methods": ["lwf"], "training": {"curves_every": 0}}


def learner_of(method):
    """A learner of a method's numbers, and of nothing else."""
    sizes = Sizes(3, 3, {"train": 8, "validation": 8, "test": 8})
    hyper = jax.jit(lambda key: method.init(key, sizes)[3])(jax.random.key(0))
    return Learner({}, {}, (), {}, {**hyper, "learning_rate": jnp.float32(7.0)}, None, None)


def asked(method, results, *, task=1):
    """What is trained where accuracies are those of `results`, and what is chosen: numbers, and a place.

    `results(numbers)` is a candidate's accuracy; candidates that repeat earlier numbers are not asked for.
    """
    learner, clock, count = learner_of(method), make_clock(task=task), method.search.size
    scores, trained = np.full(count, NONE, np.float32), []
    for candidate in range(count):
        options = method.search.candidates(learner, clock, jnp.asarray(scores))
        assert all(value.shape == (count,) and value.dtype == jnp.float32 for value in options.values())
        numbers = {name: float(value[candidate]) for name, value in options.items()}
        if not repeats(options, jnp.int32(candidate)):
            trained.append(numbers)
            scores[candidate] = results(numbers)
    learners = jax.tree.map(lambda leaf: jnp.stack([leaf] * count), learner)
    index, after = method.search.choose(jnp.asarray(scores), learners, clock, None)
    assert after is learners
    assert index.dtype == jnp.int32
    return trained, {name: float(value[int(index)]) for name, value in options.items()}


def lwf(**options):
    return methods.tuned(
        methods.lwf(small(conformance.stream()), strength=0.5), learning_rates=(0.1, 0.2, 0.05), **options
    )


@pytest.mark.parametrize(
    ("accuracies", "chosen"),
    [
        ({4.0: 0.81}, 4.0),  # the first is near enough: nothing more is trained
        ({4.0: 0.5, 2.0: 0.79, 1.0: 0.85}, 1.0),
        ({4.0: 0.1, 2.0: 0.2, 1.0: 0.79, 0.5: 0.6}, 0.0),  # none is: plain fine-tuning, not 0.25, which was not tried
    ],
)
def test_strengths_fall_until_one_is_near_enough_and_none_untried_is_chosen(accuracies, chosen):
    """Accuracy is 1 at the best learning rate without the term, so that 0.8 is near enough."""
    plain = {np.float32(0.1): 0.7, np.float32(0.2): 1.0, np.float32(0.05): 0.9}

    def results(numbers):
        strength = numbers["strength"]
        return accuracies[strength] if strength else plain[np.float32(numbers["learning_rate"])]

    trained, found = asked(lwf(start=8.0, tries=4), results)
    assert [one["strength"] for one in trained] == [0.0, 0.0, 0.0, *accuracies]
    np.testing.assert_allclose([one["learning_rate"] for one in trained], [0.1, 0.2, 0.05, *[0.2] * len(accuracies)])
    assert found == {"learning_rate": np.float32(0.2), "strength": chosen}


def test_in_the_first_task_the_learning_rate_alone_is_chosen():
    trained, found = asked(lwf(start=8.0), lambda numbers: numbers["learning_rate"], task=0)
    assert trained == [{"learning_rate": np.float32(rate), "strength": 4.0} for rate in (0.1, 0.2, 0.05)]
    assert found == {"learning_rate": np.float32(0.2), "strength": 4.0}


def test_what_diverges_is_not_chosen():
    """All strengths diverge; then all learning rates do, and a strength does not."""
    diverges = lambda numbers: NONE if numbers["strength"] else 0.5
    trained, found = asked(lwf(tries=3), diverges)
    assert [one["strength"] for one in trained] == [0, 0, 0, 5.0, 2.5, 1.25]
    assert found == {"learning_rate": np.float32(0.1), "strength": 0.0}
    for margin in (0.0, 0.5, 1.0):
        place = standing(jnp.array([NONE, NONE, NONE, 0.1]), 2, jnp.float32(margin))
        assert (int(place.stable), bool(place.found)) == (1, True)
        assert not standing(jnp.array([NONE, NONE, NONE]), 1, jnp.float32(margin)).found
    assert standing(jnp.array([10 / 200, 8 / 200]), 1, jnp.float32(0.2)).found, "just near enough"


def test_the_strengths_of_a_combination_fall_together_and_of_a_method_without_any_the_rate_is_chosen():
    network = small(conformance.stream())
    both = methods.build("lwf+ewc", network, {"lwf.strength": 2.0, "ewc.strength": 30.0})
    tuned = methods.tuned(both, learning_rates=(0.1,), start=2.0, decay=0.25, tries=3)
    results = lambda numbers: 0.9 if numbers["strength"] in (0, 0.25) else 0.3
    trained, found = asked(tuned, results)
    assert [(one["strength"], one["ewc.strength"]) for one in trained] == [(0, 0), (4, 60), (1, 15), (0.25, 3.75)]
    assert (found["strength"], found["ewc.strength"]) == (0.25, 3.75)
    one = methods.tuned(both, "ewc.strength", learning_rates=(0.1,), tries=1)
    assert set(asked(one, lambda numbers: 0.5)[1]) == {"learning_rate", "ewc.strength"}
    plain = methods.tuned(methods.finetune(network), learning_rates=(0.1, 0.3))
    assert asked(plain, lambda numbers: numbers["learning_rate"])[1] == {"learning_rate": np.float32(0.3)}


def test_the_names_of_what_weighs_earlier_tasks():
    network = small(conformance.stream())
    assert methods.finetune(network).strengths == ()
    assert methods.imm(network).strengths == ("strength",)
    pulled = methods.combine(methods.lwf(network), methods.pull(), name="both")
    assert pulled.strengths == ("strength", "l2_constraint.strength")


def test_a_run_is_the_same_as_with_the_chosen_numbers_given_by_hand():
    """Every visit once more with the numbers that its search chose, and no search."""
    stream = conformance.stream(epochs=1)
    base = methods.lwf(small(stream), warm_up=0.0)
    tuned = methods.tuned(base, learning_rates=(0.05, 0.2), start=64.0, decay=0.25, tries=2, margin=0.02)
    settings = training.Settings(batch_size=16, learning_rate=0.05, evaluation_batch=64)
    found = training.drive(tuned, SGD, [(3, stream)], settings)
    said = report.run_record(found, network={}, config=CONFIG)
    schema.check({"runs": [said]})
    assert said["search"]["numbers"]["strength"] == found.search.numbers["strength"].tolist()
    said["search"]["chosen"][0][1] = 4
    with pytest.raises(ValueError, match=r"runs\[0\]\.search\.chosen names a candidate that there is not"):
        schema.check({"runs": [said]})
    search = jax.tree.map(lambda leaf: leaf[0], found.search)
    assert search.epochs[0].tolist() == [1, 1, 0, 0]
    most, key = streams.max_examples(stream.tables), jax.random.key(3)
    engine = training.make_engine(base, SGD, settings, scenario="task", max_examples=most)
    learner, visit = jax.jit(engine.init)(key, stream.tables), jax.jit(make_visit(engine, longest=1))
    for task in range(3):
        chosen, scores = int(search.chosen[task]), search.scores[task]
        near = np.flatnonzero(scores[2:] >= np.float32(0.98) * scores[:2].max())
        assert chosen == (2 + near[0] if near.size and task else np.argmax(scores[:2]))
        assert (search.epochs[task] == (scores >= 0)).all()
        numbers = {name: jnp.float32(value[task, chosen]) for name, value in search.numbers.items()}
        learner = learner._replace(hyper={**learner.hyper, **numbers})
        learner, _ = visit(learner, make_clock(round=task, task=task), stream.tables, key, jnp.asarray([1]))
    for name, leaf in learner.hyper.items():
        assert float(leaf) == float(found.learners[0].hyper[name])
    for ours, plain in zip(*(jax.tree.leaves(one.params) for one in (found.learners[0], learner)), strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1e-4, atol=1e-5)


def test_the_end_of_a_visit_reads_no_examples_for_what_is_not_trained():
    """Of three candidates the last two repeat the first: each batch is folded over once a visit."""
    stream = conformance.stream(epochs=1)
    settings = training.Settings(batch_size=16, learning_rate=0.05, evaluation_batch=16)
    read = []

    def end_phase(learner, clock, fold, key):
        def add(carry, batch):
            jax.debug.callback(lambda: read.append(1))
            return carry

        return fold(add, learner)

    offer = lambda learner, clock, scores: {"learning_rate": jnp.full(3, 0.05, jnp.float32)}
    best = lambda scores, learners, clock, fold: (jnp.argmax(scores).astype(jnp.int32), learners)
    method = methods.finetune(small(stream))._replace(end_phase=end_phase, search=Search(offer, best, 3))
    found = training.drive(method, SGD, [(0, stream)], settings)
    jax.effects_barrier()
    assert found.search.epochs[0].tolist() == [[1, 0, 0]] * 3
    assert found.search.chosen[0].tolist() == [0, 0, 0]
    assert len(read) == sum(-(-size // 16) for size in stream.tables.train.size.tolist())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"learning_rates": ()}, r"learning_rates is \(\), but must be one number or more"),
        ({"learning_rates": (0.0,)}, "A learning rate to try is 0"),
        ({"learning_rates": 0.1}, "learning_rates is 0.1, but must be one number or more"),
        ({"decay": 1.0}, "decay is 1"),
        ({"start": 0.0}, "start is 0"),
        ({"tries": 0}, "tries is 0"),
        ({"margin": 1.5}, "margin is 1.5"),
        ({"strengths": ("weight",)}, "lwf has no number 'weight' .* It has: strength, temperature"),
    ],
)
def test_what_cannot_be_tuned_is_refused(options, says):
    stream = conformance.stream()
    with pytest.raises(ValueError, match=says):
        learner_of(methods.tuned(methods.lwf(small(stream)), **options))


def test_a_method_that_searches_and_a_search_of_another_shape_are_refused():
    stream = streams.split(conformance.digits(), tasks=5, epochs=1)
    network = small(stream)
    with pytest.raises(ValueError, match="finetune chooses its own numbers at each visit: leave its candidates out"):
        methods.tuned(methods.tuned(methods.finetune(network)))
    tuned = methods.tuned(methods.finetune(network))
    wrong = tuned._replace(search=tuned.search._replace(size=2))
    with pytest.raises(ValueError, match=r"has 2 candidates, but offers learning_rate \(3,\)"):
        training.drive(wrong, SGD, [(0, stream)])


def test_learning_rates_are_tried_of_an_optimizer_at_unit_rate_alone():
    stream = conformance.stream()
    run = training.make_run(lwf(), optax.adam(1e-3), stream, training.Settings(batch_size=16))
    with pytest.raises(ValueError, match="The search of lwf tries learning rates, by which the optimizer's would be"):
        jax.eval_shape(run, jax.random.key(0), stream.tables)
