"""Run folders: what is refused, what is continued, what is left behind."""

import json
import os
import subprocess
import sys
import textwrap

import pytest

from cljax import folders
from cljax.folders import FolderError, claim

CONFIG = {"methods": ["finetune"], "training": {"rate": 0.1, "seeds": [0, 1]}}


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
    other = {"methods": ["finetune"], "training": {"rate": 0.2, "epochs": 3, "seeds": [0, 1]}}
    with pytest.raises(FolderError) as caught, claim(path, other, overwrite=overwrite):
        pass
    text = str(caught.value)
    assert "training.rate (0.1 there, 0.2 now), training.epochs (null there, 3 now)" in text
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
        import sys, cljax.folders
        with cljax.folders.claim(sys.argv[1], {}) as folder:
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


def test_fresh_paths_do_not_collide(tmp_path, monkeypatch):
    monkeypatch.setattr(folders.time, "strftime", lambda form: "20300101-120000")
    first = folders.fresh_path(tmp_path, "a/b-task")
    assert first == tmp_path / "a_b-task-20300101-120000"
    first.mkdir()
    assert folders.fresh_path(tmp_path, "a/b-task").name == "a_b-task-20300101-120000-2"
