"""A whole pre-training runs without torch, and torch has the same twenty losses."""

import ast
import subprocess
import sys

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from minillm.decoder import Decoder
from tests.reference import pretraining
from tests.reference.pretraining import SETTINGS, STEPS, tiny
from tests.tolerances import assert_close


def torchs_losses(start, seen):
    decoder = Decoder(tiny()[1]).double()
    missing, unexpected = decoder.load_state_dict({n: torch.from_numpy(a) for n, a in start.items()}, strict=False)
    assert (missing, unexpected) == (["head.weight"], []), "the tied head is the embedding"
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=SETTINGS["rate"], weight_decay=SETTINGS["decay"])
    for ids in torch.from_numpy(seen):
        loss = F.cross_entropy(decoder(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(decoder.parameters(), SETTINGS["clip"])
        optimizer.step()
        yield loss.item()


def test_a_decoder_is_pretrained_without_torch_and_has_torchs_first_twenty_losses(tmp_path):
    out = tmp_path / "run.npz"
    done = subprocess.run(
        [sys.executable, pretraining.__file__, str(out)], capture_output=True, text=True, timeout=120
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "numpy" in ast.literal_eval(done.stdout)
    assert not set(ast.literal_eval(done.stdout)) & {"torch", "tokenizers", "jaxtyping", "einops"}
    run = dict(np.load(out))
    losses, seen = run.pop("losses"), run.pop("seen")
    assert len(losses) == STEPS
    assert_close(np.array(list(torchs_losses(run, seen))), losses, what="the losses")
    assert losses[-5:].mean() < losses[:5].mean() - 1, "it learns"
