"""Notebooks are committed as they are read: without outputs, ready for Colab. `.ci/run` executes them."""

import ast
import json
import pathlib
import re

import pytest

import cljax
from cljax import ownership

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MAGIC = "    %pip install --quiet cljax\n"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_clean_and_opens_in_colab(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [(cell["outputs"], cell["execution_count"]) for cell in code] == [([], None)] * len(code)
    first, title, *_ = ("".join(cell["source"]) for cell in notebook["cells"])
    assert 'if "google.colab" in sys.modules and importlib.util.find_spec("cljax") is None:' in first
    assert (first + "\n").endswith(MAGIC)
    assert title.startswith("# ")
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    text = "\n".join("".join(cell["source"]) for cell in code[1:])
    names = {node.attr for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Attribute)}
    assert [name for name in names if name.startswith("_") and name not in ("_replace", "__name__", "__init__")] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_its_text_names_what_there_is(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    modules = {name: getattr(cljax, name) for name in cljax.__all__} | {"masks": ownership.masks}
    named = re.findall(r"`(\w+)\.(?!html`)(\w+)", text)
    assert [(one, name) for one, name in named if one in modules and not hasattr(modules[one], name)] == []
    others = [name for name in re.findall(r"`(\d\d_\w+)`", text) if not (path.parent / f"{name}.ipynb").exists()]
    pages = [page for page in re.findall(r"`(\w+/[\w/]+\.(?:md|py))`", text) if not (ROOT / page).exists()]
    assert others + pages == []


def test_there_are_twelve():
    assert [int(path.stem[:2]) for path in NOTEBOOKS] == list(range(1, 13))
