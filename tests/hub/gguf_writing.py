"""Tiny GGUF files, written by the gguf package from a decoder or from arrays, as llama.cpp's converter would."""

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from gguf.quants import quantize

from minillm.config import DecoderConfig
from minillm.decoder import Decoder

LLAMA_NAMES = {
    "attention_norm": "attn_norm",
    "attention.query": "attn_q",
    "attention.key": "attn_k",
    "attention.value": "attn_v",
    "attention.out": "attn_output",
    "feed_forward_norm": "ffn_norm",
    "feed_forward.gate": "ffn_gate",
    "feed_forward.up": "ffn_up",
    "feed_forward.down": "ffn_down",
}


def random_decoder(config: DecoderConfig, seed: int = 0) -> Decoder:
    """Every weight random, norms and biases too, so that no two can be mistaken for one another."""
    torch.manual_seed(seed)
    decoder = Decoder(config).eval()
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.normal_(std=0.3)
    return decoder


def llama_config(**changes) -> DecoderConfig:
    sizes = {"width": 64, "heads": 4, "kv_heads": 2, "feed_forward_width": 96, "rope_theta": 5000.0}
    return DecoderConfig.tiny(**{**sizes, **changes})


def interleaved(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows (half, pair) of each head in the order (pair, half): what llama.cpp expects of query and key."""
    half = len(rows) // heads // 2
    order = [head * 2 * half + side * half + pair for head in range(heads) for pair in range(half) for side in (0, 1)]
    return rows[order]


def llama_arrays(decoder: Decoder) -> dict[str, np.ndarray]:
    """The decoder's weights under llama.cpp's names and in its order."""
    config, state = decoder.config, {name: tensor.numpy() for name, tensor in decoder.state_dict().items()}
    arrays = {"token_embd.weight": state["embed.weight"], "output_norm.weight": state["norm.weight"]}
    if not config.tie_embeddings:
        arrays["output.weight"] = state["head.weight"]
    for name, array in state.items():
        if name.startswith("blocks."):
            _, index, rest = name.split(".", 2)
            module, kind = rest.rsplit(".", 1)
            heads = {"attention.query": config.heads, "attention.key": config.kv_heads}.get(module)
            arrays[f"blk.{index}.{LLAMA_NAMES[module]}.{kind}"] = interleaved(array, heads) if heads else array
    return arrays


def llama_metadata(config: DecoderConfig) -> dict[str, int | float]:
    return {
        "llama.block_count": config.layers,
        "llama.context_length": config.context_length,
        "llama.embedding_length": config.width,
        "llama.feed_forward_length": config.feed_forward_width,
        "llama.attention.head_count": config.heads,
        "llama.attention.head_count_kv": config.kv_heads,
        "llama.attention.layer_norm_rms_epsilon": config.norm_eps,
        "llama.rope.freq_base": config.rope_theta,
        "llama.rope.dimension_count": config.head_width,
    }


def write(path, architecture, metadata, arrays, kind=Kind.F32, raw=()):
    """A GGUF file; matrices are quantised to `kind`, and `raw` maps names to blocks that are stored as they are."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in metadata.items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        add.get(type(value), writer.add_array)(key, value)
    for name, array in arrays.items():
        if name in raw:
            writer.add_tensor(name, raw[name], raw_dtype=kind)
        else:
            stored = kind if array.ndim > 1 else Kind.F32
            writer.add_tensor(name, quantize(np.ascontiguousarray(array), stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_llama(path, decoder, kind=Kind.F32, metadata=(), arrays=()):
    """The decoder as a GGUF file, with some metadata or arrays replaced, added, or (None) left out."""
    all_metadata = {**llama_metadata(decoder.config), **dict(metadata)}
    all_arrays = {**llama_arrays(decoder), **dict(arrays)}
    return write(
        path,
        "llama",
        {key: value for key, value in all_metadata.items() if value is not None},
        {name: array for name, array in all_arrays.items() if array is not None},
        kind,
    )
