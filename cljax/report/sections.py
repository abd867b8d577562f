"""Runs of one or several folders, divided into sections of runs on the same tasks."""

from __future__ import annotations

import os
import pathlib
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from cljax.files import expand
from cljax.report.record import read
from cljax.report.results import runs
from cljax.storage.folders import differences

IGNORED = ("methods",)
"""Fields of a configuration in which the folders of a section may differ without a word."""


class Section(NamedTuple):
    """Runs on the same tasks: what may be compared.

    Attributes:
      title: the data set, the number of tasks, how the data make tasks.
      runs: entries of records; `label` is how a run is called where its method is there more than once, `folder` where
        it came from, `place` its place among all the report's, by which plots choose its colour.
      notes: what a reader should know: what is unfinished or left out, how the folders' configurations differ, which
        runs have other classes in their tasks.

    Example:
      >>> from cljax.report import Section
      >>> Section('digits, 5 tasks, task-incremental', [], ['tfm is unfinished.']).notes
      ['tfm is unfinished.']
    """

    title: str
    runs: list[dict[str, Any]]
    notes: list[str]


def label(run: dict[str, Any]) -> str:
    """What a run is called: its method, with the folder where that is needed to tell it from another.

    Example:
      >>> label({'method': 'lwf'}), label({'method': 'lwf', 'label': 'lwf (a)'})
      ('lwf', 'lwf (a)')
    """
    return run.get("label", run["method"])


def title(run: dict[str, Any]) -> str:
    """What a run was on: `'digits, 5 tasks, class-incremental'`."""
    count, permuted = len(run["accuracy"][0]), run["facts"][0].get("kind") == "permuted"
    tasks = f"{count} {'task' if count == 1 else 'tasks'}"
    return f"{run['data']}, {tasks}, {'permuted pixels, ' if permuted else ''}{run['scenario']}-incremental"


def chosen(run: dict[str, Any]) -> str:
    """What a run's search has chosen, how often, and what it cost; empty where there was no choice.

    Example:
      >>> from cljax.report import chosen
      >>> numbers, epochs = {'strength': [[[4.0, 2.0], [4.0, 2.0]]]}, [[[5, 5], [5, 0]]]
      >>> chosen({'method': 'lwf', 'search': {'numbers': numbers, 'epochs': epochs, 'chosen': [[1, 0]]}})
      'lwf chose in 2 visits: strength 2 (1), 4 (1). It trained 15 epochs a seed, 10 of them in what it kept.'
    """
    if not (search := run.get("search")):
        return ""
    places = [(*at, place) for at, place in np.ndenumerate(search["chosen"]) if place >= 0]
    parts = []
    for name, values in search["numbers"].items():
        found = Counter(np.asarray(values, np.float64)[at] for at in places).most_common()
        parts.append(f"{name} {', '.join(f'{value:.3g} ({count})' for value, count in found)}")
    epochs, seeds = np.asarray(search["epochs"]), len(search["chosen"])
    trained, kept = (f"{count / seeds:.4g}" for count in (epochs.sum(), sum(epochs[at] for at in places)))
    if trained == kept:
        return ""  # there was nothing to choose from
    numbers = "; ".join(parts)
    return (
        f"{label(run)} chose in {len(places)} visits: {numbers}. It trained {trained} epochs a seed, {kept} of them in "
        f"what it kept."
    )


def gather(results: Any) -> list[Section]:
    """Puts together what is on the same tasks, of results or of run folders, whose records it reads.

    A method that several folders of a section have gets the folder's name as a suffix.

    Args:
      results: results as of `report.runs`; or a run folder or its `record.json`, or a list of such paths.

    Returns:
      The sections, in the order of the results.

    Raises:
      ValueError: a folder has no record or no run in it, or is named twice; or what is no result.

    Example:
      >>> import tempfile
      >>> from cljax import report
      >>> report.gather([tempfile.mkdtemp()])
      Traceback (most recent call last):
      ...
      ValueError: ...
    """
    paths = [results] if isinstance(results, str | os.PathLike) else results
    if isinstance(paths, list | tuple) and all(isinstance(path, str | os.PathLike) for path in paths):
        found, notes = _read(paths)
    else:
        found, notes = [{**run, "folder": ""} for run in runs(results)], {"": list[str]()}
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for run in found:
        groups.setdefault(_tasks(run), []).append(run)
    sections = [_section(runs, notes) for runs in groups.values()]
    labels = list(dict.fromkeys(label(run) for section in sections for run in section.runs))
    for section in sections:
        for run in section.runs:
            run["place"] = labels.index(label(run))
    return sections


def _read(folders: Sequence[str | os.PathLike]) -> tuple[list[dict[str, Any]], dict[str, list[str]]]:
    """The runs of run folders, each with the name of its folder, and notes for each folder."""
    paths = [expand(folder) for folder in folders]
    places = [pathlib.Path(os.path.realpath(path if os.path.isdir(path) else path.parent)) for path in paths]
    if twice := next((path for path, place in zip(paths, places, strict=True) if places.count(place) > 1), None):
        raise ValueError(f"The run folder {twice} is named twice. Name each once.")
    called = [place.name for place in places]
    names = [place.name if called.count(place.name) == 1 else str(place) for place in places]
    found, notes = list[dict[str, Any]](), dict[str, list[str]]()
    for path, name in zip(paths, names, strict=True):
        record = read(path)
        if not record["runs"]:
            raise ValueError(f"The record of {path} has no run yet: no method has finished. Wait, or take the run up.")
        notes[name] = _notes(record, name if len(paths) > 1 else "")
        found += [{**run, "folder": name} for run in record["runs"]]
    return found, notes


def _tasks(run: dict[str, Any]) -> tuple:
    """What two runs must share to be compared: the data set, the scenario, the kind and the number of tasks."""
    facts = run["facts"][0]
    return run["data"], run["scenario"], facts.get("kind"), len(run["accuracy"][0])


def _section(runs: list[dict[str, Any]], notes: dict[str, list[str]]) -> Section:
    labels = [label(run) for run in runs]
    named = [
        {**run, "label": f"{label(run)} ({run['folder']})"} if labels.count(label(run)) > 1 else run for run in runs
    ]
    folders = list(dict.fromkeys(run["folder"] for run in runs))
    configs = {run["folder"]: _without(run["config"]) for run in runs}
    told = [note for folder in folders for note in notes[folder]]
    for folder in folders[1:]:
        where = f"in {folders[0]}", f"in {folder}"
        if found := differences(configs[folders[0]], configs[folder], where=where):
            told.append(f"{folder} differs from {folders[0]} in {', '.join(found)}.")
    told += [
        f"{label(run)} has learned other classes than {label(named[0])}, in other tasks: their numbers are not to be "
        f"compared."
        for run in named[1:]
        if _divided_otherwise(named[0], run)
    ]
    return Section(title(runs[0]), named, [*told, *filter(None, map(chosen, named))])


def _divided_otherwise(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Whether two runs have other classes in their tasks, for a seed that both have."""
    one, other = (dict(zip(run["seeds"], run["facts"], strict=False)) for run in (first, second))
    return any(one[seed].get("classes") != other[seed].get("classes") for seed in one.keys() & other)


def _without(config: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in IGNORED}


def _notes(record: dict[str, Any], folder: str) -> list[str]:
    """What is unfinished or left out, each a sentence."""
    where, notes = f" of {folder}" if folder else "", []
    if not record.get("complete", True):
        asked = record["runs"][0].get("config", {}).get("methods", [])
        done = {run["method"] for run in record["runs"]} | set(record.get("left_out", {}))
        missing = [method for method in asked if method not in done]
        names = f": {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing" if missing else ""
        notes.append(f"The run{where} is not finished{names}.")
    notes += [f"{name} is left out{where}: {reason}" for name, reason in record.get("left_out", {}).items()]
    notes += [f"Diverged, and left out{where}: {line}" for line in record.get("diverged", [])]
    return notes
