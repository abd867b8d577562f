"""`cljax compare`, `run` and `sweep`: a run's folder, its checks, its drives, its record, its end."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import operator
import os
import pathlib
import shlex
import shutil
import sys
from collections.abc import Container, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from cljax.cli.asked import Curve, configuration, curves_of
from cljax.cli.experiment import Experiment, make_experiment
from cljax.cli.options import Compare, Options, Run, RunError, Sweep, UsageError, settle
from cljax.cli.parameters import as_options
from cljax.cli.printing import show, styled
from cljax.cli.process import first_alone, is_first, set_up
from cljax.cli.rules import check_values
from cljax.cli.typed import idle
from cljax.text import printable, shell_word

if TYPE_CHECKING:
    from cljax.storage.folders import RunFolder
    from cljax.training.driver import Outcome, Results
    from cljax.training.state import Failure
    from cljax.types import Learner, Method, Stream

BASIS = {
    "sample": "the examples",
    "examples": "the examples",
    "division": "their division",
    "start": "the parameters given to begin with",
}
"""What the results of a record stand on, beside its configuration, which names files alone; a digest each.

Of examples that are read as the run goes on, a sample alone.
"""
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
        record["runs"].sort(key=lambda run: order.index(_curve(run)))
        folder.save({**record, "complete": True})
        for curve in experiment.curves:  # also what a killed process left, or all of whose seeds diverged
            folder.forget(curve.name)
        if is_first():
            page = options.output.report and isinstance(command, Compare) and bool(record["runs"])
            tell_end(experiment, folder, record, errors, page=page)
        return 1 if record["diverged"] else 0


def basis_of(experiment: Experiment, before: dict[str, Any], folder: RunFolder) -> dict[str, Any]:
    """Digests of what the results stand on, the data and what is given to begin with.

    Raises:
      UsageError: what an interrupted run has found stands on others.
    """
    from cljax.training import identity
    from cljax.training.streaming import is_streamed

    tables = [stream.tables for _, stream in experiment.seeds]
    examples = tables[0].examples
    basis: dict[str, Any] = {"sample": identity.sample(examples), "division": [*map(identity.division, tables)]}
    basis |= {"start": identity.parameters(experiment.start or {})}
    if not is_streamed(tables[0]):
        basis["examples"] = identity.examples(examples)
    there = before.get("basis", {})
    both = [name for name in BASIS if name in there and name in basis]
    found = list(dict.fromkeys(BASIS[name] for name in both if there[name] != basis[name]))
    if before.get("runs") and found:
        names = ", ".join(dict.fromkeys(run["method"] for run in before["runs"]))
        raise UsageError(
            f"{folder.path} has results of {names}, since which {' and '.join(found)} have changed: the others would "
            f"not compare. Bring back what there was, begin anew with --overwrite, or choose another folder with --out."
        )
    return basis


def tell_visit(told: Sequence[Any], seeds: list[int], number: int, results: Results) -> None:
    """Tells each that a visit has ended; of several processes all come here, for results are read together."""
    for one in told:
        one.visited(seeds, number, results)


@contextlib.contextmanager
def prepared(command: Compare | Run | Sweep) -> Iterator[tuple[Experiment, RunFolder]]:
    """The experiment and its folder, everything checked before anything is compiled or overwritten.

    Raises:
      FolderError, UsageError: the folder cannot be used, or something does not fit.
      RunError: all learners diverged, an example could not be read, something could not be written, there
        are checkpoints that cannot be taken up, or there is too little memory.
      KeyboardInterrupt: with the way to go on.
    """
    options, swept = settle(command.options), isinstance(command, Sweep)
    check_values(options)
    if swept:
        check_sweep(options)
    if options.training.distributed and options.output.out is None:
        raise UsageError("--distributed needs --out: the run's folder, one that all processes reach.")
    set_up(cache=options.output.cache, distributed=options.training.distributed)
    curves = curves_of(command)
    config = configuration(curves, options, swept=swept)
    with run_folder(curves, options, config) as folder, enough_memory():
        try:
            check_record(folder, curves, config)
            if options.output.tensorboard:
                from cljax.report import tensorboard

                tensorboard.check("tensorboard")
            if options.output.wandb:
                from cljax.report import weights_and_biases

                weights_and_biases.check()
            experiment = make_experiment(curves, options, config)
        except (ValueError, TypeError, OSError) as error:
            raise UsageError(str(error)) from error
        with what_ends_a_run(folder, " without --overwrite" if options.output.overwrite else ""):
            first_alone(folder.start)
            yield experiment, folder


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
    from cljax.training.driver import members

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


def told_of(curve: Curve, record: dict[str, Any]) -> int:
    """Of how many of a curve's learners a record tells.

    Example:
      >>> record = {'runs': [{'method': 'lwf', 'seeds': [0, 2]}], 'diverged': ['lwf, seed 1: ...', 'ewc, seed 0: ...']}
      >>> told_of(Curve('lwf'), record), told_of(Curve('ewc'), record), told_of(Curve('lwf+ewc'), record)
      (3, 1, 0)
    """
    begins = tuple(curve.name + end for end in ("=", ",", " "))
    lines = sum(line.startswith(begins) for line in record.get("diverged", []))
    return lines + sum(len(run["seeds"]) for run in record["runs"] if _curve(run) == curve.name)


def tell_beginning(experiment: Experiment, folder: RunFolder, runs: Sequence[dict], errors: Console) -> None:
    """Says what is left out, whether the folder could not be locked, the devices, what its record has already."""
    for name, reason in experiment.left_out.items():
        errors.print(styled("yellow", f"{name} is left out:", f" {reason}"))
    if not folder.locked:
        errors.print(
            styled("yellow", f"{folder.path} cannot be locked there:", " let no other run use it at the same time.")
        )
    if experiment.options.output.quiet:
        return
    errors.print(styled("", found_devices()))
    shares = {curve.name: experiment.shares(curve) for curve in experiment.curves}
    for seeds, batches in dict.fromkeys(shares.values()):
        if (count := seeds * batches) > 1:
            names = ", ".join(name for name, found in shares.items() if found == (seeds, batches))
            parts = [f"the seeds by {seeds}"] * (seeds > 1) + [f"each batch by {batches}"] * (batches > 1)
            errors.print(styled("", f"{names}: {count} devices, {' and '.join(parts)}."))
    if runs:
        names = ", ".join(dict.fromkeys(run["label" if experiment.swept else "method"] for run in runs))
        errors.print(styled("", f"Taking up {folder.path}, which has {names} already."))
    if experiment.options.output.keep_learners and (lost := [run["method"] for run in runs if not folder.keeps(run)]):
        text = f" of {', '.join(lost)}, finished without --keep-learners; with --overwrite all begin anew."
        errors.print(styled("yellow", "No learners are kept", text), soft_wrap=True)


def tell_end(experiment: Experiment, folder: RunFolder, record: dict[str, Any], errors: Console, *, page: bool) -> None:
    """Prints the table, what was chosen, where all is, what diverged; writes the page, or a sweep's table and plot.

    Raises:
      RunError: there is no place for the page.
    """
    from cljax import report

    width = shutil.get_terminal_size().columns if sys.stdout and sys.stdout.isatty() else 100
    table = report.sweep_table(record["runs"]) if experiment.swept else report.table(record, width=width)
    told = filter(None, map(report.chosen, record["runs"]))
    show(table, *told, f"Record: {folder.path / 'record.json'}", width=width)
    tell_lost(record, errors)
    if experiment.swept:
        words, picture = report.write_sweep(record["runs"], folder.path)
        show(f"Table: {words}", f"Plot: {picture}", width=width)
    again = f"cljax report {shell_word(folder.path)}"
    try:
        show(f"Report: {report.write([folder.path]) if page else again}", width=width)
    except ValueError as error:
        raise RunError(f"The run is complete, but not its report: `{again} --out FOLDER` writes it. {error}") from None


def tell_lost(record: dict[str, Any], errors: Console) -> None:
    """Says what diverged."""
    for text in record["diverged"]:
        errors.print(styled("red", "Diverged, and left out:", f" {text}"), soft_wrap=True)


def found_devices() -> str:
    """The devices, and the version that drives them, in a line."""
    import jax

    devices = jax.devices()
    kind = devices[0].device_kind
    return f"On {kind if len(devices) == 1 else f'{len(devices)} x {kind}'}, by jax {jax.__version__}."


def check_sweep(options: Options) -> None:
    """Raises: UsageError, for options that have no meaning in a sweep."""
    for name in ("tensorboard", "wandb", "keep_learners"):
        if getattr(options.output, name):
            raise UsageError(f"--{name.replace('_', '-')} is for `cljax run` and `cljax compare`: leave it out here.")
    if options.training.tune is not None:
        raise UsageError("--tune chooses the numbers that a sweep varies: leave it out here.")
    if options.data.tasks == 1:
        raise UsageError("--tasks is 1, but stability and plasticity, which a sweep shows, need at least 2.")


def check_record(folder: RunFolder, curves: Sequence[Curve], config: dict[str, Any]) -> None:
    """Checks that the record which an interrupted run left, if it did, is of this run.

    Raises:
      ValueError: it is damaged, or has something else or only half of a part.
    """
    from cljax import report
    from cljax.storage import folders

    if folder.record is None:
        return
    record, place = folder.record, folder.path / folders.RECORD
    report.check(record, place)
    runs, seeds, now = record["runs"], config["training"]["seeds"], json.loads(json.dumps(config))
    whole = {curve.name: curve.entries("sweep" in config) for curve in curves}
    found = [{name: run[name] for name in ("method", "sweep") if name in run} for run in runs]
    told = [told_of(curve, record) for curve in curves]
    all_told = sum(len(run["seeds"]) for run in runs) + len(record.get("diverged", []))
    holds = (
        all(entry in whole.get(_curve(run), []) for run, entry in zip(runs, found, strict=True))
        and all(run["config"] == now and set(run["seeds"]) <= set(seeds) for run in runs)
        and all(found.count(entry) == 1 for entry in found)
        and all(n in (0, len(seeds) * len(whole[curve.name])) for n, curve in zip(told, curves, strict=True))
        and sum(told) == all_told
    )
    if not holds:
        raise ValueError(
            f"{place} holds something else than whole results of this run. Copy it back from where it is right, begin "
            f"the run anew with --overwrite, or choose another folder with --out."
        )


@contextlib.contextmanager
def run_folder(curves: Sequence[Curve], options: Options, config: dict[str, Any]) -> Iterator[RunFolder]:
    """Takes the run's folder: of `--out`, with `--resume` that of the interrupted run, else a new one.

    Raises:
      UsageError: there is no run to take up. FolderError: the folder cannot be used.
    """
    from cljax.report.sweep import FILES
    from cljax.storage import folders

    output, needed = options.output, FILES if "sweep" in config else ()
    path: Any = output.out
    if output.resume and output.overwrite:
        raise UsageError("--resume takes up an interrupted run, --overwrite begins it anew: give one of the two.")
    if output.resume and output.out is None:
        path = folders.interrupted("runs", config, needed=needed)
        if path is None:
            raise UsageError(
                "There is no interrupted run of this configuration under runs/ that --resume could take up. Name its "
                "folder with --out, or begin one without --resume."
            )
    elif output.resume and not os.path.lexists(pathlib.Path(os.path.expanduser(path)) / folders.CONFIG):
        raise UsageError(f"There is no run in {path} that --resume could take up. Begin it without --resume.")
    fresh = not path
    if fresh:
        names = [os.path.basename(os.path.realpath(os.path.expanduser(name))) for name in options.data.data]
        path = folders.fresh_path("runs", f"{'+'.join(names)}-{options.data.scenario}")
    names = [curve.name for curve in curves]
    if not is_first():
        yield folders.Followed(folders.expand(path), config, None, names=names)
        return
    with folders.claim(path, config, names=names, overwrite=output.overwrite, fresh=fresh, needed=needed) as folder:
        yield folder


@contextlib.contextmanager
def what_ends_a_run(folder: RunFolder, without: str) -> Iterator[None]:
    """Raises: RunError, KeyboardInterrupt, with the way to go on, for whatever ends a run that has begun.

    `without` says which of the command's options would begin it anew.
    """
    from cljax.data.on_demand import ReadError
    from cljax.storage.checkpoints import CheckpointError
    from cljax.training import NonFiniteLoss

    try:
        yield
    except (NonFiniteLoss, ReadError) as error:
        raise RunError(str(error)) from error
    except CheckpointError as error:
        raise RunError(f"{error} With --overwrite the run begins anew.") from error
    except BrokenPipeError:
        raise
    except OSError as error:
        raise RunError(
            f"The run cannot go on: {' '.join(str(error).split())} What it saved so far is kept: once the cause is "
            f"mended, the same command{without} with --out {shell_word(folder.path)} goes on from there."
        ) from error
    except KeyboardInterrupt:
        said = f"The same command{without} with --resume goes on from the last checkpoint."
        raise KeyboardInterrupt(said) from None


@contextlib.contextmanager
def enough_memory() -> Iterator[None]:
    """Raises: RunError, where the machine or the device has too little memory."""
    import jax

    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise RunError(
            "The run needs more memory than there is. What it saved so far is kept. Give a smaller --batch-size or "
            "network, or --vectorize no where seeds go side by side."
        ) from error


def _curve(run: dict[str, Any]) -> str:
    """The name of the curve that an entry of a record belongs to."""
    return run["sweep"]["curve"] if "sweep" in run else run["method"]
