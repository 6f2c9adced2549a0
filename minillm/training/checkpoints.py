"""Checkpoints: one file, complete at every moment, from which a training run resumes bit for bit.

The tensors of `Loop.state` are safetensors; the rest is JSON in the header of the same file, so that the two always
match. A new checkpoint replaces the old one only once it is complete on disk.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from minillm.errors import InputError
from minillm.runtime.files import commit, complete, open_tensors, reading
from minillm.runtime.fingerprint import tensor_fingerprint
from minillm.training.loop import Loop

CHECKPOINT = "checkpoint.safetensors"
FRESH = "; start over with --fresh"


def save_checkpoint(directory: Path, loop: Loop, run: Mapping[str, Any]) -> None:
    """Write the state of a loop and the description of its run, in JSON's types."""
    tensors, rest = loop.state()
    described = {"run": json.dumps(run), "loop": json.dumps(rest)}
    with commit(directory) as new:
        new.tensors(CHECKPOINT, tensors, described | {"sha256": _seal(tensors, described)})


def restore_checkpoint(directory: Path, loop: Loop, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """Restore the loop from the checkpoint and return the description of its run, or None without a checkpoint.

    Raises InputError for a damaged file, and for a run of other `settings`, naming the first that differs.
    """
    path = directory / CHECKPOINT
    complete(directory)
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
    with reading(path, "a checkpoint of this run", FRESH):
        loop.restore(tensors, rest)
    return run


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Any]]:
    with open_tensors(path, FRESH) as file:
        described = file.metadata() or {}
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        # Older checkpoints have no sha256.
        seal = described.pop("sha256", None) if len(described) > 2 else _seal(tensors, described)
        if seal != _seal(tensors, described):
            raise InputError(f"{path} is damaged: its sha256 differs{FRESH}")
        return tensors, json.loads(described["run"]), json.loads(described["loop"])


def _seal(tensors: Mapping[str, Tensor], described: Mapping[str, str]) -> str:
    """The sha256 of a checkpoint's content."""
    fingerprints = {name: tensor_fingerprint(tensor) for name, tensor in tensors.items()}
    return hashlib.sha256(json.dumps([fingerprints, described], sort_keys=True).encode()).hexdigest()
