"""Functions of one's own, by a reference `module:function`."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable
from typing import Any

from cljax.numbers import show


def is_reference(name: str) -> bool:
    """Whether a name is one of a function in a module.

    Example:
      >>> from cljax.references import is_reference
      >>> is_reference('my_project.methods:careful'), is_reference('finetune')
      (True, False)
    """
    return ":" in name


def load(reference: str) -> Callable[..., Any]:
    """Imports a module and takes a function out of it; the working directory counts as installed.

    Args:
      reference: `'module:function'`, the module as Python imports it.

    Returns:
      The function.

    Raises:
      ValueError: there is no such module or function, or the module cannot be imported.

    Example:
      >>> from cljax.references import load
      >>> load('math:hypot')(3.0, 4.0)
      5.0
      >>> load('math:hypo')
      Traceback (most recent call last):
      ...
      ValueError: The module 'math' has no function 'hypo'.
    """
    module, _, name = reference.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), name)):
        raise ValueError(
            f"{show(reference)} is no reference module:function. Name the module as Python imports it, with dots and "
            "without .py, and a function in it: my_project.methods:careful."
        )
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)  # last, so that no file that happens to lie there takes the place of an installed module
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise ValueError(
                f"{module!r} cannot be imported: it needs {error.name!r}, which is not installed."
            ) from error
        raise ValueError(
            f"There is no module {error.name!r} for {reference!r}, neither installed nor in {here}. Give the command "
            "in the folder that has it, or install it."
        ) from error
    except (ImportError, SyntaxError) as error:
        raise ValueError(f"{module!r} cannot be imported: {error}.") from error
    function = getattr(found, name, None)
    if not callable(function):
        own = [key for key, value in vars(found).items() if getattr(value, "__module__", None) == module]
        known = [key for key in own if inspect.isfunction(getattr(found, key)) and not key.startswith("_")]
        there = f" There are: {', '.join(known)}." if known else ""
        raise ValueError(f"The module {module!r} has no function {name!r}.{there}")
    return function


def call(reference: str, *arguments: Any, returns: type, cure: str, **options: Any) -> Any:
    """Calls such a function, and checks what it takes and returns.

    Args:
      reference: `'module:function'`.
      *arguments: given by position.
      returns: the type that it must return.
      cure: what to write, where it takes or returns something else.
      **options: given by name.

    Raises:
      ValueError: it does not take these arguments, or returns something else.

    Example:
      >>> from cljax.references import call
      >>> call('math:hypot', 3.0, 4.0, returns=float, cure='Return the length.')
      5.0
    """
    function = load(reference)
    try:
        inspect.signature(function).bind(*arguments, **options)
    except TypeError as error:
        raise ValueError(f"{reference!r} cannot be called: {error}. {cure}") from error
    except ValueError:
        pass  # a function that tells no signature
    result = function(*arguments, **options)
    if not isinstance(result, returns):
        kind = f"{type(result).__module__}.{type(result).__qualname__}"
        raise ValueError(f"{reference!r} returns {kind}, but must return {returns.__qualname__}. {cure}")
    return result
