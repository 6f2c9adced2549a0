"""minillm: a small transformer framework for reading, checking and doing the adaptation of language models.

The public names are resolved when they are first used (PEP 562), so that `import minillm.reference` needs no
torch and `import minillm` takes no time.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minillm.classifier import TextClassifier
    from minillm.config import DecoderConfig
    from minillm.decoder import Decoder
    from minillm.errors import InputError
    from minillm.generation import generate, stream
    from minillm.hub import load, save
    from minillm.key_values import KeyValues
    from minillm.operations import backend
    from minillm.prompting.fitting import train
    from minillm.tokenizer import Tokenizer

__version__ = "0.1.0"

_HOMES = {
    "Decoder": "decoder", "DecoderConfig": "config", "InputError": "errors", "KeyValues": "key_values",
    "TextClassifier": "classifier", "Tokenizer": "tokenizer", "backend": "operations", "generate": "generation",
    "load": "hub", "save": "hub", "stream": "generation", "train": "prompting.fitting",
}  # fmt: skip

__all__ = [
    "Decoder", "DecoderConfig", "InputError", "KeyValues", "TextClassifier", "Tokenizer", "backend", "generate", "load",
    "save", "stream", "train",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"minillm has no {name!r}; it has: {', '.join(__all__)}")
    return getattr(import_module(f"minillm.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
