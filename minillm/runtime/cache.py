"""The user's cache: downloaded files, and the speedups of the kernels on this machine's GPUs."""

import os
import sys
from pathlib import Path

SPEEDUPS_FORMAT = 1


def cache_directory() -> Path:
    """`MINILLM_HOME`, or minillm in the cache directory of the platform."""
    if home := os.environ.get("MINILLM_HOME"):
        return Path(home).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "minillm"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "minillm"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minillm"


def kernel_speedups() -> Path:
    """Written by `minillm check --kernels --measure`, read by `kernels/_measured.py`."""
    return cache_directory() / "kernels.json"
