"""Export of a decoder as a GGUF file in float32, for llama.cpp. `gguf.py` loads it back with equal logits."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from minillm.config import GPT2_CHOICES, DecoderConfig
from minillm.decoder import Decoder
from minillm.errors import InputError
from minillm.hub.gguf import FAMILIES, LAYOUTS
from minillm.hub.gguf_tokenizer_export import describe_tokenizer
from minillm.runtime.files import replacing
from minillm.tokenizer import Tokenizer


def export(decoder: Decoder, tokenizer: Tokenizer | None, path: str | Path) -> None:
    """Write the file atomically. Raises InputError for a decoder or tokenizer that GGUF has no type for."""
    import gguf

    config, path = decoder.config, Path(path)
    fields = asdict(config)
    architecture = next((name for name, family in FAMILIES.items() if family.choices.items() <= fields.items()), None)
    if architecture is None:
        choices = ", ".join(f"{name}={fields[name]}" for name in GPT2_CHOICES)
        raise InputError(f"GGUF export supports a Llama or a GPT-2, got a decoder with {choices}")
    layout, writer = LAYOUTS[architecture], gguf.GGUFWriter(None, architecture)
    _describe(writer, config, architecture)
    if tokenizer is not None:
        describe_tokenizer(writer, tokenizer, config.vocabulary)
    state = decoder.state_dict()
    for entry in layout.entries(decoder):
        writer.add_tensor(entry.name, entry.join(state).float().cpu().numpy())
    with replacing(path) as temporary:
        writer.write_header_to_file(temporary)
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def _describe(writer: Any, config: DecoderConfig, architecture: str) -> None:
    writer.add_block_count(config.layers)
    writer.add_context_length(config.context_length)
    writer.add_embedding_length(config.width)
    writer.add_feed_forward_length(config.feed_forward_width)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    if architecture == "llama":
        writer.add_layer_norm_rms_eps(config.norm_eps)
        writer.add_rope_dimension_count(config.head_width)
        writer.add_rope_freq_base(config.rope_theta)
        writer.add_vocab_size(config.vocabulary)
    else:
        writer.add_layer_norm_eps(config.norm_eps)
