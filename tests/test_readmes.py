"""Every folder has a README of one screen whose examples run; the trail of tests/README.md prints its message."""

import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from minillm.cli import main
from minillm.config import DecoderConfig
from minillm.errors import InputError
from minillm.hub.pull import pull
from minillm.lab.check_operations import operation_cases
from minillm.lab.trust import against_numpy
from tests.tolerances import failure

ROOT = Path(__file__).parent.parent
FOLDERS = sorted({path.parent for path in (ROOT / "minillm").rglob("*.py")})
FOLDERS += [ROOT / name for name in ("tests", "notebooks", "benchmarks")]
LINES = {"minillm": 120, "tests": 66, "benchmarks": 120}
"""At most so many in a README; 60, one screen, in the others."""
every_readme = pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: str(folder.relative_to(ROOT)))
RUNS_PYTEST = ROOT / "tests"


def blocks(path, language):
    found = re.findall(r"^```(\w*)\n(.*?)^```", path.read_text("utf-8"), re.S | re.M)
    return [text for name, text in found if name == language]


@pytest.mark.parametrize(
    "folder",
    [pytest.param(folder, marks=[pytest.mark.slow] * (folder == RUNS_PYTEST)) for folder in FOLDERS],
    ids=lambda folder: str(folder.relative_to(ROOT)),
)
def test_a_readme_has_one_screen_and_an_example_that_runs(folder, capsys, tmp_path, monkeypatch):
    path = folder / "README.md"
    assert len(path.read_text("utf-8").splitlines()) <= LINES.get(str(folder.relative_to(ROOT)), 60)
    monkeypatch.chdir(tmp_path)
    programs, commands = blocks(path, "python"), blocks(path, "sh")
    assert programs or commands
    for program in programs:
        exec(compile(program, str(path), "exec"), {"__name__": "readme"})
    assert capsys.readouterr().out or not programs
    for words in map(shlex.split, "".join(commands).splitlines()):
        if words[0] == "minillm":
            monkeypatch.setattr("sys.argv", words)
            main()
        else:
            done = subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True, cwd=ROOT)
            assert done.returncode == 0, done.stdout + done.stderr


@every_readme
def test_every_file_that_a_readme_names_exists(folder):
    for name in re.findall(r"`([\w/.-]+\.(?:py|json|cu|svg|ipynb))`", (folder / "README.md").read_text("utf-8")):
        places = [folder / name, ROOT / name, ROOT / "minillm" / name, *folder.glob(f"*/{name}")]
        assert any(place.exists() for place in places), f"{name} does not exist"


def test_a_wrong_sign_prints_the_message_of_the_readme():
    random, number = np.random.default_rng(0), r"-?\d\S*"
    case = next(case for case in operation_cases(DecoderConfig.tiny(), random) if case.what == "lora")

    def turned(dout, cache):
        gradients = case.backward(dout, cache)
        return gradients | {"a": -gradients["a"]}

    (expected,) = blocks(ROOT / "tests/README.md", "")
    message = failure(against_numpy(replace(case, backward=turned), random), "numpy vs torch (plain), float64")
    before, _, place = message.partition(" largest at ")
    assert expected.startswith(f"{before} largest at [")
    assert re.fullmatch(rf"\[\d+, \d+\]: {number} instead of {number}", place)


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
