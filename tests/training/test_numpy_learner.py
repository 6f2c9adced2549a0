"""Pretraining in numpy: torch's losses, a model that loads, and a run that is stopped and goes on bit for bit."""

import json
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch

import minillm
from minillm import InputError
from minillm.lab.pretrain import Pretrain, Run, pretrain
from minillm.training.learners import TorchLearner
from minillm.training.numpy_learner import NumpyLearner
from tests.tolerances import assert_close

TEXT = "she sells sea shells by the sea shore; the shells she sells are surely sea shells.\n" * 45
LOSSES = 20


@pytest.fixture
def settings(tmp_path):
    (tmp_path / "shells.txt").write_text(TEXT)
    return Pretrain(
        data=tmp_path / "shells.txt", preset="nano", tokenizer="characters", steps=LOSSES, device="cpu", backend="numpy"
    )


def torch_in_float64(settings):
    run = Run(replace(settings, backend="torch"), torch.device("cpu"))
    run.decoder.double().train()
    for batches in run.steps():
        run.loop.step(batches)
        if run.done % 8 == 0:
            run.measured.append(run.measure())
    return run


def test_numpy_has_torchs_first_twenty_losses_and_learns_what_torch_learns(settings, tmp_path):
    ours = pretrain(replace(settings, out=tmp_path / "numpy", eval_every=8))
    torchs = torch_in_float64(settings)
    assert isinstance(ours.loop.learner, NumpyLearner)
    assert isinstance(torchs.loop.learner, TorchLearner)
    losses = ours.loop.history.losses
    assert len(set(losses)) == LOSSES
    assert_close(np.array(losses), np.array(torchs.loop.history.losses), what="the losses")
    assert [measured["step"] for measured in ours.measured] == [8, 16, 20]
    for mine, other in zip(ours.measured, torchs.measured, strict=False):
        assert mine["sample"] == other["sample"]
        assert mine["nats"] == pytest.approx(other["nats"], rel=1e-9)
    assert losses[-1] < losses[0] - 1, "it learns"


def short(settings, out, **changes):
    return replace(settings, steps=4, out=out, eval_every=2, **changes)


def test_it_writes_what_torch_writes(settings, tmp_path):
    run = pretrain(short(settings, tmp_path / "numpy"))
    pretrain(short(settings, tmp_path / "torch", backend="torch"))
    assert sorted(os.listdir(tmp_path / "numpy")) == sorted(os.listdir(tmp_path / "torch"))
    ours, torchs = (json.loads((tmp_path / name / "curve.json").read_text()) for name in ("numpy", "torch"))
    assert ours.keys() == torchs.keys()
    assert (ours["backend"], ours["precision"], torchs["backend"]) == ("numpy", "float64", "torch")
    assert ours["losses"] == pytest.approx(torchs["losses"], rel=1e-4), "float32 has about six digits"
    decoder, tokenizer = minillm.load(tmp_path / "numpy")
    ids = torch.tensor([tokenizer.encode("she sells")])
    assert decoder.embed.weight.dtype == torch.float32
    assert torch.equal(decoder(ids), run.decoder(ids))


def test_a_run_that_is_stopped_goes_on_bit_for_bit_and_only_in_numpy(settings, tmp_path):
    whole, cut = pretrain(short(settings, tmp_path / "whole")), short(settings, tmp_path / "cut")

    def interrupt(measured):
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        pretrain(cut, interrupt)
    with pytest.raises(InputError, match="holds a run with backend 'numpy', and this one has 'torch'"):
        pretrain(replace(cut, backend="torch"))
    rest = pretrain(cut)
    assert rest.loop.history.losses == whole.loop.history.losses
    assert rest.measured == whole.measured
    assert all(torch.equal(*pair) for pair in zip(rest.decoder.parameters(), whole.decoder.parameters(), strict=True))


def test_the_numpy_backend_refuses_a_gpu(settings, tmp_path):
    with pytest.raises(InputError, match="the numpy backend runs on the CPU, got device cuda"):
        replace(settings, device="cuda")


def test_numpy_is_not_divided_among_processes(settings, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="the numpy backend runs in one process"):
        pretrain(replace(settings, out=tmp_path / "none"))
