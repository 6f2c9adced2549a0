"""The methods by name, and the precision of their matrices."""

import gc
import weakref

import pytest
import torch

from minillm import Decoder, DecoderConfig
from minillm.adapt.surgery import linears
from minillm.training.methods import FINE_TUNED, METHODS, Base, MethodOptions, build, instruction
from minillm.training.tokenizers import characters, words


@pytest.mark.parametrize("name", METHODS)
def test_with_bfloat16_frozen_matrices_have_it_and_the_float32_ones_are_freed(name):
    gc.freeze()  # collect looks at the objects of this test alone
    tokenizer = words(["so so well good good bad bad"], 8)
    decoder, answers = Decoder(DecoderConfig.tiny()), [tokenizer.encode(word) for word in (" good", " bad")]
    matrices = [weakref.ref(matrix.weight) for matrix in linears(decoder).values()]
    base = Base(decoder, tokenizer, answers)
    method = build(base, name, MethodOptions(r=2, layers=1, init_text="so"), "bfloat16", seed=0)
    del decoder, base
    gc.collect()
    gc.unfreeze()
    assert not any(matrix() is not None for matrix in matrices), "nothing refers to the float32 base"
    for linear in linears(method.decoder).values():
        if isinstance(linear, torch.nn.Linear) and name in FINE_TUNED:
            assert linear.weight.dtype == (torch.float32 if linear.weight.requires_grad else torch.bfloat16)
    assert all(parameter.dtype == torch.float32 for parameter in method.trainable().values())


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([" negative", " positive"], "Answer with negative or positive.\n\n"),
        ([" a", " b", " c"], "Answer with a, b or c.\n\n"),
        (None, "Write the answer to the text below.\n\n"),
    ],
)
def test_a_soft_prompt_starts_from_an_instruction_for_the_task_with_a_vector_per_token(answers, expected):
    tokenizer = characters([expected])
    decoder = Decoder(DecoderConfig.tiny())
    base = Base(decoder, tokenizer, answers and [tokenizer.encode(answer) for answer in answers])
    assert instruction(base) == expected
    for length in (None, 3):
        method = build(base, "soft-prompt", MethodOptions(length=length), "float32", seed=0)
        ids = tokenizer.encode(expected)[:length]
        assert torch.equal(method.prompt, decoder.embed.weight[ids])
