"""The base that needs no download: `tiny`, which is trained here, once, on word problems, and kept in the cache.

It has read problems of two to four steps in six surface forms. The task `word_problems` has problems of one step in two
other forms, so that there is something left to adapt it to.
"""

import hashlib
import json
import sys
from dataclasses import asdict
from pathlib import Path

from minillm import hub
from minillm.data.word_problems import LARGEST, PARTS
from minillm.errors import InputError
from minillm.hub.pull import PINNED, cache_directory, pull
from minillm.lab.pretrain import PretrainSettings, pretrain
from minillm.training.pretraining import Recipe

TINY = "tiny"
SETTINGS = PretrainSettings(task="word_problems")
OFFER = "`minillm ladder --base tiny --task word_problems` needs no download"


def tiny_base() -> Path:
    """The directory of the base `tiny`, trained now (some minutes, and it can be interrupted) if it is not there."""
    # Another recipe, or other problems, are another base.
    recipe = asdict(Recipe.from_preset(SETTINGS.preset, SETTINGS.steps))
    told = json.dumps([asdict(SETTINGS), recipe, PARTS, LARGEST])
    path = cache_directory() / f"{TINY}-{hashlib.sha256(told.encode()).hexdigest()[:12]}"
    if not (path / "config.json").exists():
        print(f"training the base {TINY} on word problems, this once: to {path}", file=sys.stderr)
        pretrain(SETTINGS, path, device="cpu")
    return path


def base_path(name: str) -> Path:
    """Where a base lies: `tiny`, or what `hub.locate` finds. Where a download fails, the way without one is offered."""
    if name == TINY and not Path(name).exists():
        return tiny_base()
    try:
        return hub.locate(name)
    except InputError as problem:
        raise (_offering(problem) if name in PINNED else problem) from None


def pulled_data(name: str) -> Path:
    """The file of a data set that can be pulled. Where that fails, the way without a download is offered."""
    try:
        return pull(name)
    except InputError as problem:
        raise _offering(problem) from None


def _offering(problem: InputError) -> InputError:
    return InputError(f"{problem}; {OFFER}")
