"""A file is there whole or not at all."""

import os

import pytest

from minillm import InputError
from minillm.runtime import files as writing


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    steps = []
    flush, rename = os.fsync, os.replace
    monkeypatch.setattr(writing.os, "fsync", lambda handle: (steps.append("flushed"), flush(handle)))
    monkeypatch.setattr(writing.os, "replace", lambda old, new: (steps.append("named"), rename(old, new)))
    writing.write_text(tmp_path / "new" / "a.txt", "text")
    assert steps == ["flushed", "named"]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.txt"]


def test_what_was_there_stays_until_the_new_file_is_whole(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def interrupted():
        with writing.replacing(path) as temporary:
            temporary.write_text("half")
            assert path.read_text() == "old"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_directory_is_looked_at_before_there_is_anything_to_write(tmp_path):
    writing.check_directory(tmp_path / "new" / "newer")
    assert not list(tmp_path.iterdir()), "it is not made yet"
    (tmp_path / "file").write_text("")
    for wrong in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match="file is a file"):
            writing.check_directory(wrong)
