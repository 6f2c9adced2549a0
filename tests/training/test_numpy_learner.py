"""Pretraining in numpy: torch's losses, a model that loads, and a run that resumes bit for bit."""

import json
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch

import minillm
from minillm import InputError
from minillm.lab.pretrain import Run, pretrain
from minillm.training.learners import TorchLearner
from minillm.training.numpy_learner import NumpyLearner
from tests.tolerances import assert_close

LOSSES = 20


def torch_in_float64(options):
    run = Run(replace(options, backend="torch"), torch.device("cpu"))
    run.decoder.double().train()
    for batches in run.steps():
        run.loop.step(batches)
        if run.loop.done % options.eval_every == 0:
            run.measured.append(run.measure())
    return run


def test_numpy_and_torch_have_the_same_losses(run):
    options = replace(run, backend="numpy", steps=LOSSES, eval_every=10)
    ours, torchs = pretrain(options), torch_in_float64(options)
    assert isinstance(ours.loop.learner, NumpyLearner)
    assert isinstance(torchs.loop.learner, TorchLearner)
    losses = ours.loop.history.losses
    assert len(set(losses)) == LOSSES
    assert_close(np.array(losses), np.array(torchs.loop.history.losses), what="the losses")
    assert [measured["step"] for measured in ours.measured] == [10, 20]
    for mine, other in zip(ours.measured, torchs.measured, strict=True):
        assert mine["sample"] == other["sample"]
        assert mine["nats"] == pytest.approx(other["nats"], rel=1e-9)
    assert losses[-1] < losses[0] - 0.5, "it learns"


def test_numpy_and_torch_write_the_same_files(run, tmp_path):
    options = replace(run, steps=2)
    trained = pretrain(replace(options, backend="numpy", out=tmp_path / "numpy"))
    pretrain(replace(options, out=tmp_path / "torch"))
    assert sorted(os.listdir(tmp_path / "numpy")) == sorted(os.listdir(tmp_path / "torch"))
    ours, torchs = (json.loads((tmp_path / name / "curve.json").read_text()) for name in ("numpy", "torch"))
    assert ours.keys() == torchs.keys()
    assert (ours["backend"], ours["precision"], torchs["backend"]) == ("numpy", "float64", "torch")
    assert ours["losses"] == pytest.approx(torchs["losses"], rel=1e-4), "float32 has about six digits"
    decoder, tokenizer = minillm.load(tmp_path / "numpy")
    ids = torch.tensor([tokenizer.encode("she sells")])
    assert decoder.embed.weight.dtype == torch.float32
    assert torch.equal(decoder(ids), trained.decoder(ids))


@pytest.mark.parametrize(("backend", "other"), [("torch", "numpy"), ("numpy", "torch")])
def test_an_interrupted_run_resumes_bit_for_bit_in_its_backend(run, tmp_path, backend, other):
    options = replace(run, backend=backend, steps=2, eval_every=1)
    whole, before = pretrain(replace(options, out=tmp_path / "whole")), signal.getsignal(signal.SIGINT)

    def interrupt(measured):
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        pretrain(options, interrupt)
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(InputError, match=f"holds a run with backend '{backend}', and this one has '{other}'"):
        pretrain(replace(options, backend=other))
    rest = pretrain(options)
    assert rest.loop.history.losses == whole.loop.history.losses
    assert rest.measured == whole.measured
    assert all(torch.equal(*pair) for pair in zip(rest.decoder.parameters(), whole.decoder.parameters(), strict=True))


def test_numpy_is_not_divided_among_processes(run, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="the numpy backend runs in one process"):
        pretrain(replace(run, backend="numpy"))
