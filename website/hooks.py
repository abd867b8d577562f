"""What MkDocs calls: pages that are made of the package, links as on disk, formulas as MathML, and a last check."""

from __future__ import annotations

import html
import os
import pathlib
import posixpath
import re
import sys
from typing import Any

import latex2mathml.converter
from mkdocs.structure.files import File, Files

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))  # for `mkdocs`, which is no `python -m`
from website import pages, public

PUBLIC = {name.path for name in public.names()}


def on_config(config: Any) -> Any:
    """Adds the generated pages to the navigation."""
    more = pages.navigation()
    for part in config.nav:
        for title in part.keys() & more.keys():
            part[title] = [*part[title], *more[title]]
    return config


def on_files(files: Files, *, config: Any) -> Files:
    """Adds the pages, and the files that they show, that are no files of `docs/`."""
    for place, text in pages.generated().items():
        files.append(File.generated(config, place, content=text))
    for path, place in pages.FILES.items():
        files.append(File.generated(config, place, abs_src_path=str(pages.ROOT / path)))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Links that hold in the repository lead to the same thing on the site."""
    here = page.file.src_uri
    markdown = re.sub(r"(\]\()([^)#:\s]+)", lambda found: found[1] + _place(found[2], here), markdown)
    return re.sub(r"^(?!#|    |```).*$", _linked, markdown, flags=re.MULTILINE)


def _linked(line: re.Match[str]) -> str:
    """Public names in a line of text lead to where they are documented: `losses.distillation`."""
    name = r"(?<!\[)`(?:cljax\.)?((?:\w+\.)+\w+)`(?!\])"
    known = lambda found: f"[{found[0]}][cljax.{found[1]}]" if f"cljax.{found[1]}" in PUBLIC else found[0]
    return re.sub(name, known, line[0])


def _place(link: str, page: str) -> str:
    source = next((path for path, place in pages.SOURCES.items() if place == page), f"docs/{page}")
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), link))
    place = pages.place_of(path)
    return link if place is None else posixpath.relpath(place, posixpath.dirname(page) or ".")


def on_page_content(content: str, **_: Any) -> str:
    """Formulas as MathML, which browsers know by themselves."""
    found = r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>'
    return re.sub(found, lambda one: _formula(one[3], "block" if one[2] == "[" else "inline"), content, flags=re.DOTALL)


def _formula(latex: str, display: Any) -> str:
    if display == "block" and r"\qquad" in latex and r"\begin" not in latex:
        return "".join(_formula(part, display) for part in latex.split(r"\qquad"))  # a line each: pages are narrow
    latex = re.sub(r"\\(log|exp) (?=[a-z\\])", r"\\\1\\, ", html.unescape(latex).strip())
    latex = re.sub(r"\\[bB]igg?[lr]?\\\|", r"\\|", latex.replace(r"\arg", r"\mathrm{arg}\,"))
    made = latex2mathml.converter.convert(latex, display=display)
    if "\\" in made:
        raise ValueError(f"MathML has no word for something in the formula {latex}")
    return f'<div class="formula">{made}</div>' if display == "block" else made


def on_post_build(*, config: Any) -> None:
    """Every public name is on a page."""
    built = pathlib.Path(config.site_dir)
    anchors = {
        anchor
        for page in built.rglob("*.html")
        for anchor in re.findall(r'id="(cljax\.[\w.]+)"', page.read_text(encoding="utf-8"))
    }
    absent = [name.path for name in public.names() if name.path not in anchors]
    if absent:
        raise SystemExit(f"Not on the site: {', '.join(absent)}.")
    print(f"{len(anchors)} names on the site: {os.path.join(built, 'index.html')}")
