"""In-context learning (place 1 of figure 1, the prompt): nothing is trained, the task is described or shown.

Zero-shot, few-shot, with a chain of thought or without: all of them are token ids before the text (Brown et al. 2020;
Wei et al. 2022). The decoder is causal, so the prompt's keys and values in every layer do not depend on the text: they
are computed once, here, and not once per query.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from minillm.adapt.method import Method, restore
from minillm.adapt.surgery import frozen
from minillm.decoder import Decoder
from minillm.errors import InputError
from minillm.key_values import KeyValues
from minillm.shapes import Int


class InContext(Method):
    """A prompt of P tokens before every row. Seam: token ids. Raises InputError where it exceeds the context."""

    ids: Tensor
    keys: Tensor
    values: Tensor

    def __init__(self, decoder: Decoder, ids: Int[Tensor, "1 P"]):
        super().__init__(frozen(decoder))
        with torch.no_grad():
            prompt = self.decoder.eval().keys_values(ids)
        self.register_buffer("ids", ids)
        self.register_buffer("keys", prompt.keys)
        self.register_buffer("values", prompt.values)

    def prefix(self) -> KeyValues:
        return KeyValues(self.keys, self.values, windowed=True)

    def options(self) -> dict[str, Any]:
        return {"ids": self.ids[0].tolist()}

    @classmethod
    def from_state(cls, decoder: Decoder, options: Mapping[str, Any], state: Mapping[str, Tensor]) -> "InContext":
        """The method that had these options; it has no state. Raises InputError for ids outside the vocabulary."""
        restore({}, state)
        ids, known = options["ids"], range(decoder.config.vocabulary)
        if not ids or any(type(token) is not int or token not in known for token in ids):
            raise InputError(f"ids must be a list of token ids in [0, {known[-1]}], got {str(ids)[:100]}")
        return cls(decoder, torch.tensor([ids], device=decoder.embed.weight.device))
