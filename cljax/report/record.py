"""A run's record, and reading one back.

A record is plain JSON: `{"format": 1, "complete": bool, "left_out": {...}, "diverged": [...], "runs": [...]}`, one
object a method. `diverged` has a line for each learner that did, whose numbers are in no run; the command's `basis`
digests of the data and of what all began with, so that nothing else is compared with them.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import stat
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from cljax import files, metrics, ownership
from cljax.ownership import usage
from cljax.report import looks, schema
from cljax.storage import old_names
from cljax.training.cost import bytes_per_task, tree_bytes
from cljax.training.outcome import Outcome
from cljax.types import Learner, Network


def run_record(
    outcome: Outcome, *, network: dict[str, Any] | None = None, config: dict[str, Any] | None = None
) -> dict[str, Any]:
    """A method's entry in `record.json`.

    Accuracies are fractions: `accuracy[seed][after task][task]` as the scenario reads the logits, `top5` the same with
    any of the five largest, `task_il_accuracy` with each task's own head; `untrained[seed][task]` those before the
    first task, where one head serves all, else None. Where tasks are revisited the rows are
    those before the next task is first visited (see `metrics.first_visits`), and `rounds` holds all rows of the
    first and the last. `epochs` has the loss and the validation's loss and accuracy,
    `[seed][round][phase][epoch]`; `curves` the accuracy on all tasks `[seed][point][task]` after the epochs of
    `curve_epochs`, `[point]` of round, phase and epoch, counted from 0, 0 and 1. `zero_forgetting` is measured: no bit
    of a task's test logits changed but in visits to it. `search` has what a method's search has tried in each round:
    `numbers` and `scores`, validation accuracies, `[seed][round][candidate]`, -1 of what diverged or was not needed,
    `epochs` likewise, and which was `chosen`, `[seed][round]`, -1 in a round that was not run. `feature_usage` is for
    methods in which tasks own features. `attention` has where the first seed's network looks for the labels of some of
    the first task's test images after each task, as of `looks.of_tasks`, where that was measured.

    Args:
      outcome: what `drive` returned.
      network: what to say of the network; None: nothing.
      config: the configuration; None: nothing.

    Returns:
      Plain numbers, strings, lists and dicts; NaN is None. The command adds `parameters`, the images of `attention`,
      and, class-incremental, `confusion`: `counts` of `training.confusion_matrix`, summed over seeds, and the tasks'
      `classes`; None of more than 200 classes, of several labels an example, and of data read from disk.

    Example:
      >>> import optax
      >>> from cljax import data, methods, networks, report, streams, training
      >>> seeds = [(0, streams.split(data.load('digits'), tasks=2, epochs=1))]
      >>> method = methods.finetune(networks.mlp((8, 8, 1), 5, hidden=(4,)))
      >>> outcome = training.drive(method, optax.adam(1e-2), seeds)
      >>> entry = report.run_record(outcome)
      >>> entry['method'], entry['traces'], len(entry['accuracy'][0])
      ('finetune', 1, 2)
    """
    whence, found, bare = outcome.origin, outcome.evaluation, outcome.origin.network
    schedule, learner = whence.schedule, outcome.learners[0]
    tasks = np.asarray(schedule.task)
    revisits = len(tasks) > len(np.unique(tasks))
    return plain(
        {
            "method": whence.method,
            "data": whence.data,
            "scenario": whence.scenario,
            "network": network or {},
            "seeds": whence.seeds,
            "accuracy": metrics.first_visits(found.accuracy, tasks),
            "task_il_accuracy": metrics.first_visits(found.task_il_accuracy, tasks),
            "top5": metrics.first_visits(found.top5, tasks),
            "untrained": outcome.untrained,
            "rounds": {"accuracy": found.accuracy, "task_il_accuracy": found.task_il_accuracy} if revisits else None,
            "zero_forgetting": zero_forgetting(np.asarray(found.fingerprint), tasks),
            "schedule": {"task": tasks, "epochs": schedule.epochs, "evaluate": schedule.evaluate},
            "epochs_trained": np.isfinite(outcome.epochs.loss).sum(axis=(2, 3)),
            "epochs": outcome.epochs._asdict(),
            "curves": outcome.curves if len(outcome.curve_epochs) else None,
            "curve_epochs": outcome.curve_epochs,
            "search": None if outcome.search is None else outcome.search._asdict(),
            "evaluation": {"after": "each round", "curves_every_epochs": whence.curves_every},
            "seconds": outcome.seconds,
            "compile_seconds": outcome.compile_seconds,
            "traces": outcome.traces,
            "flops": outcome.flops,
            "driver": "scan" if outcome.share_waiting is None else "host",
            "share_waiting": outcome.share_waiting,
            "bytes_per_task": bare and bytes_per_task(learner, bare),
            "packed_bytes_per_task": bare and packed_bytes_per_task(learner, bare),
            "feature_usage": bare and feature_usage(bare, outcome.learners),
            "attention": None if found.attention is None else looks.of_tasks(found.attention[0], tasks),
            "facts": whence.facts,
            "config": config or {},
            "versions": versions(),
            "device": device(outcome.shares),
        }
    )


def zero_forgetting(fingerprint: np.ndarray, tasks: np.ndarray) -> bool:
    """Whether no task's logits changed by a bit but in visits to it: after its last one, and between any two.

    Args:
      fingerprint: `[S, R, T]` uint32, of each task's logits after each round; 0 where a round was not evaluated.
      tasks: `[R]` int, the task of each round.

    Example:
      >>> import numpy as np
      >>> from cljax.report import zero_forgetting
      >>> marks = np.array([[[5, 0], [5, 7]]], np.uint32)
      >>> zero_forgetting(marks, np.array([0, 1]))
      True
      >>> zero_forgetting(marks + np.array([[0, 0], [1, 0]], np.uint32), np.array([0, 1]))
      False
      >>> again = np.array([[[5, 0], [6, 7], [5, 7]]], np.uint32)  # task 0, forgotten and then learned anew
      >>> zero_forgetting(again, np.array([0, 1, 0]))
      False
    """
    evaluated = fingerprint.any(axis=(0, 2))
    for task in np.unique(tasks):
        visits = np.cumsum(tasks == task)
        for visit in range(1, visits[-1] + 1):
            marks = fingerprint[:, evaluated & (visits == visit), task]
            if (marks != marks[:, :1]).any():
                return False
    return True


def packed_bytes_per_task(learner: Learner, network: Network) -> float | None:
    """Bytes a task as of `training.cost.bytes_per_task`, a feature's ternary mask taken as its paper's two bits.

    A learner keeps int32 owners, one for all tasks, of which every task's mask follows. None where features have none.

    Reference: Masana et al., Ternary Feature Masks, 2021, section 3.2.
    """
    if not (owner := ownership.owner_of(learner.method_state, learner.collections)):
        return None
    tasks, features = learner.rows.tasks, sum(leaf.size for leaf in owner.values())
    masks = metrics.overhead_bytes("ternary_feature_mask", tasks=tasks, features=features)
    return bytes_per_task(learner, network) + (masks - tree_bytes(owner)) / tasks


def feature_usage(network: Network, learners: Sequence[Learner]) -> dict[str, dict[str, np.ndarray]] | None:
    """How tasks shared out the features of each layer, where a method's state has owners of features.

    Args:
      network: the method's.
      learners: at rest, one a seed.

    Returns:
      `{layer: {'used', 'new', 'reused', 'free': [seed, after task]}}`, parts in [0, 1]: owned so far, of these made by
      the newest task, of the older ones those that feed it, and owned by none. None where no task owns features.

    Example:
      >>> import jax
      >>> import numpy as np
      >>> import optax
      >>> from cljax import data, methods, networks, report, streams, training
      >>> network = networks.mlp((8, 8, 1), 2, hidden=(10,))
      >>> tables = streams.split(data.load('digits'), tasks=5).tables
      >>> learner = training.make_learner(methods.tfm(network), optax.sgd(1.0), tables, 0.1, jax.random.key(0))
      >>> report.feature_usage(network, [learner])['dense_0']['free'].tolist()  # no task has claimed a feature yet
      [[1.0, 1.0, 1.0, 1.0, 1.0]]
    """
    owner = ownership.owner_of(learners[0].method_state, learners[0].collections)
    if owner is None:
        return None
    measure = jax.jit(lambda learner: usage.diagnostics(network, learner))
    found = [measure(learner) for learner in learners]
    names = {"used": "used", "new": "newly_used", "reused": "reused", "free": "free"}
    return {
        layer: {name: np.stack([getattr(parts, field)[layer] for parts in found]) for name, field in names.items()}
        for layer in owner
    }


def versions() -> dict[str, str]:
    """The versions of what computes.

    Example:
      >>> import jax
      >>> from cljax import report
      >>> report.versions()['jax'] == jax.__version__
      True
    """
    names = ("cljax", "jax", "jaxlib", "flax", "optax", "numpy")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in names}}


def device(shares: tuple[int, int] = (1, 1)) -> dict[str, Any]:
    """The machine, as JAX sees it, and among how many of its devices seeds, and each batch, were shared.

    Example:
      >>> from cljax import report
      >>> report.device()['platform']
      'cpu'
    """
    devices = jax.devices()
    return {
        "platform": devices[0].platform,
        "kind": devices[0].device_kind,
        "count": len(devices),
        "share_seeds": shares[0],
        "share_batches": shares[1],
        "machine": platform.machine(),
        "processors": os.cpu_count(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def plain(value: Any) -> Any:
    """As JSON has it: arrays as lists, float32 in their shortest decimals, NaN and infinity as None.

    Example:
      >>> import numpy as np
      >>> from cljax.report import plain
      >>> plain({'a': np.array([.1, np.nan], np.float32), 'b': np.int32(3), 'c': (1.5,)})
      {'a': [0.1, None], 'b': 3, 'c': [1.5]}
    """
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray | jax.Array):
        array = np.asarray(value)
        return plain(array[()]) if array.ndim == 0 else [plain(item) for item in array]
    if isinstance(value, np.float32):
        return plain(float(str(value)))
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value


def read(path: str | os.PathLike) -> dict[str, Any]:
    """Reads a record, of a file or of a run folder, and checks all of it by `schema`.

    Raises:
      ValueError: it is none, or cannot be read.

    Example:
      >>> import pathlib, tempfile
      >>> from cljax import report
      >>> path = pathlib.Path(tempfile.mkdtemp()) / 'record.json'
      >>> path.write_text('{}')
      2
      >>> report.read(path)
      Traceback (most recent call last):
      ...
      ValueError: ...
    """
    place = files.expand(path)
    try:
        if stat.S_ISDIR(place.stat().st_mode):
            begun = "config.json" in os.listdir(place) and "record.json" not in os.listdir(place)
            if begun:
                raise ValueError(f"The run in {place} has no record yet: no method has finished. Wait, or take it up.")
            place = place / "record.json"
        record = old_names.record(files.read_json(place))
    except OSError as error:
        reason = "it is not there" if isinstance(error, FileNotFoundError) else error.strerror
        raise ValueError(f"{place} cannot be read ({reason}). Name a run folder, or its record.json.") from None
    check(record, place)
    return record


def check(record: Any, place: str | os.PathLike) -> None:
    """Checks a record that was read from a file.

    Raises:
      ValueError: naming the file and the first place that is not as `schema` has it.

    Example:
      >>> from cljax import report
      >>> report.check({'runs': 1}, 'record.json')
      Traceback (most recent call last):
      ...
      ValueError: ...
    """
    try:
        schema.check(record)
    except ValueError as error:
        raise ValueError(
            f"{os.fsdecode(place)} is not a run's record: {error}. Copy it back from where it is whole, or run again."
        ) from None
