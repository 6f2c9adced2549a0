"""The ladder of the base `tiny` needs no download."""

import pytest

from minillm.hub import TINY
from minillm.lab.ladder import Ladder, measure
from minillm.lab.pretrain import Pretrain, pretrain


def test_a_ladder_runs_without_a_download(tmp_path, monkeypatch):
    monkeypatch.setattr("minillm.hub.pull._download", None)
    options = Ladder(
        base="tiny", task="word_problems", train=20, test=20, device="cpu", threads=1, out=tmp_path,
    )  # fmt: skip
    for name in ("zero-shot", "features"):
        assert 0 <= measure(name, options)["accuracy"] <= 1


@pytest.mark.slow
def test_the_command_of_the_model_card_reproduces_tiny(tmp_path):
    """The weights differ from CPU to CPU because of rounding; the loss hardly does."""
    assert "minillm pretrain --task word_problems --out tiny" in (TINY / "README.md").read_text("utf-8")
    run = pretrain(Pretrain(task="word_problems", out=tmp_path / "tiny"))
    assert run.measured[-1]["nats"] == pytest.approx(0.147, abs=0.03)
