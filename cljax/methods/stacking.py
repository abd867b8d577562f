"""A method whose tasks' own leaves are kept stacked, so that a loss can read the outputs of all tasks."""

from __future__ import annotations

import operator
from collections.abc import Callable

import jax
import jax.numpy as jnp

from cljax import task_params
from cljax.methods.common import is_warm_up, own_task, seen_tasks
from cljax.types import Array, Batch, Clock, Fold, Learner, Method, Search, Tree


def keep_stacked(method: Method, older: Callable[[Learner], Array]) -> Method:
    """The same method, with all leaves that belong to a task stacked during a visit.

    Its loss then computes the outputs of all tasks; its other hooks see the current task's row, as ever. The rows of
    tasks seen before can train with what is shared, but in a warm-up; so can those that the method keeps stacked.

    Args:
      method: any, whose loss goes through `common.each_task`.
      older: `learner -> bool` scalar, whether they do; where the method forgets nothing, they never do.

    Returns:
      The method.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax import methods, networks
      >>> from cljax.methods import keep_stacked
      >>> keep_stacked(methods.finetune(networks.mlp((8, 8, 1), 2)), lambda learner: jnp.bool_(True)).stacked
      ('head/kernel', 'head/bias')
    """

    def narrow(learner: Learner) -> task_params.Rows:
        return task_params.resting(method.per_task, method.stacked, tasks=learner.rows.tasks)

    def focus(learner: Learner, clock: Clock) -> Learner:
        """The learner as the method knows it alone."""
        focused = task_params.focus(learner._replace(rows=narrow(learner), opt_state=()), clock.task)
        return focused._replace(opt_state=learner.opt_state)

    def put_back(learner: Learner, own: Learner, after: Learner, clock: Clock) -> Learner:
        """The learner, with what a hook has made of its own, `focus(learner)`; where that is nothing, as it was."""
        if is_same(own, after):
            return learner
        whole = task_params.write_back(after._replace(opt_state=()), clock.task)
        return whole._replace(opt_state=after.opt_state, rows=learner.rows)

    def own_row(tree: Tree, learner: Learner, clock: Clock) -> Tree:
        return task_params.focus_tree(tree, clock.task, narrow(learner))

    def begin_task(learner: Learner, clock: Clock, fold: Fold, key: Array) -> Learner:
        own = focus(learner, clock)
        return put_back(learner, own, method.begin_task(own, clock, fold, key), clock)

    def adjust_gradients(gradients: Tree, learner: Learner, clock: Clock, batch: Batch) -> Tree:
        stacks = task_params.map_leaves(
            lambda path, leaf: leaf if task_params.is_focused(path, narrow(learner)) else None, gradients
        )
        own = own_row(gradients, learner, clock)
        adjusted = method.adjust_gradients(own, focus(learner, clock), clock, batch)
        if is_same(own, adjusted):
            return gradients
        task_params.check_same(f"What adjust_gradients of {method.name} returns", adjusted, "the loss", own)
        return task_params.merge_row(adjusted, stacks, clock.task)

    def update_mask(learner: Learner, clock: Clock) -> tuple[Tree, Tree]:
        own = own_task(learner, clock)
        train = older(learner) & ~is_warm_up(method.phases, clock) & (not method.zero_forgetting)
        others = (seen_tasks(learner, clock) & train).astype(jnp.float32)

        def widen(path: str, leaf: Array, mask: Array) -> Array:
            if not task_params.has_rows(path, learner.rows):
                return mask
            each = lambda tasks: tasks.reshape(-1, *(1,) * (leaf.ndim - 1))
            if not task_params.is_focused(path, narrow(learner)):
                return jnp.where(each(own), mask, jnp.maximum(mask, each(others)))
            return jnp.where(each(own), mask[None] if jnp.ndim(mask) else mask, each(others))

        params, collections = method.update_mask(focus(learner, clock), clock)
        widened = task_params.map_leaves(widen, learner.params, params)
        return widened, task_params.map_leaves(widen, learner.collections, collections)

    def after_step(previous: Learner, learner: Learner, clock: Clock, batch: Batch, gradients: Tree) -> Learner:
        before, own, row = focus(previous, clock), focus(learner, clock), own_row(gradients, learner, clock)
        return put_back(learner, own, method.after_step(before, own, clock, batch, row), clock)

    def end_phase(learner: Learner, clock: Clock, fold: Fold, key: Array) -> Learner:
        own = focus(learner, clock)
        return put_back(learner, own, method.end_phase(own, clock, fold, key), clock)

    def search(inner: Search) -> Search:
        def choose(scores: Array, learners: Learner, clock: Clock, fold: Fold) -> tuple[Array, Learner]:
            each = jax.vmap(lambda learner: focus(learner, clock))(learners)
            index, after = inner.choose(scores, each, clock, fold)
            back = lambda learner, own, after: put_back(learner, own, after, clock)
            return index, jax.vmap(back)(learners, each, after)

        return inner._replace(choose=choose)

    return method._replace(
        begin_task=begin_task,
        adjust_gradients=adjust_gradients,
        update_mask=update_mask,
        after_step=after_step,
        end_phase=end_phase,
        stacked=method.per_task,
        search=method.search and search(method.search),
    )


def is_same(given: Tree, after: Tree) -> bool:
    """Whether a hook has handed on what it was given: every leaf is the very one, so that nothing is written back."""
    one, other = jax.tree.leaves(given), jax.tree.leaves(after)
    return len(one) == len(other) and all(map(operator.is_, one, other))
