"""Numbers of a run that are out of bounds: checked before anything is allocated."""

from __future__ import annotations

import math

import jax
import numpy as np

from cljax import files, task_params
from cljax.numbers import INT32, real, show, whole
from cljax.training.plan import epoch_table
from cljax.training.state import EVALUATION_BATCH, Patience, Settings
from cljax.training.step import init_shapes
from cljax.types import Method, Stream


def available_memory() -> int | None:
    """Bytes of memory that are free: of the device; of the machine, where that is the device; None: unknown."""
    device = jax.local_devices()[0]
    if device.platform != "cpu":
        found = device.memory_stats() or {}
        return found["bytes_limit"] - found.get("bytes_in_use", 0) if "bytes_limit" in found else None
    return files.free_memory()


def check_settings(settings: Settings) -> None:
    """Checks the numbers of the settings.

    Raises:
      ValueError: naming the field, its value and what it must be.

    Example:
      >>> check_settings(Settings(batch_size=2.5))
      Traceback (most recent call last):
      ...
      ValueError: batch_size is 2.5, but must be a whole number from 1 to 2147483647.
    """
    if not isinstance(settings, Settings):
        raise ValueError(f"settings is {show(settings)}, but must be training.Settings(...), or None for the default.")
    for name, least in (("batch_size", 1), ("curves_every", 0), ("attention_images", 0)):
        whole(name, getattr(settings, name), least=least)
    if settings.evaluation_batch is not None:
        whole("evaluation_batch", settings.evaluation_batch, least=1)
    if settings.learning_rate is not None:
        real("learning_rate", settings.learning_rate, above=0)
    if (stopping := settings.stopping) is not None:
        if not isinstance(stopping, Patience):
            raise ValueError(f"stopping is {show(stopping)}, but must be training.Patience(...), or None.")
        whole("patience", stopping.patience, least=1)
        real("factor", stopping.factor, above=1)
        minimum = real("minimum_learning_rate", stopping.minimum_learning_rate, above=0)
        if settings.learning_rate is None:
            raise ValueError(
                f"Patience lowers the learning rate to {minimum:g} at least, and must know it: give settings a "
                f"learning_rate, and an optimizer at unit rate, such as optax.sgd(1.0)."
            )


def settle(settings: Settings | None, stream: Stream) -> Settings:
    """The settings of a run over a stream, checked, with the batch of evaluation as a number.

    Raises:
      ValueError: as of `check_settings`.
    """
    settings = Settings() if settings is None else settings
    check_settings(settings)
    if settings.evaluation_batch is not None:
        return settings
    fitting = 2**22 // max(math.prod(stream.tables.examples.shape[1:]), 1)
    most = EVALUATION_BATCH if jax.default_backend() == "cpu" else 1024
    return settings._replace(evaluation_batch=min(max(fitting, EVALUATION_BATCH), most))


def check_bounds(method: Method, stream: Stream, settings: Settings) -> None:
    """Checks that what a run counts fits int32, and that what it keeps at least is less than the memory there is.

    Raises:
      ValueError: naming the thing, its bytes and the cure.
    """
    tables, table = stream.tables, epoch_table(method, stream.schedule)
    largest = max(settings.batch_size, settings.evaluation_batch or 0)
    counts = {
        "rows of a split and of a batch": max(len(part.index) for part in (tables.train, tables.test)) + largest,
        "epochs": int(np.maximum(table, 0).sum(dtype=np.int64)),
    }
    for name, count in counts.items():
        if count > INT32:
            raise ValueError(f"The run counts {count} {name}, more than {INT32}: give fewer, or a smaller batch.")
    memory = available_memory()
    if memory is None:
        return
    tasks, example = tables.classes.shape[-2], math.prod(tables.examples.shape[1:])
    per_epoch = 3 + (tasks / settings.curves_every if settings.curves_every else 0)
    needs = {
        "A batch": (4 * largest * example, "a smaller batch_size or evaluation_batch"),
        "The log of all epochs": (4 * table.size * max(int(table.max()), 0) * per_epoch, "fewer epochs or tasks"),
        f"The learner of {method.name}": (_learner_bytes(method, tasks), "fewer tasks, or a smaller network"),
    }
    for name, (size, cure) in needs.items():
        if size > memory:
            raise ValueError(f"{name} takes {size:.3g} bytes or more, but there are {memory:.3g}: give {cure}.")


def _learner_bytes(method: Method, tasks: int) -> int:
    """Bytes of parameters, collections and method state of as many tasks, before anything is drawn."""
    shapes = init_shapes(method)[:3]
    resting = task_params.resting(method.per_task, method.stacked, tasks=tasks)
    many = lambda path: tasks if task_params.has_rows(path, resting) else 1
    each = task_params.map_leaves(
        lambda path, leaf: many(path) * math.prod(leaf.shape) * leaf.dtype.itemsize, list(shapes)
    )
    return sum(jax.tree.leaves(each))
