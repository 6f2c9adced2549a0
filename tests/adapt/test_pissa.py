"""PiSSA: a LoRA that starts at the principal part of each matrix."""

import pytest
import torch

from minillm.adapt import LoRA
from minillm.adapt.pissa import PiSSA
from minillm.adapters.merge import updates
from tests.adapt.low_rank import moved
from tests.decoders import STYLES, random_decoder
from tests.tolerances import assert_close

pytestmark = pytest.mark.checked

IDS = torch.tensor([[3, 1, 4, 1, 5]])


def test_it_starts_at_the_best_approximation_of_its_rank():
    decoder = random_decoder(STYLES["Llama"])
    method = PiSSA(decoder, r=3, alpha=2, targets=("all-linear",))
    for path in updates(method):
        layer, weight = method.decoder.get_submodule(path), decoder.get_submodule(path).weight
        principal = layer.scale * layer.b @ layer.a
        remaining = torch.linalg.svdvals(weight)[3:]
        assert torch.linalg.matrix_rank(principal) == 3
        assert_close((weight - principal).norm(), remaining.norm(), "law")
        assert torch.linalg.vector_norm(layer.a) > 0.1, "both factors have a gradient in the first step"


@pytest.mark.parametrize("rank_stabilised", [False, True])
def test_its_state_is_a_lora_of_twice_the_rank_with_the_same_logits(rank_stabilised):
    decoder = random_decoder(STYLES["GPT-2"])
    options = {"ranks": {"blocks.0.*": 3}, "alphas": {"value": 5}, "rank_stabilised": rank_stabilised}
    method = moved(PiSSA(decoder, r=2, alpha=3, train_bias=True, **options))
    grown = 2**0.5 if rank_stabilised else 2  # the scale is the same
    twice = {"r": 4, "alpha": grown * 3, "ranks": {"blocks.0.*": 6}, "alphas": {"value": grown * 5}}
    lora = LoRA.from_state(decoder, method.options() | twice, method.state())
    assert {name: tensor.shape for name, tensor in lora.state().items() if "blocks.1" in name} == {
        f"blocks.1.attention.{role}.{name}": shape
        for role in ("query", "value")
        for name, shape in {"a": (4, 30), "b": (30, 4), "bias": (30,)}.items()
    }
    assert_close(lora(IDS), method(IDS), "law")
    assert rank_stabilised or torch.equal(lora(IDS), method(IDS)), "numerator and denominator of the scale are doubled"


def test_loading_computes_no_svd(monkeypatch):
    decoder = random_decoder(STYLES["Llama"])
    method = moved(PiSSA(decoder, r=2))
    monkeypatch.setattr(torch.linalg, "svd", None)
    assert torch.equal(PiSSA.from_state(decoder, method.options(), method.state())(IDS), method(IDS))
