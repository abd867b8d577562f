"""What may be shown: results of Python's runs, records, entries of records; all made entries of a record."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from cljax.numbers import show
from cljax.report.record import run_record
from cljax.training.outcome import Outcome, Results, members
from cljax.training.run import Result
from cljax.training.state import reveal


def runs(results: Any) -> list[dict[str, Any]]:
    """Results as the entries of a record; entries stay as they are.

    Args:
      results: what `training.drive` returns, or what a run of `training.make_run` does, of one key or under `vmap` of
        several; a mapping of names to such results; a list of them; or a record, or an entry or entries of one.

    Returns:
      An entry a result, of the seeds that did not diverge; where two are called alike the second has a number.

    Raises:
      ValueError: something else, nothing, a result all of whose seeds diverged, or one that holds a seed twice.

    Example:
      >>> import jax, optax
      >>> import numpy as np
      >>> from cljax import data, methods, networks, report, streams, training
      >>> stream = streams.split(data.load('digits'), tasks=5, epochs=1)
      >>> method = methods.finetune(networks.mlp((8, 8, 1), 2, hidden=(16,)))
      >>> run = training.make_run(method, optax.adam(1e-3), stream)
      >>> result = jax.vmap(run, in_axes=(0, None))(jax.random.split(jax.random.key(0), 3), stream.tables)
      >>> [entry] = report.runs({'one epoch': result})
      >>> entry['method'], entry['label'], np.shape(entry['accuracy'])
      ('finetune', 'one epoch', (3, 5, 5))
    """
    found = _entries(results)
    if not found:
        raise ValueError(f"There is nothing to show in {show(results)}: give at least one result.")
    taken = set[str]()
    for place, run in enumerate(found):
        name = first = run.get("label", run["method"])
        number = 1
        while name in taken:
            number += 1
            name = f"{first} ({number})"
        if number > 1:
            found[place] = {**run, "label": name}
        taken.add(name)
    return found


def one(result: Any) -> dict[str, Any]:
    """The entry of a single result.

    Raises:
      ValueError: there are several.
    """
    found = runs(result)
    if len(found) > 1:
        names = ", ".join(run.get("label", run["method"]) for run in found)
        raise ValueError(f"This plot shows one result, but there are {len(found)}: {names}. Give one of them.")
    return found[0]


def tidy(results: Any) -> list[dict[str, Any]]:
    """A row for each method, seed, task learned and task asked: `pandas.DataFrame(tidy(results))` takes it.

    Args:
      results: as of `runs`.

    Returns:
      Rows of `method, seed, after_task, task, accuracy, task_il_accuracy`: tasks are counted from 1, accuracies are
      fractions, None where one is unknown.

    Example:
      >>> from cljax import report
      >>> entry = {'method': 'lwf', 'seeds': [7], 'accuracy': [[[.9, .1], [.5, .7]]]}
      >>> rows = report.tidy({**entry, 'task_il_accuracy': entry['accuracy']})
      >>> len(rows), rows[2]
      (4, {'method': 'lwf', 'seed': 7, 'after_task': 2, 'task': 1, 'accuracy': 0.5, 'task_il_accuracy': 0.5})
    """
    return [
        {
            "method": run.get("label", run["method"]),
            "seed": seed,
            "after_task": after + 1,
            "task": task + 1,
            "accuracy": value,
            "task_il_accuracy": run["task_il_accuracy"][place][after][task],
        }
        for run in runs(results)
        for place, seed in enumerate(run["seeds"])
        for after, row in enumerate(run["accuracy"][place])
        for task, value in enumerate(row)
    ]


def _entries(results: Any) -> list[dict[str, Any]]:
    if isinstance(results, Result | Outcome):
        return [_entry(results)]
    if isinstance(results, Mapping):
        if isinstance(results.get("runs"), list):
            return list(results["runs"])
        if isinstance(results.get("method"), str):
            return [dict(results)]
        return [{**run, "label": str(name)} for name, result in results.items() for run in _entries(result)]
    if isinstance(results, list | tuple) and not hasattr(results, "_fields"):
        return [run for result in results for run in _entries(result)]
    raise ValueError(
        f"This is of the type {type(results).__name__}, but must be what training.drive or a run of training.make_run "
        f"returned, a mapping of names to such results, a list of them, or a record."
    )


def _entry(result: Result | Outcome) -> dict[str, Any]:
    outcome = result if isinstance(result, Outcome) else _outcome(result)
    lost, seeds = np.asarray(outcome.failure.round) >= 0, outcome.origin.seeds
    if len(set(seeds)) < len(seeds):
        raise ValueError(
            f"The result of {outcome.origin.method} holds seed {max(seeds, key=seeds.count)} several times, as with "
            f"several hypers: an interval over all would not be one over seeds. Show those of one value at a time: "
            f"cljax.training.outcome.members(outcome, [0, 1, ...])."
        )
    if lost.all():
        raise ValueError(f"There is nothing to show of {outcome.origin.method}: all its learners diverged.")
    run = run_record(members(outcome, np.flatnonzero(~lost).tolist()))
    return {**run, "lost": [seeds[place] for place in np.flatnonzero(lost)]} if lost.any() else run


def _outcome(result: Result) -> Outcome:
    """A run's result as `drive` gives it; what a run does not measure, its time, is unknown."""
    if isinstance(result.evaluation.accuracy, jax.core.Tracer):
        raise ValueError("A result can be shown outside jit and vmap only: return it, and show what comes out.")
    several = np.ndim(result.evaluation.accuracy) == 3
    lead = lambda leaf: reveal(leaf) if several else reveal(leaf)[None]
    found = Results(*(jax.tree.map(lead, getattr(result, name)) for name in Results._fields))
    count, _, tasks = found.evaluation.accuracy.shape
    points, at = np.zeros([0, 3], np.int32), np.zeros([count, 0, tasks], np.float32)
    if found.curves is not None:  # `[S, R, P, E // every, T]`, NaN where no epoch was trained
        places = np.argwhere(np.isfinite(found.curves).any(axis=(0, -1)))
        points = (places + np.array([0, 0, 1])) * [1, 1, result.origin.curves_every]
        at = found.curves[:, *places.T]
    pick = lambda number: jax.tree.map(lambda leaf: leaf[number], result.learner) if several else result.learner
    learners, unknown = [pick(number) for number in range(count)], np.full(count, np.nan)
    whence = dataclasses.replace(result.origin, facts=result.origin.facts * count, seeds=tuple(range(count)))
    return Outcome(
        learners=learners,
        **found._replace(curves=at)._asdict(),
        curve_epochs=points,
        seconds=unknown,
        compile_seconds=float("nan"),
        traces=None,
        flops=None,
        share_waiting=None,
        shares=(1, 1),
        origin=whence,
    )
