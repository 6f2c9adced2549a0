"""What a kind of file calls the parts of a decoder, and the one strict way in.

A layout is a table of modules, theirs to ours. A decoder is assembled from any source that knows the shapes of its
tensors and reads one by name; a tensor that is missing, unknown or of another shape is an error that names it.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from einops import rearrange
from torch import Tensor
from torch.overrides import TorchFunctionMode

from minillm.config import DecoderConfig
from minillm.decoder import Decoder
from minillm.errors import InputError

Shape = tuple[int, ...]


@runtime_checkable
class Source(Protocol):
    """A file, or several, with named tensors."""

    path: Path

    shapes: dict[str, Shape]

    def read(self, name: str) -> Tensor: ...


@dataclass(frozen=True)
class Entry:
    """One stored tensor: our parameters below one another, perhaps transposed, perhaps with a head's rows interleaved.

    `interleaved` is the number of heads whose rows pair neighbours (i, i + 1) where ours pair halves (i, i + K/2).
    """

    name: str
    parts: tuple[str, ...]
    transposed: bool = False
    interleaved: int = 0

    def shape(self, ours: Mapping[str, Shape]) -> Shape:
        shape = (sum(ours[part][0] for part in self.parts), *ours[self.parts[0]][1:])
        return shape[::-1] if self.transposed else shape

    def split(self, stored: Tensor, ours: Mapping[str, Shape]) -> dict[str, Tensor]:
        """Our parameters out of the stored tensor."""
        stored = stored.T if self.transposed else stored
        if self.interleaved:
            stored = rearrange(stored, "(H K two) ... -> (H two K) ...", H=self.interleaved, two=2)
        pieces = stored.split([ours[part][0] for part in self.parts])
        # A row of pieces must not keep the whole alive, nor a transposed one be slow to read.
        return {part: piece.clone(memory_format=torch.contiguous_format) if len(pieces) > 1 else piece.contiguous()
                for part, piece in zip(self.parts, pieces, strict=True)}  # fmt: skip

    def join(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """The stored tensor out of our parameters."""
        pieces = [parameters[part] for part in self.parts]
        joined = torch.cat(pieces) if len(pieces) > 1 else pieces[0]
        if self.interleaved:
            joined = rearrange(joined, "(H two K) ... -> (H K two) ...", H=self.interleaved, two=2)
        return (joined.T if self.transposed else joined).contiguous()


@dataclass(frozen=True)
class Layout:
    """Modules by name, theirs to ours: `outer` once, `inner` in every block under `block.format(index)`.

    `transposed` lists those whose matrices are stored input by output, `interleaved` those whose rows are, with
    the DecoderConfig field that counts their heads; `ignored` matches what carries no weights. `prefix` is
    what every name but the head's begins with, where a whole file may leave it out.
    """

    head: str
    block: str
    outer: Mapping[str, str]
    inner: Mapping[str, str | tuple[str, ...]]
    transposed: frozenset[str] = frozenset()
    interleaved: Mapping[str, str] = field(default_factory=dict)
    ignored: re.Pattern[str] = re.compile(r"(?!)")
    prefix: str = ""

    def entries(self, decoder: Decoder) -> Iterator[Entry]:
        """Every tensor that a file with this decoder's weights holds."""
        config, ours = decoder.config, decoder.state_dict()
        modules: list[tuple[str, str, tuple[str, ...]]] = [
            (theirs, theirs, (mine,)) for theirs, mine in self.outer.items()
        ]
        if not config.tie_embeddings:
            modules.append((self.head, self.head, ("head",)))
        for index in range(config.layers):
            for theirs, mine in self.inner.items():
                names = (mine,) if isinstance(mine, str) else mine
                modules.append((theirs, self.block.format(index) + theirs, tuple(f"blocks.{index}.{n}" for n in names)))
        for module, full, names in modules:
            heads = getattr(config, self.interleaved[module]) if module in self.interleaved else 0
            for kind in ("weight", "bias"):
                parts = tuple(f"{name}.{kind}" for name in names)
                if parts[0] in ours:
                    yield Entry(f"{full}.{kind}", parts, kind == "weight" and module in self.transposed, heads)


class _Unfilled(TorchFunctionMode):
    """Leaves the random fills out: torch spends a second on imports to fill a tensor that has no numbers."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return args[0] if func is Tensor.normal_ else func(*args, **(kwargs or {}))


def assemble(config: DecoderConfig, layout: Layout, source: Source, dtype: torch.dtype | None) -> Decoder:
    """A decoder, in evaluation mode, with the source's weights; nothing is initialised and nothing copied twice.

    Without a dtype every weight keeps the one that it is stored in.
    """
    if config.layers > len(source.shapes):
        raise InputError(f"{source.path} speaks of {config.layers} layers and holds {len(source.shapes)} tensors")
    with torch.device("meta"), _Unfilled():
        decoder = Decoder(config)
    ours = {name: tuple(tensor.shape) for name, tensor in decoder.state_dict().items()}
    entries = {entry.name: entry for entry in layout.entries(decoder)}
    _check(entries, ours, layout, source, config)
    state: dict[str, Tensor] = {}
    for entry in entries.values():
        state |= entry.split(_floating(source, entry.name).to(dtype=dtype), ours)
    if config.tie_embeddings:
        _check_tied(
            f"{layout.head}.weight", next(e.name for e in entries.values() if e.parts == ("embed.weight",)), source
        )
        state["head.weight"] = state["embed.weight"]
    decoder.load_state_dict(state, strict=True, assign=True)
    if config.tie_embeddings:
        decoder.head.weight = decoder.embed.weight
    return decoder.eval()


def _check(
    entries: Mapping[str, Entry], ours: Mapping[str, Shape], layout: Layout, source: Source, config: DecoderConfig
) -> None:
    shapes = source.shapes
    missing = [name for name in entries if name not in shapes]
    if missing:
        raise InputError(f"{source.path} lacks the tensor {_listed(missing)}")
    allowed = {*entries, f"{layout.head}.weight"} if config.tie_embeddings else set(entries)
    extra = [name for name in shapes if name not in allowed and not layout.ignored.fullmatch(name)]
    if extra:
        raise InputError(f"{source.path} has a tensor that its configuration has no place for: {_listed(extra)}")
    for name, entry in entries.items():
        if shapes[name] != entry.shape(ours):
            raise InputError(
                f"{source.path}: {name} is {shapes[name]}, and its configuration wants {entry.shape(ours)}"
            )


def _check_tied(head: str, embeddings: str, source: Source) -> None:
    """A tied head need not be stored; where it is, it must be the embeddings."""
    if head in source.shapes and (
        source.shapes[head] != source.shapes[embeddings] or not source.read(head).equal(source.read(embeddings))
    ):
        raise InputError(f"{source.path} says that the head is tied, but {head} differs from {embeddings}")


def _floating(source: Source, name: str) -> Tensor:
    tensor = source.read(name)
    if not tensor.is_floating_point():
        raise InputError(f"{source.path}: {name} is stored as {tensor.dtype}; weights are read as floating point")
    return tensor


def _listed(names: list[str]) -> str:
    return names[0] + (f" (and {len(names) - 1} more)" if len(names) > 1 else "")
