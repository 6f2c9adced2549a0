"""The options of the commands that load a base without training it."""

from dataclasses import dataclass

from minillm import hub
from minillm.decoder import Decoder
from minillm.runtime.options import Model, PrintOptions
from minillm.tokenizer import Tokenizer


@dataclass(kw_only=True)
class BaseOptions(PrintOptions):
    """Options of the base."""

    base: Model = "smollm2-135m-instruct"
    """The base: a pulled model, tiny, hf:NAME, a directory in Hugging Face's layout, or a .gguf file."""
    allow_nonfinite: bool = False
    """Load a base with weights that are NaN or infinite."""
    quantise: int | None = None
    """Keep the matrices of the base in 4 or 8 bits."""

    def load_base(self) -> tuple[Decoder, Tokenizer | None]:
        return hub.load(self.base, allow_nonfinite=self.allow_nonfinite, quantise=self.quantise)
