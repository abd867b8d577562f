"""The README's Python runs and says what is true; the modules it names exist."""

import pathlib
import pkgutil
import re

import jax.numpy as jnp
import numpy as np
import pytest

import cljax
from cljax import methods

ROOT = pathlib.Path(__file__).parents[1]
pytestmark = pytest.mark.usefixtures("private_cache")
NOTEBOOKS = (ROOT / "notebooks").glob("*.ipynb")


def blocks(page="README.md"):
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


def run(page, names, code):
    exec(compile(code, page, "exec"), names)


def test_python_of_the_readme_and_the_quick_start(capsys):
    names: dict = {}
    first, trained = blocks()
    run("README.md", names, first)
    result = names["result"]
    assert result.evaluation.accuracy.shape == (5, 5)
    assert names["run"].step.traces == 1
    assert float(jnp.mean(result.evaluation.accuracy[-1])) > 0.9
    same, careful, shown = blocks("docs/quick_start.md")
    assert same == first
    run("docs/quick_start.md", names, careful)
    seeds = names["seeds"]
    assert seeds.evaluation.accuracy.shape == (3, 5, 5)
    assert float(jnp.mean(seeds.evaluation.accuracy[:, -1])) > 0.9
    np.testing.assert_array_equal(seeds.learner.hyper["slowdown"], np.full(3, 0.1, np.float32))
    assert capsys.readouterr().out.count("\n") >= 7
    run("docs/quick_start.md", names, shown)
    assert "| careful | " in capsys.readouterr().out
    assert [trained] == blocks("docs/guides/trained_network.md")


@pytest.mark.parametrize("page", sorted(path.name for path in (ROOT / "docs/guides").glob("*.md")))
def test_python_of_the_guides(page):
    """They assert themselves what they say."""
    names: dict = {}
    for code in blocks(f"docs/guides/{page}"):
        run(page, names, code)


def test_the_readme_is_short_and_names_all_notebooks():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) < 150
    assert set(re.findall(r"\((notebooks/\w+\.ipynb)\)", text)) == {f"notebooks/{path.name}" for path in NOTEBOOKS}


def test_the_skeletons_of_a_new_method_run_and_learn(capsys):
    names: dict = {}
    term, view = blocks("docs/new_method.md")
    run("docs/new_method.md", names, term)
    assert "finetune+stay" in capsys.readouterr().out
    assert names["method"].stacked == ()
    assert float(jnp.mean(names["result"].evaluation.accuracy[-1])) > 0.6
    run("docs/new_method.md", names, view)
    result = names["result"]
    assert names["run"].step.traces == 1
    assert float(result.evaluation.accuracy[-1, -1]) > 0.8


def test_pages_name_what_there_is():
    """Links of the pages lead to files; modules and functions in backticks exist."""
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]:
        text = page.read_text()
        for link in re.findall(r"\]\(([^)#]+)\)", text):
            assert link.startswith("http") or (page.parent / link).exists(), (page.name, link)
        for module, name in re.findall(r"`(methods|training|networks|losses|masks|task_params)\.(\w+)`", text):
            assert hasattr(getattr(cljax, module), name), (page.name, module, name)


def test_methods_of_the_readme():
    table = (ROOT / "README.md").read_text().split("## Methods")[1].split("##")[0]
    assert set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE)) == set(methods.__all__)


def test_submodules_are_reached_lazily():
    found = {module.name for module in pkgutil.iter_modules(cljax.__path__)} - {"cli", "__main__"}
    assert set(cljax.__all__) == found
    for name in cljax.__all__:
        assert getattr(cljax, name).__name__ == f"cljax.{name}"
    assert {*cljax.__all__, "__version__"} == set(dir(cljax))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = cljax.nothing


def test_version_is_that_of_the_package():
    for path, line in {"pyproject.toml": r'^version = "(.*)"', "CITATION.cff": r"^version: (.*)"}.items():
        assert re.search(line, (ROOT / path).read_text(), re.MULTILINE).group(1) == cljax.__version__, path
