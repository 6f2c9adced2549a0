"""The ways to adapt a decoder, by where in figure 1 they enter. Read this table first, then one file a method.

A `Seam` is a place where an adaptation may touch a decoder; there are no others. Each method is one final class over a
frozen body that shares the base's weights (`surgery.py`), and offers what `method.py` says.
"""

from dataclasses import dataclass
from enum import Enum

from minillm.adapt.fine_tune import FineTune
from minillm.adapt.frozen_head import FrozenHead
from minillm.adapt.in_context import InContext
from minillm.adapt.lora import LoRA
from minillm.adapt.method import Adaptation, Method


class Seam(Enum):
    """Every place where an adaptation may touch a decoder."""

    TOKENS = "token ids before the text"
    EMBEDDINGS = "vectors before the text's embeddings"
    KEYS_VALUES = "keys and values before the text's, in every layer"
    LINEARS = "the Linears of the blocks"
    HEAD = "a classifier in the LM head's place"
    PARAMETERS = "the decoder's own weights"


@dataclass(frozen=True)
class Row:
    """One line of the table: where a method enters, what it trains, and whether it starts as the base itself."""

    place: str
    seam: Seam
    trained: str
    equal_at_start: bool


METHODS: dict[type[Adaptation], Row] = {
    InContext: Row("1 the prompt", Seam.TOKENS, "nothing", False),
    FrozenHead: Row("4 on top of the output", Seam.HEAD, "a classifier on stored features", False),
    FineTune: Row("3 the weights (4: the last layers)", Seam.PARAMETERS, "copies of the named weights", True),
    LoRA: Row("3 the weights", Seam.LINEARS, "A and B of dW = (alpha / r) B A", True),
}

__all__ = ["METHODS", "Adaptation", "FineTune", "FrozenHead", "InContext", "LoRA", "Method", "Row", "Seam"]
