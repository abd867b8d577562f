"""The learner that a run begins with, and the step that moves it, by hand, of a method without a network."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cljax import methods, networks, task_params
from cljax.training.step import keep_signature, make_learner, make_train_step, phase_learning_rate
from cljax.types import Batch, Learner, Phase, Table, Tables, make_clock
from tests.zero_forgetting import leaving

MOMENTUM = optax.sgd(1.0, momentum=0.5)
KEY = jax.random.key(3)


def init(key, sizes=None):
    first, second = jax.random.split(key)
    params = {"w": jax.random.normal(first, (2,)), "head": jax.random.uniform(second, (3,))}
    return params, {"stats": jnp.zeros(1)}, {"teacher": params, "count": 0}, {"strength": 0.5}


def method(**fields):
    base = methods.finetune(networks.mlp((2,), 2, hidden=(2,)))
    return base._replace(**{"name": "by hand", "init": init, "per_task": ("head",), **fields})


def tables(labels):
    table = Table(np.arange(4), labels, np.array([0, 2, 4]), np.array([2, 2, 0]))
    return Tables(np.zeros((4, 5), np.uint8), table, table, table, None, np.ones((3, 2), bool))


def made(labels=None, max_examples=None, **fields):
    labels = np.zeros(4, np.int32) if labels is None else labels
    return make_learner(method(**fields), MOMENTUM, tables(labels), 0.25, KEY, max_examples)


def test_each_task_s_rows_are_drawn_by_a_key_of_its_own():
    learner = made()
    drawn = [init(jax.random.fold_in(KEY, task))[0] for task in range(3)]
    np.testing.assert_array_equal(learner.params["w"], drawn[0]["w"])
    heads = [one["head"] for one in drawn]
    np.testing.assert_array_equal(learner.params["head"], heads)
    assert not np.array_equal(heads[0], heads[1])
    np.testing.assert_array_equal(learner.method_state["teacher"]["head"], heads)
    np.testing.assert_array_equal(learner.method_state["teacher"]["w"], drawn[0]["w"])
    assert learner.method_state["count"].shape == ()
    assert learner.collections["stats"].shape == (1,)


def test_a_new_learner():
    learner = made()
    assert {name: float(value) for name, value in learner.hyper.items()} == {"strength": 0.5, "learning_rate": 0.25}
    trace = learner.opt_state[0].trace
    assert (trace["w"].shape, trace["head"].shape) == ((2,), (3, 3))
    assert not any(leaf.any() for leaf in jax.tree.leaves(learner.opt_state))
    assert learner.memory is None
    assert (learner.rows.per_task, learner.rows.stacked, learner.rows.tasks) == (("head",), (), 3)
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(learner))
    assert {leaf.dtype for leaf in learner.hyper.values()} == {jnp.dtype("float32")}
    kept = made(stacked=("head",))
    assert kept.opt_state[0].trace["head"].shape == (3, 3)
    assert kept.rows.stacked == ("head",)


def test_state_that_depends_on_the_number_of_tasks_and_examples():
    def sized(key, sizes):
        params, collections, _, hyper = init(key)
        return (
            params,
            collections,
            {"cache": jnp.zeros((sizes.tasks, sizes.max_examples["train"], sizes.classes))},
            hyper,
        )

    assert made(init=sized, max_examples={"train": 7}).method_state["cache"].shape == (3, 7, 2)


def test_an_empty_memory():
    learner = make_learner(method(memory_size=6), MOMENTUM, tables(np.zeros((4, 2), np.float32)), 0.25, KEY)
    shapes = [(leaf.shape, leaf.dtype.name) for leaf in learner.memory]
    assert shapes == [((6, 5), "uint8"), ((6, 2), "float32"), ((6,), "int32"), ((6,), "bool")]
    assert not any(leaf.any() for leaf in learner.memory)
    learner = make_learner(method(memory_size=6), MOMENTUM, tables(np.zeros(4, np.int32)), 0.25, KEY)
    assert (learner.memory.labels.shape, learner.memory.labels.dtype) == ((6,), jnp.int32)


def test_paths_that_are_no_leaves_are_refused():
    with pytest.raises(ValueError, match="per_task names 'haed', which is no leaf"):
        made(per_task=("haed",))
    with pytest.raises(ValueError, match="stacked names 'w'"):
        made(stacked=("w",))


def test_a_signature_is_kept():
    before = Learner({"w": jnp.zeros(2)}, {}, (), {}, {}, None, task_params.resting(()))
    weak = before._replace(params={"w": jnp.full(2, 1.0) * jnp.asarray(2.0)})
    after = keep_signature(before, weak, "it")
    assert after.params["w"].tolist() == [2, 2]
    assert not after.params["w"].weak_type
    for leaf, words in ((jnp.zeros(3), r"float32\[3\]"), (jnp.zeros(2, jnp.int32), r"int32\[2\]")):
        with pytest.raises(TypeError, match=rf"it changed 'params/w' from float32\[2\] to {words}"):
            keep_signature(before, before._replace(params={"w": leaf}), "it")
    with pytest.raises(TypeError, match="it changed the structure of the learner"):
        keep_signature(before, before._replace(params={"w": jnp.zeros(2), "new": jnp.zeros(2)}), "it")


def test_the_rate_of_each_phase():
    phases = (
        Phase(learning_rate=lambda clock: 0.5),
        Phase(learning_rate=lambda clock: 0.1 * clock.epoch.astype(jnp.float32)),
    )
    for several in (phases[:1], phases):
        learning_rate = phase_learning_rate(method(phases=several), make_clock(phase=0, epoch=4))
        assert (float(learning_rate), learning_rate.dtype) == (0.5, jnp.float32)
    np.testing.assert_allclose(phase_learning_rate(method(phases=phases), make_clock(phase=1, epoch=4)), 0.4, rtol=1e-6)
    traced = jax.make_jaxpr(lambda clock: phase_learning_rate(method(phases=phases), clock))(make_clock())
    assert "cond" not in str(traced)  # an accelerator asks the host at one, in each step


def focused(hyper=0.5):
    params = {"w": jnp.array([3.0, 4.0])}
    return Learner(
        params,
        {"stats": jnp.zeros(1)},
        MOMENTUM.init(params),
        {"steps": jnp.float32(0)},
        {"learning_rate": jnp.float32(hyper)},
        None,
        task_params.resting(()),
    )


def batch(**fields):
    return Batch(*(jnp.zeros(2) for _ in Batch._fields))._replace(**fields)


def product(params, learner, clock, batch, key):
    output = leaving({"stats": learner.collections["stats"] + 1})
    return params["w"][0] * params["w"][1], (output, {"number": jnp.float32(7)})


MOVES = {"stats": jnp.float32(1.0)}


def test_two_steps_with_momentum_a_mask_and_a_phase_s_rate():
    def after_step(previous, learner, clock, batch, gradients):
        moved = previous.params["w"] - learner.params["w"]
        return learner._replace(method_state={"steps": previous.method_state["steps"] + moved[0] + gradients["w"][0]})

    by_hand = method(
        loss=product,
        adjust_gradients=lambda gradients, learner, clock, batch: jax.tree.map(lambda g: 2 * g, gradients),
        after_step=after_step,
        phases=(Phase(learning_rate=lambda clock: 0.5),),
    )
    step, mask = make_train_step(by_hand, MOMENTUM), ({"w": jnp.array([1.0, 0.0])}, MOVES)
    learner, loss, metrics = step(focused(), mask, make_clock(), batch(), KEY)
    assert (float(loss), float(metrics["number"]), learner.collections["stats"].tolist()) == (12, 7, [1])
    assert learner.params["w"].tolist() == [3 - 0.25 * 2 * 4, 4]
    assert learner.opt_state[0].trace["w"].tolist() == [8, 0]
    assert float(learner.method_state["steps"]) == 2 + 4, "the loss's gradient, not yet adjusted"
    learner, loss, _ = step(learner, mask, make_clock(), batch(), KEY)
    assert float(loss) == 4
    assert learner.params["w"].tolist() == [1 - 0.25 * (0.5 * 8 + 8), 4]
    assert step.traces == 1
    assert float(step.lower(learner, mask, make_clock(), batch(), KEY).cost_analysis()["flops"]) > 0


def test_collections_keep_their_bits_where_their_mask_is_0():
    """Whatever the network and `after_step` make of them; a denormal number and a flag too."""
    old = {"kept": jnp.array([-0.0, 1e-40]), "rows": jnp.ones((2, 1)), "flag": jnp.bool_(True), "moved": jnp.zeros(2)}
    new = {"kept": jnp.ones(2), "rows": 2 * jnp.ones((2, 1)), "flag": jnp.bool_(False), "moved": jnp.ones(2)}
    mask = {"kept": 0.0, "rows": jnp.array([[1.0], [0.0]]), "flag": 0.0, "moved": 0.5}

    def after_step(previous, learner, clock, batch, gradients):
        assert learner.collections["kept"].shape == (2,)
        return learner._replace(collections={**learner.collections, "kept": jnp.full(2, 7.0)})

    by_hand = method(loss=lambda params, *given: (params["w"].sum(), (leaving(new), {})), after_step=after_step)
    mask = {"w": jnp.float32(1.0)}, jax.tree.map(jnp.float32, mask)
    start = focused()._replace(collections=old)
    found = make_train_step(by_hand, MOMENTUM)(start, mask, make_clock(), batch(), KEY)[0].collections
    assert np.asarray(found["kept"]).tobytes() == np.asarray(old["kept"]).tobytes()
    assert (found["rows"].tolist(), bool(found["flag"]), found["moved"].tolist()) == ([[2.0], [1.0]], True, [1.0, 1.0])


def test_what_changes_the_signature_is_named():
    wrong = {"stats": jnp.zeros(2)}

    def step(size=2, field="labels", **fields):
        by_hand, mask = method(**{"loss": product, **fields}), ({"w": jnp.float32(1.0)}, MOVES)
        given = batch(**{field: jnp.zeros(size)})
        return make_train_step(by_hand, MOMENTUM)(focused(), mask, make_clock(), given, KEY)

    with pytest.raises(TypeError, match="the loss of by hand or the optimizer changed 'collections/stats'"):
        step(loss=lambda *given: (product(*given)[0], (leaving(wrong), {})))
    with pytest.raises(TypeError, match="after_step of by hand changed 'collections/stats'"):
        step(after_step=lambda previous, learner, *rest: learner._replace(collections=wrong))
    with pytest.raises(ValueError, match=r"adjust_gradients of by hand returns has 'w' of shape \(\), but"):
        step(adjust_gradients=lambda gradients, *rest: jax.tree.map(jnp.sum, gradients))
    with pytest.raises(ValueError, match="adjust_gradients of by hand returns has the leaves none"):
        step(adjust_gradients=lambda gradients, *rest: {})
    for field in ("labels", "tasks", "weights"):
        with pytest.raises(ValueError, match=r"The batch.s .* has shape"):
            step(3, field)
