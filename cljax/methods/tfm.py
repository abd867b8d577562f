"""Ternary feature masks: each task owns new features, sees all older ones, and changes none of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import jax.numpy as jnp

from cljax import ownership, task_params
from cljax.methods.common import check_network, number_of_task, scheduled
from cljax.methods.owned import check_heads, owned
from cljax.numbers import check_option, flag, real, several, show
from cljax.ownership import masks
from cljax.types import Array, Clock, Fold, Learner, Method, Network, Search, Tree

Connections = Literal["ternary", "into_new", "binary"]

FIRST_GROWTH = 0.55
"""The part of the features that the first task claims by default; what is left is for the others, in equal parts."""


def tfm(
    network: Network,
    *,
    growth: float | Sequence[float] | None = None,
    candidates: Sequence[float] | None = None,
    margin: float = 0.015,
    feature_normalization: bool | Literal["later"] = True,
    connections: Connections = "ternary",
    zero_init_new_to_old: bool = False,
) -> Method:
    r"""Ternary feature masks (TFM): a task makes new features, uses all older ones, and changes only what is new.

    $$ y_i = n^t_i \Big( \gamma_{t,i} \sum_j W_{ij} x_j + \beta_{t,i} \Big), \qquad
    \dot W_{ij} \propto n^{t,l-1}_j n^{t,l}_i - n^{t-1,l-1}_j n^{t-1,l}_i $$

    with $n^t_i = [\mathrm{owner}_i \le t]$ (equation 3): the masked forward pass (equation 4) with the task's own
    feature normalisation (equation 7), and the mask of gradients (equation 5, which is equation 6 where no task is
    visited again). Without the normalisation it is the paper's ablation "TFM w/o FN", a point lower there. Weights from
    new features into old ones are trained too: older tasks do not see new features, so no bit of their logits changes.
    At its first visit a task claims the next free features of every layer (equations 8 and 9), up to the network's full
    width. When an older task is visited again, only its own head and normalisation are trained. Inputs count as
    features of task 0.

    What old and new features have to do with each other:

    | connections | a task sees | and trains weights |
    |---|---|---|
    | `ternary` | its own features and all older ones | that touch a feature of its own |
    | `into_new` | the same | into its own features; those from them into older ones are 0 |
    | `binary` | its own features alone | between them (equations 1 and 2, figure 2) |

    The paper leaves open, and here: the gate comes after the normalisation, whose shift would pass it otherwise; a bias
    belongs to its feature; growth is a part of each layer's features, rounded up.

    Args:
      network: with gates, a head for each task, and no batch normalisation.
      growth: in [0, 1], the part of each layer's features that a task claims; a sequence is a schedule for tasks 0, 1,
        ..., its last number for all further tasks: `(0.55, 0.05)`. None: 0.55 for the first task, the rest in equal
        parts for the others, which for ten tasks is the paper's schedule. Rounded up, they leave none for the
        last tasks in narrow layers: of 64 features the eighth of ten tasks has the last ones. Tasks that nobody planned
        find none: for these, leave some, as `(0.4, 0.1)` does, or room by `streams.pad`.
      candidates: numbers to choose each task's growth from, by training with each of them; None: no search. Where
        `growth` is given too, it is the first task's, as in the paper, which starts with a smaller network.
      margin: of validation accuracy: the lowest growth that comes as near to the best is chosen.
      feature_normalization: whether scale and shift of each feature belong to a task, where the network has
        `'feature'` normalisation; otherwise they stay 1 and 0. 'later': the first task's do.
      connections: a row of the table.
      zero_init_new_to_old: whether weights from new features into old ones, where they are trained, start at 0, so that
        a task begins with the old features as they were; otherwise they start like all others.

    Returns:
      The method.

    Raises:
      ValueError: for a network without gates, with a shared head or with batch normalisation; for an unknown option;
        for a growth outside [0, 1], or a schedule together with candidates.

    Example:
      >>> from cljax import networks
      >>> from cljax.methods import tfm
      >>> tfm(networks.mlp((8, 8, 1), 2, hidden=(16,), normalization='feature')).per_task
      ('head/kernel', 'head/bias', 'norm_0/scale', 'norm_0/bias')

    Reference: Masana, Tuytelaars and van de Weijer, Ternary Feature Masks, 2021, sections 3.2 to 3.4.
    """
    check_network(network)
    check_option("tfm's connections", connections, Connections)
    layout = ownership.layout("tfm", network)
    _check(network, layout)
    given = FIRST_GROWTH if growth is None else growth
    schedule = scheduled("tfm", "growth", given, least=0, most=1)
    listed = [] if candidates is None else several("tfm's candidates", candidates, "several numbers, or None")
    options = sorted(real("tfm's candidate for growth", part, least=0, most=1) for part in listed)
    margin = real("tfm's margin", margin, least=0, most=1)
    if not isinstance(feature_normalization, bool) and feature_normalization != "later":
        raise ValueError(
            f"tfm's feature_normalization is {show(feature_normalization)}, but must be True, False or 'later'."
        )
    zero_init_new_to_old = flag("tfm's zero_init_new_to_old", zero_init_new_to_old)
    if options and len(schedule) > 1:
        raise ValueError("tfm's growth is either a schedule or chosen among candidates: give one of the two.")
    own = layout.affines if feature_normalization else ()
    made_for = network._replace(per_task=tuple(dict.fromkeys((*network.per_task, *own))))
    rule: masks.Rule = "pruning" if connections == "into_new" else "ternary"
    sees: Literal["own", "older"] = "own" if connections == "binary" else "older"
    base = owned("tfm", made_for, layout, rule=rule, sees=sees, numbers={**schedule, "margin": margin})

    def begin_task(learner: Learner, clock: Clock, fold: Fold, key: Array) -> Learner:
        part = number_of_task(learner.hyper, schedule, clock.task)
        if growth is None and not options:
            others = jnp.float32(max(learner.rows.tasks - 1, 1))
            part = jnp.where(clock.task == 0, part, (1 - part) / others)
        owner = ownership.claim(learner.method_state.owner, clock.task, part)
        params = learner.params
        if zero_init_new_to_old or connections != "ternary":
            alone = connections == "binary"  # so that nothing is reported as reused
            params = ownership.cut_interference(params, layout.wires, owner, clock.task, only_own=True, both=alone)
        return learner._replace(params=params, method_state=learner.method_state._replace(owner=owner))

    def update_mask(learner: Learner, clock: Clock) -> tuple[Tree, Tree]:
        mask, collections = base.update_mask(learner, clock)
        learned = clock.task > 0 if feature_normalization == "later" else jnp.bool_(feature_normalization)
        fix = lambda path, part: jnp.where(learned, part, 0.0) if path in layout.affines else part
        return task_params.map_leaves(fix, mask), collections

    def offer(learner: Learner, clock: Clock, scores: Array) -> dict[str, Array]:
        each = jnp.asarray(options, jnp.float32)
        each = each if growth is None else jnp.where(clock.newest > 0, each, schedule["growth"])
        return {"growth": jnp.where(clock.first, each, each[0])}  # a visit that comes again claims nothing

    def choose(scores: Array, learners: Learner, clock: Clock, fold: Fold) -> tuple[Array, Learner]:
        within = scores >= jnp.max(scores) - learners.hyper["margin"] - 1e-6  # the rounding of accuracies
        return jnp.argmax(within).astype(jnp.int32), learners

    search = Search(offer, choose, len(options)) if options else None
    return base._replace(begin_task=begin_task, update_mask=update_mask, search=search, network=network)


def _check(network: Network, layout: ownership.Layout) -> None:
    check_heads("tfm", layout, "for new features would change the logits of a shared one")
    _, collections = network.shapes
    if "batch_stats" in collections:
        raise ValueError(
            "tfm cannot use batch normalisation: its statistics are shared, and old features, which new ones feed, "
            "differ from task to task. Use feature normalisation, a scale and shift of each task's own: "
            "normalization='feature', in a module of your own networks.FeatureNorm; or none."
        )
