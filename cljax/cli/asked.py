"""What a command asks for, as curves, and the configuration that decides its results."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from cljax.cli.options import Compare, Options, Run, Sweep, UsageError, seed_numbers
from cljax.cli.parameters import unknown
from cljax.numbers import real
from cljax.references import is_reference

if TYPE_CHECKING:
    from cljax.types import Method

LATER = {
    "data": ("first_classes",),
    "training": ("memory", "memory_selection", "tune", "milestones", "cosine"),
    "network": ("width", "precision"),
}
"""What a configuration has only where it is not the default: runs that were begun before there was such an option."""


class Curve(NamedTuple):
    """A method and the values of one of its numbers, driven together; without a parameter the method as it is."""

    method: str
    parameter: str | None = None
    values: tuple[float, ...] = ()

    @property
    def name(self) -> str:
        """What it is called, in progress, records and checkpoints."""
        return f"{self.method}.{self.parameter}" if self.parameter else self.method

    def entries(self, swept: bool) -> list[dict[str, Any]]:
        """What each of its entries in a record has of its own, a swept one its value."""
        one = {"curve": self.name, "parameter": self.parameter}
        values: Sequence[float | None] = self.values or (None,)
        return [{"method": self.method, **({"sweep": {**one, "value": value}} if swept else {})} for value in values]


def constructors() -> dict[str, Callable[..., Method]]:
    """The methods there are, by name."""
    from cljax import methods

    return {name: getattr(methods, name) for name in sorted(methods.__all__)}


def curves_of(command: Compare | Run | Sweep) -> list[Curve]:
    """What a command asks for.

    Raises:
      UsageError: no method, or an unknown one; one named twice; words that say no values, or a value twice.

    Example:
      >>> curves_of(Sweep('lwf', 'strength', (0.1, 1.0), vs=('lwm.beta=1,2', 'finetune')))[1:]
      [Curve(method='lwm', parameter='beta', values=(1.0, 2.0)), Curve(method='finetune', parameter=None, values=())]
      >>> [curve.name for curve in curves_of(Compare(methods=('joint',)))]
      ['joint']
    """
    from cljax.methods.build import makers

    known = constructors()
    if isinstance(command, Sweep):
        found = _swept(command)
    elif isinstance(command, Run):
        named = [name for name in (command.name, command.method) if name]
        if len(named) > 1:
            raise UsageError(f"Two methods are named, {command.name!r} and {command.method!r}; `run` does one.")
        if not named:
            raise UsageError("Which method? For example: cljax run finetune. `cljax methods` lists them.")
        found = [Curve(named[0])]
    else:
        if not command.methods:
            raise UsageError("--methods names none. Name one or more, or leave it out; `cljax methods` lists them.")
        names = tuple(known) if command.methods == ("all",) else command.methods
        found = [Curve(name) for name in names]
    names = tuple(curve.name for curve in found)
    for curve in found:
        if "+" not in curve.method and not is_reference(curve.method) and curve.method not in known:
            alone = "'all' stands alone. " if curve.method == "all" else ""
            raise UsageError(f"{alone}{unknown('method', curve.method, known)} `cljax methods` describes them.")
        try:
            makers(curve.method)
        except ValueError as error:
            raise UsageError(str(error)) from None
        if names.count(curve.name) > 1:
            cure = "give all its values together" if curve.parameter else "name it once"
            raise UsageError(f"{curve.name} is named more than once: {cure}.")
        try:
            for value in curve.values:
                real(f"A value of {curve.name}", value)
        except ValueError as error:
            raise UsageError(str(error)) from None
        if curve.parameter and (not curve.values or len(set(curve.values)) < len(curve.values)):
            raise UsageError(
                f"{curve.name} needs one value or more, each once, not {' '.join(map(str, curve.values))!r}."
            )
    return found


def split_parameter(key: str) -> tuple[str, str, str]:
    """`METHOD.NAME` in two, at the first dot that is not in the name of a module; as of `str.partition`.

    Example:
      >>> split_parameter('lwf+my.terms:near.my.terms:near.rate'), split_parameter('my.methods:careful')
      (('lwf+my.terms:near', '.', 'my.terms:near.rate'), ('my.methods:careful', '', ''))
    """
    part = r"(?:[^+:]+:)?[^+:.]*"
    _, method, rest = re.split(rf"^({part}(?:\+{part})*)", key, maxsplit=1)
    name, dot, parameter = rest.partition(".")
    return method + name, dot, parameter


def _swept(command: Sweep) -> list[Curve]:
    if not (command.method and command.parameter):
        raise UsageError("What is swept? For example: cljax sweep lwf strength 0.1 1 10.")
    found = [Curve(command.method, command.parameter, tuple(command.values))]
    for words in command.vs:
        key, equals, listed = words.partition("=")
        method, dot, parameter = split_parameter(key)
        try:
            values = tuple(float(value) for value in listed.split(",")) if equals else ()
        except ValueError:
            values = ()
        if bool(dot) != bool(equals) or (dot and not (parameter and values)):
            raise UsageError(
                f"--vs takes METHOD or METHOD.NAME=VALUE,VALUE..., such as lwm.beta=0.1,1,10; not {words!r}."
            )
        found.append(Curve(method, parameter or None, values))
    return found


def configuration(curves: Sequence[Curve], options: Options, *, swept: bool = False) -> dict[str, Any]:
    """What decides the results, as JSON has it: the methods, what is swept, all options but the devices and `Output`.

    Example:
      >>> configuration([Curve('finetune')], Options())['training']['seeds']
      [0, 1, 2, 3, 4]
    """
    parts = {name: dataclasses.asdict(getattr(options, name)) for name in ("data", "training", "network")}
    parts["training"]["seeds"] = seed_numbers(options.training)
    for name in ("seed", "devices", "distributed"):  # the results are the same on any number
        del parts["training"][name]
    if options.data.past is None:  # likewise, and before one could go on
        del parts["data"]["past"], parts["data"]["add_task"]
    for section, names in LATER.items():
        for name in names:
            if parts[section][name] == getattr(getattr(Options(), section), name):
                del parts[section][name]
    if not is_reference(options.network.network):  # which is given those alone that are asked for
        parts["network"]["channels"] = options.network.blocks
    for part in parts.values():
        part.update({key: list(value) for key, value in part.items() if isinstance(value, tuple)})
    varied = {"sweep": [[curve.name, list(curve.values)] for curve in curves]} if swept else {}
    return {"methods": list(dict.fromkeys(curve.method for curve in curves)), **parts, **varied}
