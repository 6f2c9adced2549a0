"""Loading and saving weights: GGUF files, Hugging Face directories, and the pinned downloads of `pull`.

Each file format has its own module. Every load is strict, nothing is ever unpickled, and a model that minillm would
compute differently is refused.
"""

import time
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from minillm.decoder import Decoder
from minillm.errors import InputError
from minillm.runtime.fingerprint import Source
from minillm.runtime.progress import detail, duration
from minillm.runtime.reading import file_fingerprint, reading
from minillm.tokenizer import Tokenizer

__all__ = ["load", "save"]

TINY = Path(__file__).parent / "tiny"
"""The base in the package: 0.8 million weights in bfloat16, pretrained on word problems."""
TINY_SHA256 = "1140a28531094f4135b0e8d24703fe465758c4938984be35be281457bb832c25"


def load(
    source: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    allow_nonfinite: bool = False,
    quantise: int | None = None,
) -> tuple[Decoder, Tokenizer | None]:
    """A decoder, in evaluation mode on the CPU, and its tokenizer (None if the files have none).

    `source` is `tiny`, a name of `minillm pull` (downloaded if it is not in the cache), a directory with config.json
    and safetensors, a .gguf file, or `hf:NAME` (needs huggingface_hub). A known name takes precedence over a path of
    that name; write ./NAME for the path. Raises InputError for any other source, for files that are damaged,
    incomplete or need a computation that minillm does not have, and for NaN or infinite weights in `dtype`, unless
    `allow_nonfinite`. `quantise` 4 or 8 keeps the matrices of the blocks in so many bits, embeddings and head in 8
    (`minillm.quantised`): they cannot be trained, but adapted.
    """
    if quantise not in (None, 4, 8) or (quantise and dtype != torch.float32):
        raise InputError(f"quantise must be 4 or 8, with dtype torch.float32, got {quantise} and {dtype}")
    if not dtype.is_floating_point:
        raise InputError(f"dtype must be torch.float32, bfloat16, float16 or float64, got {dtype}")
    path, start = locate(source), time.perf_counter()
    decoder, tokenizer = _read(path, dtype, allow_nonfinite, quantise)
    count = sum(parameter.numel() for parameter in decoder.parameters())
    detail(f"{path}: {count:,} parameters, loaded in {duration(time.perf_counter() - start)}")
    # Next to an installed package no cache is written.
    decoder.source = Source(None if path == TINY else path.absolute(), partial(_weights, path.absolute()))
    if tokenizer is not None:
        tokenizer.limit(decoder.config.vocabulary)
    return decoder, tokenizer


def _read(
    path: Path, dtype: torch.dtype | None, allow_nonfinite: bool, quantise: int | None = None
) -> tuple[Decoder, Tokenizer | None]:
    from minillm.hub import gguf, huggingface

    with reading(path, "a model"):
        return (huggingface if path.is_dir() else gguf).load(path, dtype, allow_nonfinite, quantise)


def _weights(path: Path) -> dict[str, Tensor]:
    """The weights in their stored dtype."""
    return {name: parameter.detach() for name, parameter in _read(path, None, True)[0].named_parameters()}


def save(decoder: Decoder, tokenizer: Tokenizer | None, directory: str | Path) -> None:
    """Write a directory that `load` reads back bit for bit.

    transformers loads GPT-2, Llama and the relatives of Llama from it; any other decoder is written as `model_type`
    minillm, which only minillm loads. Existing files are replaced atomically.
    """
    from minillm.hub import huggingface

    huggingface.save(decoder, tokenizer, Path(directory))


def locate(source: str | Path) -> Path:
    """The file or directory of a source, downloaded if necessary. Raises InputError for an unknown source."""
    from minillm.hub.pull import PINNED, pull

    if source == TINY.name:
        return _packaged()
    loadable = [name for name, pinned in PINNED.items() if pinned.kind == "weights"]
    if source in loadable:
        return pull(str(source))
    if isinstance(source, str) and source.startswith("hf:"):
        from minillm.hub.huggingface import fetch

        return fetch(source[len("hf:") :])
    path = Path(source).expanduser()
    if path.is_dir() or path.is_file():
        return path
    raise InputError(
        f"there is no model {str(source)!r}; give {', '.join([TINY.name, *loadable])}, a directory with config.json "
        "and safetensors, a .gguf file or hf:NAME"
    )


def _packaged() -> Path:
    """The directory of `tiny`. Raises InputError if its weights are not the pinned ones."""
    weights = TINY / "model.safetensors"
    if not weights.is_file() or file_fingerprint(weights) != TINY_SHA256:
        raise InputError(f"{weights} is missing or damaged (its sha256 differs): install minillm again")
    return TINY
