"""The soft prompt (place 2 of figure 1, the input embeddings): P trained vectors p before every text's embeddings.

    logits = decoder([p; embed(ids)])[P:], the text's T positions

This is prompt tuning (Lester et al. 2021); figure 1 labels the vectors p0. They come first and attention is causal, so
their keys and values in every layer do not depend on the text: the decoder processes the vectors once per batch, as
one row shared by all rows. Logits and gradients are exact.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from minillm.adapt.method import Method, restore
from minillm.adapt.prompt_start import check_length, given_tokens, sampled_tokens
from minillm.adapt.surgery import frozen, trained_dtype
from minillm.decoder import Decoder
from minillm.errors import InputError
from minillm.key_values import KeyValues
from minillm.shapes import Float


class SoftPrompt(Method):
    """`length` trained vectors before the text. Seam: embeddings. Not equal to the base at the start.

    `init` is `"random"` (normal, with the standard deviation of the embedding table), `"vocabulary"` (its rows, drawn
    uniformly), or token ids, of a text or of the labels, repeated and cut to `length`. Raises InputError for another
    `init` and for a length that leaves no room for a text.
    """

    def __init__(self, decoder: Decoder, length: int, init: str | Sequence[int] = "vocabulary"):
        super().__init__(frozen(decoder))
        check_length(decoder, length)
        self.init = init if isinstance(init, str) else [int(token) for token in init]
        start = self._start(length)
        self.prompt = nn.Parameter(start.to(trained_dtype(start)))

    def _start(self, length: int) -> Float[Tensor, "P D"]:
        table = self.decoder.embed.weight.detach()
        if self.init == "random":
            return torch.randn_like(table[:1].expand(length, -1)) * table.std()
        if self.init == "vocabulary":
            return table[sampled_tokens(self.decoder, 1, length)[0]]
        if isinstance(self.init, str):
            raise InputError(f"init must be random, vocabulary or a list of token ids, got {self.init!r}")
        return table[given_tokens(self.decoder, self.init, length)[0]]

    def prefix(self) -> KeyValues:
        return self.decoder.keys_values(self.prompt[None].to(self.decoder.embed.weight.dtype))

    def options(self) -> dict[str, Any]:
        return {"length": len(self.prompt), "init": self.init}

    @classmethod
    def from_state(cls, decoder: Decoder, options: Mapping[str, Any], state: Mapping[str, Tensor]) -> "SoftPrompt":
        """As `Adaptation.from_state`, without drawing random numbers."""
        method = cls(decoder, **{**options, "init": [0]})
        method.init = options["init"]
        restore(method.trainable(), state)
        return method
