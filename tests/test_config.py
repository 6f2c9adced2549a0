"""DecoderConfig: validation and presets."""

import re
from dataclasses import FrozenInstanceError, replace

import pytest

from minillm.config import DecoderConfig, RopeScaling
from minillm.errors import InputError

tiny = DecoderConfig.tiny()
LINEAR = RopeScaling("linear", 2.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 25}, "width must be a multiple of heads, got 25 and 4"),
        ({"kv_heads": 3}, "heads must be a multiple of kv_heads, got 4 and 3"),
        ({"kv_heads": 8}, "heads must be a multiple of kv_heads, got 4 and 8"),
        ({"width": 20}, "rotary positions need an even head width, got width / heads = 5"),
        ({"positions": "sinusoidal", "width": 21, "heads": 3, "kv_heads": 3}, "positions need an even width, got 21"),
        ({"norm": "batch"}, "norm must be one of layer, rms, got 'batch'"),
        ({"positions": "alibi"}, "positions must be one of sinusoidal, learned, rotary, got 'alibi'"),
        ({"feed_forward": "silu"}, "feed_forward must be one of relu, gelu, swiglu, got 'silu'"),
        ({"layers": 0}, "layers must be at least 1, got 0"),
        ({"vocabulary": -1}, "vocabulary must be at least 1, got -1"),
        ({"heads": 0}, "heads must be at least 1, got 0"),
        ({"context_length": 0}, "context_length must be at least 1, got 0"),
        ({"dropout": 1.0}, "dropout must be in [0, 1), got 1.0"),
        ({"dropout": -0.1}, "dropout must be in [0, 1), got -0.1"),
        ({"norm_eps": 0.0}, "norm_eps and rope_theta must be positive, got 0.0 and 10000.0"),
        ({"rope_theta": -1.0}, "norm_eps and rope_theta must be positive, got 1e-05 and -1.0"),
        ({"attention_width": 25}, "attention_width must be a multiple of heads, got 25 and 4"),
        ({"attention_width": 0}, "attention_width must be a multiple of heads, got 0 and 4"),
        ({"attention_width": 20}, "rotary positions need an even head width, got attention_width / heads = 5"),
        ({"bias": "out"}, "one of False, query_key_value, attention, feed_forward, True, got 'out'"),
        ({"window": 0}, "window must be at least 1, got 0"),
        ({"window": 2**63}, "window must be below 2^31, got 9223372036854775808"),
        ({"vocabulary": 2**62}, "vocabulary must be below 2^31, got 4611686018427387904"),
        ({"unrotated_layers": (1, 2)}, "unrotated_layers must be in [0, 1], got (1, 2)"),
        (
            {"positions": "learned", "rope_scaling": LINEAR},
            "rope_scaling and unrotated_layers need rotary positions, got learned",
        ),
        ({"positions": "learned", "unrotated_layers": (0,)}, "unrotated_layers need rotary positions, got learned"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_invalid_config_is_refused(changes, message):
    with pytest.raises(InputError, match=f"{re.escape(message)}$"):
        replace(tiny, **changes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "dynamic"}, "the rotary scaling must be one of linear, llama3, yarn, got 'dynamic'"),
        ({"factor": 0.0}, "factor of the rotary scaling must be positive, got 0.0"),
        ({"original_context": -1}, "original_context of the rotary scaling must be positive, got -1"),
        ({"slow": 4.0}, "the rotary scaling needs 0 < slow < fast, got 4.0 and 4.0"),
    ],
)
def test_an_invalid_scaling_is_refused(arguments, message):
    with pytest.raises(InputError, match=re.escape(message)):
        RopeScaling(**{"kind": "llama3", "factor": 8.0} | arguments)


@pytest.mark.parametrize("family", [DecoderConfig.gpt2, DecoderConfig.llama])
def test_the_error_for_an_unknown_size_lists_the_sizes(family):
    with pytest.raises(InputError, match=r"size must be one of (small|smollm2-135m), .*, got 'huge'"):
        family("huge")


def test_the_presets_have_the_four_choices_of_their_families():
    choices = {
        ("layer", False, "sinusoidal", "relu"): DecoderConfig.vaswani(),
        ("layer", True, "learned", "gelu"): DecoderConfig.gpt2(),
        ("rms", True, "rotary", "swiglu"): DecoderConfig.llama(),
    }
    for expected, config in choices.items():
        assert (config.norm, config.norm_first, config.positions, config.feed_forward) == expected


def test_the_preset_of_smollm2_has_its_sizes():
    config = DecoderConfig.llama("smollm2-135m")
    assert (config.layers, config.width, config.heads, config.kv_heads) == (30, 576, 9, 3)
    assert (config.feed_forward_width, config.vocabulary, config.rope_theta) == (1536, 49152, 100_000.0)
    assert config.tie_embeddings


def test_a_config_is_immutable():
    assert DecoderConfig.tiny(layers=3) == replace(tiny, layers=3) != tiny
    with pytest.raises(FrozenInstanceError):
        tiny.layers = 3
