"""A run's folder and its experiment, opened with all checked, and what is said of whatever ends it."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from cljax.cli.asked import Curve, configuration, curves_of
from cljax.cli.experiment import Experiment, make_experiment
from cljax.cli.options import Compare, Options, Run, RunError, Sweep, UsageError, settle
from cljax.cli.process import first_alone, is_first, set_up
from cljax.cli.rules import check_values
from cljax.text import shell_word

if TYPE_CHECKING:
    from cljax.storage.folders import RunFolder


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
        all(entry in whole.get(curve_of(run), []) for run, entry in zip(runs, found, strict=True))
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


def told_of(curve: Curve, record: dict[str, Any]) -> int:
    """Of how many of a curve's learners a record tells.

    Example:
      >>> record = {'runs': [{'method': 'lwf', 'seeds': [0, 2]}], 'diverged': ['lwf, seed 1: ...', 'ewc, seed 0: ...']}
      >>> told_of(Curve('lwf'), record), told_of(Curve('ewc'), record), told_of(Curve('lwf+ewc'), record)
      (3, 1, 0)
    """
    begins = tuple(curve.name + end for end in ("=", ",", " "))
    lines = sum(line.startswith(begins) for line in record.get("diverged", []))
    return lines + sum(len(run["seeds"]) for run in record["runs"] if curve_of(run) == curve.name)


def curve_of(run: dict[str, Any]) -> str:
    """The name of the curve that an entry of a record belongs to."""
    return run["sweep"]["curve"] if "sweep" in run else run["method"]


BASIS = {
    "sample": "the examples",
    "examples": "the examples",
    "division": "their division",
    "start": "the parameters given to begin with",
}
"""What the results of a record stand on, beside its configuration, which names files alone; a digest each.

Of examples that are read as the run goes on, a sample alone.
"""


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
