"""`minillm check --kernels`: every kernel takes part and is good, and a wrong one is found by its name."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import minillm
from minillm import InputError
from minillm.cli import main
from minillm.lab.check import CheckSettings, check, failed
from tests.lab.test_check import MODELS, public_operations

pytest.importorskip("triton", reason="triton is not installed: pip install 'minillm[kernels]' (Linux)")

TINY = CheckSettings("tiny", kernels=True)
KERNELS = Path(minillm.__file__).parent / "kernels"


def operations_with_a_kernel():
    """By the text of the kernels' files, so that it does not depend on who calls them."""
    files = [path for path in KERNELS.glob("*.py") if not path.stem.startswith("_")]
    functions = {name for path in files for name in re.findall(r"^def ([a-z]\w*)\(", path.read_text(), re.M)}
    return functions & public_operations()


def rows_of_kernels(described):
    return {row["what"] for row in described["rows"] if row["rung"] == "kernel"}


def test_every_kernel_takes_part_alone_and_in_every_decoder_and_is_good():
    described = check(TINY)
    assert {"rms_norm", "add_rms_norm", "layer_norm", "add_layer_norm"} <= operations_with_a_kernel()
    assert rows_of_kernels(described) == operations_with_a_kernel() | MODELS
    assert failed(described) == []


@pytest.mark.parametrize("wrong", [lambda right: right * 1.001, lambda right: right.detach()], ids=["off", "constant"])
def test_a_wrong_kernel_is_found_on_its_own_rung_and_nothing_else_is(wrong, monkeypatch):
    from minillm.kernels import norm as kernels

    right = kernels.rms_norm  # of which tiny's decoder has none
    monkeypatch.setattr(kernels, "rms_norm", lambda hidden, weight, eps: wrong(right(hidden, weight, eps)))
    monkeypatch.setattr("minillm.lab.check.decoder_cases", lambda config, random: [])
    assert [(row["what"], row["rung"]) for row in failed(check(TINY))] == [("rms_norm", "kernel")]


def test_what_has_no_kernel_in_a_dtype_is_not_said_to_be_good():
    with pytest.raises(InputError, match="kernels do not compute in float64"):
        CheckSettings("tiny", "float64", kernels=True)


def test_without_triton_the_command_says_so_in_one_sentence(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("sys.argv", ["minillm", "check", "--kernels", "--config", "tiny"])
    with pytest.raises(SystemExit) as end:
        main()
    said = capsys.readouterr()
    assert end.value.code == 2
    assert said.err.startswith("minillm: triton is not installed")
    assert len(said.err.splitlines()) == 1
    assert said.out == ""


def test_a_laptop_interprets_the_kernels_without_being_told(tmp_path):
    """In a process of its own: triton asks for the interpreter once, when it is imported."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = ["check", "--kernels", "--config", "tiny", "--device", "cpu", "--out", str(tmp_path)]
    done = subprocess.run([sys.executable, "-m", "minillm", *command], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "triton" not in done.stderr
    written = json.loads((tmp_path / "check.json").read_text())
    assert written["kernels"] is True
    assert rows_of_kernels(written) == operations_with_a_kernel() | MODELS
