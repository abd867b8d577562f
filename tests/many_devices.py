"""What holds on eight devices: run by `test_many_devices.py` in a process that has them."""

from __future__ import annotations

import functools
import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cljax import importance, memory, methods, report, streams, training
from cljax.cli import main
from cljax.keys import make_key
from cljax.storage import checkpoints
from cljax.storage.checkpoints import Saving
from cljax.training import driver, identity, mesh, streaming
from tests import conformance
from tests.shared import assert_close, noted, small
from tests.two_processes import of_one_process, share

SETTINGS = training.Settings(batch_size=8, learning_rate=0.05, evaluation_batch=32)
PASSED_ON = r"(all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(-start)?\("


@functools.cache
def tasks(*visits):
    return conformance.stream(schedule=streams.visits(visits))


def test_a_run_shared_by_seeds_and_batches_is_that_of_one_device():
    """Two seeds by two, batches by four: dropout's bits, batch statistics, exemplars, gradients, accuracies."""
    stream = tasks((0, 1), (1, 1))
    network = small(stream, normalization="batch", dropout=0.2)
    method = methods.build("lwf+replay", network, {"replay.memory_size": 20})
    run = training.make_run(method, optax.sgd(1.0, momentum=0.9), stream, SETTINGS)
    seeds = jax.vmap(run, in_axes=(0, None))
    keys, tables = jnp.stack([make_key(seed) for seed in (0, 1)]), jax.tree.map(jnp.asarray, stream.tables)
    devices = mesh.make_mesh(8, seeds=2, batch_size=SETTINGS.batch_size)
    assert dict(devices.shape) == {"seed": 2, "batch": 4}
    shared = jax.jit(mesh.across(seeds, devices, (0, None)), out_shardings=mesh.sharding(devices, seeds=True))
    found = shared(mesh.place(keys, devices, 0), mesh.place(tables, devices))
    alone = jax.jit(seeds)(keys, tables)
    assert_close(mesh.gathered(found.learner), alone.learner)
    assert_close(found.evaluation[:3], alone.evaluation[:3])
    assert_close(found.epochs, alone.epochs)
    weights = found.learner.params["head"]["kernel"]
    assert weights.sharding.spec == jax.sharding.PartitionSpec("seed")


@pytest.mark.parametrize("kind", ["exact", "sampled", "empirical", "memory_aware", "chunks"])
def test_importances_of_ones_own_shard_map_are_means_over_all_examples(kind):
    """Gradients by weights that all devices have alike would be summed over devices before they are squared."""
    draw = np.random.default_rng(0)
    weights, inputs = (draw.normal(size=size).astype(np.float32) for size in ((2, 3), (16, 2)))
    labels, chunk = np.arange(16, dtype=np.int32) % 3, 1 if kind == "chunks" else None
    log_probs = lambda w, x: jax.nn.log_softmax(x @ w)

    def measure(w, x, y):
        if kind == "memory_aware":
            return importance.memory_aware(lambda w, x: x @ w, w, x)
        key = jax.random.key(0)
        if kind == "sampled":  # the same draws whatever the place
            alone = lambda example: importance.fisher(log_probs, w, example[None], kind=kind, key=key)
            return sum(map(alone, x)) / len(x)
        return importance.fisher(log_probs, w, x, y, kind="empirical" if kind == "empirical" else "exact", chunk=chunk)

    devices = jax.make_mesh((8,), ("device",), axis_types=(jax.sharding.AxisType.Auto,))
    everywhere, own = jax.sharding.PartitionSpec(), jax.sharding.PartitionSpec("device")
    joined = lambda *arrays: jax.lax.pmean(measure(*arrays), "device")
    shared = jax.jit(jax.shard_map(joined, mesh=devices, in_specs=(everywhere, own, own), out_specs=everywhere))
    assert_close(shared(weights, inputs, labels), jax.jit(measure)(weights, inputs, labels))
    several = np.stack([weights] * 8)  # of devices each of which has a learner of its own
    each = lambda w, x, y: measure(w[0], x, y)[None]
    apart = jax.jit(jax.shard_map(each, mesh=devices, in_specs=(own, everywhere, everywhere), out_specs=own))
    assert_close(apart(several, inputs, labels)[3], jax.jit(measure)(weights, inputs, labels))


def test_exemplars_are_picked_within_ones_own_shard_map():
    features = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
    devices = jax.make_mesh((8,), ("device",), axis_types=(jax.sharding.AxisType.Auto,))
    own = jax.sharding.PartitionSpec("device")
    pick = lambda features: memory.herd_classes(features, jnp.zeros(len(features), jnp.int32), 1, 1)
    found = jax.jit(jax.shard_map(pick, mesh=devices, in_specs=own, out_specs=own))(features)
    assert [sorted(pair.tolist()) for pair in np.asarray(found).reshape(8, 2)] == [[0, memory.UNPICKED]] * 8


def test_a_batch_is_shared_where_it_is_drawn_and_nothing_changes_on_one_device():
    tables = jax.tree.map(jnp.asarray, tasks((0, 1)).tables)

    def drawn(size):
        return lambda: streams.sequential(tables, tables.train, jnp.int32(0), jnp.int32(1), size)

    def constraints(devices, size):
        return str(jax.make_jaxpr(mesh.across(drawn(size), devices))()).count("sharding_constraint[")

    assert "sharding_constraint" not in str(jax.make_jaxpr(drawn(8))())
    devices = mesh.make_mesh(4, batch_size=4)
    assert [constraints(devices, size) for size in (8, 6)] == [1, 0]
    assert constraints(mesh.make_mesh(4, seeds=4), 8) == 0
    one, many = jax.jit(drawn(8))(), jax.jit(mesh.across(drawn(8), devices))()
    jax.tree.map(np.testing.assert_array_equal, one, many)
    shapes = {shard.data.shape for shard in many.inputs.addressable_shards}
    assert shapes == {(2, *one.inputs.shape[1:])}


def test_a_run_that_was_begun_on_eight_devices_goes_on_on_two_and_ends_on_one(tmp_path, monkeypatch):
    stream = tasks((0, 1), (1, 2), (2, 2))
    method, made = methods.tfm(small(stream, hidden=(4,), normalization="feature")), share(monkeypatch)

    def drive(devices, epochs=math.inf, checkpoints=None):
        """So many epochs of both seeds, or all."""
        seen = []

        def end(event):
            seen.append(event)
            if len(seen) == epochs:
                raise TimeoutError

        return driver.drive(
            method,
            conformance.OPTIMIZERS["momentum"][0],
            [(seed, stream) for seed in (0, 1)],
            SETTINGS,
            vectorize=True,
            devices=devices,
            report=end,
            checkpoints=checkpoints,
        )

    said = []
    saving = Saving(tmp_path, 0.0, say=said.append)
    for devices, epochs in ((8, 3), (2, 2)):  # the last of these is not saved
        with pytest.raises(TimeoutError):
            drive(devices, epochs, saving)
    found = drive(1, checkpoints=saving)
    assert [line[: line.index(" of phase")] for line in said] == [
        "Taking up tfm, seed 0, in round 2 of 3, after epoch 1",
        "Taking up tfm, seed 0, in round 3 of 3, after epoch 0",
    ]
    alone = drive(1)
    assert_close(found.learners, alone.learners)
    assert_close(found.evaluation[:3], alone.evaluation[:3])
    assert_close(found.epochs, alone.epochs)
    assert found.shares == (1, 1)

    marks = found.evaluation.fingerprint
    assert (marks[:, :, 0] == marks[:, :1, 0]).all()
    assert (marks[:, 1:, 1] == marks[:, 1:2, 1]).all()
    assert report.zero_forgetting(marks, stream.schedule.task)
    assert (marks != 0).all()
    eight, two, one = (programs._epoch._compiled.as_text() for programs in made.values())
    assert [bool(re.search(PASSED_ON, epoch)) for epoch in (eight, two, one)] == [True, False, False]


def test_streamed_examples_are_shared_and_an_epoch_begun_on_four_devices_ends_on_one(tmp_path, monkeypatch):
    share(monkeypatch, "Streamed")
    monkeypatch.setattr(identity, "computation", of_one_process)
    monkeypatch.setattr(streaming, "STEPS", 2)
    stream = tasks((0, 2), (1, 2))
    (streamed, asked), ends, said = noted(stream), [], []
    method, save = methods.freezing(small(stream, hidden=(4,))), checkpoints.save

    def drive(devices, **options):
        optimizer = conformance.OPTIMIZERS["momentum"][0]
        return driver.drive(method, optimizer, [(0, streamed)], SETTINGS, devices=devices, **options)

    def stop(folder, run, notes):
        save(folder, run, notes)
        if (notes["place"], int(run.state.epoch), int(run.state.progress.step)) == (1, 1, 4):
            raise TimeoutError

    saving = Saving(tmp_path, 0.0, say=said.append)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save", stop)
        with pytest.raises(TimeoutError):
            drive(4, report=lambda event: ends.append(len(asked)), checkpoints=saving)
    epoch, task = asked[slice(*ends[:2])], stream.tables.train
    rows, expected = np.concatenate(epoch), task.index[: task.size[0]]
    np.testing.assert_array_equal(np.unique(rows), np.sort(expected))
    assert len(rows) <= -(-len(expected) // 8) * 8  # each once, but for those that the last batch wraps around to
    most = max(map(len, epoch)), max(map(len, asked[ends[1] :]))
    assert most == (4, 8)  # of two steps, and of an evaluation's batch, a fourth each

    found, alone = drive(1, checkpoints=saving), drive(1)
    assert said == ["Taking up freezing, seed 0, in round 2 of 2, after epoch 1 of phase 1."]
    assert_close(found.learners, alone.learners)
    assert_close(found.evaluation[:3], alone.evaluation[:3])
    assert_close(found.epochs, alone.epochs)
    assert (found.evaluation.fingerprint[:, 0, 0] == found.evaluation.fingerprint[:, 1, 0]).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"devices": 9}, "devices is 9, but JAX has 8 here .cpu.. Ask for at most so many."),
        ({"devices": 3}, "3 devices cannot share batches of 8 examples, but 2 can:"),
        ({"devices": 0}, "devices is 0, but must be a whole number from 1"),
    ],
)
def test_devices_that_cannot_be_had_are_refused(options, words):
    stream = tasks((0, 1), (1, 1))
    with pytest.raises(ValueError, match=words):
        training.drive(methods.finetune(small(stream)), optax.sgd(1.0), [(0, stream)], SETTINGS, **options)


def test_the_command_takes_all_devices_or_so_many(tmp_path, capsys):
    words = ["finetune", "--tasks", "2", "--epochs", "1", "--hidden", "4", "--fraction", "0.1", "--no-cache", "--seeds"]

    def run(*more):
        code = main(["run", *words, *more, "--out", str(tmp_path / "-".join(more))])
        return code, " ".join(capsys.readouterr().err.split())

    code, said = run("1")
    assert (code, "finetune: 8 devices, each batch by 8." in said) == (0, True)
    record = json.loads((tmp_path / "1" / "record.json").read_text())
    facts = record["runs"][0]["device"]
    assert [facts[name] for name in ("count", "share_seeds", "share_batches")] == [8, 1, 8]
    assert "devices" not in record["runs"][0]["config"]["training"]
    refused = "cljax: --devices is 9, but JAX has 8 here (cpu). Give at most so many."
    assert run("1", "--devices", "9") == (2, refused)
    code, said = run("3", "--vectorize", "yes", "--batch-size", "15", "--devices", "8")
    assert (code, "8 devices cannot share batches of 15 examples and 3 seeds, but 5 can" in said) == (2, True)
