"""`--config`: the configuration of a run, as words of the command."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from cljax import files
from cljax.cli.asked import split_parameter
from cljax.cli.options import Compare, Data, Network, Run, Sweep, Training, UsageError
from cljax.references import is_reference
from cljax.storage import old_names

SECTIONS = {"data": Data, "training": Training, "network": Network}


def words_of(path: str, command: Compare | Run | Sweep, words: Sequence[str]) -> list[str]:
    """What to put before the words of a command, so that it does what a configuration says and they override.

    Args:
      path: of a `config.json`.
      command: as its own words have it.
      words: these.

    Raises:
      UsageError: the file cannot be read, or is no configuration that this command can take.
    """
    option = "--config" if command.options.config else "--from"
    try:
        found = old_names.config(files.read_json(files.expand(path)))
        if any(word.partition("=")[0] in ("--seed", "--seeds") for word in words):
            del found["training"]["seeds"]
        return [*_what(found, command), *option_words(found)]
    except OSError as error:
        raise UsageError(f"{option} is {path}, which cannot be read ({error.strerror}).") from None
    except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
        said = str(error) if isinstance(error, UsageError) else "it is no run's config.json"
        raise UsageError(f"{option} is {path}, which cannot be taken: {said}.") from None


def option_words(config: dict[str, Any]) -> list[str]:
    """The options of a configuration, a single value's last, so that no list takes what follows.

    Raises:
      UsageError: it has an option that this version does not know.

    Example:
      >>> option_words({'training': {'seeds': [0, 1], 'epochs': 3, 'patience_restore': False, 'init': None}})
      ['--seeds', '0', '1', '--epochs', '3', '--no-patience-restore']
    """
    lists, singles = [], []
    for section, kind in SECTIONS.items():
        known = {field.name for field in dataclasses.fields(kind)}
        for name, value in config.get(section, {}).items():
            if name not in known:
                raise UsageError(f"it has {section}.{name}, an option that this version does not know")
            option = f"--{name.replace('_', '-')}"
            if name == "seeds" and len(value) == 1:
                singles += ["--seed", str(value[0])]
            elif isinstance(value, list):
                network = config[section].get("network", "")  # what is neither has the default there
                if name != "channels" or network == "cnn" or is_reference(network):
                    lists += [option, *map(str, value)]
            elif isinstance(value, bool):
                singles.append(option if value else f"--no-{option[2:]}")
            elif value is not None:
                singles += [option, str(value)]
    return [*lists, *singles]


def _what(config: dict[str, Any], command: Compare | Run | Sweep) -> list[str]:
    """The methods, or what is swept, where the command's own words do not say it."""
    methods, swept = config["methods"], UsageError("it is of a sweep: give it to `cljax sweep`, or name the methods")
    if isinstance(command, Compare):
        if command.methods != Compare().methods:
            return []
        if "sweep" in config:
            raise swept
        return ["--methods", *methods]
    if isinstance(command, Run):
        if command.name or command.method:
            return []
        if "sweep" in config:
            raise swept
        if len(methods) > 1:
            raise UsageError(f"it is of {len(methods)} methods: name one, or give it to `cljax compare`")
        return ["--method", *methods]
    if command.method:
        return []
    if "sweep" not in config:
        raise UsageError("it is of no sweep: name a method, its parameter and values")
    (name, values), *others = config["sweep"]
    shown = [f"{other}={','.join(map(str, given))}" if given else other for other, given in others]
    method, _, parameter = split_parameter(name)
    return [method, parameter, *map(str, values), *(["--vs", *shown] if shown else [])]
