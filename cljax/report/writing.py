"""`cljax report`: everything made from the records of some run folders, written into one folder."""

from __future__ import annotations

import csv
import io
import os
import pathlib
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from cljax import files, metrics
from cljax.report.figures import draw
from cljax.report.page import Page
from cljax.report.results import tidy
from cljax.report.sections import Section, gather, label
from cljax.report.tables import WORDS, caption, cost, latex, markdown, summarise
from cljax.text import markdown as escape
from cljax.text import printable, spreadsheet

PAGE = "report.html"
OWN = re.compile(r"table\.(md|tex)|(results|summary|visits)\.csv|plots/[A-Za-z0-9_.-]+\.(png|svg|pdf)")
FORMS = ("png", "svg", "pdf")
LIST = re.compile(rb'<meta name="cljax-report" content="([^"]*)">')
RESULTS = (
    *("data", "scenario", "tasks", "folder", "method", "seed"),
    *("after_task", "task", "accuracy", "task_il_accuracy"),
)
VISITS = (*RESULTS[:6], "visit", "of_task", *RESULTS[7:])


def write(results: Any, out: str | os.PathLike | None = None) -> pathlib.Path:
    """Makes a report: the page, tables, and plots as PNG, SVG and PDF.

    `report.html`, `table.md`, `table.tex`, `results.csv`, `summary.csv`, `visits.csv` (of revisits), `plots/`.

    In the CSV files accuracies are fractions, tasks and visits are counted from 1, and an apostrophe stands before a
    name that a spreadsheet would take for a formula. The page lists the report's other files. By that list a later
    report, or the same one after a kill, replaces them; a file that it does not name is never touched.

    Args:
      results: results as of `report.runs`; or run folders, or their `record.json`: all are shown side by side.
      out: the folder to write to: by default `report` in the run folder, or else in the working directory. An earlier
        report there is replaced.

    Returns:
      The path of `report.html`.

    Raises:
      ValueError: a folder has no record, or `out` holds something else than a report, or a file of one's own where the
        report has one, or cannot be written. Nothing has been changed then, but where a disk is full.

    Example:
      >>> import tempfile
      >>> from cljax import report
      >>> report.write([tempfile.mkdtemp()])
      Traceback (most recent call last):
      ...
      ValueError: ...
    """
    sections = gather(results)
    place = _place(results, out)
    try:
        listed = _listed(place)
        page, contents = _make(sections)
        _check_room(place, listed, contents)
        _replace(place, listed, page, contents)
    except OSError as error:
        raise ValueError(
            f"The report cannot be written into {place} ({error.strerror}). Make room, or choose another folder with "
            f"--out."
        ) from None
    return place / PAGE


def _make(sections: Sequence[Section]) -> tuple[Page, dict[str, bytes]]:
    """The page, and the other files by name."""
    page, contents = Page([run for section in sections for run in section.runs]), dict[str, bytes]()
    for number, section in enumerate(sections):
        page.section(section)
        prefix = f"{number + 1}-" if len(sections) > 1 else ""
        for drawing in draw(section):
            stem = _stem(f"{prefix}{drawing.name}", drawing.method, contents)
            contents |= {f"{stem}.{form}": picture(drawing.figure, form) for form in FORMS}
            page.drawing(drawing, contents[f"{stem}.svg"].decode())
    words = [
        f"## {escape(s.title)}\n\n{markdown(s.runs)}\n\n{' '.join([caption(s.runs), *map(escape, s.notes)])}\n"
        for s in sections
    ]
    contents["table.md"] = "\n".join(words).encode()
    contents["table.tex"] = "\n".join(f"% {printable(s.title)}\n{latex(s.runs)}" for s in sections).encode()
    contents["results.csv"] = _csv(RESULTS, (row for section in sections for row in result_rows(section)))
    contents["summary.csv"] = _csv(*summary_rows(sections))
    if any(run.get("rounds") for section in sections for run in section.runs):
        contents["visits.csv"] = _csv(VISITS, (row for section in sections for row in visit_rows(section)))
    return page, contents


def result_rows(section: Section) -> Iterator[list[Any]]:
    """A row for each method, seed, task learned and task asked; accuracies are fractions, tasks counted from 1."""
    for run in section.runs:
        for row in tidy(run):
            yield [*_who(run), *(row[name] for name in RESULTS[5:])]


def visit_rows(section: Section) -> Iterator[list[Any]]:
    """Of runs with revisits, a row for each method, seed, visit and task asked."""
    for run in section.runs:
        if not run.get("rounds"):
            continue
        visited, rounds = run["schedule"]["task"], run["rounds"]
        for seed, accuracy, aware in zip(run["seeds"], rounds["accuracy"], rounds["task_il_accuracy"], strict=True):
            for visit, (row, told) in enumerate(zip(accuracy, aware, strict=True)):
                for task, (value, known) in enumerate(zip(row, told, strict=True)):
                    yield [*_who(run), seed, visit + 1, visited[visit] + 1, task + 1, value, known]


def summary_rows(sections: Sequence[Section]) -> tuple[list[str], list[list[Any]]]:
    """The columns, and a row for each method: means and 95% half-widths of each metric, fractions; empty: unknown."""
    names = ["data", "scenario", "tasks", "folder", "method", "seeds"]
    names += [f"{metric}_{part}" for metric in WORDS for part in ("mean", "ci95")]
    names += ["seconds", "flops", "bytes_per_task", "packed_bytes_per_task", "zero_forgetting"]
    rows = []
    for runs, run in ((section.runs, run) for section in sections for run in section.runs):
        values, row = summarise(run, runs), [*_who(run), len(run["seeds"])]
        for metric in WORDS:
            found = metrics.mean_and_interval(values[metric]) if metric in values else (np.nan, np.nan)
            row += [float(number) if np.isfinite(number) else None for number in found]
        row += [cost(run, name) for name in ("seconds", "flops", "bytes_per_task")]
        row += [run.get("packed_bytes_per_task"), run.get("zero_forgetting")]
        rows.append(row)
    return names, rows


def _who(run: dict[str, Any]) -> list[Any]:
    return [run["data"], run["scenario"], len(run["accuracy"][0]), run["folder"], label(run)]


def _csv(names: Sequence[str], rows: Iterable[list[Any]]) -> bytes:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        writer.writerow([spreadsheet(printable(cell)) if isinstance(cell, str) else cell for cell in row])
    return file.getvalue().encode()


def _place(results: Any, out: str | os.PathLike | None) -> pathlib.Path:
    """The folder to write to, made where it does not exist."""
    paths = results if isinstance(results, list | tuple) else [results]
    place = files.expand(out or "report")
    if out is None and len(paths) == 1 and isinstance(paths[0], str | os.PathLike):
        only = files.expand(paths[0])
        place = (only if os.path.isdir(only) else only.parent) / "report"
    try:
        place.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise ValueError(f"{place} is a file, not a folder. Choose another place with --out.") from None
    except OSError as error:
        raise ValueError(
            f"The folder {place} cannot be written ({error.strerror}). Choose another with --out."
        ) from None
    return place


def _listed(place: pathlib.Path) -> set[str]:
    """The names of the files, besides the page, of the report that a folder holds.

    Raises:
      ValueError: it holds something else.
    """
    names = {name for name in os.listdir(place) if not name.startswith(f".{PAGE}-")}  # drafts, where one was killed
    if not names:
        return set()
    if PAGE not in names:
        raise ValueError(f"The folder {place} holds something else than a report. Choose another with --out.")
    with files.open_regular(place / PAGE) as file:
        found = LIST.search(file.read(1 << 20))
    if not found:
        raise ValueError(
            f"{place / PAGE} does not list the files of a report: it is one of your own, or of an earlier version. "
            f"Choose another folder with --out, or move it away."
        )
    return {name for name in found[1].decode().split() if OWN.fullmatch(name)}


def _check_room(place: pathlib.Path, listed: set[str], contents: Iterable[str]) -> None:
    """Refuses where something that is not the report's stands in the way."""
    names = {name: name in listed for name in contents}
    paths = [place / name for name, known in names.items() if os.path.lexists(place / name) and not known]
    paths += [place / name for name in listed if os.path.lexists(place / name) and not _is_file(place / name)]
    plots = place / "plots"
    paths += [plots] if os.path.lexists(plots) and (plots.is_symlink() or not plots.is_dir()) else []
    if paths:
        raise ValueError(f"{paths[0]} is not of the report in {place}. Move it away, or choose another with --out.")


def _replace(place: pathlib.Path, listed: set[str], page: Page, contents: dict[str, bytes]) -> None:
    """Writes the page first, and again in the end: killed at any time, its list names all that is the report's."""
    files.remove_drafts(place / PAGE)
    files.write_text(place / PAGE, page.text(sorted(listed | contents.keys())))
    (place / "plots").mkdir(exist_ok=True)
    for name, content in contents.items():
        files.remove_drafts(place / name)
        files.write_bytes(place / name, content)
    for name in listed - contents.keys():
        (place / name).unlink(missing_ok=True)
    files.write_text(place / PAGE, page.text(sorted(contents)))


def _is_file(path: pathlib.Path) -> bool:
    return stat.S_ISREG(os.lstat(path).st_mode)


def picture(figure: Any, form: str) -> bytes:
    """A figure as a file; the same figure gives the same bytes."""
    from matplotlib import rc_context

    file, dated = io.BytesIO(), {"svg": "Date", "pdf": "CreationDate"}
    with rc_context({"svg.fonttype": "path", "svg.hashsalt": "cljax", "pdf.fonttype": 42}):
        undated = {dated[form]: None} if form in dated else None
        figure.savefig(file, format=form, metadata=undated, transparent=form == "svg")
    figure.set_layout_engine("none")  # it is laid out: that takes a fifth of a picture's time
    return file.getvalue()


def _stem(name: str, method: str, taken: Iterable[str]) -> str:
    """The name of a picture's files that no other has, in any case of its letters, without the ending."""
    stem = "-".join(part for part in (name, re.sub(r"[^A-Za-z0-9_.]+", "-", method).strip("-")) if part)[:100]
    names = (f"plots/{stem}{f'-{number}' if number else ''}" for number in range(10**6))
    known = {name.casefold().rpartition(".")[0] for name in taken}
    return next(name for name in names if name.casefold() not in known)
