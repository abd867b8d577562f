"""One place that checks numbers, words, kinds: of streams, settings, methods, primitives, the command. Light."""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Sequence
from typing import Any, TypeGuard, get_args

INT32 = 2**31 - 1
FLOAT32 = 3.4028234663852886e38
TINY = 1.1754943508222875e-38
"""Float32's least normal number: devices take what is smaller for 0."""


def whole(name: str, value: Any, *, least: int = 0, most: int = INT32) -> int:
    """A whole number within bounds, as a Python int.

    Args:
      name: how the error calls it, such as `'tasks'` or `'--tasks'`.
      value: a Python or NumPy integer, or an array of one. Neither a float (2.0 included), nor a bool, nor text.
      least, most: the bounds, both allowed.

    Raises:
      ValueError: it is not a whole number, or out of bounds.

    Example:
      >>> from cljax.numbers import whole
      >>> whole('tasks', 5)
      5
      >>> whole('tasks', 2.0, least=1)
      Traceback (most recent call last):
      ...
      ValueError: tasks is 2.0, but must be a whole number from 1 to 2147483647.
    """
    try:
        number = None if _is_bool(value) else operator.index(value)
    except TypeError:
        number = None
    if number is None or not least <= number <= most:
        raise ValueError(f"{name} is {show(value)}, but must be a whole number from {least} to {most}.")
    return number


def real(
    name: str,
    value: Any,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
) -> Any:
    """A finite number that float32 can hold, within bounds, as a Python float; a traced one is returned as it is.

    Args:
      name: how the error calls it.
      value: a Python or NumPy number, or an array of one. Neither a bool nor text.
      least, above: the lower bound, allowed or not; at most one of them.
      most, below: the upper bound, allowed or not; at most one of them.

    Raises:
      ValueError: it is not a finite number, out of bounds, or so small that float32 takes it for 0.

    Example:
      >>> from cljax.numbers import real
      >>> real('temperature', 2, above=0)
      2.0
      >>> real('temperature', float('nan'), above=0)
      Traceback (most recent call last):
      ...
      ValueError: temperature is nan, but must be a finite number above 0.
    """
    jax = sys.modules.get("jax")
    if jax is not None and isinstance(value, jax.core.Tracer):
        return value
    try:
        number = math.nan if isinstance(value, str | bytes) or _is_bool(value) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if 0 < abs(number) < TINY:
        raise ValueError(f"{name} is {show(value)}, which float32 cannot tell from 0: its least number is {TINY:.2g}.")
    holds = (
        abs(number) <= FLOAT32
        and (least is None or number >= least)
        and (above is None or number > above)
        and (most is None or number <= most)
        and (below is None or number < below)
    )
    if not holds:
        words = ((least, "of at least"), (above, "above"), (most, "of at most"), (below, "below"))
        bounds = " and ".join(f"{word} {bound:g}" for bound, word in words if bound is not None)
        raise ValueError(f"{name} is {show(value)}, but must be a finite number{' ' if bounds else ''}{bounds}.")
    return number


def check_option(name: str, value: Any, kind: Any) -> None:
    """Checks that a word is one of a `Literal`'s.

    Raises:
      ValueError: naming the words there are.

    Example:
      >>> from typing import Literal
      >>> from cljax.numbers import check_option
      >>> check_option("distance", "l3", Literal["l1", "l2"])
      Traceback (most recent call last):
      ...
      ValueError: distance is 'l3', but must be one of l1, l2.
    """
    if not isinstance(value, str) or value not in get_args(kind):
        raise ValueError(f"{name} is {show(value)}, but must be one of {', '.join(get_args(kind))}.")


def flag(name: str, value: Any) -> bool:
    """A yes or no, as a Python bool: `'false'` and NaN, which Python takes for true, are none.

    Args:
      name: how the error calls it.
      value: True or False, NumPy's too.

    Raises:
      ValueError: it is neither.

    Example:
      >>> from cljax.numbers import flag
      >>> flag("binarize", "false")
      Traceback (most recent call last):
      ...
      ValueError: binarize is 'false', but must be True or False.
    """
    if not _is_bool(value) or getattr(value, "ndim", None):
        raise ValueError(f"{name} is {show(value)}, but must be True or False.")
    return bool(value)


def is_list(value: Any) -> TypeGuard[Sequence[Any]]:
    """Whether a value is a list, a tuple, a range or an array of one axis.

    Example:
      >>> import numpy as np
      >>> from cljax.numbers import is_list
      >>> [is_list(value) for value in ((0.5, 1), np.ones(2), np.array(0.5), 0.5, "ab")]
      [True, True, False, False, False]
    """
    return isinstance(value, list | tuple | range) or getattr(value, "ndim", 0) == 1


def several(name: str, value: Any, such: str, *, least: int = 0, most: int = INT32) -> list[Any]:
    """The members of a list, a tuple or an array of one axis.

    Args:
      name: how the error calls it.
      value: the list.
      such: what it must be.
      least, most: how many members.

    Raises:
      ValueError: it is no list, or one of another length.

    Example:
      >>> from cljax.numbers import several
      >>> several("shares", 5, "several numbers, such as (5, 1)")
      Traceback (most recent call last):
      ...
      ValueError: shares is 5, but must be several numbers, such as (5, 1).
    """
    if not is_list(value) or not least <= len(value) <= most:
        raise ValueError(f"{name} is {show(value)}, but must be {such}.")
    return list(value)


def check_kind(name: str, value: Any, kind: type, such: str) -> None:
    """Checks that a value is of a kind, and not, for example, what makes one.

    Raises:
      ValueError: naming the value and one of the kind.

    Example:
      >>> from cljax.numbers import check_kind
      >>> check_kind("seed", "0", int, "a number, such as 0")
      Traceback (most recent call last):
      ...
      ValueError: seed is '0', but must be a number, such as 0.
    """
    if not isinstance(value, kind):
        raise ValueError(f"{name} is {show(value)}, but must be {such}.")


def check_shape(name: str, value: Any, *sizes: Any) -> None:
    """Checks the shape of an array, traced or not.

    Args:
      name: how the error calls it.
      value: the array.
      *sizes: of its axes: a number; or a name such as `'B'` for any; first of all, `...` for any axes before.

    Raises:
      ValueError: naming both shapes.

    Example:
      >>> import numpy as np
      >>> from cljax.numbers import check_shape
      >>> check_shape("labels", np.zeros((2, 3)), 2)
      Traceback (most recent call last):
      ...
      ValueError: labels has shape (2, 3), but must be [2].
    """
    shape = tuple(getattr(value, "shape", ()))
    last = sizes[1:] if sizes[:1] == (...,) else sizes
    own = shape[len(shape) - len(last) :] if len(last) < len(sizes) and len(shape) >= len(last) else shape
    if len(own) != len(last) or any(a != b for a, b in zip(own, last, strict=True) if not isinstance(b, str)):
        wanted = ", ".join("..." if size is ... else str(size) for size in sizes)
        raise ValueError(f"{name} has shape {shape}, but must be [{wanted}].")


def check_dtype(name: str, value: Any, kind: str) -> None:
    """Checks the dtype of an array, traced or not.

    Args:
      name: how the error calls it.
      value: the array.
      kind: `'bool'`, `'int'` and `'float'` for whole and real numbers of any size, or the dtype's name.

    Raises:
      ValueError: naming both.

    Example:
      >>> import numpy as np
      >>> from cljax.numbers import check_dtype
      >>> check_dtype("owner", np.zeros(2), "int32")
      Traceback (most recent call last):
      ...
      ValueError: owner is float64, but must be int32.
    """
    dtype = getattr(value, "dtype", type(value).__name__)
    fits = {"int": getattr(dtype, "kind", None) in ("i", "u"), "float": "float" in str(dtype)}
    if not fits.get(kind, str(dtype) == kind):
        words = {"int": "whole numbers", "float": "floating point"}
        raise ValueError(f"{name} is {dtype}, but must be {words.get(kind, kind)}.")


def show(value: Any, most: int = 60) -> str:
    """A value as an error shows it, shortened.

    Example:
      >>> from cljax.numbers import show
      >>> show('x' * 100, 10)
      "'xxxxxx..."
    """
    if isinstance(value, int) and abs(value) >= 10**50:  # too long to print, and perhaps too long for Python to
        return "a number of more than 50 digits"
    text = repr(value) if isinstance(value, str | bytes) else " ".join(str(value).split())
    return text if len(text) <= most else text[: most - 3] + "..."


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool) or str(getattr(value, "dtype", "")) == "bool"
