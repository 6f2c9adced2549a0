"""`minillm export`: a model as a GGUF file."""

from pathlib import Path
from typing import Annotated

import tyro


def export(model: Annotated[str, tyro.conf.Positional], gguf: Path, adapter: Path | None = None) -> None:
    """Write a model, merged with an adapter if one is given, as a GGUF file in float32.

    Args:
        model: A pulled name, a directory in Hugging Face's layout, or a .gguf file.
        gguf: The file to write.
        adapter: The adapter's directory.
    """
    from minillm.adapt import load as load_adapter
    from minillm.adapt import merge
    from minillm.hub import load
    from minillm.hub.gguf_export import export as written
    from minillm.lab.embedded import base_path

    decoder, tokenizer = load(base_path(model))
    if adapter is not None:
        decoder = merge(load_adapter(decoder, adapter, tokenizer=tokenizer))
    written(decoder, tokenizer, gguf)
    print(f"written: {gguf}")
