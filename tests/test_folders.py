"""Run folders: what is refused, what is continued, what is left behind."""

import errno
import json
import os
import subprocess
import sys
import textwrap

import pytest

from cljax.storage import folders
from cljax.storage.folders import FolderError, claim

CONFIG = {"methods": ["finetune"], "training": {"learning_rate": 0.1, "seeds": [0, 1]}}


def finished(path, config=CONFIG, complete=True):
    with claim(path, config) as folder:
        folder.start()
        folder.save({"complete": complete, "runs": [{"method": "finetune"}]})
    return path


def test_writes_config_and_record(tmp_path):
    path = finished(tmp_path / "deep" / "run")
    assert json.loads((path / "config.json").read_text()) == CONFIG
    assert json.loads((path / "record.json").read_text())["complete"] is True
    assert sorted(os.listdir(path)) == [".lock", "config.json", "record.json"]


def test_nothing_is_left_where_nothing_was_written(tmp_path):
    with claim(tmp_path / "runs" / "run", CONFIG):
        assert (tmp_path / "runs" / "run").exists()
    assert not (tmp_path / "runs").exists()
    finished(tmp_path / "runs" / "other")
    with claim(tmp_path / "runs" / "run", CONFIG):
        pass
    assert os.listdir(tmp_path / "runs") == ["other"]
    (tmp_path / "mine").mkdir()
    with claim(tmp_path / "mine", CONFIG):
        pass
    assert (tmp_path / "mine").exists()
    with claim(tmp_path / "mine", {"other": 1}) as folder:
        assert folder.record is None


def test_a_finished_run_is_refused_unless_overwritten(tmp_path):
    path = finished(tmp_path / "run")
    before = (path / "record.json").read_bytes()
    with (
        pytest.raises(FolderError, match=r"holds a finished run of this configuration.*--overwrite"),
        claim(path, CONFIG),
    ):
        pass
    assert (path / "record.json").read_bytes() == before
    with claim(path, CONFIG, overwrite=True) as folder:
        assert folder.record is None
        assert (path / "record.json").read_bytes() == before
        folder.start()
        assert not (path / "record.json").exists()


def test_an_unfinished_run_is_continued(tmp_path):
    path = finished(tmp_path / "run", complete=False)
    with claim(path, CONFIG) as folder:
        folder.start()
        assert folder.record == {"complete": False, "runs": [{"method": "finetune"}]}
        assert (path / "record.json").exists()
    with claim(path, CONFIG, overwrite=True) as folder:
        assert folder.record is None


@pytest.mark.parametrize("overwrite", [False, True])
def test_another_configuration_is_refused_naming_the_fields(tmp_path, overwrite):
    path = finished(tmp_path / "run")
    other = {"methods": ["finetune"], "training": {"learning_rate": 0.2, "epochs": 3, "seeds": [0, 1]}}
    with pytest.raises(FolderError) as caught, claim(path, other, overwrite=overwrite):
        pass
    text = str(caught.value)
    assert "training.learning_rate (0.1 there, 0.2 now), training.epochs (null there, 3 now)" in text
    assert "seeds" not in text
    assert json.loads((path / "config.json").read_text()) == CONFIG


def test_what_is_no_run_folder_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FolderError, match="not empty and no run folder"), claim(tmp_path, CONFIG, overwrite=True):
        pass
    assert os.listdir(tmp_path) == ["notes.txt"]
    with pytest.raises(FolderError, match="is a file"), claim(tmp_path / "notes.txt", CONFIG):
        pass
    with pytest.raises(FolderError, match="cannot be written"), claim(tmp_path / "notes.txt" / "run", CONFIG):
        pass
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("[1]")
    with pytest.raises(FolderError, match="not a run's configuration"), claim(tmp_path / "other", CONFIG):
        pass


def test_a_folder_in_use_is_refused_until_its_process_dies(tmp_path):
    code = """
        import sys, cljax.storage.folders
        with cljax.storage.folders.claim(sys.argv[1], {}) as folder:
            folder.start()
            print("held", flush=True)
            sys.stdin.read()
    """
    path = tmp_path / "run"
    other = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(FolderError, match="in use by another process"), claim(path, {}):
            pass
        other.kill()
        other.wait()
        with claim(path, {}) as folder:
            assert folder.record is None


def test_a_failed_write_leaves_the_old_record(tmp_path):
    path = finished(tmp_path / "run", complete=False)
    before = (path / "record.json").read_bytes()
    with claim(path, CONFIG) as folder:
        for value in (float("nan"), {"a": object()}):
            with pytest.raises((ValueError, TypeError)):
                folder.save({"runs": value})
    assert (path / "record.json").read_bytes() == before
    assert sorted(os.listdir(path)) == [".lock", "config.json", "record.json"]


def test_runs_begun_in_one_second_have_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(folders.time, "strftime", lambda form: "20300101-120000")
    path = folders.fresh_path(tmp_path / "runs", "a/b-task")
    assert path == tmp_path / "runs" / "a_b-task-20300101-120000"
    with claim(path, CONFIG, fresh=True) as first, claim(path, CONFIG, fresh=True) as second:
        first.start()
        assert (first.path, second.path) == (path, path.with_name(f"{path.name}-2"))
        with claim(path, CONFIG, fresh=True) as third:
            assert third.path == path.with_name(f"{path.name}-3")
    assert os.listdir(tmp_path / "runs") == [path.name]
    long = folders.fresh_path(tmp_path, "Zahl-ä" * 99)
    assert len(os.fsencode(long.name)) <= 255
    with claim(long, CONFIG, fresh=True) as folder:
        assert folder.path.is_dir()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is not strict JSON"),
        ('{"complete": true, "runs": [', "is not strict JSON"),
        ("null", "is not a run's record"),
        ("[1]", "is not a run's record"),
        ('{"runs": {}}', "is not a run's record"),
        ("[" * 100_000, "is nested too deeply"),
        (None, "is not a regular file"),
    ],
)
def test_a_damaged_record_is_kept_and_named(content, words, tmp_path):
    path = finished(tmp_path / "run")
    record = path / "record.json"
    record.unlink()
    record.mkdir() if content is None else record.write_text(content)
    with (
        pytest.raises(FolderError, match=f"record.json {words}.*Nothing in its folder is changed") as caught,
        claim(path, CONFIG),
    ):
        pass
    assert "--overwrite" in str(caught.value)
    assert folders.interrupted(tmp_path, CONFIG) == path  # so that --resume says so, too
    if content is None:
        with (
            pytest.raises(FolderError, match=r"record.json stands where the run has a file"),
            claim(path, CONFIG, overwrite=True),
        ):
            pass
        return
    assert record.read_text() == content
    with claim(path, CONFIG, overwrite=True) as folder:
        folder.start()
        assert not record.exists()


@pytest.mark.parametrize("name", ["config.json", "record.json"])
@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.EMFILE])
def test_what_cannot_be_read_now_is_no_reason_to_begin_anew(name, number, tmp_path, monkeypatch):
    path = finished(tmp_path / "run", complete=False)
    before = {entry.name: entry.read_bytes() for entry in path.iterdir()}
    whole = os.open

    def broken(place, *arguments, **options):
        if os.path.basename(place) == name:
            raise OSError(number, os.strerror(number))
        return whole(place, *arguments, **options)

    monkeypatch.setattr(os, "open", broken)
    with (
        pytest.raises(FolderError, match=f"{name} cannot be read \\({os.strerror(number)}\\), so nothing"),
        claim(path, CONFIG),
    ):
        pass
    monkeypatch.undo()
    assert {entry.name: entry.read_bytes() for entry in path.iterdir()} == before


def test_a_pipe_in_a_run_folder_does_not_hang(tmp_path):
    for name, kept in (("config.json", "record.json"), ("record.json", "config.json")):
        path = finished(tmp_path / name)
        (path / name).unlink()
        os.mkfifo(path / name)
        with pytest.raises(FolderError, match=f"{name} is not a regular file"), claim(path, CONFIG):
            pass
        assert (path / kept).exists()
    assert folders.interrupted(tmp_path, CONFIG) == tmp_path / "record.json"


@pytest.mark.parametrize("place", ["checkpoints", "learners/lwf", "learners/lwf/seed-0", "tensorboard/lwf"])
def test_a_file_where_a_folder_belongs_is_refused_before_the_run(place, tmp_path):
    path = finished(tmp_path / "run", complete=False)
    (path / place).parent.mkdir(parents=True, exist_ok=True)
    (path / place).write_text("mine")
    with (
        pytest.raises(FolderError, match=f"{place} stands where the run has a folder. Move it away"),
        claim(path, CONFIG, names=["lwf"]),
    ):
        pass
    assert (path / place).read_text() == "mine"


def test_only_the_runs_own_is_removed(tmp_path):
    path = finished(tmp_path / "run", complete=False)
    series = "checkpoints/lwf/group-0"
    checkpoints = [f"{series}/00000007/tree", f"{series}/00000006.refused/tree", f"{series}/.draft-8/tree"]
    own = [*checkpoints, "learners/lwf/seed-0", "tensorboard/lwf/seed-12"]
    others = [
        f"{series}/99",
        f"{series}/20260101",  # a user's, and no checkpoint
        "checkpoints/notes",
        "learners/lwf/seed-\u00b2",
        "learners/mine",
        "plots",
        "learners/a",
    ]
    for name in (*own, *others):
        (path / name).mkdir(parents=True)
        (path / name / "file").write_text(name)
    (path / ".record.json-abcdef12").write_text("{")  # of a write that was killed
    (path / ".record.json-mine").write_text("{")
    with claim(path, CONFIG, names=["lwf", "a"], overwrite=True) as folder:
        folder.start()
        folder.forget("lwf")
    assert not (path / series / "00000007").exists()
    found = {str(entry.parent.relative_to(path)) for entry in path.rglob("file")}
    assert found == set(others)
    assert not any((path / name).exists() for name in own)
    assert {entry.name for entry in path.iterdir() if entry.is_file()} == {".lock", ".record.json-mine", "config.json"}


def test_without_locks_a_run_goes_on_and_knows_it(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    with claim(tmp_path / "run", CONFIG) as folder:
        assert folder.locked
        folder.start()
    monkeypatch.setattr(folders.fcntl, "flock", flock)
    with claim(tmp_path / "run", CONFIG) as folder:
        assert not folder.locked
    assert folders.interrupted(tmp_path, CONFIG) == tmp_path / "run"


def test_names_that_no_file_system_takes_and_homes_that_are_not_known(tmp_path, monkeypatch):
    for path, words in ((tmp_path / ("x" * 256), "File name too long"), ("~nobody-there/run", "no such home folder")):
        with pytest.raises(FolderError, match=words), claim(path, CONFIG):
            pass
    folder = tmp_path / os.fsdecode(b"caf\xe9 [bold]*$^$")
    with claim(folder, {"data": os.fsdecode(b"\xff")}) as claimed:
        claimed.start()
        claimed.save({"runs": [], "data": os.fsdecode(b"\xff")})
    assert json.loads((folder / "record.json").read_text())["data"] == "\udcff"
    with claim(folder, {"data": "\udcff"}) as claimed:
        assert claimed.record == {"runs": [], "data": "\udcff"}


def test_a_folder_that_cannot_be_entered_is_one_paragraph(tmp_path, monkeypatch):
    path = finished(tmp_path / "run", complete=False)

    def denied(place, *_):
        raise PermissionError(errno.EACCES, "Permission denied", str(place))

    monkeypatch.setattr(folders.os, "listdir", denied)
    with (
        pytest.raises(FolderError, match=r"run cannot be written \(Permission denied\). Choose another"),
        claim(path, CONFIG),
    ):
        pass
    assert folders.interrupted(tmp_path, CONFIG) is None


def test_a_complete_record_without_its_files_is_not_finished(tmp_path):
    path = finished(tmp_path / "run")
    with claim(path, CONFIG, needed=["plot.png"]) as folder:
        assert folder.record["complete"]
    assert folders.interrupted(tmp_path, CONFIG, needed=["plot.png"]) == path
    assert folders.interrupted(tmp_path, CONFIG) is None
    (path / "plot.png").write_text("")
    with pytest.raises(FolderError, match="holds a finished run"), claim(path, CONFIG, needed=["plot.png"]):
        pass
