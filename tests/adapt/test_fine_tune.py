"""Fine-tuning trains copies of what it names, and only those."""

import pytest
import torch

from minillm import InputError
from minillm.adapt import FineTune
from tests.decoders import STYLES, random_decoder

IDS = torch.tensor([[3, 1, 4, 1, 5]])


@pytest.mark.parametrize("layers", ["all", 1, ["blocks.0.*.query.weight"]])
def test_it_starts_as_the_base_and_a_step_leaves_the_base_as_it_was(layers):
    decoder = random_decoder(STYLES["Llama"])
    before = {name: parameter.clone() for name, parameter in decoder.named_parameters()}
    method = FineTune(decoder, layers=layers)
    assert torch.equal(method(IDS), decoder(IDS))
    optimizer = torch.optim.AdamW(method.parameters(), lr=0.1)
    method(IDS).square().sum().backward()
    optimizer.step()
    assert all(torch.equal(parameter, before[name]) for name, parameter in decoder.named_parameters())
    assert not torch.equal(method(IDS), decoder(IDS))


def test_the_last_k_blocks_come_with_the_final_norm():
    decoder = random_decoder(STYLES["Llama"])
    trained = set(FineTune(decoder, layers=1).trainable())
    assert trained == {name for name, _ in decoder.named_parameters() if name.startswith("blocks.1.")} | {"norm.weight"}


def test_all_is_every_parameter_and_the_tied_head_stays_tied():
    decoder = random_decoder(STYLES["Llama"])
    method = FineTune(decoder)
    assert set(method.trainable()) == {name for name, _ in decoder.named_parameters()}
    assert method.decoder.head.weight is method.decoder.embed.weight


def test_what_is_not_there_cannot_be_trained():
    decoder = random_decoder(STYLES["Llama"])
    with pytest.raises(InputError, match="this decoder has 2 blocks"):
        FineTune(decoder, layers=3)
    with pytest.raises(InputError, match=r"layer 'blocks\.7\.\*' matches nothing"):
        FineTune(decoder, layers=["blocks.7.*"])
