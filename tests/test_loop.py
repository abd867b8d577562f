"""The one run: its agenda, and its three programs beside visits the plain way."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
from hypothesis import given
from hypothesis import strategies as st

from cljax import methods, streams, training
from cljax.training.loop import Entry, agenda, make_programs
from cljax.training.start import NOTHING
from cljax.types import Clock, Phase, Schedule, Search, make_clock
from tests import conformance
from tests.plain import make_visit
from tests.shared import small

SGD = optax.sgd(1.0, momentum=0.9)
SETTINGS = training.Settings(batch_size=16, learning_rate=0.05, evaluation_batch=32)


def schedule_of(rounds):
    return Schedule(np.array([task for task, _ in rounds]), np.array([epochs for _, epochs in rounds]), None)


phases_of = st.lists(st.tuples(st.floats(0.1, 1.0), st.booleans()), min_size=1, max_size=3).map(
    lambda drawn: tuple(
        Phase(str(number), fraction, skip_first_task=skips and number > 0, searched=number < 2)
        for number, (fraction, skips) in enumerate(drawn)
    )
)


@given(phases_of, st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(0, 3))
def test_the_agenda_has_every_phase_once_a_candidate_and_all_epochs(phases, epochs, candidates):
    class Some:
        pass

    Some.phases, Some.search = phases, Search(None, None, candidates) if candidates else None
    found = agenda(Some, schedule_of(list(enumerate(epochs))))
    assert found == [*sorted(found[:-1]), Entry(len(epochs), 0, 0, 0)]
    assert len(set(found)) == len(found)
    for round, count in enumerate(epochs):
        mine = [entry for entry in found[:-1] if entry.round == round]
        runs = [number for number, phase in enumerate(phases) if round > 0 or not phase.skip_first_task]
        tried = [number for number in runs if phases[number].searched or not candidates]
        for candidate in range(max(candidates, 1)):
            assert [entry.phase for entry in mine if entry.candidate == candidate] == tried
        if candidates:
            assert [entry.phase for entry in mine if entry.candidate == candidates] == [
                p for p in runs if p not in tried
            ]
        chosen = [entry for entry in mine if entry.candidate in (0, candidates)]
        assert sum(entry.epochs for entry in chosen) == count


def test_a_run_is_its_visits_one_after_the_other():
    """Two phases, a revisit, and a search whose chosen candidate goes on with the second phase."""
    stream = conformance.stream(schedule=streams.visits([(0, 2), (1, 2), (0, 2)]))
    network = small(stream)
    rates = jnp.array([0.01, 0.1], jnp.float32)
    chosen = [1, 0, 1]
    base = methods.finetune(network)._replace(phases=(Phase("first", 0.5), Phase("second", 0.5, searched=False)))
    search = Search(
        lambda learner, clock, scores: {"learning_rate": rates},
        lambda scores, learners, clock, fold: (jnp.asarray(chosen, jnp.int32)[clock.round], learners),
        len(rates),
    )
    most = streams.max_examples(stream.tables)
    engine = training.make_engine(base, SGD, SETTINGS, scenario="task", max_examples=most)
    key, visit = jax.random.key(3), jax.jit(make_visit(engine, longest=1))
    learner, losses = jax.jit(engine.init)(key, stream.tables), []
    for round, (task, newest, first) in enumerate([(0, 0, True), (1, 1, True), (0, 1, False)]):
        learner = learner._replace(hyper={"learning_rate": rates[chosen[round]]})
        clock = make_clock(round=round, task=task, newest=newest, first=first)
        learner, log = visit(learner, clock, stream.tables, key, jnp.asarray([1, 1]))
        losses.append(log.epochs.loss)
    found = training.make_run(base._replace(search=search), SGD, stream, SETTINGS)(key, stream.tables)
    np.testing.assert_allclose(found.epochs.loss, np.array(losses), rtol=1e-5)
    for ours, plain in zip(jax.tree.leaves(found.learner), jax.tree.leaves(learner), strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1e-4, atol=1e-5)


def test_no_program_changes_a_run_s_signature():
    """Whatever the entry: one compiled program each serves a whole stream, a search included."""
    stream = conformance.stream()
    method = conformance.build("tfm", stream)
    most = streams.max_examples(stream.tables)
    engine = training.make_engine(method, SGD, SETTINGS._replace(curves_every=1), scenario="task", max_examples=most)
    programs = make_programs(method, engine, stream.schedule)
    key, tables = jax.random.key(0), jax.device_put(stream.tables)
    entry = Entry(*[jnp.int32(0)] * 4)
    signature = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.weak_type), tree)
    run = jax.eval_shape(programs.start, key, tables, NOTHING)
    assert signature(jax.eval_shape(programs.epoch, run, entry, tables, key)) == signature(run)
    assert signature(jax.eval_shape(programs.observe, run, entry, tables)) == signature(run)
    assert signature(jax.eval_shape(programs.turn, run, entry, entry, tables, key)) == signature(run)
    learner = jax.eval_shape(programs.rest, run)
    assert signature(learner) == signature(jax.eval_shape(engine.init, key, tables))


def test_every_hook_is_told_what_the_stream_says_of_its_tasks():
    stream = conformance.stream(scenario="class")
    base, told = conformance.build("tfm", stream), {}

    def listen(name, hook):
        def listening(*given):
            told.setdefault(name, []).extend((one.scenario, one.classes) for one in given if isinstance(one, Clock))
            return hook(*given)

        return listening

    hooks = ("begin_task", "end_phase", "loss", "adjust_gradients", "update_mask", "after_step")
    search = Search(
        *(listen(name, hook) for name, hook in zip(Search._fields, base.search[:2], strict=False)), base.search.size
    )
    method = base._replace(search=search, **{name: listen(name, getattr(base, name)) for name in hooks})
    most = streams.max_examples(stream.tables)
    engine = training.make_engine(method, SGD, SETTINGS, scenario="class", max_examples=most)
    programs = make_programs(method, engine, stream.schedule)
    key, entry = jax.random.key(0), Entry(*[jnp.int32(0)] * 4)
    run = jax.eval_shape(programs.start, key, stream.tables, NOTHING)
    jax.eval_shape(programs.epoch, run, entry, stream.tables, key)
    jax.eval_shape(programs.turn, run, entry, entry, stream.tables, key)
    assert set(told) == {*hooks, "candidates", "choose"}
    assert all(scenario == "class" and classes is not None for found in told.values() for scenario, classes in found)
