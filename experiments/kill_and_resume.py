"""Kills `cljax compare` at random moments and compares what its resumed twin ends with to an uninterrupted run.

    python -m experiments.kill_and_resume

Thirteen minutes on two busy cores, less on idle ones. Every run is a process of its own, small enough to last some
seconds; a kill is SIGKILL, at a moment drawn uniformly from the time in which an uninterrupted run has its folder. The
same command then takes the run up. Expected: 20 kills, 20 equal ends: every bit of every learner, and the record but
for its times.
Writes `experiments/results/kill_and_resume.json`.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np
import orbax.checkpoint
import tyro

from experiments.saving import command_line, write_result

TIMES = ("seconds", "compile_seconds", "share_waiting")


@dataclasses.dataclass(frozen=True)
class Config:
    """The experiment: kills by turns in both drivers, seed of the moments, the command's options."""

    kills: int = 20
    seed: int = 0
    drivers: tuple[str, ...] = ("scan", "host")
    options: tuple[str, ...] = (
        *("--methods", "finetune", "freezing", "--seeds", "2", "--tasks", "3", "--epochs", "5", "--hidden", "32"),
        *("--checkpoint-seconds", "0.1", "--keep-learners", "--quiet"),
    )
    out: str = "experiments"


def start(config: Config, driver: str, folder: pathlib.Path) -> subprocess.Popen:
    """A process of the command, once it has its folder."""
    arguments = ["compare", *config.options, "--driver", driver, "--out", str(folder)]
    code = "import sys, cljax.cli; sys.exit(cljax.cli.main(sys.argv[1:]))"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    while not (folder / "config.json").exists() and process.poll() is None:
        time.sleep(0.01)
    return process


def finish(process: subprocess.Popen) -> str:
    """Waits for the end; what the process said."""
    said = process.communicate()[1].decode()
    if process.returncode:
        raise RuntimeError(f"The command ended with {process.returncode}: {said}")
    return said


def is_complete(folder: pathlib.Path) -> bool:
    """Whether the run was through before it was killed."""
    record = folder / "record.json"
    return record.exists() and json.loads(record.read_text())["complete"]


def ends(folder: pathlib.Path) -> tuple[list, dict[str, bytes]]:
    """A record's runs without their times, and the bytes of every leaf of every learner."""
    record = json.loads((folder / "record.json").read_text())
    runs = [{name: value for name, value in run.items() if name not in TIMES} for run in record["runs"]]
    leaves = {}
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        for tree in sorted(folder.glob("learners/*/*/*/tree")):
            found = jax.tree_util.tree_leaves_with_path(checkpointer.restore(tree))
            name = tree.relative_to(folder).parent.parent
            leaves |= {f"{name} {jax.tree_util.keystr(path)}": np.asarray(leaf).tobytes() for path, leaf in found}
    return runs, leaves


def main(config: Config) -> None:
    """Kills and compares, and writes what was found."""
    generator, rows = np.random.default_rng(config.seed), []
    with tempfile.TemporaryDirectory() as place:
        whole, span = {}, {}
        for driver in config.drivers:
            for name in ("first", "whole"):  # the first one also compiles
                folder = pathlib.Path(place) / f"{driver}-{name}"
                process = start(config, driver, folder)
                begun = time.monotonic()
                finish(process)
                whole[driver], span[driver] = ends(folder), time.monotonic() - begun
        while len(rows) < config.kills:
            driver = config.drivers[len(rows) % len(config.drivers)]
            folder = pathlib.Path(tempfile.mkdtemp(dir=place)) / "run"
            process, after = start(config, driver, folder), generator.uniform(0, span[driver])
            time.sleep(after)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            if process.returncode != -signal.SIGKILL or is_complete(folder):
                continue
            said = finish(start(config, driver, folder)).strip()
            same = [one == two for one, two in zip(ends(folder), whole[driver], strict=True)]
            rows.append({"driver": driver, "killed_after": round(after, 2), "record": same[0], "learners": same[1]})
            rows[-1]["said"] = said.splitlines()[-1] if said else "(before the first checkpoint)"
            print(json.dumps(rows[-1]), flush=True)
    equal = sum(row["record"] and row["learners"] for row in rows)
    result = {"experiment": "kill_and_resume", "kills": len(rows), "equal_ends": equal, "rows": rows}
    print(f"{equal} equal ends of {len(rows)} kills")
    write_result(config, "kill_and_resume", result, command_line("experiments.kill_and_resume"))


if __name__ == "__main__":
    main(tyro.cli(Config))
