"""Methods compose: any base takes any terms, one forward pass for all of them."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from cljax import task_params
from cljax.methods.stacking import keep_stacked
from cljax.methods.terms import shared
from cljax.numbers import check_kind, show, whole
from cljax.types import Array, Batch, Clock, Fold, Learner, Method, Output, Phase, Search, Sizes, Teacher, Term, Tree


class Combined(NamedTuple):
    """What a combination keeps.

    Attributes:
      base: the base's own state.
      teacher: `{'params', 'collections'}` as they were just before the visit; `{'params'}`, those that are shared,
        where terms ask for an anchor alone; None where they ask for none, or the base keeps one.
      terms: the terms' states, by name.
    """

    base: Tree
    teacher: Tree
    terms: dict[str, Tree]

    @property
    def owner(self) -> Any:
        """The base's owners of features, where it has them."""
        return self.base.owner


def combine(base: Method, *terms: Term, name: str | None = None) -> Method:
    r"""Adds terms to a method's loss: the method does all that it does alone, and trains on the sum.

    $$ L = L_{\text{base}} + \sum_i L_i $$

    The base's forward pass is made once, and all terms read it; so is that of the teacher, the network as it was just
    before the visit. A term of strength 0 changes no bit of a step, the order of terms matters by rounding alone, and a
    base that forgets nothing forgets nothing under any term: its update mask stays in force, and the heads of older
    tasks do not move. Where the base searches, a visit ends for the candidate chosen alone, in a phase without epochs.

    Where a term reads the outputs of all tasks, what belongs to a task is kept stacked, and the rows of older tasks
    train with what is shared, unless the base forgets nothing. A task's outputs are those of that task's view: where
    views differ (`tfm`, `clnp`, `df_cnn`), the whole network is computed for every task.

    A term's number is called `hyper['<term>.<number>']`, and so are its metrics; where the method has the term's name,
    `hyper['<number>']`.

    Args:
      base: any method; a combination, too.
      terms: of different names.
      name: of the new method. By default the names of base and terms, with plus signs between.

    Returns:
      The method. Its metrics are the base's, its loss as `classification`, and the terms'.

    Raises:
      ValueError: what is no method or no term; two terms of one name; two memories, or one for a base that has all
        tasks' examples anyway. At `init`, a term's number that the base has already, or a strength that is none of
        its numbers.

    Example:
      >>> from cljax import methods, networks
      >>> from cljax.methods import combine
      >>> base = methods.finetune(networks.mlp((8, 8, 1), 2))
      >>> both = combine(base, methods.distillation(strength=2.0), methods.pull(strength=0.1))
      >>> both.name, both.stacked
      ('finetune+lwf+l2_constraint', ('head/kernel', 'head/bias'))
    """
    check_terms(base, terms)
    names = [term.name for term in terms]
    if repeated := [one for one in names if names.count(one) > 1]:
        raise ValueError(f"Two terms are called {repeated[0]!r}. Give one another name: term._replace(name=...).")
    name = name or "+".join([base.name, *names])
    memory_size = sum(term.memory_size for term in terms)
    if len(several := [term.name for term in terms if term.memory_size]) > 1:
        raise ValueError(f"{several[0]} and {several[1]} have a memory each, but a learner has one: leave one out.")
    if memory_size and (base.train_on != "current" or base.memory_size):
        has = "a memory of its own" if base.memory_size else "the examples of earlier tasks anyway"
        raise ValueError(f"{base.name} has {has}: leave the memory of {name} out.")
    own_phases = len(base.phases)
    closing = base.phases[-1]
    if (base.search and closing.searched) or closing.skip_first_task:
        # Every visit ends in one phase: with the candidate chosen, as `choose` has left it; also of the first task.
        end = Phase("end", 0.0, fresh_optimizer=False, searched=not base.search)
        base = base._replace(phases=(*base.phases, end))
    readers = [term for term in terms if term.all_heads]
    widened = bool(readers) and base.stacked != base.per_task
    frozen = [(term, held_by(term, base)) for term in terms if term.freezes is not None]
    last, whole = len(base.phases) - 1, any(term.teacher for term in terms)

    def called(term: Term, key: str) -> str:
        return key if term.name == name else f"{term.name}.{key}"

    def is_on(term: Term, learner: Learner) -> Array:
        numbers = [learner.hyper[called(term, one)] for one in term.strengths or ()]
        return jnp.any(jnp.stack(numbers) != 0) if numbers else jnp.bool_(True)

    def reading(learner: Learner) -> Array:
        """Whether a term that reads all heads is on."""
        return jnp.any(jnp.stack([is_on(term, learner) for term in readers]))

    base = keep_stacked(base, reading) if readers else base  # whose own terms may be off

    def of_base(learner: Learner) -> Learner:
        return learner._replace(method_state=learner.method_state.base)

    def put_back(learner: Learner, after: Learner) -> Learner:
        return after._replace(method_state=learner.method_state._replace(base=after.method_state))

    def of_term(term: Term, learner: Learner) -> Learner:
        own = called(term, "")
        numbers = {key.removeprefix(own): value for key, value in learner.hyper.items() if key.startswith(own)}
        state = learner.method_state.terms.get(term.name, {})
        return learner._replace(method_state=state, hyper={**learner.hyper, **numbers})

    def keep(term: Term, learner: Learner, after: Learner) -> Learner:
        check_kind(f"What a hook of the term {term.name!r} returns", after, Learner, "the learner, its values changed")
        state = learner.method_state
        if term.name in state.terms:
            state = state._replace(terms={**state.terms, term.name: after.method_state})
        elif jax.tree.leaves(after.method_state):
            raise TypeError(
                f"A hook of the term {term.name!r} returns the state {show(after.method_state)}, which its init did "
                f"not make. State must be there from the start: let init return it."
            )
        changed = {part: getattr(after, part) for part in ("params", "collections", "memory")}
        return learner._replace(method_state=state, **changed)

    def snapshot(learner: Learner) -> Tree:
        if whole:
            return {"params": learner.params, "collections": learner.collections}
        return {"params": shared(learner.params, learner)}

    def keeps_teacher(state: Tree) -> bool:
        """Whether this combination keeps a teacher; one that its base keeps serves as well."""
        found = teacher_of(state)
        serves = found is not None and not widened and ("collections" in found or not whole)
        return any(term.teacher or term.anchor for term in terms) and not serves

    def init(key: Array, sizes: Sizes) -> tuple[Tree, Tree, Tree, dict[str, Array]]:
        params, collections, state, hyper = base.init(key, sizes)
        rows = task_params.resting(base.per_task, base.stacked, tasks=sizes.tasks)
        single = Learner(params, collections, (), state, hyper, None, rows)
        states: dict[str, Tree] = {}
        numbers = dict(hyper)
        for term in terms:
            made = ({}, {}) if term.init is None else term.init(single, sizes)
            own, found = pair(made, f"The init of the term {term.name!r}", "(state, numbers)")
            if missing := sorted({*(term.strengths or ())} - {*found}):
                raise ValueError(f"{missing[0]!r}, a strength of the term {term.name!r}, is none of its numbers.")
            found = {called(term, key): value for key, value in found.items()}
            if taken := sorted(set(found) & set(numbers)):
                raise ValueError(
                    f"{name} has two numbers called {taken[0]!r}. Give the term another name: term._replace(name=...)."
                )
            numbers |= found
            states |= {term.name: own} if jax.tree.leaves(own) else {}
        return params, collections, Combined(state, snapshot(single) if keeps_teacher(state) else None, states), numbers

    def run_hooks(hook: str, learner: Learner, clock: Clock, fold: Fold, key: Array) -> Learner:
        for number, term in enumerate(terms):
            if (function := getattr(term, hook)) is not None:
                now = of_base(learner)

                def respond(params: Tree, batch: Batch, now: Learner = now) -> Output:
                    return base.loss(params, now, clock, batch, None)[1][0]

                own_key = jax.random.fold_in(key, number)
                learner = keep(term, learner, function(of_term(term, learner), clock, fold, own_key, respond))
        if learner.method_state.teacher is None:
            return learner
        return learner._replace(method_state=learner.method_state._replace(teacher=snapshot(learner)))

    def begin_task(learner: Learner, clock: Clock, fold: Fold, key: Array) -> Learner:
        learner = put_back(learner, base.begin_task(of_base(learner), clock, fold, key))
        return run_hooks("begin_task", learner, clock, fold, key)

    def make_teacher(learner: Learner, clock: Clock) -> Teacher | None:
        found = lax.stop_gradient(teacher_of(learner.method_state))
        if found is None:
            return None
        before = of_base(learner)._replace(collections=found.get("collections", learner.collections))

        def respond(batch: Batch) -> Output:
            return lax.stop_gradient(base.loss(found["params"], before, clock, batch, None)[1][0])

        return Teacher(base, found["params"], before, respond)

    def loss(params: Tree, learner: Learner, clock: Clock, batch: Batch, key: Array | None):
        value, (output, metrics) = base.loss(params, of_base(learner), clock, batch, key)
        metrics, total, teacher = {"classification": value, **metrics}, value, make_teacher(learner, clock)
        for term in terms:
            if term.loss is not None:
                given = (params, of_term(term, learner), clock, batch, key, output, asked_for(term, teacher))
                found, parts = pair(term.loss(*given), f"The loss of the term {term.name!r}", "(scalar, metrics)")
                if jnp.shape(found):
                    raise TypeError(
                        f"The loss of the term {term.name!r} has shape {jnp.shape(found)}, but must be scalar."
                    )
                total, metrics = total + found, metrics | {called(term, key): one for key, one in parts.items()}
        return total, (output, metrics)

    def update_mask(learner: Learner, clock: Clock) -> tuple[Tree, Tree]:
        params, collections = base.update_mask(of_base(learner), clock)
        for term, paths in frozen:
            held = (clock.newest > 0) & is_on(term, learner)
            hold = lambda path, mask, held=held, paths=paths: jnp.where(held, 0, mask) if path in paths else mask
            params = task_params.map_leaves(hold, params)
        return params, collections

    def after_step(previous: Learner, learner: Learner, clock: Clock, batch: Batch, gradients: Tree) -> Learner:
        learner = put_back(learner, base.after_step(of_base(previous), of_base(learner), clock, batch, gradients))
        for term in terms:
            if term.after_step is not None:
                both = (of_term(term, previous), of_term(term, learner))
                learner = keep(term, learner, term.after_step(*both, clock, batch, gradients))
        return learner

    def end_phase(learner: Learner, clock: Clock, fold: Fold, key: Array) -> Learner:
        ended = lambda learner: put_back(learner, base.end_phase(of_base(learner), clock, fold, key))
        learner = lax.cond(clock.phase < own_phases, ended, lambda learner: learner, learner)
        end = lambda learner: run_hooks("end_visit", learner, clock, fold, key)
        return lax.cond(clock.phase == last, end, lambda learner: learner, learner)

    def search(inner: Search) -> Search:
        def choose(scores: Array, learners: Learner, clock: Clock, fold: Fold) -> tuple[Array, Learner]:
            index, after = inner.choose(scores, of_base(learners), clock, fold)
            return index, put_back(learners, after)

        return inner._replace(
            candidates=lambda learner, *rest: inner.candidates(of_base(learner), *rest), choose=choose
        )

    return base._replace(
        name=name,
        init=init,
        begin_task=begin_task,
        view=lambda params, collections, state, task, newest: base.view(params, collections, state.base, task, newest),
        loss=loss,
        adjust_gradients=lambda gradients, learner, *rest: base.adjust_gradients(gradients, of_base(learner), *rest),
        update_mask=update_mask,
        after_step=after_step,
        end_phase=end_phase,
        predict=lambda learner, inputs, task: base.predict(of_base(learner), inputs, task),
        memory_size=base.memory_size + memory_size,
        search=base.search and search(base.search),
        strengths=(*base.strengths, *(called(term, one) for term in terms for one in term.strengths or ())),
    )


def held_by(term: Term, base: Method) -> tuple[str, ...]:
    """The leaves that a term holds after the first task; what belongs to a task is not held.

    Raises:
      ValueError: for a leaf that the network does not have.
    """
    assert term.freezes is not None
    held, leaves = term.freezes(base.network), (*task_params.leaf_paths(base.network.shapes[0]), *base.per_task)
    if stray := [path for path in held if path not in leaves]:
        raise ValueError(
            f"The term {term.name!r} freezes {stray[0]!r}, which is no leaf of the network. There are: "
            f"{', '.join(leaves)}."
        )
    return tuple(path for path in held if not task_params.ends_with(path, base.per_task))


def check_terms(base: Method, terms: tuple[Term, ...]) -> None:
    """Checks what is to be combined; see `combine`."""
    check_kind("The base", base, Method, "a method, built, such as methods.finetune(network)")
    for term in terms:
        such = "one of cljax.methods, built, such as methods.distillation(); methods.build takes names, 'lwf+ewc'"
        check_kind("A term", term, Term, such)
        if not (isinstance(term.name, str) and term.name):
            raise ValueError(
                f"A term's name is {term.name!r}, but must be a word: its state and numbers are kept by it."
            )
        whole(f"{term.name}'s memory_size", term.memory_size)


class Unasked(NamedTuple):
    """In place of a teacher, for a term that does not ask for one: what it reads of it is an error."""

    name: str

    def __getattr__(self, part: str) -> Any:
        how = "teacher=True, or anchor=True" if part == "params" else "teacher=True"
        raise TypeError(f"The term {self.name!r} reads teacher.{part}, which it does not ask for: Term(..., {how}).")


def asked_for(term: Term, teacher: Teacher | None) -> Any:
    """What a term gets of the teacher, whatever other terms ask for."""
    if teacher is None or not (term.teacher or term.anchor):
        return Unasked(term.name)
    return teacher if term.teacher else teacher._replace(respond=lambda batch: Unasked(term.name).respond)


def pair(made: Any, what: str, parts: str) -> Any:
    """What a term's function gives: two things, the second a dict."""
    if not (isinstance(made, tuple | list) and len(made) == 2 and isinstance(made[1], dict)):
        raise TypeError(f"{what} gives {show(made)}, but must give {parts}, the second a dict.")
    return made


def teacher_of(state: Tree) -> Tree:
    """The teacher that a state holds, its own or its base's; None where there is none."""
    while isinstance(state, Combined):
        if state.teacher is not None:
            return state.teacher
        state = state.base
    return None
