"""Where a decoder's weights came from: the trace that a loader leaves, carried by every body over those weights.

An adapter belongs to the weights as they were loaded, and a cast forgets them. With the trace they can be read again,
and what has been learnt of them (`adapt/fingerprint.py`) is learnt once for all copies.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor


@dataclass(eq=False)
class Source:
    """A file or directory and how to read its weights as they are stored; both None for a decoder built in memory.

    `fingerprints` maps what is quickly told of a tensor, in any dtype, to the sha256 of its value as it was loaded.
    """

    path: Path | None = None
    read: Callable[[], Mapping[str, Tensor]] | None = None
    fingerprints: dict[str, str] = field(default_factory=dict)

    def __deepcopy__(self, memo: dict) -> "Source":
        # It tells of values and not of a module: a second body over the same weights shares it.
        return self
