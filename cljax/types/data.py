"""What is learned from: batches, exemplars, and streams of tasks as index tables over shared examples."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np

from cljax.text import brief

Array = jax.Array
AnyArray = jax.Array | np.ndarray
"""An array that a function takes: JAX's, or NumPy's."""
Tree = Any
"""Any pytree of arrays."""

HostArray = Any
"""A NumPy array on the host, or the JAX array it becomes inside a program."""


@brief
class Batch(NamedTuple):
    """Examples of one step. A last partial batch wraps around, its surplus examples having weight 0.

    Attributes:
      inputs: `[B, ...]` uint8 or float32, as stored, in a step augmented. The network divides uint8 by 255 and then
        standardises; floats it only standardises.
      labels: `[B]` int32, the class index within the example's task; or `[B, K]` float32 in [0, 1], multi-label.
      tasks: `[B]` int32, the task of each example.
      position: `[B]` int32, the place of the example in its task's table; memory's examples have -1.
      weights: `[B]` float32, 1 or 0.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.types import Batch
      >>> labels, tasks, position = jnp.array([0, 1]), jnp.array([3, 3]), jnp.array([5, 0])
      >>> batch = Batch(jnp.zeros((2, 8, 8, 1), jnp.uint8), labels, tasks, position, weights=jnp.array([1.0, 0.0]))
      >>> batch.inputs.shape, batch.weights.tolist()  # the second example only fills the batch up
      ((2, 8, 8, 1), [1.0, 0.0])
    """

    inputs: Array
    labels: Array
    tasks: Array
    position: Array
    weights: Array


@brief
class Memory(NamedTuple):
    """Exemplars kept from earlier tasks, in slots of fixed number M.

    Attributes:
      inputs: `[M, ...]`, as stored.
      labels: `[M]` int32, or `[M, K]` float32.
      tasks: `[M]` int32.
      valid: `[M]` bool, which slots hold an exemplar.

    Example:
      >>> import jax.numpy as jnp
      >>> from cljax.types import Memory
      >>> empty = Memory(jnp.zeros((2, 4)), jnp.zeros(2, jnp.int32), jnp.zeros(2, jnp.int32), jnp.zeros(2, bool))
      >>> empty.valid.tolist()
      [False, False]
    """

    inputs: Array
    labels: Array
    tasks: Array
    valid: Array


@brief
class Table(NamedTuple):
    """One split of a stream: a flat index over shared examples, with a start and a size per task.

    Attributes:
      index: `[N]` int32, rows of `Tables.examples`.
      labels: `[N]` int32 or `[N, K]` float32, within the task.
      start: `[T]` int32, where each task begins in the index.
      size: `[T]` int32, how many examples each task has.

    Example:
      >>> import numpy as np
      >>> from cljax.types import Table
      >>> table = Table(*map(np.int32, ([4, 7, 1, 3, 5], [0, 1, 0, 0, 1], [0, 2], [2, 3])))
      >>> table.index[table.start[1] :][: table.size[1]].tolist()  # where the second task's examples are
      [1, 3, 5]
    """

    index: HostArray
    labels: HostArray
    start: HostArray
    size: HostArray


@brief
class Tables(NamedTuple):
    """A stream's data, one pytree: never a copy of the examples per task.

    Attributes:
      examples: `[n, ...]` uint8 or float32, shared by all splits, tasks and seeds; or `data.Images`, which are read on
        demand; inside a program, also anything with `read(rows) -> [B, ...]`.
      train: for training steps.
      validation: for patience, searches and validation.
      test: for evaluation alone.
      permutation: `[T, P]` int32 over an example's flattened elements, or None.
      classes: `[T, K]` bool, which logits of its head a task uses.
      single_label: `[T]` bool where tasks of one label and of several labels an example are mixed: all labels are then
        floats, one-hot where it is True. Else None.

    Example:
      >>> from cljax import data, streams
      >>> tables = streams.split(data.load('digits'), tasks=5).tables
      >>> tables.examples.shape, tables.train.size.shape, tables.classes.tolist()[0]
      ((1797, 8, 8, 1), (5,), [True, True])
    """

    examples: HostArray
    train: Table
    validation: Table
    test: Table
    permutation: HostArray | None
    classes: HostArray
    single_label: HostArray | None = None


@brief
class Schedule(NamedTuple):
    """The rounds of a stream, as NumPy arrays: task `[R]` int32, epochs `[R]` int32, evaluate `[R]` bool.

    Tasks are numbered by first visit: the first visits, in order, are 0, 1, 2, ...

    Example:
      >>> import numpy as np
      >>> from cljax.types import Schedule
      >>> schedule = Schedule(np.int32([0, 1, 0]), np.int32([5, 5, 1]), np.bool_([True, True, True]))
      >>> len(schedule.task)  # three rounds, in the last of which the first task comes again for an epoch
      3
    """

    task: HostArray
    epochs: HostArray
    evaluate: HostArray


@brief
class Stream(NamedTuple):
    """What is learned and in which order: tables, schedule, and facts about the data (host side).

    Attributes:
      tables: NumPy or JAX arrays.
      schedule: the rounds.
      name: of the data, such as `'digits'`.
      scenario: how logits are read: `'task'`, `'class'` or `'domain'`-incremental.
      mean, std: per channel, of inputs scaled to [0, 1]; for the network's standardisation. Of the training part of the
        first task, so that nothing is known of later ones, unless the data set has numbers of its own. A vector's
        elements are its channels; where they are bytes, or permuted, all have the same.
      facts: what a record should say: class order, permutation seed, split.

    Example:
      >>> from cljax import data, streams
      >>> stream = streams.split(data.load('digits'), tasks=5)
      >>> stream.name, stream.scenario, stream.schedule.task.tolist()
      ('digits', 'task', [0, 1, 2, 3, 4])
    """

    tables: Tables
    schedule: Schedule
    name: str
    scenario: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    facts: dict[str, Any]
