"""Tensors of a Hugging Face directory: one model.safetensors, or shards with an index. Pickles are never opened."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minillm.errors import InputError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


class SafetensorsDirectory:
    """The tensors under a directory by name, with `prefix` put in front where the whole directory leaves it out.

    (A model saved without its head has no prefix.) Raises InputError where files are missing or damaged, or where
    the index and the shards disagree.
    """

    def __init__(self, directory: Path, prefix: str = "", head: str = ""):
        self.path = directory
        self._files: dict[str, Any] = {}
        for file, expected in _shards(directory).items():
            opened = _opened(directory / file)
            found = set(opened.keys())
            if expected is not None and found != expected:
                odd = sorted(found ^ expected)[0]
                raise InputError(f"{directory / INDEX} and {file} disagree: {odd} is only in one of them")
            self._files |= dict.fromkeys(found, opened)
        bare = not any(name.startswith(prefix) for name in self._files)
        self._names = {prefix + name if bare and name != head else name: name for name in self._files}
        self.shapes = {
            name: tuple(self._files[stored].get_slice(stored).get_shape()) for name, stored in self._names.items()
        }

    def read(self, name: str) -> Tensor:
        """The tensor, in memory of its own: the file may be replaced while the decoder lives."""
        stored = self._names[name]
        return self._files[stored].get_tensor(stored).clone(memory_format=torch.contiguous_format)


def _shards(directory: Path) -> dict[str, set[str] | None]:
    """The files with weights, and the tensors that each should hold, where an index says so."""
    if (directory / SINGLE).is_file():
        return {SINGLE: None}
    if not (directory / INDEX).is_file():
        raise InputError(f"{directory} has no {SINGLE}{_instead(directory)}")
    with suppress(ValueError, OSError, TypeError, KeyError, AttributeError):
        shards: dict[str, set[str] | None] = {}
        for tensor, file in json.loads((directory / INDEX).read_text("utf-8"))["weight_map"].items():
            _check_plain(directory, file)
            names = shards.setdefault(file, set())
            assert names is not None
            names.add(tensor)
        return shards
    raise InputError(f"{directory / INDEX} is damaged: it should be JSON with a weight_map, tensors to files")


def _check_plain(directory: Path, file: str) -> None:
    """A shard lies in the directory itself, wherever an index may point."""
    if any(sign in file for sign in "/\\:") or not file.endswith(".safetensors"):
        raise InputError(f"{directory / INDEX} names the shard {file!r}, which is no plain .safetensors file name")


def _opened(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(str(path), framework="pt")
    except (SafetensorError, OSError) as problem:
        raise InputError(
            f"{path} cannot be read as safetensors ({' '.join(str(problem).split())}); fetch it again"
        ) from None


def _instead(directory: Path) -> str:
    """What the directory has in place of safetensors, and the way from there."""
    if any(directory.glob("pytorch_model*.bin")):
        return (
            ", only pytorch_model.bin, a pickle, which could run anything and is never opened; in transformers, "
            "from_pretrained and save_pretrained write safetensors"
        )
    if files := sorted(directory.glob("*.gguf")):
        return f"; to load {files[0].name}, name that file"
    return f" and no {INDEX}"
