"""Hugging Face directories: minillm and transformers load each other's, with equal logits."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import minillm
from minillm import DecoderConfig, InputError
from minillm.hub.options import BaseOptions

from .gguf_writing import random_decoder
from .huggingface_writing import difference, edited, gpt2, llama, restored


@pytest.mark.parametrize(
    ("make", "changes"),
    [
        (gpt2, {}),
        (gpt2, {"tie_word_embeddings": False}),
        (gpt2, {"layer_norm_epsilon": 0.1}),
        (llama, {}),
        (llama, {"tie_word_embeddings": True}),
        (llama, {"num_key_value_heads": 4}),
        (llama, {"num_key_value_heads": 1}),
        (llama, {"attention_bias": True, "mlp_bias": True}),
        (llama, {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}, "rms_norm_eps": 0.1}),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_a_model_of_transformers_is_loaded_with_equal_logits(tmp_path, make, changes):
    oracle = make(**changes)
    oracle.save_pretrained(tmp_path)
    ours, tokenizer = minillm.load(tmp_path, dtype=torch.float64)
    assert tokenizer is None
    assert not ours.training
    assert ours.config.dropout == (0.1 if make is gpt2 else 0.0)
    assert (ours.head.weight is ours.embed.weight) == oracle.config.tie_word_embeddings
    assert difference(ours, oracle) < 1e-9


def test_a_gpt2_without_head_and_prefix_and_one_with_causal_masks_load(tmp_path):
    oracle = gpt2()
    headless, old = tmp_path / "headless", tmp_path / "old"
    oracle.transformer.save_pretrained(headless)
    assert "wte.weight" in load_file(headless / "model.safetensors")
    oracle.save_pretrained(old)
    masks = {f"transformer.h.{i}.attn.{name}": torch.ones(1) for i in range(2) for name in ("bias", "masked_bias")}
    for directory in (headless, restored(old, lambda tensors: tensors.update(masks))):
        assert difference(minillm.load(directory, dtype=torch.float64)[0], oracle) < 1e-9


BIAS, MATRIX = "transformer.h.1.attn.c_attn.bias", "transformer.h.0.mlp.c_fc.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop(BIAS), f"lacks the tensor {BIAS}"),
        (lambda tensors: tensors.pop("transformer.wpe.weight"), r"lacks the tensor transformer\.wpe\.weight"),
        (lambda tensors: tensors.update({f"{BIAS}_2": torch.ones(2)}), f"does not use: {BIAS}_2"),
        (lambda tensors: tensors.update({BIAS: torch.ones(3, 5)}), rf"{BIAS} must have .* got \(3, 5\)"),
        (lambda tensors: tensors.update({MATRIX: tensors[MATRIX].T.contiguous()}), f"{MATRIX} must have the shape"),
        (lambda tensors: tensors.update({"lm_head.weight": torch.ones(61, 24)}), r"lm_head\.weight differs"),
    ],
)
def test_missing_unexpected_and_misshapen_tensors_are_named(tmp_path, change, message):
    gpt2().save_pretrained(tmp_path)
    with pytest.raises(InputError, match=message):
        minillm.load(restored(tmp_path, change))


def test_a_tied_head_may_be_stored(tmp_path):
    oracle = gpt2()
    oracle.save_pretrained(tmp_path)
    head = oracle.lm_head.weight.detach().clone()
    ours, _ = minillm.load(restored(tmp_path, lambda tensors: tensors.update({"lm_head.weight": head})))
    assert ours.head.weight is ours.embed.weight


GPT2 = DecoderConfig.tiny(norm="layer", positions="learned", feed_forward="gelu", bias=True, kv_heads=4)
STYLES = {
    "GPT-2": GPT2,
    "GPT-2 untied, with dropout": replace(GPT2, tie_embeddings=False, dropout=0.3),
    "Llama": DecoderConfig.tiny(rope_theta=50.0, norm_eps=0.01),
    "Llama untied, with biases": DecoderConfig.tiny(tie_embeddings=False, bias=True),
    "Llama with dropout": DecoderConfig.tiny(dropout=0.2),
}
OWN_STYLES = {
    "figure 1": replace(DecoderConfig.vaswani(), vocabulary=61, layers=2, width=24, heads=4, kv_heads=4),
    "GPT-2 with grouped keys": replace(GPT2, kv_heads=2),
    "GPT-2 with relu": replace(GPT2, feed_forward="relu"),
    "Llama with sinusoids": replace(STYLES["Llama"], positions="sinusoidal"),
    "Llama, add then norm": replace(STYLES["Llama"], norm_first=False),
}


@pytest.mark.parametrize("style", [*STYLES, *OWN_STYLES])
def test_a_saved_decoder_is_loaded_bit_for_bit(tmp_path, style):
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
def test_transformers_loads_a_saved_decoder_with_equal_logits(tmp_path, style, dtype):
    written = random_decoder(STYLES[style]).to(dtype)
    minillm.save(written, None, tmp_path)
    oracle, notes = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(notes[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert oracle.dtype == dtype
    assert difference(written.double(), oracle.double().eval()) < 1e-9


def test_every_weight_has_its_own_contiguous_memory(tmp_path):
    """Not a mapped file, and not the fused matrix of query, key and value."""
    gpt2().save_pretrained(tmp_path)
    for weight in minillm.load(tmp_path, dtype=torch.float64)[0].parameters():
        assert weight.is_contiguous()
        assert weight.untyped_storage().nbytes() == weight.numel() * 8


def test_a_decoder_of_neither_family_is_written_as_model_type_minillm(tmp_path):
    minillm.save(random_decoder(OWN_STYLES["figure 1"]), None, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "minillm"
    with pytest.raises(InputError, match="lacks norm_eps"):
        minillm.load(edited(tmp_path, norm_eps=None))


def test_loaded_weights_do_not_change_with_their_file(tmp_path):
    minillm.save(random_decoder(STYLES["Llama"], seed=1), None, tmp_path)
    loaded, _ = minillm.load(tmp_path)
    before = {name: weight.clone() for name, weight in loaded.state_dict().items()}
    file = tmp_path / "model.safetensors"
    with open(file, "rb+") as in_place:
        in_place.write(bytes(file.stat().st_size))
    minillm.save(random_decoder(STYLES["Llama"], seed=2), None, tmp_path)
    assert all(torch.equal(weight, before[name]) for name, weight in loaded.state_dict().items())
    again, _ = minillm.load(tmp_path)
    assert not torch.equal(again.embed.weight, loaded.embed.weight)


def test_an_interrupted_save_leaves_the_old_files(tmp_path, monkeypatch):
    minillm.save(random_decoder(STYLES["Llama"], seed=1), None, tmp_path)
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def half(tensors, path, metadata):
        path.write_bytes(b"half of a file")
        raise KeyboardInterrupt

    monkeypatch.setattr("safetensors.torch.save_file", half)
    with pytest.raises(KeyboardInterrupt):
        minillm.save(random_decoder(STYLES["Llama"], seed=2), None, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files


def test_saving_refuses_weights_that_the_file_would_lose(tmp_path):
    decoder = random_decoder(STYLES["Llama"])
    decoder.extra = torch.nn.Linear(2, 2)
    with pytest.raises(InputError, match=r"extra\.bias is not a weight of a plain decoder"):
        minillm.save(decoder, None, tmp_path)
    untied = random_decoder(STYLES["Llama"])
    untied.head.weight = torch.nn.Parameter(untied.head.weight + 1)
    with pytest.raises(InputError, match="tie_embeddings"):
        minillm.save(untied, None, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_weight_that_is_not_finite_is_refused_by_its_name(tmp_path, value):
    minillm.save(random_decoder(DecoderConfig.tiny()), None, tmp_path)
    name = sorted(load_file(tmp_path / "model.safetensors"))[-1]
    damaged = restored(tmp_path, lambda tensors: tensors[name].flatten()[-1:].fill_(value))
    with pytest.raises(InputError, match=f"has values in {name} that are not finite: download it again"):
        minillm.load(damaged)
    loaded, _ = BaseOptions(base=str(damaged), allow_nonfinite=True).load_base()
    assert sum((~parameter.isfinite()).sum().item() for parameter in loaded.parameters()) == 1


def test_a_weight_that_a_narrower_dtype_cannot_hold_is_refused(tmp_path):
    decoder = random_decoder(DecoderConfig.tiny())
    with torch.no_grad():
        decoder.norm.weight[0] = 1e5
    minillm.save(decoder, None, tmp_path)
    assert minillm.load(tmp_path, dtype=torch.bfloat16)[0].norm.weight[0] > 9e4
    with pytest.raises(InputError, match=r"in torch\.float16 has values"):
        minillm.load(tmp_path, dtype=torch.float16)
