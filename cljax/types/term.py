"""What a term is: a loss with its own state and numbers, which `methods.combine` adds to any method's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from cljax.text import brief
from cljax.types.data import Array, Batch, Tree
from cljax.types.method import Clock, Fold, Learner, Method, Sizes
from cljax.types.network import Network, Output

Respond = Callable[[Tree, Batch], Output]
"""`(params, batch) -> output` of the base in evaluation mode, as its loss has it: `[T, B, ...]` where it is stacked."""


@brief
class Teacher(NamedTuple):
    """The network as it was just before the visit; a constant.

    Attributes:
      base: the method that the terms are added to.
      params: its parameters, like the learner's; only those that are shared, where no term asks for a teacher.
      learner: the base's learner, with the teacher's collections; `method_state` is the base's.
      respond: `batch -> output`, in evaluation mode. Where nothing reads the output, it is not computed.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax import methods, networks
      >>> from cljax.types import Output, Teacher
      >>> base = methods.finetune(networks.mlp((2,), 3))
      >>> teacher = Teacher(base, {}, None, lambda batch: Output(jnp.zeros((5, 3)), jnp.zeros((5, 4)), None, {}, {}))
      >>> teacher.respond(None).logits.shape
      (5, 3)
    """

    base: Method
    params: Tree
    learner: Learner
    respond: Callable[[Batch], Output]


class TermInit(Protocol):
    """`(learner, sizes) -> (state, hyper)`: the term's own state, a dict, and its numbers.

    The learner is that of a single task, as the base's `init` makes it. Leaves of the state whose paths end as a
    `per_task` leaf's have rows, as in a method's. Trained parameters that a run begins with come later: what follows
    from parameters is made in `begin_task`.
    """

    def __call__(self, learner: Learner, sizes: Sizes, /) -> tuple[dict[str, Tree], dict[str, Array]]:
        """Makes a term's state and numbers."""
        ...


class TermHook(Protocol):
    """`(learner, clock, fold, key, respond) -> learner`: `begin_task`, at first visits, and `end_visit`, at all.

    What it changes of parameters, collections, memory and its own state is kept; numbers stay as given.
    `respond(params, batch)` is the base's output in evaluation mode, as its loss has it: `[T, B, ...]` where leaves are
    stacked.
    """

    def __call__(self, learner: Learner, clock: Clock, fold: Fold, key: Array, respond: Respond, /) -> Learner:
        """Changes values of the learner."""
        ...


class TermLoss(Protocol):
    """`(params, learner, clock, batch, key, student, teacher) -> (scalar, metrics)`: what is added to the base's loss.

    `student` is the output of the base's forward pass, made once for all terms; `teacher` is the network before the
    visit, for a term that asks for it or for an anchor. The strength is part of the scalar, not of the metrics.
    """

    def __call__(
        self,
        params: Tree,
        learner: Learner,
        clock: Clock,
        batch: Batch,
        key: Array | None,
        student: Output,
        teacher: Any,
        /,
    ) -> tuple[Array, dict[str, Array]]:
        """Computes the term for a batch."""
        ...


class TermStep(Protocol):
    """`(previous, learner, clock, batch, gradients) -> learner`, after every step; gradients of the whole loss.

    What it changes of parameters, collections and its own state is kept. The batch is the step's, augmented.
    """

    def __call__(self, previous: Learner, learner: Learner, clock: Clock, batch: Batch, gradients: Tree, /) -> Learner:
        """Changes values of the learner after a step."""
        ...


@brief
class Term(NamedTuple):
    """A loss that is added to a method's, with its own state and numbers; see `methods.combine`.

    The learner that a term's hooks get has the term's own state as `method_state`, and in `hyper` the term's own
    numbers by their plain names. A hook that is None does nothing.

    Attributes:
      name: what its state and numbers are stored under, such as `'ewc'`.
      init: see `TermInit`.
      begin_task: see `TermHook`; at a first visit only, after the base's own.
      loss: see `TermLoss`.
      after_step: see `TermStep`.
      end_visit: see `TermHook`; at the end of the last phase of every visit, after the base's `end_phase`.
      all_heads: whether it reads the outputs of all tasks: what belongs to a task is then kept stacked.
      anchor: whether it reads the shared parameters as they were just before the visit: `teacher.params`.
      teacher: whether it reads what the whole network gave just before the visit: `teacher.respond`.
      strengths: its numbers that scale it: where all are 0 it does nothing. None: it always does something.
      memory_size: number of exemplars that it keeps in the learner's memory.
      freezes: names, of the base's network, the leaves of params that it lets nothing move after the first task, as
        long as it does something; None: it lets everything move.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax import methods, networks
      >>> from cljax.types import Term
      >>> def loss(params, learner, clock, batch, key, student, teacher):
      ...     return 0.01 * jnp.mean(student.features**2), {}
      >>> methods.combine(methods.finetune(networks.mlp((8, 8, 1), 2)), Term('small', loss=loss)).name
      'finetune+small'
    """

    name: str
    init: TermInit | None = None
    begin_task: TermHook | None = None
    loss: TermLoss | None = None
    after_step: TermStep | None = None
    end_visit: TermHook | None = None
    all_heads: bool = False
    anchor: bool = False
    teacher: bool = False
    strengths: tuple[str, ...] | None = None
    memory_size: int = 0
    freezes: Callable[[Network], tuple[str, ...]] | None = None
