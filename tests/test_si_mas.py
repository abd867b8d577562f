"""Synaptic intelligence and memory-aware synapses, against the paths and sums written out in NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cljax import methods
from cljax.training import with_summed_loss
from cljax.training.step import make_train_step
from tests.regression import (
    FIRST,
    INPUTS,
    KERNEL,
    LABELS,
    SECOND,
    Fold,
    batch_of,
    gradient_of,
    learner_of,
    softmax_regression,
)

# Memory-aware synapses


def swayed(kernel, scale, used):
    """The mean of the absolute gradients of the squared length of the `used` logits, example by example."""
    kernels, scales = [], []
    for x in np.asarray(INPUTS):
        z = (x * scale) @ kernel * used
        kernels.append(np.abs(2 * np.outer(x * scale, z)))
        scales.append(np.abs(2 * x * (kernel @ z)))
    return np.mean(kernels, 0), np.mean(scales, 0)


@pytest.mark.parametrize("used", [(1, 1, 1), (1, 1, 0)])
def test_mas_is_the_mean_sway_of_the_outputs_that_are_used_and_reads_no_label(used):
    method = methods.mas(softmax_regression(), strength=3.0, chunk=2)
    clock = FIRST._replace(classes=jnp.array([used, (1, 1, 1)], bool))
    start = learner_of(method, kernel=KERNEL, scale=jnp.array([1.5, 0.5]))
    learner = method.end_phase(start, clock, Fold(), jax.random.key(0))
    found = learner.method_state.terms["mas"]["importance"]
    kernel, scale = swayed(np.asarray(KERNEL), np.array([1.5, 0.5]), np.array(used))
    np.testing.assert_allclose(found["kernel"], kernel, rtol=1e-5)
    np.testing.assert_allclose(found["scale"], scale, rtol=1e-5)
    for labels in (-LABELS - 9, jnp.full([4, 3], jnp.nan)):
        fold = Fold(labels)
        other = method.end_phase(start, clock, fold, jax.random.key(0)).method_state.terms["mas"]["importance"]
        assert all((other[name] == found[name]).all() for name in found)
    moved = learner._replace(params={"kernel": 2 * KERNEL, "scale": jnp.array([1.0, 1.0])})
    (value, slopes), (plain, bare) = (
        gradient_of(one, moved, SECOND, batch_of()) for one in (method, methods.finetune(method.network))
    )
    penalty = (kernel * np.square(KERNEL)).sum() + (scale * 0.25).sum()
    np.testing.assert_allclose(value - plain, 3 * penalty, rtol=1e-4)
    np.testing.assert_allclose(slopes["kernel"] - bare["kernel"], 6 * kernel * KERNEL, atol=1e-5)
    again = method.end_phase(moved, SECOND, Fold(), jax.random.key(0))
    second, _ = swayed(2 * np.asarray(KERNEL), np.ones(2), np.ones(3))
    np.testing.assert_allclose(again.method_state.terms["mas"]["importance"]["kernel"], kernel + second, rtol=1e-5)
    assert (again.method_state.teacher["params"]["kernel"] == 2 * KERNEL).all()


# Synaptic intelligence

CURVATURE = {"kernel": np.array([[3.0, 1.0, 0.0], [0.5, 2.0, 1.5]]), "scale": np.array([1.0, 0.2])}
GOALS = {"kernel": np.array([np.full((2, 3), 0.5), -0.7 * np.eye(2, 3)]), "scale": np.array([[2.0, 0.0], [1.0, 3.0]])}
RATE, STEPS, STRENGTH, DAMPING = 0.004, 60, 0.7, 0.2


def bowl(params, task):
    """A quadratic loss whose minimum moves with the task."""
    return sum(0.5 * (CURVATURE[name] * (params[name] - GOALS[name][task]) ** 2).sum() for name in CURVATURE)


def bowls(network):
    """A method whose loss is `bowl`, whatever the examples."""

    def loss(params, learner, clock, batch, key):
        goals = {name: jnp.asarray(goal, jnp.float32)[clock.task] for name, goal in GOALS.items()}
        curvature = {name: jnp.asarray(leaf, jnp.float32) for name, leaf in CURVATURE.items()}
        parts = jax.tree.map(lambda a, w, b: 0.5 * jnp.sum(a * (w - b) ** 2), curvature, params, goals)
        return parts["kernel"] + parts["scale"], (network.apply(params, learner.collections, batch.inputs), {})

    return methods.finetune(network)._replace(loss=loss)


def test_si_s_paths_add_up_to_the_fall_of_each_task_s_own_loss():
    """Step by step as in NumPy, momentum and the penalty's pull included, of which the path takes no account."""
    term = methods.synaptic_intelligence(strength=STRENGTH, damping=DAMPING)
    method = methods.combine(bowls(softmax_regression()), term, name="si")
    step, sgd = make_train_step(method, optax.sgd(1.0, momentum=0.9)), optax.sgd(1.0, momentum=0.9)
    learner = learner_of(method)
    learner = learner._replace(hyper={**learner.hyper, "learning_rate": jnp.float32(RATE)})
    now = {name: np.asarray(leaf, np.float64) for name, leaf in learner.params.items()}
    importance = {name: np.zeros_like(leaf) for name, leaf in now.items()}
    for task, clock in enumerate((FIRST, SECOND)):
        learner = method.begin_task(learner, clock, Fold(), jax.random.key(0))
        learner = learner._replace(opt_state=sgd.init(learner.params))
        mask = method.update_mask(learner, clock)
        start, path, speed = dict(now), dict.fromkeys(now, 0.0), dict.fromkeys(now, 0.0)
        for _ in range(STEPS):
            learner, *_ = step(learner, mask, clock, batch_of(), jax.random.key(0))
            for name in now:
                own = CURVATURE[name] * (now[name] - GOALS[name][task])
                pull = 2 * STRENGTH * importance[name] * (now[name] - start[name]) * task
                speed[name] = 0.9 * speed[name] + own + pull
                path[name] = path[name] + own * RATE * speed[name]
                now[name] = now[name] - RATE * speed[name]
        found = learner.method_state.terms["si"]["path"]
        for name in now:
            np.testing.assert_allclose(learner.params[name], now[name], rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(found[name], path[name], rtol=1e-3, atol=1e-5)
        total = float(sum(leaf.sum() for leaf in found.values()))
        np.testing.assert_allclose(total, bowl(start, task) - bowl(now, task), rtol=0.05)
        assert found["kernel"][0, 2] == 0, "what the loss is flat in"
        learner = method.end_phase(learner, clock, Fold(), jax.random.key(0))
        state = learner.method_state.terms["si"]
        for name in now:
            importance[name] = importance[name] + path[name] / ((now[name] - start[name]) ** 2 + DAMPING)
            np.testing.assert_allclose(state["importance"][name], importance[name], rtol=1e-3, atol=1e-5)
            assert not np.asarray(state["path"][name]).any()
            assert (state["anchor"][name] == learner.params[name]).all()
    assert step.traces == 1


@pytest.mark.parametrize("amend", ["as it is", "summed", "adjusted"])
def test_si_s_path_is_of_the_task_s_loss_whatever_is_done_to_gradients(amend):
    """One step beside a penalty: minus the gradient of the examples' mean loss, times the way."""
    base = methods.si(softmax_regression(), strength=2.0)
    method = {
        "as it is": base,
        "summed": with_summed_loss(base),
        "adjusted": base._replace(adjust_gradients=lambda gradients, *_: jax.tree.map(lambda g: g + 0.3, gradients)),
    }[amend]
    learner, sgd = learner_of(method, kernel=KERNEL), optax.sgd(1.0)
    numbers = {**learner.hyper, "learning_rate": jnp.float32(0.1)}
    learner = learner._replace(opt_state=sgd.init(learner.params), hyper=numbers)
    state = learner.method_state.terms["si"]
    held = {**state, "importance": jax.tree.map(jnp.ones_like, state["importance"])}
    held["anchor"] = jax.tree.map(lambda leaf: leaf - 0.5, state["anchor"])
    learner = learner._replace(method_state=learner.method_state._replace(terms={"si": held}))
    _, slopes = gradient_of(methods.finetune(method.network), learner, SECOND, batch_of())
    step = make_train_step(method, sgd)
    after, _, _ = step(learner, method.update_mask(learner, SECOND), SECOND, batch_of(), jax.random.key(0))
    path = after.method_state.terms["si"]["path"]["kernel"]
    moved = np.asarray(after.params["kernel"]) - np.asarray(learner.params["kernel"])
    assert np.abs(moved).max() > 0.01
    np.testing.assert_allclose(path, -np.asarray(slopes["kernel"]) * moved, rtol=1e-4, atol=1e-6)


def test_si_s_penalty_is_by_hand_and_its_importance_never_negative():
    method = methods.si(softmax_regression(), strength=3.0)
    path = {"kernel": jnp.array([[1.0, -2.0, 0.0], [0.5, 0.0, -1.0]]), "scale": jnp.array([0.2, -0.1])}
    learner = learner_of(method)
    terms = {"si": {**learner.method_state.terms["si"], "path": path}}
    moved = {"kernel": KERNEL, "scale": jnp.array([1.5, 0.5])}
    learner = learner._replace(params=moved, method_state=learner.method_state._replace(terms=terms))
    learner = method.end_phase(learner, FIRST, Fold(), jax.random.key(0))
    found = learner.method_state.terms["si"]["importance"]
    expected = np.maximum(path["kernel"], 0) / (np.square(KERNEL) + 0.1)
    np.testing.assert_allclose(found["kernel"], expected, rtol=1e-6)
    np.testing.assert_allclose(found["scale"], [0.2 / 0.35, 0], rtol=1e-6)
    away = learner._replace(params={"kernel": 3 * KERNEL, "scale": jnp.array([1.5, 0.5])})
    (value, slopes), (plain, bare) = (
        gradient_of(one, away, SECOND, batch_of()) for one in (method, methods.finetune(method.network))
    )
    np.testing.assert_allclose(value - plain, 3 * (expected * np.square(2 * KERNEL)).sum(), rtol=1e-4)
    np.testing.assert_allclose(slopes["kernel"] - bare["kernel"], 6 * expected * 2 * KERNEL, atol=1e-4)


def test_si_s_anchor_is_what_the_base_begins_a_task_with():
    base = methods.finetune(softmax_regression())
    move = lambda learner, clock, fold, key: learner._replace(
        params=jax.tree.map(lambda leaf: leaf + 1, learner.params)
    )
    method = methods.combine(base._replace(begin_task=move), methods.synaptic_intelligence(), name="si")
    learner = method.begin_task(learner_of(method, kernel=KERNEL), SECOND, Fold(), jax.random.key(0))
    np.testing.assert_array_equal(learner.method_state.terms["si"]["anchor"]["kernel"], KERNEL + 1)


def test_numbers_have_plain_names_and_bounds():
    network = softmax_regression()
    found = {name: learner_of(methods.build(name, network)).hyper for name in ("si", "mas", "ewc", "imm")}
    assert {name: {key: round(float(one), 6) for key, one in hyper.items()} for name, hyper in found.items()} == {
        "si": {"strength": 1, "damping": 0.1},
        "mas": {"strength": 0.1},
        "ewc": {"strength": 30, "decay": 1},
        "imm": {"strength": 0.01, "mixing": 1},
    }
    for name, option, value in (
        *(("si", "strength", -1), ("si", "damping", 0), ("mas", "strength", -1), ("mas", "chunk", 0)),
        *(("ewc", "strength", -1), ("ewc", "decay", -0.5), ("ewc", "decay", 1.5), ("ewc", "chunk", 0)),
    ):
        with pytest.raises(ValueError, match=f"{name}'s {option} is {value}, but must be"):
            methods.build(name, network, {option: value})
    with pytest.raises(ValueError, match="ewc's penalty is 'both', but must be one of online, separate"):
        methods.ewc(network, penalty="both")
    with pytest.raises(ValueError, match="ewc's strength is -1"):
        methods.ewc(network, penalty="separate", strength=-1)
