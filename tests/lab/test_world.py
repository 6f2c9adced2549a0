"""What every rung starts from."""

from pathlib import Path

import pytest
import torch

from minillm import Decoder, DecoderConfig, InputError
from minillm.data.tasks import LabelledText, Task
from minillm.lab.world import World
from minillm.training.tokenizers import words

ROWS = [LabelledText("so", 0), LabelledText("well", 1)]


def world(*answers):
    task = Task("films", "{text}:", answers, ROWS, ROWS, ROWS)
    decoder, tokenizer = Decoder(DecoderConfig.tiny()), words(["so so well good good bad bad"], 8)
    return World(decoder, tokenizer, torch.device("cpu"), "float32", 0, Path("nowhere"), task)


def test_answers_that_the_tokenizer_cannot_tell_apart_are_refused():
    """They would have one score, and no gradient: nothing could be learned, and no one would be told."""
    assert len(world(" good", " bad").answers()) == 2
    with pytest.raises(InputError, match="the answers ' fine' and ' poor' are the same to this base's tokenizer"):
        world(" good", " fine", " poor").answers()
