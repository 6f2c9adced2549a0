"""GGUF, the meaning: what llama.cpp calls the sizes and tensors of a Llama or a GPT-2 (its gguf-py/constants.py).

Its converter reorders the rows of `attn_q` and `attn_k` so that a rotation turns neighbours; ours turns the halves
of a head, so that order is undone. Metadata that would change the computation and is not known here is refused.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from minillm.config import DecoderConfig
from minillm.decoder import Decoder
from minillm.errors import InputError
from minillm.hub.gguf_file import GGUFFile
from minillm.hub.gguf_tokenizer import read_tokenizer
from minillm.hub.layout import Layout, assemble
from minillm.tokenizer import Tokenizer

OUTER = {"token_embd": "embed", "output_norm": "norm"}
INNER = {
    "attn_norm": "attention_norm",
    "attn_output": "attention.out",
    "ffn_norm": "feed_forward_norm",
    "ffn_up": "feed_forward.up",
    "ffn_down": "feed_forward.down",
}
LLAMA = Layout(
    head="output",
    block="blk.{}.",
    outer=OUTER,
    inner={
        **INNER,
        "attn_q": "attention.query",
        "attn_k": "attention.key",
        "attn_v": "attention.value",
        "ffn_gate": "feed_forward.gate",
    },
    interleaved={"attn_q": "heads", "attn_k": "kv_heads"},
)
GPT2 = Layout(
    head="output",
    block="blk.{}.",
    outer={**OUTER, "position_embd": "positions"},
    inner={**INNER, "attn_qkv": ("attention.query", "attention.key", "attention.value")},
)


def load(path: str | Path, dtype: torch.dtype | None = torch.float32) -> tuple[Decoder, Tokenizer | None]:
    """The decoder, in evaluation mode, and its tokenizer, if the file has one.

    Without a dtype the weights are float32, as they are dequantised. Raises InputError for a damaged file, another
    architecture, a tensor that is missing, unknown or misshapen, and metadata that asks for a computation that minillm
    does not have.
    """
    file = GGUFFile(path)
    architecture = file.metadata.get("general.architecture")
    if architecture == "llama":
        config, layout = _llama(_Sizes(file, "llama")), LLAMA
    elif architecture == "gpt2":
        config, layout = _gpt2(_Sizes(file, "gpt2")), GPT2
    else:
        raise InputError(f"{path} holds the architecture {architecture!r}; minillm reads llama and gpt2 from GGUF")
    decoder = assemble(config, layout, file, dtype)
    has_tokenizer = file.metadata.get("tokenizer.ggml.model") not in (None, "none", "no_vocab")
    return decoder, read_tokenizer(file.metadata) if has_tokenizer else None


class _Sizes:
    """The architecture's metadata, each taken once: what nobody took must be known to change nothing."""

    def __init__(self, file: GGUFFile, architecture: str):
        self.file, self.architecture = file, architecture
        start = architecture + "."
        self.left = {key[len(start) :]: value for key, value in file.metadata.items() if key.startswith(start)}

    def take(self, key: str, kind: type, default: Any = None) -> Any:
        value = self.left.pop(key, default)
        if isinstance(value, bool) or not isinstance(value, kind):
            what = "lacks" if value is None else f"has {value!r} as"
            raise InputError(f"{self.file.path} {what} the metadata {self.architecture}.{key}: one number is needed")
        return value

    def vocabulary(self) -> int:
        """The rows of the embeddings; the metadata only repeats them."""
        if "token_embd.weight" not in self.file.shapes:
            raise InputError(f"{self.file.path} lacks the tensor token_embd.weight")
        return self.file.shapes["token_embd.weight"][0]

    def finish(self, neutral: Mapping[str, Any]) -> None:
        for key, value in self.left.items():
            if key not in neutral or value != neutral[key]:
                only = (
                    f"; minillm computes with {neutral[key]!r}" if key in neutral else ", which minillm does not know"
                )
                raise InputError(f"{self.file.path} has the metadata {self.architecture}.{key} = {value!r}{only}")


def _shared(sizes: _Sizes) -> dict[str, Any]:
    heads = sizes.take("attention.head_count", int)
    return {
        "norm_first": True,
        "vocabulary": sizes.vocabulary(),
        "layers": sizes.take("block_count", int),
        "width": sizes.take("embedding_length", int),
        "heads": heads,
        "kv_heads": sizes.take("attention.head_count_kv", int, heads),
        "feed_forward_width": sizes.take("feed_forward_length", int),
        "context_length": sizes.take("context_length", int),
        "tie_embeddings": "output.weight" not in sizes.file.shapes,
    }


def _llama(sizes: _Sizes) -> DecoderConfig:
    config = DecoderConfig(
        **_shared(sizes),
        norm="rms",
        positions="rotary",
        feed_forward="swiglu",
        bias="blk.0.attn_q.bias" in sizes.file.shapes,
        rope_theta=sizes.take("rope.freq_base", float, 10_000.0),
        norm_eps=_short(sizes.take("attention.layer_norm_rms_epsilon", float)),
    )
    if "rope_freqs.weight" in sizes.file.shapes:
        raise InputError(
            f"{sizes.file.path} scales its rotary positions (rope_freqs.weight), as Llama 3.1 does; "
            "minillm computes with plain ones, as Llama 2, Llama 3 and SmolLM2 do"
        )
    sizes.finish(
        {
            "vocab_size": config.vocabulary,
            "rope.dimension_count": config.head_width,
            "attention.key_length": config.head_width,
            "attention.value_length": config.head_width,
            "rope.scaling.type": "none",
            "rope.scaling.factor": 1.0,
            "rope.scale_linear": 1.0,
            "expert_count": 0,
            "expert_used_count": 0,
            "attention.causal": True,
            "tensor_data_layout": "Meta AI original pth",
        }
    )
    return config


def _gpt2(sizes: _Sizes) -> DecoderConfig:
    config = DecoderConfig(
        **_shared(sizes),
        norm="layer",
        positions="learned",
        feed_forward="gelu",
        bias=True,
        norm_eps=_short(sizes.take("attention.layer_norm_epsilon", float)),
    )
    sizes.finish({"vocab_size": config.vocabulary, "attention.causal": True})
    return config


def _short(number: float) -> float:
    """A float32 as people wrote it: 1e-05 and not 9.999999747378752e-06."""
    return float(f"{number:.7g}")
