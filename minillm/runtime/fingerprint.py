"""Fingerprints of named tensors, a sha256 each: an adapter, or a stored feature, belongs to one set of weights.

Stored features belong to the present values. An adapter belongs to the values as they were loaded, before any cast: a
base in bfloat16 or float64, or on a GPU, takes its own adapter. The loaded values are fingerprinted once, from the file
of the weights or, for a decoder built in memory, from its first values; a tensor is then recognised, in any dtype, by a
checksum of its value in that dtype. A changed tensor is not recognised, and has a fingerprint of its own.
"""

import hashlib
import json
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minillm.errors import InputError
from minillm.runtime.files import write_text
from minillm.runtime.source import Source

CASTS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def tensor_fingerprint(tensor: Tensor) -> str:
    """sha256 of a tensor's dtype, shape and bytes, in hexadecimal."""
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    digest.update(_bytes(tensor))
    return digest.hexdigest()


def fingerprint(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, str]:
    """The fingerprint of every tensor by its name."""
    return {name: tensor_fingerprint(tensor) for name, tensor in tensors}


def base_fingerprint(tensors: Mapping[str, Tensor], source: Source) -> dict[str, str]:
    """The sha256 of each tensor's value as it was loaded, whatever dtype and device it has now.

    Equal numbers have equal fingerprints: a float64 that fits into float32 counts as one.
    """
    if source.read is not None and not source.fingerprints:
        _read_from_file(source)
    found = {}
    for name, tensor in tensors.items():
        checksum = _checksum(name, tensor)
        if checksum not in source.fingerprints:
            _record(name, tensor, source.fingerprints)
        found[name] = source.fingerprints[checksum]
    return found


def _record(name: str, tensor: Tensor, known: dict[str, str]) -> None:
    narrow = tensor.float()
    fits = tensor.dtype != torch.float64 or torch.equal(narrow.double(), tensor)
    value = tensor_fingerprint(narrow if fits else tensor)
    for dtype in CASTS:
        known.setdefault(_checksum(name, tensor.to(dtype)), value)


def _checksum(name: str, tensor: Tensor) -> str:
    """Distinguishes the states of a tensor: fast, and no proof against a deliberate collision."""
    return f"{name} {tensor.dtype} {zlib.crc32(_bytes(tensor)):08x}"


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


def _read_from_file(source: Source) -> None:
    """Record the values in the weights' file, or read the cache next to it, if that is of these very files.

    Without the file nothing is recorded, and in a directory that cannot be written to there is no cache.
    """
    try:
        stamp = None if source.path is None else _stamp(source.path)
        if source.path is not None:
            source.fingerprints |= _cached(_cache(source.path), stamp)
        if source.fingerprints or source.read is None:
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
    """Names, sizes and times of the files that hold a decoder."""
    files = sorted([*path.glob("*.safetensors"), path / "config.json"]) if path.is_dir() else [path]
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def _cached(cache: Path, stamp: list[list[Any]] | None) -> dict[str, str]:
    try:
        cached = json.loads(cache.read_text("utf-8"))
        found = cached["fingerprints"] if cached["files"] == stamp else {}
        return {str(checksum): str(value) for checksum, value in found.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
