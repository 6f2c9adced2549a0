"""The methods of adapting a decoder, by their place in figure 1. Read the table `METHODS` first, then one file each.

Each method is one class with the interface of `method.py`, over a frozen body that shares the base's weights
(`surgery.py`). LoRA, DoRA and PiSSA share `low_rank.py`, soft prompts and prefixes `prompt_start.py`. Functions that
load, merge and combine trained adapters are in `minillm.adapters`, and available here too.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

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


class Placement(NamedTuple):
    """One line of the table: where a method enters, the tensors it changes (its seam), what it trains, and whether it
    equals the base at the start."""

    place: str
    seam: str
    trained: str
    equal_at_start: bool


METHODS: dict[type[Adaptation], Placement] = {
    InContext: Placement("1 the prompt", "token ids", "nothing", False),
    SoftPrompt: Placement("2 the input embeddings", "embeddings", "P vectors before the text", False),
    PrefixTuning: Placement("2 in every layer", "keys and values", "P keys and values per layer", False),
    FrozenHead: Placement("4 on top of the output", "head", "a classifier on features", False),
    FineTune: Placement("3 the weights; 4 the last layers", "parameters, head", "copies of weights", True),
    LoRA: Placement("3 the weights", "linear layers", "A and B of dW = s B A", True),
    DoRA: Placement("3 the weights", "linear layers", "A, B and the norm of each row", True),
    PiSSA: Placement("3 the weights", "linear layers", "A and B, from the principal directions of W", True),
    Stack: Placement("2 to 4", "those of its two methods", "both", False),
}

_ADAPTERS = {
    "add": "algebra", "average": "algebra", "negate": "algebra", "scale": "algebra", "subtract": "algebra",
    "extract": "extract", "resize": "extract", "Family": "family", "load": "load",
    "merge": "merge", "merge_rounding": "merge", "updates": "merge",
}  # fmt: skip

__all__ = [
    "METHODS", "Adaptation", "DoRA", "Family", "FineTune", "FrozenHead", "InContext", "LoRA", "Method", "PiSSA",
    "Placement", "PrefixTuning", "SoftPrompt", "Stack", "add", "average", "extract", "load", "merge",
    "merge_rounding", "negate", "resize", "scale", "stack", "subtract", "updates",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _ADAPTERS:
        raise AttributeError(f"minillm.adapt has no {name!r}; it has: {', '.join(__all__)}")
    return getattr(import_module(f"minillm.adapters.{_ADAPTERS[name]}"), name)
