"""`minillm info`: the versions, the machine and the cache, as a report of a problem needs them."""

import os
import platform
import re
from dataclasses import dataclass
from importlib.metadata import distributions, requires
from typing import Any

import torch

from minillm.hub.pull import PINNED, cached, verified
from minillm.lab.report import in_bytes
from minillm.runtime.cache import cache_directory
from minillm.runtime.device import memory, pick_device, precision_and_reason
from minillm.runtime.options import PrintOptions

PACKAGES = ("minillm", "torch", "numpy", "tokenizers", "safetensors", "gguf", "jinja2", "tyro")


@dataclass(kw_only=True)
class Info(PrintOptions):
    """Print versions, device, precision, memory, the cache and the installed extras. Nothing is loaded or downloaded.

    Example: minillm info --json
    """

    def run(self) -> None:
        found = info()
        self.show("\n".join(f"{name:32}{value}" for name, value in found.items()), found)


def info() -> dict[str, Any]:
    """What `minillm info` prints, in JSON's types."""
    device, cache = pick_device(), cache_directory()
    versions = {one.name.lower().replace("_", "-"): one.version for one in distributions()}
    precision, reason = precision_and_reason(device)
    total, available = memory()
    return {
        **{name: versions.get(name) for name in PACKAGES},
        "python": f"{platform.python_version()} on {platform.platform(terse=True)}",
        "device": f"cuda ({torch.cuda.get_device_name()})" if device.type == "cuda" else str(device),
        "cpu": f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}",
        "precision": f"{precision}: {reason}",
        "memory": f"{in_bytes(available)} available of {in_bytes(total)}" if total else "unknown",
        "cache": f"{cache}, {in_bytes(sum(path.stat().st_size for path in cache.rglob('*') if path.is_file()))}",
        **{name: _state(name) for name in PINNED},
        **{f"minillm[{extra}]": state for extra, state in _extras(versions).items()},
    }


def _state(name: str) -> str:
    path = cached(name)
    if not path.exists():
        return f"not pulled (`minillm pull {name}`)"
    return f"{in_bytes(path.stat().st_size)}, {'verified' if verified(path, PINNED[name]) else 'not verified yet'}"


def _extras(versions: dict[str, str]) -> dict[str, str]:
    """For each extra, whether its packages are installed, or those that are missing."""
    found: dict[str, list[str]] = {}
    for requirement in requires("minillm") or []:
        package, extra = re.match(r"[\w.-]+", requirement), re.search(r"extra == .(\w+)", requirement)
        if package and extra:
            found.setdefault(extra[1], []).extend({package[0]} - versions.keys())
    return {extra: f"without {', '.join(missing)}" if missing else "installed" for extra, missing in found.items()}
