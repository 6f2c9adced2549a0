"""`minillm check --kernels`: every kernel is compared with numpy, and a wrong one is reported by its name."""

import json
import os
import subprocess
import sys

import pytest

from minillm import Decoder, DecoderConfig, InputError, save
from minillm.cli import main
from minillm.lab.check import Check, check, failed
from minillm.lab.check_operations import operation_cases
from tests.lab.test_check import MODELS
from tests.strategies import implemented_in

pytest.importorskip("triton", reason="triton is not installed: pip install 'minillm[kernels]' (Linux)")


@pytest.fixture
def norms_alone(monkeypatch):
    """The interpreter is slow: one operation with a kernel of its own, and one that shares its file."""
    norms = {"rms_norm", "layer_norm"}
    monkeypatch.setattr(
        "minillm.lab.check.operation_cases",
        lambda config, random: [case for case in operation_cases(config, random) if case.what in norms],
    )
    monkeypatch.setattr("minillm.lab.check.decoder_cases", lambda config, random: [])


@pytest.mark.usefixtures("norms_alone")
@pytest.mark.parametrize("wrong", [lambda right: right * 1.001, lambda right: right.detach()], ids=["off", "constant"])
def test_a_wrong_kernel_is_the_only_row_that_fails(wrong, monkeypatch):
    from minillm.kernels import norm as kernels

    right = kernels.rms_norm
    monkeypatch.setattr(kernels, "rms_norm", lambda hidden, weight, eps: wrong(right(hidden, weight, eps)))
    described = check(Check(base="tiny", kernels=True))
    assert [(row["what"], row["rung"]) for row in failed(described)] == [("rms_norm", "kernel")]


def test_float64_is_refused_because_it_has_no_kernels():
    with pytest.raises(InputError, match="the kernels do not support float64"):
        Check(base="tiny", dtype="float64", kernels=True)


def test_without_triton_the_command_prints_one_line(monkeypatch, capsys):
    monkeypatch.setattr("minillm.operations.find_spec", lambda name: None)
    monkeypatch.setattr("sys.argv", ["minillm", "check", "--kernels", "--base", "tiny"])
    with pytest.raises(SystemExit) as end:
        main()
    printed = capsys.readouterr()
    assert end.value.code == 2
    assert printed.err.startswith("minillm: triton is not installed")
    assert len(printed.err.splitlines()) == 1
    assert printed.out == ""


@pytest.mark.slow
def test_every_kernel_is_interpreted_on_a_cpu_alone_and_in_every_decoder_and_passes(tmp_path):
    """In its own process without the environment variable: triton reads it once, when it is imported."""
    config = tmp_path / "base"
    save(Decoder(DecoderConfig.tiny(layers=1, width=12, heads=2, kv_heads=1, vocabulary=13)), None, config)
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = ["check", "--kernels", "--base", str(config), "--device", "cpu", "--out", str(tmp_path)]
    done = subprocess.run([sys.executable, "-m", "minillm", *command], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "triton" not in done.stderr
    written = json.loads((tmp_path / "check.json").read_text())
    assert written["kernels"] is True
    assert {row["what"] for row in written["rows"] if row["rung"] == "kernel"} == {*implemented_in("kernels")} | MODELS
