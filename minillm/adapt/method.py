"""What every way of adapting a decoder offers, so that training, generation and the laws know only this."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minillm.config import DecoderConfig
from minillm.decoder import Decoder
from minillm.errors import InputError
from minillm.key_values import KeyValues
from minillm.shapes import Bool, Float, Int
from minillm.tokenizer import Tokenizer


class Adaptation(nn.Module, ABC):
    """A body over a base decoder's weights, and what is trained beside or in it. The base is never written to."""

    def __init__(self, body: Decoder):
        super().__init__()
        self.decoder = body
        # The base's weights by name, as they are before the method replaces any; no part of the module.
        self.base = dict(body.named_parameters(remove_duplicate=False))

    @property
    def config(self) -> DecoderConfig:
        return self.decoder.config

    @abstractmethod
    def options(self) -> dict[str, Any]:
        """What the method was built with, beside the decoder: JSON's types only."""

    def trainable(self) -> dict[str, nn.Parameter]:
        """Exactly what the optimizer gets, by name."""
        return {
            name.removeprefix("decoder."): parameter
            for name, parameter in self.named_parameters()
            if parameter.requires_grad
        }

    def state(self) -> dict[str, Tensor]:
        """What is saved and published: enough to rebuild the method on its base."""
        return {name: parameter.detach() for name, parameter in self.trainable().items()}

    @classmethod
    @abstractmethod
    def from_state(cls, decoder: Decoder, options: Mapping[str, Any], state: Mapping[str, Tensor]) -> "Adaptation":
        """The method that had these options and this state. Raises InputError where they do not fit the decoder."""

    def save(self, directory: str | Path, *, tokenizer: Tokenizer | None = None) -> None:
        """Write the adapter that `adapt.load` reads: `state()`, `options()` and whose they are (`files.py`)."""
        from minillm.adapters.load import save

        save(self, directory, tokenizer=tokenizer)


@torch.no_grad()
def restore(parameters: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Give the parameters the values that were kept of them. Raises InputError for a name or a shape that differs."""
    for name in [*parameters, *state]:
        if name not in state or name not in parameters:
            what = "lacks" if name in parameters else "has, with no place for it here,"
            raise InputError(f"the adapter {what} the tensor {name}")
        if parameters[name].shape != state[name].shape:
            shapes = tuple(state[name].shape), tuple(parameters[name].shape)
            raise InputError(f"the adapter's tensor {name} is {shapes[0]}, and this decoder needs {shapes[1]}")
    for name, parameter in parameters.items():
        parameter.copy_(state[name])


class Method(Adaptation):
    """An adaptation that is called like a decoder: it may put keys and values before the text, or change the body."""

    @abstractmethod
    def prefix(self) -> KeyValues | None:
        """What stands before every row, in every layer; None if nothing does."""

    def forward(self, ids: Int[Tensor, "B T"], *, mask: Bool[Tensor, "B T"] | None = None) -> Float[Tensor, "B T V"]:
        return self.decoder(ids, prefix=self.prefix(), mask=mask)
