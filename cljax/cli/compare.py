"""`cljax compare`, `run` and `sweep`: what a run drives, one method after the other, and its record."""

from __future__ import annotations

import contextlib
import functools
import math
import operator
import shlex
from collections.abc import Container, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from cljax.cli.asked import Curve
from cljax.cli.experiment import Experiment
from cljax.cli.opening import basis_of, curve_of, prepared, told_of
from cljax.cli.options import Compare, Run, Sweep
from cljax.cli.parameters import as_options
from cljax.cli.printing import styled
from cljax.cli.process import is_first
from cljax.cli.telling import tell_beginning, tell_end, tell_lost, tell_visit
from cljax.cli.typed import idle
from cljax.text import printable

if TYPE_CHECKING:
    from cljax.storage.folders import RunFolder
    from cljax.training.outcome import Outcome
    from cljax.training.state import Failure
    from cljax.types import Learner, Method, Stream

MOST_CONFUSED = 200
"""Classes of which a record counts which is taken for which: their squares would fill it."""


def compare(command: Compare | Run | Sweep, errors: Console, line: str = "") -> int:
    """Drives the methods, each from its last checkpoint; writes the record after each; prints the table.

    A sweep is the same, with values, and leaves a table and a plot beside its record. What diverges ends nothing else,
    were it all learners of a method.

    Args:
      command: what is asked for.
      errors: the console for progress and complaints.
      line: the command's words, for the record.

    Returns:
      The exit code: 0, or 1 where a learner diverged and others did not.

    Raises:
      FolderError, UsageError, RunError, KeyboardInterrupt: as of `prepared`.
    """
    with prepared(command) as (experiment, folder):
        from cljax.cli.progress import Reporter
        from cljax.report import tensorboard, weights_and_biases
        from cljax.storage.checkpoints import Saving
        from cljax.training import NonFiniteLoss, driver

        options, seeds, before = experiment.options, experiment.seeds, folder.record or {}
        errors = errors if is_first() else Console(quiet=True)
        record: dict[str, Any] = {"format": 1, "complete": False, "command": before.get("command", line)}
        record |= {"left_out": experiment.left_out, "diverged": list(before.get("diverged", []))}
        record |= {"runs": list(before.get("runs", [])), "basis": basis_of(experiment, before, folder)}
        for text in idle(command, words := shlex.split(line)[1:]):
            errors.print(styled("yellow", as_options(text, words)), soft_wrap=True)
        tell_beginning(experiment, folder, record["runs"], errors)
        todo = [curve for curve in experiment.curves if not told_of(curve, record)]
        say = lambda text: errors.print(Text(printable(text)), soft_wrap=True)
        schedule = seeds[0][1].schedule
        with Reporter(errors, len(todo), schedule.task.tolist(), quiet=options.output.quiet) as reporter:
            for curve in todo:
                reporter.method(curve.name)
                method, many = experiment.methods[curve.method], seeds * max(1, len(curve.values))
                given = [{curve.parameter: value} for value in curve.values for _ in seeds if curve.parameter]
                place = folder.checkpoints(curve.name)
                sinks: list[Any] = []
                if options.output.tensorboard and is_first():
                    sinks.append(tensorboard.Sink(folder.tensorboard, method, schedule))
                if options.output.wandb and is_first():
                    sinks.append(weights_and_biases.Sink(folder.path, method, schedule, experiment.config))
                runs: list[dict[str, Any]] = []
                try:
                    with contextlib.ExitStack() as stack:
                        told = [reporter, *map(stack.enter_context, sinks)]
                        outcome = driver.drive(
                            method,
                            experiment.optimizer,
                            many,
                            experiment.settings,
                            hypers=given or None,
                            starts=None if experiment.start is None else [experiment.start] * len(many),
                            past=experiment.past(curve.method),
                            vectorize=experiment.vectorize,
                            devices=math.prod(experiment.shares(curve)),
                            report=reporter.event,
                            visited=functools.partial(tell_visit, told),
                            checkpoints=Saving(place, options.output.checkpoint_seconds, say=say),
                        )
                except NonFiniteLoss as error:
                    if not record["runs"] and curve is todo[-1]:
                        tell_lost(record, errors)
                        raise
                    lost = lost_learners(experiment, curve, error.failure)
                else:
                    lost = lost_learners(experiment, curve, outcome.failure)
                    runs = entries(experiment, curve, outcome, folder, lost)
                    del outcome  # the next one needs the memory
                record["runs"] += runs
                record["diverged"] += lost.values()
                if record["runs"]:
                    folder.save(record)
                    folder.forget(curve.name)
                if method.zero_forgetting and not all(run["zero_forgetting"] for run in runs):
                    message = f"{curve.name} promises to forget nothing, but the logits of an earlier task changed."
                    errors.print(styled("red", message))
        order = [curve.name for curve in experiment.curves]
        record["runs"].sort(key=lambda run: order.index(curve_of(run)))
        folder.save({**record, "complete": True})
        for curve in experiment.curves:  # also what a killed process left, or all of whose seeds diverged
            folder.forget(curve.name)
        if is_first():
            page = options.output.report and isinstance(command, Compare) and bool(record["runs"])
            tell_end(experiment, folder, record, errors, page=page)
        return 1 if record["diverged"] else 0


def labels(experiment: Experiment, curve: Curve) -> list[str]:
    """What each of a curve's entries is called."""
    from cljax import report

    ends = [f"={report.sweep.written(value)}" for value in curve.values] or [""]
    return [f"{curve.name}{end}{experiment.differs(curve.method)}" for end in ends]


def lost_learners(experiment: Experiment, curve: Curve, failure: Failure) -> dict[int, str]:
    """Which of a drive's learners diverged, and a line for each."""
    from cljax.training.checks import diverged

    names, count = labels(experiment, curve), len(experiment.seeds)
    found = diverged(failure, experiment.methods[curve.method])
    called = lambda number: f"{names[number // count]}, seed {experiment.seeds[number % count][0]}"
    return {number: f"{called(number)}: {text}." for number, text in found.items()}


def entries(
    experiment: Experiment, curve: Curve, outcome: Outcome, folder: RunFolder, lost: Container[int]
) -> list[dict[str, Any]]:
    """What a drive adds to a record: an entry a value, of seeds that are not lost."""
    import jax

    from cljax import report
    from cljax.cli.learned import notes_of
    from cljax.storage import checkpoints
    from cljax.training.outcome import members

    network, count, runs = experiment.networks[curve.method], len(experiment.seeds), []
    each = zip(curve.entries(experiment.swept), labels(experiment, curve), strict=True)
    for place, (entry, label) in enumerate(each):
        kept = [number for number in range(count) if place * count + number not in lost]
        if not kept:
            continue
        part = members(outcome, [place * count + number for number in kept])
        run = report.run_record(part, network=network, config=experiment.config)
        given = {name: value for name, value in experiment.parameters[curve.method].items() if name != curve.parameter}
        run |= {"parameters": report.plain(given), **entry}
        if run["attention"]:
            first = experiment.seeds[kept[0]][1]
            run["attention"]["images"] = report.looks.images_of(first, experiment.settings.attention_images)
        if run["scenario"] == "class":
            learned = [experiment.seeds[number][1] for number in kept]
            run |= {"confusion": report.plain(confusion(experiment.methods[curve.method], learned, part.learners))}
        runs.append({**run, **({"label": label} if experiment.swept or label != curve.name else {})})
        if experiment.options.output.keep_learners:
            for number, (seed, stream) in enumerate(experiment.seeds[number] for number in kept):
                evaluation = jax.tree.map(operator.itemgetter(number), part.evaluation)
                notes = notes_of(stream, evaluation, network)
                checkpoints.save(folder.learner(curve.name, seed), part.learners[number], notes)
    return runs


def confusion(method: Method, learned: Sequence[Stream], learners: Sequence[Learner]) -> dict[str, Any] | None:
    """Which class is taken for which, over all seeds.

    None of data read from disk, of several labels an example, and of so many classes that nobody could read it.
    """
    import jax

    from cljax import streams, training
    from cljax.training.streaming import is_streamed

    tables = [stream.tables for stream in streams.align(learned)]
    if is_streamed(tables[0]) or tables[0].test.labels.ndim != 1 or tables[0].classes.size > MOST_CONFUSED:
        return None
    count = jax.jit(functools.partial(training.confusion_matrix, method))
    counts = sum(jax.device_get(count(*pair)) for pair in zip(learners, tables, strict=True))
    return {"counts": counts, "classes": tables[0].classes}
