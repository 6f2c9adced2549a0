"""Hugging Face directories: what transformers writes is computed alike, and what minillm writes transformers reads."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, GPT2Model, LlamaConfig, LlamaForCausalLM
from transformers.models.llama import modeling_llama

import minillm
from minillm import DecoderConfig, InputError

from .gguf_writing import random_decoder

IDS = torch.randint(61, (3, 17), generator=torch.Generator().manual_seed(0))


def gpt2(**changes):
    sizes = {"vocab_size": 61, "n_embd": 24, "n_layer": 2, "n_head": 4, "n_positions": 32, "n_inner": 44}
    return randomised(GPT2LMHeadModel(GPT2Config(**{**sizes, "bos_token_id": 0, "eos_token_id": 0, **changes})))


def llama(**changes):
    sizes = {"vocab_size": 61, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    return randomised(LlamaForCausalLM(LlamaConfig(**{**sizes, **changes})))


def randomised(oracle):
    """In float64, with norms that are not ones and biases that are not zeros."""
    torch.manual_seed(0)
    for parameter in oracle.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return oracle.double().eval()


@pytest.fixture
def exact_llama(monkeypatch):
    """transformers' RMSNorm and rotary tables compute in float32; here they stay in float64."""

    def norm(self, hidden):
        return self.weight * hidden * (hidden.pow(2).mean(-1, keepdim=True) + self.variance_epsilon).rsqrt()

    def tables(self, hidden, position_ids):
        width = self.config.hidden_size // self.config.num_attention_heads
        theta = self.config.rope_parameters["rope_theta"]
        frequencies = theta ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
        angles = torch.cat([position_ids[..., None] * frequencies] * 2, -1)
        return angles.cos(), angles.sin()

    monkeypatch.setattr(modeling_llama.LlamaRMSNorm, "forward", norm)
    monkeypatch.setattr(modeling_llama.LlamaRotaryEmbedding, "forward", tables)


def difference(ours, theirs):
    with torch.no_grad():
        return (ours(IDS) - theirs(IDS).logits).abs().max()


def edited(directory, **changes):
    """The directory with its config.json changed; None takes a setting out."""
    settings = {**json.loads((directory / "config.json").read_text()), **changes}
    (directory / "config.json").write_text(json.dumps({k: v for k, v in settings.items() if v is not None}))
    return directory


def restored(directory, change):
    """The directory with its tensors changed by a function of the dictionary."""
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors")
    return directory


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


def test_rope_theta_is_read_where_older_versions_of_transformers_wrote_it(tmp_path, exact_llama):
    oracle = llama(rope_parameters={"rope_type": "default", "rope_theta": 100.0})
    oracle.save_pretrained(tmp_path)
    edited(tmp_path, rope_parameters=None, rope_theta=100)
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


def test_shards_are_read_through_their_index(tmp_path):
    oracle = llama()
    oracle.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert not (tmp_path / "model.safetensors").exists()
    ours, _ = minillm.load(tmp_path, dtype=torch.float64)
    assert difference(ours, oracle) < 1e-6


@pytest.mark.parametrize(
    "file", ["../model.safetensors", "/etc/model.safetensors", "a\\b.safetensors", "..", "x.bin", 7]
)
def test_an_index_cannot_lead_out_of_its_directory(tmp_path, file):
    inside = tmp_path / "inside"
    llama().save_pretrained(inside)
    (inside / "model.safetensors").rename(tmp_path / "model.safetensors")
    index = {"weight_map": dict.fromkeys(load_file(tmp_path / "model.safetensors"), file)}
    (inside / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"model\.safetensors\.index\.json (names the shard|is damaged)"):
        minillm.load(inside)


@pytest.mark.parametrize(
    "index", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": "model-9.safetensors"}}']
)
def test_an_index_that_is_wrong_is_a_sentence(tmp_path, index):
    llama().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(InputError):
        minillm.load(tmp_path)


def test_an_index_and_its_shards_must_agree(tmp_path):
    llama().save_pretrained(tmp_path, max_shard_size="20KB")
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    del index["weight_map"]["model.norm.weight"]
    path.write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"model\.norm\.weight"):
        minillm.load(tmp_path)


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


def test_integer_weights_are_refused(tmp_path):
    llama().save_pretrained(tmp_path)
    whole = restored(tmp_path, lambda tensors: tensors.update({"model.norm.weight": torch.ones(24).to(torch.int8)}))
    with pytest.raises(InputError, match=r"model\.norm\.weight is stored as torch\.int8"):
        minillm.load(whole)


@pytest.mark.parametrize(
    ("make", "changes"),
    [
        (gpt2, {"activation_function": "relu"}),
        (gpt2, {"scale_attn_weights": False}),
        (gpt2, {"scale_attn_by_inverse_layer_idx": True}),
        (gpt2, {"add_cross_attention": True}),
        (gpt2, {"attn_pdrop": 0.5}),
        (gpt2, {"quantization_config": {"bits": 4}}),
        (gpt2, {"n_head": 5}),
        (gpt2, {"n_layer": 2_000_000_000}),
        (gpt2, {"n_layer": "2"}),
        (gpt2, {"n_embd": 24.0}),
        (gpt2, {"layer_norm_epsilon": float("nan")}),
        (gpt2, {"tie_word_embeddings": 1}),
        (llama, {"hidden_act": "gelu"}),
        (llama, {"attention_dropout": 0.1}),
        (llama, {"attention_bias": True}),
        (llama, {"mlp_bias": True}),
        (llama, {"head_dim": 8}),
        (llama, {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0}}),
        (llama, {"rope_scaling": {"type": "linear", "factor": 2.0}}),
        (llama, {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}),
        (llama, {"rope_parameters": "plain"}),
        (llama, {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}}),
        (llama, {"partial_rotary_factor": 0.5}),
        (llama, {"num_key_value_heads": 3}),
        (llama, {"rope_parameters": {"rope_theta": -1.0}}),
    ],
    ids=str,
)
def test_a_setting_that_asks_for_another_computation_is_refused(tmp_path, make, changes):
    make().save_pretrained(tmp_path)
    with pytest.raises(InputError) as refusal:
        minillm.load(edited(tmp_path, **changes))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["n_embd", "vocab_size"])
def test_a_size_that_is_not_there_is_named(tmp_path, name):
    gpt2().save_pretrained(tmp_path)
    with pytest.raises(InputError, match=f"lacks {name}"):
        minillm.load(edited(tmp_path, **{name: None}))


def test_another_model_type_is_told_which_are_read(tmp_path):
    llama().save_pretrained(tmp_path)
    with pytest.raises(InputError, match="'mamba'; minillm reads gpt2, llama and its own, minillm"):
        minillm.load(edited(tmp_path, model_type="mamba"))


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, "\x00"])
def test_a_config_that_is_no_object_is_a_sentence(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError):
        minillm.load(tmp_path)


def test_safetensors_cut_anywhere_or_overwritten_are_a_sentence(tmp_path):
    llama().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    for length in (0, 1, 7, 8, 9, 500, 2000, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"model\.safetensors cannot be read as safetensors"):
            minillm.load(tmp_path)
    path.write_bytes(b"\xff" * 8 + whole[8:])
    with pytest.raises(InputError):
        minillm.load(tmp_path)


def test_a_pickle_is_never_opened(tmp_path):
    llama().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match="a pickle"):
        minillm.load(tmp_path)


def test_a_directory_without_weights_says_what_is_missing(tmp_path):
    with pytest.raises(InputError, match=r"config\.json"):
        minillm.load(tmp_path)
    llama().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "weights.gguf")
    with pytest.raises(InputError, match=r"weights\.gguf"):
        minillm.load(tmp_path)


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


def test_a_decoder_of_no_family_needs_minillm(tmp_path):
    minillm.save(random_decoder(OWN_STYLES["figure 1"]), None, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "minillm"
    with pytest.raises(InputError, match="lacks norm_eps"):
        minillm.load(edited(tmp_path, norm_eps=None))


@pytest.mark.parametrize("changes", [{"layers": "2"}, {"bias": 1}, {"norm": "batch"}, {"dropout": "none"}], ids=str)
def test_our_own_config_is_read_as_strictly(tmp_path, changes):
    minillm.save(random_decoder(OWN_STYLES["figure 1"]), None, tmp_path)
    with pytest.raises(InputError, match=next(iter(changes))):
        minillm.load(edited(tmp_path, **changes))


def test_saving_over_the_directory_that_was_loaded_keeps_the_loaded_weights(tmp_path):
    minillm.save(random_decoder(STYLES["Llama"], seed=1), None, tmp_path)
    loaded, _ = minillm.load(tmp_path)
    before = {name: weight.clone() for name, weight in loaded.state_dict().items()}
    minillm.save(random_decoder(STYLES["Llama"], seed=2), None, tmp_path)
    assert all(torch.equal(weight, before[name]) for name, weight in loaded.state_dict().items())
    again, _ = minillm.load(tmp_path)
    assert not torch.equal(again.embed.weight, loaded.embed.weight)


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
