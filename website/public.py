"""What is public: the names that `cljax`'s modules export, and what their examples need. Light: nothing is compiled."""

from __future__ import annotations

import ast
import builtins
import doctest
import importlib
import inspect
import re
import types
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import cljax


class Name(NamedTuple):
    """A public name.

    Attributes:
      module: where users import it from, such as `'cljax.losses'`.
      name: such as `'cross_entropy'`.
      value: what it is.
    """

    module: str
    name: str
    value: Any

    @property
    def path(self) -> str:
        """`cljax.losses.cross_entropy`."""
        return f"{self.module}.{self.name}"


def modules() -> list[str]:
    """The public modules and those that they export; in place of an old name, what it names."""
    found = []
    for name in cljax.__all__:
        module = importlib.import_module(f"cljax.{name}")
        old = re.match(r"The old name of `([\w.]+)`", module.__doc__ or "")
        found.append(importlib.import_module(old[1]) if old else module)
        found += [value for value in vars(module).values() if _is_exported_module(module, value)]
    return sorted({module.__name__ for module in found})


def _is_exported_module(module: types.ModuleType, value: Any) -> bool:
    is_inside = isinstance(value, types.ModuleType) and value.__name__.startswith(f"{module.__name__}.")
    return is_inside and value.__name__.rpartition(".")[2] in exported(module)


def exported(module: types.ModuleType) -> list[str]:
    """Public names of a module: `__all__`, what it defines, and what it imports `as` the same name."""
    found = list(getattr(module, "__all__", ()))
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, ast.ImportFrom):
            found += [one.name for one in node.names if one.asname == one.name]
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.append(node.name)
    return [name for name in dict.fromkeys(found) if not name.startswith("_")]


def names() -> Iterator[Name]:
    """All public names, module by module; a module that is exported is none."""
    for module in map(importlib.import_module, modules()):
        for name in exported(module):
            value = getattr(module, name)
            if not isinstance(value, types.ModuleType):
                yield Name(module.__name__, name, value)


def is_ours(name: Name) -> bool:
    """Whether it is a function or a class of this package, and no constant or alias, which have no docstring."""
    return inspect.isroutine(name.value) or getattr(name.value, "__module__", "").startswith("cljax.")


def needs_example(name: Name) -> bool:
    """Whether it is something that runs: a protocol only says what a function looks like."""
    return is_ours(name) and Protocol not in getattr(name.value, "__mro__", ())


def example(name: Name) -> str:
    """The code of a docstring's examples."""
    parsed = doctest.DocTestParser().get_examples(inspect.getdoc(name.value) or "")
    return "".join(part.source for part in parsed)


def missing(code: str) -> list[str]:
    """Names that code reads, but neither imports nor defines: it cannot be pasted alone.

    Example:
      >>> missing("x = jnp.ones(3)")
      ['jnp']
    """
    tree = ast.parse(code)
    known, used = set(vars(builtins)), []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            known |= {(one.asname or one.name).partition(".")[0] for one in node.names}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            known.add(node.name)
        elif isinstance(node, ast.arg):
            known.add(node.arg)
        elif isinstance(node, ast.ExceptHandler) and node.name:
            known.add(node.name)
        elif isinstance(node, ast.Name):
            if isinstance(node.ctx, ast.Load):
                used.append(node.id)
            else:
                known.add(node.id)
    return [name for name in dict.fromkeys(used) if name not in known]
