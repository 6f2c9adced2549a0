"""The ladder of the base `tiny` needs no download."""

import json
from itertools import islice

import jaxtyping
import pytest
import torch

from minillm import load
from minillm.hub import TINY
from minillm.lab.experiment import rows_file
from minillm.lab.ladder import Ladder, measure
from minillm.lab.pretrain import Pretrain, Run
from minillm.training.pretraining import held_out_loss


@pytest.mark.slow
def test_a_ladder_runs_without_a_download(tmp_path, monkeypatch):
    monkeypatch.setattr("minillm.hub.pull._download", None)
    options = Ladder(
        base="tiny", task="word_problems", train=20, test=20, device="cpu", threads=1, out=tmp_path,
    )  # fmt: skip
    task = options.load_task()
    rows = json.loads(rows_file(task))
    assert rows["answers"] == [answer.strip() for answer in task.answers]
    assert rows["texts"] == [row.text for row in task.test]
    for name in ("zero-shot", "features", "prefix"):
        found = measure(name, options)
        right = [one == label for one, label in zip(found["predicted"], rows["labels"], strict=True)]
        assert sum(right) / 20 == found["accuracy"]
        assert all(1 / len(task.answers) <= share <= 1 for share in found["confidence"])
    weights = found["attention"]["attention"]  # of the prefix, in thousandths, for the report
    assert {len(row) for row in weights} == {found["attention"]["prefix"] + len(weights)}
    assert all(sum(row) == pytest.approx(1000, abs=len(row) / 2) for row in weights)


# Of the training on a CPU without AVX-512; on another one rounding differs.
FIRST_LOSSES = [5.5666, 5.5715, 5.5259, 5.4204, 5.3516, 5.2820, 5.1970, 5.0722, 5.0599, 4.9746]


@pytest.mark.slow
def test_the_command_of_the_model_card_begins_the_training_that_gave_tiny(tmp_path):
    """The config, the tokenizer and the first losses are equal, and the file has the loss of its whole training."""
    # Checked shapes would take two minutes more.
    jaxtyping.config.update("jaxtyping_disable", True)
    assert "minillm pretrain --task word_problems --out tiny" in (TINY / "README.md").read_text("utf-8")
    run = Run(Pretrain(task="word_problems", out=tmp_path / "tiny"), torch.device("cpu"))
    decoder, tokenizer = load("tiny")
    assert (decoder.config, tokenizer.fingerprint) == (run.decoder.config, run.rows.tokenizer.fingerprint)
    found = held_out_loss(decoder, run.rows.held_out, run.bytes, run.recipe.batch_size, run.precision)
    assert found.nats == pytest.approx(0.147, abs=1e-3)
    losses = [run.loop.step(batches) for batches in islice(run.steps(), len(FIRST_LOSSES))]
    assert losses == pytest.approx(FIRST_LOSSES, abs=2e-3)
