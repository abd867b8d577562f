"""The report as one page of HTML that needs nothing else; its figures are inline, in colours of the reader's theme."""

from __future__ import annotations

import html
import importlib.resources
import re
from collections.abc import Mapping, Sequence
from typing import Any

from cljax.report import palette
from cljax.report.figures import Drawing
from cljax.report.sections import Section, label
from cljax.report.tables import Cell, caption, cells
from cljax.text import printable


class Page:
    """A page that grows: `section`, then its `drawing`s, and so on; `text` at the end."""

    def __init__(self, runs: Sequence[dict[str, Any]]) -> None:
        self._runs, self._parts, self._figures, self._group = runs, list[str](), 0, ""
        self._contents, self._links, self._sections = list[str](), dict[str, str](), 0

    def section(self, section: Section) -> None:
        """Begins a section: its title, what to know of it, its table."""
        self._close_group()
        notes = "".join(f'<p class="note">{escape(note)}</p>' for note in section.notes)
        number = self._sections = self._sections + 1
        links = [f"{place}-{number}" for place in range(len(section.runs))]
        self._links = {label(run): f"m{link}" for run, link in zip(section.runs, links, strict=True)}
        self._parts.append(
            f'<h2 id="s{number}">{escape(section.title)}</h2>{notes}{table(section, self._links)}'
            f'<h3 id="side{number}">Side by side</h3>'
        )
        entries = [f'<a href="#{link}">{escape(name)}</a>' for name, link in self._links.items()]
        self._contents.append(
            f'<li><a href="#s{number}">{escape(section.title)}</a>: <a href="#side{number}">side by side</a>; '
            f"{', '.join(entries)}</li>"
        )
        self._open_group("")

    def drawing(self, drawing: Drawing, svg: str) -> None:
        """Adds a figure, as SVG, under the heading of its method."""
        if drawing.method != self._group:
            self._close_group()
            link = self._links[drawing.method]
            self._parts.append(f'<h3 id="{link}">{escape(drawing.method)} <a class="up" href="#top">Contents</a></h3>')
            self._open_group(drawing.method)
        self._figures += 1
        inline = inline_svg(svg, drawing.words, f"f{self._figures}-")
        wide = ' class="wide"' if drawing.figure.get_figwidth() > 8 else ""
        short = len(drawing.words) <= 300  # else a screen reader has all of it
        words = drawing.words if short else f"{drawing.words.partition(': ')[0]}."
        self._parts.append(f"<figure{wide}>{inline}<figcaption>{escape(words)}</figcaption></figure>")

    def text(self, files: Sequence[str]) -> str:
        """The whole page; it lists the files beside it that belong to the report."""
        self._close_group()
        twins = palette.dark_twins()
        light = ";".join(f"--c{color[1:]}:{color}" for color in twins)
        dark = ";".join(f"--c{color[1:]}:{twin}" for color, twin in twins.items())
        methods = list(dict.fromkeys(run["method"] for run in self._runs))
        words = escape(", ".join(methods) if len(methods) <= 5 else f"{len(methods)} methods")
        folder = importlib.resources.files("cljax.report")
        style, script = (folder.joinpath(f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
        return (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            '<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
            f'<meta name="cljax-report" content="{" ".join(files)}">\n'
            f"<title>Continual learning: {words}</title>\n<style>\n:root{{{light}}}\n"
            f"@media (prefers-color-scheme: dark){{:root{{{dark}}}}}\n{style}</style>\n</head>\n<body>\n<main>\n"
            f'<h1 id="top">Continual learning: {words}</h1>\n'
            "<p>Accuracies are on test examples, in percent; tasks are counted from 1; intervals are 95% over seeds, "
            "by Student's t. The numbers are in results.csv and summary.csv, the table in table.md and table.tex, the "
            "figures in plots as PNG, SVG and PDF, all beside this page.</p>\n"
            f'<nav aria-label="Contents"><ul>{"".join(self._contents)}'
            '<li><a href="#configuration">Configuration</a></li></ul></nav>\n'
            f"{''.join(self._parts)}"
            f'<h2 id="configuration">Configuration</h2>{configurations(self._runs)}</main>\n'
            f"<script>\n{script}</script>\n</body>\n</html>\n"
        )

    def _open_group(self, name: str) -> None:
        self._group = name
        self._parts.append('<div class="figures">')

    def _close_group(self) -> None:
        if self._parts and self._parts[-1] != "</div>":
            self._parts.append("</div>")


def escape(text: str) -> str:
    """Text that HTML shows as it is, in an attribute too."""
    return html.escape(printable(text))


def table(section: Section, links: Mapping[str, str]) -> str:
    """The section's table, sortable by the buttons in its head, by the cells' `data-key`; its names are links."""
    names, rows = cells(section.runs)
    names.append("old logits")
    for row, run in zip(rows, section.runs, strict=True):
        kept = {True: Cell("kept to the bit", 0.0), False: Cell("changed", 1.0)}
        row.append(kept.get(run.get("zero_forgetting", ""), Cell("-", None)))
    head = "".join(f'<th scope="col"><button type="button">{escape(name)}</button></th>' for name in names)
    body = "".join(f"<tr>{_cell(name, links[name.text])}{''.join(map(_cell, others))}</tr>" for name, *others in rows)
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="Table of {escape(section.title)}">'
        f'<table class="sortable"><caption><span>{escape(caption(section.runs))} Press a heading to sort.</span>'
        "</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def configurations(runs: Sequence[dict[str, Any]]) -> str:
    """For each folder: the configuration, the network, versions and machine, and parameters set by hand."""
    parts = []
    for folder in dict.fromkeys(run.get("folder", "") for run in runs):
        mine = [run for run in runs if run.get("folder", "") == folder]
        groups = {name: mine[0].get(name) or {} for name in ("config", "network", "versions", "device")}
        groups["parameters"] = {label(run): run["parameters"] for run in mine if run.get("parameters")}
        lines = "".join(
            f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>'
            for group, values in groups.items()
            for name, value in flatten(values, "" if group == "config" else group)
        )
        parts.append(f"<details><summary>{escape(folder or 'Python')}</summary><table>{lines}</table></details>")
    return "".join(parts)


def flatten(values: Any, path: str = "") -> list[tuple[str, str]]:
    """Nested dicts as lines: the path of each value, and the value.

    Example:
      >>> flatten({'training': {'learning_rate': 0.1, 'hidden': [8, 8]}})
      [('training.learning_rate', '0.1'), ('training.hidden', '8 8')]
    """
    if isinstance(values, dict):
        return [line for key, value in values.items() for line in flatten(value, f"{path}.{key}" if path else key)]
    return [(path, " ".join(map(str, values)) if isinstance(values, list) else str(values))]


def inline_svg(text: str, words: str, prefix: str) -> str:
    """An SVG file of Matplotlib's as an element for the inside of a page.

    Args:
      text: the file.
      words: what it shows, for those who cannot see it.
      prefix: of all its ids, so that figures of a page have none in common.

    Returns:
      An `svg` element with colours by the page's variables, no metadata, no reference to anything outside.
    """
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text)
    text = re.sub(r'<g id="[a-zA-Z]\w*_\d+">', "<g>", text)
    text = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{prefix}", text)
    for color in palette.dark_twins():
        text = text.replace(color, f"var(--c{color[1:]})")
    return text.replace("<svg", f'<svg role="img" aria-label="{escape(words)}"', 1).strip()


def _cell(cell: Cell, link: str = "") -> str:
    key = "" if cell.value is None else escape(str(cell.value))
    tone = {0: "", 1: ' class="better"', -1: ' class="worse"'}[cell.tone]
    tag, words = ('th scope="row"', f'<a href="#{link}">{escape(cell.text)}</a>') if link else ("td", escape(cell.text))
    return f'<{tag} data-key="{key}"{tone}>{words}</{tag[:2]}>'
