"""Loading and saving Hugging Face directories (config.json, safetensors): GPT-2, Llama and the relatives of Llama.

GPT-2 stores its matrices as (in, out) (Conv1D), with query, key and value concatenated in `c_attn`. Any other decoder
is saved under minillm's own names as `model_type` minillm, which transformers cannot load.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch

from minillm.decoder import Decoder
from minillm.errors import InputError
from minillm.hub import huggingface_config
from minillm.hub.huggingface_tokenizer import READ, read_tokenizer, write_tokenizer, written_ids
from minillm.hub.layout import Layout, assemble
from minillm.hub.safetensors_file import SINGLE, SafetensorsDirectory
from minillm.runtime.files import commit, complete
from minillm.tokenizer import Tokenizer

GPT2 = Layout(
    prefix="transformer.",
    head="lm_head",
    block="transformer.h.{}.",
    outer={"transformer.wte": "embed", "transformer.wpe": "positions", "transformer.ln_f": "norm"},
    inner={
        "ln_1": "attention_norm", "attn.c_attn": ("attention.query", "attention.key", "attention.value"),
        "attn.c_proj": "attention.out",
        "ln_2": "feed_forward_norm", "mlp.c_fc": "feed_forward.up", "mlp.c_proj": "feed_forward.down",
    },
    transposed=frozenset({"attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"}),
    # Older versions of transformers stored the causal mask.
    ignored=re.compile(r"transformer\.h\.\d+\.attn\.(masked_)?bias"),
)  # fmt: skip
LLAMA = Layout(
    prefix="model.",
    head="lm_head",
    block="model.layers.{}.",
    outer={"model.embed_tokens": "embed", "model.norm": "norm"},
    inner={
        "input_layernorm": "attention_norm", "self_attn.q_proj": "attention.query",
        "self_attn.k_proj": "attention.key", "self_attn.v_proj": "attention.value",
        "self_attn.o_proj": "attention.out", "self_attn.q_norm": "attention.query_norm",
        "self_attn.k_norm": "attention.key_norm", "post_attention_layernorm": "feed_forward_norm",
        "mlp.gate_proj": "feed_forward.gate", "mlp.up_proj": "feed_forward.up", "mlp.down_proj": "feed_forward.down",
    },
    # The frequencies of the rotation follow from rope_theta.
    ignored=re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq"),
)  # fmt: skip
OWN = Layout(
    head="head",
    block="blocks.{}.",
    outer={name: name for name in ("embed", "positions", "norm")},
    inner={name: name for name in LLAMA.inner.values() if isinstance(name, str)},
)
LAYOUTS = {kind: {"gpt2": GPT2, "minillm": OWN}.get(kind, LLAMA) for kind in huggingface_config.FAMILIES}


def load(
    directory: Path, dtype: torch.dtype | None = torch.float32, allow_nonfinite: bool = False,
    quantise: int | None = None,
) -> tuple[Decoder, Tokenizer | None]:  # fmt: skip
    """The decoder, in evaluation mode, and its tokenizer, if there is one.

    `dtype` None keeps the stored dtypes. Raises InputError for an unknown model_type, for
    settings that minillm does not compute with, and for tensors that are missing, unexpected or misshapen.
    """
    complete(directory)
    kind, config = huggingface_config.read(directory / "config.json")
    layout = LAYOUTS[kind]
    source = SafetensorsDirectory(directory, layout.prefix, f"{layout.head}.weight")
    decoder = assemble(config, layout, source, dtype, allow_nonfinite, quantise)
    return decoder, read_tokenizer(directory)


def fetch(name: str) -> Path:
    """The directory of a model from the Hugging Face hub, in the cache of huggingface_hub."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise InputError(f"hf:{name} needs huggingface_hub: `pip install huggingface_hub`") from None
    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.jinja", "merges.txt"]))
    except Exception as problem:  # of a dozen kinds, from several libraries
        reason = (str(problem).strip().splitlines() or [type(problem).__name__])[0].rstrip(".")
        raise InputError(
            f"hf:{name} cannot be downloaded from the Hugging Face hub ({reason}); give a local directory or .gguf file"
        ) from None


def save(decoder: Decoder, tokenizer: Tokenizer | None, directory: Path) -> None:
    """Write the tokenizer, model.safetensors and config.json, and remove the files of an earlier tokenizer."""
    settings = huggingface_config.written(decoder.config)
    layout = LAYOUTS[settings["model_type"]]
    parameters = {name: tensor.detach().cpu() for name, tensor in decoder.state_dict().items()}
    _check_whole(decoder, parameters, layout)
    settings |= written_ids(tokenizer)
    settings["torch_dtype"] = str(parameters["embed.weight"].dtype).removeprefix("torch.")
    tensors = {entry.name: entry.join(parameters) for entry in layout.entries(decoder)}
    with commit(directory) as new:
        new.removed |= READ
        if tokenizer is not None:
            write_tokenizer(tokenizer, directory)
        new.tensors(SINGLE, tensors, {"format": "pt"})
        new.text("config.json", json.dumps(settings, indent=2) + "\n")


def _check_whole(decoder: Decoder, parameters: Mapping[str, torch.Tensor], layout: Layout) -> None:
    """Raises InputError for a parameter that the file would lose."""
    stored = {part for entry in layout.entries(decoder) for part in entry.parts}
    if decoder.config.tie_embeddings:
        stored.add("head.weight")
        if not parameters["head.weight"].equal(parameters["embed.weight"]):
            raise InputError("the tied head differs from the embeddings: set tie_embeddings=False in the config")
    if odd := sorted(parameters.keys() ^ stored):
        raise InputError(f"{odd[0]} is not a weight of a plain decoder: merge the adapter before saving")
