"""A GGUF file becomes the decoder that its writer had, and anything else about it is a sentence."""

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
def test_every_weight_arrives_as_the_package_dequantises_it(tmp_path, kind, tied):
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
def test_k_quants_arrive_as_the_package_dequantises_them(tmp_path, kind):
    """The package cannot write these, so random blocks take their place; values and outputs are not reordered."""
    config = llama_config(layers=1, width=256, feed_forward_width=256, vocabulary=32)
    arrays = llama_arrays(random_decoder(config))
    random = np.random.default_rng(0)
    _, size = gguf.GGML_QUANT_SIZES[kind]
    raw = {
        name: random.integers(0, 256, (len(array), size), dtype=np.uint8)
        for name, array in arrays.items()
        if array.ndim > 1
    }
    loaded, _ = minillm.load(write(tmp_path / "a.gguf", "llama", llama_metadata(config), arrays, kind, raw))
    state = loaded.state_dict()
    with np.errstate(all="ignore"):
        for theirs, ours in (("attn_v", "attention.value"), ("ffn_down", "feed_forward.down")):
            expected = dequantize(raw[f"blk.0.{theirs}.weight"], kind)
            assert np.array_equal(state[f"blocks.0.{ours}.weight"].numpy(), expected, equal_nan=True)


def test_biases_arrive_in_the_order_of_their_matrices(tmp_path):
    written = random_decoder(llama_config(bias=True))
    loaded, _ = minillm.load(write_llama(tmp_path / "a.gguf", written))
    assert loaded.config == written.config
    ids = torch.arange(20)[None]
    assert torch.equal(loaded(ids), written(ids))


def test_a_gguf_of_gpt2_computes_what_transformers_computes(tmp_path):
    torch.manual_seed(0)
    oracle = GPT2LMHeadModel(GPT2Config(vocab_size=61, n_embd=24, n_layer=2, n_head=4, n_positions=32)).eval()
    for parameter in oracle.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    names = {
        "wte": "token_embd",
        "wpe": "position_embd",
        "ln_f": "output_norm",
        "ln_1": "attn_norm",
        "ln_2": "ffn_norm",
    }
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


def test_the_dtype_is_the_one_asked_for(tmp_path):
    path = write_llama(tmp_path / "a.gguf", random_decoder(llama_config()))
    decoder, _ = minillm.load(path, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in decoder.parameters()} == {torch.bfloat16}
    with pytest.raises(InputError, match="int64"):
        minillm.load(path, dtype=torch.int64)


def test_a_loaded_decoder_can_be_trained_and_leaves_the_file_alone(tmp_path):
    path = write_llama(tmp_path / "a.gguf", random_decoder(llama_config()))
    before = path.read_bytes()
    decoder, _ = minillm.load(path)
    decoder(torch.arange(9)[None]).square().sum().backward()
    torch.optim.SGD(decoder.parameters(), lr=1.0).step()
    assert all(parameter.grad is not None for parameter in decoder.parameters())
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", ["blk.1.attn_q.weight", "token_embd.weight", "output_norm.weight"])
def test_a_missing_tensor_is_named(tmp_path, name):
    path = write_llama(tmp_path / "a.gguf", random_decoder(llama_config()), arrays={name: None})
    with pytest.raises(InputError, match=name):
        minillm.load(path)


@pytest.mark.parametrize("name", ["blk.2.attn_q.weight", "blk.0.attn_q.bias_2", "rope_factors_long.weight"])
def test_an_unknown_tensor_is_named(tmp_path, name):
    extra = {name: np.zeros((64, 64), np.float32)}
    path = write_llama(tmp_path / "a.gguf", random_decoder(llama_config()), arrays=extra)
    with pytest.raises(InputError, match=name):
        minillm.load(path)


@pytest.mark.parametrize("name", ["blk.0.attn_k.weight", "blk.1.ffn_norm.weight"])
def test_a_misshapen_tensor_is_named_with_both_shapes(tmp_path, name):
    path = write_llama(
        tmp_path / "a.gguf", random_decoder(llama_config()), arrays={name: np.zeros((7, 64), np.float32)}
    )
    with pytest.raises(InputError, match=rf"{name} is \(7, 64\)"):
        minillm.load(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("llama.rope.scaling.type", "linear"),
        ("llama.rope.scaling.factor", 2.0),
        ("llama.rope.dimension_count", 8),
        ("llama.attention.key_length", 32),
        ("llama.expert_count", 8),
        ("llama.attention.sliding_window", 4096),
        ("llama.a_key_of_next_year", 1),
        ("llama.vocab_size", 60),
    ],
)
def test_metadata_that_would_change_the_computation_is_refused(tmp_path, key, value):
    path = write_llama(tmp_path / "a.gguf", random_decoder(llama_config()), metadata={key: value})
    with pytest.raises(InputError, match=key.replace(".", r"\.")):
        minillm.load(path)


def test_metadata_that_changes_nothing_is_accepted(tmp_path):
    harmless = {"llama.rope.scaling.type": "none", "llama.expert_count": 0, "llama.vocab_size": 61}
    written = random_decoder(llama_config())
    loaded, _ = minillm.load(write_llama(tmp_path / "a.gguf", written, metadata=harmless))
    assert loaded.config == written.config


def test_scaled_rotary_frequencies_are_refused(tmp_path):
    scaled = {"rope_freqs.weight": np.ones(8, np.float32)}
    path = write_llama(tmp_path / "a.gguf", random_decoder(llama_config()), arrays=scaled)
    with pytest.raises(InputError, match=r"scales its rotary positions \(rope_freqs\.weight\)"):
        minillm.load(path)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("llama.block_count", None, "lacks"),
        ("llama.block_count", 2_000_000_000, "2000000000 layers"),
        ("llama.embedding_length", "wide", "'wide'"),
        ("llama.attention.head_count", [4, 4], r"\[4, 4\]"),
        ("llama.attention.head_count", 5, "multiple of heads, got 64 and 5"),
        ("llama.attention.head_count", 0, "heads must be at least 1, got 0"),
    ],
)
def test_sizes_that_cannot_be_are_refused_at_once(tmp_path, key, value, says):
    path = write_llama(tmp_path / "a.gguf", random_decoder(llama_config()), metadata={key: value})
    start = time.perf_counter()
    with pytest.raises(InputError, match=says):
        minillm.load(path)
    assert time.perf_counter() - start < 2


def test_another_architecture_is_told_which_are_read(tmp_path):
    path = write(tmp_path / "a.gguf", "mamba", {}, {"x.weight": np.zeros((2, 2), np.float32)})
    with pytest.raises(InputError, match="'mamba'; minillm reads llama and gpt2"):
        minillm.load(path)


def test_weights_that_are_no_floating_point_are_refused(tmp_path):
    decoder = random_decoder(llama_config())
    writer_arrays = {**llama_arrays(decoder), "output_norm.weight": np.zeros(64, np.int32)}
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    for key, value in llama_metadata(decoder.config).items():
        (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(key, value)
    for name, array in writer_arrays.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(InputError, match=r"output_norm\.weight is stored as I32"):
        minillm.load(tmp_path / "a.gguf")
