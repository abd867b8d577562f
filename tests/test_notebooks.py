"""Notebooks are committed as they are read: without outputs, ready for Colab. `.ci/run` executes them."""

import ast
import json
import pathlib

import pytest

NOTEBOOKS = sorted((pathlib.Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
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


def test_there_are_twelve():
    assert [int(path.stem[:2]) for path in NOTEBOOKS] == list(range(1, 13))
