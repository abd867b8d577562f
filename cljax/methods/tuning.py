"""Choosing a method's numbers at each visit, from the validation examples of the visited task alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from cljax.numbers import check_kind, real, several, whole
from cljax.types import Array, Clock, Fold, HostArray, Learner, Method, Search, Sizes, Tree

LEARNING_RATES = (0.1, 0.05, 0.01)
"""Those that are tried where none are given."""
START = "tune.start."
"""What the names of the numbers begin with that the strengths begin at."""


class Standing(NamedTuple):
    """Where a search stands.

    Attributes:
      fastest: int32, of the learning rates the one of the best accuracy so far; the first of several.
      stable: int32, of the strengths the first, which is the largest, whose accuracy is near enough to that.
      found: bool, whether there is one.
    """

    fastest: HostArray
    stable: HostArray
    found: HostArray


def standing(scores: Array, learning_rates: int, margin: Array) -> Standing:
    r"""Where the search for a strength stands.

    $$ a_s \ge (1 - m) \max_r a_r $$

    Args:
      scores: `[C]` validation accuracies in [0, 1], first those of plain fine-tuning at each learning rate, then those
        of the strengths, in falling order; -1 where there is none.
      learning_rates: how many learning rates are tried.
      margin: m, a scalar in [0, 1].

    Returns:
      Where it stands.

    Example:
      >>> [part.item() for part in standing(jnp.array([0.8, 0.9, 0.5, 0.75, -1.0]), 2, jnp.float32(0.2))]
      [1, 1, True]

    Reference: De Lange et al., A Continual Learning Survey: Defying Forgetting in Classification Tasks, 2022.
    """
    plain, kept = scores[:learning_rates], scores[learning_rates:]
    near = (kept >= (1 - margin) * jnp.max(plain) - 1e-6) & (kept >= 0)  # the rounding of accuracies
    first = jnp.argmax(jnp.append(near, True))
    return Standing(jnp.argmax(plain).astype(jnp.int32), first.astype(jnp.int32), jnp.any(near))


def tuned(
    method: Method,
    strengths: Sequence[str] | None = None,
    *,
    learning_rates: Sequence[float] = LEARNING_RATES,
    start: float = 10.0,
    decay: float = 0.5,
    tries: int = 8,
    margin: float = 0.2,
) -> Method:
    r"""Has each visit choose the learning rate and the strength without the future: the continual framework.

    $$ r^* = \arg\max_r a(r, 0), \qquad \lambda^* = \max \{ \lambda = \lambda_0 d^i, \, 0 \le i < n :
    a(r^*, \lambda) \ge (1 - m) \, a(r^*, 0) \} $$

    with the accuracy a on the visited task's own validation examples. First each learning rate is tried with all
    strengths at 0, plain fine-tuning (maximal plasticity). At the best of them the strengths are tried, from the start
    on, each time by the decay smaller, until the accuracy is within the margin (stability decay). The visit then is
    that of what was chosen, all candidates having the same keys. Several strengths, as of `lwf+ewc`, fall together.
    What is not needed any more is not trained. If no strength comes near enough, the visit is that of plain
    fine-tuning: nothing is chosen that was not tried. In the first task there is nothing to keep: the learning rate
    alone is chosen, and the strengths are those of the start; likewise, at every visit, of a method without strengths.

    A visit needs up to as many times its epochs as there are candidates, and a run as many copies of the learner.
    `drive(...).search` and a run's record have what was tried, what was chosen and the epochs. In `hyper` the strengths
    are those of the last visit; they begin at `hyper['tune.start.<strength>']`.

    Args:
      method: a method that does not search itself.
      strengths: names, in `hyper`, of the numbers that fall; None: the method's own, `method.strengths`.
      learning_rates: r, those to try, of an optimizer at unit rate.
      start: what the method's own strengths are multiplied by in the beginning; their product is lambda_0.
      decay: d, in (0, 1).
      tries: n, how many strengths are tried at most.
      margin: m, the part of the accuracy of plain fine-tuning that may be lost.

    Returns:
      The method, of the same name.

    Raises:
      ValueError: for a method that searches, a number out of range, or no learning rate. At `init`, for a strength that
        is none of the method's numbers.

    Example:
      >>> from cljax import methods, networks
      >>> from cljax.methods import tuned
      >>> method = tuned(methods.build('lwf+ewc', networks.mlp((8, 8, 1), 2)), learning_rates=(0.1, 0.01))
      >>> method.name, method.strengths, method.search.size
      ('lwf+ewc', ('strength', 'ewc.strength'), 10)

    Reference: De Lange et al., A Continual Learning Survey: Defying Forgetting in Classification Tasks, 2022, the
    continual hyperparameter framework.
    """
    check_kind("What is tuned", method, Method, "a method, built, such as methods.lwf(network)")
    if method.search is not None:
        raise ValueError(
            f"{method.name} chooses its own numbers at each visit: leave its candidates out, or do not tune it."
        )
    names = method.strengths if strengths is None else tuple([strengths] if isinstance(strengths, str) else strengths)
    listed = several("learning_rates", learning_rates, "one number or more, such as (0.1, 0.01)", least=1)
    rates = [real("A learning rate to try", rate, above=0) for rate in listed]
    start, decay = real("start", start, above=0), real("decay", decay, above=0, below=1)
    tries = whole("tries", tries, least=1) if names else 0
    margin = real("margin", margin, least=0, most=1)
    factors = np.float32(decay) ** np.arange(tries, dtype=np.float32)

    def init(key: Array, sizes: Sizes) -> tuple[Tree, Tree, Tree, dict[str, Array]]:
        *rest, hyper = method.init(key, sizes)
        if missing := [name for name in names if name not in hyper]:
            raise ValueError(
                f"{method.name} has no number {missing[0]!r} whose strength could fall. It has: "
                f"{', '.join(sorted(hyper)) or 'none'}."
            )
        starts = {START + name: jnp.float32(start) * hyper[name] for name in names}
        return *rest, {**hyper, **starts, "tune.margin": jnp.float32(margin)}

    def candidates(learner: Learner, clock: Clock, scores: Array) -> dict[str, Array]:
        now = standing(scores, len(rates), learner.hyper["tune.margin"])
        each = jnp.asarray(rates, jnp.float32)
        offered = {"learning_rate": jnp.concatenate([each, jnp.broadcast_to(each[now.fastest], (tries,))])}
        falling = jnp.asarray(factors)[jnp.minimum(jnp.arange(tries, dtype=jnp.int32), now.stable)]
        for name in names:
            first = learner.hyper[START + name]
            kept = jnp.concatenate([jnp.zeros(len(rates), jnp.float32), first * falling])
            offered[name] = jnp.where(clock.newest > 0, kept, first)
        return offered

    def choose(scores: Array, learners: Learner, clock: Clock, fold: Fold) -> tuple[Array, Learner]:
        now = standing(scores, len(rates), learners.hyper["tune.margin"][0])
        return jnp.where(now.found, len(rates) + now.stable, now.fastest), learners

    return method._replace(init=init, search=Search(candidates, choose, len(rates) + tries), strengths=tuple(names))
