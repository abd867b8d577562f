"""What a run leaves: its record, tables, plots, files and a page.

`plots`, `table`, `tidy` and `write` take results as `training.drive` and `training.make_run` give them, or records;
`write` makes everything, of run folders too, as `cljax report` does.
"""

from cljax.report import plots
from cljax.report.record import check, device, feature_usage, plain, read, run_record, versions, zero_forgetting
from cljax.report.results import runs, tidy
from cljax.report.sections import Section, chosen, gather
from cljax.report.sweep import stability_plasticity, sweep_table, write_sweep
from cljax.report.tables import METRICS, interval, latex, markdown, short, summarise, table
from cljax.report.writing import write

__all__ = [
    "METRICS",
    "Section",
    "check",
    "chosen",
    "device",
    "feature_usage",
    "gather",
    "interval",
    "latex",
    "markdown",
    "plain",
    "plots",
    "read",
    "run_record",
    "runs",
    "short",
    "stability_plasticity",
    "summarise",
    "sweep_table",
    "table",
    "tidy",
    "versions",
    "write",
    "write_sweep",
    "zero_forgetting",
]
