"""What terms share that compare a student with its teacher: whose outputs, which tasks, recorded responses."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from cljax import losses, task_params
from cljax.methods.common import depends_on_own, mean, outputs_of, own_task, seen_tasks
from cljax.task_params import flatten_heads
from cljax.trees import pick
from cljax.types import Array, Batch, Clock, Fold, Learner, Network, Output, Respond, Sizes, Teacher, Term, Tree


def old_tasks(learner: Learner, clock: Clock) -> Array:
    """The tasks seen so far but the current one, `[T]` bool."""
    return seen_tasks(learner, clock) & ~own_task(learner, clock)


def own_output(output: Output, clock: Clock) -> Output:
    """The current task's output, `[B, ...]`, of one that may be all tasks', `[T, B, ...]`; without collections.

    Args:
      output: of a loss's forward pass, a student's or a teacher's.
      clock: the current one.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.methods import own_output
      >>> from cljax.types import Output, make_clock
      >>> of_both_tasks = Output(jnp.ones((2, 5, 3)), jnp.ones((2, 5, 4)), None, {}, {})
      >>> own_output(of_both_tasks, make_clock(task=1)).logits.shape
      (5, 3)
    """
    output = output._replace(collections={})
    return output if output.logits.ndim == 2 else pick(output, clock.task)


def old_scores(params, learner: Learner, clock: Clock, batch: Batch, key, student: Output, teacher: Teacher):
    """A term's loss: how far the old outputs of one growing sigmoid head are from the teacher's, nats."""
    logits, taught = (flatten_heads(one) for one in (student.logits, teacher.respond(batch).logits))
    each = losses.sigmoid_distillation(logits, taught, classes=outputs_of(clock, old_tasks(learner, clock)))
    value = mean(each, batch.weights)
    return value, {"distillation": value}


def cached(term: Term) -> Term:
    """A term that compares with responses recorded once an image, at the beginning of a visit, without augmentation.

    A step then makes no forward pass of the teacher, and the learner holds T x (examples of the largest task) x K
    numbers more. At a further visit, in validation, and in a batch with examples of a memory or of other tasks
    the teacher is asked all the same.

    Args:
      term: one that reads nothing but the teacher's logits, such as `methods.distillation()`.

    Returns:
      The term; beside its own state it keeps `responses` `[T, N, K]` float32, `[1, N, K]` of a shared head.

    Example:
      >>> from cljax import methods
      >>> from cljax.methods import cached
      >>> cached(methods.distillation()).name
      'lwf'

    Reference: Li and Hoiem's code for Learning without Forgetting records them so.
    """

    def init(learner: Learner, sizes: Sizes) -> tuple[Tree, dict[str, Array]]:
        state, hyper = term.init(learner, sizes) if term.init else ({}, {})
        heads = sizes.tasks if learner.rows.stacked else 1
        responses = jnp.zeros((heads, sizes.max_examples.get("train", 1), sizes.classes), jnp.float32)
        return {**state, "responses": responses}, hyper

    def begin_task(learner: Learner, clock: Clock, fold: Fold, key: Array, respond: Respond) -> Learner:
        def record(cache: Array, batch: Batch) -> Array:
            place = jnp.where(batch.weights > 0, batch.position, cache.shape[1])  # surplus examples repeat others
            logits = respond(learner.params, batch).logits
            logits = logits.reshape(cache.shape[0], -1, cache.shape[2]).astype(cache.dtype)
            return cache.at[:, place].set(logits, mode="drop")

        if term.begin_task is not None:
            learner = term.begin_task(learner, clock, fold, key, respond)
        responses = fold(record, learner.method_state["responses"])
        return learner._replace(method_state={**learner.method_state, "responses": responses})

    def loss(
        params: Tree, learner: Learner, clock: Clock, batch: Batch, key: Array | None, student: Output, teacher: Teacher
    ) -> tuple[Array, dict[str, Array]]:
        cache = learner.method_state["responses"]

        def respond(batch: Batch) -> Output:
            asked = lambda: teacher.respond(batch).logits
            shape = jax.eval_shape(asked)

            def recorded() -> Array:
                found = jnp.take(cache, batch.position, axis=1, mode="clip")
                return found.reshape(shape.shape).astype(shape.dtype)

            known = clock.first & jnp.all((batch.position >= 0) & (batch.tasks == clock.task))
            return Output(lax.cond(known, recorded, asked), None, None, {}, {})  # type: ignore[arg-type]

        lookup = teacher if key is None else teacher._replace(respond=respond)
        return term.loss(params, learner, clock, batch, key, student, lookup)  # type: ignore[misc]

    return term._replace(init=init, begin_task=begin_task, loss=loss)


def check_statistics(name: str, network: Network) -> None:
    """Refuses layers of a task's own whose normalisation is shared: its statistics would be several tasks'."""
    _, collections = network.shapes
    shared = task_params.map_leaves(lambda path, leaf: path not in network.per_task, collections)

    def read(output: Output) -> list[Array]:
        return [leaf for leaf, kept in zip(*map(jax.tree.leaves, (output.collections, shared)), strict=True) if kept]

    if "batch_stats" in collections and depends_on_own(network, read):
        paths = [path for path in task_params.leaf_paths(collections) if path.startswith("batch_stats/")]
        missing = [path for path in paths if path not in network.per_task]
        raise ValueError(
            f"{name}'s network has layers that belong to a task ({', '.join(network.per_task)}) below normalisation "
            f"whose statistics all tasks share ({', '.join(missing)}), and one batch would give them as many values as "
            f"there are tasks. Let the statistics behind those layers belong to the task too: networks.own_last_layers "
            f"names both, and so may the network's per_task."
        )
