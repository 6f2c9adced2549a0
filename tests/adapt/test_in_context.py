"""A prompt that is encoded once gives the logits of prompt and text encoded together."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from minillm import InputError
from minillm.adapt import InContext
from tests.decoders import STYLES, random_decoder
from tests.tolerances import assert_close

PROMPT = torch.tensor([[7, 8, 9, 1]])
ROWS = torch.tensor([[3, 1, 4], [2, 7, 1]])


@pytest.mark.parametrize("style", STYLES)
def test_the_logits_are_those_of_prompt_and_text_together(style):
    decoder = random_decoder(STYLES[style])
    together = decoder(torch.cat((PROMPT.expand(2, -1), ROWS), 1))[:, 4:]
    assert_close(InContext(decoder, PROMPT)(ROWS), together, "law")


def test_a_query_costs_its_own_tokens_and_not_the_prompts():
    decoder = random_decoder(STYLES["Llama"])
    method = InContext(decoder, PROMPT)

    def flops(run):
        with FlopCounterMode(display=False) as counter:
            run()
        return counter.get_flop_counts()["Global"][torch.ops.aten.mm]

    assert flops(lambda: method(ROWS)) == flops(lambda: decoder(ROWS))


def test_nothing_is_trained_and_a_prompt_beyond_the_context_is_refused():
    decoder = random_decoder(STYLES["Llama"])
    assert InContext(decoder, PROMPT).trainable() == {}
    with pytest.raises(InputError, match="exceed this decoder's context of 17"):
        InContext(decoder, PROMPT.repeat(1, 5))
    with pytest.raises(InputError, match="14 prompt positions"):
        InContext(decoder, torch.ones(1, 14, dtype=torch.long))(torch.ones(1, 4, dtype=torch.long))
