"""A training loop that takes milliseconds."""

from functools import partial

import torch

from minillm import Decoder, DecoderConfig
from minillm.operations import IGNORED
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
