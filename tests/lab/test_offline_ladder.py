"""The base `tiny` and its task: everything that a ladder needs, without a download."""

import pytest

from minillm.hub import TINY
from minillm.lab.ladder import Ladder, run_ladder
from minillm.lab.pretrain import Pretrain, pretrain


def test_a_ladder_runs_without_a_download(tmp_path, monkeypatch):
    monkeypatch.setattr("minillm.hub.pull._download", None)
    options = Ladder(
        base="tiny", task="word_problems", rungs=("zero-shot", "features"), train=20, test=20, device="cpu",
        threads=1, out=tmp_path / "out",
    )  # fmt: skip
    rungs = [rung["name"] for rung, _ in run_ladder(options)]
    assert rungs == ["zero-shot", "features"]


@pytest.mark.slow
def test_the_command_of_its_card_trains_tiny_again(tmp_path):
    """On another CPU the sums differ, and so the weights; what was learned does not."""
    assert "minillm pretrain --task word_problems --out tiny" in (TINY / "README.md").read_text("utf-8")
    run = pretrain(Pretrain(task="word_problems", out=tmp_path / "tiny"))
    assert run.measured[-1]["nats"] == pytest.approx(0.147, abs=0.03)
