"""Loading GPT-2, Llama and Llama's relatives from GGUF, by llama.cpp's names of tensors and metadata.

llama.cpp's converter reorders the rows of a Llama's `attn_q` and `attn_k` so that rotary positions pair neighbouring
rows. minillm pairs the two halves of a head, so the order is undone; Qwen's rows have our order. Metadata that would
change the computation is refused. (The names are in gguf-py/constants.py.)
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from minillm.config import GPT2_CHOICES, LLAMA_CHOICES, DecoderConfig
from minillm.decoder import Decoder
from minillm.errors import InputError
from minillm.hub.family import Family, Part, config_of
from minillm.hub.gguf_file import GGUFFile
from minillm.hub.gguf_settings import BIAS, HEAD_WIDTH, ROPE, ROPE_FREQS, UNROTATED, of_tensors
from minillm.hub.gguf_tokenizer import read_tokenizer
from minillm.hub.layout import Layout, assemble
from minillm.tokenizer import Tokenizer

OUTER = {"token_embd": "embed", "output_norm": "norm"}
INNER = {
    "attn_norm": "attention_norm", "attn_output": "attention.out",
    "ffn_norm": "feed_forward_norm", "ffn_up": "feed_forward.up", "ffn_down": "feed_forward.down",
}  # fmt: skip
LLAMA = Layout(
    head="output",
    block="blk.{}.",
    outer=OUTER,
    inner=INNER | {
        "attn_q": "attention.query", "attn_k": "attention.key", "attn_v": "attention.value",
        "ffn_gate": "feed_forward.gate",
    },
    interleaved={"attn_q": "heads", "attn_k": "kv_heads"},
    ignored=re.compile(r"rope_freqs\.weight"),
)  # fmt: skip
GPT2 = Layout(
    head="output",
    block="blk.{}.",
    outer={**OUTER, "position_embd": "positions"},
    inner={**INNER, "attn_qkv": ("attention.query", "attention.key", "attention.value")},
)

# Llama 3's scaling is an architecture's own: in the others a tensor rope_freqs is unexpected.
SMOLLM3 = replace(LLAMA, ignored=GPT2.ignored)
QWEN = replace(
    SMOLLM3,
    inner={**LLAMA.inner, "attn_q_norm": "attention.query_norm", "attn_k_norm": "attention.key_norm"},
    interleaved={},
)

SIZES = {
    "block_count": "layers", "embedding_length": "width", "attention.head_count": "heads",
    "attention.head_count_kv": "kv_heads", "feed_forward_length": "feed_forward_width",
    "context_length": "context_length", "tensors.vocabulary": "vocabulary", "tensors.tied": "tie_embeddings",
}  # fmt: skip


def _family(architecture: str, eps: str, choices: Mapping[str, Any], *parts: Part) -> Family:
    return Family(
        architecture, None, choices, SIZES | {eps: "norm_eps"}, {"kv_heads": lambda sizes: sizes["heads"]},
        {
            "expert_count": (0,), "expert_used_count": (0,), "attention.causal": (True,),
            "tensor_data_layout": ("Meta AI original pth",), "rope.scaling.finetuned": (True, False),
            "rope.scaling.attn_factor": (1.0,), "rope.scaling.yarn_attn_factor": (1.0,),
            "rope.scaling.yarn_ext_factor": (1.0,), "rope.scaling.yarn_beta_fast": (32.0,),
            "rope.scaling.yarn_beta_slow": (1.0,),
        },
        parts,
    )  # fmt: skip


def _relative(architecture: str, *parts: Part, **choices: Any) -> Family:
    """Llama itself, or an architecture with its names."""
    eps = "attention.layer_norm_rms_epsilon"
    return _family(architecture, eps, LLAMA_CHOICES | choices, HEAD_WIDTH, ROPE, *parts)


FAMILIES = {
    "llama": _relative("llama", BIAS, ROPE_FREQS),
    "qwen2": _relative("qwen2", bias="query_key_value"),
    "qwen3": _relative("qwen3", query_key_norm=True),
    "smollm3": _relative("smollm3", UNROTATED),
    "gpt2": _family("gpt2", "attention.layer_norm_epsilon", GPT2_CHOICES),
}
MOST_PAIRS = 4096
LAYOUTS = {"llama": LLAMA, "qwen2": QWEN, "qwen3": QWEN, "smollm3": SMOLLM3, "gpt2": GPT2}
FREQS = "rope_freqs.weight"


def load(
    path: str | Path, dtype: torch.dtype | None = torch.float32, allow_nonfinite: bool = False,
    quantise: int | None = None,
) -> tuple[Decoder, Tokenizer | None]:  # fmt: skip
    """The decoder, in evaluation mode and dequantised, and its tokenizer, if the file has one.

    `dtype` None means float32. Raises InputError for a damaged file, another architecture, a tensor that is missing,
    unexpected or misshapen, and metadata that minillm does not compute with.
    """
    file = GGUFFile(path)
    architecture = file.metadata.get("general.architecture")
    if architecture not in tuple(FAMILIES):
        raise InputError(f"{path} has the architecture {architecture!r}; minillm loads {', '.join(FAMILIES)} from GGUF")
    config = _config(file, FAMILIES[architecture])
    decoder = assemble(config, LAYOUTS[architecture], file, dtype, allow_nonfinite, quantise)
    has_tokenizer = file.metadata.get("tokenizer.ggml.model") not in (None, "none", "no_vocab")
    return decoder, read_tokenizer(file.metadata) if has_tokenizer else None


def _config(file: GGUFFile, family: Family) -> DecoderConfig:
    shapes, start = file.shapes, f"{family.model_type}."
    if "token_embd.weight" not in shapes:
        raise InputError(f"{file.path} lacks the tensor token_embd.weight")
    # 1e-05 and not the float32 9.999999747378752e-06.
    settings = {
        key.removeprefix(start): float(f"{value:.7g}") if isinstance(value, float) else value
        for key, value in file.metadata.items()
        if key.startswith(start)
    }
    allowed = {**family.fixed, "vocab_size": (shapes["token_embd.weight"][0],)}
    for key, value in settings.items():
        if key not in family.known and value not in allowed.get(key, ()):
            only = f"only {allowed[key][0]!r}" if key in allowed else "no such key"
            raise InputError(f"{file.path} has the metadata {start}{key} = {value!r}; minillm supports {only}")
    return config_of(settings | of_tensors(shapes, _rope_freqs(file)), family)


def _rope_freqs(file: GGUFFile) -> list[float] | None:
    shape = file.shapes.get(FREQS)
    if shape is None:
        return None
    if len(shape) != 1 or shape[0] > MOST_PAIRS:
        raise InputError(f"{file.path}: {FREQS} must have one number for each pair of a head, got {shape}")
    return file.read(FREQS).float().tolist()
