"""Several devices: what `many_devices.py` tests, in a process that has eight."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import numpy as np

from cljax import streams
from cljax.training import driver
from cljax.training.start import NOTHING

EIGHT = "--xla_force_host_platform_device_count=8"


def test_what_holds_on_eight_devices_holds():
    """Compiled programs of several devices are kept as all others are."""
    environment = {**os.environ, "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {EIGHT}"}
    command = [sys.executable, "-m", "pytest", "-n0", "-q", "-p", "no:cacheprovider", "tests/many_devices.py"]
    root = pathlib.Path(__file__).parent.parent
    ended = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout


def test_fingerprints_before_a_checkpoint_of_other_devices():
    """Made equal to later ones where bits are kept; of tasks visited since, those of the first evaluation after."""
    schedule = streams.visits(((0, 1), (1, 1), (2, 1), (3, 1)))
    driven = driver.Driven(None, schedule, None, driver.Seeds([0], np.zeros(1), NOTHING, None), (0, 4), 0, 0, 1)
    found = np.arange(1, 17, dtype=np.uint32).reshape(1, 4, 4)
    pair = np.array([[[7, 7, 7, 7], [7, 8, 7, 8]]], np.uint32)
    after = driven._joined(found, 2, 4, pair)
    assert (after[:, [0, 2, 3]] == found[:, [0, 2, 3]]).all()
    assert after[0, 1].tolist() == [13, 14 ^ 1, 11, 12]
