"""Files are written atomically, alone and together."""

import os
import subprocess
import sys
import threading
from contextlib import suppress

import pytest

from minillm import InputError
from minillm.runtime import files
from minillm.runtime.locks import locked
from minillm.runtime.reading import sealed
from tests.runtime.crashes import crash_after, every_crash


def content(directory):
    """All that is in a directory, hidden files included."""
    return {path.name: path.read_text() if path.is_file() else None for path in directory.iterdir()}


def save(directory, version):
    with files.commit(directory) as new:
        new.text("a.txt", f"a {version}")
        new("b.txt").write_text(f"b {version}")
        new.removed.add("c.txt")


def whole(version, more=()):
    return {"a.txt": f"a {version}", "b.txt": f"b {version}", **dict.fromkeys(more, "c 1")}


@pytest.fixture
def old(tmp_path):
    directory = tmp_path / "old"
    save(directory, 1)
    (directory / "c.txt").write_text("c 1")
    return directory


def reset(directory):
    files.complete(directory)
    save(directory, 1)
    (directory / "c.txt").write_text("c 1")


def test_a_crash_at_any_step_leaves_all_old_files_or_all_new_ones(old):
    found = []
    for _ in every_crash(lambda: save(old, 2), old.parent):
        files.complete(old)
        kept = {name: text for name, text in content(old).items() if not name.startswith(".")}
        assert kept in (whole(1, ["c.txt"]), whole(2))
        found.append("c.txt" in kept)
        reset(old)
        assert content(old) == whole(1, ["c.txt"]), "the next save removes what a crash left"
    assert found == sorted(found, reverse=True), "before the journal the old files, after it the new ones"
    assert 5 < sum(found) < len(found) - 5


def test_a_crash_while_an_interrupted_commit_is_completed_is_one_too(old):
    for first in every_crash(lambda: save(old, 2), old.parent):
        for _ in every_crash(lambda: files.complete(old), old.parent):
            pass
        assert not (old / files.STAGED / files.JOURNAL).exists(), first
        kept = {name: text for name, text in content(old).items() if not name.startswith(".")}
        assert kept in (whole(1, ["c.txt"]), whole(2))
        reset(old)


def test_a_commit_within_a_commit_of_the_same_directory_is_part_of_it(old):
    with suppress(ZeroDivisionError), files.commit(old) as new:
        save(old, 2)
        assert content(old)["a.txt"] == "a 1"
        new.text("d.txt", str(1 / 0))
    assert content(old) == whole(1, ["c.txt"])
    with files.commit(old) as new:
        save(old, 2)
        new.text("d.txt", "d")
    assert content(old) == whole(2) | {"d.txt": "d"}


def test_an_interrupt_leaves_the_old_file_unchanged(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with suppress(KeyboardInterrupt), files.replacing(path) as temporary:
        temporary.write_text("half")
        assert path.read_text() == "old"
        raise KeyboardInterrupt
    assert content(tmp_path) == {"a.txt": "old"}


def test_a_file_is_replaced_whole_at_any_crash_and_the_next_save_removes_what_it_left(tmp_path):
    path = tmp_path / "new" / "a.txt"
    for _ in every_crash(lambda: files.write_text(path, "second"), tmp_path):
        assert not path.exists() or path.read_text() in ("first", "second")
        files.write_text(path, "first")
        assert content(path.parent) == {"a.txt": "first"}


def test_files_are_flushed_to_disk_before_the_journal_and_the_journal_before_they_are_renamed(old, monkeypatch):
    steps, rename = [], os.replace
    monkeypatch.setattr(files, "_flush", lambda path: steps.append(path.name))
    monkeypatch.setattr(os, "replace", lambda old, new: (steps.append(f"rename {new.name}"), rename(old, new)))
    save(old, 2)
    flushed = ["a.txt", "b.txt", f"{files.JOURNAL}.new"]
    assert steps == [*flushed, f"rename {files.JOURNAL}", files.STAGED, "rename a.txt", "rename b.txt", "old"]


@pytest.mark.parametrize("name", ["../outside", "..", "", "a/b", "a\\b", "c:d", "a\0b", 5, None, 6])
@pytest.mark.parametrize("part", ["files", "removed"])
def test_a_journal_names_files_of_its_own_directory_only(old, part, name):
    (old.parent / "outside").write_text("untouched")
    (old / files.STAGED).mkdir()
    described = {"format": 1, "files": [], "removed": []} | {part: [name] if name != 6 else 6}
    (old / files.STAGED / files.JOURNAL).write_text(sealed(described))
    with pytest.raises(InputError, match=files.JOURNAL):
        files.complete(old)
    assert (old.parent / "outside").read_text() == "untouched"


HOLD = "import sys, pathlib, minillm.runtime.locks as locks\nwith locks.locked(pathlib.Path(sys.argv[1])):\n {}"


def test_another_process_is_named_and_its_lock_ends_with_it(tmp_path):
    command = [sys.executable, "-c", HOLD.format("print(flush=True); sys.stdin.read()"), tmp_path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        message = rf"is being written by another minillm \(process {other.pid}\); wait for it or give another --out"
        with pytest.raises(InputError, match=message), locked(tmp_path):
            pass
        other.kill()
    assert content(tmp_path) == {".minillm.lock": f"{other.pid}\n"}
    with locked(tmp_path), locked(tmp_path):
        assert content(tmp_path) == {".minillm.lock": f"{os.getpid()}\n"}
    assert content(tmp_path) == {}


def test_writers_wait_for_each_other_and_each_writes_all_of_its_files(old):
    def write(version):
        for _ in range(20):
            save(old, version)

    writers = [threading.Thread(target=write, args=(version,)) for version in (2, 3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert content(old) in (whole(2), whole(3))


def test_a_directory_that_cannot_be_written_is_not_completed_and_not_loaded(old, monkeypatch):
    journal = old / files.STAGED / files.JOURNAL
    for steps in range(100):
        with crash_after(steps, old.parent):
            save(old, 2)
        if journal.exists():
            break

    def refused(path, mode):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("minillm.runtime.locks.open", refused, raising=False)
    with pytest.raises(InputError, match=r"old was being written .*\(Permission denied\): load it once"):
        files.complete(old)


def test_an_output_directory_is_checked_and_not_created(tmp_path):
    files.check_directory(tmp_path / "new" / "newer")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    for wrong in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match=r"cannot be an output directory: .*file is a file"):
            files.check_directory(wrong)
