"""A stack of two methods equals the merged body with the prefix; other combinations are refused."""

import pytest
import torch

from minillm import InputError, adapt
from minillm.adapt import FineTune, InContext, LoRA, PrefixTuning, SoftPrompt
from tests.adapt.low_rank import moved
from tests.decoders import STYLES, random_decoder
from tests.tolerances import assert_close

IDS = torch.tensor([[3, 1, 4, 1, 5], [2, 7, 1, 8, 2]])


@pytest.mark.parametrize("before", [lambda base: SoftPrompt(base, 3), lambda base: PrefixTuning(base, 3)])
@pytest.mark.parametrize("changing", [lambda base: LoRA(base, r=2), lambda base: FineTune(base, layers=1)])
def test_a_stack_equals_the_merged_body_with_the_prompt(changing, before):
    base = random_decoder(STYLES["Llama"])
    body, prompt = moved(changing(base)), moved(before(base))
    stacked = adapt.stack(body, prompt)
    merged = adapt.merge(body)
    other = type(prompt).from_state(merged, prompt.options(), prompt.state())
    assert_close(stacked(IDS), other(IDS), "law")
    assert set(stacked.trainable()) == set(body.trainable()) | {f"before.{name}" for name in prompt.trainable()}
    alone = type(prompt).from_state(base, prompt.options(), prompt.state())
    assert_close(prompt(IDS), alone(IDS), "law", "the prompt's own method, outside the stack")


def test_training_the_stack_trains_its_methods():
    base = random_decoder(STYLES["Llama"])
    body, prompt = LoRA(base, r=2), SoftPrompt(base, 3)
    stacked = adapt.stack(body, prompt)
    optimizer = torch.optim.SGD(stacked.trainable().values(), lr=0.1)
    start = prompt.prompt.detach().clone()
    stacked(IDS).square().mean().backward()
    optimizer.step()
    assert not torch.equal(prompt.prompt, start)
    assert body.decoder.blocks[0].attention.query.b.abs().max() > 0


def test_two_of_one_kind_or_on_different_decoders_are_refused():
    base, other = random_decoder(STYLES["Llama"]), random_decoder(STYLES["Llama"], 1)
    for methods in (
        (LoRA(base), LoRA(base)),
        (SoftPrompt(base, 2), PrefixTuning(base, 2)),
        (LoRA(base),),
        (LoRA(base), InContext(base, IDS[:1])),
    ):
        with pytest.raises(InputError, match="one of LoRA, DoRA, PiSSA, FineTune and one of SoftPrompt, PrefixTuning"):
            adapt.stack(*methods)
    with pytest.raises(InputError, match="the same decoder"):
        adapt.stack(LoRA(base), SoftPrompt(other, 2))
