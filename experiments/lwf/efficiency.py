"""What the methods of LwF's figure 1 cost: time of training and of inference, and storage, each measured."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cljax import methods, training
from cljax.training.cost import tree_bytes
from cljax.types import Learner, Method, Network, Tables
from experiments.benchmark_tasks import stepper
from experiments.claims import NOT_REPRODUCED, REPRODUCED, Claim, claim, compare
from experiments.lwf.published import SOURCE
from experiments.lwf.runs import Size, methods_of, optimizer

SHOWN = ("finetune", "duplicate_and_finetune", "feature_extraction", "joint", "lwf", "lwf_cached", "l2_constraint")
TASKS = 5


def measure(network: Network, size: Size, *, batch_size: int, repeats: int = 15) -> dict[str, dict[str, Any]]:
    """Times every method in turn, round after round.

    Training: an epoch on the second of two tasks, for each batch of that task's images; joint training then has the
    first one's beside them. Inference: the logits of all of five tasks for one batch. Storage: what five tasks leave,
    namely parameters, and for joint training the images of the earlier ones.

    Args:
      network: that all methods have, with 10 logits.
      size: of the form, for feature extraction's classifier.
      batch_size: of steps and of inference.
      repeats: rounds that are timed.

    Returns:
      For each method `training_ms` and `inference_ms`, a number a round, and `parameters_bytes`.
    """
    makers = methods_of(network, hidden=size.hidden)
    makers["lwf_cached"] = lambda: methods.lwf(network, responses="cached")
    made = {name: makers[name]() for name in SHOWN}
    train = {name: stepper(method, 2, batch_size=batch_size, steps=6) for name, method in made.items()}
    learners = {name: _learner(method) for name, method in made.items()}
    infer = {name: _inference(method, learners[name], batch_size) for name, method in made.items()}
    rows: dict[str, dict[str, Any]] = {name: {"training_ms": [], "inference_ms": []} for name in made}
    for _ in range(repeats):
        for name in made:
            rows[name]["training_ms"].append(1000 * train[name]())
            rows[name]["inference_ms"].append(1000 * infer[name]())
    for name, learner in learners.items():
        rows[name]["parameters_bytes"] = tree_bytes((learner.params, learner.collections.get("batch_stats", {})))
    return rows


def _learner(method: Method) -> Learner:
    """A learner of five tasks, at rest."""
    classes = np.ones((TASKS, method.network.outputs), np.bool_)
    none: Any = None
    tables = Tables(np.zeros((0, *method.network.inputs), np.uint8), none, none, none, None, classes)
    return jax.jit(lambda key: training.make_learner(method, optimizer(), tables, 0.1, key, {"train": 1}))(
        jax.random.key(0)
    )


def _inference(method: Method, learner: Learner, batch_size: int) -> Callable[[], float]:
    """A function that gives the logits of all tasks for a batch and returns the seconds it took."""
    images = np.random.default_rng(0).integers(0, 256, (batch_size, *method.network.inputs)).astype(np.uint8)
    tasks = jnp.arange(TASKS, dtype=jnp.int32)
    every = jax.jit(lambda learner, images: jax.vmap(lambda task: method.predict(learner, images, task))(tasks))
    jax.block_until_ready(every(learner, images))

    def run() -> float:
        begun = time.perf_counter()
        jax.block_until_ready(every(learner, images))
        return time.perf_counter() - begun

    return run


def full_form(seconds: float, steps: float, pair: tuple[Network, Network], *, batch_size: int) -> dict[str, float]:
    """What the full form of a part takes on this machine, estimated from its reduced form.

    Args:
      seconds: that all runs of the reduced form took.
      steps: how many times as many steps the full form has.
      pair: the networks of the reduced and of the full form, with 10 logits.
      batch_size: of steps.

    Returns:
      `step_ms_reduced` and `step_ms_full`, measured for fine-tuning, `steps_ratio` and `hours`, the estimate.
    """
    runs = [stepper(methods.finetune(network), 2, batch_size=batch_size, steps=2) for network in pair]
    rounds = [[1000 * run() for run in runs] for _ in range(5)]
    reduced, full = (statistics.median(times) for times in zip(*rounds, strict=True))
    hours = seconds * steps * full / reduced / 3600
    return {"step_ms_reduced": reduced, "step_ms_full": full, "steps_ratio": steps, "hours": hours}


def claims_of(rows: dict[str, dict[str, Any]], image_bytes: int) -> list[Claim]:
    """The claims of figure 1 and of the paragraph on efficiency; ratios are those of the medians.

    Args:
      rows: of `measure`.
      image_bytes: of the earlier tasks' training images, which joint training keeps.
    """
    times = lambda what: {name: (name, np.asarray(row[what]) / 1000) for name, row in rows.items()}
    train, infer = times("training_ms"), times("inference_ms")
    ratio = lambda pair, name, other: statistics.median(pair[name][1]) / statistics.median(pair[other][1])
    in_ms: dict[str, Any] = {"scale": 1000, "unit": "ms"}
    stored = {name: row["parameters_bytes"] for name, row in rows.items()}
    found = []

    def slower(what: str, published: str, pair: dict, name: str, other: str) -> None:
        text, verdict = compare(pair[name], pair[other], **in_ms)
        found.append(
            claim(SOURCE, f"figure 1: {what}", published, f"{text}; {ratio(pair, name, other):.2f} times", verdict)
        )

    def holds(what: str, published: str, text: str, true: bool) -> None:
        found.append(claim(SOURCE, f"figure 1: {what}", published, text, REPRODUCED if true else NOT_REPRODUCED))

    slower("fine-tuning trains slower than feature extraction", "fastest", train, "finetune", "feature_extraction")
    for name, words in (("lwf", "LwF"), ("lwf_cached", "LwF with responses recorded once")):
        slow = ratio(train, name, "finetune")
        text = f"{slow:.2f} times fine-tuning's step"
        holds(f"{words} trains at most 1.4 times as long as fine-tuning", "slightly slower", text, slow <= 1.4)
    slower("joint training trains slower than LwF", "slow, fast", train, "joint", "lwf")
    slower("duplicates take longer to evaluate than LwF", "m times as long", infer, "duplicate_and_finetune", "lwf")
    alike = {name: ratio(infer, name, "lwf") for name in ("finetune", "feature_extraction", "joint")}
    text = "; ".join(f"{name} {value:.2f} times LwF" for name, value in alike.items())
    same = all(0.8 < value < 1.25 for value in alike.values())
    holds("all but duplicates take the same time to evaluate", "approximately", text, same)
    holds(
        "duplicates store more than LwF, which stores what fine-tuning does",
        "large, medium, medium",
        f"{stored['duplicate_and_finetune']}, {stored['lwf']} and {stored['finetune']} bytes for {TASKS} tasks",
        stored["duplicate_and_finetune"] > stored["lwf"] == stored["finetune"],
    )
    holds(
        "joint training stores more than LwF, for it needs previous tasks' data",
        "large, medium",
        f"{stored['joint'] + image_bytes} bytes, {image_bytes} of images, and {stored['lwf']}",
        stored["joint"] + image_bytes > stored["lwf"],
    )
    return found
