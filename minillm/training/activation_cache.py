"""Frozen layers run once: below the lowest trained stage, a row of tokens has the same hidden states in every epoch.

The hidden states that enter the lowest trained stage (a block, the last norm or the head) are cached the first time
that a row is processed; gradients go no further down than that in any case. So an epoch costs the trained blocks alone.
The losses are those of the plain method: bit for bit in the same batches (only padding, which no position attends to,
can differ), and to rounding in others.
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
from minillm.shapes import Float

CHUNK_BYTES = 1 << 26


def lowest_trained_stage(method: Method) -> int:
    """The lowest stage of `Decoder.run_blocks` that is trained: a block, L for the last norm, L + 1 for the head.

    0 if nothing below is frozen: an embedding or a prefix is trained.
    """
    return min((_stage(name, method.config.layers) for name, _ in _trained(method)), default=0)


def _trained(method: Method) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, parameter) for name, parameter in method.named_parameters() if parameter.requires_grad)


def _stage(name: str, layers: int) -> int:
    """The stage of a method's parameter; those outside of the blocks, the last norm and the head come before all."""
    path = name.split(".")
    if path[:2] == ["decoder", "blocks"]:
        return int(path[2])
    return {"decoder.norm": layers, "decoder.head": layers + 1}.get(".".join(path[:2]), 0)


def _obstacle(method: Method) -> str | None:
    """Why the hidden states of frozen layers cannot be cached, if they cannot."""
    lowest = next((name for name, _ in _trained(method) if _stage(name, method.config.layers) == 0), None)
    if lowest is not None:
        return f"{lowest} is trained, and nothing below it is frozen"
    if lowest_trained_stage(method) == 0:
        return "nothing is trained"
    with torch.no_grad():
        prefix = method.prefix()
    return None if prefix is None else "the trained layers attend to a prefix too"


class ActivationCache:
    """The hidden states of a method's rows of tokens, whose frozen layers run once for each row.

    With a `directory` the cache lies in memory-mapped files there (removed with it), for data too large for memory; it
    takes T x width numbers a row. Where nothing can be cached, a warning says why, and all layers run.
    """

    def __init__(self, method: Method, directory: Path | None = None):
        self.method, self.start, self.obstacle = method, lowest_trained_stage(method), _obstacle(method)
        self._rows: dict[tuple[int, ...], Tensor] = {}
        self._versions: list[object] | None = None
        self._files = None if directory is None else _MappedFiles(directory)
        if self.obstacle is not None:
            warnings.warn(f"activations are not cached: {self.obstacle}", stacklevel=2)

    def features(self, rows: Sequence[Sequence[int]]) -> Float[Tensor, "B T D"]:
        """`Decoder.features` of the rows, padded on the right, under the method, with gradients.

        Raises InputError with dropout in the frozen layers, and where these or the precision have changed since the
        first call.
        """
        body = self.method.decoder
        device = body.embed.weight.device
        if self.obstacle is not None:
            return body.features(pad_right(rows)[0].to(device), prefix=self.method.prefix())
        self._check()
        missing = [row for row in dict.fromkeys(map(tuple, rows)) if row not in self._rows]
        if missing:
            self._run_frozen_layers(missing)
        states = pad_sequence([self._rows[tuple(row)] for row in rows], batch_first=True)
        return body.run_blocks(states.to(device), start=self.start)

    @torch.no_grad()
    def _run_frozen_layers(self, rows: list[tuple[int, ...]]) -> None:
        body = self.method.decoder
        ids, last = pad_right(rows)
        hidden = body.run_blocks(body.embed(ids.to(body.embed.weight.device)), stop=self.start)
        for row, states, end in zip(rows, hidden, last.tolist(), strict=True):
            real = states[: end + 1]
            self._rows[row] = real.clone() if self._files is None else self._files.store(real)

    def _check(self) -> None:
        """All that the cache depends on is unchanged, by its place in memory and its count of writes."""
        body = self.method.decoder
        frozen = [module for block in body.blocks[: self.start] for module in block.modules()]
        dropping = [module for module in frozen if module.training and getattr(module, "dropout", 0) > 0]
        if dropping or (body.training and self.method.config.dropout > 0):
            raise InputError("frozen layers with dropout differ at random each time: set dropout to 0")
        tensors = [p for n, p in self.method.named_parameters() if _stage(n, len(body.blocks)) < self.start]
        if any(tensor.requires_grad for tensor in tensors):
            raise InputError("a frozen layer has become trainable: make a new ActivationCache")
        kind = body.embed.weight.device.type
        half = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        now = [half, *((tensor.data_ptr(), tensor.dtype, tensor._version) for tensor in tensors)]
        if self._versions is not None and now != self._versions:
            raise InputError("the frozen weights or the precision have changed: make a new ActivationCache")
        self._versions = now


class _MappedFiles:
    """Hidden states in files of `CHUNK_BYTES`, mapped into memory, in a directory of their own."""

    def __init__(self, directory: Path):
        directory.mkdir(parents=True, exist_ok=True)
        self.home = tempfile.TemporaryDirectory(dir=directory, prefix="activations-", ignore_cleanup_errors=True)
        self.chunk, self.files = torch.empty(0), 0

    def store(self, states: Float[Tensor, "T D"]) -> Float[Tensor, "T D"]:
        needed = states.numel()
        if self.chunk.numel() < needed or self.chunk.dtype != states.dtype:
            path = Path(self.home.name) / f"{self.files:05d}"
            size = max(needed, CHUNK_BYTES // states.element_size())
            self.chunk, self.files = torch.from_file(str(path), True, size, dtype=states.dtype), self.files + 1
        place, self.chunk = self.chunk[:needed].view(states.shape), self.chunk[needed:]
        return place.copy_(states)
