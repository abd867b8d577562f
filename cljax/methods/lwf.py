"""Learning without Forgetting: the old heads' responses to the new task's examples are kept by distillation."""

from __future__ import annotations

import functools
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax

from cljax import losses, task_params
from cljax.methods.common import (
    check_network,
    depends_on_own,
    flatten_heads,
    forward,
    is_warm_up,
    mean,
    own_task,
    plain,
    task_loss,
    update_masks,
)
from cljax.methods.copy_at_begin import copy_at_begin
from cljax.methods.teacher import old_tasks, renew_teacher, snapshot, teach
from cljax.networks.own_layers import own_last_layers
from cljax.numbers import real, whole
from cljax.types import Array, Batch, Clock, Fold, Learner, Method, Network, Output, Sizes, Tree

Response = Literal["distillation", "cross_entropy", "l1", "l2"]
Scope = Literal["per_task", "concatenated"]
Responses = Literal["recomputed", "cached"]
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
    options = {"response": response, "scope": scope, "responses": responses, "start": start}
    literals = {"response": Response, "scope": Scope, "responses": Responses, "start": Start}
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
        network = own_last_layers(network, own_layers)
    _check_collections(network)
    base = plain("lwf", network, warm_up=warm_up, joint_phase="joint")
    phases = base.phases
    last = len(phases) - 1

    def init(key: Array, sizes: Sizes) -> tuple[Tree, Tree, Tree, dict[str, Array]]:
        params, collections, _, _ = base.init(key, sizes)
        hyper = {"strength": jnp.float32(strength)}
        if response == "distillation":
            hyper["temperature"] = jnp.float32(temperature)
        state = {"teacher": snapshot(params, collections)}
        if responses == "cached":
            shape = (sizes.tasks if network.per_task else 1, sizes.max_examples["train"], network.outputs)
            state["responses"] = jnp.zeros(shape, jnp.float32)
        return params, collections, state, hyper

    def record(learner: Learner, clock: Clock, batch: Batch) -> Learner:
        """Writes the teacher's logits into the places of the batch's examples; surplus ones repeat others."""
        cache = learner.method_state["responses"]
        place = jnp.where(batch.weights > 0, batch.position, cache.shape[1])
        logits = heads_of(teach(network, learner, clock, batch.inputs)).astype(cache.dtype)
        written = cache.at[:, place].set(logits, mode="drop")
        return learner._replace(method_state={**learner.method_state, "responses": written})

    def begin_task(learner: Learner, clock: Clock, fold: Fold, key: Array) -> Learner:
        learner = renew_teacher(learner, clock, fold, key)
        return fold(lambda learner, batch: record(learner, clock, batch), learner) if responses == "cached" else learner

    def respond(learner: Learner, clock: Clock, batch: Batch, key: Array | None) -> Array:
        """The teacher's logits, `[T, B, K]`."""
        recomputed = lambda: heads_of(teach(network, learner, clock, batch.inputs))
        if responses == "recomputed" or key is None:
            return recomputed()
        cache = learner.method_state["responses"]

        def recorded() -> Array:
            return jnp.take(cache, batch.position, axis=1, mode="clip")

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
        classes = clock.classes & old_tasks(learner, clock)[:, None]
        if not network.per_task:
            classes = jnp.any(classes, axis=0, keepdims=True)
        loss, kinds = compare(learner, batch), clock.single_label
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

    def heads_of(logits: Array) -> Array:
        return logits if logits.ndim == 3 else logits[None]

    def loss(params: Tree, learner: Learner, clock: Clock, batch: Batch, key: Array | None):
        student = forward(network, base.view, params, learner, clock, batch.inputs, key=key)
        classification = task_loss(student.logits, clock, batch)
        kept = kept_response(heads_of(student.logits), learner, clock, batch, key)
        metrics = {"classification": classification, "response": kept}
        return classification + weigh(kept, learner), (student, metrics)

    def trained(learner: Learner, clock: Clock) -> tuple[Array, Array]:
        """Which rows of the kept stacks are trained, `[T]`, and whether what is shared is."""
        jointly = ~is_warm_up(phases, clock)
        return own_task(learner, clock) | (old_tasks(learner, clock) & jointly & train_old_heads), jointly

    def end_phase(learner: Learner, clock: Clock, fold: Fold, key: Array) -> Learner:
        renewed = lambda: renew_teacher(learner, clock, fold, key)
        return lax.cond(clock.phase == last, renewed, lambda: learner)

    method = base._replace(
        init=init,
        begin_task=begin_task,
        loss=loss,
        update_mask=lambda learner, clock: update_masks(learner, *trained(learner, clock)),
        end_phase=end_phase,
        stacked=network.per_task,
    )
    return copy_at_begin(method, source=start, drawn=heads) if own_layers and start != "drawn" else method


def _check_collections(network: Network) -> None:
    """Refuses layers of a task's own whose normalisation is shared: its statistics would be several tasks'."""
    _, collections = jax.eval_shape(network.init, jax.random.key(0))
    shared = task_params.map_leaves(lambda path, leaf: path not in network.per_task, collections)

    def read(output: Output) -> list[Array]:
        return [leaf for leaf, kept in zip(*map(jax.tree.leaves, (output.collections, shared)), strict=True) if kept]

    if "batch_stats" in collections and depends_on_own(network, read):
        paths = [path for path in task_params.leaf_paths(collections) if path.startswith("batch_stats/")]
        missing = [path for path in paths if path not in network.per_task]
        raise ValueError(
            f"lwf's network has layers that belong to a task ({', '.join(network.per_task)}) below normalisation whose "
            f"statistics all tasks share ({', '.join(missing)}), and one batch would give them as many values as there "
            f"are tasks. Let the statistics behind those layers belong to the task too: lwf's own_layers names both, "
            f"and so may the network's per_task."
        )
