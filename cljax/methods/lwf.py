"""Learning without Forgetting: the old heads' responses to the new task's examples are kept by distillation."""

from __future__ import annotations

import functools
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax

from cljax import losses, rows
from cljax.methods.finetune import apply_kept, finetune, mean, task_loss
from cljax.types import Array, Batch, Clock, Fold, Learner, Method, Network, Phase, Tree

Response = Literal["distillation", "cross_entropy", "l1", "l2"]
Scope = Literal["per_task", "concatenated"]


def lwf(
    network: Network,
    *,
    temperature: float = 2.0,
    strength: float = 1.0,
    response: Response = "distillation",
    scope: Scope = "per_task",
    warm_up: float = 0.25,
    train_old_heads: bool = True,
) -> Method:
    r"""Learning without Forgetting: cross-entropy on the new task, distillation of every old head's responses.

    $$ \min_{\theta_s, \theta_o, \theta_n} \; \mathbb{E} \Big[ -\log \mathrm{softmax}(z_n)_y
    - \lambda \sum_{o} \sum_k p'_{ok} \log q'_{ok} \Big], \qquad
    p'_o = \mathrm{softmax}(t_o / T), \quad q'_o = \mathrm{softmax}(z_o / T) $$
    with the logits t of the teacher, the network as it was just before the visit, in evaluation mode. All responses are
    to the current task's examples, and there is no factor of squared temperature. A new head is first trained alone
    (parameters and normalisation statistics shared with other tasks stay as they are), then everything jointly, the
    optimizer's state being kept. Old tasks are those seen but not current, so a task may be visited again.

    With one head for all tasks (nothing belongs to a task) its responses are distilled once, and there is no warm-up.

    Args:
      network: an ordinary network; its `per_task` leaves should be its heads, all of them kept stacked. With
        normalisation of each task's own, old heads would read features that the teacher never had.
      temperature: T, of response 'distillation'.
      strength: lambda.
      response: what is kept. 'distillation'; 'cross_entropy', the same at T = 1; 'l1' or 'l2', the absolute or half the
        squared change of the probabilities. Of multi-label outputs (float labels) the first two sum binary terms.
      scope: a softmax for each old head, or one over the classes of all old heads ('concatenated').
      warm_up: share of a visit's epochs for the new head alone, in [0, 1).
      train_old_heads: whether the old heads train in the joint phase; if not, none of their bits changes.

    Returns:
      The method. Its metrics are `classification` and `response`, in nats.

    Raises:
      ValueError: for an unknown option, or a share out of range.

    Example:
      >>> from cljax import networks
      >>> [phase.name for phase in lwf(networks.mlp((8, 8, 1), 2)).phases]
      ['warm-up', 'joint']

    Reference: Li and Hoiem, Learning without Forgetting, 2016, figure 3 and equations 1 to 3.
    """
    for name, value, known in (("response", response, get_args(Response)), ("scope", scope, get_args(Scope))):
        if value not in known:
            raise ValueError(f"lwf's {name} is {value!r}, but must be one of {', '.join(known)}.")
    if not 0 <= warm_up < 1:
        raise ValueError(f"lwf's warm_up is {warm_up}, but must be a share of the epochs: at least 0 and below 1.")
    base = finetune(network)
    warms_up = warm_up > 0 and bool(network.per_task)

    def init(key: Array) -> tuple[Tree, Tree, Tree, dict[str, Array]]:
        params, collections, _, _ = base.init(key)
        hyper = {"strength": jnp.float32(strength)}
        if response == "distillation":
            hyper["temperature"] = jnp.float32(temperature)
        return params, collections, {"teacher": snapshot(params, collections)}, hyper

    def compare(learner: Learner, batch: Batch):
        multi_label = batch.labels.ndim == 2
        if response in ("l1", "l2"):
            if multi_label:
                raise ValueError(
                    f"The response {response!r} compares softmax probabilities, but the labels are several an example: "
                    "choose lwf's response='distillation', which sums binary terms."
                )
            return losses.l1_response if response == "l1" else losses.l2_response
        loss = losses.sigmoid_distillation if multi_label else losses.distillation
        return functools.partial(loss, temperature=learner.hyper.get("temperature", jnp.float32(1.0)))

    def kept_response(logits: Array, teacher_logits: Array, learner: Learner, clock: Clock, batch: Batch) -> Array:
        """How far the old heads' responses are from the teacher's, `[B]`."""
        classes = learner.classes & old_tasks(learner, clock)[:, None]
        if not network.per_task:
            logits, teacher_logits, classes = logits[:1], teacher_logits[:1], jnp.any(classes, axis=0, keepdims=True)
        loss = compare(learner, batch)
        if scope == "concatenated":
            return loss(flatten_heads(logits), flatten_heads(teacher_logits), classes=classes.reshape(-1))
        each = jax.vmap(lambda *head: loss(*head[:2], classes=head[2]))(logits, teacher_logits, classes)
        return jnp.sum(each, axis=0)

    def is_warm_up(clock: Clock) -> Array:
        return jnp.bool_(warms_up) & clock.first & (clock.phase == 0)

    def loss(params: Tree, learner: Learner, clock: Clock, batch: Batch, key: Array | None):
        student = apply_kept(network, learner, params, batch.inputs, key=key)
        teacher_logits = teach(network, learner, batch.inputs)
        classification = task_loss(student.logits[clock.task], learner, clock, batch)
        kept = mean(kept_response(student.logits, teacher_logits, learner, clock, batch), batch.weights)
        stay = lambda new, old: jnp.where(is_warm_up(clock), old, new)
        collections = jax.tree.map(stay, student.collections, learner.collections)
        value = classification + learner.hyper["strength"].astype(kept.dtype) * kept
        return value, (collections, {"classification": classification, "response": kept})

    def update_mask(learner: Learner, clock: Clock) -> Tree:
        old = old_tasks(learner, clock) & ~is_warm_up(clock) & train_old_heads
        own = jnp.arange(learner.classes.shape[0]) == clock.task
        return head_mask(learner, own | old, shared=~is_warm_up(clock))

    joint = Phase("joint", 1 - warm_up, fresh_optimizer=not warms_up)
    phases = (Phase("warm-up", warm_up, skip_first_task=True), joint) if warms_up else (joint,)
    last = len(phases) - 1

    def end_phase(learner: Learner, clock: Clock, fold: Fold, key: Array) -> Learner:
        renewed = lambda: renew_teacher(learner, clock, fold, key)
        return lax.cond(clock.phase == last, renewed, lambda: learner)

    return base._replace(
        name="lwf",
        init=init,
        begin_task=renew_teacher,
        loss=loss,
        update_mask=update_mask,
        end_phase=end_phase,
        phases=phases,
        keeps_rows=network.per_task,
    )


def snapshot(params: Tree, collections: Tree) -> Tree:
    """The teacher that a network of these parameters and collections is."""
    return {"params": params, "collections": collections}


def renew_teacher(learner: Learner, clock: Clock, fold: Fold, key: Array) -> Learner:
    """Makes the student as it is the teacher.

    As `begin_task` it makes the teacher of a first visit; as `end_phase` of the last phase that of the next visit,
    whether a first one or another: a teacher knows all tasks but the one that is being learned.
    """
    del clock, fold, key
    state = {**learner.method_state, "teacher": snapshot(learner.params, learner.collections)}
    return learner._replace(method_state=state)


def teach(network: Network, learner: Learner, inputs: Array) -> Array:
    """The logits `[T, B, K]` of all heads of the teacher, in evaluation mode; constants."""
    params, collections = (learner.method_state["teacher"][part] for part in ("params", "collections"))
    logits = apply_kept(network, learner._replace(collections=collections), params, inputs, key=None).logits
    return lax.stop_gradient(logits)


def old_tasks(learner: Learner, clock: Clock) -> Array:
    """The tasks seen so far but the current one, `[T]` bool."""
    everything = jnp.arange(learner.classes.shape[0])
    return (everything <= clock.newest) & (everything != clock.task)


def flatten_heads(values: Array) -> Array:
    """One growing head of all tasks' heads: `[T, B, K]` to `[B, T * K]`."""
    tasks, size, outputs = values.shape
    return jnp.moveaxis(values, 0, 1).reshape(size, tasks * outputs)


def head_mask(learner: Learner, trained: Array, *, shared: Array | bool = True) -> Tree:
    """The update mask that trains some rows of the kept stacks, `trained` `[T]` bool, and perhaps what is shared."""

    def one(path: str, leaf: Array) -> Array:
        if rows.ends_with(path, learner.rows.keeps):
            return trained.astype(jnp.float32).reshape(-1, *(1,) * (leaf.ndim - 1))
        return jnp.asarray(shared, jnp.float32)

    return rows.map_leaves(one, learner.params)
