"""The tensors of a Hugging Face directory: model.safetensors, or shards with an index. Pickles are never opened."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minillm.errors import InputError
from minillm.runtime.reading import open_tensors, read_json, reading

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


class SafetensorsDirectory:
    """The tensors of a directory by name. `prefix` is prepended if no name has it (a model saved without its head).

    Raises InputError for missing or damaged files, and for an index that disagrees with the shards.
    """

    def __init__(self, directory: Path, prefix: str = "", head: str = ""):
        self.path = directory
        self._files: dict[str, Any] = {}
        self._open = ExitStack()
        for file, expected in _shards(directory).items():
            opened = self._open.enter_context(open_tensors(directory / file, "; download it again"))
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
        """A copy of the tensor, independent of the file."""
        stored = self._names[name]
        return self._files[stored].get_tensor(stored).clone(memory_format=torch.contiguous_format)


def _shards(directory: Path) -> dict[str, set[str] | None]:
    """The files with weights and, from the index, the names of their tensors."""
    if (directory / SINGLE).is_file():
        return {SINGLE: None}
    if not (directory / INDEX).is_file():
        raise InputError(f"{directory} has no {SINGLE}{_instead(directory)}")
    with reading(directory / INDEX, "JSON with a weight_map from tensors to files"):
        shards: dict[str, set[str] | None] = {}
        for tensor, file in read_json(directory / INDEX)["weight_map"].items():
            _check_plain(directory, file)
            names = shards.setdefault(file, set())
            assert names is not None
            names.add(tensor)
        return shards


def _check_plain(directory: Path, file: str) -> None:
    """Raises InputError for a shard outside the directory."""
    if any(sign in file for sign in "/\\:") or not file.endswith(".safetensors"):
        raise InputError(f"{directory / INDEX} names the shard {file!r}; a plain .safetensors file name is needed")


def _instead(directory: Path) -> str:
    """What to do, by the files that the directory has instead of safetensors."""
    if any(directory.glob("pytorch_model*.bin")):
        return (
            ", only pytorch_model.bin, a pickle, which is never opened because it can run any code: convert it with "
            "from_pretrained and save_pretrained of transformers"
        )
    if files := sorted(directory.glob("*.gguf")):
        return f"; to load {files[0].name}, give the path of that file"
    return f" and no {INDEX}"
