"""`minillm check --kernels` checks every kernel, and reports wrong ones by name."""

import json
import os
import subprocess
import sys

import pytest

from minillm import InputError
from minillm.cli import main
from minillm.lab.check import Check, check, failed
from tests.lab.test_check import MODELS
from tests.strategies import implemented_in

pytest.importorskip("triton", reason="triton is not installed: pip install 'minillm[kernels]' (Linux)")

TINY = Check(config="tiny", kernels=True)


def rows_of_kernels(described):
    return {row["what"] for row in described["rows"] if row["rung"] == "kernel"}


def test_every_kernel_passes_alone_and_in_every_decoder():
    described = check(TINY)
    assert {"rms_norm", "layer_norm", "attention", "lora"} <= {*implemented_in("kernels")}
    assert rows_of_kernels(described) == {*implemented_in("kernels")} | MODELS
    assert failed(described) == []


@pytest.mark.parametrize("wrong", [lambda right: right * 1.001, lambda right: right.detach()], ids=["off", "constant"])
def test_only_a_wrong_kernel_fails(wrong, monkeypatch):
    from minillm.kernels import norm as kernels

    right = kernels.rms_norm  # of which tiny's decoder has none
    monkeypatch.setattr(kernels, "rms_norm", lambda hidden, weight, eps: wrong(right(hidden, weight, eps)))
    monkeypatch.setattr("minillm.lab.check.decoder_cases", lambda config, random: [])
    assert [(row["what"], row["rung"]) for row in failed(check(TINY))] == [("rms_norm", "kernel")]


def test_a_dtype_without_kernels_is_refused():
    with pytest.raises(InputError, match="the kernels do not support float64"):
        Check(config="tiny", dtype="float64", kernels=True)


def test_without_triton_the_command_prints_one_line(monkeypatch, capsys):
    monkeypatch.setattr("minillm.operations.find_spec", lambda name: None)
    monkeypatch.setattr("sys.argv", ["minillm", "check", "--kernels", "--config", "tiny"])
    with pytest.raises(SystemExit) as end:
        main()
    printed = capsys.readouterr()
    assert end.value.code == 2
    assert printed.err.startswith("minillm: triton is not installed")
    assert len(printed.err.splitlines()) == 1
    assert printed.out == ""


def test_kernels_are_interpreted_without_a_gpu(tmp_path):
    """In a process of its own: triton reads TRITON_INTERPRET when it is imported."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = ["check", "--kernels", "--config", "tiny", "--device", "cpu", "--out", str(tmp_path)]
    done = subprocess.run([sys.executable, "-m", "minillm", *command], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "triton" not in done.stderr
    written = json.loads((tmp_path / "check.json").read_text())
    assert written["kernels"] is True
    assert rows_of_kernels(written) == {*implemented_in("kernels")} | MODELS
