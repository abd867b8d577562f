"""`cljax sweep`: methods over the values of one number each, all values and seeds through the same programs."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.console import Console

from cljax.cli.building import ablation
from cljax.cli.options import Options, Sweep, UsageError, configuration
from cljax.cli.parameters import unknown
from cljax.cli.running import (
    Drive,
    about,
    begin,
    claim,
    drive_each,
    finish,
    make_record,
    part_diverged,
    take_up,
    tell_diverged,
)
from cljax.cli.setup import Job, constructors
from cljax.numbers import real

if TYPE_CHECKING:
    from cljax.storage.folders import RunFolder
    from cljax.types import Method


class Curve(NamedTuple):
    """A method and the values of one of its numbers; without a parameter a single point, the method as it is."""

    method: str
    parameter: str | None
    values: tuple[float, ...]

    @property
    def name(self) -> str:
        """What the curve is called."""
        return f"{self.method}.{self.parameter}" if self.parameter else self.method

    @property
    def entries(self) -> list[dict[str, Any]]:
        """What its entries in a record have of their own."""
        one = {"curve": self.name, "parameter": self.parameter}
        values: Sequence[float | None] = self.values or (None,)
        return [{"method": self.method, "sweep": {**one, "value": value}} for value in values]


def curves(command: Sweep) -> list[Curve]:
    """The curves asked for.

    Raises:
      UsageError: words that say none, a curve named twice, a value named twice.

    Example:
      >>> curves(Sweep('lwf', 'strength', (0.1, 1.0), vs=('lwm.beta=1,2', 'finetune')))[1:]
      [Curve(method='lwm', parameter='beta', values=(1.0, 2.0)), Curve(method='finetune', parameter=None, values=())]
    """
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
        try:
            for value in curve.values:
                real(f"A value of {curve.name}", value)
        except ValueError as error:
            raise UsageError(str(error)) from None
        if curve.parameter and (not curve.values or len(set(curve.values)) < len(curve.values)):
            raise UsageError(
                f"{curve.name} needs one value or more, each once, not {' '.join(map(str, curve.values))!r}."
            )
    return found


def sweep(command: Sweep, errors: Console) -> int:
    """Drives every curve, writes the record after each, prints the table and draws the plot."""
    options = begin(command.options)
    for name in ("tensorboard", "keep_learners"):
        if getattr(options.output, name):
            raise UsageError(f"--{name.replace('_', '-')} is for `cljax run` and `cljax compare`: leave it out here.")
    if options.data.tasks == 1:
        raise UsageError("--tasks is 1, but stability and plasticity, which a sweep shows, need at least 2.")
    wanted = curves(command)
    names = tuple(dict.fromkeys(curve.method for curve in wanted))
    config = {**configuration(names, options), "sweep": [[curve.name, list(curve.values)] for curve in wanted]}

    def check(job: Job) -> None:
        from cljax import training

        for curve in wanted:
            if curve.parameter:
                grid = [{curve.parameter: value} for value in curve.values]
                training.check_hypers(job.methods[curve.method], grid, grid)
            make = constructors()[curve.method]
            if curve.parameter in inspect.signature(make).parameters:  # a value that the method itself refuses
                for value in curve.values:
                    given: dict[Any, Any] = {**job.parameters[curve.method], curve.parameter: value}
                    make(job.methods[curve.method].network, **given)

    from cljax.report.sweep import FILES

    parts = {curve.name: curve.entries for curve in wanted}
    with claim(names, options, config, parts, by_name=True, needed=FILES, check=check) as (folder, job):
        return drive_curves(wanted, job, folder, options, config, errors)


def drive_curves(
    wanted: Sequence[Curve], job: Job, folder: RunFolder, options: Options, config: dict[str, Any], errors: Console
) -> int:
    """Drives each curve that the folder's record does not have yet."""
    from cljax import report
    from cljax.training.driver import members

    diverged = list((folder.record or {}).get("diverged", []))
    count, todo = len(job.seeds), []
    runs = take_up(folder, "label", options, errors)
    finished = {run["sweep"]["curve"] for run in runs}
    for curve in wanted:
        if curve.name not in finished:
            given = [{curve.parameter: value} for value in curve.values for _ in job.seeds if curve.parameter]
            seeds = job.seeds * max(1, len(curve.values))
            method = job.methods[curve.method]
            todo.append(Drive(curve.name, method, seeds, given or None, side_by_side(job, method, len(seeds))))
    named = {curve.name: curve for curve in wanted}
    for one, outcome in drive_each(todo, job, folder, options, errors):
        curve = named[one.name]
        for place, entry in enumerate(curve.entries):
            value = entry["sweep"]["value"]
            label = curve.name if value is None else f"{curve.name}={report.sweep.written(value)}"
            label += ablation(curve.method, job.networks[curve.method], job.parameters[curve.method])
            part = members(outcome, range(place * count, (place + 1) * count))
            seeds, part, lost = part_diverged(one.method, job.seeds, part, label)
            diverged += lost
            if not seeds:
                continue
            run = report.run_record(one.method, seeds, part, network=job.networks[curve.method], config=config)
            runs.append({**run, **about(job, curve.method), **entry, "label": label})
        folder.save(make_record(runs, job, diverged))
    order = [curve.name for curve in wanted]
    runs.sort(key=lambda run: order.index(run["sweep"]["curve"]))
    folder.save(make_record(runs, job, diverged, complete=True))
    words, picture = report.write_sweep(runs, folder.path)
    written = {"Record": folder.path / "record.json", "Table": words, "Plot": picture}
    finish(report.sweep_table(runs), written, folder)
    return tell_diverged(diverged, errors)


def side_by_side(job: Job, method: Method, count: int) -> bool | int:
    """How many runs go side by side: all, or the largest divisor of their number that half of the memory takes.

    A run is taken to need its index tables and three times its learner, for itself, its copy and what a step makes of
    it; the images are there once.
    """
    import jax

    from cljax import streams, training
    from cljax.training.host import available_memory

    memory = available_memory()
    if not job.vectorize or memory is None:
        return job.vectorize
    stream = job.seeds[0][1]
    make = lambda key: training.make_learner(
        method, job.optimizer, stream.tables, job.settings.learning_rate, key, streams.max_examples(stream.tables)
    )
    learner = jax.eval_shape(make, jax.random.key(0))
    size = lambda tree: sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
    return divisor(count, memory // 2 // (3 * size(learner) + size(stream.tables._replace(examples=None))))


def divisor(count: int, most: int) -> int:
    """The largest divisor of a number that is at most another, or 1.

    Example:
      >>> divisor(12, 100), divisor(12, 5), divisor(7, 5), divisor(7, 0)
      (12, 4, 1, 1)
    """
    return max(size for size in range(1, count + 1) if count % size == 0 and size <= max(1, most))
