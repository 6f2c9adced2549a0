"""Tensor names of a file format, and strict loading of a decoder from it.

A layout maps the module names of a format to those of minillm. `assemble` builds a decoder from any source of named
tensors; a missing, unexpected or misshapen tensor is an error that names it.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from minillm.config import DecoderConfig
from minillm.decoder import Decoder
from minillm.errors import InputError
from minillm.hub.gguf_file import GGUFFile
from minillm.quantised import Quantised, in_bits
from minillm.runtime.finite import check_finite

Shape = tuple[int, ...]
NONFINITE = "download it again; `minillm generate --allow-nonfinite` or minillm.load(allow_nonfinite=True) load it"


@runtime_checkable
class Source(Protocol):
    """One or more files with named tensors."""

    path: Path
    shapes: dict[str, Shape]

    def read(self, name: str) -> Tensor: ...


@dataclass(frozen=True)
class Entry:
    """One stored tensor: one or more of our parameters, concatenated along the rows.

    `transposed` means stored as (in, out). `interleaved` is the number of heads whose rotation pairs rows (2i, 2i + 1)
    of the stored matrix and rows (i, i + K/2) of ours; 0 if the order is the same.
    """

    name: str
    parts: tuple[str, ...]
    transposed: bool = False
    interleaved: int = 0

    def shape(self, ours: Mapping[str, Shape]) -> Shape:
        shape = (sum(ours[part][0] for part in self.parts), *ours[self.parts[0]][1:])
        return shape[::-1] if self.transposed else shape

    def split(self, stored: Tensor, ours: Mapping[str, Shape]) -> dict[str, Tensor]:
        """Our parameters, from the stored tensor."""
        stored = stored.T if self.transposed else stored
        if self.interleaved:
            stored = rearrange(stored, "(H K two) ... -> (H two K) ...", H=self.interleaved, two=2)
        pieces = stored.split([ours[part][0] for part in self.parts])
        # A piece must not keep the whole tensor alive, and a transposed one must be contiguous.
        return {part: piece.clone(memory_format=torch.contiguous_format) if len(pieces) > 1 else piece.contiguous()
                for part, piece in zip(self.parts, pieces, strict=True)}  # fmt: skip

    def join(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """The stored tensor, from our parameters."""
        pieces = [parameters[part] for part in self.parts]
        joined = torch.cat(pieces) if len(pieces) > 1 else pieces[0]
        if self.interleaved:
            joined = rearrange(joined, "(H two K) ... -> (H K two) ...", H=self.interleaved, two=2)
        return (joined.T if self.transposed else joined).contiguous()


@dataclass(frozen=True)
class Layout:
    """Module names, theirs to ours: `outer` once, `inner` in every block under `block.format(index)`.

    `transposed` are the modules with matrices stored as (in, out). `interleaved` maps those with interleaved rows to
    the DecoderConfig field of their number of heads. `ignored` matches tensors that are not weights. `prefix` starts
    every name but the head's; a file may omit it throughout.
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
        """All tensors of a file with this decoder."""
        config, ours = decoder.config, decoder.state_dict()
        head = {} if config.tie_embeddings else {self.head: "head"}
        modules: list[tuple[str, str, tuple[str, ...]]] = []
        modules += [(theirs, theirs, (mine,)) for theirs, mine in {**self.outer, **head}.items()]
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
    """Skips random initialisation: torch imports for a second to initialise a tensor on the meta device."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return args[0] if func is Tensor.normal_ else func(*args, **(kwargs or {}))


def assemble(
    config: DecoderConfig, layout: Layout, source: Source, dtype: torch.dtype | None, allow_nonfinite: bool = False,
    quantise: int | None = None,
) -> Decoder:  # fmt: skip
    """A decoder, in evaluation mode, with the weights of the source, in their stored dtype if `dtype` is None.

    Raises InputError for NaN and infinite weights, unless `allow_nonfinite`.
    """
    if config.layers > len(source.shapes):
        raise InputError(f"{source.path} declares {config.layers} layers but has {len(source.shapes)} tensors")
    with torch.device("meta"), _Unfilled():
        decoder = Decoder(config)
    ours = {name: tuple(tensor.shape) for name, tensor in decoder.state_dict().items()}
    entries = {entry.name: entry for entry in layout.entries(decoder)}
    _check(entries, ours, layout, source, config)
    state: dict[str, Tensor] = {}
    for entry in entries.values():
        if quantise is not None and (parts := _as_stored(source, entry, quantise, ours)):
            state |= parts
            continue
        stored = source.read(entry.name)
        if not stored.is_floating_point():
            raise InputError(f"{source.path}: {entry.name} must have a floating-point dtype, got {stored.dtype}")
        cast = stored.to(dtype=dtype)
        if not allow_nonfinite:
            check_finite({entry.name: cast}, f"{source.path} in {cast.dtype}", NONFINITE)
        parts = entry.split(cast, ours)
        state |= parts if quantise is None else {name: in_bits(name, part, quantise) for name, part in parts.items()}
    if config.tie_embeddings:
        embeddings = next(name for name, entry in entries.items() if entry.parts == ("embed.weight",))
        _check_tied(f"{layout.head}.weight", embeddings, source)
        state["head.weight"] = state["embed.weight"]
    decoder.load_state_dict(state, strict=True, assign=True)
    if config.tie_embeddings:
        decoder.head.weight = decoder.embed.weight
    for parameter in decoder.parameters():
        parameter.requires_grad_(not isinstance(parameter, Quantised))
    return decoder.eval()


def _as_stored(source: Source, entry: Entry, bits: int, ours: Mapping[str, Shape]) -> dict[str, Tensor]:
    """The parts of an entry in the blocks of a GGUF file, if these have the bits that are wanted."""
    bits = bits if entry.parts[0].startswith("blocks.") else 8
    found = source.read_quantised(entry.name, bits) if isinstance(source, GGUFFile) and not entry.transposed else None
    if found is None:
        return {}
    split: Any = [{} if part is None else entry.split(part, ours) for part in found.parts]
    return {name: nn.Parameter(Quantised(*(each.get(name) for each in split)), False) for name in entry.parts}


def _check(
    entries: Mapping[str, Entry], ours: Mapping[str, Shape], layout: Layout, source: Source, config: DecoderConfig
) -> None:
    shapes = source.shapes
    missing = [name for name in entries if name not in shapes]
    if missing:
        raise InputError(f"{source.path} lacks the tensor {', '.join(missing)}"[:500])
    allowed = {*entries, f"{layout.head}.weight"} if config.tie_embeddings else set(entries)
    extra = [name for name in shapes if name not in allowed and not layout.ignored.fullmatch(name)]
    if extra:
        raise InputError(f"{source.path} has a tensor that its configuration does not use: {', '.join(extra)}"[:500])
    for name, entry in entries.items():
        if shapes[name] != entry.shape(ours):
            raise InputError(f"{source.path}: {name} must have the shape {entry.shape(ours)}, got {shapes[name]}")


def _check_tied(head: str, embeddings: str, source: Source) -> None:
    """A tied head may be stored, but must then equal the embeddings."""
    if head in source.shapes and (
        source.shapes[head] != source.shapes[embeddings] or not source.read(head).equal(source.read(embeddings))
    ):
        raise InputError(f"{source.path} declares a tied head, but {head} differs from {embeddings}")
