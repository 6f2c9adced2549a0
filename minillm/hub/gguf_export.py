"""Export of a decoder as a GGUF file in float32, for llama.cpp. `gguf.py` loads it back with equal logits."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from minillm.config import DecoderConfig
from minillm.decoder import Decoder
from minillm.errors import InputError
from minillm.hub.family import Settings, as_written
from minillm.hub.gguf import FAMILIES, FREQS, LAYOUTS
from minillm.hub.gguf_settings import DIVISORS, TENSORS
from minillm.hub.gguf_tokenizer_export import describe_tokenizer
from minillm.runtime.files import replacing
from minillm.tokenizer import Tokenizer

CHOICES = (
    "norm", "norm_first", "positions", "feed_forward", "bias", "query_key_norm", "rope_scaling", "window",
    "unrotated_layers",
)  # fmt: skip


def export(decoder: Decoder, tokenizer: Tokenizer | None, path: str | Path) -> None:
    """Write the file atomically. Raises InputError for a decoder or tokenizer that GGUF has no type for."""
    import gguf

    architecture, settings = described(decoder.config)
    writer = gguf.GGUFWriter(None, architecture)
    for name, value in settings.items():
        if not name.startswith(TENSORS):
            add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}[type(value)]
            add(f"{architecture}.{name}", value)
    if tokenizer is not None:
        describe_tokenizer(writer, tokenizer, decoder.config.vocabulary)
    if DIVISORS in settings:
        writer.add_tensor(FREQS, np.array(settings[DIVISORS], np.float32))
    state = decoder.state_dict()
    for entry in LAYOUTS[architecture].entries(decoder):
        writer.add_tensor(entry.name, entry.join(state).float().cpu().numpy())
    write(writer, path)


class _Written(np.ndarray):
    """numpy's own `tofile` loses the last bytes on a full disk without an error."""

    def tofile(self, fid: Any) -> None:
        fid.write(self.tobytes())


def write(writer: Any, path: str | Path) -> None:
    """Write the file of a gguf.GGUFWriter atomically."""
    infos = [info for infos in writer.tensors for info in infos.values()]
    for info in infos:
        info.tensor = info.tensor.view(_Written)
    size = sum(info.nbytes for info in infos)
    with replacing(Path(path), size) as temporary:
        writer.write_header_to_file(temporary)
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def described(config: DecoderConfig) -> tuple[str, Settings]:
    """The first architecture that describes the decoder whole, with its metadata."""
    if config.window is not None:
        raise InputError(
            f"llama.cpp ignores the sliding window of these decoders (window={config.window}); for texts that are no "
            "longer, export the weights with window=None in the config"
        )
    config = replace(config, dropout=0.0)
    for architecture, family in FAMILIES.items():
        settings = as_written(config, family)
        if settings is not None:
            return architecture, {name: settings[name] for name in family.known if name in settings}
    fields = asdict(config)
    choices = ", ".join(f"{name}={fields[name]}" for name in CHOICES if fields[name] not in (None, ()))
    raise InputError(f"llama.cpp has no {', no '.join(FAMILIES)} like this decoder, with {choices}")
