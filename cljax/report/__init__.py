"""What a run leaves: its record, tables, plots, files and a page.

`plots` are functions for notebooks; `write` makes everything from run folders, as `cljax report` does.
"""

from cljax.report import plots
from cljax.report.record import check, device, feature_usage, plain, read, run_record, versions, zero_forgetting
from cljax.report.sections import Section, chosen, gather
from cljax.report.sweep import stability_plasticity, sweep_table, write_sweep
from cljax.report.tables import METRICS, interval, markdown, short, summarise, table
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
    "markdown",
    "plain",
    "plots",
    "read",
    "run_record",
    "short",
    "stability_plasticity",
    "summarise",
    "sweep_table",
    "table",
    "versions",
    "write",
    "write_sweep",
    "zero_forgetting",
]
