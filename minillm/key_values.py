"""The inputs of a block besides the hidden states: rotation, mask, prefix and decoding cache; and where a text begins.

`KeyValues` represents a hard prompt, a soft prompt and a tuned prefix alike.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from minillm.errors import InputError
from minillm.operations import Prefix, token_positions
from minillm.shapes import Float, Int, Mask

Rotation = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class KeyValues:
    """The keys and values of P prefix positions in every layer.

    The batch axis is 1 (all rows share the prefix) or B. Keys are stored after the rotation. `ops.attention.Prefix`
    describes `gate` and `windowed`. The text starts at P, or at 0 if `takes_positions` (`PrefixTuning`:
    `shift_positions`) is false.
    """

    keys: Float[Tensor, "L B G P K"]
    values: Float[Tensor, "L B G P K"]
    gate: Float[Tensor, "L H"] | None = None
    takes_positions: bool = True
    windowed: bool = False

    def __len__(self) -> int:
        return self.keys.shape[3]

    def layer(self, index: int) -> Prefix:
        gate = None if self.gate is None else self.gate[index]
        return Prefix(self.keys[index], self.values[index], gate, self.windowed)


@runtime_checkable
class LayerCache(Protocol):
    """One layer of a decoding cache: `extend` appends keys and values and returns all of them."""

    length: int

    def extend(
        self, key: Float[Tensor, "B G T K"], value: Float[Tensor, "B G T K"]
    ) -> tuple[Float[Tensor, "B G S K"], Float[Tensor, "B G S K"]]: ...


class BlockInputs(NamedTuple):
    """The inputs of attention besides the hidden states."""

    rotation: Rotation | None = None
    mask: Mask[Tensor, "B S"] | None = None
    prefix: Prefix | None = None
    cache: LayerCache | None = None


def new_positions(
    hidden: Tensor, prefix: KeyValues | None, cache: Sequence[LayerCache] | None, mask: Tensor | None, context: int
) -> Int[Tensor, "*B T"]:
    """The positions of the T new tokens, counted after the prefix and the cached tokens, without padding.

    Raises InputError for more positions than the context has, and for a mask that does not cover all tokens or is of
    floating-point numbers.
    """
    cached, length = cache[0].length if cache is not None else 0, len(prefix) if prefix is not None else 0
    rows, tokens = hidden.shape[0], cached + hidden.shape[1]
    if length + tokens > context:
        raise InputError(f"{length} prompt positions and {tokens} tokens exceed this decoder's context of {context}")
    start = length if prefix is not None and prefix.takes_positions else 0
    if mask is None:
        return torch.arange(start + cached, start + tokens, device=hidden.device)
    if mask.shape != (rows, tokens):
        raise InputError(f"the mask is {tuple(mask.shape)}; the tokens, with cached ones, are {(rows, tokens)}")
    if mask.is_floating_point():
        raise InputError(f"a mask must be Bool, or Int with 0 for padding and n for conversation n, got {mask.dtype}")
    return token_positions(mask, start)[:, cached:]


class Recorder:
    """A `LayerCache` that stays empty: it records the keys and values of one call, in `seen`."""

    length = 0

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        self.seen = key, value
        return key, value
