"""The inputs of a block besides the hidden states: rotation, mask, prefix, and the cache of decoded tokens.

A hard prompt, a soft prompt and a tuned prefix are one thing here: `KeyValues`.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from minillm.operations import Prefix
from minillm.shapes import Bool, Float

Rotation = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class KeyValues:
    """The keys and values of P prompt positions in every layer: of a hard prompt, a soft prompt or a tuned prefix.

    The batch axis is 1 (all rows share the prompt) or B. Keys are as attention uses them: after the rotation. The
    text's positions count on from P, or from 0 where the prompt takes up none.
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
    """One layer of a decoding cache (which `generation` owns): it takes the new keys and values and returns all."""

    length: int

    def extend(
        self, key: Float[Tensor, "B G T K"], value: Float[Tensor, "B G T K"]
    ) -> tuple[Float[Tensor, "B G S K"], Float[Tensor, "B G S K"]]: ...


class BlockInputs(NamedTuple):
    """What a block's attention needs besides the hidden states."""

    rotation: Rotation | None = None
    mask: Bool[Tensor, "B S"] | None = None
    prefix: Prefix | None = None
    cache: LayerCache | None = None


class Recorder:
    """A cache layer that saves the keys and values passing through it, and adds none."""

    length = 0

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        self.seen = key, value
        return key, value
