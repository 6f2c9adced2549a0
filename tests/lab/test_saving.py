"""Results that took long to make are saved, if need be in another directory."""

import io
import re

import pytest

from minillm import InputError
from minillm.lab.saving import saved
from minillm.runtime.files import write_text


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def wrong(tmp_path):
    """A directory that cannot be written: it is below a file."""
    (tmp_path / "file").touch()
    return tmp_path / "file" / "out"


def write(out):
    write_text(out / "result", "trained")


def test_a_result_is_written_where_it_was_asked_for(tmp_path):
    assert saved(write, tmp_path / "out") == tmp_path / "out"
    assert (tmp_path / "out" / "result").read_text() == "trained"


def test_without_a_terminal_the_error_names_the_temporary_directory_with_the_result(wrong, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("sys.stdin", io.StringIO("elsewhere"))
    with pytest.raises(InputError, match="cannot be written: Not a directory; what was trained is saved in ") as error:
        saved(write, wrong)
    (elsewhere,) = re.findall(r"saved in (.*)", str(error.value))
    assert (tmp_path / elsewhere / "result").read_text() == "trained"


def test_on_a_terminal_another_directory_is_asked_for_until_one_can_be_written(wrong, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", Terminal(f"{wrong}\n{tmp_path / 'good'}\n"))
    assert saved(write, wrong) == tmp_path / "good"
    assert (tmp_path / "good" / "result").read_text() == "trained"
    assert capsys.readouterr().err.count("another directory to save it in: ") == 2


def test_other_errors_are_not_about_the_directory(tmp_path):
    def diverged(out):
        raise InputError("not finite")

    with pytest.raises(InputError, match="not finite"):
        saved(diverged, tmp_path)
