"""A stream's visits one by one, with their arrays: for who looks at each, or trains one at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from cljax.data.on_demand import Images
from cljax.streams.building import check_stream
from cljax.text import brief
from cljax.types import Stream, Table


@brief
class Experience(NamedTuple):
    """A visit to a task, on the host.

    Attributes:
      round: of the schedule, from 0.
      task: from 0, by first visit.
      epochs: of the visit.
      classes: names of the task's classes; a label is a place among them.
      train, validation, test: `(inputs [n, ...], labels [n] or [n, K])`, copies of the examples as the task has them.

    Example:
      >>> from cljax import data, streams
      >>> first = next(iter(streams.experiences(streams.split(data.load('digits'), tasks=5))))
      >>> first.task, first.classes, first.test[0].shape
      (0, ('0', '1'), (72, 8, 8, 1))
    """

    round: int
    task: int
    epochs: int
    classes: tuple[str, ...]
    train: tuple[np.ndarray, np.ndarray]
    validation: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]


def experiences(stream: Stream) -> Iterator[Experience]:
    """The visits of a stream in order: one a round of its schedule.

    The loop over them is one's own, and a run takes one round at a time: it is traced once for all.

    Args:
      stream: as built.

    Raises:
      ValueError: what is no stream.

    Example:
      >>> import jax, optax
      >>> from cljax import data, methods, networks, streams, training
      >>> stream = streams.split(data.load("digits"), tasks=5)
      >>> method = methods.finetune(networks.mlp((8, 8, 1), 2, hidden=(16,)))
      >>> run, result = training.make_run(method, optax.adam(1e-3), stream), None
      >>> for experience in streams.experiences(stream):
      ...     inputs, labels = experience.train
      ...     print(experience.task, experience.classes, inputs.shape, labels.max())
      ...     rounds = experience.round, experience.round + 1
      ...     result = run(jax.random.key(0), stream.tables, past=result, rounds=rounds)
      0 ('0', '1') (259, 8, 8, 1) 1
      1 ('2', '3') (259, 8, 8, 1) 1
      2 ('4', '5') (261, 8, 8, 1) 1
      3 ('6', '7') (259, 8, 8, 1) 1
      4 ('8', '9') (255, 8, 8, 1) 1
      >>> result.evaluation.accuracy.shape, run.step.traces
      ((5, 5), 1)
    """
    check_stream(stream)
    return (_experience(stream, number) for number in range(len(stream.schedule.task)))


def _experience(stream: Stream, number: int) -> Experience:
    tables, task = stream.tables, int(stream.schedule.task[number])
    order = None if tables.permutation is None else np.asarray(tables.permutation)[task]

    def arrays(table: Table) -> tuple[np.ndarray, np.ndarray]:
        own = slice(int(table.start[task]), int(table.start[task] + table.size[task]))
        rows, examples = np.asarray(table.index)[own], tables.examples
        inputs = examples.take(rows) if isinstance(examples, Images) else np.asarray(examples)[rows]
        if order is not None:
            inputs = inputs.reshape(len(inputs), -1)[:, order].reshape(inputs.shape)
        return inputs, np.array(table.labels[own])

    classes = tuple(stream.facts["classes"][task]) if task < len(stream.facts["classes"]) else ()
    parts = (arrays(part) for part in (tables.train, tables.validation, tables.test))
    return Experience(number, task, int(stream.schedule.epochs[number]), classes, *parts)
