"""What a run says at its beginning and its end, beside its progress."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console

from cljax.cli.experiment import Experiment
from cljax.cli.options import RunError
from cljax.cli.printing import show, styled
from cljax.text import shell_word

if TYPE_CHECKING:
    from cljax.storage.folders import RunFolder
    from cljax.training.outcome import Results


def tell_visit(told: Sequence[Any], seeds: list[int], number: int, results: Results) -> None:
    """Tells each that a visit has ended; of several processes all come here, for results are read together."""
    for one in told:
        one.visited(seeds, number, results)


def tell_beginning(experiment: Experiment, folder: RunFolder, runs: Sequence[dict], errors: Console) -> None:
    """Says what is left out, whether the folder could not be locked, the devices, what its record has already."""
    import jax

    for name, reason in experiment.left_out.items():
        errors.print(styled("yellow", f"{name} is left out:", f" {reason}"))
    if not folder.locked:
        errors.print(
            styled("yellow", f"{folder.path} cannot be locked there:", " let no other run use it at the same time.")
        )
    if experiment.options.output.quiet:
        return
    devices = jax.devices()
    kind = devices[0].device_kind
    count = kind if len(devices) == 1 else f"{len(devices)} x {kind}"
    errors.print(styled("", f"On {count}, by jax {jax.__version__}."))
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
