"""The base `tiny` and its task: everything that a ladder needs, without a download."""

import pytest

from minillm import InputError
from minillm.lab import embedded
from minillm.lab.embedded import base_path, pulled_data
from minillm.lab.ladder import LadderSettings, climb
from minillm.lab.pretrain import PretrainSettings


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A cache of its own, and a base that is made in a moment."""
    monkeypatch.setenv("MINILLM_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(embedded, "SETTINGS", PretrainSettings(task="word_problems", preset="nano", steps=3))
    return tmp_path / "home"


def test_the_base_is_trained_once_and_another_recipe_is_another_base(home, capsys, monkeypatch):
    path = base_path("tiny")
    assert path.parent == home
    assert "training the base tiny on word problems, this once" in capsys.readouterr().err
    written = (path / "model.safetensors").stat().st_mtime_ns
    assert base_path("tiny") == path
    assert capsys.readouterr().err == ""
    assert (path / "model.safetensors").stat().st_mtime_ns == written
    monkeypatch.setattr(embedded, "SETTINGS", PretrainSettings(task="word_problems", preset="nano", steps=2))
    assert base_path("tiny") != path


def test_the_whole_ladder_is_climbed_without_a_download(tmp_path, monkeypatch):
    monkeypatch.setattr("minillm.hub.pull._download", None)
    base = base_path("tiny")
    settings = LadderSettings(str(base), "word_problems", train=20, test=20, seed=0, device="cpu", threads=1)
    rungs = [rung["name"] for rung, _ in climb("zero-shot,features", settings, tmp_path / "out")]
    assert rungs == ["zero-shot", "features"]


def test_where_the_index_cannot_be_reached_the_way_without_it_is_offered(monkeypatch):
    def unreachable(*_):
        raise InputError("no index gave it")

    monkeypatch.setattr("minillm.hub.pull._download", unreachable)
    offer = "no index gave it; `minillm ladder --base tiny --task word_problems` needs no download"
    with pytest.raises(InputError, match=offer):
        base_path("smollm2-135m-instruct")
    with pytest.raises(InputError, match=offer):
        pulled_data("reviews")
    with pytest.raises(InputError, match="there is no model 'nothing'") as refusal:
        base_path("nothing")
    assert "needs no download" not in str(refusal.value)
