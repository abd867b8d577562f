"""Checkpoints: round trips, damage, interruption at every point where a run is saved, and trained parameters."""

from __future__ import annotations

import functools
import itertools
import json
import math
import os
import pathlib
import re
import signal
import struct
import subprocess
import sys
import time
import types
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint
import pytest

from cljax import augmentation, cli, methods, report, streams, task_params, training
from cljax.data.on_demand import Images
from cljax.storage import checkpoints, folders, stored
from cljax.storage.checkpoints import Saving
from cljax.training import driver, identity, mesh, resume, streaming
from cljax.training.driver import Compiled
from cljax.training.loop import make_programs
from cljax.training.start import NOTHING
from cljax.types import make_clock
from tests import conformance
from tests.shared import bits, small

MOMENTUM = optax.sgd(1.0, momentum=0.9)
SETTINGS = training.Settings(batch_size=32, learning_rate=0.05, evaluation_batch=64)


class Pair(NamedTuple):
    first: Any
    second: Any


def example_tree():
    """Every kind of leaf there is, in every kind of container."""
    return Pair(
        {"float": jnp.float32(1.5), "bits": jnp.array([0, 2**32 - 1], jnp.uint32), "none": None, "empty": {}},
        [np.array([True, False]), jnp.ones((2, 3), jnp.bfloat16), (np.float64(0.1), 7, 2.5, True), np.zeros((0, 4))],
    )


def files(path):
    return sorted(file for file in (path / "tree").rglob("*") if file.is_file())


def test_a_tree_comes_back_by_bits_and_kinds(tmp_path):
    tree = example_tree()
    path = checkpoints.save(tmp_path / "series", tree, {"at": [1, 2]})
    found = checkpoints.restore(tmp_path / "series", tree)
    assert path.name == "00000001"
    assert (found.notes, found.message) == ({"at": [1, 2]}, "")
    assert jax.tree.structure(found.tree) == jax.tree.structure(tree)
    assert bits(found.tree) == bits(tree)
    kinds = [isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(found.tree)]
    assert kinds == [isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(tree)]
    assert [type(leaf) for leaf in found.tree.second[2][1:]] == [int, float, bool]
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), np.asarray(leaf).dtype), tree.first)
    restored = checkpoints.restore(tmp_path / "series", Pair(shapes, tree.second)).tree
    assert bits(restored) == bits(tree)
    assert {str(file.suffix) for file in files(path)} <= {"", ".txt", ".ocdbt"}  # nothing pickled


def test_what_cannot_be_saved_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"leaf 'a/key' is a PRNG key.*key_data"):
        checkpoints.save(tmp_path, {"a": {"key": jax.random.key(0)}})
    for value in (np.array(["x"]), np.array([None])):
        with pytest.raises(ValueError, match=r"leaf 'a' is of the type .*only numbers"):
            checkpoints.save(tmp_path, {"a": value})
    with pytest.raises(ValueError, match="not JSON compliant"):
        checkpoints.save(tmp_path, {"a": np.ones(1)}, {"loss": math.nan})
    assert list(tmp_path.iterdir()) == []


def test_names_do_not_run_into_one_another(tmp_path):
    tree = {"a.b": 1, "a": {"b": 2, "b/c": 3, "": 4}, "a/b": 5, "%2E": 6, "é ü": 7, "..": 8, "\\": 9, "[x]*?": 10}
    checkpoints.save(tmp_path, tree)
    assert checkpoints.restore(tmp_path, jax.tree.map(lambda leaf: 0, tree)).tree == tree
    with pytest.raises(ValueError, match="two of its leaves have one path"):
        checkpoints.load_params(tmp_path)
    checkpoints.save(tmp_path, np.arange(3))
    assert checkpoints.restore(tmp_path, np.zeros(3, int)).tree.tolist() == [0, 1, 2]


def test_the_last_two_are_kept_and_what_is_unfinished_goes(tmp_path):
    for number in range(4):
        checkpoints.save(tmp_path, {"x": np.int32(number)})
        if number == 2:
            (tmp_path / "00000003").rename(tmp_path / ".draft-3")  # killed before the end
            (tmp_path / ".draft-3" / "manifest.json").unlink()
            assert checkpoints.restore(tmp_path, {"x": np.int32(0)}).tree["x"] == 1
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["00000002", "00000003"]
    assert checkpoints.restore(tmp_path, {"x": np.int32(0)}).tree["x"] == 3


def test_what_is_not_of_the_series_is_left_alone(tmp_path):
    """Folders, files and links of any name, numbers too; a folder of one's own in a checkpoint."""
    (tmp_path / "other").mkdir()
    for name in ("99", "00000099", "\u00b2", "1" * 20, "99999999.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").write_text("mine")
    (tmp_path / "00000002").write_text("mine")
    os.symlink(tmp_path / "other", tmp_path / "00000100")
    before = sorted(os.listdir(tmp_path))
    for number in range(4):
        checkpoints.save(tmp_path, {"x": np.int32(number)})
        if number == 1:
            (tmp_path / "00000003" / "mine").mkdir()
    kept = ["00000003", "00000004", "00000005"]
    assert sorted(os.listdir(tmp_path)) == sorted([*before, *kept])
    assert all((tmp_path / name / "mine").read_text() == "mine" for name in ("99", "00000099", "\u00b2"))
    assert checkpoints.restore(tmp_path, {"x": np.int32(0)}).tree["x"] == 3


def truncate(path):
    largest = max(files(path), key=lambda file: file.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1])
    return largest.name


def change(path):
    largest = max(files(path), key=lambda file: file.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    return "was changed"


def lose(path):
    files(path)[-1].unlink()
    return "is missing"


def add(path):
    (path / "tree" / "more").write_text("x")
    return "not written with it, more"


def break_manifest(path):
    (path / "manifest.json").write_text('{"format": 1, "no')
    return "Unterminated string"


@pytest.mark.parametrize("damage", [truncate, change, lose, add, break_manifest])
def test_a_damaged_checkpoint_falls_back_and_says_so(damage, tmp_path):
    like = {"x": np.zeros(300, np.float32)}
    for number in (1, 2):
        checkpoints.save(tmp_path, {"x": np.full(300, number, np.float32)})
    what = damage(tmp_path / "00000002")
    found = checkpoints.restore(tmp_path, like)
    assert found.tree["x"].tolist() == [1.0] * 300
    assert found.message.startswith(f"The checkpoint {tmp_path / '00000002'} cannot be used: ")
    assert what in found.message
    assert found.message.endswith(f" Going back to {tmp_path / '00000001'}.")
    assert "\n" not in found.message
    assert checkpoints.restore(tmp_path, like).message == ""
    checkpoints.save(tmp_path, {"x": np.full(300, 3, np.float32)})
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["00000001", "00000002.refused", "00000003"]
    (tmp_path / "00000003.refused").mkdir()  # does not stop another of that number
    for number in (1, 3):
        damage(tmp_path / f"0000000{number}")
    found = checkpoints.restore(tmp_path, like)
    assert found.tree is None
    assert found.message.count("cannot be used") == 2
    assert found.message.endswith(" There is no other.")
    found = checkpoints.restore(tmp_path, like)  # and says so again
    assert found.tree is None
    assert "were set aside" in found.message
    for number in (1, 3):
        assert (tmp_path / f"0000000{number}.refused").exists()
    assert (tmp_path / "00000003.refused-2").exists()


@pytest.mark.parametrize(
    ("like", "words"),
    [
        ({"x": np.zeros(4, np.float32)}, r"'x' is float32[3], but here it is float32[4]"),
        ({"x": np.zeros(3, np.int32)}, r"'x' is float32[3], but here it is int32[3]"),
        ({"x": np.zeros(3, np.float32), "y": np.int32(0)}, "'y' is missing, but here it is int32[]"),
        ({"z": {"x": np.zeros(3, np.float32)}}, "'z/x' is missing"),
        ({}, "'x' is float32[3], but here it is not expected"),
    ],
)
def test_a_foreign_tree_is_recognised(like, words, tmp_path):
    for _ in range(2):
        checkpoints.save(tmp_path, {"x": np.zeros(3, np.float32)})
    with pytest.raises(checkpoints.CheckpointError, match=re.escape(f"it is of another tree: {words}")):
        checkpoints.restore(tmp_path, like)
    assert sorted(os.listdir(tmp_path)) == ["00000001", "00000002"]  # a read harms nothing


def test_ctrl_c_waits_until_a_save_is_done(tmp_path, monkeypatch):
    make = stored._checkpointer

    class Interrupted:
        def save(self, *arguments, **options):
            signal.raise_signal(signal.SIGINT)
            make().save(*arguments, **options)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    try:
        with monkeypatch.context() as patch:
            patch.setattr(stored, "_checkpointer", Interrupted)
            with pytest.raises(KeyboardInterrupt):
                checkpoints.save(tmp_path, {"a": np.ones(3)})
        assert checkpoints.restore(tmp_path, {"a": np.zeros(3)}).tree["a"].tolist() == [1, 1, 1]
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_empty_series_says_nothing(tmp_path):
    assert checkpoints.restore(tmp_path / "none", {}) == (None, {}, "")


@functools.cache
def three_tasks(seed, schedule):
    return conformance.stream(seed=seed, schedule=streams.visits(schedule))


class Case:
    """A run through programs that are compiled once, however often it is driven."""

    def __init__(self, build, schedule, *, seeds=1, vectorize=False, normalization=None, **settings):
        self.seeds = [(seed, three_tasks(seed, schedule)) for seed in range(seeds)]
        self.method = build(small(self.seeds[0][1], normalization=normalization))
        self.settings, self.vectorize = SETTINGS._replace(**settings), vectorize
        self.compiled = None

    def make(self, *arguments):
        self.compiled = self.compiled or Compiled(*arguments)
        return self.compiled

    def drive(self, saving=None, **options):
        options = {"vectorize": self.vectorize, "checkpoints": saving, **options}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(driver, "Compiled", self.make)
            patch.setattr(driver, "step_flops", lambda *arguments: None)
            patch.setattr(identity, "computation", lambda *arguments: "tested by itself")
            return driver.drive(self.method, MOMENTUM, self.seeds, self.settings, **options)


CASES = {
    "lwf, side by side, with patience": functools.partial(
        Case,
        functools.partial(methods.lwf, warm_up=0.5),
        ((0, 3), (1, 4), (2, 1)),
        seeds=2,
        vectorize=True,
        stopping=training.Patience(1, 10.0, 0.04),
    ),
    "tfm, searching side by side": functools.partial(
        Case,
        functools.partial(methods.tfm, candidates=(0.2, 0.6)),
        ((0, 1), (1, 1)),
        seeds=2,
        vectorize=True,
        normalization="feature",
        curves_every=1,
    ),
    "clnp, fine-tuning the candidate chosen": functools.partial(
        Case,
        functools.partial(methods.clnp, candidates=((1e-4, 0.05), (1e-3, 0.1)), margin=0.1, fine_tune=0.5),
        ((0, 2), (1, 2)),
        seeds=1,
    ),
}


def found_in(outcome):
    return bits((outcome.learners, outcome.evaluation, outcome.epochs, outcome.curves, outcome.curve_epochs))


def trained(outcome):
    return int(np.isfinite(outcome.epochs.loss).sum())


class Memory:
    """Stands in for the disk: the newest checkpoint of each series, and what there was after each save."""

    def __init__(self, series=None):
        self.series, self.moments = dict(series or {}), []

    def save(self, folder, tree, notes):
        copy = jax.tree.map(np.array, tree)
        self.series[folder.name] = (jax.tree.leaves(copy), json.loads(json.dumps(notes)))
        self.moments.append(dict(self.series))

    def notes(self, folder):
        return self.series.get(folder.name, (None, {}))[1]

    def restore(self, folder, like):
        if folder.name not in self.series:
            return checkpoints.Restored(None, {}, "")
        leaves, notes = self.series[folder.name]
        wanted, structure = jax.tree.flatten(like(notes))
        assert [(leaf.shape, leaf.dtype) for leaf in leaves] == [(leaf.shape, leaf.dtype) for leaf in wanted]
        kinds = [np.asarray if isinstance(leaf, np.ndarray) else jax.device_put for leaf in wanted]
        tree = structure.unflatten([kind(np.array(leaf)) for kind, leaf in zip(kinds, leaves, strict=True)])
        return checkpoints.Restored(tree, notes, "")


@pytest.mark.parametrize("name", CASES)
def test_a_resumed_run_ends_with_the_bits_of_an_uninterrupted_one(name, monkeypatch):
    """Interrupted after every save there is."""
    case = CASES[name]()
    whole, disk = case.drive(), Memory()
    monkeypatch.setattr(resume, "checkpoints", disk)
    events = []
    assert found_in(case.drive(Saving("run", 0.0), report=events.append)) == found_in(whole)
    # Each visit and candidate has a first save, one after each epoch and each phase.
    assert len(disk.moments) > len(events)
    done = 0
    for moment in disk.moments:
        monkeypatch.setattr(resume, "checkpoints", Memory(moment))
        rest = []
        resumed = case.drive(Saving("run", math.inf, say=lambda line: None), report=rest.append)
        assert found_in(resumed) == found_in(whole)
        assert len(rest) in (len(events) - done, len(events) - done - 1)
        done = len(events) - len(rest)
    assert done == len(events)
    if "patience" in name:
        assert trained(whole) < np.prod(whole.epochs.loss.shape)


@functools.cache
def in_turn():
    """Joint training of two seeds in turn, tasks visited again, with curves; and what comes out."""
    case = Case(methods.joint, ((0, 1), (1, 1), (0, 1), (2, 1)), seeds=2, validate=True, curves_every=1)
    return case, case.drive()


def test_a_run_that_is_thrown_out_again_and_again_gets_through(tmp_path):
    """On disk, seeds in turn: each try ends in its second epoch, before that is saved."""
    case, whole = in_turn()
    said, tries, saving = [], 0, Saving(tmp_path / "run", 0.0, say=lambda line: said.append(line))
    for tries in itertools.count(1):
        events = []

        def end(event, events=events):
            events.append(event)
            if len(events) == 2:
                raise TimeoutError

        try:
            outcome = case.drive(saving, report=end)
        except TimeoutError:
            assert len(said) == tries - 1 - (tries > 4)  # the second seed has no checkpoint before its first epoch
            continue
        break
    assert found_in(outcome) == found_in(whole)
    assert tries == trained(whole) == 8
    assert said[0] == "Taking up joint, seed 0, in round 2 of 4, after epoch 0 of phase 1."
    assert [line.split(" in ")[0] for line in said] == [f"Taking up joint, seed {seed}," for seed in "000111"]
    assert sorted(entry.name for entry in (tmp_path / "run").iterdir()) == ["group-0", "group-1"]
    said.clear()
    assert found_in(case.drive(saving, report=end)) == found_in(whole)  # nothing is left to do
    assert said == []


def test_another_run_s_checkpoint_is_refused_and_named(tmp_path):
    case, _ = in_turn()
    other = Case(methods.joint, ((0, 1), (1, 1), (0, 1), (2, 1)), seeds=1, validate=True, curves_every=0)
    other.compiled = case.compiled
    other.drive(Saving(tmp_path, 0.0))
    before = sorted(path.name for path in (tmp_path / "group-0").iterdir())
    with pytest.raises(checkpoints.CheckpointError, match=r"another run, which differs in settings.curves_every \(0 "):
        case.drive(Saving(tmp_path, math.inf))
    assert sorted(path.name for path in (tmp_path / "group-0").iterdir()) == before


def test_the_identity_of_a_run_knows_its_data():
    first, other = (conformance.stream(seed=seed).tables for seed in (0, 1))
    assert identity.division(first) == identity.division(jax.device_put(first)) != identity.division(other)
    images = np.array(first.examples)
    assert identity.examples(images) == identity.examples(jnp.asarray(images))
    changed = images.copy()
    changed[-1, -1, -1] += 1
    assert identity.examples(changed) != identity.examples(images)
    on_demand = [identity.examples(Images([values], values.shape[1:], name="x")) for values in (images, changed)]
    assert on_demand[0] != on_demand[1]


def test_the_identity_of_a_run_holds_its_examples_and_their_division(monkeypatch):
    first, other = (conformance.stream(seed=seed) for seed in (0, 1))
    images = np.array(first.tables.examples)
    images[0, 0, 0] += 1
    changed = first._replace(tables=first.tables._replace(examples=images))
    monkeypatch.setattr(identity, "computation", lambda *given: "the same")

    def of(stream):
        facts = identity.facts_of(types.SimpleNamespace(name="finetune"), SETTINGS, stream, None, streamed=False)
        return driver.identity_of(driver.Seeds([0], None, NOTHING, stream.tables), lambda: facts)

    assert of(first) == of(conformance.stream(seed=0))
    assert resume._differences(of(first), of(changed)) == ["the examples"]
    assert resume._differences(of(first), of(other)) == ["the division of the data"]


def test_the_identity_of_a_run_knows_what_is_computed():
    """Optimizer, its numbers, dropout, the network's constants, augmentation, the method: whatever changes a bit."""
    stream = three_tasks(0, ((0, 1), (1, 1)))

    def digest(method=methods.finetune, clip=1.0, optimizer=MOMENTUM, augment=None, **options):
        made = method(small(stream, **options))
        chain = optax.chain(optax.clip_by_global_norm(clip), optimizer)
        settings = SETTINGS._replace(augment=augment)
        engine = training.make_engine(
            made, chain, settings, scenario="task", max_examples=streams.max_examples(stream.tables)
        )
        return identity.computation(make_programs(made, engine, stream.schedule), stream.tables)

    found = [
        digest(),
        digest(clip=1.0000001),
        digest(optimizer=optax.sgd(1.0, momentum=0.8)),
        digest(dropout=0.1),
        digest(dropout=0.2),
        digest(augment=augmentation.flip()),
        digest(functools.partial(methods.l2_constraint)),
    ]
    assert len(set(found)) == len(found)
    assert digest() == found[0]


@pytest.mark.parametrize(("elsewhere", "compared"), [(False, 0), (True, 1)])
def test_what_another_machine_goes_on_with_is_compared_anew(tmp_path, monkeypatch, elsewhere, compared):
    """Its bits may differ where no weight has moved: what stands for the first task's, by fingerprint, is its own."""
    case = Case(methods.freezing, ((0, 1), (1, 1), (2, 1)))
    seen, calls = [], []

    def end(event):
        seen.append(event)
        if len(seen) == 3:
            raise TimeoutError

    with pytest.raises(TimeoutError):
        case.drive(Saving(tmp_path, 0.0, say=seen.append), report=end)
    if elsewhere:
        monkeypatch.setattr(mesh, "machine", lambda: 7)
    compare = case.compiled.compare_again
    monkeypatch.setattr(case.compiled, "compare_again", lambda *given: calls.append(1) or compare(*given))
    found = case.drive(Saving(tmp_path, 0.0, say=seen.append))
    assert len(calls) == compared
    assert report.zero_forgetting(found.evaluation.fingerprint, case.seeds[0][1].schedule.task)
    assert bits(found.learners) == bits(case.drive().learners)


def test_in_mid_epoch_a_streamed_epoch_goes_on(tmp_path, monkeypatch):
    """Saved after each chunk of a step; thrown out after a chunk's save, it goes on with the next one."""
    monkeypatch.setattr(streaming, "STEPS", 1)
    monkeypatch.setattr(driver, "step_flops", lambda *arguments: None)
    monkeypatch.setattr(identity, "computation", lambda *arguments: "tested by itself")
    (stream,) = [three_tasks(0, ((0, 1), (1, 1)))]
    examples = Images([np.asarray(stream.tables.examples)], (8, 8, 1), name="few digits")
    stream = stream._replace(tables=stream.tables._replace(examples=examples))
    method, made, places, kept = methods.finetune(small(stream)), [], [], resume.Checkpoints.offer

    def compile_once(*arguments):
        made.append(made[0] if made else streaming.Streamed(*arguments))
        return made[0]

    def offer(saved, place, run, watch, *, ended):
        kept(saved, place, run, watch, ended=ended)
        places.append((place, int(run.state.progress.step)))
        if len(places) in (2, 5):
            raise TimeoutError

    monkeypatch.setattr(driver, "Streamed", compile_once)
    monkeypatch.setattr(resume.Checkpoints, "offer", offer)
    whole = driver.drive(method, MOMENTUM, [(0, stream)], SETTINGS)
    saving = Saving(tmp_path, 0.0, say=lambda line: None)
    for _ in range(2):
        with pytest.raises(TimeoutError):
            driver.drive(method, MOMENTUM, [(0, stream)], SETTINGS, checkpoints=saving)
    outcome = driver.drive(method, MOMENTUM, [(0, stream)], SETTINGS, checkpoints=saving)
    assert found_in(outcome) == found_in(whole)
    assert [step for place, step in places if place == 0] == [1, 2, 3, 0]


def trained_leaves(outputs=3, hidden=6):
    """Leaves of a network of one dense layer, with values to be recognised."""
    shapes = {
        "dense_0/kernel": (64, hidden),
        "dense_0/bias": (hidden,),
        "head/kernel": (hidden, outputs),
        "head/bias": (outputs,),
    }
    return {
        name: (np.arange(math.prod(shape), dtype=np.float32).reshape(shape) - 5 - number) / 100
        for number, (name, shape) in enumerate(shapes.items())
    }


def write_safetensors(path, tensors, dtype="F32", separator="/"):
    """The format by its description: a length of 8 bytes, a JSON header, raw data."""
    header, data = {"__metadata__": {"by": "hand"}}, b""
    for name, value in tensors.items():
        raw = value.tobytes()
        offsets = [len(data), len(data) + len(raw)]
        header[name.replace("/", separator)] = {"dtype": dtype, "shape": list(value.shape), "data_offsets": offsets}
        data += raw
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


@pytest.mark.parametrize("separator", ["/", "."])
def test_safetensors_are_read(separator, tmp_path):
    values = trained_leaves()
    found = checkpoints.load_params(write_safetensors(tmp_path / "a.safetensors", values, separator=separator))
    assert list(found) == list(values)
    assert bits(found) == bits(values)


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        ("F16", np.array([[0.5, -2]], np.float16)),
        ("BF16", np.array([0.5, 3], jnp.bfloat16)),
        ("F64", np.array(0.1)),
        ("I64", np.array([-(2**40)])),
        ("U8", np.array([255], np.uint8)),
        ("BOOL", np.array([True, False])),
    ],
)
def test_types_of_safetensors(dtype, value, tmp_path):
    found = checkpoints.load_params(write_safetensors(tmp_path / "a.safetensors", {"x": value}, dtype))
    assert (found["x"].dtype, found["x"].shape, found["x"].tolist()) == (value.dtype, value.shape, value.tolist())


def test_a_safetensors_file_by_its_bytes(tmp_path):
    header = b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    file = tmp_path / "w.safetensors"
    file.write_bytes(bytes([len(header), 0, 0, 0, 0, 0, 0, 0]) + header + b"\x00\x00\x80\x3f\x00\x00\x00\xc0")
    assert checkpoints.load_params(file)["w"].tolist() == [1.0, -2.0]
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"w.safetensors cannot be read: .*Give .safetensors, .npz or an Orbax"):
        checkpoints.load_params(file)
    for content in (b"abc", b"\xff" * 20, bytes([2, 0, 0, 0, 0, 0, 0, 0]) + b"{]"):
        file.write_bytes(content)
        with pytest.raises(ValueError, match="cannot be read"):
            checkpoints.load_params(file)
    with pytest.raises(ValueError, match=r"There is no file or folder .*/none"):
        checkpoints.load_params(tmp_path / "none")
    write_safetensors(file, {"x": np.zeros(1, np.uint8)}, "F8_E4M3")
    with pytest.raises(ValueError, match="tensor x is of the type F8_E4M3"):
        checkpoints.load_params(file)


def nested(leaves):
    tree: dict = {}
    for name, leaf in leaves.items():
        outer, inner = name.split("/")
        tree.setdefault(outer, {})[inner] = leaf
    return tree


def test_parameters_from_orbax_checkpoints(tmp_path):
    """Of anybody's params, of Flax variables, of a learner that was kept."""
    values = trained_leaves()
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "params", nested(values))
        statistics = {"norm_0": {"mean": jnp.ones(6)}}
        variables = {"params": jax.tree.map(jnp.asarray, nested(values)), "batch_stats": statistics}
        checkpointer.save(tmp_path / "variables", variables)
    assert bits(checkpoints.load_params(tmp_path / "params")) == bits(values)
    found = checkpoints.load_params(tmp_path / "variables")
    assert sorted(found) == sorted([*values, "batch_stats/norm_0/mean"])
    assert all(found[name].tobytes() == values[name].tobytes() for name in values)
    _, outcome = in_turn()
    learner = outcome.learners[1]
    path = checkpoints.save(tmp_path / "learner", learner)
    for place in (tmp_path / "learner", path, path / "tree"):
        found = checkpoints.load_params(place)
        assert set(found) == {*values, "gates/dense_0"}
        assert found["head/kernel"].tobytes() == np.asarray(learner.params["head"]["kernel"]).tobytes()
    truncate(path)
    with pytest.raises(ValueError, match=r"learner cannot be read: its file .* has"):
        checkpoints.load_params(tmp_path / "learner")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"head/bias": np.zeros(5)}, "leaf 'head/bias' has shape (5,), but that of finetune has shape (3,). Build"),
        ({"dense_0/kernel": np.zeros((3, 6))}, "'dense_0/kernel' has shape (3, 6), but that of finetune has shape (64"),
        ({"dense_0/bias": None}, "The leaf 'dense_0/bias' of finetune, of shape (6,), is not among the given ones"),
        ({"dense_1/bias": np.zeros(2)}, "leaf 'dense_1/bias' of shape (2,) is none of finetune's, which are: dense_0/"),
    ],
)
def test_parameters_that_do_not_fit_are_named(change, words):
    given = {name: value for name, value in {**trained_leaves(), **change}.items() if value is not None}
    method = methods.finetune(small(three_tasks(0, ((0, 1), (1, 1)))))
    with pytest.raises(ValueError, match=re.escape(words)):
        training.given_params(method, given)


@pytest.mark.parametrize("build", [methods.finetune, methods.lwf])
def test_given_parameters_are_task_0_s(build):
    """Other rows stay as drawn; of a stack of rows the first is taken; a head may be left out."""
    stream = three_tasks(0, ((0, 1), (1, 1)))
    method, values, key = build(small(stream)), trained_leaves(), jax.random.key(0)
    assert ("head/kernel" in method.stacked) == (build is methods.lwf)
    stacked = {**values, "head/kernel": np.stack([values["head/kernel"], values["head/kernel"] + 1])}
    del stacked["head/bias"]
    engine_of = functools.partial(
        training.make_engine,
        optimizer=MOMENTUM,
        settings=SETTINGS,
        scenario="task",
        max_examples=streams.max_examples(stream.tables),
    )
    drawn = jax.jit(engine_of(method).init)(key, stream.tables)
    begin = jax.jit(engine_of(method).begin_visit)
    for given in (values, stacked):
        leaves = training.given_params(method, given)
        started = jax.jit(lambda learner, leaves: training.start_from(method, learner, leaves))(drawn, leaves)
        focused = begin(started, make_clock(), stream.tables, key)
        resting = task_params.write_back(focused, jnp.int32(0))
        for name in ("kernel", "bias"):
            assert np.asarray(focused.params["dense_0"][name]).tobytes() == values[f"dense_0/{name}"].tobytes()
            head, old = (np.asarray(learner.params["head"][name]) for learner in (resting, drawn))
            assert head[0].tobytes() == (values[f"head/{name}"] if f"head/{name}" in given else old[0]).tobytes()
            assert head[1:].tobytes() == old[1:].tobytes()
        later = begin(started, make_clock(task=1), stream.tables, key)
        assert bits(later.params) == bits(task_params.focus(started, jnp.int32(1)).params)


def test_a_first_task_without_training_nor_training_data():
    """The hooks run, the given parameters are evaluated, no epoch is logged, later tasks train."""
    stream = three_tasks(0, ((0, 0), (1, 2), (2, 1)))
    train = stream.tables.train
    size = np.array(train.size)
    size[0] = 0
    stream = stream._replace(tables=stream.tables._replace(train=train._replace(size=size)))
    base, values = methods.finetune(small(stream)), trained_leaves()

    def init(key, sizes):
        params, collections, _, hyper = base.init(key, sizes)
        return params, collections, {"begun": jnp.zeros(3), "ended": jnp.zeros(3), "folded": jnp.zeros(3)}, hyper

    def count(name):
        def hook(learner, clock, fold, key):
            state = learner.method_state
            folded = fold(lambda total, batch: total + jnp.sum(batch.weights), jnp.float32(0.0))
            changed = {name: state[name].at[clock.task].add(1.0), "folded": state["folded"].at[clock.task].set(folded)}
            return learner._replace(method_state={**state, **changed})

        return hook

    counting = base._replace(init=init, begin_task=count("begun"), end_phase=count("ended"))
    settings = SETTINGS._replace(stopping=training.Patience(5))
    run = training.make_run(counting, MOMENTUM, stream, settings)
    result = run(jax.random.key(0), stream.tables, training.given_params(counting, values))
    state = result.learner.method_state
    assert state["begun"].tolist() == state["ended"].tolist() == [1.0, 1.0, 1.0]
    assert state["folded"].tolist() == size.tolist()
    assert np.isfinite(result.epochs.loss[:, 0]).tolist() == [[False, False], [True, True], [True, False]]
    test, network = stream.tables.test, base.network
    rows_of_0 = np.asarray(test.index)[test.start[0] : test.start[0] + test.size[0]]
    images, labels = stream.tables.examples[rows_of_0], np.asarray(test.labels)[: test.size[0]]
    logits = network.apply(nested(values), network.init(jax.random.key(0))[1], jnp.asarray(images)).logits
    expected = np.where(stream.tables.classes[0], logits, -np.inf).argmax(1) == labels
    np.testing.assert_allclose(result.evaluation.accuracy[0, 0], expected.mean(), rtol=1e-6)


@pytest.mark.parametrize("vectorize", [False, True])
def test_each_seed_begins_with_its_own_parameters_through_the_same_programs(vectorize, tmp_path, monkeypatch):
    """They are data of the run: nothing is traced anew, and no checkpoint of other ones is taken up."""
    monkeypatch.setattr(driver, "step_flops", lambda *arguments: None)
    monkeypatch.setattr(identity, "computation", lambda *arguments: "tested by itself")
    stream, values = three_tasks(0, ((0, 0), (1, 1))), trained_leaves()
    method = methods.freezing(small(stream))
    starts = [values, {name: leaf + 1 for name, leaf in values.items()}]

    def go(starts, **options):
        return driver.drive(
            method, MOMENTUM, [(0, stream), (1, stream)], SETTINGS, starts=starts, vectorize=vectorize, **options
        )

    outcome = go(starts, checkpoints=Saving(tmp_path, 0.0, 1.0))
    assert outcome.traces == 1
    for learner, given in zip(outcome.learners, starts, strict=True):
        assert np.asarray(learner.params["dense_0"]["kernel"]).tobytes() == given["dense_0/kernel"].tobytes()
        assert np.asarray(learner.params["head"]["bias"][0]).tobytes() == given["head/bias"].tobytes()
        assert (learner.params["head"]["bias"][1] != given["head/bias"]).any()
    with pytest.raises(checkpoints.CheckpointError, match="start"):
        go(starts[::-1], checkpoints=Saving(tmp_path, 0.0, 1.0))
    for wrong in (starts[:1], [values, {"dense_0/kernel": values["dense_0/kernel"], "dense_0/bias": np.zeros(6)}]):
        with pytest.raises(ValueError, match="starts must be 2 mappings of the same leaves"):
            go(wrong)


def test_only_the_first_round_may_have_no_epochs():
    stream = three_tasks(0, ((0, 1), (1, 1)))
    method = methods.finetune(small(stream))
    schedule = stream.schedule._replace(epochs=np.array([1, 0], np.int32))
    with pytest.raises(ValueError, match=r"visits task 1 for 0 epochs; .* Only at the beginning some may take none"):
        training.check(method, stream._replace(schedule=schedule), SETTINGS)
    train = stream.tables.train._replace(size=np.array([0, 9, 9], np.int32))
    with pytest.raises(ValueError, match=r"Task 0 .*has no train examples. Give its classes some, or leave"):
        training.check(method, stream._replace(tables=stream.tables._replace(train=train)), SETTINGS)


class Killed(NamedTuple):
    """A run of the command that was never stopped, its twin that was killed and taken up, and what that said."""

    whole: pathlib.Path
    resumed: pathlib.Path
    said: str


COMMAND = ["run", "finetune", "--seeds", "2", "--tasks", "2", "--epochs", "6"]
COMMAND += ["--hidden", "8", "--keep-learners", "--quiet"]


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Kills a process of the command as soon as it has saved in mid-visit; the rest is done in this process."""
    place = tmp_path_factory.mktemp("killed")
    with pytest.MonkeyPatch.context() as patch, open(place / "err", "w+") as stderr:
        patch.setenv("XDG_CACHE_HOME", str(place / "cache"))
        patch.chdir(place)
        assert cli.main([*COMMAND, "--out", "whole"]) == 0
        code = "import sys, cljax.cli; sys.exit(cljax.cli.main(sys.argv[1:]))"
        process = subprocess.Popen([sys.executable, "-c", code, *COMMAND, "--checkpoint-seconds", "0"])
        saved = lambda: list(place.glob("runs/*/checkpoints/finetune/group-1/*/manifest.json"))
        while not saved():
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        [run] = (place / "runs").iterdir()
        assert not (run / "record.json").exists()
        patch.setattr(sys, "stderr", stderr)
        assert cli.main([*COMMAND, "--resume"]) == 0
    return Killed(place / "whole", run, (place / "err").read_text())


TIMES = ("seconds", "compile_seconds")


def record_of(path):
    """The runs of a record, but for what tells the time."""
    record = json.loads((path / "record.json").read_text())
    assert record["complete"]
    return [{name: value for name, value in run.items() if name not in TIMES} for run in record["runs"]]


def test_a_killed_process_ends_like_one_that_was_not(killed):
    assert record_of(killed.resumed) == record_of(killed.whole)
    for seed in (0, 1):
        paths = [path / "learners" / "finetune" / f"seed-{seed}" for path in (killed.whole, killed.resumed)]
        whole, resumed = (checkpoints.load_params(path) for path in paths)
        assert list(whole) == list(resumed)
        assert bits(whole) == bits(resumed)
    assert killed.said.startswith("Taking up finetune, seed 1, in round ")
    left = sorted(entry.name for entry in killed.resumed.iterdir())
    assert left == [".lock", "config.json", "learners", "record.json"]


def test_the_command_starts_from_a_kept_learner(killed, tmp_path, capsys):
    kept = killed.whole / "learners" / "finetune" / "seed-1"
    given = ["--init", str(kept), "--first-epochs", "0"]
    common = ["--hidden", "8", "--tasks", "2", "--epochs", "1", "--seeds", "1", "--quiet"]
    assert cli.main(["run", "freezing", *given, *common, "--keep-learners", "--out", str(tmp_path / "run")]) == 0
    [run] = record_of(tmp_path / "run")
    assert run["epochs_trained"] == [[0, 1]]
    # The body is the given one, frozen; so is the head of task 0. The kept run had another division of its examples,
    # but the same test examples.
    before, after = (checkpoints.load_params(path) for path in (kept, tmp_path / "run/learners/freezing/seed-0"))
    assert after["dense_0/kernel"].tobytes() == before["dense_0/kernel"].tobytes()
    assert after["head/kernel"][0].tobytes() == before["head/kernel"][0].tobytes()
    assert after["head/kernel"][1].tobytes() != before["head/kernel"][1].tobytes()
    last = record_of(killed.whole)[0]["accuracy"][1][1][0]
    assert run["accuracy"][0][0][0] == run["accuracy"][0][1][0] == last
    capsys.readouterr()
    assert cli.main(["run", "freezing", *given, *common, "--hidden", "9", "--out", str(tmp_path / "b")]) == 2
    words = " ".join(capsys.readouterr().err.split())
    assert "leaf 'dense_0/bias' has shape (8,), but that of freezing has shape (9,)" in words


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--resume"], "There is no interrupted run of this configuration under runs/ that --resume could take up."),
        (["--resume", "--out", "none"], "There is no run in none that --resume could take up. Begin it without"),
        (["--resume", "--overwrite"], "--resume takes up an interrupted run, --overwrite begins it anew"),
        (["--first-epochs", "0"], "--first-epochs is 0, but must be at least 1 where --init gives no parameters"),
        (["--first-epochs", "3", "--schedule", "multi-task"], "--first-epochs has no meaning"),
        (["--checkpoint-seconds", "-1"], "--checkpoint-seconds is -1.0, but must be a finite number of at least 0"),
        (["--init", "none.safetensors"], "There is no file or folder"),
    ],
)
def test_options_that_cannot_be_are_refused(arguments, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["run", "finetune", "--no-cache", *arguments]) == 2
    assert words in " ".join(capsys.readouterr().err.split())
    assert os.listdir(tmp_path) in ([], ["runs"])


def test_the_newest_interrupted_run_of_a_configuration_is_found(tmp_path):
    config = {"learning_rate": 0.1}
    assert folders.interrupted(tmp_path / "runs", config) is None
    for number, (name, found, complete) in enumerate(
        [("a", config, False), ("b", config, False), ("c", config, True), ("d", {"learning_rate": 0.2}, False)]
    ):
        with folders.claim(tmp_path / name, found) as folder:
            folder.start()
            folder.save({"complete": complete, "runs": []})
        os.utime(tmp_path / name / "config.json", (number, number))
    assert folders.interrupted(tmp_path, config) == tmp_path / "b"
    with folders.claim(tmp_path / "b", config):
        assert folders.interrupted(tmp_path, config) == tmp_path / "a"


def test_overwriting_removes_checkpoints_and_learners(tmp_path):
    config = {"learning_rate": 0.1}
    for overwrite, left in ((False, True), (False, True), (True, False)):
        with folders.claim(tmp_path / "run", config, names=["lwf"], overwrite=overwrite) as folder:
            folder.start()
            places = (folder.checkpoints("lwf") / "group-0" / "00000001", folder.path / "learners" / "lwf" / "seed-0")
            assert all(place.exists() == (left and folder.record is not None) for place in places)
            for place in places:
                place.mkdir(parents=True, exist_ok=True)
            folder.save({"complete": False, "runs": []})
    folder.forget("lwf")
    assert not (tmp_path / "run" / "checkpoints").exists()
