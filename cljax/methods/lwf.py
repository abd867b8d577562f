"""Learning without Forgetting: the old heads' responses to the new task's examples are kept by distillation."""

from __future__ import annotations

import functools
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax

from cljax import losses, rows
from cljax.methods.finetune import (
    check_network,
    depends_on_own,
    finetune,
    is_warm_up,
    mean,
    task_loss,
    warm_up_phases,
)
from cljax.methods.hard_sharing import last_layers
from cljax.methods.teacher import (
    apply_trained,
    flatten_heads,
    head_mask,
    old_tasks,
    own_task,
    renew_teacher,
    rows_mask,
    snapshot,
    teach,
)
from cljax.numbers import real, whole
from cljax.types import Array, Batch, Clock, Fold, Learner, Method, Network, Output, Part, Tree

Response = Literal["distillation", "cross_entropy", "l1", "l2"]
Scope = Literal["per_task", "concatenated"]
Responses = Literal["recomputed", "cached"]
Updates = Literal["summed", "alternating"]
Start = Literal["first", "last", "drawn"]


def lwf(
    network: Network,
    *,
    temperature: float = 2.0,
    strength: float = 1.0,
    response: Response = "distillation",
    scope: Scope = "per_task",
    square_temperature: bool = False,
    responses: Responses = "recomputed",
    updates: Updates = "summed",
    warm_up: float = 0.25,
    train_old_heads: bool = True,
    own_layers: int = 0,
    start: Start = "first",
) -> Method:
    r"""Learning without Forgetting: cross-entropy on the new task, distillation of every old head's responses.

    $$ \min_{\theta_s, \theta_o, \theta_n} \; \mathbb{E} \Big[ -\log \mathrm{softmax}(z_n)_y
    - \lambda \sum_{o} \sum_k p'_{ok} \log q'_{ok} \Big], \qquad
    p'_o = \mathrm{softmax}(t_o / T), \quad q'_o = \mathrm{softmax}(z_o / T) $$
    with the logits t of the teacher, the network as it was just before the visit, in evaluation mode. All responses are
    to the current task's examples, and there is no factor of squared temperature unless asked for. A new head is first
    trained alone (parameters and normalisation statistics shared with other tasks stay as they are), then everything
    jointly, the optimizer's state being kept. Old tasks are those seen but not current, so a task may be visited again.

    Dropout makes the student's responses noisy beside the teacher's: in narrow layers, at a high rate, following them
    costs more of the old task than it keeps (`experiments.lwf --form dropout` shows it). Leave it out there.

    With one head for all tasks (nothing belongs to a task) its responses are distilled once, and there is no warm-up.

    Args:
      network: an ordinary network; its `per_task` leaves should be its heads, all of them kept stacked. With
        normalisation of each task's own, old heads would read features that the teacher never had.
      temperature: T, of response 'distillation'.
      strength: lambda.
      response: what is kept. 'distillation'; 'cross_entropy', the same at T = 1; 'l1' or 'l2', the absolute or half the
        squared change of the probabilities. Of multi-label tasks (float labels) the first two sum binary terms.
      scope: a softmax for each old head, or one over the classes of all old heads ('concatenated').
      square_temperature: whether the distillation is multiplied by T squared, as others do who want its gradient to
        keep its size at any T. Neither the paper nor its code does.
      responses: 'recomputed', the teacher sees each batch as the student does, augmentation included; or 'cached', its
        logits are recorded once an image, without augmentation, as in the official code. A step is then cheaper, and
        the learner holds T x (examples of the largest task) x K numbers more. At a further visit to a task, and in
        validation, they are recomputed all the same.
      updates: 'summed', one update by the gradient of both terms; or 'alternating' as in the official code, for each
        batch one update by the distillation, of shared leaves and old heads, then one by the classification, of shared
        leaves and the new head. Momentum and weight decay then act twice on what is shared.
      warm_up: fraction of a visit's epochs for the new head alone, in [0, 1).
      train_old_heads: whether the old heads train in the joint phase; if not, none of their bits changes.
      own_layers: how many layers below the head belong to a task besides `per_task` (the paper tries 1 and 2). Needs a
        network with `wiring`. Like the heads they are kept stacked, and "head" above means all of them.
      start: what these layers begin with at a task's first visit: a copy of the first task's, as in the official code,
        or of the last one's before, or values drawn anew, as the head always has.

    Returns:
      The method. Its metrics are `classification` and `response`, in nats, before lambda and T squared.

    Raises:
      ValueError: for an unknown option, or a number out of range; where tasks with layers of their own share the
        normalisation of those layers.

    Example:
      >>> from cljax import networks
      >>> [phase.name for phase in lwf(networks.mlp((8, 8, 1), 2)).phases]
      ['warm-up', 'joint']
      >>> lwf(networks.mlp((8, 8, 1), 2, hidden=(4, 4)), own_layers=1).stacked
      ('dense_1/bias', 'dense_1/kernel', 'head/bias', 'head/kernel')

    Reference: Li and Hoiem, Learning without Forgetting, 2016, figure 3 and equations 1 to 3; table 2(a) for
    `own_layers`, 2(c) for `response`.
    """
    check_network(network)
    options = {"response": response, "scope": scope, "responses": responses, "updates": updates, "start": start}
    literals = {"response": Response, "scope": Scope, "responses": Responses, "updates": Updates, "start": Start}
    for name, value in options.items():
        if value not in get_args(literals[name]):
            raise ValueError(f"lwf's {name} is {value!r}, but must be one of {', '.join(get_args(literals[name]))}.")
    temperature = real("lwf's temperature", temperature, above=0)
    strength = real("lwf's strength", strength, least=0)
    own_layers = whole("lwf's own_layers", own_layers)
    if square_temperature and response != "distillation":
        raise ValueError(f"lwf's response {response!r} has no temperature to square: leave square_temperature out.")
    heads = network.per_task
    if own_layers:
        network = network._replace(per_task=last_layers("lwf", network, own_layers))
    _check_collections(network)
    base = finetune(network)
    phases = warm_up_phases("lwf", warm_up, network, then="joint")
    last = len(phases) - 1

    def init(key: Array) -> tuple[Tree, Tree, Tree, dict[str, Array]]:
        params, collections, _, _ = base.init(key)
        hyper = {"strength": jnp.float32(strength)}
        if response == "distillation":
            hyper["temperature"] = jnp.float32(temperature)
        return params, collections, {"teacher": snapshot(params, collections)}, hyper

    def allocate(state: Tree, tasks: int, max_examples: dict[str, int]) -> Tree:
        if responses == "recomputed":
            return state
        shape = (tasks if network.per_task else 1, max_examples["train"], network.outputs)
        return {**state, "responses": jnp.zeros(shape, jnp.float32)}

    def record(learner: Learner, batch: Batch) -> Learner:
        """Writes the teacher's logits into the places of the batch's examples; surplus ones repeat others."""
        cache = learner.method_state["responses"]
        place = jnp.where(batch.weights > 0, batch.position, cache.shape[1])
        logits = teach(network, learner, batch.inputs)[: cache.shape[0]].astype(cache.dtype)
        written = cache.at[:, place].set(logits, mode="drop")
        return learner._replace(method_state={**learner.method_state, "responses": written})

    def begin_task(learner: Learner, clock: Clock, fold: Fold, key: Array) -> Learner:
        if own_layers and start != "drawn":
            learner = copy_layers(learner, clock, heads, from_first=start == "first")
        learner = renew_teacher(learner, clock, fold, key)
        return fold(record, learner) if responses == "cached" else learner

    def respond(learner: Learner, clock: Clock, batch: Batch, key: Array | None) -> Array:
        """The teacher's logits, `[T, B, K]`."""
        recomputed = lambda: teach(network, learner, batch.inputs)
        if responses == "recomputed" or key is None:
            return recomputed()
        cache = learner.method_state["responses"]

        def recorded() -> Array:
            found = jnp.take(cache, batch.position, axis=1, mode="clip")
            return jnp.broadcast_to(found, (learner.classes.shape[0], *found.shape[1:]))

        like = jax.eval_shape(recomputed).dtype
        return lax.cond(clock.first, lambda: recorded().astype(like), recomputed)

    def compare(learner: Learner, batch: Batch):
        """How far a head's logits are from the teacher's: `(logits, teacher_logits, classes, single_label)`."""
        multi_label = batch.labels.ndim == 2
        if response in ("l1", "l2"):
            if multi_label:
                raise ValueError(
                    f"The response {response!r} compares softmax probabilities, but the labels are several an example: "
                    "choose lwf's response='distillation', which sums binary terms."
                )
            change = losses.l1_response if response == "l1" else losses.l2_response
            return lambda logits, target, classes, single: change(logits, target, classes=classes)
        temperature = learner.hyper.get("temperature", jnp.float32(1.0))

        def distil(logits: Array, target: Array, classes: Array, single: Array | None) -> Array:
            softmax, binary = (
                functools.partial(loss, logits, target, temperature=temperature, classes=classes)
                for loss in (losses.distillation, losses.sigmoid_distillation)
            )
            if not multi_label:
                return softmax()
            return binary() if single is None else jnp.where(single, softmax(), binary())

        return distil

    def kept_response(logits: Array, learner: Learner, clock: Clock, batch: Batch, key: Array | None) -> Array:
        """How far the old heads' responses are from the teacher's, in the mean."""
        teacher_logits = respond(learner, clock, batch, key)
        classes = learner.classes & old_tasks(learner, clock)[:, None]
        if not network.per_task:
            logits, teacher_logits, classes = logits[:1], teacher_logits[:1], jnp.any(classes, axis=0, keepdims=True)
        loss, kinds = compare(learner, batch), learner.single_label
        if kinds is not None and (scope == "concatenated" or not network.per_task):
            raise ValueError(
                "Some tasks are single-label, others are not, so that each needs a head of its own and a loss of its "
                "own: leave lwf's scope at 'per_task', and let the network's per_task name the head."
            )
        if scope == "concatenated":
            each = loss(flatten_heads(logits), flatten_heads(teacher_logits), classes.reshape(-1), None)
        else:
            each = jnp.sum(jax.vmap(loss)(logits, teacher_logits, classes, kinds), axis=0)
        return mean(each, batch.weights)

    def weigh(kept: Array, learner: Learner) -> Array:
        weight = learner.hyper["strength"]
        if square_temperature:
            weight = weight * learner.hyper["temperature"] ** 2
        return weight.astype(kept.dtype) * kept

    def apply(params: Tree, learner: Learner, clock: Clock, batch: Batch, key: Array | None) -> Output:
        train, shared = trained(learner, clock)
        return apply_trained(network, learner, params, batch.inputs, train, shared=shared, key=key)

    def loss(params: Tree, learner: Learner, clock: Clock, batch: Batch, key: Array | None):
        student = apply(params, learner, clock, batch, key)
        classification = task_loss(student.logits[clock.task], learner, clock, batch)
        kept = kept_response(student.logits, learner, clock, batch, key)
        metrics = {"classification": classification, "response": kept}
        return classification + weigh(kept, learner), (student.collections, metrics)

    def response_loss(params: Tree, learner: Learner, clock: Clock, batch: Batch, key: Array | None):
        student = apply(params, learner, clock, batch, key)
        kept = kept_response(student.logits, learner, clock, batch, key)
        return weigh(kept, learner), (student.collections, {"response": kept})

    def classification_loss(params: Tree, learner: Learner, clock: Clock, batch: Batch, key: Array | None):
        student = apply(params, learner, clock, batch, key)
        value = task_loss(student.logits[clock.task], learner, clock, batch)
        return value, (student.collections, {"classification": value})

    def trained(learner: Learner, clock: Clock) -> tuple[Array, Array]:
        """Which rows of the kept stacks are trained, `[T]`, and whether what is shared is."""
        jointly = ~is_warm_up(phases, clock)
        return own_task(learner, clock) | (old_tasks(learner, clock) & jointly & train_old_heads), jointly

    def trains_old(learner: Learner, clock: Clock) -> Tree:
        old = old_tasks(learner, clock)
        return head_mask(learner, old, shared=jnp.any(old))

    parts = (
        Part(response_loss, trains_old),
        Part(classification_loss, lambda learner, clock: head_mask(learner, own_task(learner, clock))),
    )

    def end_phase(learner: Learner, clock: Clock, fold: Fold, key: Array) -> Learner:
        renewed = lambda: renew_teacher(learner, clock, fold, key)
        return lax.cond(clock.phase == last, renewed, lambda: learner)

    return base._replace(
        name="lwf",
        init=init,
        allocate=allocate,
        begin_task=begin_task,
        loss=loss,
        parts=parts if updates == "alternating" else (),
        update_mask=lambda learner, clock: rows_mask(learner.params, learner, *trained(learner, clock)),
        end_phase=end_phase,
        phases=phases,
        stacked=network.per_task,
    )


def _check_collections(network: Network) -> None:
    """Refuses layers of a task's own whose normalisation is shared: its statistics would be several tasks'."""
    _, collections = jax.eval_shape(network.init, jax.random.key(0))
    shared = rows.map_leaves(lambda path, leaf: path not in network.per_task, collections)

    def read(output: Output) -> list[Array]:
        return [leaf for leaf, kept in zip(*map(jax.tree.leaves, (output.collections, shared)), strict=True) if kept]

    if "batch_stats" in collections and depends_on_own(network, read):
        paths = [path for path in rows.leaf_paths(collections) if path.startswith("batch_stats/")]
        missing = [path for path in paths if path not in network.per_task]
        raise ValueError(
            f"lwf's network has layers that belong to a task ({', '.join(network.per_task)}) below normalisation whose "
            f"statistics all tasks share ({', '.join(missing)}), and one batch would give them as many values as there "
            f"are tasks. Let the statistics behind those layers belong to the task too: lwf's own_layers names both, "
            f"and so may the network's per_task."
        )


def copy_layers(learner: Learner, clock: Clock, heads: tuple[str, ...], *, from_first: bool) -> Learner:
    """Gives the new task a copy of an earlier task's kept leaves, but for the heads; the first task keeps its own."""
    source = jnp.int32(0) if from_first else jnp.maximum(clock.task - 1, 0)

    def one(path: str, leaf: Array) -> Array:
        if not rows.ends_with(path, learner.rows.stacked) or rows.ends_with(path, heads):
            return leaf
        return leaf.at[clock.task].set(leaf[source])

    params, collections = (rows.map_leaves(one, tree) for tree in (learner.params, learner.collections))
    return learner._replace(params=params, collections=collections)
