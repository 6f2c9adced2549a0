"""Loading Llama and GPT-2 models from GGUF, by llama.cpp's names of tensors and metadata (gguf-py/constants.py).

llama.cpp's converter reorders the rows of `attn_q` and `attn_k` so that rotary positions pair neighbouring rows.
minillm pairs the two halves of a head, so the order is undone. Metadata that would change the computation is refused.
"""

from pathlib import Path

import torch

from minillm.config import GPT2_CHOICES, LLAMA_CHOICES, DecoderConfig
from minillm.decoder import Decoder
from minillm.errors import InputError
from minillm.hub.family import Family, fields_of
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

SIZES = {
    "block_count": "layers", "embedding_length": "width", "attention.head_count": "heads",
    "attention.head_count_kv": "kv_heads", "feed_forward_length": "feed_forward_width",
    "context_length": "context_length",
}  # fmt: skip
DEFAULTS = {"kv_heads": lambda sizes: sizes["heads"], "rope_theta": 10_000.0}
FAMILIES = {
    "llama": Family(
        "llama", None, LLAMA_CHOICES,
        SIZES | {"attention.layer_norm_rms_epsilon": "norm_eps", "rope.freq_base": "rope_theta"}, DEFAULTS,
        {
            "rope.scaling.type": ("none",), "rope.scaling.factor": (1.0,), "rope.scale_linear": (1.0,),
            "expert_count": (0,), "expert_used_count": (0,), "attention.causal": (True,),
            "tensor_data_layout": ("Meta AI original pth",),
        },
    ),
    "gpt2": Family(
        "gpt2", None, GPT2_CHOICES, SIZES | {"attention.layer_norm_epsilon": "norm_eps"}, DEFAULTS,
        {"attention.causal": (True,)},
    ),
}  # fmt: skip
LAYOUTS = {"llama": LLAMA, "gpt2": GPT2}


def load(path: str | Path, dtype: torch.dtype | None = torch.float32) -> tuple[Decoder, Tokenizer | None]:
    """The decoder, in evaluation mode and dequantised, and its tokenizer, if the file has one.

    `dtype` None means float32. Raises InputError for a damaged file, another architecture, a tensor that is missing,
    unexpected or misshapen, and metadata that minillm does not compute with.
    """
    file = GGUFFile(path)
    architecture = file.metadata.get("general.architecture")
    if architecture not in tuple(FAMILIES):
        raise InputError(f"{path} has the architecture {architecture!r}; minillm loads llama and gpt2 from GGUF")
    decoder = assemble(_config(file, FAMILIES[architecture]), LAYOUTS[architecture], file, dtype)
    has_tokenizer = file.metadata.get("tokenizer.ggml.model") not in (None, "none", "no_vocab")
    return decoder, read_tokenizer(file.metadata) if has_tokenizer else None


def _config(file: GGUFFile, family: Family) -> DecoderConfig:
    shapes, start = file.shapes, f"{family.model_type}."
    if "token_embd.weight" not in shapes:
        raise InputError(f"{file.path} lacks the tensor token_embd.weight")
    if "rope_freqs.weight" in shapes:
        raise InputError(
            f"{file.path} scales its rotary positions (rope_freqs.weight), like Llama 3.1; "
            "minillm supports unscaled ones, as in Llama 2, Llama 3 and SmolLM2"
        )
    settings = {key.removeprefix(start): value for key, value in file.metadata.items() if key.startswith(start)}
    try:
        fields = fields_of(settings, family)
    except InputError as problem:
        raise InputError(f"{file.path}: {problem}") from None
    fields["norm_eps"] = float(f"{fields['norm_eps']:.7g}")  # 1e-05 and not the float32 9.999999747378752e-06
    fields |= {"vocabulary": shapes["token_embd.weight"][0], "tie_embeddings": "output.weight" not in shapes}
    config = DecoderConfig(**{"bias": "blk.0.attn_q.bias" in shapes, **fields})
    of_head = ("rope.dimension_count", "attention.key_length", "attention.value_length")
    allowed = {**family.fixed, "vocab_size": (config.vocabulary,), **dict.fromkeys(of_head, (config.head_width,))}
    for key, value in settings.items():
        if key not in family.names and value not in allowed.get(key, ()):
            only = f"only {allowed[key][0]!r}" if key in allowed else "no such key"
            raise InputError(f"{file.path} has the metadata {start}{key} = {value!r}; minillm supports {only}")
    return config
