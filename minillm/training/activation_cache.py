"""The frozen trunk is run once: what stands below the lowest trained layer says the same of a text in every epoch.

The hidden states that enter the lowest trained stage (a block, the last norm or the head) are stored the first time
that a row of tokens is read, and read back afterwards; gradients go no further down than that in any case. So an epoch
costs the trained blocks alone. The losses are those of the plain method: bit for bit in the same batches, for padding,
which nothing reads, is all that can differ, and to rounding in others.
"""

import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from minillm.adapt.method import Method
from minillm.data.batches import pad_right
from minillm.errors import InputError
from minillm.key_values import KeyValues
from minillm.shapes import Float

CHUNK_BYTES = 1 << 26


def boundary(method: Method) -> int:
    """The lowest stage of `Decoder.run_blocks` in which something is trained: a block, L for the last norm, L + 1 for the
    head. 0 if nothing below is frozen: an embedding is trained, or what stands before every text."""
    return min((_stage(name, method.config.layers) for name, _ in _trained(method)), default=0)


def _trained(method: Method) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, parameter) for name, parameter in method.named_parameters() if parameter.requires_grad)


def _stage(name: str, layers: int) -> int:
    """The stage that a parameter of a method belongs to; what is not in its decoder's tower stands before it."""
    path = name.split(".")
    if path[:2] == ["decoder", "blocks"]:
        return int(path[2])
    return {"decoder.norm": layers, "decoder.head": layers + 1}.get(".".join(path[:2]), 0)


def _obstacle(method: Method) -> str | None:
    """Why the trunk's states cannot be stored, if they cannot."""
    lowest = next((name for name, _ in _trained(method) if _stage(name, method.config.layers) == 0), None)
    if lowest is not None:
        return f"{lowest} is trained, and nothing below it is frozen"
    if boundary(method) == 0:
        return "nothing is trained"
    with torch.no_grad():
        before = method.prefix()
    return None if before is None else "what stands before the text is read by the trained layers too"


class TrunkStore:
    """A language model that reads rows of tokens as a method does, and runs its frozen trunk once for each row.

    With a `directory` the states lie in memory-mapped files there (removed with the store), for data too large for
    memory; they take T x width numbers a row. Where a prompt or what is trained leaves nothing to store, it says so in
    a warning and reads by the method. `read` raises InputError with dropout in the trunk, and where the trunk or the
    precision is no longer what it was at the first reading.
    """

    def __init__(self, method: Method, directory: Path | None = None):
        self.method, self.boundary, self.obstacle = method, boundary(method), _obstacle(method)
        self._rows: dict[tuple[int, ...], Tensor] = {}
        self._seen: list[object] | None = None
        self._shelf = None if directory is None else _Shelf(directory)
        if self.obstacle is not None:
            warnings.warn(f"the trunk's states are not stored: {self.obstacle}", stacklevel=2)

    @property
    def decoder(self):
        return self.method.decoder

    def prefix(self) -> KeyValues | None:
        return self.method.prefix()

    def read(self, rows: Sequence[Sequence[int]]) -> Float[Tensor, "B T D"]:
        """What the head reads of each row, padded on the right: `method.features`, and its gradients."""
        body = self.method.decoder
        device = body.embed.weight.device
        if self.obstacle is not None:
            return body.features(pad_right(rows)[0].to(device), prefix=self.method.prefix())
        self._check()
        missing = [row for row in dict.fromkeys(map(tuple, rows)) if row not in self._rows]
        if missing:
            self._climb(missing)
        states = pad_sequence([self._rows[tuple(row)] for row in rows], batch_first=True)
        return body.run_blocks(states.to(device), start=self.boundary)

    @torch.no_grad()
    def _climb(self, rows: list[tuple[int, ...]]) -> None:
        body = self.method.decoder
        ids, last = pad_right(rows)
        hidden = body.run_blocks(body.embed(ids.to(body.embed.weight.device)), stop=self.boundary)
        for row, states, end in zip(rows, hidden, last.tolist(), strict=True):
            kept = states[: end + 1]
            self._rows[row] = kept.clone() if self._shelf is None else self._shelf.keep(kept)

    def _check(self) -> None:
        """Everything that the states depend on is what it was, told by its place in memory and its count of writes."""
        body = self.method.decoder
        trunk = [module for block in body.blocks[: self.boundary] for module in block.modules()]
        dropping = [module for module in trunk if module.training and getattr(module, "dropout", 0) > 0]
        if dropping or (body.training and self.method.config.dropout > 0):
            raise InputError("the trunk drops out at random, and says something else each time: set dropout to 0")
        tensors = [p for n, p in self.method.named_parameters() if _stage(n, len(body.blocks)) < self.boundary]
        if any(tensor.requires_grad for tensor in tensors):
            raise InputError("a part of the trunk has become trainable: make a new TrunkStore")
        kind = body.embed.weight.device.type
        half = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        now = [half, *((tensor.data_ptr(), tensor.dtype, tensor._version) for tensor in tensors)]
        if self._seen is not None and now != self._seen:
            raise InputError("the trunk's weights or its precision have changed: make a new TrunkStore")
        self._seen = now


class _Shelf:
    """Room for hidden states in files of `CHUNK_BYTES`, mapped into memory, in a directory of its own."""

    def __init__(self, directory: Path):
        directory.mkdir(parents=True, exist_ok=True)
        self.home = tempfile.TemporaryDirectory(dir=directory, prefix="trunk-", ignore_cleanup_errors=True)
        self.chunk, self.files = torch.empty(0), 0

    def keep(self, states: Float[Tensor, "T D"]) -> Float[Tensor, "T D"]:
        needed = states.numel()
        if self.chunk.numel() < needed or self.chunk.dtype != states.dtype:
            path = Path(self.home.name) / f"{self.files:05d}"
            size = max(needed, CHUNK_BYTES // states.element_size())
            self.chunk, self.files = torch.from_file(str(path), True, size, dtype=states.dtype), self.files + 1
        place, self.chunk = self.chunk[:needed].view(states.shape), self.chunk[needed:]
        return place.copy_(states)
