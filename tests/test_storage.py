"""Hostile storage: limits, full disks, names taken for patterns, damaged and invented manifests, bombs."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import resource
import struct
import tracemalloc  # noqa: F401  (pytest's hook cannot import it at the limit)
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint
import pytest
from flax import linen, nnx
from flax.training import train_state

from cljax import cli, methods, networks, training
from cljax.storage import checkpoints, stored, trained
from cljax.training.programs import Watch
from cljax.training.resume import Checkpoints

LIKE = {"x": np.zeros(3, np.float32)}


def two(place):
    for number in (1, 2):
        checkpoints.save(place, {"x": np.full(3, number, np.float32)})
    return place / "00000002"


def is_whole(place):
    assert sorted(os.listdir(place)) == ["00000001", "00000002"]
    assert checkpoints.restore(place, LIKE).tree["x"].tolist() == [2.0] * 3


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # asyncio's, of its own sockets
def test_a_read_at_the_limit_of_open_files_harms_nothing(tmp_path):
    two(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened = []
    try:
        used = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 64
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 20, hard))
        with contextlib.suppress(OSError):
            while True:
                opened.append(os.open(os.devnull, os.O_RDONLY))
        with pytest.raises(OSError, match="open files"):
            checkpoints.restore(tmp_path, LIKE)
        os.close(opened.pop())  # enough to look, not enough to read
        with pytest.raises(OSError, match="open files"):
            checkpoints.restore(tmp_path, LIKE)
    finally:
        for handle in opened:
            os.close(handle)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    is_whole(tmp_path)


@pytest.mark.parametrize("error", [MemoryError, RuntimeError("of the library"), OSError(errno.EIO, "of the disk")])
def test_a_read_that_fails_harms_nothing(error, tmp_path, monkeypatch):
    two(tmp_path)

    class Failing:
        def restore(self, *arguments, **options):
            raise error

    with monkeypatch.context() as patch:
        patch.setattr(stored, "_checkpointer", Failing)
        with pytest.raises((OSError, MemoryError)):
            checkpoints.restore(tmp_path, LIKE)
    is_whole(tmp_path)


@pytest.mark.parametrize(
    "name", ["[a]", "runs [1]", "a*b?", "{a,b}", "gs:", "\\d", "a\nb", "é", "~", "x.orbax-checkpoint-tmp", b"\xff"]
)
def test_no_name_is_taken_for_a_pattern(name, tmp_path):
    place = tmp_path / os.fsdecode(name) / "s"
    path = two(place)
    is_whole(place)
    for given in (place, path, path / "tree"):
        assert checkpoints.load_params(given)["x"].tolist() == [2.0] * 3


def test_what_cannot_be_read_back_does_not_count(tmp_path, monkeypatch):
    two(tmp_path)

    class Forgetful:
        def save(self, place, args):
            args.item.pop("x")
            stored._orbax().Checkpointer(stored._orbax().StandardCheckpointHandler()).save(place, args=args)

    with monkeypatch.context() as patch:
        patch.setattr(stored, "_checkpointer", Forgetful)
        with pytest.raises(OSError, match="cannot be read back: x"):
            checkpoints.save(tmp_path, {**LIKE, "y": np.ones(1)})
    is_whole(tmp_path)


def full(monkeypatch, place):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def no_folder(monkeypatch, place):
    place.rename(place.with_name("aside"))
    place.write_text("a file")
    return lambda: (place.unlink(), place.with_name("aside").rename(place))


@pytest.mark.parametrize("trouble", [full, no_folder])
def test_a_save_that_fails_leaves_the_last_ones(trouble, tmp_path, monkeypatch, capfd):
    place = tmp_path / "series"
    two(place)
    noise = np.random.default_rng(0).random(100_000)
    mend = trouble(monkeypatch, place)
    try:
        with pytest.raises(OSError, match=r"No checkpoint can be saved in .*Earlier ones are whole") as raised:
            checkpoints.save(place, {"x": noise})
        assert "\n" not in str(raised.value)
    finally:
        mend()
    assert capfd.readouterr() == ("", "")
    is_whole(place)
    checkpoints.save(place, {"x": noise})
    assert checkpoints.restore(place, {"x": noise}).tree["x"].tobytes() == noise.tobytes()


def rewrite(path, change, *, sign=True):
    """Changes a manifest, and its checksum with it."""
    manifest = json.loads((path / "manifest.json").read_text())
    change(manifest)
    if sign:
        content = {name: value for name, value in manifest.items() if name != "checksum"}
        manifest["checksum"] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    (path / "manifest.json").write_text(json.dumps(manifest))


CHANGES = {
    "a bit of the notes": lambda manifest: manifest["notes"].update(at=3),
    "no checksum": lambda manifest: manifest.pop("checksum"),
    "the first format": lambda manifest: manifest.update(format=1),
    "a later format": lambda manifest: manifest.update(format=99),
    "a format that is none": lambda manifest: manifest.update(format=True),
}
SIGNED = {
    "a name too many": lambda manifest: manifest.update(more=1),
    "leaves that are a list": lambda manifest: manifest.update(leaves=[]),
    "a shape of -1": lambda manifest: manifest["leaves"].update(x=["float32", [-1]]),
    "a size that is text": lambda manifest: manifest["files"].update(x=["1", "2"]),
    "a file elsewhere": lambda manifest: manifest["files"].update({"../../00000001/manifest.json": [1, "2"]}),
}


@pytest.mark.parametrize("name", [*CHANGES, *SIGNED])
def test_a_manifest_that_was_changed_is_set_aside(name, tmp_path):
    path = two(tmp_path)
    rewrite(path, {**CHANGES, **SIGNED}[name], sign=name in SIGNED)
    found = checkpoints.restore(tmp_path, LIKE)
    assert found.tree["x"].tolist() == [1.0] * 3
    assert found.message.endswith(f"Going back to {tmp_path / '00000001'}.")
    assert sorted(os.listdir(tmp_path)) == ["00000001", "00000002.refused"]


def test_every_bit_of_a_manifest_counts(tmp_path):
    path = two(tmp_path) / "manifest.json"
    content = path.read_bytes()
    for place in range(0, len(content), 29):
        damaged = bytearray(content)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        try:
            changed = json.loads(damaged) != json.loads(content)
        except ValueError:
            changed = True
        if changed:
            with pytest.raises(checkpoints._Damaged):
                checkpoints._manifest(path.parent)


def test_a_later_format_is_an_error_and_left_as_it_is(tmp_path):
    rewrite(two(tmp_path), lambda manifest: manifest.update(format=3, more=[]))
    with pytest.raises(checkpoints.CheckpointError, match="of the format 3, but this version reads 1 to 2"):
        checkpoints.restore(tmp_path, LIKE)
    assert sorted(os.listdir(tmp_path)) == ["00000001", "00000002"]


def test_the_first_format_is_still_read(tmp_path):
    path = checkpoints.save(tmp_path, {"a": {"b": np.arange(3)}, "c": 2}, {"at": [1]})
    rewrite(path, lambda manifest: (manifest.update(format=1), manifest.pop("checksum")), sign=False)
    found = checkpoints.restore(tmp_path, {"a": {"b": np.zeros(3, int)}, "c": 0})
    assert (found.tree["a"]["b"].tolist(), found.tree["c"], found.notes, found.message) == (
        [0, 1, 2],
        2,
        {"at": [1]},
        "",
    )
    assert checkpoints.load_params(tmp_path)["a/b"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("kind", ["folder", "pipe", "deep"])
def test_a_manifest_that_is_no_file_of_json(kind, tmp_path):
    manifest = two(tmp_path) / "manifest.json"
    manifest.unlink()
    make = {
        "folder": manifest.mkdir,
        "pipe": lambda: os.mkfifo(manifest),
        "deep": lambda: manifest.write_text("[" * 10**6),
    }
    make[kind]()
    assert checkpoints.restore(tmp_path, LIKE).tree["x"].tolist() == [1.0] * 3


def zarr(place, **changes):
    """A checkpoint of Orbax, one file an array, with another form of it."""
    with orbax.checkpoint.Checkpointer(orbax.checkpoint.PyTreeCheckpointHandler(use_ocdbt=False)) as checkpointer:
        checkpointer.save(place, args=orbax.checkpoint.args.PyTreeSave({"a": {"b": np.arange(5.0)}}))
    form = place / "a.b" / ".zarray"
    form.write_text(json.dumps({**json.loads(form.read_text()), **changes}))
    return place


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"chunks": [2**36]}, "is stored in 1 chunks of shape"),
        ({"shape": [2**38], "chunks": [2**38]}, "bytes of memory are free"),
        ({"shape": [2**38]}, "chunks of shape (5,)"),
        ({"chunks": [0]}, "a side is 0"),
        ({"shape": [-1]}, "a side is -1"),
        ({"shape": [5, 5]}, "has a form that cannot be"),
        ({"dtype": "|O"}, "has a form that cannot be"),
        ({"dtype": 7}, "has a form that cannot be"),
    ],
)
def test_an_array_of_any_form_ends_in_an_error(changes, words, tmp_path):
    with pytest.raises(ValueError, match="cannot be read") as raised:
        checkpoints.load_params(zarr(tmp_path / "a", **changes))
    assert words in str(raised.value)


def test_a_pipe_in_a_checkpoint_does_not_hang(tmp_path):
    place = zarr(tmp_path / "a")
    assert checkpoints.load_params(place)["a/b"].tolist() == [0, 1, 2, 3, 4]
    os.mkfifo(place / "pipe")
    with pytest.raises(ValueError, match="something that is no file, pipe"):
        checkpoints.load_params(place)


def one(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ({"a": one(offsets=(-8, 0))}, "an offset of its tensor a is -8"),
        ({"a": one(), "b": one()}, "its tensor b begins at byte 0, not at 8"),
        ({"a": one(), "b": one(offsets=(4, 12))}, "begins at byte 4, not at 8"),
        ({"a": one(shape=[-1])}, "a side of its tensor a is -1"),
        ({"a": one(shape=[True, 2])}, "must be a whole number"),
        ({"a": one(shape=[3])}, "its tensor a has 8 bytes, not those of"),
        ({"a": one(offsets=(8, 0), shape=[0])}, "begins at byte 8"),
        ({"a": one(offsets=(0, 4), shape=[1])}, "it has 12 bytes more than its tensors"),
        ({"a": one(shape=[2**62, 2**62])}, "not those of"),
        ({"a": one(offsets=(0, 2**50), shape=[2**48])}, "truncated"),
        ({"a": {"dtype": "F32"}}, "is not described"),
        ({"a": one(dtype="BOOL", shape=[8]), "b": one(offsets=(8, 16))}, "neither false nor true"),
        ({"a.b": one(), "a/b": one(offsets=(8, 16))}, "two of its tensors have one name"),
        ([1], "no JSON object"),
    ],
)
def test_a_safetensors_header_that_contradicts_itself(header, words, tmp_path):
    text = json.dumps(header).encode()
    file = tmp_path / "a.safetensors"
    file.write_bytes(struct.pack("<Q", len(text)) + text + np.arange(4, dtype="<f4").tobytes())
    with pytest.raises(ValueError, match="cannot be read") as raised:
        checkpoints.load_params(file)
    assert words in str(raised.value)


class Small(linen.Module):
    @linen.compact
    def __call__(self, x, train=False):
        del train
        x = linen.Dense(4, name="dense_0")(x)
        return linen.Dense(2, name="head")(linen.BatchNorm(use_running_average=True, name="norm")(x))


class TrainState(train_state.TrainState):
    batch_stats: dict
    key: jax.Array


@pytest.fixture(scope="module")
def variables():
    return Small().init(jax.random.key(3), jnp.ones((1, 3)))


@pytest.fixture(scope="module")
def state(variables):
    given = {"params": variables["params"], "batch_stats": variables["batch_stats"], "key": jax.random.PRNGKey(0)}
    return TrainState.create(apply_fn=None, tx=optax.adam(1.0), **given)


def expected(variables):
    flat = stored.flatten(variables, str)
    return {name.removeprefix("params/"): np.asarray(leaf).tobytes() for name, leaf in flat.items()}


def by_bits(leaves):
    return {name: np.asarray(leaf).tobytes() for name, leaf in leaves.items()}


def test_flax_s_own_checkpoints_are_read(variables, state, tmp_path):
    """A train state, alone, beside other things, of whole variables; a manager's folder, a step, an item."""
    wanted = expected(variables)
    whole = train_state.TrainState.create(apply_fn=None, params=variables, tx=optax.adam(1.0))
    beside = {"model": state, "config": {"sizes": np.array([1, 2])}, "data": [np.ones(3)]}
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        for name, tree in {"state": state, "whole": whole, "beside": beside}.items():
            checkpointer.save(tmp_path / name, tree)
    args = orbax.checkpoint.args
    with orbax.checkpoint.CheckpointManager(tmp_path / "manager") as manager:
        for step in (9, 10):
            shifted = state.replace(params=jax.tree.map(lambda leaf, step=step: leaf + (10 - step), state.params))
            manager.save(step, args=args.StandardSave(shifted))
        manager.wait_until_finished()
    prefixed = orbax.checkpoint.CheckpointManagerOptions(step_prefix="ckpt")
    with orbax.checkpoint.CheckpointManager(tmp_path / "named", options=prefixed) as manager:
        manager.save(7, args=args.Composite(state=args.StandardSave(state), extra=args.JsonSave({"a": 1})))
        manager.wait_until_finished()
    places = ["state", "whole", "beside", "manager", "manager/10", "manager/10/default", "named", "named/ckpt_7"]
    for place in places:
        assert by_bits(checkpoints.load_params(tmp_path / place)) == wanted, place
    assert by_bits(checkpoints.load_params(tmp_path / "manager" / "9")) != wanted
    (tmp_path / "empty" / "3").mkdir(parents=True)
    for place in ("empty", "named/ckpt_7/extra"):
        with pytest.raises(ValueError, match="it has no folders of parameters"):
            checkpoints.load_params(tmp_path / place)


class Module(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(3, 4, rngs=rngs)
        self.norm, self.drop = nnx.BatchNorm(4, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        return self.head(self.drop(self.norm(self.hidden(x))))


def test_an_nnx_state_is_a_start(tmp_path):
    """On disk and as it is; its statistics go to the collection that the network has them in."""
    module = Module(nnx.Rngs(5))
    module.norm.mean.set_value(jnp.arange(4.0))
    plain = nnx.to_pure_dict(nnx.state(module))
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", nnx.state(module))
        checkpointer.save(tmp_path / "plain", plain)
    found = checkpoints.load_params(tmp_path / "state")
    assert by_bits(found) == by_bits(checkpoints.load_params(tmp_path / "plain"))
    assert set(found) == {f"{name}/{leaf}" for name in ("hidden", "head") for leaf in ("kernel", "bias")} | {
        f"norm/{leaf}" for leaf in ("scale", "bias", "mean", "var")
    }
    method = methods.finetune(networks.from_nnx(Module, (3,), outputs=2))
    for given in (found, plain, nnx.state(module)):
        leaves = training.given_params(method, given)
        assert leaves["batch_stats/norm/mean"].tolist() == [0, 1, 2, 3]
        assert leaves["head/kernel"].tobytes() == np.asarray(module.head.kernel[...]).tobytes()


def test_nested_variables_are_a_start(variables, state):
    method = methods.finetune(networks.from_linen(Small(), (3,), outputs=2))
    wanted = expected(variables)
    for given in (variables, {"params": variables}, state, expected_arrays(variables)):
        leaves = training.given_params(method, given)
        assert by_bits(leaves) == wanted
    with pytest.raises(ValueError, match="wo leaves have the path 'head/bias'"):
        training.given_params(method, {"head": {"bias": np.ones(2)}, "head/bias": np.ones(2)})


def expected_arrays(variables):
    return {name.removeprefix("params/"): np.asarray(leaf) for name, leaf in stored.flatten(variables, str).items()}


@pytest.mark.parametrize(
    ("leaves", "words"),
    [
        ({"a/params/x": 1, "b/params/x": 2}, "parameters in several places: a/, b/"),
        ({"params/n/x": 1, "collections/n/x": 2}, "two leaves have the path 'n/x'"),
    ],
)
def test_parameters_that_might_be_several_are_refused(leaves, words):
    with pytest.raises(ValueError, match=words):
        trained.parameters(leaves)


def test_a_parameter_called_value_keeps_its_name():
    assert list(trained.parameters({"a/value": 1, "a/bias": 2})) == ["a/value", "a/bias"]


@pytest.mark.parametrize("notes", [{"place": -1}, {"place": 4}, {"place": 1.5}, {"place": None}, {"seconds": -1.0}])
def test_a_place_where_a_run_never_stands_is_refused(notes, tmp_path):
    saved = Checkpoints(checkpoints.Saving(tmp_path), 0, lambda: {"computation": 1, "examples": 2, "division": 3})
    watch = Watch(types.SimpleNamespace(seconds=0.0))
    saved.offer(0, LIKE, watch, ended=False)
    assert saved.take_up(LIKE, watch, 4) is None
    whole = {"run": {"computation": 1, "examples": 2, "division": 3}, "place": 3, "seconds": 5.0}
    checkpoints.save(tmp_path / "group-0", LIKE, whole)
    assert saved.take_up(LIKE, watch, 4)[0] == 3
    assert 5.0 <= watch.tick() < 6.0
    checkpoints.save(tmp_path / "group-0", LIKE, {**whole, **notes})
    with pytest.raises(checkpoints.CheckpointError, match="must be a"):
        saved.take_up(LIKE, watch, 4)


RUN = ["run", "finetune", "--seeds", "1", "--tasks", "2", "--epochs", "1", "--hidden", "4", "--quiet", "--no-cache"]


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """A run whose record could not be written, with its checkpoints."""
    place = tmp_path_factory.mktemp("interrupted") / "[run]"
    with pytest.MonkeyPatch.context() as patch:
        from cljax.storage import folders

        def full(self, record):
            raise OSError(errno.ENOSPC, "No space left on device", "record.json")

        patch.setattr(folders.RunFolder, "save", full)
        errors: list[str] = []
        patch.setattr(cli, "complain", lambda console, error, code: errors.append(str(error)) or code)
        code = cli.main([*RUN, "--checkpoint-seconds", "0", "--out", str(place)])
    return place, code, errors


def test_a_full_disk_is_one_paragraph_and_the_same_command_goes_on(interrupted, capfd):
    place, code, errors = interrupted
    assert code == 1
    assert len(errors) == 1
    assert "No space left on device" in errors[0]
    assert "\n" not in errors[0]
    series = place / "checkpoints" / "finetune" / "group-0"
    good = sorted(os.listdir(series))
    assert len(good) == 2

    def says(*options):
        code = cli.main([*RUN, "--checkpoint-seconds", "0", "--out", str(place), *options])
        return code, " ".join(capfd.readouterr().err.split())

    for name in good:  # nothing usable is left: the run stops, again and again, and loses nothing
        manifest = series / name / "manifest.json"
        manifest.write_text(manifest.read_text().replace('"place"', '"Place"'))
    for options in (["--resume"], [], ["--resume"]):
        code, said = says(*options)
        assert code == 1
        assert "With --overwrite the run begins anew." in said
        assert "Traceback" not in said
    for name in good:
        manifest = series / f"{name}.refused" / "manifest.json"
        manifest.write_text(manifest.read_text().replace('"Place"', '"place"'))
        (series / f"{name}.refused").rename(series / name)
    assert says("--resume")[0] == 0
    assert json.loads((place / "record.json").read_text())["complete"]
