"""The base `tiny` and its task: everything that a ladder needs, without a download."""

import pytest

from minillm import InputError
from minillm.lab import embedded
from minillm.lab.embedded import base_path
from minillm.lab.ladder import Ladder, run_ladder
from minillm.lab.pretrain import Pretrain


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A cache of its own, and a base that is made in a moment."""
    monkeypatch.setenv("MINILLM_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(embedded, "SETTINGS", Pretrain(task="word_problems", preset="nano", steps=3, device="cpu"))
    return tmp_path / "home"


def test_the_base_is_trained_once_and_another_recipe_is_another_base(home, capsys, monkeypatch):
    path = base_path("tiny")
    assert path.parent == home
    assert "training the base tiny on word problems, this once" in capsys.readouterr().err
    written = (path / "model.safetensors").stat().st_mtime_ns
    assert base_path("tiny") == path
    assert capsys.readouterr().err == ""
    assert (path / "model.safetensors").stat().st_mtime_ns == written
    monkeypatch.setattr(embedded, "SETTINGS", Pretrain(task="word_problems", preset="nano", steps=2, device="cpu"))
    assert base_path("tiny") != path


def test_a_ladder_runs_without_a_download(tmp_path, monkeypatch):
    monkeypatch.setattr("minillm.hub.pull._download", None)
    base = base_path("tiny")
    options = Ladder(
        base=str(base), task="word_problems", rungs=("zero-shot", "features"), train=20, test=20, device="cpu",
        threads=1, out=tmp_path / "out",
    )  # fmt: skip
    rungs = [rung["name"] for rung, _ in run_ladder(options)]
    assert rungs == ["zero-shot", "features"]


def test_an_unknown_base_is_refused():
    with pytest.raises(InputError, match="there is no model 'nothing'"):
        base_path("nothing")
