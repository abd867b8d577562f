"""What mkdocstrings calls: docstrings in the form that the site renders."""

from __future__ import annotations

from typing import Any

import griffe

from website import pages


class Docstrings(griffe.Extension):
    """An extension of its reader."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrites a docstring before it is parsed."""
        if obj.docstring is not None:
            obj.docstring.value = pages.as_markdown(obj.docstring.value)
