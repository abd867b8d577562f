"""Learning without Forgetting: the old heads' responses to the new task's examples are kept by distillation."""

from __future__ import annotations

import functools
from typing import Literal

import jax
import jax.numpy as jnp

from cljax import losses
from cljax.methods.combine import combine
from cljax.methods.common import check_network, mean, plain
from cljax.methods.copy_at_begin import copy_at_begin
from cljax.methods.distilling import cached, check_statistics, old_tasks
from cljax.methods.terms import numbers
from cljax.networks import own_last_layers
from cljax.numbers import check_option, real, whole
from cljax.task_params import flatten_heads
from cljax.types import Array, Batch, Clock, Learner, Method, Network, Output, Teacher, Term

Response = Literal["distillation", "cross_entropy", "l1", "l2"]
Scope = Literal["per_task", "concatenated"]
Responses = Literal["recomputed", "cached"]
Start = Literal["first", "last", "drawn"]


def distillation(
    *, strength: float = 1.0, temperature: float = 2.0, response: Response = "distillation", scope: Scope = "per_task"
) -> Term:
    r"""Learning without Forgetting's term: keeps what every old head says of the batch.

    $$ - \lambda \sum_{o} \sum_k p'_{ok} \log q'_{ok}, \qquad p'_o = \mathrm{softmax}(t_o / T), \quad
    q'_o = \mathrm{softmax}(z_o / T) $$
    with the teacher's logits t. There is no factor of squared temperature. With one head for all tasks (nothing belongs
    to a task) its responses are kept once, as the current task sees the network: with one head `clnp` hides the units
    of older tasks below it, so that nothing of theirs is kept.

    Args:
      strength: lambda, the number `strength`.
      temperature: T, of response 'distillation'; then the number `temperature`.
      response: what is kept. 'distillation'; 'cross_entropy', the same at T = 1; 'l1' or 'l2', the absolute or half the
        squared change of the probabilities. Of multi-label tasks (float labels) the first two sum binary terms.
      scope: a softmax for each old head, or one over the classes of all old heads ('concatenated').

    Returns:
      The term `lwf`; metric `response`, nats, before the strength.

    Raises:
      ValueError: for an unknown option, or a number out of range.

    Example:
      >>> from cljax.methods import distillation
      >>> distillation(temperature=4.0).all_heads
      True

    Reference: Li and Hoiem, Learning without Forgetting, 2016, equations 2 and 3; table 2(c) for `response`.
    """
    check_option("lwf's response", response, Response)
    check_option("lwf's scope", scope, Scope)
    strength = real("lwf's strength", strength, least=0)
    temperature = real("lwf's temperature", temperature, above=0)

    def change(temperature: Array, binary: bool, logits: Array, taught: Array, classes: Array, single: Array | None):
        """How far a head's logits are from the teacher's, `[B]`."""
        if response in ("l1", "l2"):
            if binary:
                raise ValueError(
                    f"The response {response!r} compares softmax probabilities, but the labels are several an example: "
                    "choose lwf's response='distillation', which sums binary terms."
                )
            return (losses.l1_response if response == "l1" else losses.l2_response)(logits, taught, classes=classes)
        options = {"temperature": temperature, "classes": classes}
        if not binary:
            return losses.distillation(logits, taught, **options)
        sigmoid = losses.sigmoid_distillation(logits, taught, **options)
        return sigmoid if single is None else jnp.where(single, losses.distillation(logits, taught, **options), sigmoid)

    def loss(params, learner: Learner, clock: Clock, batch: Batch, key, student: Output, teacher: Teacher):
        logits, taught = student.logits, teacher.respond(batch).logits
        classes, kinds = clock.classes & old_tasks(learner, clock)[:, None], clock.single_label
        if logits.ndim == 2:
            logits, taught, classes = logits[None], taught[None], jnp.any(classes, axis=0, keepdims=True)
        if kinds is not None and (scope == "concatenated" or len(logits) != len(kinds)):
            raise ValueError(
                "Some tasks are single-label, others are not, so that each needs a head of its own and a loss of its "
                "own: leave lwf's scope at 'per_task', and let the network's per_task name the head."
            )
        softened = learner.hyper["temperature"] if response == "distillation" else jnp.float32(1.0)
        compare = functools.partial(change, softened, batch.labels.ndim == 2)
        if scope == "concatenated":
            each = compare(flatten_heads(logits), flatten_heads(taught), classes.reshape(-1), None)
        else:
            each = jnp.sum(jax.vmap(compare)(logits, taught, classes, kinds), axis=0)
        kept = mean(each, batch.weights)
        return learner.hyper["strength"].astype(kept.dtype) * kept, {"response": kept}

    softened = {"temperature": temperature} if response == "distillation" else {}
    init = numbers(strength=strength, **softened)
    return Term("lwf", init, loss=loss, all_heads=True, teacher=True, strengths=("strength",))


def lwf(
    network: Network,
    *,
    temperature: float = 2.0,
    strength: float = 1.0,
    response: Response = "distillation",
    scope: Scope = "per_task",
    responses: Responses = "recomputed",
    warm_up: float = 0.25,
    own_layers: int = 0,
    start: Start = "first",
) -> Method:
    r"""Learning without Forgetting: cross-entropy on the new task, distillation of every old head's responses.

    $$ \min_{\theta_s, \theta_o, \theta_n} \; \mathbb{E} \Big[ -\log \mathrm{softmax}(z_n)_y
    - \lambda \sum_{o} \sum_k p'_{ok} \log q'_{ok} \Big], \qquad
    p'_o = \mathrm{softmax}(t_o / T), \quad q'_o = \mathrm{softmax}(z_o / T) $$
    with the logits t of the teacher, the network as it was just before the visit, in evaluation mode. All responses are
    to the current task's examples, and there is no factor of squared temperature. A new head is first trained alone
    (parameters and normalisation statistics shared with other tasks stay as they are), then everything jointly, the
    optimizer's state being kept. Old tasks are those seen but not current, so a task may be visited again.

    Dropout makes the student's responses noisy beside the teacher's: in narrow layers, at a high rate, following them
    costs more of the old task than it keeps (`experiments.lwf --form dropout` shows it). Leave it out there.

    With one head for all tasks (nothing belongs to a task) its responses are distilled once, and there is no warm-up.

    Args:
      network: an ordinary network; its `per_task` leaves should be its heads, all of them kept stacked. With
        normalisation of each task's own, old heads would read features that the teacher never had.
      temperature: T, of response 'distillation'.
      strength: lambda.
      response: what is kept; see `distillation`.
      scope: a softmax for each old head, or one over the classes of all old heads ('concatenated').
      responses: 'recomputed', the teacher sees each batch as the student does, augmentation included; or 'cached', its
        logits are recorded once an image, as in the official code; see `distilling.cached`.
      warm_up: fraction of a visit's epochs for the new head alone, in [0, 1).
      own_layers: how many layers below the head belong to a task besides `per_task` (the paper tries 1 and 2). Needs a
        network with `wiring`. Like the heads they are kept stacked, and "head" above means all of them.
      start: what these layers begin with at a task's first visit: a copy of the first task's, as in the official code,
        or of the last one's before, or values drawn anew, as the head always has.

    Returns:
      The method. Its metrics are `classification` and `response`, in nats, before lambda.

    Raises:
      ValueError: for an unknown option, or a number out of range; where tasks with layers of their own share the
        normalisation of those layers.

    Example:
      >>> from cljax import networks
      >>> from cljax.methods import lwf
      >>> [phase.name for phase in lwf(networks.mlp((8, 8, 1), 2)).phases]
      ['warm-up', 'joint']
      >>> lwf(networks.mlp((8, 8, 1), 2, hidden=(4, 4)), own_layers=1).stacked
      ('dense_1/bias', 'dense_1/kernel', 'head/bias', 'head/kernel')

    Reference: Li and Hoiem, Learning without Forgetting, 2016, figure 3 and equations 1 to 3; table 2(a) for
    `own_layers`, 2(c) for `response`.
    """
    check_network(network)
    check_option("lwf's responses", responses, Responses)
    check_option("lwf's start", start, Start)
    term = distillation(strength=strength, temperature=temperature, response=response, scope=scope)
    wider = own_last_layers(network, own_layers) if whole("lwf's own_layers", own_layers) else network
    base = plain("lwf", wider, warm_up=warm_up, joint_phase="joint")
    check_statistics("lwf", wider)
    if own_layers and start != "drawn":
        base = copy_at_begin(base, source=start, drawn=network.per_task)
    return combine(base, cached(term) if responses == "cached" else term, name="lwf")
