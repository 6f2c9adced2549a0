"""Claims about how few numbers an adaptation trains and publishes, counted on the published models' own shapes."""

from functools import cache

import pytest
import torch
from torch import nn

from minillm.config import DecoderConfig
from minillm.decoder import Decoder

GPT_3 = DecoderConfig(
    norm="layer", norm_first=True, positions="learned", feed_forward="gelu", vocabulary=50257, layers=96, width=12288,
    heads=96, kv_heads=96, feed_forward_width=4 * 12288, context_length=2048, bias=True,
)  # fmt: skip


@cache
def _decoder(config):
    """Its shapes alone: nothing is allocated on the meta device."""
    with torch.device("meta"):
        return Decoder(config)


@pytest.mark.parametrize(
    ("name", "config", "rank", "trainable"),
    [
        ("GPT-2 small", DecoderConfig.gpt2("small"), 4, 147_456),
        ("GPT-2 medium", DecoderConfig.gpt2("medium"), 4, 393_216),
        ("GPT-2 large", DecoderConfig.gpt2("large"), 4, 737_280),
        ("GPT-3", GPT_3, 1, 4_718_592),
        ("GPT-3", GPT_3, 8, 37_748_736),
        ("Llama-2-7B", DecoderConfig.llama("llama-2-7b"), 8, 4_194_304),
        ("SmolLM2-135M", DecoderConfig.llama("smollm2-135m"), 8, 460_800),
    ],
)
def test_lora_trains_rank_times_inputs_and_outputs(name, config, rank, trainable):
    """Hu et al. 2021, table 4 and appendix D, on query and value. (Table 3 prints 0.35M for GPT-2 medium, where the
    shapes give 0.39M.)"""
    decoder = _decoder(config)
    linears = [
        linear for path, linear in decoder.named_modules() if path.endswith(("attention.query", "attention.value"))
    ]
    count = sum(rank * (linear.in_features + linear.out_features) for linear in linears)
    whole = sum(parameter.numel() for parameter in decoder.parameters())
    print(f"{name}, rank {rank}: {count:,} of {whole:,} parameters, {count / whole:.4%}")
    assert count == trainable


def test_ten_thousand_times_fewer_is_nine_thousand():
    """Hu et al. 2021, abstract, on GPT-3 (Brown et al. 2020, table 2.1: 175 billion parameters): rank 4 on query and
    value trains 18.9 million numbers."""
    whole = sum(parameter.numel() for parameter in _decoder(GPT_3).parameters())
    trained = GPT_3.layers * 2 * 4 * (2 * GPT_3.width)
    print(f"GPT-3: {whole:,} parameters, {trained:,} trained: {whole / trained:,.0f} times fewer")
    assert 174e9 < whole < 176e9
    assert 9_000 < whole / trained < 10_000


@pytest.mark.parametrize(("length", "published"), [(5, 245_760), (10, 491_520)])
def test_a_prefix_publishes_its_keys_and_values(length, published):
    """Li & Liang 2021, section 4.2, on GPT-2 medium: length x layers x 2 x width numbers."""
    prompt = torch.zeros(1, length, dtype=torch.long, device="meta")
    left_behind = _decoder(DecoderConfig.gpt2("medium")).keys_values(prompt)
    count = left_behind.keys.numel() + left_behind.values.numel()
    print(f"a prefix of {length} on GPT-2 medium: {count:,} numbers")
    assert count == published


def test_a_prefixs_scaffolding_is_a_hundred_times_what_it_publishes():
    """Li & Liang 2021, section 4.3: an MLP of 512 writes the prefix while it is trained, and is dropped."""
    config, length = DecoderConfig.gpt2("medium"), 5
    with torch.device("meta"):
        mlp = nn.Sequential(nn.Linear(config.width, 512), nn.Linear(512, config.layers * 2 * config.width))
    trained = length * config.width + sum(parameter.numel() for parameter in mlp.parameters())
    print(f"{trained:,} numbers train {length * config.layers * 2 * config.width:,}")
    assert trained == 25_744_896


def test_a_head_of_two_classes_on_gpt2_small_is_1538_numbers():
    """The lecture, place 4: a classifier on top of stored embeddings."""
    with torch.device("meta"):
        head = nn.Linear(DecoderConfig.gpt2("small").width, 2)
    count = sum(parameter.numel() for parameter in head.parameters())
    print(f"a head of two classes on GPT-2 small: {count:,} numbers")
    assert count == 1_538
