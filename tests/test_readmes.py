"""Every folder has a README of one screen, and its runnable lines run."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from minillm.errors import InputError
from minillm.hub.pull import pull

ROOT = Path(__file__).parent.parent
FOLDERS = sorted({path.parent for path in (ROOT / "minillm").rglob("*.py") if path.parent.name != "cuda"})
READMES = [*(folder / "README.md" for folder in FOLDERS)]
SCREEN = 60


def blocks(path, language):
    return re.findall(rf"```{language}\n(.*?)```", path.read_text("utf-8"), re.S)


@pytest.mark.parametrize("path", READMES, ids=lambda path: str(path.parent.relative_to(ROOT)))
def test_a_room_introduces_itself_on_one_screen_with_a_line_that_runs(path, capsys, tmp_path, monkeypatch):
    assert len(path.read_text("utf-8").splitlines()) <= (SCREEN if path.parent != ROOT / "minillm" else 2 * SCREEN)
    monkeypatch.chdir(tmp_path)
    programs, commands = blocks(path, "python"), blocks(path, "sh")
    assert programs or commands
    for program in programs:
        exec(compile(program, str(path), "exec"), {"__name__": "readme"})
    assert capsys.readouterr().out or not programs
    for command in "".join(commands).splitlines():
        done = subprocess.run([sys.executable, "-m", *shlex.split(command)], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", READMES, ids=lambda path: str(path.parent.relative_to(ROOT)))
def test_every_file_that_a_readme_names_is_there(path):
    names = set(re.findall(r"`([\w/.-]+\.(?:py|json|cu))`", path.read_text("utf-8")))
    assert not [name for name in names if not ((path.parent / name).exists() or (ROOT / name).exists() or
                                               any(path.parent.glob(f"*/{name}")))]  # fmt: skip


@pytest.mark.slow
def test_the_classifier_and_the_script_of_the_main_readme_tell_good_from_bad(capsys, tmp_path, monkeypatch):
    try:
        pull("smollm2-135m-instruct")
    except InputError as problem:
        pytest.skip(str(problem))
    monkeypatch.chdir(tmp_path)
    classifier, script = blocks(ROOT / "README.md", "python")
    assert len(classifier.splitlines()) <= 10
    assert len(script.splitlines()) <= 40
    exec(compile(classifier, "README.md", "exec"), {"__name__": "readme"})
    assert capsys.readouterr().out == "['good' 'bad']\n"
    exec(compile(script, "README.md", "exec"), {"__name__": "readme"})
    assert capsys.readouterr().out.endswith("Sentiment: good\n")
