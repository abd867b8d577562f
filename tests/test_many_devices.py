"""Several devices: what `many_devices.py` tests, in a process that has eight."""

from __future__ import annotations

import os
import pathlib
import socket
import subprocess
import sys

import numpy as np

from cljax import report, streams
from cljax.storage.checkpoints import Saving
from cljax.training import driver, identity
from cljax.training.start import NOTHING
from tests import two_processes

TWO, EIGHT = (f"--xla_force_host_platform_device_count={count}" for count in (2, 8))
ROOT = pathlib.Path(__file__).parent.parent


def test_what_holds_on_eight_devices_holds():
    """Compiled programs of several devices are kept as all others are."""
    environment = {**os.environ, "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {EIGHT}"}
    command = [sys.executable, "-m", "pytest", "-n0", "-q", "-p", "no:cacheprovider", "tests/many_devices.py"]
    ended = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout


def test_two_processes_find_what_one_finds(tmp_path, monkeypatch):
    """`two_processes.py`, twice; what they have saved together is taken up by this one, at its end."""
    environment = {**os.environ, "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {TWO}"}
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "tests.two_processes", str(port)]
    started = [
        subprocess.Popen(
            [*words, number, str(tmp_path / "run")],
            env=environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in ("0", "1")
    ]
    try:
        told = [process.communicate(timeout=600)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], "\n".join(told)
    record = report.read(tmp_path / "run-command")  # of `cljax run --distributed`: one process has written and told
    assert record["complete"]
    assert record["runs"][0]["device"]["share_batches"] == 4
    assert "freezing" in told[0]
    assert "freezing" not in told[1]
    assert (tmp_path / "run-command/learners/freezing/seed-0/00000001/manifest.json").exists()
    two_processes.share(monkeypatch)
    monkeypatch.setattr(identity, "computation", two_processes.of_one_process)
    drive, seeds = two_processes.case()
    said = []
    found = drive(seeds, vectorize=True, checkpoints=Saving(tmp_path / "run", 0.0, say=said.append))
    assert said == []  # nothing was left to do
    two_processes.same(found, drive(seeds, vectorize=True))


def test_fingerprints_before_a_checkpoint_of_other_devices():
    """Made equal to later ones where bits are kept; of tasks visited since, those of the first evaluation after."""
    schedule = streams.visits(((0, 1), (1, 1), (2, 1), (3, 1)))
    driven = driver.Driven(None, schedule, None, driver.Seeds([0], np.zeros(1), NOTHING, None), (0, 4), [], 0, 0, 1)
    found = np.arange(1, 17, dtype=np.uint32).reshape(1, 4, 4)
    pair = np.array([[[7, 7, 7, 7], [7, 8, 7, 8]]], np.uint32)
    after = driven._joined(found, 2, 4, pair)
    assert (after[:, [0, 2, 3]] == found[:, [0, 2, 3]]).all()
    assert after[0, 1].tolist() == [13, 14 ^ 1, 11, 12]
