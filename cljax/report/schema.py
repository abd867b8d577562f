"""What a record holds: one schema, checked where a record is read, so that nothing after that needs to ask.

A rule is a function of a value and the sizes known so far (of seeds, tasks, ...); it raises `Wrong`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from cljax.numbers import FLOAT32, show

Rule = Callable[[Any, dict[str, int]], None]
DEPTH = 32
"""How deep a configuration, or whatever this schema does not know, may be nested."""


class Wrong(ValueError):
    """A value that is not as it must be; `path` grows on the way out."""

    def __init__(self, path: str, words: str) -> None:
        super().__init__(path, words)
        self.path, self.words = path, words

    def at(self, part: str) -> Wrong:
        """The same, seen from outside."""
        return Wrong(part + self.path, self.words)


def check(record: Any) -> None:
    """Checks a record as `json` gives it.

    Raises:
      ValueError: naming the place, what is there and what must be.

    Example:
      >>> check({'runs': [], 'complete': 7})
      Traceback (most recent call last):
      ...
      ValueError: complete is 7, but must be True or False
    """
    if not isinstance(record, dict) or not isinstance(record.get("runs"), list):
        raise ValueError("it has no 'runs'")
    try:
        RECORD(record, {})
    except Wrong as error:
        raise ValueError(f"{error.path.lstrip('.')} {error.words}") from None
    labels = [run.get("label", run["method"]) for run in record["runs"]]
    if twice := next((label for label in labels if labels.count(label) > 1), None):
        raise ValueError(f"two runs are called {show(twice)}")


def text(most: int = 4096) -> Rule:
    """Text of at least one character."""

    def rule(value: Any, _: dict[str, int]) -> None:
        if not isinstance(value, str) or not 1 <= len(value) <= most:
            raise _not(value, f"a text of 1 to {most} characters")

    return rule


def word(*words: Any) -> Rule:
    """One of these values."""

    def rule(value: Any, _: dict[str, int]) -> None:
        if not any(type(value) is type(known) and value == known for known in words):
            raise _not(value, " or ".join(map(show, words)))

    return rule


def number(least: float, most: float, *, whole: bool = False, null: bool = False) -> Rule:
    """A number within bounds, both allowed; or null, where that is."""
    kinds: Any = int if whole else (int, float)
    words = f"a {'whole ' if whole else ''}number from {least:g} to {most:g}{', or null' if null else ''}"

    def rule(value: Any, _: dict[str, int]) -> None:
        if value is None and null:
            return
        if isinstance(value, bool) or not isinstance(value, kinds) or not least <= value <= most:
            raise _not(value, words)

    return rule


def maybe(of: Rule) -> Rule:
    """Something, or null."""
    return lambda value, sizes: None if value is None else of(value, sizes)


def array(axes: str, of: Rule) -> Rule:
    """Nested lists, one axis a word, with `?` where it may be empty; the first of a name decides its size."""
    first, _, rest = axes.partition(" ")
    axis, inner = first.rstrip("?"), array(rest, of) if rest else of

    def rule(value: Any, sizes: dict[str, int]) -> None:
        if not isinstance(value, list) or not (value or first != axis):
            raise _not(value, f"a list of {axis}{', at least one' if first == axis else ''}")
        if len(value) != sizes.setdefault(axis, len(value)):
            raise Wrong("", f"has {len(value)} items, but there are {sizes[axis]} {axis}")
        _each(value, lambda item: inner(item, sizes))

    return rule


def many(of: Rule, most: int) -> Rule:
    """A list of at most so many, each with sizes of its own."""

    def rule(value: Any, _: dict[str, int]) -> None:
        if not isinstance(value, list) or len(value) > most:
            raise _not(value, f"a list of at most {most}")
        _each(value, lambda item: of(item, {}))

    return rule


def _each(values: list, check: Callable[[Any], None]) -> None:
    """Checks each item; an error says at which place."""
    for place, item in enumerate(values):
        try:
            check(item)
        except Wrong as error:
            raise error.at(f"[{place}]") from None


def table(of: Rule, most: int) -> Rule:
    """An object of at most so many names, all of whose values are alike."""

    def rule(value: Any, sizes: dict[str, int]) -> None:
        if not isinstance(value, dict) or len(value) > most:
            raise _not(value, f"an object of at most {most} names")
        for name, item in value.items():
            _named(name, item, of, sizes)

    return rule


def fields(needed: Mapping[str, Rule], optional: Mapping[str, Rule] | None = None) -> Rule:
    """An object with these fields, in this order; what else it has is `free`."""
    known = {**needed, **(optional or {})}

    def rule(value: Any, sizes: dict[str, int]) -> None:
        if not isinstance(value, dict):
            raise _not(value, "an object")
        if missing := next((name for name in needed if name not in value), None):
            raise Wrong(f".{missing}", "is missing")
        for name, of in known.items():
            if name in value:
                _named(name, value[name], of, sizes)
        for name in value.keys() - known.keys():
            _named(name, value[name], free, sizes)

    return rule


def packed(axes: str) -> Rule:
    """Bytes as of `looks.packed`, one axis a word; the first of a name decides its size."""
    names = axes.split()
    parts = fields({"shape": many(number(1, 2**31 - 1, whole=True), len(names)), "base64": text(10**7)})

    def rule(value: Any, sizes: dict[str, int]) -> None:
        parts(value, sizes)
        shape, letters = value["shape"], value["base64"]
        known = [sizes.setdefault(name, size) for name, size in zip(names, shape, strict=False)]
        if len(shape) != len(names) or shape != known:
            raise Wrong(".shape", f"must be the sizes of {', '.join(names)}")
        if len(letters) != -(-math.prod(shape) // 3) * 4 or not re.fullmatch("[A-Za-z0-9+/]+={0,2}", letters):
            raise Wrong(".base64", f"must be the Base64 of {math.prod(shape)} bytes")

    return rule


def free(value: Any, _: dict[str, int], depth: int = DEPTH) -> None:
    """Anything, not too deep."""
    if not depth:
        raise Wrong("", f"is nested more than {DEPTH} deep")
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        free(item, _, depth - 1)


def consistent(run: dict[str, Any], sizes: dict[str, int]) -> None:
    """What the fields of a run must be to one another."""
    tasks, rounds, phases = (sizes[name] for name in ("tasks", "rounds", "phases"))
    if set(run["schedule"]["task"]) != set(range(tasks)):
        raise Wrong(".schedule.task", f"must name each of the tasks 0 to {tasks - 1}, and no other")
    if run["rounds"] is None and rounds != tasks:
        raise Wrong(".rounds", f"is null, but {tasks} tasks have {rounds} rounds")
    if (run["curves"] is None) != (run["curve_epochs"] == []):
        raise Wrong(".curves", "must be null where curve_epochs is empty, and only there")
    for place, (visit, phase, epoch) in enumerate(run["curve_epochs"]):
        if visit >= rounds or phase >= phases or epoch > sizes["epochs"]:
            raise Wrong(f".curve_epochs[{place}]", "is after the last round, phase or epoch")
    if (confusion := run.get("confusion")) and len(confusion["counts"]) != tasks * sizes["outputs"]:
        raise Wrong(".confusion.counts", "must have a row for each class of each task")
    chosen = [place for places in (run.get("search") or {}).get("chosen", []) for place in places]
    if max(chosen, default=-1) >= sizes.get("candidates", 0):
        raise Wrong(".search.chosen", "names a candidate that there is not")
    if len(set(run["seeds"])) < len(run["seeds"]):
        raise Wrong(".seeds", "has one seed twice")


def _run(value: Any, sizes: dict[str, int]) -> None:
    sizes |= {"places": 3}  # of a point: round, phase, epoch
    RUN(value, sizes)
    consistent(value, sizes)


def _named(name: str, value: Any, of: Rule, sizes: dict[str, int]) -> None:
    try:
        of(value, sizes)
    except Wrong as error:
        raise error.at(f".{name[:60]}") from None


def _not(value: Any, words: str) -> Wrong:
    kinds = {dict: "an object", list: f"a list of {len(value)}" if isinstance(value, list) else "", type(None): "null"}
    return Wrong("", f"is {kinds.get(type(value)) or show(value)}, but must be {words}")


FRACTION = number(-1e-6, 1 + 1e-6, null=True)
LOSS = number(-FLOAT32, FLOAT32, null=True)
COUNT = number(0, 1e300, null=True)
INDEX = number(0, 2**31 - 1, whole=True)
FLAG = word(True, False)

RUN = fields(
    {
        "method": text(),
        "data": text(),
        "scenario": word("task", "class", "domain"),
        "seeds": array("seeds", number(0, 2**64 - 1, whole=True)),
        "accuracy": array("seeds tasks tasks", FRACTION),
        "task_il_accuracy": array("seeds tasks tasks", FRACTION),
        "schedule": fields(
            {"task": array("rounds", INDEX), "epochs": array("rounds", INDEX), "evaluate": array("rounds", FLAG)}
        ),
        "rounds": maybe(
            fields(
                {
                    "accuracy": array("seeds rounds tasks", FRACTION),
                    "task_il_accuracy": array("seeds rounds tasks", FRACTION),
                }
            )
        ),
        "epochs": fields(
            {
                "loss": array("seeds rounds phases epochs?", LOSS),
                "validation_loss": array("seeds rounds phases epochs?", LOSS),
                "validation_accuracy": array("seeds rounds phases epochs?", FRACTION),
            }
        ),
        "curve_epochs": array("points? places", INDEX),
        "curves": maybe(array("seeds points tasks", FRACTION)),
        "seconds": array("seeds", number(0, 1e12, null=True)),
        "compile_seconds": number(0, 1e12, null=True),
        "flops": COUNT,
        "bytes_per_task": COUNT,
        "facts": array("seeds", fields({}, {"kind": text()})),
        "config": fields({}, {"methods": many(text(), 1000)}),
    },
    {
        "label": text(),
        "top5": array("seeds tasks tasks", FRACTION),
        "untrained": maybe(array("seeds tasks", FRACTION)),
        "zero_forgetting": maybe(FLAG),
        "confusion": maybe(
            fields({"counts": array("classes classes", INDEX), "classes": array("tasks outputs", FLAG)})
        ),
        "search": maybe(
            fields(
                {
                    "numbers": table(array("seeds rounds candidates", LOSS), 1000),
                    "scores": array("seeds rounds candidates", number(-1, 1 + 1e-6)),
                    "epochs": array("seeds rounds candidates", INDEX),
                    "chosen": array("seeds rounds", number(-1, 2**31 - 1, whole=True)),
                }
            )
        ),
        "packed_bytes_per_task": COUNT,
        "feature_usage": maybe(
            table(fields({part: array("seeds tasks", FRACTION) for part in ("used", "new", "reused", "free")}), 300)
        ),
        "attention": maybe(
            fields({"maps": packed("tasks images rows columns"), "images": maybe(packed("images height width"))})
        ),
        "sweep": fields({"curve": text(), "parameter": maybe(text()), "value": number(-FLOAT32, FLOAT32, null=True)}),
        **{name: maybe(table(free, 10_000)) for name in ("network", "versions", "device", "parameters")},
    },
)
"""An entry of `runs`. Sizes are decided by what comes first: seeds by `seeds`, tasks by `accuracy`, and so on."""

RECORD = fields(
    {"runs": many(_run, 1000)},
    {
        "complete": FLAG,
        "command": text(100_000),
        "left_out": table(text(100_000), 1000),
        "diverged": many(text(100_000), 10**6),
        "format": number(1, 1, whole=True),
    },
)
