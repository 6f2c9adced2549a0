"""Hugging Face directories: what transformers writes is computed alike, and what minillm writes transformers reads."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GPT2Model

import minillm
from minillm import DecoderConfig, InputError

from .gguf_writing import random_decoder
from .huggingface_writing import difference, edited, gpt2, llama, restored


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": False}, {"layer_norm_epsilon": 0.1}], ids=str)
def test_gpt2_computes_what_transformers_computes(tmp_path, changes):
    oracle = gpt2(**changes)
    oracle.save_pretrained(tmp_path)
    ours, tokenizer = minillm.load(tmp_path, dtype=torch.float64)
    assert tokenizer is None
    assert not ours.training
    assert ours.config.dropout == 0.1
    assert (ours.head.weight is ours.embed.weight) == oracle.config.tie_word_embeddings
    assert difference(ours, oracle) < 1e-9


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": True},
        {"num_key_value_heads": 4},
        {"num_key_value_heads": 1},
        {"attention_bias": True, "mlp_bias": True},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}, "rms_norm_eps": 0.1},
    ],
    ids=str,
)
def test_llama_computes_what_transformers_computes(tmp_path, exact_llama, changes):
    oracle = llama(**changes)
    oracle.save_pretrained(tmp_path)
    ours, _ = minillm.load(tmp_path, dtype=torch.float64)
    assert difference(ours, oracle) < 1e-9


def test_a_gpt2_saved_without_its_head_has_no_prefix_and_loads_alike(tmp_path):
    oracle = gpt2()
    oracle.transformer.save_pretrained(tmp_path)
    assert isinstance(oracle.transformer, GPT2Model)
    assert "wte.weight" in load_file(tmp_path / "model.safetensors")
    ours, _ = minillm.load(tmp_path, dtype=torch.float64)
    assert difference(ours, oracle) < 1e-9


def test_the_causal_masks_of_old_gpt2_files_are_passed_over(tmp_path):
    oracle = gpt2()
    oracle.save_pretrained(tmp_path)
    masks = {f"transformer.h.{i}.attn.{name}": torch.ones(1) for i in range(2) for name in ("bias", "masked_bias")}
    ours, _ = minillm.load(restored(tmp_path, lambda tensors: tensors.update(masks)), dtype=torch.float64)
    assert difference(ours, oracle) < 1e-9


@pytest.mark.parametrize("name", ["transformer.h.1.attn.c_attn.bias", "transformer.wpe.weight"])
def test_missing_unknown_and_misshapen_tensors_are_named(tmp_path, name):
    gpt2().save_pretrained(tmp_path)
    with pytest.raises(InputError, match=rf"lacks the tensor {name}"):
        minillm.load(restored(tmp_path, lambda tensors: tensors.pop(name)))
    gpt2().save_pretrained(tmp_path)
    with pytest.raises(InputError, match=f"no place for: {name}_2"):
        minillm.load(restored(tmp_path, lambda tensors: tensors.update({f"{name}_2": torch.ones(2)})))
    gpt2().save_pretrained(tmp_path)
    with pytest.raises(InputError, match=rf"{name} is \(3, 5\)"):
        minillm.load(restored(tmp_path, lambda tensors: tensors.update({name: torch.ones(3, 5)})))


def test_a_matrix_stored_the_other_way_round_is_misshapen(tmp_path):
    name = "transformer.h.0.mlp.c_fc.weight"
    gpt2().save_pretrained(tmp_path)
    turned = restored(tmp_path, lambda tensors: tensors.update({name: tensors[name].T.contiguous()}))
    with pytest.raises(InputError, match=name):
        minillm.load(turned)


def test_a_tied_head_may_be_stored_and_must_then_be_the_embeddings(tmp_path):
    oracle = gpt2()
    oracle.save_pretrained(tmp_path)
    head = oracle.lm_head.weight.detach().clone()
    ours, _ = minillm.load(restored(tmp_path, lambda tensors: tensors.update({"lm_head.weight": head})))
    assert ours.head.weight is ours.embed.weight
    with pytest.raises(InputError, match=r"lm_head\.weight differs"):
        minillm.load(restored(tmp_path, lambda tensors: tensors.update({"lm_head.weight": head + 1})))


STYLES = {
    "GPT-2": DecoderConfig.tiny(norm="layer", positions="learned", feed_forward="gelu", bias=True, kv_heads=4),
    "GPT-2 untied, with dropout": DecoderConfig.tiny(
        norm="layer", positions="learned", feed_forward="gelu", bias=True, kv_heads=4, tie_embeddings=False, dropout=0.3
    ),
    "Llama": DecoderConfig.tiny(rope_theta=50.0, norm_eps=0.01),
    "Llama untied, with biases": DecoderConfig.tiny(tie_embeddings=False, bias=True),
    "Llama with dropout": DecoderConfig.tiny(dropout=0.2),
}
OWN_STYLES = {
    "figure 1": replace(DecoderConfig.vaswani(), vocabulary=61, layers=2, width=24, heads=4, kv_heads=4),
    "GPT-2 with grouped keys": replace(STYLES["GPT-2"], kv_heads=2),
    "GPT-2 with relu": replace(STYLES["GPT-2"], feed_forward="relu"),
    "Llama with sinusoids": replace(STYLES["Llama"], positions="sinusoidal"),
    "Llama, add then norm": replace(STYLES["Llama"], norm_first=False),
}


@pytest.mark.parametrize("style", [*STYLES, *OWN_STYLES])
def test_what_is_saved_is_loaded_bit_for_bit(tmp_path, style):
    written = random_decoder({**STYLES, **OWN_STYLES}[style])
    minillm.save(written, None, tmp_path / "new" / "directory")
    loaded, tokenizer = minillm.load(tmp_path / "new" / "directory")
    assert tokenizer is None
    assert loaded.config == written.config
    assert loaded.state_dict().keys() == written.state_dict().keys()
    assert all(torch.equal(loaded.state_dict()[name], weight) for name, weight in written.state_dict().items())
    assert (loaded.head.weight is loaded.embed.weight) == written.config.tie_embeddings


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_what_is_saved_is_loaded_by_transformers_with_equal_logits(tmp_path, exact_llama, style, dtype):
    written = random_decoder(STYLES[style]).to(dtype)
    minillm.save(written, None, tmp_path)
    oracle, notes = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(notes[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert oracle.dtype == dtype
    assert difference(written.double(), oracle.double().eval()) < 1e-9


def test_every_weight_has_memory_of_its_own_and_no_more(tmp_path):
    """Neither a file that is mapped nor the matrix that query, key and value were cut from."""
    gpt2().save_pretrained(tmp_path)
    for weight in minillm.load(tmp_path, dtype=torch.float64)[0].parameters():
        assert weight.is_contiguous()
        assert weight.untyped_storage().nbytes() == weight.numel() * 8


def test_a_decoder_of_no_family_needs_minillm(tmp_path):
    minillm.save(random_decoder(OWN_STYLES["figure 1"]), None, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "minillm"
    with pytest.raises(InputError, match="lacks norm_eps"):
        minillm.load(edited(tmp_path, norm_eps=None))


def test_saving_over_the_directory_that_was_loaded_keeps_the_loaded_weights(tmp_path):
    minillm.save(random_decoder(STYLES["Llama"], seed=1), None, tmp_path)
    loaded, _ = minillm.load(tmp_path)
    before = {name: weight.clone() for name, weight in loaded.state_dict().items()}
    minillm.save(random_decoder(STYLES["Llama"], seed=2), None, tmp_path)
    assert all(torch.equal(weight, before[name]) for name, weight in loaded.state_dict().items())
    again, _ = minillm.load(tmp_path)
    assert not torch.equal(again.embed.weight, loaded.embed.weight)


def test_a_file_that_is_overwritten_in_its_place_changes_no_loaded_weight(tmp_path):
    minillm.save(random_decoder(STYLES["Llama"]), None, tmp_path)
    loaded, _ = minillm.load(tmp_path)
    before = loaded.blocks[1].feed_forward.down.weight.detach().clone()
    file = tmp_path / "model.safetensors"
    with open(file, "rb+") as same:
        same.write(bytes(file.stat().st_size))
    assert torch.equal(loaded.blocks[1].feed_forward.down.weight, before)


def test_an_interrupted_save_leaves_what_was_there(tmp_path, monkeypatch):
    minillm.save(random_decoder(STYLES["Llama"], seed=1), None, tmp_path)
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def half(tensors, path, metadata):
        path.write_bytes(b"half of a file")
        raise KeyboardInterrupt

    monkeypatch.setattr("safetensors.torch.save_file", half)
    with pytest.raises(KeyboardInterrupt):
        minillm.save(random_decoder(STYLES["Llama"], seed=2), None, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files


def test_weights_that_a_file_would_lose_are_not_saved(tmp_path):
    decoder = random_decoder(STYLES["Llama"])
    decoder.extra = torch.nn.Linear(2, 2)
    with pytest.raises(InputError, match=r"extra\.bias is no weight of a plain decoder"):
        minillm.save(decoder, None, tmp_path)
    untied = random_decoder(STYLES["Llama"])
    untied.head.weight = torch.nn.Parameter(untied.head.weight + 1)
    with pytest.raises(InputError, match="tie_embeddings"):
        minillm.save(untied, None, tmp_path)
    assert not list(tmp_path.iterdir())
