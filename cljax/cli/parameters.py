"""The methods' own parameters, as `--set` gives them: words to values of the kind that each parameter takes."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
import inspect
import re
import textwrap
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from cljax.cli.options import Data, Network, Training, UsageError
from cljax.cli.typed import aliases
from cljax.numbers import show
from cljax.text import did_you_mean


def parse_parameters(settings: Iterable[str], makers: dict[str, Callable[..., Any]]) -> dict[str, dict[str, Any]]:
    """What `--set` gives each method: NAME=VALUE to all that have such a parameter, METHOD.NAME=VALUE to one instead.

    Args:
      settings: words of `--set`.
      makers: the functions that take the parameters, by method; those of a combination by method and part, such as
        `'lwf+ewc ewc'`: METHOD may be either.

    Returns:
      `{method: {parameter: value}}`, for every key of `makers`.

    Raises:
      UsageError: no such method or parameter (those there are are listed), or a value of another kind than it takes.

    Example:
      >>> def ewc(network, *, strength=1.0): pass
      >>> parse_parameters(['strength=100'], {'ewc': ewc})
      {'ewc': {'strength': 100}}
    """
    found: dict[str, dict[str, Any]] = {name: {} for name in makers}
    only = inspect.Parameter.KEYWORD_ONLY
    keywords = lambda make: {name: one for name, one in inspect.signature(make).parameters.items() if one.kind is only}
    takes = {name: keywords(make) for name, make in makers.items()}
    keys: set[str] = set()
    for setting in sorted(settings, key=lambda word: "." in word.partition("=")[0]):  # what is for one counts more
        key, equals, text = setting.partition("=")
        owner, _, parameter = key.rpartition(".")
        if key in keys:
            raise UsageError(f"--set gives {key} twice. Give it once.")
        keys.add(key)
        if not equals or not parameter:
            raise UsageError(f"--set takes NAME=VALUE or METHOD.NAME=VALUE, such as strength=100, not {setting!r}.")
        names = meant_for(key, makers)
        if not names:
            raise UsageError(unknown("method of this run", owner, dict.fromkeys(key.split(" ")[0] for key in makers)))
        receivers = [name for name in names if parameter in takes[name]]
        if not receivers:
            called = lambda name: ".".join(dict.fromkeys(name.split(" ")))
            has = "; ".join(f"{called(name)} has {', '.join(takes[name]) or 'none'}" for name in names)
            every = [option for name in names for option in takes[name]]
            raise UsageError(f"There is no parameter {parameter!r}. {did_you_mean(parameter, every)}{has}.")
        for name in receivers:
            found[name][parameter] = _value(parameter, text, makers[name], takes[name][parameter].default)
    return found


def meant_for(key: str, makers: Iterable[str]) -> list[str]:
    """The methods, or parts of combinations, for which NAME or METHOD.NAME of `--set` is, as of `parse_parameters`.

    Example:
      >>> meant_for('ewc.strength', ['lwf+ewc lwf', 'lwf+ewc ewc', 'mas mas']), meant_for('strength', ['mas mas'])
      (['lwf+ewc ewc'], ['mas mas'])
    """
    owner, dot, _ = key.rpartition(".")
    return [name for name in makers if not dot or owner in (name.replace(" ", "."), *name.split(" "))]


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """What to say of an unknown name: close matches, and all there are."""
    names = sorted(known)
    return f"There is no {kind} {name!r}. {did_you_mean(name, names)}There are: {', '.join(names)}."


def parameters_of(names: Sequence[str], options: Training) -> dict[str, dict[str, Any]]:
    """The parameters set, by method, as `methods.build` takes them."""
    from cljax.methods.build import options_of

    flat = _flat(names)
    found: dict[str, dict[str, Any]] = {name: {} for name in names}
    for key, given in parse_parameters(options.set, flat).items():
        name, part = key.split(" ")
        asked = {"memory_size": options.memory, "selection": options.memory_selection} if options.memory else {}
        given = {**{option: value for option, value in asked.items() if option in options_of(flat[key])}, **given}
        own = "" if part == name.split("+")[0] else f"{part}."
        found[name] |= {own + option: value for option, value in given.items()}
    return found


def own_settings(name: str, settings: Sequence[str]) -> tuple[str, ...]:
    """Those of `--set` that a method takes, among those of others."""
    from cljax.methods.build import options_of

    flat = _flat([name])
    takes = lambda key: any(key.rpartition(".")[2] in options_of(flat[one]) for one in meant_for(key, flat))
    return tuple(setting for setting in settings if takes(setting.partition("=")[0]))


def _flat(names: Sequence[str]) -> dict[str, Any]:
    """What makes the methods, by method and part."""
    from cljax.methods.build import makers

    return {f"{name} {part}": make for name in names for part, make in makers(name).items()}


class Parameter(NamedTuple):
    """A method's parameter.

    Attributes:
      name: as `--set` takes it.
      kind: of its values, in words.
      span: what its values must be, as the method says of one that it refuses; empty where it refuses none.
      default: in words.
      meaning: what the docstring says.
    """

    name: str
    kind: str
    span: str
    default: str
    meaning: str

    @property
    def values(self) -> str:
        """Kind and, of numbers, range in words."""
        if self.span.startswith("a whole number"):
            return self.span
        if not self.span.startswith(("above", "at least")):
            return self.kind
        return f"{self.kind}{',' if ',' in self.kind else ''} {self.span}"


def described(make: Callable[..., Any]) -> list[Parameter]:
    """A method's parameters, of its signature, its docstring, and what it refuses.

    Args:
      make: a function of a network, or of nothing, whose keyword-only parameters they are.

    Example:
      >>> from cljax import methods
      >>> [(one.name, one.values, one.default) for one in described(methods.mas)]
      [('strength', 'a number at least 0', '0.1'), ('chunk', 'a whole number at least 1', '32')]
    """
    kinds, said, at = typing.get_type_hints(make), dict[str, str](), ""
    for line in docstring(make).partition("Args:\n")[2].partition("\n\n")[0].splitlines():
        begun = re.fullmatch(r"  (\w+(?:, \w+)*): (.*)", line)
        at, line = begun.groups() if begun else (at, line)
        said[at] = f"{said.get(at, '')} {line.strip()}".strip()
    meanings = {one: meaning for names, meaning in said.items() for one in names.split(", ")}
    found = []
    for name, one in inspect.signature(make).parameters.items():
        if one.kind is inspect.Parameter.KEYWORD_ONLY:
            span = _refusal(make, name, -1e30) or _refusal(make, name, "?")
            kind = words(kinds.get(name, type(one.default)))
            found.append(Parameter(name, kind, span, _shown(one.default), meanings.get(name, "")))
    return found


def docstring(function: Callable) -> str:
    """A function's docstring; where Python drops them (`-OO`), as its source has it."""
    if function.__doc__:
        return inspect.cleandoc(function.__doc__)
    with contextlib.suppress(OSError):  # there is no source either
        defined = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
        return ast.get_docstring(typing.cast(ast.FunctionDef, defined)) or ""
    return ""


def _refusal(make: Callable[..., Any], option: str, value: Any) -> str:
    """What a method or a term of the package says that an option must be; empty where it says no such thing."""
    if make.__module__.partition(".")[0] != "cljax":
        return ""
    from cljax.methods.build import options_of

    needs_network = len(options_of(make)) < len(inspect.signature(make).parameters)
    try:
        make(*[_network()] * needs_network, **{option: value})
    except ValueError as error:
        if found := re.search(r"must be (?:a finite number )?(.*?)\.?$", str(error)):
            return re.sub(r"from (\d+) to 2147483647", r"at least \1", found[1]).replace("of at", "at")
    return ""


@functools.cache
def _network() -> Any:
    """One that every method takes, its shapes traced once for all."""
    import jax

    from cljax import networks

    network = networks.cnn((8, 8, 1), 2, channels=((3,), (4,)), dense=(5,))
    return network._replace(init=jax.jit(network.init))


def _shown(default: Any) -> str:
    """A default as `--set` takes it."""
    return str(default).lower() if default is None or isinstance(default, bool) else str(default)


def as_options(text: str, typed: Sequence[str] = ()) -> str:
    """An error of Python's functions in the command's words: `name is` and `name=1` as the options are called.

    Args:
      text: the error.
      typed: the command's words; an option that has several names is called by the one that is among them.

    Example:
      >>> as_options("class_order must name classes 0 to 9. Or give validation=0.1, or a larger network.")
      '--class-order must name classes 0 to 9. Or give --validation 0.1, or a larger network.'
      >>> as_options("--learning-rate is nan.", ["run", "lwf", "--lr", "nan"])
      '--lr is nan.'
    """
    names = "|".join(field.name for group in (Data, Network, Training) for field in dataclasses.fields(group))
    option = lambda name: f"--{name.replace('_', '-')}"
    text = re.sub(rf"(?:^|(?<=\. ))({names})(?= (?:is|are|has|must)\b)", lambda found: option(found[1]), text)
    text = re.sub(rf"(?<![\w.({{'-])({names})=(?=[0-9])", lambda found: f"{option(found[1])} ", text)
    given = {word.partition("=")[0] for word in typed}
    for other, name in aliases().items():
        if other in given:
            text = re.sub(rf"(?<![\w-]){name}(?![\w-])", other, text)
    return text


def fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a kind, as annotations have it.

    Example:
      >>> fits((0.5, 1), float | Sequence[float]), fits(0.5, int), fits(True, float), fits(None, float | None)
      (True, False, False, True)
    """
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, one) for one in inner)
    if origin is typing.Literal:
        return value in inner
    if origin is Sequence:
        return isinstance(value, tuple | list) and all(fits(one, inner[0]) for one in value)
    if origin is Mapping:
        return isinstance(value, dict) and all(all(map(fits, pair, inner)) for pair in value.items())
    if origin is tuple:
        return isinstance(value, tuple | list) and len(value) == len(inner) and all(map(fits, value, inner))
    if kind in (int, float):
        return isinstance(value, int | kind) and not isinstance(value, bool)
    return not isinstance(kind, type) or isinstance(value, kind)


def words(kind: Any) -> str:
    """A kind of value in words.

    Example:
      >>> words(float | Sequence[float] | None)
      'a number, or several (a number each) with commas between, or none'
    """
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return ", or ".join(map(words, inner))
    if origin is typing.Literal:
        return " or ".join(map(str, inner))
    if origin is Sequence:
        return f"several ({words(inner[0])} each) with commas between"
    if origin is Mapping:
        return f"{{{words(inner[0])}: {words(inner[1])}}}"
    if origin is tuple:
        return f"({', '.join(map(words, inner))})"
    known = {int: "a whole number", float: "a number", bool: "true or false", type(None): "none"}
    return known.get(kind, "a word")


def _value(name: str, text: str, make: Callable[..., Any], default: Any) -> Any:
    """A parameter's value: a number, True, False, None, a tuple, or the text itself."""
    kind = typing.get_type_hints(make).get(name, type(default))
    plain = {"true": True, "false": False, "none": None}
    try:
        value = plain[text.lower()] if text.lower() in plain else ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):  # what text of any kind makes the parser say
        value = text
    for meant in (value, (value,), text):
        if fits(meant, kind):
            return meant
    raise UsageError(f"The parameter {name!r} needs {words(kind)} (by default {_shown(default)}), not {show(text)}.")
