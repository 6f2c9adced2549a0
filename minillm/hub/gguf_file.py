"""GGUF, the container: metadata, then a list of tensors, then their numbers (ggml's docs/gguf.md).

The header is read here and not by `gguf.GGUFReader`, which believes every length that it finds (a damaged file can
keep it busy for ever) and takes two seconds over a vocabulary of 49,152 tokens. What the numbers of a quantised
tensor mean is the `gguf` package's business. What the names mean is in `hub/gguf.py`.
"""

import struct
from dataclasses import dataclass
from math import gcd, prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minillm.errors import InputError

NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9


@dataclass(frozen=True)
class StoredTensor:
    """One tensor's place in the file: bytes from `start` on; the shape is ours, slowest axis first."""

    shape: tuple[int, ...]
    kind: int
    start: int
    size: int


class _Cursor:
    """Walks over the header; what it returns lies inside the file, or it raises."""

    def __init__(self, data: memoryview, path: Path):
        self.data, self.path, self.place = data, path, 0

    def take(self, size: int) -> memoryview:
        if size > len(self.data) - self.place:
            raise InputError(
                f"{self.path} is truncated or damaged: its header wants {size} bytes at byte {self.place}, "
                f"and the file has {len(self.data)}; fetch it again"
            )
        self.place += size
        return self.data[self.place - size : self.place]

    def number(self, code: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def text(self) -> str:
        try:
            return str(self.take(self.number("Q")), "utf-8")
        except UnicodeDecodeError:
            raise InputError(f"{self.path} is damaged: the text before byte {self.place} is not UTF-8") from None

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.text()
        if kind in NUMBERS:
            return self.number(NUMBERS[kind])
        if kind == ARRAY:
            return self.array(self.number("I"), self.number("Q"))
        raise InputError(f"{self.path} is damaged or too new: it has metadata of type {kind} before byte {self.place}")

    def array(self, kind: int, count: int) -> list[Any]:
        if kind == STRING:
            return [self.text() for _ in range(count)]
        if kind in NUMBERS:
            dtype = np.dtype("<" + NUMBERS[kind])
            return np.frombuffer(self.take(count * dtype.itemsize), dtype).tolist()
        raise InputError(f"{self.path} has an array of metadata of type {kind}; lists of numbers and texts are read")


class GGUFFile:
    """An open GGUF file: `metadata` by key, `tensors` by name, and `read`, which dequantises one.

    Raises InputError for a file of another kind, a truncated or a damaged one. Nothing larger than the header is
    taken into memory before every size in it has been compared with the file's.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._data = _mapped(self.path)
        cursor = _Cursor(self._data.data, self.path)
        tensors, entries = _counts(cursor)
        self.metadata: dict[str, Any] = {}
        for _ in range(entries):
            key = cursor.text()
            if key in self.metadata:
                raise InputError(f"{self.path} is damaged: it has the metadata {key!r} twice")
            self.metadata[key] = cursor.value(cursor.number("I"))
        self.tensors = _tensors(cursor, tensors, self.metadata.get("general.alignment", 32))
        self.shapes = {name: tensor.shape for name, tensor in self.tensors.items()}

    def read(self, name: str) -> Tensor:
        """The tensor in float32, in memory of its own."""
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
        from gguf.quants import dequantize

        tensor = self.tensors[name]
        kind = GGMLQuantizationType(tensor.kind)
        # The package works on 16 rows at a time; rows of 64 blocks are twice as fast as a matrix's own short ones.
        block = GGML_QUANT_SIZES[kind][1]
        rows = self._data[tensor.start : tensor.start + tensor.size]
        rows = rows.reshape(-1, block * gcd(64, tensor.size // block))
        try:
            # A random half-precision scale may be infinite: the numbers are the file's, right or wrong.
            with np.errstate(all="ignore"):
                numbers = dequantize(np.asarray(rows), kind)
        except NotImplementedError:
            raise InputError(f"{self.path}: {name} is stored as {kind.name}, which gguf does not dequantise") from None
        shares = np.may_share_memory(numbers, self._data)
        return torch.from_numpy((numbers.copy() if shares else numbers).reshape(tensor.shape))


def _mapped(path: Path) -> np.ndarray:
    """The file's bytes, paged in as they are read."""
    try:
        if path.stat().st_size == 0:
            raise InputError(f"{path} is empty: a GGUF file begins with the letters GGUF")
        return np.memmap(path, dtype=np.uint8, mode="r")
    except OSError as problem:
        raise InputError(f"{path} cannot be read: {problem.strerror or problem}") from None


def _counts(cursor: _Cursor) -> tuple[int, int]:
    """How many tensors and metadata entries follow."""
    magic = bytes(cursor.take(min(4, len(cursor.data))))
    if magic != b"GGUF":
        raise InputError(f"{cursor.path} is no GGUF file: it begins with {magic!r}, and one begins with b'GGUF'")
    version = cursor.number("I")
    if version not in (2, 3):
        swapped = " (it is for big-endian machines)" if version & 0xFFFF == 0 else ""
        raise InputError(f"{cursor.path} is GGUF version {version}{swapped}; versions 2 and 3 are read")
    return cursor.number("Q"), cursor.number("Q")


def _tensors(cursor: _Cursor, count: int, alignment: Any) -> dict[str, StoredTensor]:
    described: dict[str, tuple[tuple[int, ...], int, int]] = {}
    for _ in range(count):
        name = cursor.text()
        if name in described:
            raise InputError(f"{cursor.path} is damaged: it has the tensor {name!r} twice")
        axes = cursor.number("I")
        if not 1 <= axes <= 4:
            raise InputError(f"{cursor.path} is damaged: {name} has {axes} axes, and a tensor has 1 to 4")
        sizes = [cursor.number("Q") for _ in range(axes)]
        described[name] = tuple(reversed(sizes)), cursor.number("I"), cursor.number("Q")
    if not isinstance(alignment, int) or alignment < 1:
        raise InputError(f"{cursor.path} is damaged: its alignment is {alignment!r}")
    start = -(-cursor.place // alignment) * alignment
    tensors = {
        name: StoredTensor(shape, kind, start + offset, _bytes(cursor.path, name, shape, kind))
        for name, (shape, kind, offset) in described.items()
    }
    _check_inside(cursor, tensors, start)
    return tensors


def _bytes(path: Path, name: str, shape: tuple[int, ...], kind: int) -> int:
    """How many bytes a tensor takes: whole blocks, along its fastest axis."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        numbers, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    except (ValueError, KeyError):
        raise InputError(f"{path}: {name} is of type {kind}, which this gguf package does not know") from None
    if prod(shape) == 0 or shape[-1] % numbers:
        raise InputError(f"{path}: {name} is {shape}, and its type stores whole blocks of {numbers} numbers")
    return prod(shape) // numbers * size


def _check_inside(cursor: _Cursor, tensors: dict[str, StoredTensor], start: int) -> None:
    length = len(cursor.data)
    for name, tensor in tensors.items():
        if tensor.start + tensor.size > length:
            raise InputError(
                f"{cursor.path} is truncated or damaged: {name} ends at byte {tensor.start + tensor.size}, "
                f"and the file has {length}; fetch it again"
            )
    # Tensors that lie over one another would grow beyond the file once they are in memory.
    if sum(tensor.size for tensor in tensors.values()) > max(0, length - start):
        raise InputError(f"{cursor.path} is damaged: its tensors lie over one another")
