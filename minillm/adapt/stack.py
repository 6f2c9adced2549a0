"""Two methods at different seams, composed: LoRA with a tuned prefix, or fine-tuned weights with a soft prompt.

The stack's body is that of the method that changes weights; the other method makes the prefix, over that body. The
parameters are shared with the two methods: training the stack trains them.
"""

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from minillm.adapt.dora import DoRA
from minillm.adapt.fine_tune import FineTune
from minillm.adapt.lora import LoRA
from minillm.adapt.method import Method
from minillm.adapt.pissa import PiSSA
from minillm.adapt.prefix_tuning import PrefixTuning
from minillm.adapt.soft_prompt import SoftPrompt
from minillm.decoder import Decoder
from minillm.errors import InputError
from minillm.key_values import KeyValues

CHANGING = (LoRA, DoRA, PiSSA, FineTune)  # methods that change the weights
BEFORE = (SoftPrompt, PrefixTuning)  # methods that put a prefix before the text


class Stack(Method):
    """A method that changes the weights, and one that makes a prefix. Seams: those of both.

    Raises InputError for two methods of the same kind, and for methods that were built on different decoders. A hard
    prompt is not accepted: prepend its tokens to the text.
    """

    def __init__(self, *methods: Method):
        before = [method for method in methods if isinstance(method, BEFORE)]
        changing = [method for method in methods if isinstance(method, CHANGING)]
        if len(methods) != 2 or len(before) != 1 or len(changing) != 1:
            named = " and ".join(type(method).__name__ for method in methods) or "nothing"
            raise InputError(f"a stack needs one of {_names(CHANGING)} and one of {_names(BEFORE)}, got {named}")
        if any(here.data_ptr() != changing[0].base[name].data_ptr() for name, here in before[0].base.items()):
            raise InputError("the methods of a stack must be built on the same decoder")
        super().__init__(changing[0].decoder)
        self.base = changing[0].base
        self.changing, self.before = changing[0], _over(before[0], changing[0].decoder)

    def prefix(self) -> KeyValues | None:
        return self.before.prefix()

    def options(self) -> dict[str, Any]:
        parts = {"changing": self.changing, "before": self.before}
        return {part: {"method": type(of).__name__, "options": of.options()} for part, of in parts.items()}

    def state(self) -> dict[str, Tensor]:
        # Parameters of the shared body are saved by the method that changes it.
        changing, before = self.changing.state(), self.before.state()
        return changing | {f"before.{name}": before[name] for name in before if name not in self.changing.trainable()}

    @classmethod
    def from_state(cls, decoder: Decoder, options: Mapping[str, Any], state: Mapping[str, Tensor]) -> "Stack":
        """The stack of the two methods that had these options and this state."""
        own = {name: tensor for name, tensor in state.items() if not name.startswith("before.")}
        others = {name.removeprefix("before."): tensor for name, tensor in state.items() if name not in own}
        return cls(
            _rebuilt(decoder, options["changing"], CHANGING, own), _rebuilt(decoder, options["before"], BEFORE, others)
        )


def _rebuilt(
    decoder: Decoder, part: Mapping[str, Any], kinds: tuple[type[Method], ...], state: Mapping[str, Tensor]
) -> Method:
    known = {kind.__name__: kind for kind in kinds}
    if part["method"] not in known:
        raise InputError(f"this method of a stack must be one of {_names(kinds)}, got {part['method']!r}")
    return known[part["method"]].from_state(decoder, part["options"], state)


def _names(kinds: Iterable[type[Method]]) -> str:
    return ", ".join(kind.__name__ for kind in kinds)


def _over(method: Method, body: Decoder) -> Method:
    """The same method, with the same parameters, over another body."""
    other = copy.copy(method)
    other._modules = {**method._modules, "decoder": body}
    return other
