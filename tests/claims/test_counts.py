"""Claims about how few parameters a method trains, counted on the shapes of the published models."""

from functools import cache

import pytest
import torch

from minillm.adapt import DoRA, FineTune, FrozenHead, LoRA, PiSSA, PrefixTuning, SoftPrompt
from minillm.config import DecoderConfig
from minillm.decoder import Decoder

SMALL, MEDIUM, LARGE = (DecoderConfig.gpt2(size) for size in ("small", "medium", "large"))
SMOLLM2, LLAMA_2 = DecoderConfig.llama("smollm2-135m"), DecoderConfig.llama("llama-2-7b")
GPT_3 = DecoderConfig(
    norm="layer", norm_first=True, positions="learned", feed_forward="gelu", vocabulary=50257, layers=96, width=12288,
    heads=96, kv_heads=96, feed_forward_width=4 * 12288, context_length=2048, bias=True,
)  # fmt: skip


@cache
def _decoder(config):
    """On the meta device, where nothing is allocated."""
    with torch.device("meta"):
        return Decoder(config)


def _size(tensors):
    return sum(tensor.numel() for tensor in tensors)


@pytest.mark.parametrize(
    ("what", "config", "build", "trained"),
    [
        # Hu et al. 2021, table 4 and appendix D, on query and value. (Table 3 prints 0.35M for GPT-2 medium, where the
        # shapes give 0.39M.)
        ("LoRA, r 4, GPT-2 small", SMALL, lambda base: LoRA(base, r=4), 147_456),
        ("LoRA, r 4, GPT-2 medium", MEDIUM, lambda base: LoRA(base, r=4), 393_216),
        ("LoRA, r 4, GPT-2 large", LARGE, lambda base: LoRA(base, r=4), 737_280),
        ("LoRA, r 1, GPT-3", GPT_3, lambda base: LoRA(base, r=1), 4_718_592),
        ("LoRA, r 8, GPT-3", GPT_3, lambda base: LoRA(base, r=8), 37_748_736),
        ("LoRA, r 8, Llama-2-7B", LLAMA_2, lambda base: LoRA(base, r=8), 4_194_304),
        ("LoRA, r 8, SmolLM2", SMOLLM2, lambda base: LoRA(base, r=8), 460_800),
        ("DoRA, one magnitude more per output", SMALL, lambda base: DoRA(base, r=4), 165_888),
        # Li & Liang 2021, sections 4.2 and 4.3: length x layers x 2 x width, and an MLP of 512 that computes them.
        ("prefix of 5, GPT-2 medium", MEDIUM, lambda base: PrefixTuning(base, 5), 245_760),
        ("prefix of 10, GPT-2 medium", MEDIUM, lambda base: PrefixTuning(base, 10), 491_520),
        ("prefix of 5 by an MLP, GPT-2 medium", MEDIUM, lambda base: PrefixTuning(base, 5, hidden=512), 25_744_896),
        ("prefix of 10, SmolLM2", SMOLLM2, lambda base: PrefixTuning(base, 10), 115_200),
        # Lester et al. 2021, section 2: length x width.
        ("soft prompt of 10, SmolLM2", SMOLLM2, lambda base: SoftPrompt(base, 10), 5_760),
        # The lecture's places 3 and 4.
        ("head of 2 classes, GPT-2 small", SMALL, lambda base: FrozenHead(base, 2), 1_538),
        ("output layer of 2 classes, SmolLM2", SMOLLM2, lambda base: FineTune(base, "output", 2), 1_154),
        ("output layer of 2 tokens, SmolLM2", SMOLLM2, lambda base: FineTune(base, "output", [5, 7]), 1_152),
        ("last 2 blocks, SmolLM2", SMOLLM2, lambda base: FineTune(base, layers=2), 7_080_768),
        ("all of SmolLM2", SMOLLM2, FineTune, 134_515_008),
    ],
)
def test_each_method_trains_as_many_parameters_as_its_paper_counts(what, config, build, trained):
    base = _decoder(config)
    with torch.device("meta"):
        count = _size(build(base).trainable().values())
    whole = _size(base.parameters())
    print(f"{what}: {count:,} of {whole:,}, {count / whole:.4%}")
    assert count == trained


def test_ten_thousand_times_fewer_is_nine_thousand():
    """Hu et al. 2021, abstract, on GPT-3 (Brown et al. 2020, table 2.1: 175 billion parameters): rank 4 on query and
    value trains 18.9 million parameters."""
    whole, trained = _size(_decoder(GPT_3).parameters()), GPT_3.layers * 2 * 4 * (2 * GPT_3.width)
    print(f"GPT-3: {whole:,} parameters, {trained:,} trained: {whole / trained:,.0f} times fewer")
    assert 174e9 < whole < 176e9
    assert 9_000 < whole / trained < 10_000


def test_the_mlp_of_a_prefix_is_not_saved_and_pissa_saves_twice_what_it_trains():
    with torch.device("meta"):
        prefix, pissa = PrefixTuning(_decoder(MEDIUM), 5, hidden=512), PiSSA(_decoder(SMALL), r=4)
    assert _size(prefix.state().values()) == 245_760
    assert _size(pissa.state().values()) == 2 * _size(pissa.trainable().values())
