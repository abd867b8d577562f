"""The site has every public name; what MkDocs makes of these pages is checked by `mkdocs build --strict`."""

import re

import pytest

from cljax import methods
from website import pages, public


@pytest.fixture(scope="module")
def site():
    return pages.generated()


def test_every_public_name_is_on_the_site(site):
    shown = {
        path for text in site.values() for path in re.findall(r"^(?:::: |\[\]\(\)\{#)([\w.]+)", text, re.MULTILINE)
    }
    assert [name.path for name in public.names() if name.path not in shown] == []
    listed = {place for places in pages.navigation().values() for place in places}
    assert {place for place in site if place.startswith(("methods/", "api/"))} - listed == {
        "methods/index.md",
        "api/cljax.metrics.md",
    }
    assert all(f"[`{name}`]({name}.md)" in site["methods/index.md"] for name in methods.__all__)


def test_examples_can_be_pasted_alone():
    """Of all that runs, each docstring has an example; it imports whatever it uses."""
    names = [name for name in public.names() if public.needs_example(name)]
    found = {name.path: public.example(name) for name in names}
    assert [path for path, code in found.items() if not code] == []
    assert {path: missing for path, code in found.items() if (missing := public.missing(code))} == {}


def test_options_have_the_type_the_range_and_the_default_that_the_method_says():
    assert pages.options(methods.packnet) == [
        ("prune", "<code>float &#124; Sequence[float]</code>", "at least 0 and at most 1", "(0.5, 0.75)"),
        ("retrain", "<code>float</code>", "at least 0 and below 1", "0.3333333333333333"),
        ("retrain_factor", "<code>float</code>", "at least 0", "0.1"),
    ]
    assert pages.options(methods.imm)[0] == ("merge", "<code>str</code>", "one of mode, mean", "'mode'")
    assert pages.options(methods.replay)[0][2] == "a whole number at least 0"
    assert [one[2] for one in pages.options(methods.df_cnn) if one[0] == "kind"] == ["one of df, direct, tc2"]
    assert not [(name, one) for name in methods.__all__ for one in pages.options(getattr(methods, name)) if not one[2]]


def test_docstrings_become_markdown():
    text = "One line.\n\n.. math::\n    x\n    + y\n\nOf :math:`y`.\n\n$$ a\nb $$\nwith a.\n\nExample:\n  >>> 1"
    assert pages.as_markdown(text) == (
        "One line.\n\n\n$$\nx\n+ y\n$$\n\n\nOf $y$.\n\n\n$$\na\nb\n$$\n\nwith a.\n\nExamples:\n  >>> 1"
    )


def test_what_code_lacks():
    code = "from a import b as c\nfor x in c(y): print([z for z in x], lambda w: w)\ndef f(v, *u): return v, u, t"
    assert public.missing(code) == ["y", "t"]
