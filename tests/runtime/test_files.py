"""Files are written atomically."""

import os

import pytest

from minillm import InputError
from minillm.runtime import files


def test_a_file_is_flushed_to_disk_before_it_is_renamed(tmp_path, monkeypatch):
    steps = []
    flush, rename = os.fsync, os.replace
    monkeypatch.setattr(files.os, "fsync", lambda handle: (steps.append("flushed"), flush(handle)))
    monkeypatch.setattr(files.os, "replace", lambda old, new: (steps.append("renamed"), rename(old, new)))
    files.write_text(tmp_path / "new" / "a.txt", "text")
    assert steps == ["flushed", "renamed"]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.txt"]


def test_an_interrupt_leaves_the_old_file_unchanged(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def interrupted():
        with files.replacing(path) as temporary:
            temporary.write_text("half")
            assert path.read_text() == "old"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_output_directory_is_checked_and_not_created(tmp_path):
    files.check_directory(tmp_path / "new" / "newer")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    for wrong in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match=r"cannot be an output directory: .*file is a file"):
            files.check_directory(wrong)
