"""One of two processes with two devices each: `python -m tests.two_processes PORT NUMBER FOLDER`.

Together they train two seeds, interrupted once, and then one of them, each batch over all devices, of examples on the
devices and of others that are read as the run goes on.
"""

from __future__ import annotations

import functools
import gc
import sys

import jax
import numpy as np
import pytest
from jax._src.interpreters import mlir
from jax.experimental import multihost_utils

from cljax import cli, methods, streams, training
from cljax.cli.experiment import choose_driver
from cljax.cli.options import Options
from cljax.data.on_demand import ReadError
from cljax.storage.checkpoints import Saving
from cljax.training import bounds, driver, identity
from cljax.training.outcome import members
from tests import conformance
from tests.shared import Noting, assert_close, noted, small

SETTINGS = training.Settings(batch_size=8, learning_rate=0.05, evaluation_batch=32)


def case():
    """What drives a method that forgets nothing, and two seeds."""
    stream = conformance.stream(schedule=streams.visits(((0, 2), (1, 1))))
    method = methods.freezing(small(stream, hidden=(4,)))
    drive = functools.partial(training.drive, method, conformance.OPTIMIZERS["momentum"][0], settings=SETTINGS)
    return drive, [(seed, stream) for seed in (0, 1)]


def share(patch, kind="Compiled"):
    """What is driven again on the same devices goes through the same programs: those made so far, by mesh."""
    made, make = {}, getattr(driver, kind)
    patch.setattr(driver, kind, lambda *given: made.setdefault(given[2], make(*given)))
    patch.setattr(driver, "step_flops", lambda *given: None)
    return made


def main(port: str, number: str, folder: str) -> None:
    gc.disable()  # as in conftest.py, and so is this
    mlir.make_ir_context = functools.cache(getattr(mlir, "make_ir_context", int))
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=int(number))
    assert (jax.device_count(), jax.local_device_count()) == (4, 2)
    share(pytest.MonkeyPatch())
    identity.computation = of_one_process
    drive, seeds = case()
    seen, said = [], []

    def end(event):
        seen.append(event)
        if len(seen) == 2:
            raise TimeoutError

    saving = Saving(folder, 0.0, say=said.append)
    together = functools.partial(drive, seeds, vectorize=True, devices=4, checkpoints=saving)
    try:
        together(report=end)
    except TimeoutError:
        found = together()
    assert found.shares == (2, 2)
    expected = "Taking up freezing, seed 0, in round 1 of 2, after epoch 1 of phase 1."
    assert said == ([expected] if number == "0" else [])
    assert np.isfinite(found.evaluation.accuracy[:, :, 0]).all()
    assert (found.evaluation.fingerprint[:, 0, 0] == found.evaluation.fingerprint[:, 1, 0]).all()

    by_batch = functools.partial(drive, seeds[:1], devices=4, checkpoints=Saving(f"{folder}-by-batch", 0.0))
    for other in (by_batch(), by_batch()):  # the second is at its end already
        assert other.shares == (1, 4)
        same(other, members(found, [0]))
    (streamed, asked), ends, make = noted(seeds[0][1]), [], jax.make_mesh
    alternating = lambda *given, devices, **more: make(*given, devices=[*devices[::2], *devices[1::2]], **more)
    with pytest.MonkeyPatch.context() as patch:  # as on a TPU pod, where a process's devices are not next to each other
        patch.setattr(jax, "make_mesh", alternating)
        outcome = drive([(0, streamed)], devices=4, report=lambda event: ends.append(len(asked)))
    same(outcome, members(found, [0]))
    rows = np.concatenate(asked[slice(*ends[:2])])  # of the first task's second epoch
    read = multihost_utils.process_allgather(np.bincount(rows, minlength=len(streamed.tables.examples)))
    task = streamed.tables.train
    steps = -(-task.size[0] // SETTINGS.batch_size)
    assert (read.sum(axis=1) <= steps * SETTINGS.batch_size // 2).all()  # each process its half of every batch
    np.testing.assert_array_equal(np.flatnonzero(read.sum(axis=0)), np.sort(task.index[: task.size[0]]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bounds, "available_memory", lambda: 0 if number == "1" else None)
        assert choose_driver(Options()) == "scan"  # as the first one finds
    with pytest.MonkeyPatch.context() as patch:
        if number == "1":
            patch.setattr(Noting, "__getitems__", lost)
        method = methods.finetune(small(streamed, hidden=(4,))._replace(per_task=()))  # evaluated at the beginning
        says = "Another process could not read an example" if number == "0" else "'noted' could not be read: it is gone"
        with pytest.raises(ReadError, match=says):
            training.drive(method, conformance.OPTIMIZERS["momentum"][0], [(0, streamed)], SETTINGS, devices=4)
    words = ["run", "freezing", "--distributed", "--out", f"{folder}-command", "--keep-learners", "--tensorboard"]
    words += ["--tasks", "2", "--seed", "0", "--epochs", "1", "--hidden", "4", "--fraction", "0.1"]
    words += ["--no-cache", "--driver", "host"]
    assert cli.main(words) == 0
    with pytest.raises(ValueError, match=r"there are 4 in 2 processes, which must all have a part: ask for 4."):
        drive(seeds, vectorize=True, devices=2)


def of_one_process(*given):
    """What a checkpoint is known by: `test_checkpoints` has that of two processes."""
    return "of one process"


def lost(source, rows):
    raise FileNotFoundError("it is gone")


def same(found, alone):
    """Two outcomes, up to rounding."""
    assert_close(found.learners, alone.learners)
    assert_close(found.evaluation[:3], alone.evaluation[:3])
    assert_close(found.epochs, alone.epochs)


if __name__ == "__main__":
    main(*sys.argv[1:])
