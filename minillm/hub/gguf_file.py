"""The GGUF container: metadata, a list of tensors, their data (ggml's docs/gguf.md).

This parser replaces `gguf.GGUFReader`, which does not check lengths (a damaged file can keep it busy for ever) and
needs two seconds for a vocabulary of 49,152 tokens. The `gguf` package dequantises; `hub/gguf.py` interprets the names.
"""

import struct
from dataclasses import dataclass
from itertools import pairwise
from math import gcd, prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minillm.errors import InputError
from minillm.quantised import GROUP, Quantised
from minillm.runtime.reading import check_regular, reading

NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRUCTS = {code: struct.Struct("<" + code) for code in NUMBERS.values()}
STRING, ARRAY = 8, 9
BITS = {3: 4, 8: 8}
"""The types of tensors that can be kept as they are stored, Q4_1 and Q8_0."""
MOST_HEADER, MOST_ENTRIES = 32 * 2**20, 2**16
"""Bytes of the metadata and the list of tensors, which need up to 20 times that as objects of Python; their entries."""


@dataclass(frozen=True)
class StoredTensor:
    """The bytes of a tensor in the file, from `start` on; its shape has the slowest axis first."""

    shape: tuple[int, ...]
    kind: int
    start: int
    size: int


class _Cursor:
    """Parses the header. Raises InputError instead of reading past the end of the file."""

    def __init__(self, data: memoryview, path: Path):
        self.data, self.path, self.place = data, path, 0

    def take(self, size: int) -> memoryview:
        if self.place + size > MOST_HEADER < len(self.data):
            raise InputError(f"{self.path} is damaged: its header must have at most {MOST_HEADER} bytes")
        if size > len(self.data) - self.place:
            raise InputError(
                f"{self.path} is truncated or damaged: its header needs {size} bytes from byte {self.place} on, "
                f"the file has {len(self.data)}; download it again"
            )
        self.place += size
        return self.data[self.place - size : self.place]

    def number(self, code: str) -> Any:
        return STRUCTS[code].unpack(self.take(STRUCTS[code].size))[0]

    def text(self) -> str:
        return str(self.take(self.number("Q")), "utf-8")

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.text()
        if kind in NUMBERS:
            return self.number(NUMBERS[kind])
        if kind == ARRAY:
            return self.array(self.number("I"), self.number("Q"))
        raise InputError(f"{self.path} is damaged or too new: unknown metadata type {kind} before byte {self.place}")

    def array(self, kind: int, count: int) -> list[Any]:
        if kind == STRING:
            return [self.text() for _ in range(count)]
        if kind in NUMBERS:
            dtype = np.dtype("<" + NUMBERS[kind])
            return np.frombuffer(self.take(count * dtype.itemsize), dtype).tolist()
        raise InputError(f"{self.path} has a metadata array of type {kind}; only numbers and strings are allowed")


class GGUFFile:
    """An open GGUF file: `metadata` by key, `tensors` by name, `read`, which dequantises one, and
    `read_quantised`.

    Raises InputError for another kind of file, and for one that is truncated or damaged. Every size in the header is
    compared with the size of the file before memory is allocated.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.metadata: dict[str, Any] = {}
        with reading(self.path, "GGUF"):
            check_regular(self.path)
            self._data = np.memmap(self.path, dtype=np.uint8, mode="r")
            cursor = _Cursor(self._data.data, self.path)
            tensors, entries = _counts(cursor)
            for _ in range(entries):
                key = cursor.text()
                if key in self.metadata:
                    raise InputError(f"{self.path} is damaged: duplicate metadata {key!r}")
                self.metadata[key] = cursor.value(cursor.number("I"))
            self.tensors = _tensors(cursor, tensors, self.metadata.get("general.alignment", 32))
        self.shapes = {name: tensor.shape for name, tensor in self.tensors.items()}

    def read(self, name: str) -> Tensor:
        """The tensor in float32, copied out of the file."""
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
        from gguf.quants import dequantize

        tensor = self.tensors[name]
        if (stored := self.read_quantised(name, BITS.get(tensor.kind, 0))) is not None:
            return stored.dense()  # in half the time of the package
        kind = GGMLQuantizationType(tensor.kind)
        # The package dequantises 16 rows at a time: rows of 64 blocks are twice as fast as the short rows of a matrix.
        block = GGML_QUANT_SIZES[kind][1]
        rows = self._data[tensor.start : tensor.start + tensor.size]
        rows = rows.reshape(-1, block * gcd(64, tensor.size // block))
        try:
            # The scales of a file may be infinite in half precision.
            with np.errstate(all="ignore"):
                numbers = dequantize(np.asarray(rows), kind)
        except NotImplementedError:
            raise InputError(f"{self.path}: {name} has the type {kind.name}, which gguf cannot dequantise") from None
        shares = np.may_share_memory(numbers, self._data)
        return torch.from_numpy((numbers.copy() if shares else numbers).reshape(tensor.shape))

    def read_quantised(self, name: str, bits: int) -> Quantised | None:
        """The matrix as it is stored, if that is in blocks of so many bits with finite scales."""
        tensor, start = self.tensors[name], 4 if bits == 4 else 2
        if BITS.get(tensor.kind) != bits or len(tensor.shape) != 2:
            return None
        numbers = np.fromfile(self.path, np.uint8, tensor.size, offset=tensor.start)
        blocks = numbers.reshape(tensor.shape[0], tensor.shape[1] // GROUP, -1)
        codes = torch.from_numpy(blocks[..., start:].reshape(tensor.shape[0], -1))
        halves = [torch.from_numpy(blocks[..., at : at + 2].copy().view("<f2")[..., 0]) for at in range(0, start, 2)]
        if not all(half.isfinite().all() for half in halves):
            return None
        return Quantised(codes, *halves) if bits == 4 else Quantised(codes.view(torch.int8), halves[0], None)


def _counts(cursor: _Cursor) -> tuple[int, int]:
    """The numbers of tensors and of metadata entries."""
    magic = bytes(cursor.take(min(4, len(cursor.data))))
    if magic != b"GGUF":
        raise InputError(f"{cursor.path} is not a GGUF file: it begins with {str(magic)[1:]}")
    version = cursor.number("I")
    if version not in (2, 3):
        swapped = " (big-endian)" if version & 0xFFFF == 0 else ""
        raise InputError(f"{cursor.path} must be GGUF version 2 or 3, got version {version}{swapped}")
    counts = cursor.number("Q"), cursor.number("Q")
    if max(counts) > MOST_ENTRIES:
        raise InputError(f"{cursor.path} must have at most {MOST_ENTRIES} tensors and metadata, got {counts}")
    return counts


def _tensors(cursor: _Cursor, count: int, alignment: Any) -> dict[str, StoredTensor]:
    described: dict[str, tuple[tuple[int, ...], int, int]] = {}
    for _ in range(count):
        name = cursor.text()
        if name in described:
            raise InputError(f"{cursor.path} is damaged: duplicate tensor {name!r}")
        axes = cursor.number("I")
        if not 1 <= axes <= 4:
            raise InputError(f"{cursor.path} is damaged: {name} must have 1 to 4 axes, got {axes}")
        sizes = [cursor.number("Q") for _ in range(axes)]
        described[name] = tuple(reversed(sizes)), cursor.number("I"), cursor.number("Q")
    if not isinstance(alignment, int) or alignment < 1:
        raise InputError(f"{cursor.path} is damaged: the alignment must be a positive integer, got {alignment!r}")
    start = -(-cursor.place // alignment) * alignment
    tensors = {
        name: StoredTensor(shape, kind, start + offset, _bytes(cursor.path, name, shape, kind))
        for name, (shape, kind, offset) in described.items()
    }
    length = len(cursor.data)
    for name, tensor in tensors.items():
        if tensor.start + tensor.size > length:
            raise InputError(
                f"{cursor.path} is truncated or damaged: {name} ends at byte {tensor.start + tensor.size}, "
                f"the file has {length}; download it again"
            )
    for one, other in pairwise(sorted(tensors.values(), key=lambda tensor: tensor.start)):
        if one.start + one.size > other.start:
            raise InputError(f"{cursor.path} is damaged: its tensors overlap")
    return tensors


def _bytes(path: Path, name: str, shape: tuple[int, ...], kind: int) -> int:
    """The number of bytes of a tensor: whole blocks along its fastest axis."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        numbers, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    except (ValueError, KeyError):
        raise InputError(f"{path}: {name} has type {kind}, which is unknown to this gguf package") from None
    if prod(shape) == 0 or shape[-1] % numbers:
        raise InputError(f"{path}: the rows of {name} must be multiples of its block size {numbers}, got {shape}")
    return prod(shape) // numbers * size
