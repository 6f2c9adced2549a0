"""Fingerprints (sha256) of named tensors, which tie an adapter or stored features to one set of weights.

Stored features belong to the present values. An adapter belongs to the values as loaded, before any cast, so that a
base in bfloat16 or float64, or on a GPU, accepts its own adapter. The loaded values are fingerprinted once: from the
weight file or, for a decoder built in memory, from its first values. Afterwards a tensor is recognised, in any dtype,
by a checksum of its value in that dtype. A changed tensor is not recognised and gets a fingerprint of its own.
"""

import hashlib
import json
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minillm.errors import InputError
from minillm.runtime.files import write_text
from minillm.runtime.reading import read_json, reading

CASTS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(eq=False)
class Source:
    """A file or directory and how to load its weights as stored; both None for a decoder built in memory.

    `fingerprints` maps the checksum of a tensor, in any dtype, to the sha256 of its value as loaded.
    """

    path: Path | None = None
    read: Callable[[], Mapping[str, Tensor]] | None = None
    fingerprints: dict[str, str] = field(default_factory=dict)

    def __deepcopy__(self, memo: dict) -> "Source":
        return self  # it belongs to values, not to a module: copies over the same weights share it


def json_fingerprint(value: Any) -> str:
    """sha256 of a value in JSON's types, in hexadecimal."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def tensor_bytes(tensor: Tensor) -> np.ndarray:
    """The bytes of a tensor in row-major order."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()


def tensor_fingerprint(tensor: Tensor) -> str:
    """sha256 of a tensor's dtype, shape and bytes, in hexadecimal."""
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    digest.update(tensor_bytes(tensor).data)
    return digest.hexdigest()


def base_fingerprint(tensors: Mapping[str, Tensor], source: Source) -> dict[str, str]:
    """The sha256 of each tensor's value as loaded, independent of its present dtype and device.

    Equal numbers have equal fingerprints: a float64 tensor that float32 represents exactly counts as float32.
    """
    _read_from_file(source)
    found = {}
    for name, tensor in tensors.items():
        checksum = _checksum(name, tensor)
        if checksum not in source.fingerprints:
            _record(name, tensor, source.fingerprints)
        found[name] = source.fingerprints[checksum]
    return found


def _record(name: str, tensor: Tensor, known: dict[str, str]) -> None:
    tensor = tensor.cpu()  # not every device has float64
    narrow = tensor.float()
    exact = tensor.dtype != torch.float64 or torch.equal(narrow.double(), tensor)
    value = tensor_fingerprint(narrow if exact else tensor)
    for dtype in CASTS:
        known.setdefault(_checksum(name, tensor.to(dtype)), value)


def _checksum(name: str, tensor: Tensor) -> str:
    """Fast, and not collision-resistant: it only distinguishes the states of one tensor."""
    return f"{name} {tensor.dtype} {zlib.crc32(tensor_bytes(tensor).data):08x}"


def _read_from_file(source: Source) -> None:
    """Record the values of the weight file, by the cache next to it if that was made from the same file.

    A missing weight file is ignored, and so is a directory without write permission, which gets no cache.
    """
    if source.read is None or source.fingerprints:
        return
    try:
        stamp = None if source.path is None else _stamp(source.path)
        if source.path is not None:
            source.fingerprints |= _cached(_cache(source.path), stamp)
        if source.fingerprints:
            return
        for name, tensor in source.read().items():
            _record(name, tensor, source.fingerprints)
        if source.path is not None:
            write_text(_cache(source.path), json.dumps({"files": stamp, "fingerprints": source.fingerprints}))
    except (OSError, InputError):
        return


def _cache(path: Path) -> Path:
    return path / ".fingerprints.json" if path.is_dir() else path.with_name(f".{path.name}.fingerprints.json")


def _stamp(path: Path) -> list[list[Any]]:
    """Names, sizes and modification times of the files of a decoder."""
    files = sorted([*path.glob("*.safetensors"), path / "config.json"]) if path.is_dir() else [path]
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def _cached(cache: Path, stamp: list[list[Any]] | None) -> dict[str, str]:
    try:
        with reading(cache):
            cached = read_json(cache)
            found = cached["fingerprints"] if cached["files"] == stamp else {}
            return {str(checksum): str(value) for checksum, value in found.items()}
    except InputError:
        return {}
