"""`--config`: the configuration of a run, as words of the command."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from cljax import files
from cljax.cli.asked import split_parameter
from cljax.cli.options import NETWORKS, Compare, Data, Network, Options, Run, Sweep, Training, UsageError, settle
from cljax.cli.typed import typed
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
        what = _what(found, command)
        _give_way(found, set(typed(words)), command.options)
        if not what and (settings := found.get("training", {}).get("set")):
            found["training"]["set"] = _settings_of(command, settings, found["methods"])
        return [*what, *option_words(found)]
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


def _give_way(config: dict[str, Any], names: set[str], options: Options) -> None:
    """Takes out of a configuration what goes with options that the command's own words replace.

    That is what a data set, its division or a network has by default, what another network does not take, and the one
    of two schedules of the rate where the other is asked for.

    Args:
      config: the configuration.
      names: the options that the command has.
      options: what they are.
    """
    data, training, network = (config.get(section, {}) for section in ("data", "training", "network"))
    sets, kind = tuple(data.get("data") or Data.data), network.get("network", Network.network)
    usual = settle(Options(data=Data(sets, division=data.get("division", Data.division)), network=Network(kind)))
    gone = [(training, "seeds")] if names & {"seed", "seeds"} else []
    gone += [(training, "milestones")] if "cosine" in names and options.training.cosine else []
    gone += [(training, "cosine")] if "milestones" in names and options.training.milestones else []
    if names & {"data", "division"} and data.get("tasks") == usual.data.tasks:
        gone.append((data, "tasks"))
    own = options.network.network
    if "network" in names and own != kind:
        taken = network if is_reference(own) else NETWORKS["cnn"] if own == "auto" else NETWORKS.get(own, ())
        stay = ("network", "normalization", "precision", *taken)
        gone += [(network, name) for name in network if name not in stay]
        gone += [(network, "dropout")] if network.get("dropout") == usual.network.dropout else []
        gone += [(network, "channels")] if network.get("channels") == list(usual.network.blocks) else []
    for section, name in gone:
        section.pop(name, None)


def _settings_of(command: Compare | Run | Sweep, settings: Sequence[str], methods: Sequence[str]) -> list[str]:
    """Those of `--set` but for METHOD.NAME=VALUE of a method, or part, that the configuration has and the command not.

    By their names alone: nothing is imported yet.

    Example:
      >>> _settings_of(Run('lwf'), ['lwf.strength=2', 'ewc.strength=9', 'strength=3', 'x.y=1'], ['lwf', 'ewc'])
      ['lwf.strength=2', 'strength=3', 'x.y=1']
    """
    if isinstance(command, Sweep):
        names = [command.method, *(split_parameter(words.partition("=")[0])[0] for words in command.vs)]
    else:
        names = [*command.methods] if isinstance(command, Compare) else [command.name or command.method]
    if names == ["all"]:
        return list(settings)
    gone = _owners(methods) - _owners(filter(None, names))
    return [setting for setting in settings if setting.partition("=")[0].rpartition(".")[0] not in gone]


def _owners(methods: Iterable[str]) -> set[str]:
    """What METHOD of `--set METHOD.NAME=VALUE` may be for these methods: their names, parts, and both together."""
    parts = [(name, part) for name in methods for part in name.split("+")]
    return {owner for name, part in parts for owner in (name, part, f"{name}.{part}")}


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
