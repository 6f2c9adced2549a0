"""config.json: defaults as in transformers, and refusal of settings that minillm does not compute with."""

import pytest
import torch

import minillm
from minillm import DecoderConfig, InputError

from .gguf_writing import random_decoder
from .huggingface_writing import difference, edited, gpt2, llama, mistral, qwen2, qwen3, smollm3


@pytest.mark.parametrize(
    ("make", "changes"),
    [
        (gpt2, {"activation_function": "relu"}),
        (gpt2, {"scale_attn_weights": False}),
        (gpt2, {"scale_attn_by_inverse_layer_idx": True}),
        (gpt2, {"add_cross_attention": True}),
        (gpt2, {"quantization_config": {"bits": 4}}),
        (gpt2, {"n_head": 5}),
        (gpt2, {"n_layer": 2_000_000_000}),
        (gpt2, {"n_layer": "2"}),
        (gpt2, {"n_embd": 24.0}),
        (gpt2, {"layer_norm_epsilon": float("nan")}),
        (gpt2, {"layer_norm_epsilon": float("inf")}),
        (gpt2, {"tie_word_embeddings": 1}),
        (llama, {"hidden_act": "gelu"}),
        (llama, {"attention_bias": True}),
        (llama, {"mlp_bias": True}),
        (llama, {"head_dim": 8}),
        (llama, {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0}}),
        (llama, {"rope_scaling": {"type": "linear"}}),
        (llama, {"rope_scaling": {"type": "linear", "factor": 0}}),
        (llama, {"rope_scaling": {"type": "linear", "factor": True}}),
        (llama, {"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "truncate": False}}),
        (llama, {"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "something_new": 1}}),
        (llama, {"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0] * 3, "long_factor": [2.0] * 3}}),
        (llama, {"rope_scaling": {"rope_type": ["linear"], "factor": 2.0}}),
        (llama, {"rope_parameters": "plain"}),
        (llama, {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}}),
        (llama, {"partial_rotary_factor": 0.5}),
        (llama, {"num_key_value_heads": 3}),
        (llama, {"rope_parameters": {"rope_theta": -1.0}}),
        (llama, {"head_dim": 0}),
        (llama, {"head_dim": 7}),
        (mistral, {"sliding_window": 0}),
        (mistral, {"sliding_window": 1.5}),
        (qwen2, {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1, "layer_types": None}),
        (qwen2, {"use_sliding_window": True, "sliding_window": 5, "layer_types": ["sliding_attention", "full"]}),
        (smollm3, {"no_rope_layers": [1]}),
        (smollm3, {"no_rope_layers": ["a", "b"]}),
        (smollm3, {"no_rope_layers": None, "no_rope_layer_interval": 0}),
        (smollm3, {"num_hidden_layers": 2_000_000_000}),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_a_setting_that_minillm_does_not_compute_with_is_refused(tmp_path, make, changes):
    make().save_pretrained(tmp_path)
    with pytest.raises(InputError) as refusal:
        minillm.load(edited(tmp_path, **changes))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("make", "sizes", "changes"),
    [
        (gpt2, {"n_inner": 96}, dict.fromkeys(
            ["layer_norm_epsilon", "tie_word_embeddings", "activation_function", "scale_attn_weights", "n_inner"])),
        (llama, {"num_key_value_heads": 4}, dict.fromkeys(
            ["rms_norm_eps", "tie_word_embeddings", "rope_parameters", "attention_bias", "mlp_bias", "head_dim",
             "num_key_value_heads"])),
        (llama, {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}},
            {"rope_parameters": None, "rope_theta": 100}),
        (llama, {"rope_parameters": {"rope_type": "linear", "rope_theta": 100.0, "factor": 4.0}},
            {"rope_parameters": None, "rope_theta": 100, "rope_scaling": {"type": "linear", "factor": 4}}),
        (llama, {"rope_parameters": {"rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0,
                 "original_max_position_embeddings": 64}},
            {"rope_parameters": None, "rope_theta": 100, "rope_scaling": {"type": "yarn", "factor": 4}}),
        (qwen3, {"head_dim": 128}, dict.fromkeys(["head_dim", "attention_bias", "use_sliding_window"])),
        (mistral, {"sliding_window": 4096}, dict.fromkeys(["sliding_window"])),
        (smollm3, {"num_hidden_layers": 4}, dict.fromkeys(["no_rope_layers", "tie_word_embeddings"])),
    ],
    ids=["GPT-2", "Llama", "rope_theta of older versions", "linear scaling of older versions",
         "YaRN of older versions", "Qwen3", "Mistral", "SmolLM3"],
)  # fmt: skip
def test_missing_settings_have_the_defaults_of_transformers(tmp_path, make, sizes, changes):
    oracle = make(**sizes)
    oracle.save_pretrained(tmp_path)
    ours, _ = minillm.load(edited(tmp_path, **changes), dtype=torch.float64)
    assert difference(ours, oracle) < 1e-9


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_embd": None}, "lacks n_embd"),
        ({"vocab_size": None}, "lacks vocab_size"),
        ({"model_type": "mamba"}, "must be gpt2, llama, mistral, qwen2, qwen3, smollm3, minillm, got 'mamba'$"),
        ({"model_type": "phi"}, "got 'phi': a phi model rotates a part of each head"),
        ({"model_type": ["gpt2"]}, r"got \['gpt2'\]$"),
    ],
)
def test_a_missing_size_and_an_unknown_model_type_are_named(tmp_path, changes, message):
    gpt2().save_pretrained(tmp_path)
    with pytest.raises(InputError, match=message):
        minillm.load(edited(tmp_path, **changes))


@pytest.mark.parametrize(
    ("make", "changes"),
    [(gpt2, {"attn_pdrop": 0.5}), (llama, {"attention_dropout": 0.1}), (gpt2, {"resid_pdrop": 0.0})],
)
def test_several_dropouts_become_0_and_a_line_says_so(tmp_path, capsys, make, changes):
    """A dropout does not change inference."""
    oracle = make()
    oracle.save_pretrained(tmp_path)
    ours, _ = minillm.load(edited(tmp_path, **changes), dtype=torch.float64)
    assert ours.config.dropout == 0
    assert difference(ours, oracle) < 1e-9
    assert "config.json: minillm has one dropout; it is 0 here, instead of " in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, "\x00"])
def test_a_config_that_is_not_a_json_object_is_refused(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError):
        minillm.load(tmp_path)


@pytest.mark.parametrize("changes", [{"layers": "2"}, {"bias": 1}, {"norm": "batch"}, {"dropout": "none"}], ids=str)
def test_the_config_of_model_type_minillm_is_checked_too(tmp_path, changes):
    minillm.save(random_decoder(DecoderConfig.tiny(feed_forward="relu")), None, tmp_path)
    with pytest.raises(InputError, match=next(iter(changes))):
        minillm.load(edited(tmp_path, **changes))
