"""Checkpoints: one file, complete at every moment, from which a training run resumes bit for bit.

The tensors of `Loop.state` are safetensors; the rest is JSON in the header of the same file, so that the two always
match. A new checkpoint replaces the old one only once it is complete on disk.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from minillm.errors import InputError
from minillm.runtime.files import replacing
from minillm.training.loop import Loop

CHECKPOINT = "checkpoint.safetensors"


def save_checkpoint(directory: Path, loop: Loop, run: Mapping[str, Any]) -> None:
    """Write the state of a loop and the description of its run, in JSON's types."""
    tensors, rest = loop.state()
    on_cpu = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(directory / CHECKPOINT) as temporary:
        save_file(on_cpu, temporary, metadata={"run": json.dumps(run), "loop": json.dumps(rest)})


def restore_checkpoint(directory: Path, loop: Loop, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """Restore the loop from the checkpoint and return the description of its run, or None without a checkpoint.

    Raises InputError for a damaged file, and for a run of other `settings`, naming the first that differs.
    """
    path = directory / CHECKPOINT
    for unfinished in directory.glob(f".{CHECKPOINT}.*"):  # left by a killed process
        unfinished.unlink(missing_ok=True)
    if not path.exists():
        return None
    tensors, run, rest = _read(path)
    found = run.get("settings", {})
    for name in settings:
        if found.get(name) != settings[name]:
            raise InputError(
                f"{directory} holds a run with {name} {found.get(name)!r}, and this one has {settings[name]!r}; "
                "give another directory, or start over (--fresh)"
            )
    try:
        loop.restore(tensors, rest)
    except (KeyError, TypeError, ValueError, RuntimeError) as problem:
        raise InputError(f"{path} does not fit this run: {' '.join(str(problem).split())[:200]}") from None
    return run


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Any]]:
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        return tensors, json.loads(metadata["run"]), json.loads(metadata["loop"])
    except (SafetensorError, OSError, KeyError, ValueError) as problem:
        raise InputError(f"{path} is not a readable checkpoint ({problem}); start over with --fresh") from None
