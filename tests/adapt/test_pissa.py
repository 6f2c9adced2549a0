"""PiSSA: a LoRA that starts at the principal part of each matrix."""

import pytest
import torch

from minillm import Decoder, DecoderConfig
from minillm.adapt import LoRA
from minillm.adapt.pissa import PiSSA
from minillm.adapters.merge import updates
from tests.adapt.low_rank import moved
from tests.decoders import STYLES, random_decoder
from tests.tolerances import assert_close

IDS = torch.tensor([[3, 1, 4, 1, 5]])


@pytest.mark.parametrize("style", STYLES)
def test_it_starts_as_the_base_and_then_leaves_it(style):
    decoder = random_decoder(STYLES[style])
    method = PiSSA(decoder, r=2, alpha=3, targets=("all-linear", "head"))
    assert_close(method(IDS), decoder(IDS), "law")
    assert (moved(method)(IDS) - decoder(IDS)).abs().max() > 1e-3


def test_it_starts_at_the_best_approximation_of_its_rank():
    decoder = random_decoder(STYLES["Llama"])
    method = PiSSA(decoder, r=3, alpha=2, targets=("all-linear",))
    for path in updates(method):
        layer, weight = method.decoder.get_submodule(path), decoder.get_submodule(path).weight
        principal = layer.scale * layer.b @ layer.a
        left_over = torch.linalg.svdvals(weight)[3:]
        assert torch.linalg.matrix_rank(principal) == 3
        assert_close((weight - principal).norm(), left_over.norm(), "law")
        assert torch.linalg.vector_norm(layer.a) > 0.1, "both factors can learn from the first step on"


def test_its_first_gradient_reaches_a_and_b():
    method = PiSSA(random_decoder(STYLES["Llama"]), r=2)
    method(IDS).square().sum().backward()
    assert all(parameter.grad.abs().max() > 1e-6 for parameter in method.trainable().values())


@pytest.mark.parametrize("rank_stabilised", [False, True])
def test_what_it_keeps_is_a_lora_of_twice_the_rank_with_the_same_logits(rank_stabilised):
    decoder = random_decoder(STYLES["GPT-2"])
    options = {"ranks": {"blocks.0.*": 3}, "alphas": {"value": 5}, "rank_stabilised": rank_stabilised}
    method = moved(PiSSA(decoder, r=2, alpha=3, train_bias=True, **options))
    lora = LoRA.from_state(decoder, method.lora_options(), method.state())
    assert {name: tensor.shape for name, tensor in lora.state().items() if "blocks.1" in name} == {
        f"blocks.1.attention.{role}.{name}": shape
        for role in ("query", "value")
        for name, shape in {"a": (4, 30), "b": (30, 4), "bias": (30,)}.items()
    }
    assert_close(lora(IDS), method(IDS), "law")
    assert rank_stabilised or torch.equal(lora(IDS), method(IDS)), "the scale is a quotient of doubled numbers"


def test_it_trains_what_lora_trains():
    with torch.device("meta"):
        small = PiSSA(Decoder(DecoderConfig.gpt2("small")), r=4)
    assert sum(parameter.numel() for parameter in small.trainable().values()) == 147_456
    assert sum(tensor.numel() for tensor in small.state().values()) == 2 * 147_456


def test_loading_it_decomposes_nothing(monkeypatch):
    decoder = random_decoder(STYLES["Llama"])
    method = moved(PiSSA(decoder, r=2))
    monkeypatch.setattr(torch.linalg, "svd", None)
    assert torch.equal(PiSSA.from_state(decoder, method.options(), method.state())(IDS), method(IDS))
