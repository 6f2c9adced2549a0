"""Loading GGUF files: exact weights, equal logits, and refusal of everything that minillm does not compute."""

import time

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from gguf.quants import dequantize, quantize
from transformers import GPT2Config, GPT2LMHeadModel

import minillm
from minillm.errors import InputError

from .gguf_writing import llama_arrays, llama_config, llama_metadata, random_decoder, write, write_llama

QUANTISED = [Kind.F32, Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1]
K_QUANTS = [Kind.Q4_K, Kind.Q6_K, Kind.Q2_K, Kind.Q3_K, Kind.Q5_K]


@pytest.mark.parametrize("kind", QUANTISED, ids=lambda kind: kind.name)
@pytest.mark.parametrize("tied", [True, False])
def test_every_weight_is_dequantised_as_by_the_gguf_package(tmp_path, kind, tied):
    written = random_decoder(llama_config(tie_embeddings=tied))
    loaded, tokenizer = minillm.load(write_llama(tmp_path / "a.gguf", written, kind))
    assert tokenizer is None
    assert loaded.config == written.config
    assert (loaded.head.weight is loaded.embed.weight) == tied
    assert not loaded.training
    for name, weight in written.state_dict().items():
        stored = kind if weight.dim() > 1 else Kind.F32
        expected = dequantize(quantize(weight.numpy(), stored), stored)
        assert np.array_equal(loaded.state_dict()[name].numpy(), expected), name


@pytest.mark.parametrize("kind", K_QUANTS, ids=lambda kind: kind.name)
def test_k_quants_are_dequantised_as_by_the_gguf_package(tmp_path, kind):
    """The package cannot quantise to these types, so the blocks are random."""
    config = llama_config(layers=1, width=256, feed_forward_width=256, vocabulary=32)
    arrays = llama_arrays(random_decoder(config))
    random = np.random.default_rng(0)
    _, size = gguf.GGML_QUANT_SIZES[kind]
    raw = {
        name: random.integers(0, 256, (len(array), size), dtype=np.uint8)
        for name, array in arrays.items()
        if array.ndim > 1
    }
    path = write(tmp_path / "a.gguf", "llama", llama_metadata(config), arrays | raw, kind)
    state = minillm.load(path, allow_nonfinite=True)[0].state_dict()
    with np.errstate(all="ignore"):
        for theirs, ours in (("attn_v", "attention.value"), ("ffn_down", "feed_forward.down")):
            expected = dequantize(raw[f"blk.0.{theirs}.weight"], kind)
            assert np.array_equal(state[f"blocks.0.{ours}.weight"].numpy(), expected, equal_nan=True)


def test_biases_are_reordered_like_their_matrices(tmp_path):
    written = random_decoder(llama_config(bias=True))
    loaded, _ = minillm.load(write_llama(tmp_path / "a.gguf", written))
    assert loaded.config == written.config
    ids = torch.arange(20)[None]
    assert torch.equal(loaded(ids), written(ids))


def test_a_gpt2_has_the_logits_of_transformers(tmp_path):
    torch.manual_seed(0)
    oracle = GPT2LMHeadModel(GPT2Config(vocab_size=61, n_embd=24, n_layer=2, n_head=4, n_positions=32)).eval()
    for parameter in oracle.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    names = {"wte": "token_embd", "wpe": "position_embd", "ln_f": "output_norm"}
    names |= {"ln_1": "attn_norm", "ln_2": "ffn_norm"}
    names |= {"attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output", "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down"}
    arrays = {}
    for name, weight in oracle.transformer.state_dict().items():
        module, kind = name.rsplit(".", 1)
        block, inner = (f"blk.{module.split('.')[1]}.", module.split(".", 2)[2]) if module[:2] == "h." else ("", module)
        conv1d = weight.dim() > 1 and inner.startswith(("attn.", "mlp."))
        arrays[f"{block}{names[inner]}.{kind}"] = (weight.T if conv1d else weight).numpy()
    metadata = {"block_count": 2, "context_length": 32, "embedding_length": 24, "feed_forward_length": 96}
    metadata |= {"attention.head_count": 4, "attention.layer_norm_epsilon": 1e-5}
    path = write(tmp_path / "a.gguf", "gpt2", {f"gpt2.{key}": value for key, value in metadata.items()}, arrays)
    decoder, _ = minillm.load(path, dtype=torch.float64)
    ids = torch.randint(61, (3, 17))
    with torch.no_grad():
        assert (decoder(ids) - oracle.double()(ids).logits).abs().max() < 1e-9


def test_weights_have_the_requested_dtype(tmp_path):
    path = write_llama(tmp_path / "a.gguf", random_decoder(llama_config()))
    decoder, _ = minillm.load(path, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in decoder.parameters()} == {torch.bfloat16}
    with pytest.raises(InputError, match="int64"):
        minillm.load(path, dtype=torch.int64)


def test_training_a_loaded_decoder_does_not_change_the_file(tmp_path):
    path = write_llama(tmp_path / "a.gguf", random_decoder(llama_config()))
    before = path.read_bytes()
    decoder, _ = minillm.load(path)
    decoder(torch.arange(9)[None]).square().sum().backward()
    torch.optim.SGD(decoder.parameters(), lr=1.0).step()
    assert all(parameter.grad is not None for parameter in decoder.parameters())
    assert path.read_bytes() == before


WIDE = np.zeros((64, 64), np.float32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *((({}, {name: None}), f"lacks the tensor {name}")
          for name in ("blk.1.attn_q.weight", "token_embd.weight", "output_norm.weight")),
        *((({}, {name: WIDE}), f"does not use: {name}")
          for name in ("blk.2.attn_q.weight", "blk.0.attn_q.bias_2", "rope_factors_long.weight")),
        *((({}, {name: WIDE[:7]}), rf"{name} must have the shape .* got \(7, 64\)")
          for name in ("blk.0.attn_k.weight", "blk.1.ffn_norm.weight")),
        (({}, {"rope_freqs.weight": np.arange(1, 9, dtype=np.float32)}), "differs from the scaling of Llama 3.1"),
        (({}, {"rope_freqs.weight": np.ones((8, 8), np.float32)}), r"one number for each pair of a head, got \(8, 8\)"),
        (({}, {"output_norm.weight": np.zeros(64, np.int32)}), r"output_norm\.weight has the type I32"),
        *((({f"llama.{key}": value}, {}), rf"llama\.{key} = {value!r}; minillm supports {supported}")
          for key, value, supported in (
            ("expert_count", 8, "only 0"), ("vocab_size", 60, "only 61"),
            ("attention.sliding_window", 4096, "no such key"), ("a_key_of_next_year", 1, "no such key"),
        )),
        *((({f"llama.{key}": value}, {}), f"the metadata {key} = {value!r}; minillm supports {supported}")
          for key, value, supported in (
            ("rope.scaling.type", "longrope", "none, linear and yarn"), ("rope.dimension_count", 8, "only 16"),
            ("attention.value_length", 32, "only 16"),
        )),
        (({"llama.attention.key_length": 32}, {}), "minillm supports only 32 here"),
        (({"llama.block_count": None}, {}), "lacks block_count"),
        (({"llama.block_count": 2_000_000_000}, {}), "2000000000 layers"),
        (({"llama.embedding_length": "wide"}, {}), "'wide'"),
        (({"llama.attention.head_count": [4, 4]}, {}), r"\[4, 4\]"),
        (({"llama.attention.head_count": 5}, {}), "multiple of heads, got 64 and 5"),
        (({"llama.attention.head_count": 0}, {}), "heads must be at least 1, got 0"),
    ],
    ids=lambda value: str(value)[:50],
)  # fmt: skip
def test_a_file_that_cannot_be_computed_exactly_is_refused_at_once(tmp_path, changes, message):
    metadata, arrays = changes
    path = write_llama(tmp_path / "a.gguf", random_decoder(llama_config()), metadata=metadata, arrays=arrays)
    start = time.perf_counter()
    with pytest.raises(InputError, match=message):
        minillm.load(path)
    assert time.perf_counter() - start < 2


def test_metadata_without_effect_are_accepted(tmp_path):
    harmless = {"llama.rope.scaling.type": "none", "llama.expert_count": 0, "llama.vocab_size": 61}
    written = random_decoder(llama_config())
    loaded, _ = minillm.load(write_llama(tmp_path / "a.gguf", written, metadata=harmless))
    assert loaded.config == written.config


def test_an_unknown_architecture_is_refused(tmp_path):
    path = write(tmp_path / "a.gguf", "mamba", {}, {"x.weight": np.zeros((2, 2), np.float32)})
    with pytest.raises(InputError, match="'mamba'; minillm loads llama, qwen2, qwen3, smollm3, gpt2 from GGUF"):
        minillm.load(path)


def test_a_weight_that_is_nan_is_refused_by_its_name(tmp_path):
    config = llama_config()
    arrays = llama_arrays(random_decoder(config))
    arrays["blk.1.attn_k.weight"][3, 4] = np.nan
    path = write(tmp_path / "a.gguf", "llama", llama_metadata(config), arrays)
    with pytest.raises(
        InputError, match=r"a\.gguf in torch\.float32 has values in blk\.1\.attn_k\.weight that are not"
    ):
        minillm.load(path)
    assert minillm.load(path, allow_nonfinite=True)[0].state_dict()["blocks.1.attention.key.weight"].isnan().sum() == 1
