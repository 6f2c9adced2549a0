"""The base that needs no download: `tiny`, trained here, once, on word problems, and saved in the cache.

It was trained on problems of two to four steps in six surface forms. The task `word_problems` has problems of one step
in two other forms, so that there is something left to adapt it to.
"""

import hashlib
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

from minillm import hub
from minillm.data.word_problems import LARGEST, PARTS
from minillm.hub.pull import cache_directory
from minillm.lab.pretrain import Pretrain, pretrain
from minillm.training.pretraining import PretrainingRecipe

TINY = "tiny"
SETTINGS = Pretrain(task="word_problems", device="cpu")


def tiny_base() -> Path:
    """The directory of the base `tiny`, trained now (some minutes; it can be interrupted) if it is not there."""
    # Another recipe, or other problems, are another base.
    recipe = asdict(PretrainingRecipe.from_preset(SETTINGS.preset, SETTINGS.steps))
    described = json.dumps([SETTINGS.described(), recipe, PARTS, LARGEST])
    path = cache_directory() / f"{TINY}-{hashlib.sha256(described.encode()).hexdigest()[:12]}"
    if not (path / "config.json").exists():
        print(f"training the base {TINY} on word problems, this once: to {path}", file=sys.stderr)
        pretrain(replace(SETTINGS, out=path))
    return path


def base_path(name: str) -> Path:
    """The directory or file of a base: `tiny`, or what `hub.locate` finds."""
    return tiny_base() if name == TINY and not Path(name).exists() else hub.locate(name)
