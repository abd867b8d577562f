"""Replay: a memory of exemplars, trained on beside the current task's examples."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp

from cljax.memory import NO_GROUP, balanced_choice, herd_classes
from cljax.methods.combine import combine
from cljax.methods.common import Scope, plain
from cljax.methods.distilling import own_output
from cljax.numbers import check_kind, check_option, whole
from cljax.types import Array, Batch, Clock, Fold, Learner, Memory, Method, Network, Respond, Sizes, Term, Tree

Selection = Literal["balanced", "reservoir", "herding"]


def exemplars(*, memory_size: int = 200, selection: Selection = "balanced") -> Term:
    r"""A memory of exemplars, for any method: at the end of a visit, examples of the task are kept.

    The loop mixes the memory into every epoch: each example of the current task and each exemplar comes once. What is
    learned of an exemplar is the base's affair; by `finetune` and what is built on it, the cross-entropy over the
    classes of the exemplar's own task, or in the class-incremental scenario over those of all tasks seen. To a base
    that forgets nothing (`packnet`, `tfm`) exemplars matter in that scenario alone, where they tell a new task's head
    what is not its own: all that their own tasks see is frozen. There `progressive` and `feature_extraction`, whose
    loss is that of the example's own head, learn nothing from them.

    | selection | what is kept |
    |---|---|
    | `balanced` | by chance, as many of each class seen as can be |
    | `reservoir` | by chance, each example of all tasks seen with the same probability |
    | `herding` | as many of each class, so that the mean of their features is as near the class's as can be |

    As many: each class has the same number of exemplars, or one more by chance, or all of its examples where it has
    fewer. Of several labels an example (float labels that are not one-hot), a task is taken for a class. What is kept
    of an older class becomes fewer: by chance, or of 'herding' from the last picked on. A task that is visited again is
    drawn anew, but in a reservoir, where its examples have had their chance. Herding takes the features that enter the
    head as the task sees them, of unit length.

    Args:
      memory_size: number of exemplars, at least 1.
      selection: a row of the table.

    Returns:
      The term `replay`, which adds nothing to the loss; of 'reservoir' its state is `priority`, the random number that
      each exemplar was drawn with.

    Raises:
      ValueError: for an unknown option, or a number out of range.

    Example:
      >>> from cljax.methods import exemplars
      >>> exemplars(memory_size=50).memory_size
      50

    Reference: Rebuffi et al., iCaRL, 2017, section 3.3 and algorithms 4 and 5; Vitter, Random Sampling with a
    Reservoir, 1985, by the smallest of random numbers.
    """
    memory_size = whole("replay's memory_size", memory_size, least=1)
    check_option("replay's selection", selection, Selection)

    def init(learner: Learner, sizes: Sizes) -> tuple[dict[str, Tree], dict[str, Array]]:
        return {"priority": jnp.zeros(memory_size, jnp.uint32)}, {}

    def end_visit(learner: Learner, clock: Clock, fold: Fold, key: Array, respond: Respond) -> Learner:
        kept: Any = learner.memory
        places, classes = fold.max_examples["train"], clock.classes.shape[1]

        def features_of(batch: Batch) -> Array:
            return own_output(respond(learner.params, batch), clock).features.reshape(len(batch.inputs), -1)

        def collect(found: dict[str, Array], batch: Batch) -> dict[str, Array]:
            place = jnp.where(batch.weights > 0, batch.position, places)  # surplus examples repeat others
            new = {"groups": group_of(batch.labels, batch.tasks, clock)}
            if selection == "herding":
                new["features"] = features_of(batch)
            return {name: leaf.at[place].set(new[name], mode="drop") for name, leaf in found.items()}

        empty = {"groups": jnp.full(places, NO_GROUP, jnp.int32)}
        if selection == "herding":
            slots = Batch(kept.inputs, kept.labels, kept.tasks, kept.tasks, jnp.ones(memory_size, jnp.float32))
            like = jax.eval_shape(features_of, slots)
            empty["features"] = jnp.zeros((places, *like.shape[1:]), like.dtype)
        new = fold(collect, empty)
        stays = kept.valid & (kept.tasks != clock.task)
        if selection == "reservoir":
            stays = kept.valid
            new["groups"] = jnp.where(clock.first, new["groups"], NO_GROUP)
        older = jnp.where(stays, group_of(kept.labels, kept.tasks, clock), NO_GROUP)
        groups, rank = jnp.concatenate([new["groups"], older]), None
        if selection == "herding":
            within = new["groups"] - clock.task * classes
            picks = herd_classes(new["features"], within, classes, min(memory_size, places))
            rank = jnp.concatenate([picks, jnp.arange(memory_size, dtype=jnp.int32)]).astype(jnp.uint32)
        if selection == "reservoir":
            drawn = jax.random.bits(jax.random.fold_in(key, 1), (places,), jnp.uint32)
            rank = jnp.concatenate([drawn, learner.method_state["priority"]])
            groups = jnp.where(groups == NO_GROUP, NO_GROUP, 0)
        chosen = balanced_choice(key, groups, memory_size, rank)
        from_task = chosen < places
        valid = chosen < places + memory_size
        slot = jnp.full(places, memory_size, jnp.int32)
        slot = slot.at[jnp.where(from_task, chosen, places)].set(jnp.arange(memory_size, dtype=jnp.int32), mode="drop")
        moved = jax.tree.map(lambda leaf: jnp.take(leaf, chosen - places, axis=0, mode="clip"), kept)

        def store(memory: Memory, batch: Batch) -> Memory:
            where = jnp.take(slot, batch.position, mode="clip")
            where = jnp.where(batch.weights > 0, where, memory_size)
            put = lambda old, values: old.at[where].set(values, mode="drop")
            found = {name: put(getattr(memory, name), getattr(batch, name)) for name in ("inputs", "labels", "tasks")}
            return memory._replace(**found)

        if selection == "reservoir" and rank is not None:
            learner = learner._replace(method_state={"priority": jnp.take(rank, chosen, mode="clip")})
        return learner._replace(memory=fold(store, moved._replace(valid=valid)))

    first = init if selection == "reservoir" else None
    return Term("replay", first, end_visit=end_visit, all_heads=True, memory_size=memory_size)


def group_of(labels: Array, tasks: Array, clock: Clock) -> Array:
    """The class of each example among all tasks', `[B]` int32; the task alone, of several labels an example."""
    if labels.ndim == 2:
        known = jnp.zeros(len(labels), jnp.bool_) if clock.single_label is None else clock.single_label[tasks]
        labels = jnp.where(known, jnp.argmax(labels, axis=-1).astype(jnp.int32), 0)
    return tasks * clock.classes.shape[1] + labels.astype(jnp.int32)


def with_memory(method: Method, memory_size: int, selection: Selection = "balanced") -> Method:
    """A method that also trains on a memory of exemplars; see `exemplars`.

    Args:
      method: one that trains on the current task's examples.
      memory_size: number of exemplars; 0: none, and the method is returned as it is.
      selection: which they are.

    Returns:
      The method, of the same name.

    Raises:
      ValueError: for an unknown option, or a number out of range; for a method that has all tasks' examples, or one
        that has a memory of its own.

    Example:
      >>> from cljax import methods, networks
      >>> from cljax.methods import with_memory
      >>> with_memory(methods.finetune(networks.mlp((8, 8, 1), 2)), 50).memory_size
      50
    """
    check_kind("The method", method, Method, "one of cljax.methods, built, such as methods.finetune(network)")
    if not whole(f"{method.name}'s memory_size", memory_size):
        return method
    return combine(method, exemplars(memory_size=memory_size, selection=selection), name=method.name)


def replay(
    network: Network, *, memory_size: int = 200, selection: Selection = "balanced", scope: Scope = "auto"
) -> Method:
    r"""Replay: fine-tuning on the current task's examples and on exemplars of earlier ones, all together.

    $$ \min_\theta \; \mathbb{E}_{(x, y, s) \sim D_t \cup M} \left[ -\log \mathrm{softmax}(z_s(x))_y \right] $$
    where the memory M has exemplars of the classes seen before, chosen at the end of each visit (see `exemplars`), and
    an example's loss is over the classes of its own task s, by that task's head; or, with one growing head, over the
    classes of all tasks seen.

    Args:
      network: an ordinary network. All `per_task` leaves stay stacked, and those of all tasks seen train.
      memory_size: the number of exemplars, for all tasks together; 0 is fine-tuning.
      selection: which they are; see `exemplars`.
      scope: a softmax over the classes of each example's own task, 'per_task'; or one over all classes seen,
        'concatenated'. 'auto': the second where the scenario is class-incremental, else the first.

    Returns:
      The method.

    Raises:
      ValueError: for an unknown option, or a number out of range; for 'concatenated', where nothing belongs to a task.

    Example:
      >>> from cljax import networks
      >>> from cljax.methods import replay
      >>> replay(networks.mlp((8, 8, 1), 2), memory_size=100).memory_size
      100

    Reference: Rolnick et al., Experience Replay for Continual Learning, 2019; Chaudhry et al., On Tiny Episodic
    Memories in Continual Learning, 2019.
    """
    return with_memory(plain("replay", network, scope=scope), memory_size, selection)
