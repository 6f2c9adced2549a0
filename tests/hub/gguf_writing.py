"""Tiny GGUF files, written with the gguf package from a decoder or arrays, as llama.cpp's converter writes them."""

import math

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind
from gguf.quants import quantize

from minillm.config import DecoderConfig, RopeScaling
from minillm.decoder import Decoder
from tests import decoders

LLAMA_NAMES = {
    "attention_norm": "attn_norm", "attention.query": "attn_q", "attention.key": "attn_k",
    "attention.value": "attn_v", "attention.out": "attn_output", "feed_forward_norm": "ffn_norm",
    "feed_forward.gate": "ffn_gate", "feed_forward.up": "ffn_up", "feed_forward.down": "ffn_down",
}  # fmt: skip


def random_decoder(config: DecoderConfig, seed: int = 0) -> Decoder:
    return decoders.random_decoder(config, seed).float()


def llama_config(**changes) -> DecoderConfig:
    sizes = {"width": 64, "heads": 4, "kv_heads": 2, "feed_forward_width": 96, "rope_theta": 5000.0}
    return DecoderConfig.tiny(**{**sizes, **changes})


def interleaved(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows (half, pair) of each head in the order (pair, half), which llama.cpp expects of query and key."""
    half = len(rows) // heads // 2
    order = [head * 2 * half + side * half + pair for head in range(heads) for pair in range(half) for side in (0, 1)]
    return rows[order]


def llama_arrays(decoder: Decoder) -> dict[str, np.ndarray]:
    """The weights of the decoder, with the names and the row order of llama.cpp."""
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


def write(path, architecture, metadata, arrays, kind=Kind.F32):
    """A GGUF file. Matrices are quantised to `kind`; arrays of uint8 are already quantised."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in metadata.items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        add.get(type(value), writer.add_array)(key, value)
    for name, array in arrays.items():
        stored = kind if array.ndim > 1 else Kind.F32
        if array.dtype == np.float32:
            array = quantize(np.ascontiguousarray(array), stored)
        writer.add_tensor(name, array, raw_dtype=None if array.dtype == np.int32 else stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_llama(path, decoder, kind=Kind.F32, metadata=(), arrays=()):
    """The decoder as a GGUF file, with metadata or arrays replaced, added, or (None) left out."""
    parts = llama_metadata(decoder.config) | dict(metadata), llama_arrays(decoder) | dict(arrays)
    present = ({name: value for name, value in part.items() if value is not None} for part in parts)
    return write(path, "llama", *present, kind)


# The constants of llama.cpp.
YARN = RopeScaling("yarn", 4.0, 16, 1.0, 32.0, 0.1 * math.log(4) + 1)
RELATIVES = {
    "Llama 3": {"rope_scaling": RopeScaling("llama3", 8.0, original_context=32)},
    "Llama 3.2": {"rope_scaling": RopeScaling("llama3", 32.0), "rope_theta": 500_000.0},
    "Llama, linear": {"rope_scaling": RopeScaling("linear", 3.0)},
    "Llama, linear by 1": {"rope_scaling": RopeScaling("linear", 1.0)},
    "Llama, YaRN": {"rope_scaling": YARN},
    "Llama, wide heads": {"attention_width": 96},
    "Llama, attention biases": {"bias": "attention"},
    "Llama, feed-forward biases": {"bias": "feed_forward"},
    "Qwen2": {"bias": "query_key_value"},
    "Qwen2, YaRN": {"bias": "query_key_value", "rope_scaling": YARN},
    "Qwen3": {"query_key_norm": True, "attention_width": 32},
    "SmolLM3": {"layers": 5, "unrotated_layers": (3,)},
}
"""Changes of `llama_config` by which a decoder is a relative of Llama that GGUF can describe."""
