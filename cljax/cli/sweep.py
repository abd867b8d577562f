"""`cljax sweep`: methods over the values of one number each, all values and seeds through the same programs."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from rich.console import Console

from cljax.cli.options import Options, Sweep, configuration, settle

if TYPE_CHECKING:
    from cljax.cli.setup import Job
    from cljax.folders import RunFolder
    from cljax.training.driver import Outcome


class Curve(NamedTuple):
    """A method and the values of one of its numbers; without a parameter a single point, the method as it is."""

    method: str
    parameter: str | None
    values: tuple[float, ...]

    @property
    def name(self) -> str:
        """What the curve is called."""
        return f"{self.method}.{self.parameter}" if self.parameter else self.method


def curves(command: Sweep) -> list[Curve]:
    """The curves asked for.

    Raises:
      UsageError: words that say none, a curve named twice, a value named twice.

    Example:
      >>> curves(Sweep('lwf', 'strength', (0.1, 1.0), vs=('lwm.beta=1,2', 'finetune')))[1:]
      [Curve(method='lwm', parameter='beta', values=(1.0, 2.0)), Curve(method='finetune', parameter=None, values=())]
    """
    from cljax.cli.setup import UsageError, constructors, unknown

    found = [Curve(command.method, command.parameter, tuple(command.values))]
    for words in command.vs:
        key, equals, listed = words.partition("=")
        method, dot, parameter = key.partition(".")
        try:
            values = tuple(float(value) for value in listed.split(",")) if equals else ()
        except ValueError:
            values = ()
        if bool(dot) != bool(equals) or (dot and not (parameter and values)):
            raise UsageError(
                f"--vs takes METHOD or METHOD.NAME=VALUE,VALUE..., such as lwm.beta=0.1,1,10; not {words!r}."
            )
        found.append(Curve(method, parameter or None, values))
    names = [curve.name for curve in found]
    for curve in found:
        if curve.method not in constructors():
            raise UsageError(unknown("method", curve.method, constructors()) + " `cljax methods` describes them.")
        if names.count(curve.name) > 1:
            raise UsageError(f"{curve.name} is swept more than once: give all its values together.")
        if curve.parameter and (not curve.values or len(set(curve.values)) < len(curve.values)):
            raise UsageError(
                f"{curve.name} needs one value or more, each once, not {' '.join(map(str, curve.values))!r}."
            )
    return found


def sweep(command: Sweep, errors: Console) -> int:
    """Drives every curve, writes the record after each, prints the table and draws the plot."""
    from cljax import folders, training
    from cljax.cli import run_path, set_xla_flags, use_compilation_cache
    from cljax.cli.setup import UsageError, check_values, prepare

    wanted, options = curves(command), settle(command.options)
    check_values(options)
    set_xla_flags()
    if options.output.cache:
        use_compilation_cache()
    names = tuple(dict.fromkeys(curve.method for curve in wanted))
    config = {**configuration(names, options), "sweep": [[curve.name, list(curve.values)] for curve in wanted]}
    path = run_path(options, config)
    with folders.claim(path, config, overwrite=options.output.overwrite) as folder:
        try:
            job = prepare(names, options, by_name=True)
            for curve in wanted:
                if curve.parameter:
                    grid = [{curve.parameter: value} for value in curve.values]
                    training.check_hypers(job.methods[curve.method], grid, grid)
        except (ValueError, TypeError, OSError) as error:
            raise UsageError(str(error)) from error
        folder.start()
        return drive_curves(wanted, job, folder, options, config, errors)


def drive_curves(
    wanted: Sequence[Curve], job: Job, folder: RunFolder, options: Options, config: dict[str, Any], errors: Console
) -> int:
    """Drives each curve that the folder's record does not have yet."""
    from cljax import checkpoints, report
    from cljax.cli import complain
    from cljax.cli.progress import Reporter
    from cljax.training import NonFiniteLoss
    from cljax.training.driver import drive

    runs = list((folder.record or {"runs": []})["runs"])
    finished = {run["sweep"]["curve"] for run in runs}
    todo = [curve for curve in wanted if curve.name not in finished]
    with Reporter(errors, len(todo), options.data.tasks or 0, quiet=options.output.quiet) as reporter:
        for curve in todo:
            reporter.method(curve.name)
            method, values = job.methods[curve.method], curve.values or (None,)
            seeds = [pair for _ in values for pair in job.seeds]
            given = curve.parameter and [{curve.parameter: value} for value in curve.values for _ in job.seeds]
            saving = checkpoints.Saving(folder.checkpoints(curve.name), options.output.checkpoint_seconds)
            try:
                outcome = drive(
                    method,
                    job.optimizer,
                    seeds,
                    job.settings,
                    hypers=given or None,
                    vectorize=side_by_side(job, len(seeds)),
                    report=reporter.event,
                    checkpoints=saving,
                    programs_of=job.programs_of,
                )
            except NonFiniteLoss as error:
                return complain(errors, error, 1)
            for place, value in enumerate(values):
                part = members(outcome, slice(place * len(job.seeds), (place + 1) * len(job.seeds)))
                run = report.run_record(method, job.seeds, part, network=job.network, config=config)
                run["parameters"] = report.plain({**job.parameters[curve.method]})
                run["sweep"] = {"curve": curve.name, "parameter": curve.parameter, "value": value}
                run["label"] = curve.name if value is None else f"{curve.name}={value:g}"
                runs.append(run)
            folder.save({"format": 1, "complete": False, "left_out": {}, "runs": runs})
            folder.forget(curve.name)
    order = [curve.name for curve in wanted]
    runs.sort(key=lambda run: order.index(run["sweep"]["curve"]))
    folder.save({"format": 1, "complete": True, "left_out": {}, "runs": runs})
    words, picture = report.write_sweep(runs, folder.path)
    output = Console() if sys.stdout.isatty() else Console(width=100)
    output.print(report.sweep_table(runs))
    for what, written in (("Record", folder.path / "record.json"), ("Table", words), ("Plot", picture)):
        output.print(f"{what}: {written}", highlight=False, soft_wrap=True)
    output.print(f"Report: cljax report {shlex.quote(str(folder.path))}", highlight=False, soft_wrap=True)
    return 0


def side_by_side(job: Job, count: int) -> bool | int:
    """How many runs go side by side: all, or the largest divisor of their number that half the device's memory takes.

    A run is taken to need three times the bytes of its learner and its batches, as the optimizer and the step need
    theirs, and its index tables; the images are there once.
    """
    import jax

    if not job.vectorize:
        return False
    limit = (jax.devices()[0].memory_stats() or {}).get("bytes_limit")
    if not limit:
        return True
    method, tables = next(iter(job.methods.values())), job.seeds[0][1].tables
    params, collections = jax.eval_shape(method.network.init, jax.random.key(0))
    tasks = tables.classes.shape[0]
    weights = sum(leaf.size * 4 for leaf in jax.tree.leaves((params, collections))) * (tasks + 1)
    index = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(tables._replace(examples=None)))
    fits = max(1, int(limit / 2 / (3 * weights + index + 2**28)))
    return max(size for size in range(1, count + 1) if count % size == 0 and size <= fits) if fits < count else True


def members(outcome: Outcome, part: slice) -> Outcome:
    """The outcome of some of the seeds."""
    import jax

    cut = lambda leaf: leaf[part]
    return outcome._replace(
        learners=outcome.learners[part],
        evaluation=jax.tree.map(cut, outcome.evaluation),
        epochs=jax.tree.map(cut, outcome.epochs),
        curves=outcome.curves[part],
        seconds=outcome.seconds[part],
        share_waiting=None if outcome.share_waiting is None else outcome.share_waiting[part],
    )
