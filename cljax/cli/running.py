"""`cljax run` and `cljax compare`; and what every run has: its folder, its checks, its checkpoints, its end."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.console import Console
from rich.text import Text

from cljax.cli.building import ablation
from cljax.cli.options import Options, RunError, UsageError, configuration, settle
from cljax.cli.printing import show, styled
from cljax.cli.process import find_devices, set_xla_flags, use_compilation_cache
from cljax.cli.setup import Job, check_values, choose_methods, prepare
from cljax.text import printable, shell_word

if TYPE_CHECKING:
    from cljax.storage.folders import RunFolder
    from cljax.training.driver import Outcome
    from cljax.types import Method, Stream


Parts = Mapping[str, Sequence[Mapping[str, Any]]]
"""What a record holds: by the name of a drive, the entries that it makes, each by fields that it must have."""


class Drive(NamedTuple):
    """One drive of a run.

    Attributes: name, as progress and checkpoints call it; method; seeds, `(seed, stream)` pairs; hypers and vectorize,
    of `training.driver.drive`.
    """

    name: str
    method: Method
    seeds: list[tuple[int, Stream]]
    hypers: Sequence[Mapping[str, float]] | None
    vectorize: bool | int


def compare(asked: tuple[str, ...], options: Options, errors: Console) -> int:
    """Drives the methods, writes the record after each, prints the table."""
    options = begin(options)
    names = choose_methods(asked)
    config = configuration(names, options)
    parts = {name: [{"method": name}] for name in names}
    with claim(names, options, config, parts, by_name=bool(asked) and asked != ("all",)) as (folder, job):
        return drive_all(job, folder, options, config, errors)


def begin(options: Options) -> Options:
    """Settles and checks the options, and sets the process up; to be called before JAX is imported.

    Raises:
      UsageError: naming the option, its value and what it must be.
    """
    options = settle(options)
    check_values(options)
    set_xla_flags()
    if options.output.cache:
        use_compilation_cache()
    find_devices()
    return options


@contextlib.contextmanager
def claim(
    names: tuple[str, ...],
    options: Options,
    config: dict[str, Any],
    parts: Parts,
    *,
    by_name: bool,
    needed: Sequence[str] = (),
    check: Callable[[Job], None] = lambda job: None,
) -> Iterator[tuple[RunFolder, Job]]:
    """Takes the run's folder and prepares the run, all of it checked before anything is compiled or overwritten.

    Args:
      names: of the methods.
      options: settled.
      config: of the folder.
      parts: what the record is to hold.
      by_name: as of `setup.prepare`.
      needed: files that the run leaves beside its record.
      check: what else must hold; raises ValueError.

    Yields:
      The folder and the job.

    Raises:
      FolderError, UsageError: the folder cannot be used, or something does not fit.
      RunError: all learners of a method diverged, an example could not be read, something could not be written, or
        there are checkpoints that cannot be taken up.
      KeyboardInterrupt: with the way to go on.
    """
    from cljax.storage import folders

    path, fresh = run_path(options, config, needed)
    overwrite = options.output.overwrite
    claimed = folders.claim(path, config, names=list(parts), overwrite=overwrite, fresh=fresh, needed=needed)
    with claimed as folder, enough_memory():
        try:
            if folder.record is not None:
                check_record(folder, config, parts)
            if options.output.tensorboard:
                from cljax.report import tensorboard

                tensorboard.check()
            job = prepare(names, options, by_name=by_name)
            check(job)
        except (ValueError, TypeError, OSError) as error:
            raise UsageError(str(error)) from error
        from cljax.data.streaming import ReadError
        from cljax.storage.checkpoints import CheckpointError
        from cljax.training import NonFiniteLoss

        try:
            folder.start()
            yield folder, job
        except (NonFiniteLoss, ReadError) as error:
            raise RunError(str(error)) from error
        except CheckpointError as error:
            raise RunError(f"{error} With --overwrite the run begins anew.") from error
        except BrokenPipeError:
            raise
        except OSError as error:
            raise RunError(
                f"The run cannot go on: {' '.join(str(error).split())} What it saved so far is kept: once the cause is "
                f"mended, the same command with --out {shell_word(folder.path)} goes on from there."
            ) from error
        except KeyboardInterrupt:
            raise KeyboardInterrupt("The same command with --resume goes on from the last checkpoint.") from None


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


def check_record(folder: RunFolder, config: dict[str, Any], parts: Parts) -> None:
    """Checks that the record which an interrupted run left is of this run.

    Raises:
      ValueError: it is damaged, or has something else or only half of a part.
    """
    from cljax import report
    from cljax.storage import folders

    record, place = folder.record or {}, folder.path / folders.RECORD
    report.check(record, place)
    runs, seeds, now = record["runs"], config["training"]["seeds"], json.loads(json.dumps(config))
    is_of = lambda run, entry: all(run.get(name) == value for name, value in {**entry, "config": now}.items())
    found = [[run for run in runs if is_of(run, entry)] for entries in parts.values() for entry in entries]
    begun = [entries for entries in parts.values() if any(is_of(run, entry) for entry in entries for run in runs)]
    told = sum(len(run["seeds"]) for run in runs) + len(record.get("diverged", []))
    holds = (
        sum(map(len, found)) == len(runs)
        and max(map(len, found)) < 2
        and all(set(run["seeds"]) <= set(seeds) for run in runs)
        and told == len(seeds) * sum(map(len, begun))
    )
    if not holds:
        raise ValueError(
            f"{place} holds something else than whole results of this run. Copy it back from where it is right, begin "
            f"the run anew with --overwrite, or choose another folder with --out."
        )


def run_path(options: Options, config: dict, needed: Sequence[str] = ()) -> tuple[str | os.PathLike, bool]:
    """The run folder, and whether it must be new: of `--out`, with `--resume` that of the interrupted run, else fresh.

    Raises:
      UsageError: there is no run to take up.
    """
    from cljax.storage import folders

    out, resume = options.output.out, options.output.resume
    if resume and options.output.overwrite:
        raise UsageError("--resume takes up an interrupted run, --overwrite begins it anew: give one of the two.")
    if resume and out is None:
        if found := folders.interrupted("runs", config, needed=needed):
            return found, False
        raise UsageError(
            "There is no interrupted run of this configuration under runs/ that --resume could take up. Name its "
            "folder with --out, or begin one without --resume."
        )
    if resume and out and not os.path.lexists(pathlib.Path(os.path.expanduser(out)) / folders.CONFIG):
        raise UsageError(f"There is no run in {out} that --resume could take up. Begin it without --resume.")
    return (out, False) if out else (folders.fresh_path("runs", f"{data_name(options)}-{options.data.scenario}"), True)


def data_name(options: Options) -> str:
    """The data sets' names, for a folder's."""
    return "+".join(os.path.basename(os.path.realpath(os.path.expanduser(name))) for name in options.data.data)


def drive_each(
    drives: Sequence[Drive], job: Job, folder: RunFolder, options: Options, errors: Console
) -> Iterator[tuple[Drive, Outcome]]:
    """Drives one after the other, each from its last checkpoint where there is one, and shows where they are.

    Args:
      drives: what is still to be driven.
      job: of `setup.prepare`.
      folder: for checkpoints; those of a drive are removed when the next is asked for.
      options: the command's.
      errors: the console for progress.

    Yields:
      Each drive and its outcome.
    """
    from cljax.cli.progress import Reporter
    from cljax.report.tensorboard import Sink
    from cljax.storage import checkpoints
    from cljax.training.driver import drive

    say = lambda line: errors.print(Text(printable(line)), soft_wrap=True)
    with Reporter(errors, len(drives), options.data.tasks or 0, quiet=options.output.quiet) as reporter:
        for one in drives:
            reporter.method(one.name)
            shown: dict[str, Any] = {"report": reporter.event}
            with contextlib.ExitStack() as stack:
                if options.output.tensorboard:
                    sink = stack.enter_context(Sink(folder.tensorboard, one.method, one.seeds[0][1].schedule))
                    shown["visited"] = sink.visited
                place = folder.checkpoints(one.name)
                outcome = drive(
                    one.method,
                    job.optimizer,
                    one.seeds,
                    job.settings,
                    hypers=one.hypers,
                    vectorize=one.vectorize,
                    checkpoints=checkpoints.Saving(place, options.output.checkpoint_seconds, say=say),
                    programs_of=job.programs_of,
                    **shown,
                )
            yield one, outcome
            folder.forget(one.name)


def drive_all(job: Job, folder: RunFolder, options: Options, config: dict[str, Any], errors: Console) -> int:
    """Drives each method that the folder's record does not have yet."""
    from cljax import report
    from cljax.storage import checkpoints

    for name, reason in job.left_out.items():
        errors.print(styled("yellow", f"{name} is left out:", f" {reason}"))
    runs = take_up(folder, "method", options, errors)
    finished = {run["method"] for run in runs}
    todo = [
        Drive(name, method, job.seeds, None, job.vectorize)
        for name, method in job.methods.items()
        if name not in finished
    ]
    diverged = list((folder.record or {}).get("diverged", []))
    for (name, method, *_), outcome in drive_each(todo, job, folder, options, errors):
        seeds, outcome, lost = part_diverged(method, job.seeds, outcome, name)
        diverged += lost
        run = report.run_record(method, seeds, outcome, network=job.networks[name], config=config)
        run |= about(job, name)
        runs.append(run)
        if options.output.keep_learners:
            for (seed, _), learner in zip(seeds, outcome.learners, strict=True):
                checkpoints.save(folder.learner(name, seed), learner)
        folder.save(make_record(runs, job, diverged))
        if method.zero_forgetting and not run["zero_forgetting"]:
            message = f"{name} promises to forget nothing, but the logits of an earlier task changed."
            errors.print(styled("red", message))
    order = list(job.methods)
    runs.sort(key=lambda run: order.index(run["method"]))
    record = make_record(runs, job, diverged, complete=True)
    folder.save(record)
    finish(report.table(record), {"Record": folder.path / "record.json"}, folder)
    return tell_diverged(diverged, errors)


def part_diverged(
    method: Method, seeds: Sequence[tuple[int, Stream]], outcome: Outcome, label: str
) -> tuple[list[tuple[int, Stream]], Outcome, list[str]]:
    """The seeds that did not diverge, the outcome of these, and a line for each that did."""
    from cljax.training.checks import diverged
    from cljax.training.driver import members

    found = diverged(outcome.failure, method)
    kept = [number for number in range(len(seeds)) if number not in found]
    lines = [f"{label}, seed {seeds[number][0]}: {text}." for number, text in found.items()]
    return [seeds[number] for number in kept], members(outcome, kept), lines


def tell_diverged(lines: Sequence[str], errors: Console) -> int:
    """Names the learners that diverged and are in no number of a run; returns the exit code."""
    for line in lines:
        errors.print(styled("red", "Diverged, and left out:", f" {line}"), soft_wrap=True)
    return 1 if lines else 0


def about(job: Job, name: str) -> dict[str, Any]:
    """What a record says of a method beside its results: what was set, and a label where it lacks a part."""
    from cljax import report

    lacks = ablation(name, job.networks[name], job.parameters[name])
    return {"parameters": report.plain(job.parameters[name]), **({"label": name + lacks} if lacks else {})}


def take_up(folder: RunFolder, name: str, options: Options, errors: Console) -> list[dict[str, Any]]:
    """The entries of the record that an interrupted run left, after a line that tells of them by this field.

    And, where the folder could not be locked, after one that says so.
    """
    if not folder.locked:
        errors.print(
            styled("yellow", f"{folder.path} cannot be locked there:", " let no other run use it at the same time.")
        )
    runs = list((folder.record or {"runs": []})["runs"])
    if runs and not options.output.quiet:
        names = ", ".join(dict.fromkeys(run[name] for run in runs))
        errors.print(styled("", f"Taking up {folder.path}, which has {names} already."))
    return runs


def make_record(
    runs: list[dict[str, Any]], job: Job, diverged: Sequence[str], *, complete: bool = False
) -> dict[str, Any]:
    """The record of a run, as `report.read` gives it back."""
    return {"format": 1, "complete": complete, "left_out": job.left_out, "diverged": list(diverged), "runs": runs}


def finish(table: Any, written: Mapping[str, Any], folder: RunFolder) -> None:
    """Prints the table, where things were written, and how a report is made of them."""
    lines = [f"{what}: {place}" for what, place in written.items()]
    place = shell_word(folder.path)
    show(table, *lines, f"Report: cljax report {place}", width=None if sys.stdout and sys.stdout.isatty() else 100)
