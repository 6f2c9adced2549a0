"""The inputs of a block besides the hidden states: rotation, mask, prefix and decoding cache.

`KeyValues` represents a hard prompt, a soft prompt and a tuned prefix alike.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from minillm.operations import Prefix
from minillm.shapes import Bool, Float

Rotation = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class KeyValues:
    """The keys and values of P prefix positions in every layer.

    The batch axis is 1 (all rows share the prefix) or B. Keys are stored after the rotation. `ops.attention.Prefix`
    describes `gate`. The text starts at P, or at 0 if `takes_positions` (`PrefixTuning`: `shift_positions`) is false.
    """

    keys: Float[Tensor, "L B G P K"]
    values: Float[Tensor, "L B G P K"]
    gate: Float[Tensor, "L H"] | None = None
    takes_positions: bool = True

    def __len__(self) -> int:
        return self.keys.shape[3]

    def layer(self, index: int) -> Prefix:
        return Prefix(self.keys[index], self.values[index], None if self.gate is None else self.gate[index])


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
    mask: Bool[Tensor, "B S"] | None = None
    prefix: Prefix | None = None
    cache: LayerCache | None = None


class Recorder:
    """A `LayerCache` that stays empty: it records the keys and values of one call, in `seen`."""

    length = 0

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        self.seen = key, value
        return key, value
