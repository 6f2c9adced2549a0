"""The source of a decoder's weights: recorded by a loader, and shared by every body over those weights.

An adapter belongs to the weights as they were loaded, and a cast rounds them. From the source they can be read again,
and their fingerprints (`fingerprint.py`) are computed once for all copies.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor


@dataclass(eq=False)
class Source:
    """A file or directory and how to read its weights as they are stored; both None for a decoder built in memory.

    `fingerprints` maps a checksum of a tensor, in any dtype, to the sha256 of its value as it was loaded.
    """

    path: Path | None = None
    read: Callable[[], Mapping[str, Tensor]] | None = None
    fingerprints: dict[str, str] = field(default_factory=dict)

    def __deepcopy__(self, memo: dict) -> "Source":
        # It belongs to values and not to a module: a second body over the same weights shares it.
        return self
