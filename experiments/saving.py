"""What an experiment leaves: its results, with what they were found on, and runs that it need not do again."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from cljax import report
from cljax.files import read_json, write_json

LOCAL = ("data_dir", "runs", "checkpoints", "out", "seconds")
"""Fields of a configuration that say where files are and how long there was: no result depends on them."""


def digest(*decides: Any) -> str:
    """Of all that a result depends on, as JSON has it: for the name of what is read instead of being run again.

    Example:
      >>> digest({"learning_rate": 0.1}, "lwf") == digest({"learning_rate": 0.2}, "lwf")
      False
    """
    return hashlib.sha256(json.dumps(report.plain(list(decides)), sort_keys=True).encode()).hexdigest()[:12]


def kept(folder: pathlib.Path, name: str, decides: Any, make: Callable[[], Any] | None) -> Any:
    """What `make()` returns, as JSON has it; read where the same configuration left it in the folder before.

    Args:
      folder: of the file `NAME-DIGEST.json`.
      name: for who looks into the folder.
      decides: all that the result depends on; what differs in any of it is made anew.
      make: called where nothing is kept; None, and there is nothing.

    Example:
      >>> import tempfile
      >>> folder = pathlib.Path(tempfile.mkdtemp())
      >>> [kept(folder, 'lwf', {'epochs': epochs}, lambda n=n: [n]) for n, epochs in enumerate((10, 20, 10))]
      [[0], [1], [0]]
    """
    path = folder / f"{name}-{digest(decides)}.json"
    if not path.exists():
        if make is None:
            return None
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, report.plain(make()))
    return read_json(path)


def check_replaces(config: Any, name: str, systems: Iterable[str] | None = None) -> None:
    """Checks, before anything is run, that a result of that name has no more seeds or systems than the new one.

    Raises:
      SystemExit: it has, and would be lost.
    """
    path = pathlib.Path(config.out) / "results" / f"{name}.json"
    if not path.exists():
        return
    before = read_json(path)
    seeds, known = before["config"]["seeds"], set(before.get("average_accuracy_mean", ()))
    if seeds > config.seeds:
        raise SystemExit(f"{path} is of {seeds} seeds, and one of {config.seeds} would replace it. Give another --out.")
    if systems is not None and (lost := sorted(known - set(systems))):
        raise SystemExit(
            f"{path} has {', '.join(lost)} as well, and would lose them. Leave out --only (what is kept is not run "
            f"again), or give another --out."
        )


def command_line(module: str) -> str:
    """The command that started this process, as the module's, without this machine's folders and the time it had."""
    words = []
    for word in sys.argv[1:]:
        option, *value = word.split("=", 1) if word.startswith("--") else ["", word]
        words += [option.replace("_", "-"), *value] if option else value
    local = {f"--{name.replace('_', '-')}" for name in LOCAL}
    stay = [word for before, word in zip(["", *words], words, strict=False) if not {before, word} & local]
    data_dir = ["--data-dir", "FOLDER"] if "--data-dir" in words else []
    return shlex.join(["python", "-m", module, *data_dir, *stay])


def write_result(config: Any, name: str, result: Mapping[str, Any], command: str) -> pathlib.Path:
    """Writes `results/NAME.json` in the folder `config.out`, and says where. NaN becomes null.

    Beside the result stand the command, the device, the versions and the configuration but for what is `LOCAL`; where
    the result has one of these itself, that stays.

    Args:
      config: a dataclass.
      name: of the file; one of a benchmark ends in `_benchmark`, to which the kind of device is added.
      result: what was found.
      command: by which it is found again.
    """
    facts = {"command": command, "device": report.device(), "versions": report.versions()}
    facts["config"] = {field: value for field, value in dataclasses.asdict(config).items() if field not in LOCAL}
    kind = "cpu" if facts["device"]["platform"] == "cpu" else "gpu"
    path = pathlib.Path(config.out) / "results" / f"{name}{f'_{kind}' if name.endswith('_benchmark') else ''}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, report.plain({**facts, **result}))
    print(f"written: {path}")
    return path
