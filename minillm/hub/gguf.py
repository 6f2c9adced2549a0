"""Loading Llama and GPT-2 models from GGUF, by llama.cpp's names of tensors and metadata (gguf-py/constants.py).

llama.cpp's converter reorders the rows of `attn_q` and `attn_k` so that rotary positions pair neighbouring rows.
minillm pairs the two halves of a head, so the order is undone. Metadata that would change the computation is refused.
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
)  # fmt: skip
GPT2 = Layout(
    head="output",
    block="blk.{}.",
    outer={**OUTER, "position_embd": "positions"},
    inner={**INNER, "attn_qkv": ("attention.query", "attention.key", "attention.value")},
)


def load(path: str | Path, dtype: torch.dtype | None = torch.float32) -> tuple[Decoder, Tokenizer | None]:
    """The decoder, in evaluation mode and dequantised, and its tokenizer, if the file has one.

    `dtype` None means float32. Raises InputError for a damaged file, another architecture, a tensor that is missing,
    unexpected or misshapen, and metadata that minillm does not compute with.
    """
    file = GGUFFile(path)
    architecture = file.metadata.get("general.architecture")
    if architecture == "llama":
        config, layout = _llama(_Sizes(file, "llama")), LLAMA
    elif architecture == "gpt2":
        config, layout = _gpt2(_Sizes(file, "gpt2")), GPT2
    else:
        raise InputError(f"{path} has the architecture {architecture!r}; minillm loads llama and gpt2 from GGUF")
    decoder = assemble(config, layout, file, dtype)
    has_tokenizer = file.metadata.get("tokenizer.ggml.model") not in (None, "none", "no_vocab")
    return decoder, read_tokenizer(file.metadata) if has_tokenizer else None


class _Sizes:
    """The metadata of the architecture. `take` removes an entry; `finish` refuses the rest unless it has no effect."""

    def __init__(self, file: GGUFFile, architecture: str):
        self.file, self.architecture = file, architecture
        start = f"{architecture}."
        self.left = {key.removeprefix(start): value for key, value in file.metadata.items() if key.startswith(start)}

    def take(self, key: str, kind: type, default: Any = None) -> Any:
        value = self.left.pop(key, default)
        if isinstance(value, bool) or not isinstance(value, kind):
            what = "lacks" if value is None else f"has {value!r} as"
            raise InputError(f"{self.file.path} {what} the metadata {self.architecture}.{key}, which must be a number")
        return value

    def vocabulary(self) -> int:
        """The number of embeddings."""
        if "token_embd.weight" not in self.file.shapes:
            raise InputError(f"{self.file.path} lacks the tensor token_embd.weight")
        return self.file.shapes["token_embd.weight"][0]

    def finish(self, neutral: Mapping[str, Any]) -> None:
        for key, value in self.left.items():
            if key not in neutral or value != neutral[key]:
                allowed = f"only {neutral[key]!r}" if key in neutral else "no such key"
                name = f"{self.architecture}.{key}"
                raise InputError(f"{self.file.path} has the metadata {name} = {value!r}; minillm supports {allowed}")


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
            f"{sizes.file.path} scales its rotary positions (rope_freqs.weight), like Llama 3.1; "
            "minillm supports unscaled ones, as in Llama 2, Llama 3 and SmolLM2"
        )
    of_head = ("rope.dimension_count", "attention.key_length", "attention.value_length")
    neutral = {"vocab_size": config.vocabulary, **dict.fromkeys(of_head, config.head_width)}
    neutral |= {"rope.scaling.type": "none", "rope.scaling.factor": 1.0, "rope.scale_linear": 1.0, "expert_count": 0}
    neutral |= {"expert_used_count": 0, "attention.causal": True, "tensor_data_layout": "Meta AI original pth"}
    sizes.finish(neutral)
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
    """The shortest decimal of a float32: 1e-05 instead of 9.999999747378752e-06."""
    return float(f"{number:.7g}")
