"""What experiments work on, and how much of it is held in half precision."""

import gc
import weakref
from pathlib import Path

import pytest
import torch

from minillm import Decoder, DecoderConfig, InputError
from minillm.adapt.surgery import linears
from minillm.data.tasks import LabelledText, Task
from minillm.lab.experiment import Experiment, ExperimentOptions
from minillm.lab.methods import METHODS, MethodOptions, build
from minillm.training.tokenizers import words

ROWS = [LabelledText("so", 0), LabelledText("well", 1)]


def experiment(*answers, precision="float32"):
    task = Task("films", "{text}:", answers, ROWS, ROWS, ROWS)
    decoder, tokenizer = Decoder(DecoderConfig.tiny()), words(["so so well good good bad bad"], 8)
    return Experiment(decoder, tokenizer, task, torch.device("cpu"), precision, 0, Path("nowhere"))


def test_answers_that_the_tokenizer_cannot_tell_apart_are_refused():
    """They would have one score, and no gradient: nothing could be learned, without a word about it."""
    assert len(experiment(" good", " bad").answers()) == 2
    with pytest.raises(InputError, match="the answers ' fine' and ' poor' are the same to this base's tokenizer"):
        experiment(" good", " fine", " poor").answers()


@pytest.mark.parametrize("name", METHODS)
def test_in_bfloat16_frozen_matrices_are_held_in_it_and_nothing_holds_the_float32_ones(name):
    on = experiment(" good", " bad", precision="bfloat16")
    base = weakref.ref(on.decoder)
    paths = [f"{path}.weight" for path in linears(on.decoder)]
    method = build(on, name, MethodOptions(r=2, layers=1, words="so"))
    gc.collect()
    assert base() is None
    for path in paths:
        assert method.base[path].dtype == (torch.float32 if path in method.trainable() else torch.bfloat16)
    assert all(parameter.dtype == torch.float32 for parameter in method.trainable().values())


def test_options_that_cannot_work_are_refused():
    for wrong in ({"threads": 0}, {"seed": -1}):
        with pytest.raises(InputError):
            ExperimentOptions(**wrong)
