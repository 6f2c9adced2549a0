"""A config either works or says in a sentence why it cannot."""

import re
from dataclasses import FrozenInstanceError, replace

import pytest

from minillm.config import DecoderConfig
from minillm.errors import InputError

tiny = DecoderConfig.tiny()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"width": 25}, "a width of 25 does not divide into 4 heads"),
        ({"kv_heads": 3}, "4 query heads do not share 3 key/value heads evenly"),
        ({"kv_heads": 8}, "4 query heads do not share 8 key/value heads evenly"),
        ({"width": 20}, "rotary positions turn pairs of numbers, and a head is 5 wide: odd"),
        (
            {"positions": "sinusoidal", "width": 21, "heads": 3, "kv_heads": 3},
            "sinusoidal positions come in pairs, and the width is 21: odd",
        ),
        ({"norm": "batch"}, "norm is 'batch'; it can be layer, rms"),
        ({"positions": "alibi"}, "positions is 'alibi'; it can be sinusoidal, learned, rotary"),
        ({"feed_forward": "silu"}, "feed_forward is 'silu'; it can be relu, gelu, swiglu"),
        ({"layers": 0}, "layers is 0; it must be at least 1"),
        ({"vocabulary": -1}, "vocabulary is -1; it must be at least 1"),
        ({"heads": 0}, "heads is 0; it must be at least 1"),
        ({"context_length": 0}, "context_length is 0; it must be at least 1"),
        ({"dropout": 1.0}, "a dropout of 1.0 is no probability below 1"),
        ({"dropout": -0.1}, "a dropout of -0.1 is no probability below 1"),
        ({"norm_eps": 0.0}, "norm_eps (0.0) and rope_theta (10000.0) must be above 0"),
        ({"rope_theta": -1.0}, "norm_eps (1e-05) and rope_theta (-1.0) must be above 0"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_work_is_refused_with_a_sentence(changes, sentence):
    with pytest.raises(InputError, match=f"^{re.escape(sentence)}$"):
        replace(tiny, **changes)


@pytest.mark.parametrize("family", [DecoderConfig.gpt2, DecoderConfig.llama])
def test_an_unknown_size_is_refused_and_the_known_ones_are_named(family):
    with pytest.raises(InputError, match=r"has no size 'huge'; it has: (small|smollm2-135m), "):
        family("huge")


def test_the_presets_make_the_choices_of_the_table():
    choices = {
        name: (config.norm, config.norm_first, config.positions, config.feed_forward)
        for name, config in (
            ("figure 1", DecoderConfig.vaswani()),
            ("GPT-2", DecoderConfig.gpt2()),
            ("Llama", DecoderConfig.llama()),
        )
    }
    assert choices == {
        "figure 1": ("layer", False, "sinusoidal", "relu"),
        "GPT-2": ("layer", True, "learned", "gelu"),
        "Llama": ("rms", True, "rotary", "swiglu"),
    }


def test_smollm2_has_the_sizes_of_its_file():
    config = DecoderConfig.llama("smollm2-135m")
    assert (config.layers, config.width, config.heads, config.kv_heads) == (30, 576, 9, 3)
    assert (config.feed_forward_width, config.vocabulary, config.rope_theta) == (1536, 49152, 100_000.0)
    assert config.tie_embeddings


def test_a_config_is_a_value():
    assert DecoderConfig.tiny(layers=3) == replace(tiny, layers=3) != tiny
    with pytest.raises(FrozenInstanceError):
        tiny.layers = 3
