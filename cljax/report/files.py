"""`cljax report`: everything made from the records of some run folders, written into one folder."""

from __future__ import annotations

import csv
import os
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from cljax import metrics
from cljax.report.figures import draw
from cljax.report.page import Page
from cljax.report.sections import Section, gather, label
from cljax.report.tables import WORDS, caption, markdown, summarise

PAGE = "report.html"
RESULTS = ("data", "scenario", "tasks", "folder", "method", "seed", "after_task", "task", "accuracy", "task_aware")
VISITS = ("data", "scenario", "tasks", "folder", "method", "seed", "visit", "of_task", "task", "accuracy", "task_aware")


def write(folders: Sequence[str | os.PathLike], out: str | os.PathLike | None = None) -> pathlib.Path:
    """Makes a report: `report.html`, `table.md`, `results.csv`, `summary.csv`, `visits.csv` (revisits), `plots/*.png`.

    In the CSV files accuracies are fractions, and tasks and visits are counted from 1.

    Args:
      folders: run folders, or their `record.json`; several are shown side by side.
      out: the folder to write to: by default `report` in the run folder, or, of several, in the working directory. An
        earlier report there is replaced.

    Returns:
      The path of `report.html`.

    Raises:
      ValueError: where a folder has no record, or `out` holds something else than a report.
    """
    sections = gather(folders)
    place = _place(folders, out)
    (place / "plots").mkdir(exist_ok=True)
    for old in (place / "plots").glob("*.png"):
        old.unlink()
    (place / "visits.csv").unlink(missing_ok=True)
    page = Page([run for section in sections for run in section.runs])
    for number, section in enumerate(sections):
        page.section(section)
        prefix = f"{number + 1}-" if len(sections) > 1 else ""
        for drawing in draw(section):
            stem = "-".join(part for part in (drawing.name, _slug(drawing.method)) if part)
            drawing.figure.savefig(place / "plots" / f"{prefix}{stem}.png")
            page.drawing(drawing)
    parts = [f"## {s.title}\n\n{markdown(s.runs)}\n\n{' '.join([caption(s.runs), *s.notes])}\n" for s in sections]
    (place / "table.md").write_text("\n".join(parts), encoding="utf-8")
    _write_csv(place / "results.csv", RESULTS, (row for section in sections for row in result_rows(section)))
    _write_csv(place / "summary.csv", *summary_rows(sections))
    if any(run.get("rounds") for section in sections for run in section.runs):
        _write_csv(place / "visits.csv", VISITS, (row for section in sections for row in visit_rows(section)))
    (place / PAGE).write_text(page.text(), encoding="utf-8")
    return place / PAGE


def result_rows(section: Section) -> Iterator[list[Any]]:
    """A row for each method, seed, task learned and task asked; accuracies are fractions, tasks counted from 1."""
    for run in section.runs:
        for seed, accuracy, aware in zip(run["seeds"], run["accuracy"], run["task_aware"], strict=True):
            for after, (row, told) in enumerate(zip(accuracy, aware, strict=True)):
                for task, (value, known) in enumerate(zip(row, told, strict=True)):
                    yield [*_who(run), seed, after + 1, task + 1, value, known]


def visit_rows(section: Section) -> Iterator[list[Any]]:
    """Of runs with revisits, a row for each method, seed, visit and task asked."""
    for run in section.runs:
        if not run.get("rounds"):
            continue
        visited, rounds = run["schedule"]["task"], run["rounds"]
        for seed, accuracy, aware in zip(run["seeds"], rounds["accuracy"], rounds["task_aware"], strict=True):
            for visit, (row, told) in enumerate(zip(accuracy, aware, strict=True)):
                for task, (value, known) in enumerate(zip(row, told, strict=True)):
                    yield [*_who(run), seed, visit + 1, visited[visit] + 1, task + 1, value, known]


def summary_rows(sections: Sequence[Section]) -> tuple[list[str], list[list[Any]]]:
    """The columns, and a row for each method: means and 95% half-widths of each metric, fractions; empty: unknown."""
    names = ["data", "scenario", "tasks", "folder", "method", "seeds"]
    names += [f"{metric}_{part}" for metric in WORDS for part in ("mean", "ci95")]
    names += ["seconds", "flops", "bytes_per_task", "forgets_nothing"]
    rows = []
    for run in (run for section in sections for run in section.runs):
        values, row = summarise(run), [*_who(run), len(run["seeds"])]
        for metric in WORDS:
            found = metrics.mean_and_interval(values[metric]) if metric in values else (np.nan, np.nan)
            row += [float(number) if np.isfinite(number) else None for number in found]
        row += [float(np.mean(run["seconds"])), run["flops"], run["bytes_per_task"], run.get("forgets_nothing")]
        rows.append(row)
    return names, rows


def _who(run: dict[str, Any]) -> list[Any]:
    return [run["data"], run["scenario"], len(run["accuracy"][0]), run["folder"], label(run)]


def _write_csv(path: pathlib.Path, names: Sequence[str], rows: Any) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(names)
        writer.writerows(rows)


def _place(folders: Sequence[str | os.PathLike], out: str | os.PathLike | None) -> pathlib.Path:
    """The folder to write to, made where it does not exist."""
    first = pathlib.Path(folders[0]).expanduser()
    default = (first if first.is_dir() else first.parent) / "report" if len(folders) == 1 else pathlib.Path("report")
    place = pathlib.Path(out).expanduser() if out else default
    try:
        place.mkdir(parents=True, exist_ok=True)
        if any(place.iterdir()) and not (place / PAGE).exists():
            raise ValueError(f"The folder {place} holds something else than a report. Choose another with --out.")
    except FileExistsError:
        raise ValueError(f"{place} is a file, not a folder. Choose another place with --out.") from None
    except OSError as error:
        reason = f"The folder {place} cannot be written ({error.strerror})"
        raise ValueError(f"{reason}. Choose another with --out.") from None
    return place


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.]+", "-", name).strip("-")
