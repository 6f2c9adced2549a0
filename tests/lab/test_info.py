"""`minillm info`: what a report of a problem needs, without a download."""

import json

import pytest
import torch

import minillm
from minillm.cli import main
from minillm.hub import pull
from minillm.runtime.device import best_precision, precision_and_reason


@pytest.fixture
def info(monkeypatch, capsys, tmp_path):
    def run(*words):
        monkeypatch.setenv("MINILLM_HOME", str(tmp_path))
        monkeypatch.setattr("sys.argv", ["minillm", "info", *words])
        main()
        return capsys.readouterr().out

    return run


def test_info_names_versions_device_precision_memory_cache_and_extras(info, tmp_path):
    found = json.loads(info("--json"))
    assert (found["minillm"], found["torch"]) == (minillm.__version__, torch.__version__)
    assert found["jinja2"]
    assert found["precision"].startswith(f"{best_precision(torch.device('cpu'))}: ") or torch.cuda.is_available()
    assert found["cache"] == f"{tmp_path}, 0 B"
    assert found["reviews"] == "not pulled (`minillm pull reviews`)"
    assert found["minillm[test]"] == "installed"
    assert all(line in info().split() for line in ("memory", "cache", "minillm[lab]"))


def test_a_pulled_file_is_verified_if_it_has_not_changed_since(info, tmp_path, monkeypatch):
    (tmp_path / "reviews.csv").write_bytes(b"text\n")
    assert json.loads(info("--json"))["reviews"] == "5 B, not verified yet"
    monkeypatch.setattr(pull, "verified", lambda path, pinned: True)
    monkeypatch.setattr("minillm.lab.info.verified", lambda path, pinned: path.name == "reviews.csv")
    assert json.loads(info("--json"))["reviews"] == "5 B, verified"


def test_the_precision_has_a_reason(monkeypatch):
    assert precision_and_reason(torch.device("mps")) == ("float32", "the mps device has no fast bfloat16")
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "AVX2")
    precision, reason = precision_and_reason(torch.device("cpu"))
    assert (precision, reason.partition(" only")[0]) == ("float32", "torch uses AVX2")
