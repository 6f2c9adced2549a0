"""A merged decoder has the method's logits; the base and the method are unchanged."""

import pytest
import torch

from minillm import InputError
from minillm.adapt import FineTune, FrozenHead, InContext, LoRA
from minillm.adapt.dora import DoRA
from minillm.adapt.pissa import PiSSA
from minillm.adapt.surgery import frozen
from minillm.adapters.merge import merge, merge_rounding, updates
from tests.adapt.low_rank import moved
from tests.decoders import STYLES, random_decoder, snapshot, unchanged
from tests.tolerances import assert_close, relative_error

IDS = torch.tensor([[3, 1, 4, 1, 5], [2, 7, 1, 8, 2]])
METHODS = {
    "LoRA": lambda base: LoRA(base, r=2, alpha=4),
    "LoRA, everywhere": lambda base: LoRA(base, r=2, alpha=3, targets=("all-linear", "head", "embed"), dropout=0.5),
    "LoRA, biases": lambda base: LoRA(base, r=2, alpha=4, train_bias=base.config.has_bias("query")),
    "DoRA": lambda base: DoRA(base, r=2, alpha=4, targets=("all-linear", "head")),
    "PiSSA": lambda base: PiSSA(base, r=2, alpha=4, targets=("all-linear",)),
    "FineTune": lambda base: FineTune(base, layers=1),
    "FineTune, head": lambda base: FineTune(base, layers=["head.weight"]),
    "FineTune, all": lambda base: FineTune(base),
}


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("name", METHODS)
def test_the_merged_decoder_has_the_methods_logits_and_nothing_else_has_changed(name, style):
    base = random_decoder(STYLES[style])
    method = moved(METHODS[name](base)).eval()
    of_base, of_method, logits = snapshot(base), snapshot(method), method(IDS)
    merged = merge(method)
    assert type(merged) is type(base)
    assert set(merged.state_dict()) == set(base.state_dict()), "it has the parameters of a plain decoder"
    assert_close(merged(IDS), logits, "law")
    assert (logits - base(IDS)).abs().max() > 1e-3
    assert unchanged(base, of_base)
    assert unchanged(method, of_method)
    del merged
    assert torch.equal(method(IDS), logits)


@pytest.mark.parametrize("name", METHODS)
def test_training_the_merged_decoder_changes_neither_the_base_nor_the_method(name):
    base = random_decoder(STYLES["GPT-2"])
    method = moved(METHODS[name](base))
    of_base, of_method = snapshot(base), snapshot(method)
    merged = merge(method)
    assert all(parameter.requires_grad for parameter in merged.parameters())
    merged(IDS).square().sum().backward()
    torch.optim.SGD(merged.parameters(), lr=0.1).step()
    assert unchanged(base, of_base)
    assert unchanged(method, of_method)


@pytest.mark.parametrize(
    ("adapt", "tied"),
    [
        (lambda base: LoRA(base, r=2), True),
        (lambda base: LoRA(base, r=2, targets="head"), False),
        (lambda base: LoRA(base, r=2, targets="embed"), False),
        (lambda base: FineTune(base, layers=["head.weight"]), False),
        (lambda base: FineTune(base), True),
    ],
)
def test_a_tied_head_of_which_one_side_was_adapted_becomes_untied(adapt, tied):
    base = random_decoder(STYLES["Llama"])
    merged = merge(moved(adapt(base)))
    assert (merged.head.weight is merged.embed.weight) == tied == merged.config.tie_embeddings
    assert base.config.tie_embeddings
    assert base.head.weight is base.embed.weight
    changed = [side for side in ("embed", "head") if not torch.equal(weight_of(merged, side), weight_of(base, side))]
    assert len(changed) == (1 if not tied else 2 if isinstance(adapt(base), FineTune) else 0)


def weight_of(decoder, side):
    return decoder.get_submodule(side).weight


def test_a_prefix_and_a_classifier_cannot_be_merged():
    base = random_decoder(STYLES["Llama"])
    with pytest.raises(InputError, match="InContext cannot be merged: it has a prefix"):
        merge(InContext(base, torch.tensor([[1, 2]])))
    with pytest.raises(InputError, match="FrozenHead cannot be merged: it is a classifier, not a language model"):
        merge(FrozenHead(base, 2))


def test_a_merge_adds_the_updates():
    base = random_decoder(STYLES["Llama"])
    method = moved(LoRA(base, r=2, targets=("all-linear", "embed")))
    merged = merge(method)
    for path, dw in updates(method).items():
        change = merged.get_submodule(path).weight - base.get_submodule(path).weight
        assert_close(change, dw, "law")
        assert torch.linalg.matrix_rank(dw) == 2


def test_a_merge_keeps_half_precision():
    body = frozen(random_decoder(STYLES["Llama"]).float(), torch.bfloat16)
    merged = merge(moved(LoRA(body, r=2, targets=("all-linear",))))
    assert merged.blocks[0].attention.query.weight.dtype == torch.bfloat16
    assert merged.embed.weight.dtype == torch.float32


def test_the_rounding_of_a_merge_is_measured_by_dtype():
    base = random_decoder(STYLES["Llama"]).float()
    method = moved(LoRA(base, r=2, targets=("all-linear",)))
    before = snapshot(method)
    rounding = merge_rounding(method, IDS, (torch.float64, torch.float32, torch.bfloat16))
    size = method(IDS).abs().max()
    # float32 has 24 binary digits, bfloat16 8.
    assert rounding[torch.float32] < 1e-5 * size
    assert 1e-3 * size < rounding[torch.bfloat16] < size
    assert unchanged(method, before)


def test_on_a_base_of_bfloat16_values_the_rounding_is_that_of_the_update():
    """Rounding does not change this base, so the difference is that of W + dW to its rounding."""
    base = random_decoder(STYLES["Llama"]).float()
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.copy_(parameter.bfloat16().float())
    method = moved(LoRA(base, r=2))
    rounded = merge(method)
    for path in updates(method):
        weight = rounded.get_submodule(path).weight
        weight.data = weight.data.bfloat16().float()
    expected = (rounded(IDS) - method(IDS)).abs().max().item()
    assert merge_rounding(method, IDS)[torch.bfloat16] == pytest.approx(expected, rel=1e-3)
    assert expected > 0


def test_a_fresh_lora_merges_to_the_base_itself():
    base = random_decoder(STYLES["Llama"]).float()
    method = LoRA(base, r=2)
    assert torch.equal(merge(method)(IDS), base(IDS))
    assert set(merge_rounding(method, IDS).values()) == {0.0}
    assert relative_error(merge(method)(IDS), base(IDS)) == 0
