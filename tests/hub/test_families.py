"""The relatives of Llama: transformers' logits and greedy tokens, adapters by peft, and directories and back."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

import minillm
from minillm import Decoder, InputError
from minillm.adapt import LoRA, PrefixTuning, SoftPrompt
from minillm.hub.peft import export_peft, import_peft

from .huggingface_writing import IDS, all_in_float64, difference, llama, mistral, qwen2, qwen3, smollm3
from .peft_pairs import by_peft, moved, same_bits


def rope(kind, **settings):
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 100.0, **settings}}


LLAMA3 = rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)
YARN = rope("yarn", factor=4.0, original_max_position_embeddings=16)
MSCALED = rope("yarn", factor=4.0, original_max_position_embeddings=16, mscale=2.0, mscale_all_dim=1.0, beta_fast=8.0)
FAMILIES = {
    "Llama 3": lambda: llama(**LLAMA3),
    "Llama, linear": lambda: llama(**rope("linear", factor=3.0)),
    "Llama, dynamic": lambda: llama(**rope("dynamic", factor=3.0)),
    "Llama, YaRN": lambda: llama(**YARN),
    "Llama, YaRN of DeepSeek": lambda: llama(**MSCALED),
    "Llama, wide heads": lambda: llama(head_dim=14),
    "Llama, attention biases": lambda: llama(attention_bias=True),
    "Llama, feed-forward biases": lambda: llama(mlp_bias=True),
    "Llama, attention dropout": lambda: llama(attention_dropout=0.1),
    "Mistral": lambda: mistral(sliding_window=5),
    "Mistral without a window": lambda: mistral(sliding_window=None, head_dim=10),
    "Qwen2": lambda: qwen2(tie_word_embeddings=True),
    "Qwen2, YaRN": lambda: qwen2(**YARN),
    "Qwen2, sliding": lambda: qwen2(use_sliding_window=True, sliding_window=5, max_window_layers=0),
    "Qwen3": lambda: qwen3(head_dim=10),
    "Qwen3, biases": lambda: qwen3(head_dim=6, attention_bias=True),
    "SmolLM3": lambda: smollm3(num_hidden_layers=5),
    "SmolLM3, biases": lambda: smollm3(no_rope_layers=[0, 1], attention_bias=True, mlp_bias=True),
}
"""Tiny random models of transformers."""


QUICK = ("Llama 3", "Mistral", "Qwen2", "Qwen3", "SmolLM3")
"""The others generate in the slow run."""


def pair_of(name, directory):
    """A tiny random model of transformers in float64, and the same decoder in minillm."""
    oracle = FAMILIES[name]()
    oracle.save_pretrained(directory)
    return oracle, minillm.load(directory, dtype=torch.float64)[0]


@pytest.fixture(params=FAMILIES)
def pair(request, tmp_path):
    return pair_of(request.param, tmp_path / "theirs")


def test_the_logits_equal_those_of_transformers(pair):
    oracle, ours = pair
    assert difference(ours, oracle) < 1e-9


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in FAMILIES])
def test_greedy_tokens_equal_those_of_transformers(tmp_path, name):
    """Both decode with a cache."""
    oracle, ours = pair_of(name, tmp_path)
    with all_in_float64(oracle):
        expected = oracle.generate(IDS, max_new_tokens=40, do_sample=False)
    assert torch.equal(minillm.generate(ours, IDS, max_new_tokens=40), expected)


def test_transformers_loads_a_saved_decoder_with_equal_logits(pair, tmp_path):
    _, ours = pair
    minillm.save(ours, None, tmp_path / "ours")
    again, _ = minillm.load(tmp_path / "ours", dtype=torch.float64)
    assert again.config == ours.config
    assert all(torch.equal(again.state_dict()[name], weight) for name, weight in ours.state_dict().items())
    oracle, notes = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(notes[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert difference(ours, oracle.eval()) < 1e-9


def test_a_lora_goes_to_peft_and_back(pair, tmp_path):
    oracle, ours = pair
    method = LoRA(ours, r=2, targets=("q_proj", "o_proj", "down_proj", "value")).eval()
    moved(method.trainable().values())
    export_peft(method, tmp_path / "adapter")
    same_bits(import_peft(ours, tmp_path / "adapter"), method)
    adapted = by_peft(oracle, tmp_path / "adapter")
    assert difference(method, adapted) < 1e-9
    assert difference(ours, adapted) > 1e-2


@pytest.mark.parametrize(
    ("family", "make"),
    [
        ("Mistral", lambda base: SoftPrompt(base, 5)),
        ("Qwen3", lambda base: PrefixTuning(base, 3)),
        ("SmolLM3", lambda base: PrefixTuning(base, 3)),
        ("Llama, wide heads", lambda base: PrefixTuning(base, 3)),
        ("Llama, YaRN", lambda base: SoftPrompt(base, 5)),
    ],
)
def test_a_prompt_goes_to_peft_and_back(tmp_path, family, make):
    """A window passes over a soft prompt like over tokens, here and in transformers."""
    oracle, ours = pair_of(family, tmp_path / "theirs")
    method = make(ours).eval()
    export_peft(method, tmp_path / "adapter")
    same_bits(import_peft(ours, tmp_path / "adapter"), method)
    with all_in_float64(oracle):
        expected = by_peft(oracle, tmp_path / "adapter")(IDS).logits[:, -IDS.shape[1] :]
    # peft holds a prefix in float32.
    assert (method(IDS) - expected).abs().max() < 1e-6


def test_a_prefix_of_a_sliding_decoder_is_not_for_peft(tmp_path):
    mistral(sliding_window=5).save_pretrained(tmp_path / "theirs")
    ours, _ = minillm.load(tmp_path / "theirs")
    with pytest.raises(InputError, match="a sliding window passes over peft's prefix"):
        export_peft(PrefixTuning(ours, 3), tmp_path / "adapter")
    export_peft(PrefixTuning(Decoder(replace(ours.config, window=None)), 3), tmp_path / "adapter")
    with pytest.raises(InputError, match="a sliding window passes over peft's prefix"):
        import_peft(ours, tmp_path / "adapter")
