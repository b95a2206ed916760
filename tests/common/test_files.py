"""Writing is all or nothing."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from calibrate.common.errors import ArtefactError
from calibrate.common.files import write_together


def test_files_appear_together_with_their_contents(tmp_path):
    write_together(tmp_path / "out", {"a.json": b"1", "sub/b.bin": b"2"}, last="a.json")
    assert (tmp_path / "out" / "a.json").read_bytes() == b"1"
    assert (tmp_path / "out" / "sub" / "b.bin").read_bytes() == b"2"
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.json", "sub"]


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    (tmp_path / "study.journal").write_text("kept")
    original = Path.write_bytes

    def full(path, content):
        if path.name == "b.bin":
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ArtefactError, match=r"cannot write to .*No space left on device.*free"):
        write_together(tmp_path, {"a.json": b"1", "b.bin": b"2"}, last="a.json")
    assert [p.name for p in tmp_path.iterdir()] == ["study.journal"]


def test_the_last_file_is_renamed_after_all_the_others(tmp_path, monkeypatch):
    from calibrate.common import files

    renamed = []
    original = files.os.replace

    def record(source, target):
        renamed.append(Path(target).name)
        original(source, target)

    monkeypatch.setattr(files.os, "replace", record)
    write_together(tmp_path, {"config": b"", "z": b"", "a": b""}, last="config")
    assert renamed[-1] == "config"
