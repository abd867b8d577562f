"""What a method's search offers and has tried, and which of its candidates there is no need to train."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from cljax.text import brief
from cljax.types import Array, Clock, HostArray, Learner, Method, Tables


@brief
class Tried(NamedTuple):
    """What a search has tried in each of R rounds, C candidates.

    Attributes:
      numbers: `{name: [R, C]}` float32, those in place of the learner's.
      scores: `[R, C]` float32, accuracy on the task's validation examples; -1 of a candidate that diverged or was not
        trained.
      epochs: `[R, C]` int32, how many it was trained; 0 of one that repeats the numbers of one before it.
      chosen: `[R]` int32, the candidate that was kept; -1 before that.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.training import Tried
      >>> growth, chosen = jnp.array([[0.1, 0.3]]), jnp.array([1])  # one round, two candidates
      >>> tried = Tried({'growth': growth}, jnp.array([[0.8, 0.9]]), jnp.array([[5, 5]]), chosen)
      >>> tried.numbers['growth'][0, tried.chosen[0]].round(1).tolist()
      0.3...
    """

    numbers: dict[str, HostArray]
    scores: HostArray
    epochs: HostArray
    chosen: HostArray


def offer(method: Method, learner: Learner, clock: Clock, scores: Array) -> dict[str, Array]:
    """The numbers that a method's search offers to its candidates, `{name: [C]}` float32; see `types.Candidates`.

    Raises:
      ValueError: there are none, or not as many as the search has candidates.
    """
    assert method.search is not None
    size, options = method.search.size, method.search.candidates(learner, clock, scores)
    if any(jnp.shape(value) != (size,) for value in options.values()) or not options:
        shapes = ", ".join(f"{name} {jnp.shape(value)}" for name, value in options.items()) or "no numbers"
        raise ValueError(
            f"The search of {method.name} has {size} candidates, but offers {shapes}: give each number an array of "
            f"shape ({size},)."
        )
    return {name: jnp.asarray(value, jnp.float32) for name, value in options.items()}


def repeats(numbers: dict[str, Array], candidate: Array) -> Array:
    """Whether a candidate has the same numbers, `{name: [C]}`, as one before it.

    Example:
      >>> numbers = {'strength': jnp.array([4.0, 2.0, 2.0]), 'learning_rate': jnp.array([0.1, 0.1, 0.1])}
      >>> [bool(repeats(numbers, jnp.int32(candidate))) for candidate in range(4)]
      [False, False, True, False]
    """
    alike = jnp.all(jnp.stack([values == values[candidate] for values in numbers.values()]), axis=0)
    count = alike.shape[0]
    return jnp.any(alike & (jnp.arange(count, dtype=jnp.int32) < candidate)) & (candidate < count)


def without_examples(tables: Tables, condition: Array) -> Tables:
    """The tables, where a condition holds with no examples to train on or to validate with.

    What folds over them then costs nothing; a `lax.cond` would copy the images under `vmap`.
    """
    empty = lambda table: table._replace(size=jnp.where(condition, 0, jnp.asarray(table.size, jnp.int32)))
    return tables._replace(train=empty(tables.train), validation=empty(tables.validation))
