"""Files that others made: pipes, folders, large, deep or broken ones; and writing whole or not at all."""

import os

import pytest

from cljax import files


def test_what_is_no_regular_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_bytes(b"abc")
    os.symlink(tmp_path / "file", tmp_path / "link")
    assert files.read_bytes(tmp_path / "link", 3) == b"abc"
    for name in ("pipe", "."):
        with pytest.raises(ValueError, match="is not a regular file"):
            files.read_bytes(tmp_path / name, 10)
    with pytest.raises(ValueError, match="is not a regular file"):
        files.read_json("/dev/zero")
    with pytest.raises(OSError, match="No such file"):
        files.read_bytes(tmp_path / "none", 10)


def test_a_large_file_is_refused(tmp_path):
    (tmp_path / "file").write_bytes(b"abcd")
    assert files.read_bytes(tmp_path / "file", 4) == b"abcd"
    with pytest.raises(ValueError, match="more than 3 bytes"):
        files.read_bytes(tmp_path / "file", 3)


@pytest.mark.parametrize("text", [b"[" * 1_000_000, b'{"a": NaN}', b'{"a": ', b"\xff\xfe", b"", b"1" * 5000])
def test_what_is_no_json_is_refused_by_name(tmp_path, text):
    (tmp_path / "file").write_bytes(text)
    with pytest.raises(ValueError, match="file "):
        files.read_json(tmp_path / "file")


def test_writing_is_whole_or_not_at_all(tmp_path):
    files.write_json(tmp_path / "file", {"a": [1, "ü"]})
    assert files.read_json(tmp_path / "file") == {"a": [1, "ü"]}
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(tmp_path / "file", {"a": float("nan")})
    assert files.read_json(tmp_path / "file") == {"a": [1, "ü"]}
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_files_are_for_those_whom_the_umask_lets_read(tmp_path):
    before = os.umask(0o077)
    try:
        files.write_json(tmp_path / "private.json", {})
    finally:
        os.umask(before)
    files.write_json(tmp_path / "file.json", {})
    assert (tmp_path / "private.json").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "file.json").stat().st_mode & 0o777 == 0o666 & ~before


def test_a_path_with_a_null_is_refused_by_name():
    with pytest.raises(ValueError, match=r"'a\\x00b' can be no path"):
        files.expand("a\0b")


def test_free_memory_is_that_of_the_container(tmp_path, monkeypatch):
    whole = files.free_memory()
    monkeypatch.setattr(files, "CGROUP", tmp_path)
    (tmp_path / "memory.current").write_text("300\n")
    for most, free in (("1000\n", 700), ("200\n", 0)):
        (tmp_path / "memory.max").write_text(most)
        assert files.free_memory() == free
        (tmp_path / "memory.stat").write_text("anon 40\ninactive_file 250\nactive_file 10\n")
        assert files.free_memory() == max(int(most) - 300 + 250, 0)
        (tmp_path / "memory.stat").unlink()
    (tmp_path / "memory.max").write_text("max\n")
    assert files.free_memory() > whole / 2
