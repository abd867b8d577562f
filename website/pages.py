"""Pages that are made of the package: a method each, a module each, notebooks, and files that lie elsewhere."""

from __future__ import annotations

import importlib
import inspect
import json
import pathlib
import re
from collections.abc import Callable
from typing import Any

from cljax import methods
from cljax.cli.parameters import described
from website import public

ROOT = pathlib.Path(__file__).parents[1]
SOURCES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "experiments/README.md": "experiments.md",
    "experiments/claims.md": "claims.md",
}
"""Files of the repository that are pages of the site."""
FILES = {"CITATION.cff": "CITATION.cff"} | {
    path.relative_to(ROOT).as_posix(): f"results/{path.name}" for path in (ROOT / "experiments/results").glob("*.png")
}
"""Files that the site has as they are."""
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def place_of(path: str) -> str | None:
    """Where a file or a folder of the repository is on the site; None: nowhere."""
    if path in SOURCES | FILES:
        return (SOURCES | FILES)[path]
    if path == "notebooks":
        return "notebooks/index.md"
    if path.startswith("notebooks/"):
        return str(pathlib.PurePosixPath(path).with_suffix(".md"))
    if path.startswith("docs/"):
        inside = path.removeprefix("docs/")
        return inside if pathlib.PurePosixPath(inside).suffix else f"{inside}/index.md"
    return None


def generated() -> dict[str, str]:
    """`{place on the site: Markdown}`."""
    return {
        **{place: (ROOT / path).read_text() for path, place in SOURCES.items()},
        "methods/index.md": all_methods(),
        **{f"methods/{name}.md": method(name) for name in methods.__all__},
        "api/index.md": all_modules(),
        **{f"api/{name}.md": module(name) for name in public.modules()},
        "decisions/index.md": decisions(),
        "notebooks/index.md": notebooks(),
        **{f"notebooks/{path.stem}.md": notebook(path) for path in NOTEBOOKS},
    }


def navigation() -> dict[str, list[str]]:
    """What is added to the parts of `mkdocs.yml`'s navigation."""
    return {
        "Methods": [f"methods/{name}.md" for name in methods.__all__],
        "Reference": ["api/index.md", *(f"api/{name}.md" for name in public.modules() if name != "cljax.metrics")],
        "Notebooks": [f"notebooks/{path.stem}.md" for path in NOTEBOOKS],
        "Design": [f"decisions/{path.name}" for path in sorted((ROOT / "docs/decisions").glob("*.md"))],
    }


def first_line(value: Any) -> str:
    """The first paragraph of a docstring, in one line."""
    return " ".join(as_markdown(inspect.getdoc(value) or "").partition("\n\n")[0].split())


def all_methods() -> str:
    """The table of methods."""
    rows = "\n".join(
        f"| [`{name}`]({name}.md) | {_cell(first_line(getattr(methods, name)))} |" for name in methods.__all__
    )
    return f"""# The methods

| name | what it does |
|---|---|
{rows}

A method is a function of a network: `methods.lwf(network, strength=2.0)`, or `cljax run lwf --set strength=2`. Methods
add up: `lwf+ewc` on the command, [`methods.combine`][cljax.methods.combine] in Python, with the terms
{", ".join(f"`{name}`" for name in methods.TERMS)}.

Which works with which network and in which scenario: [what fits](../methods_and_networks.md).
"""


def method(name: str) -> str:
    """The page of a method: its docstring, its options, the networks that it takes."""
    make = getattr(methods, name)
    found = options(make)
    rows = "\n".join(f"| `{option}` | {kind} | {span} | `{default}` |" for option, kind, span, default in found)
    table = f"| option | type | range | default |\n|---|---|---|---|\n{rows}" if found else "It has none."
    page = (ROOT / "docs/methods_and_networks.md").read_text()
    head = next(line for line in page.splitlines() if line.startswith("| | mlp")).split("|")[2:-1]
    row = next(line for line in page.splitlines() if line.startswith(f"| `{name}` ")).split("|")[2:-1]
    fits = "\n".join(
        f"| {network.strip()} | {_why(said.strip(), page)} |" for network, said in zip(head, row, strict=True)
    )
    return f"""---
title: {name}
---

{_documented(public.Name("cljax.methods", name, make), level=1)}

## Options

{table}

On the command: `cljax run {name} --set NAME=VALUE`.

## Networks

| network | taken |
|---|---|
{fits}
"""


def _documented(one: public.Name, *others: public.Name, level: int = 2) -> str:
    """What mkdocstrings shows of a name, by where it is defined: a submodule may have the name of a function in it."""
    path = f"{one.value.__module__}.{one.value.__name__}" if public.is_ours(one) else one.path
    anchors = "".join(f"[](){{#{name.path}}}\n\n" for name in (one, *others) if name.path != path)
    return f"{anchors}::: {path}\n    options:\n      heading_level: {level}\n"


def _why(said: str, page: str) -> str:
    """'yes', or 'no' and the reason that the page gives."""
    number = re.search(r"\d+", said)
    reason = number and re.search(rf"^{number[0]}\. (.*)$", page, re.MULTILINE)
    return f"no: {_cell(reason[1])}" if reason else said


def options(make: Callable[..., Any]) -> list[tuple[str, str, str, str]]:
    """Name, type, range and default of a method's options."""
    taken = inspect.signature(make).parameters
    cells = lambda *texts: tuple(map(_cell, texts))
    return [
        cells(one.name, _kind(taken[one.name].annotation), one.span, repr(taken[one.name].default))
        for one in described(make)
    ]


def _kind(annotation: str) -> str:
    """A type in words of Python; a `Literal` of the module's own is a word."""
    known = {"float", "int", "bool", "None", "Sequence", "Mapping", "tuple", "str", "Literal"}
    shown = re.sub(r"[A-Z]\w+", lambda word: word[0] if word[0] in known else "str", annotation)
    return f"<code>{shown}</code>"


def all_modules() -> str:
    """The table of public modules."""
    docs = {name: first_line(importlib.import_module(name)) for name in public.modules()}
    rows = "\n".join(f"| [`{name}`]({name}.md) | {_cell(text)} |" for name, text in docs.items())
    return f"# Reference\n\nWhat the package exports, module by module.\n\n| module | what |\n|---|---|\n{rows}\n"


def module(name: str) -> str:
    """The page of a module: what it is for, and every public name of it."""
    own = [one for one in public.names() if one.module == name]
    elsewhere = set(methods.__all__) if name == "cljax.methods" else set()
    rows, parts = [], []
    for one in own:
        link = f"../methods/{one.name}.md" if one.name in elsewhere else f"#{one.path}"
        rows.append(f"| [`{one.name}`]({link}) | {_cell(first_line(one.value)) if public.is_ours(one) else ''} |")
        same = [other for other in own if other.value is one.value]  # an old name is beside the present one
        if one.name not in elsewhere and same[0] is one:
            parts.append(_documented(*same))
    listed = "\n".join(rows)
    blocks = "\n".join(parts)
    about = as_markdown(inspect.getdoc(importlib.import_module(name)) or "")
    table = f"| name | what |\n|---|---|\n{listed}\n" if rows else ""
    return f"# {name}\n\n{about}\n\n{table}\n{blocks}"


def decisions() -> str:
    """The list of decisions."""
    found = sorted((ROOT / "docs/decisions").glob("*.md"))
    return "# Decisions\n\n" + "\n".join(f"- [{_title(path.read_text())}]({path.name})" for path in found) + "\n"


def notebooks() -> str:
    """The list of notebooks."""
    return "# Notebooks\n\n" + "\n".join(f"- [{_title(notebook(path))}]({path.stem}.md)" for path in NOTEBOOKS) + "\n"


def notebook(path: pathlib.Path) -> str:
    """A notebook as Markdown, without its first cell, which is for Colab, and without outputs."""
    parts = []
    for cell in json.loads(path.read_text())["cells"][1:]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    return "\n\n".join(parts) + "\n"


def _title(text: str) -> str:
    return next(line.lstrip("# ") for line in text.splitlines() if line.startswith("# "))


def _cell(text: str) -> str:
    return text.replace("|", "&#124;")


def as_markdown(text: str) -> str:
    r"""A docstring in the form that the site renders.

    Example:
      >>> as_markdown("One line.\n\n.. math:: x\n\nOf :math:`y`.")
      'One line.\n\n$$\nx\n$$\n\nOf $y$.'
    """
    text = re.sub(r"^( *)(Example|For example):$", r"\1Examples:", text, flags=re.MULTILINE)
    text = re.sub(r":math:`([^`]*)`", r"$\1$", text)
    text = re.sub(r"^( *)\.\. math::(.*(?:\n\1 +\S.*)*)", r"\1$$\2$$", text, flags=re.MULTILINE)
    return re.sub(r"^( *)\$\$(.*?)\$\$", _formula, text, flags=re.MULTILINE | re.DOTALL)


def _formula(found: re.Match[str]) -> str:
    """A formula in a paragraph of its own."""
    lines = [line.strip() for line in found[2].strip().splitlines()]
    return "\n" + "\n".join(found[1] + line for line in ["$$", *lines, "$$"]) + "\n"
