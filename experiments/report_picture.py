"""A report's picture: methods side by side, accuracy against forgetting, a matrix, from a run folder's record.

Command: `cljax compare --data cifar100 --tasks 10 --methods finetune joint freezing lwf lwm tfm clnp df_cnn --seeds 3
--epochs 5 --channels 16 32 --hidden 64 --out runs/cifar100`, then
`python -m experiments.report_picture runs/cifar100 lwf`, which takes 3 seconds.
"""

from __future__ import annotations

import pathlib
import sys

from matplotlib.figure import Figure

from cljax import report

PICTURE = pathlib.Path(__file__).parent / "results" / "report.png"


def main(folder: str, method: str) -> None:
    (section,) = report.gather([folder])
    chosen = next(run for run in section.runs if run["method"] == method)
    figure = Figure(figsize=(17, 4.4), dpi=100, layout="constrained", facecolor="white")
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.1, 1.15, 1))
    report.plots.comparison(section.runs, left)
    report.plots.accuracy_against_forgetting(section.runs, middle)
    report.plots.accuracy_matrix(chosen, right)
    figure.suptitle(section.title, fontsize=13, x=0.01, ha="left")
    figure.savefig(PICTURE)


if __name__ == "__main__":
    main(*sys.argv[1:3])
