"""The methods of adapting a decoder, by their place in figure 1. Read the table `METHODS` first, then one file each.

A `Seam` is a place where an adaptation may change a decoder; there are no others. Each method is one class with the
interface of `method.py`, over a frozen body that shares the base's weights (`surgery.py`). LoRA, DoRA and PiSSA share
`low_rank.py`, soft prompts and prefixes `prompt_start.py`. Functions that load, merge and combine trained adapters are
in `minillm.adapters`, and available here too.
"""

from dataclasses import dataclass
from enum import Enum
from importlib import import_module
from typing import TYPE_CHECKING, Any

from minillm.adapt.dora import DoRA
from minillm.adapt.fine_tune import FineTune
from minillm.adapt.frozen_head import FrozenHead
from minillm.adapt.in_context import InContext
from minillm.adapt.lora import LoRA
from minillm.adapt.method import Adaptation, Method
from minillm.adapt.pissa import PiSSA
from minillm.adapt.prefix_tuning import PrefixTuning
from minillm.adapt.soft_prompt import SoftPrompt
from minillm.adapt.stack import Stack

if TYPE_CHECKING:
    from minillm.adapters.algebra import add, average, negate, scale, subtract
    from minillm.adapters.extract import extract, resize
    from minillm.adapters.family import Family
    from minillm.adapters.load import load
    from minillm.adapters.merge import merge, merge_rounding, updates

stack = Stack  # the name among the functions: add, merge, stack, ...


class Seam(Enum):
    """Every place where an adaptation may change a decoder."""

    TOKENS = "token ids before the text"
    EMBEDDINGS = "vectors before the text's embeddings"
    KEYS_VALUES = "keys and values before the text's, in every layer"
    LINEARS = "the matrices of the decoder"
    HEAD = "a classifier instead of the LM head"
    PARAMETERS = "the decoder's own weights"


@dataclass(frozen=True)
class Placement:
    """One line of the table: where a method enters, what it trains, and whether it equals the base at the start."""

    place: str
    seams: tuple[Seam, ...]
    trained: str
    equal_at_start: bool


METHODS: dict[type[Adaptation], Placement] = {
    InContext: Placement("1 the prompt", (Seam.TOKENS,), "nothing", False),
    SoftPrompt: Placement("2 the input embeddings", (Seam.EMBEDDINGS,), "P vectors before the text", False),
    PrefixTuning: Placement("2 in every layer", (Seam.KEYS_VALUES,), "P keys and values per layer", False),
    FrozenHead: Placement("4 on top of the output", (Seam.HEAD,), "a classifier on features", False),
    FineTune: Placement("3 the weights; 4 the last layers", (Seam.PARAMETERS, Seam.HEAD), "copies of weights", True),
    LoRA: Placement("3 the weights", (Seam.LINEARS,), "A and B of dW = s B A", True),
    DoRA: Placement("3 the weights", (Seam.LINEARS,), "A, B and the norm of each row", True),
    PiSSA: Placement("3 the weights", (Seam.LINEARS,), "A and B, from the principal directions of W", True),
    Stack: Placement("2 to 4", (Seam.EMBEDDINGS, Seam.KEYS_VALUES, Seam.LINEARS, Seam.PARAMETERS), "both", False),
}

_ADAPTERS = {
    "add": "algebra", "average": "algebra", "negate": "algebra", "scale": "algebra", "subtract": "algebra",
    "extract": "extract", "resize": "extract", "Family": "family", "load": "load",
    "merge": "merge", "merge_rounding": "merge", "updates": "merge",
}  # fmt: skip

__all__ = [
    "METHODS", "Adaptation", "DoRA", "Family", "FineTune", "FrozenHead", "InContext", "LoRA", "Method", "PiSSA",
    "Placement", "PrefixTuning", "Seam", "SoftPrompt", "Stack", "add", "average", "extract", "load", "merge",
    "merge_rounding", "negate", "resize", "scale", "stack", "subtract", "updates",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _ADAPTERS:
        raise AttributeError(f"minillm.adapt has no {name!r}; it has: {', '.join(__all__)}")
    return getattr(import_module(f"minillm.adapters.{_ADAPTERS[name]}"), name)
