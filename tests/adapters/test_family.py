"""A family computes the rows of one batch by different adapters as each adapter alone, and trains them together."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from minillm import InputError
from minillm.adapt import Family, FineTune, FrozenHead, LoRA, PrefixTuning, SoftPrompt
from tests.adapt.low_rank import moved
from tests.decoders import STYLES, random_decoder
from tests.tolerances import assert_close

IDS = torch.tensor([[3, 1, 4, 1], [2, 7, 1, 8], [9, 2, 6, 5], [5, 8, 9, 7], [1, 2, 3, 4], [6, 6, 2, 1], [4, 3, 2, 1]])
NAMES = ["a", "base", "soft", "b", "prefix", "a", "wide"]


def family_on(decoder):
    members = {
        "a": LoRA(decoder, r=2, alpha=4),
        "b": LoRA(decoder, r=3, alpha=1, targets=("all-linear",)),
        "wide": LoRA(decoder, r=2, targets=("head", "key")),
        "soft": SoftPrompt(decoder, 3),
        "prefix": PrefixTuning(decoder, 5, gated=True),
    }
    return Family(decoder, {name: moved(member, seed).eval() for seed, (name, member) in enumerate(members.items())})


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("padded", [False, True])
def test_a_mixed_batch_equals_its_rows_one_by_one(style, padded):
    family = family_on(random_decoder(STYLES[style]))
    mask = torch.ones_like(IDS, dtype=torch.bool)
    if padded:
        mask[[0, 3, 4], :1] = False
    together = family(IDS, NAMES, mask=mask)
    for row, name in enumerate(NAMES):
        alone = family[name](IDS[row : row + 1][:, mask[row]])[0]
        assert_close(together[row][mask[row]], alone, "law", name)


def test_each_member_gets_the_gradient_of_its_own_rows():
    decoder = random_decoder(STYLES["Llama"])
    family = family_on(decoder)

    def loss(logits, ids):
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")

    loss(family(IDS, NAMES), IDS).backward()
    together = {name: parameter.grad.clone() for name, parameter in family.trainable().items()}
    family.zero_grad()
    for name in set(NAMES) - {"base"}:
        rows = IDS[[row for row, other in enumerate(NAMES) if other == name]]
        loss(family[name](rows), rows).backward()
    for name, parameter in family.trainable().items():
        assert_close(together[name], parameter.grad, "law", name)
    assert all(parameter.grad is None for parameter in decoder.parameters())


def test_lora_rows_share_the_frozen_products():
    decoder = random_decoder(STYLES["Llama"])
    members = {f"{index}": moved(LoRA(decoder, r=2), index) for index in range(7)}
    family = Family(decoder, members)

    def products(run):
        with FlopCounterMode(display=False) as counter:
            run()
        return counter.get_flop_counts()["Global"][torch.ops.aten.mm]

    assert products(lambda: family(IDS, list(members))) == products(lambda: decoder(IDS))


def test_biases_of_one_member_do_not_affect_another():
    decoder = random_decoder(STYLES["GPT-2"])
    family = Family(decoder, {"bias": moved(LoRA(decoder, r=2, train_bias=True), 0), "plain": moved(LoRA(decoder), 1)})
    together = family(IDS[:2], ["bias", "plain"])
    assert_close(together[0], family["bias"](IDS[:1])[0], "law")
    assert_close(together[1], family["plain"](IDS[1:2])[0], "law")


def test_switching_leaves_the_base_bit_for_bit():
    decoder = random_decoder(STYLES["Llama"])
    before = decoder(IDS)
    family = family_on(decoder)
    for name in NAMES:
        family[name](IDS[:1])
    assert family["base"] is decoder
    assert torch.equal(family["base"](IDS), before)


def test_unknown_names_and_impossible_members_are_refused():
    decoder = random_decoder(STYLES["Llama"])
    family = Family(decoder, {"a": LoRA(decoder, r=2)})
    with pytest.raises(InputError, match="no adapter 'c'; it has base, a"):
        family(IDS[:1], ["c"])
    with pytest.raises(InputError, match="one name per row: 1, got 2"):
        family(IDS[:1], ["a", "a"])
    with pytest.raises(InputError, match="a classifier, not a language model"):
        Family(decoder, {"head": FrozenHead(decoder, 2)})
    with pytest.raises(InputError, match="a classifier, not a language model"):
        Family(decoder, {"head": FineTune(decoder, "output", classes=[3, 4])})
    with pytest.raises(InputError, match="is reserved for the decoder itself"):
        Family(decoder, {"base": FineTune(decoder)})
