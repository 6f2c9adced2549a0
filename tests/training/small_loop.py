"""A training loop that takes milliseconds; as a program, in two processes that share its batches."""

import json
import os
from functools import partial

import torch

from minillm import Decoder, DecoderConfig
from minillm.operations import IGNORED
from minillm.runtime import distributed
from minillm.training.learners import TorchLearner
from minillm.training.loop import Loop
from minillm.training.pretraining import PackedRow, language_model_loss
from minillm.training.schedule import TrainingSettings

ROWS = [PackedRow(ids, ids) for ids in ([1, 2, 3, 4, 5], [6, 7])] + [PackedRow([8, 9, 10], [8, IGNORED, 10])]


def small_decoder():
    torch.manual_seed(1)
    return Decoder(DecoderConfig.tiny(vocabulary=11, layers=1, context_length=16)).double()


def untrained_loop(rows=ROWS, **settings):
    decoder, settings = small_decoder(), TrainingSettings(epochs=1, batch_size=2, **settings)
    learner = TorchLearner(dict(decoder.named_parameters()), partial(language_model_loss, decoder), settings)
    return Loop(learner, rows, lambda row: len(row.ids), settings)


def trained_loop(rows=ROWS, **settings):
    loop = untrained_loop(rows, **settings)
    for batches in loop.groups():
        loop.step(batches)
    return loop


def unequal_loop():
    """Rows of unequal lengths, and a last batch of one row, of which one of two processes gets nothing."""
    rows = [*ROWS, PackedRow([1, 3, 5, 7], [1, 3, 5, 7]), PackedRow([2, 4], [2, 4])]
    # AdamW divides a gradient by its own size: the rounding of one near 0 moves a weight by up to rate / 1e-8 of it.
    return trained_loop(rows, learning_rate=1e-4, clip=0.1)


if __name__ == "__main__":
    os.environ["RANK"] = "1" if os.fork() else "0"
    with distributed.joined(torch.device("cpu")):
        loop = unequal_loop()
    if not distributed.is_first():
        print(json.dumps([loop.history.losses, {name: p.tolist() for name, p in loop.learner.parameters.items()}]))
