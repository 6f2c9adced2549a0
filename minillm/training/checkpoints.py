"""Checkpoints: one file, complete at every moment, from which a training run resumes bit for bit.

The tensors of `Loop.state` are safetensors; the rest is JSON in the header of the same file, so that the two always
match. A new checkpoint replaces the old one only once it is complete on disk.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from minillm.errors import InputError, one_sentence
from minillm.runtime.distributed import first_before_others, is_first, numbers_of_first
from minillm.runtime.files import commit, complete
from minillm.runtime.fingerprint import json_fingerprint, tensor_fingerprint
from minillm.runtime.finite import check_finite
from minillm.runtime.progress import note
from minillm.runtime.reading import open_tensors, reading

CHECKPOINT, METRICS = "checkpoint.safetensors", "metrics.csv"
SECONDS = 300
"""The longest time between two checkpoints, if no number of steps is given."""
AGAIN = "; start over with --overwrite"


@dataclass
class Checkpoints:
    """Where `train` saves its state, and after how many steps: by default after every epoch and every five minutes.

    `settings` describe the run in JSON's types; a directory with the checkpoint of other settings is refused.
    """

    directory: Path
    settings: Mapping[str, Any] = field(default_factory=dict)
    every: int | None = None
    saved: float = field(default_factory=time.monotonic, init=False)

    def restore(self, loop: Any) -> None:
        restore_checkpoint(self.directory, loop, self.settings)

    def save(self, loop: Any, state: bool = True) -> None:
        """Write metrics.csv, and with `state` the checkpoint. Of several processes, the first writes."""
        found = loop.state() if state else None  # whose parts all processes have
        if not is_first():
            return
        try:
            with commit(self.directory) as new:
                new.text(METRICS, loop.metrics())
                if found is not None:
                    save_checkpoint(self.directory, found, {"settings": self.settings})
        except OSError as problem:  # the training continues, and its result is saved at the end
            note(f"no checkpoint: {one_sentence(problem)}")
        self.saved = time.monotonic()

    def due(self, steps: int, epoch_ends: bool) -> bool:
        """Whether to save after this number of steps."""
        if self.every is not None:
            return steps % self.every == 0
        return epoch_ends or time.monotonic() > self.saved + SECONDS

    def remove(self) -> None:
        """Delete the checkpoint of a finished run, or of one to be overwritten, also after an interrupted commit."""
        complete(self.directory)
        for name in (CHECKPOINT, METRICS):
            (self.directory / name).unlink(missing_ok=True)


def check_settings(directory: Path, found: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Raises InputError, naming the first setting that differs; one that is off may be missing in an older run."""
    for name, value in json.loads(json.dumps(settings)).items():
        if found.get(name) != value and (value or name in found):
            raise InputError(
                f"{directory} holds a run with {name} {found.get(name)!r}, and this one has {value!r}; "
                f"give another --out, or{AGAIN[1:]}"
            )


def save_checkpoint(directory: Path, state: tuple[dict[str, Tensor], dict], run: Mapping[str, Any]) -> None:
    """Write the `state` of a loop and the description of its run, in JSON's types."""
    tensors, rest = state
    described = {"run": json.dumps(run), "loop": json.dumps(rest)}
    with commit(directory) as new:
        new.tensors(CHECKPOINT, tensors, described | {"sha256": _seal(tensors, described)})


def restore_checkpoint(directory: Path, loop: Any, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """Restore the loop from the checkpoint and return the description of its run, or None without a checkpoint.

    Raises InputError for a damaged file, and for a run of other `settings`, naming the first that differs.
    """
    path = directory / CHECKPOINT
    with first_before_others():
        complete(directory)
    if numbers_of_first(float(found := path.exists())) != (found,):
        raise InputError(f"{directory} differs among the machines of the job; give an --out that all of them share")
    if not found:
        return None
    tensors, run, rest = _read(path)
    check_finite(tensors, str(path))
    with reading(directory, "a checkpoint of this run", AGAIN):
        check_settings(directory, run.get("settings", {}), settings)
        loop.restore(tensors, rest)
    return run


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Any]]:
    with open_tensors(path, AGAIN) as file:
        described = file.metadata() or {}
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        # Older checkpoints have no sha256.
        seal = described.pop("sha256", None) if len(described) > 2 else _seal(tensors, described)
        if seal != _seal(tensors, described):
            raise InputError(f"{path} is damaged: its sha256 differs{AGAIN}")
        return tensors, json.loads(described["run"]), json.loads(described["loop"])


def _seal(tensors: Mapping[str, Tensor], described: Mapping[str, str]) -> str:
    """The sha256 of a checkpoint's content."""
    fingerprints = {name: tensor_fingerprint(tensor) for name, tensor in tensors.items()}
    return json_fingerprint([fingerprints, described])
