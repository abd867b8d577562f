"""Rows: focus and write back, by whole paths."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cljax import task_params, transforms
from cljax.types import Learner

PER_TASK, KEEPS = ("head/kernel", "norm/scale"), ("norm/scale",)


def learner(tasks=4, optimizer=None):
    optimizer = optimizer or optax.adam(1.0)
    resting = task_params.resting(PER_TASK, KEEPS)
    draw = lambda number, *shape: jax.random.normal(jax.random.key(number), shape)
    params = {
        "body": {"kernel": draw(0, 5, 3)},
        "my_norm": {"scale": draw(1, 3)},
        "norm": {"scale": draw(2, tasks, 3)},
        "head": {"kernel": draw(3, tasks, 3, 2)},
    }
    opt_state = task_params.expand(
        optimizer.init(task_params.focus_tree(params, jnp.int32(0), resting)), tasks, resting
    )
    teacher = jax.tree.map(lambda leaf: leaf + 1, params)
    return Learner(params, {}, opt_state, {"teacher": teacher, "count": jnp.zeros(3)}, {}, None, resting)


def test_focus_takes_rows_everywhere_by_whole_paths():
    whole = learner()
    focused = task_params.focus(whole, jnp.int32(2))
    shapes = jax.tree.map(lambda leaf: leaf.shape, focused.params)
    assert shapes == {
        "body": {"kernel": (5, 3)},
        "my_norm": {"scale": (3,)},
        "norm": {"scale": (4, 3)},
        "head": {"kernel": (3, 2)},
    }
    np.testing.assert_array_equal(focused.params["head"]["kernel"], whole.params["head"]["kernel"][2])
    teacher = focused.method_state["teacher"]
    np.testing.assert_array_equal(teacher["head"]["kernel"], whole.params["head"]["kernel"][2] + 1)
    assert focused.opt_state[0].mu["head"]["kernel"].shape == (3, 2)
    assert focused.opt_state[0].mu["norm"]["scale"].shape == (4, 3)
    assert focused.rows.params["body"]["kernel"] is None
    assert focused.rows.params["norm"]["scale"] is None, "kept leaves are in the learner itself"
    np.testing.assert_array_equal(focused.rows.params["head"]["kernel"], whole.params["head"]["kernel"])


@pytest.mark.parametrize("jitted", [False, True])
def test_write_back_undoes_focus_and_touches_one_row(jitted):
    whole = learner()
    task = jnp.int32(1)
    there_and_back = lambda learner: task_params.write_back(task_params.focus(learner, task), task)
    back = (jax.jit(there_and_back) if jitted else there_and_back)(whole)
    assert jax.tree.structure(back) == jax.tree.structure(whole)
    jax.tree.map(np.testing.assert_array_equal, back, whole)

    focused = task_params.focus(whole, task)
    changed = focused._replace(params=jax.tree.map(lambda leaf: leaf * 2, focused.params))
    after = task_params.write_back(changed, task).params
    expected = whole.params["head"]["kernel"].at[1].multiply(2)
    np.testing.assert_array_equal(after["head"]["kernel"], expected)
    np.testing.assert_array_equal(after["norm"]["scale"], whole.params["norm"]["scale"] * 2)


def test_a_step_s_program_does_not_grow_with_the_number_of_tasks():
    def work(tasks):
        focused = jax.eval_shape(lambda: task_params.focus(learner(tasks), jnp.int32(1)))
        return focused.params["head"], focused.opt_state[0].mu["head"], focused.method_state["teacher"]["head"]

    assert work(2) == work(100)


def test_per_task_slots_have_rows_whatever_their_path():
    whole = learner(optimizer=transforms.per_task(optax.sgd(1.0, momentum=0.9)))
    trace = whole.opt_state.task_slots[0].trace
    assert trace["body"]["kernel"].shape == (4, 5, 3)
    assert task_params.focus(whole, jnp.int32(3)).opt_state.task_slots[0].trace["body"]["kernel"].shape == (5, 3)


def test_take_row_takes_kept_rows_too():
    whole = learner()
    params = task_params.take_row(whole.params, jnp.int32(3), whole.rows)
    np.testing.assert_array_equal(params["norm"]["scale"], whole.params["norm"]["scale"][3])
    assert task_params.row_axes(whole.params, whole.rows)["norm"]["scale"] == 0
    assert task_params.row_axes(whole.params, whole.rows)["head"]["kernel"] is None


def test_paths_that_would_be_confused_are_refused():
    params = {"head": {"kernel": 0.0}, "inner": {"head": {"kernel": 0.0}}}
    with pytest.raises(ValueError, match="'inner/head/kernel' ends with the same components"):
        task_params.check_paths(params, {}, ["head/kernel"])
    task_params.check_paths(params, {}, ["inner/head/kernel"])
    with pytest.raises(ValueError, match="names 'heads/kernel', which is no leaf"):
        task_params.check_paths(params, {}, ["heads/kernel"])
    with pytest.raises(ValueError, match="stacked names 'head/kernel', which is not among per_task"):
        task_params.check_paths(params, {}, ["inner/head/kernel"], ["head/kernel"])
    task_params.check_paths({"my_norm": {"scale": 0.0}, "norm": {"scale": 0.0}}, {}, ["norm/scale"])


def test_task_slots_are_a_whole_component_of_a_path():
    resting = task_params.resting(())
    for path, wanted in (("a/task_slots/b", True), ("my_task_slots/b", False), ("task_slots_of/b", False)):
        assert task_params.has_rows(path, resting) == task_params.is_focused(path, resting) == wanted


@pytest.mark.parametrize("task", [-1, 4, 7, 2**31, 1.0])
def test_a_row_of_a_task_that_does_not_exist_is_refused_and_nan_where_it_is_traced(task):
    whole = learner()
    with pytest.raises(ValueError, match=r"task is .*, but must be a whole number from 0 to 3"):
        task_params.take_row(whole.params, task, whole.rows)
    if task in (-1, 4, 7):
        params = jax.jit(lambda task: task_params.take_row(whole.params, task, whole.rows))(jnp.int32(task))
        assert np.isnan(params["head"]["kernel"]).all()
        assert np.isnan(params["norm"]["scale"]).all()
        np.testing.assert_array_equal(params["body"]["kernel"], whole.params["body"]["kernel"])


def test_a_traced_task_that_exists_has_its_row():
    whole = learner()
    taken = jax.jit(lambda task: task_params.take_row(whole.params, task, whole.rows))
    for task in range(4):
        jax.tree.map(
            np.testing.assert_array_equal, taken(jnp.int32(task)), task_params.take_row(whole.params, task, whole.rows)
        )
