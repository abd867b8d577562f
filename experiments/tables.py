"""A paper's table or figure: each of its systems a `cljax compare` run, its claims judged over all of them.

A system's run is named by a digest of its command, and is done when it is not there yet: what a table reads of it is
kept in `results/table_runs`. With `--seconds` the command ends in time, at the last checkpoint; the same command goes
on from there, on another machine too if the folder of `--runs` is brought there.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from cljax import metrics, report
from cljax.files import read_json, write_text
from experiments import claims
from experiments.saving import check_replaces, command_line, digest, write_result

Run = dict[str, Any]
"""An entry of a record: a method over all seeds."""
Runs = Mapping[str, Run]
"""The runs of a table, by the names that its systems have there."""
Decide = Callable[[Runs], tuple[str, str]]
"""What was found about a claim, and its verdict."""
UNREAD = ("attention", "config", "confusion", "facts")
"""Of a run what no table reads."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Where data, runs and results are; how large the runs are, of how many seeds, and of which systems.

    `full` is the paper's size; `leased` what a GPU does in some leases of `--seconds`; `reduced` what two cores do in
    an hour; `tiny` is a trial, which writes no claims.
    """

    data_dir: str | None = None
    runs: str = "runs/tables"
    out: str = "experiments"
    form: Literal["reduced", "full", "leased", "tiny"] = "reduced"
    seeds: int = 3
    only: tuple[str, ...] = ()
    """Systems by their names in the table; all where none is named."""
    seconds: float = float("inf")
    """No run begins, or goes on, after so many; what is complete is written."""


class Claim(NamedTuple):
    """What a paper says, its numbers, the systems that decide, and how they do."""

    what: str
    published: str
    systems: tuple[str, ...]
    decide: Decide


class Table(NamedTuple):
    """A table or figure of a paper.

    Attributes:
      name: of the result, such as 'lwm_figure_5'.
      source: the paper, and which table.
      module: by which it is run.
      forms: `{form: arguments}` of `cljax compare` that all systems have.
      systems: `{name: arguments}` that each has beside them, its method first; later ones take the place of earlier.
      published: `{metric or column: {system: number}}`, as printed.
      claims: those it decides.
      metrics: `{name: function of a run}`, a number a seed, beside those of the report.
      pairs: `{row: (system, other)}`: rows of differences, paired by seed, the system minus the other.
      stands_in: whether other data stand for the paper's, so that no form is at its scale.
      in_form: `{form: {system: arguments}}` that some systems have in a form, behind those.
      own: `{system: function}` of the table, the system, the configuration and the time: the run of one that is more
        than a command, or None.
      draw: a figure of the runs that are there, for `NAME_FORM.png` beside the result.
    """

    name: str
    source: str
    module: str
    forms: Mapping[str, str]
    systems: Mapping[str, str]
    published: Mapping[str, Mapping[str, float]]
    claims: tuple[Claim, ...]
    metrics: Mapping[str, Callable[[Run], np.ndarray]] = {}
    pairs: Mapping[str, tuple[str, str]] = {}
    stands_in: bool = False
    in_form: Mapping[str, Mapping[str, str]] = {}
    own: Mapping[str, Callable[[Any, str, Config, float], Run | None]] = {}
    draw: Callable[[Runs], Figure] | None = None


def accuracy(run: Run) -> np.ndarray:
    """`[S, T, T]`, fractions."""
    return np.asarray(run["accuracy"], np.float64)


def average(run: Run) -> np.ndarray:
    """The average accuracy in the end, a number a seed."""
    return accuracy(run)[:, -1].mean(axis=-1)


def incremental(run: Run) -> np.ndarray:
    """The average incremental accuracy: the mean over all steps of the accuracy on what was seen by then."""
    return after_each_task(run).mean(axis=-1)


def after_each_task(run: Run) -> np.ndarray:
    """`[S, T]`: after each task the mean accuracy on those learned by then."""
    return np.asarray(metrics.average_incremental_accuracy(np.asarray(run["accuracy"], np.float32), per_task=True))


def kept(run: Run) -> np.ndarray:
    """Minus the mean forgetting of old tasks."""
    return -np.asarray(metrics.forgetting(np.asarray(run["accuracy"], np.float32)), np.float64)


def of_curves(run: Run, metric: Callable) -> np.ndarray:
    """The mean over tasks of a metric of `metrics.curves`: a function of a seed's curves and the tasks' starts."""
    points = np.asarray(run["curve_epochs"])
    starts = np.searchsorted(points[:, 0], np.arange(points[:, 0].max() + 1))
    values = [np.mean(metric(np.asarray(seed, np.float32), starts)) for seed in run["curves"]]
    return np.asarray(values, np.float64)


def peak(run: Run) -> np.ndarray:
    """Mean over tasks of the best accuracy in the task's own phase."""
    return of_curves(run, metrics.peak_accuracy)


def speed(run: Run) -> np.ndarray:
    """Minus the mean number of evaluations until 98% of the peak."""
    return -of_curves(run, metrics.epochs_to_converge)


def chosen(run: Run) -> dict[str, np.ndarray]:
    """`{number: [S, R]}`: what each visit of a method that searches has chosen."""
    best = np.asarray(run["search"]["chosen"])[..., None]
    tried = run["search"]["numbers"]
    return {name: np.take_along_axis(np.asarray(values), best, -1)[..., 0] for name, values in tried.items()}


def margin(wanted: Callable[[Run], np.ndarray], mine: str, other: str, *, at_least: float = 0.0) -> Decide:
    """A claim that `wanted` of a system is above another's (by `at_least`), with the numbers that decide."""

    def decide(runs: Runs) -> tuple[str, str]:
        scale, unit = (100, "points") if wanted is not speed else (1, "evaluations fewer")
        ours, theirs = ((name, wanted(runs[name])) for name in (mine, other))
        return claims.compare(ours, theirs, at_least=at_least, scale=scale, unit=unit)

    return decide


def above(
    what: str, published: str, mine: str, other: str, wanted: Callable = average, *, at_least: float = 0.0
) -> Claim:
    """The claim that a system is above another."""
    return Claim(what, published, (mine, other), margin(wanted, mine, other, at_least=at_least))


def zero_forgetting(method: str) -> Decide:
    """A claim that no bit of an old task's logits changed, in any seed."""

    def decide(runs: Runs) -> tuple[str, str]:
        true = runs[method]["zero_forgetting"]
        return (
            "every bit of old logits kept" if true else "logits changed",
            claims.REPRODUCED if true else claims.NOT_REPRODUCED,
        )

    return decide


def ran(
    folder: pathlib.Path, arguments: str, data_dir: str | None, until: float = float("inf")
) -> dict[str, Any] | None:
    """The record of `cljax compare ARGUMENTS`, run into the folder, or on from where it stopped; None: out of time.

    Args:
      folder: of the run.
      arguments: as one types them.
      data_dir: where TFDS's prepared data sets are.
      until: by `time.monotonic`, when it is stopped; what is then lost is what came after its last checkpoint.

    Raises:
      subprocess.CalledProcessError: the command failed.
    """
    finished = lambda: (folder / "record.json").exists() and report.read(folder).get("complete")
    if finished():
        return report.read(folder)
    if until - time.monotonic() <= 0:
        return None
    words = [*shlex.split(arguments), "--out", str(folder), "--no-report"]
    words += ["--data-dir", data_dir] if data_dir and "--data " in arguments else []
    words += ["--checkpoint-seconds", "20"] if until < float("inf") else []
    call = "import sys; from cljax.cli import main; sys.exit(main(sys.argv[1:]))"
    left = until - time.monotonic()
    try:
        done = subprocess.run(
            [sys.executable, "-c", call, "compare", *words], check=False, timeout=None if left == float("inf") else left
        )
    except subprocess.TimeoutExpired:
        return None
    if not finished():  # where some seeds diverged it ends with 1, and is complete
        done.check_returncode()
    return report.read(folder)


def run_of(table: Table, system: str, config: Config, until: float = float("inf")) -> Run | None:
    """A system's run: kept beside the results, or, if it is asked for, made, and kept then, unless a trial."""
    path = pathlib.Path(config.out) / "results" / "table_runs" / f"{folder_of(table, system, config).name}.json"
    if path.exists():
        return read_json(path)
    if config.only and system not in config.only:
        return None
    run = table.own.get(system, run_of_command)(table, system, config, until)
    if run is not None and config.form != "tiny":
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps({name: value for name, value in run.items() if name not in UNREAD}) + "\n")
    return run


def run_of_command(table: Table, system: str, config: Config, until: float) -> Run | None:
    """The run of a system by its command, as of `ran`."""
    record = ran(folder_of(table, system, config), arguments_of(table, system, config), config.data_dir, until)
    if record is None:
        return None
    (run,) = record["runs"]
    return run


def folder_of(table: Table, system: str, config: Config) -> pathlib.Path:
    """Of a system's run, by a digest of its command."""
    name = f"{table.name}-{system}-{digest(arguments_of(table, system, config))}"
    return pathlib.Path(config.runs) / name


def arguments_of(table: Table, system: str, config: Config) -> str:
    """Of `cljax compare`, for one system of the table: what all have, its own in place of that, the seeds."""
    more = table.in_form.get(config.form, {}).get(system, "")
    return f"{table.forms[config.form]} {table.systems[system]} {more} --seeds {config.seeds}".replace("  ", " ")


def found_of(table: Table, runs: Runs, config: Config) -> dict[str, Any]:
    """What a result says of the runs that are there: in percent, with intervals, the paper's numbers beside them."""
    without = {"facts": [{}]}  # kept runs have none: their tasks have as many classes
    reported = {name: report.summarise({**run, **without}) for name, run in runs.items()}
    columns = dict.fromkeys(column for values in reported.values() for column in values)
    found = {column: {name: own[column] for name, own in reported.items() if column in own} for column in columns}
    told = lambda own: any(np.isfinite(np.asarray(value, np.float64)).any() for value in own.values())
    found = {column: own for column, own in found.items() if told(own)}  # where tasks come at random some mean nothing
    found |= {column: {name: own(run) for name, run in runs.items()} for column, own in table.metrics.items()}
    apart = {
        column: {
            row: own[mine] - own[other]
            for row, (mine, other) in table.pairs.items()
            if {mine, other} <= set(own) and runs[mine]["seeds"] == runs[other]["seeds"]
        }
        for column, own in found.items()
    }
    steps = {name: after_each_task(run).mean(axis=0) for name, run in runs.items()}
    any_run = next(iter(runs.values()))
    return {
        "experiment": table.name,
        "source": table.source,
        "published": table.published,
        "form": config.form,
        **claims.in_percent(found),
        "differences": claims.in_percent(apart),
        "after_each_task": {name: np.round(100 * values, 2) for name, values in steps.items()},
        "zero_forgetting": {name: run["zero_forgetting"] for name, run in runs.items()},
        "chosen": {name: chosen(run) for name, run in runs.items() if run["search"]},
        "seconds": {name: np.sum(run["seconds"]) for name, run in runs.items()},
        "commands": {
            name: f"cljax compare {arguments_of(table, name, config)}" for name in runs if name not in table.own
        },
        "not_run": [name for name in table.systems if name not in runs],
        "seeds": sorted({seed for run in runs.values() for seed in run["seeds"]}),
        "device": any_run["device"],
        "versions": any_run["versions"],
    }


def shown(table: Table, found: Mapping[str, Any]) -> str:
    """The paper's numbers beside ours, a line a system."""
    lines = []
    for column in [name.removesuffix("_mean") for name in found if name.endswith("_mean")]:
        means, intervals, papers = found[f"{column}_mean"], found[f"{column}_ci95"], table.published.get(column, {})
        lines.append(f"{column.replace('_', ' ')}, percent:")
        for name, mean in means.items():
            if np.isnan(mean):
                continue
            paper = f"   paper {papers[name]:6.2f}" if name in papers else ""
            lines.append(f"  {name:28s} {mean:6.2f} ±{intervals[name]:5.2f}{paper}")
        apart = found["differences"]
        for row, mean in apart[f"{column}_mean"].items():
            lines.append(f"  {row:48s} {mean:+6.2f} ±{apart[f'{column}_ci95'][row]:5.2f}")
    return "\n".join(lines)


def decided(table: Table, runs: Runs, form: str) -> list[claims.Claim]:
    """The claims whose systems are all there; what fails below the paper's size is not tested at scale.

    Where a seed of one of them diverged they cannot be paired, and one seed has no interval.
    """
    found = []
    for what, published, systems, decide in table.claims:
        if set(systems) <= set(runs):
            seeds = {name: runs[name]["seeds"] for name in systems}
            if all(own == seeds[systems[0]] and len(own) > 1 for own in seeds.values()):
                text, verdict = claims.at_scale(*decide(runs), form == "full" and not table.stands_in)
            else:
                text = ", ".join(f"{name} {' '.join(map(str, own))}" for name, own in seeds.items())
                text, verdict = f"too few seeds, or not the same: {text}", claims.NOT_TESTED
            found.append(claims.claim(table.source, f"{what} ({table.name}, {form})", published, text, verdict))
    return found


def main(table: Table, config: Config) -> None:
    """Does the runs that are not there yet, writes the result, the claims and what the paper has beside ours.

    Raises:
      SystemExit: the table has no such form or system; or its result is of more seeds.
    """
    unknown = [name for name in config.only if name not in table.systems]
    if unknown or config.form not in table.forms:
        raise SystemExit(
            f"{table.name} has the forms {', '.join(table.forms)} and the systems {', '.join(table.systems)}; "
            f"not {', '.join(unknown) or config.form}."
        )
    check_replaces(config, f"{table.name}_{config.form}")
    until = time.monotonic() + config.seconds
    made = {name: run_of(table, name, config, until) for name in table.systems}
    # what another process has made since is read now
    there = {name: run or run_of(table, name, config, 0.0) for name, run in made.items()}
    runs = {name: run for name, run in there.items() if run}
    if not runs:
        print("No run is complete yet; the same command goes on.")
        return
    found, own = found_of(table, runs, config), decided(table, runs, config.form)
    print(shown(table, found))
    for one in own:
        print(f"{one['verdict']:15s} {one['claim']}: {one['found']}")
    if found["not_run"]:
        same = "the same command without --only" if config.only else "the same command"
        print(f"Not run yet: {', '.join(found['not_run'])}; {same} goes on.")
    path = write_result(config, f"{table.name}_{config.form}", found, command_line(table.module))
    if table.draw:
        table.draw(runs).savefig(path.with_suffix(".png"), dpi=110)
    if config.seeds > 1 and config.form != "tiny":  # one seed has no interval
        claims.merge(pathlib.Path(config.out), own)


def all_of(wanted: Sequence[Table], config: Config) -> None:
    """The same of several tables, one after the other; `--only` and `--seconds` are of them all.

    Raises:
      SystemExit: as of `main`; none of them has such a system.
    """
    until = time.monotonic() + config.seconds
    known = {system for table in wanted for system in table.systems}
    if unknown := sorted(set(config.only) - known):
        raise SystemExit(f"There is no system {', '.join(unknown)}, but: {', '.join(sorted(known))}.")
    for table in wanted:
        only = tuple(system for system in config.only if system in table.systems)
        if only or not config.only:
            main(table, dataclasses.replace(config, only=only, seconds=until - time.monotonic()))
