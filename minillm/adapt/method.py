"""The interface of every method that adapts a decoder, for training, generation, saving and loading."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

import torch
from torch import Tensor, nn

import minillm
from minillm.adapt.card import write_card
from minillm.adapt.description import DESCRIPTION, TENSORS, Description, Usage, computes
from minillm.config import DecoderConfig
from minillm.decoder import Decoder
from minillm.errors import InputError, similar
from minillm.key_values import KeyValues
from minillm.runtime.delta import encode
from minillm.runtime.files import commit
from minillm.runtime.fingerprint import base_fingerprint, tensor_fingerprint
from minillm.runtime.finite import check_finite
from minillm.runtime.reading import sealed
from minillm.runtime.summary import Summarised
from minillm.shapes import Float, Int, Mask
from minillm.tokenizer import Tokenizer

Self = TypeVar("Self", bound="Adaptation")


def check_arguments(kind: type, names: Iterable[str]) -> None:
    """Raises InputError for an argument that the constructor of `kind` does not have, with the nearest one it has."""
    known = list(inspect.signature(kind.__init__).parameters)[1:]
    for name in names:
        if name not in known:
            near = similar(name, known)
            hint = f"did you mean {near[0]!r}?" if near else f"its arguments: {', '.join(known)}"
            raise InputError(f"{kind.__name__} has no argument {name!r}; {hint}")


class Adaptation(Summarised, ABC):
    """A decoder over the base's weights, and the trained parameters in it or next to it. The base is never changed."""

    def __new__(cls, *args: Any, **options: Any):
        check_arguments(cls, options)
        return super().__new__(cls)

    def __init__(self, body: Decoder):
        super().__init__()
        self.decoder = body
        self.usage = Usage()
        # The base's weights by name, before the method replaces any; a plain dict, so not part of the module.
        self.base = dict(body.named_parameters(remove_duplicate=False))

    @property
    def config(self) -> DecoderConfig:
        return self.decoder.config

    @abstractmethod
    def options(self) -> dict[str, Any]:
        """The arguments that the method was built with, besides the decoder: JSON's types only."""

    def trainable(self) -> dict[str, nn.Parameter]:
        """The trainable parameters by name, for the optimizer."""
        return {
            name.removeprefix("decoder."): parameter
            for name, parameter in self.named_parameters()
            if parameter.requires_grad
        }

    def state(self) -> dict[str, Tensor]:
        """The tensors that are saved: with `options()`, enough to rebuild the method on its base."""
        return {name: parameter.detach() for name, parameter in self.trainable().items()}

    @classmethod
    def from_state(cls: type[Self], decoder: Decoder, options: Mapping[str, Any], state: Mapping[str, Tensor]) -> Self:
        """The method that had these options and this state. Raises InputError where they do not fit the decoder."""
        method = cls(decoder, **options)
        restore(method.state(), state)
        return method

    def save(self, directory: str | Path, *, tokenizer: Tokenizer | None = None) -> None:
        """Write the directory that `adapt.load` reads (`description.py`), all of its files or none.

        `self.usage` is saved too. With the tokenizer that the adapter was trained with, `load` can refuse another one.
        Raises InputError for NaN and infinite values.
        """
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state().items()}
        check_finite(state, "the method")
        packed, differences = {}, {}
        for name, tensor in state.items():
            packed[name], base = tensor, self.base.get(name)
            if base is not None and base.shape == tensor.shape:
                packed[name] = encode(tensor, base.detach().cpu().to(tensor.dtype))
                differences[name] = [str(dtype).removeprefix("torch.") for dtype in (base.dtype, tensor.dtype)]
        description = Description(
            method=type(self).__name__,
            options=self.options(),
            computes=computes(self.config),
            base=base_fingerprint(_distinct(self.base), self.decoder.source),
            tensors={name: tensor_fingerprint(tensor) for name, tensor in state.items()},
            differences=differences,
            tokenizer=None if tokenizer is None else tokenizer.fingerprint,
            minillm=minillm.__version__,
            **asdict(self.usage),
        )
        with commit(directory) as new:
            new.tensors(TENSORS, packed)
            new.text(DESCRIPTION, sealed(asdict(description)))
            write_card(Path(directory), description)


def _distinct(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each weight once, under its first name: a tied head is listed as the embedding only."""
    first = {id(weight): name for name, weight in reversed(list(weights.items()))}
    return {name: weight for name, weight in weights.items() if first[id(weight)] == name}


@torch.no_grad()
def restore(parameters: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Give the parameters their saved values. Raises InputError as `check_state`."""
    check_state(state, {name: tuple(parameter.shape) for name, parameter in parameters.items()})
    for name, parameter in parameters.items():
        parameter.copy_(state[name])


def check_state(state: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises InputError for a tensor that is missing, unexpected, of another shape or not of floating-point numbers."""
    for name in [*shapes, *state]:
        if name not in state or name not in shapes:
            raise InputError(f"the adapter has {'no' if name in shapes else 'an unexpected'} tensor {name}")
        tensor = state[name]
        if tuple(tensor.shape) != shapes[name] or not tensor.is_floating_point():
            needed = f"{shapes[name]} for this decoder, of a floating-point dtype"
            raise InputError(f"the adapter's tensor {name} must be {needed}, got {tuple(tensor.shape)}, {tensor.dtype}")


class Method(Adaptation):
    """An adaptation that is called like a decoder and returns next-token logits (classes: `FineTune(classes=...)`).

    A subclass creates its parameters and changes `self.decoder` in `__init__`, and implements `options` and, if it has
    a prefix, `prefix`. `adapt.load` finds the classes in `adapt.METHODS`.
    """

    def prefix(self) -> KeyValues | None:
        """The keys and values before every row, in every layer; None if there are none."""

    def forward(self, ids: Int[Tensor, "B T"], *, mask: Mask[Tensor, "B T"] | None = None) -> Float[Tensor, "B T V"]:
        return self.decoder(ids, prefix=self.prefix(), mask=mask)


def is_language_model(method: Adaptation) -> TypeGuard[Method]:
    """Whether it returns next-token logits, and not the classes of a text."""
    return isinstance(method, Method) and getattr(method, "classes", None) is None
