"""Everything worth measuring on one GPU, in eight minutes: one JSON file, and the table of the README in Markdown.

The tests of the kernels (compiled), the kernels next to torch, LoRA, prefix and full training and decoding next to
transformers + peft, and GPT-2 124M next to plain PyTorch. Each part has a process and a time limit of its own; the
sentence that says why a part has no result is kept in its place. `--device cpu` rehearses all of it in tiny sizes.
"""

import json as json_format
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import date
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from benchmarks.everything import HEADER, lines, measured, ran
from benchmarks.sides import run
from minillm.errors import InputError
from minillm.runtime.files import write_text

MINUTES = 8.0
PACKAGES = ("minillm", "torch", "triton", "transformers", "peft")
TESTS = ("-m", "pytest", "-p", "no:cacheprovider", "--hypothesis-profile", "glance")
KERNELS = Path(__file__).parent.parent / "tests" / "kernels"
LIMITS = {"tests": 100, "kernels": 110, "adapt_vs_peft": 120, "decoding": 60, "pretrain": 90}
"""The seconds of each part if all have eight minutes."""
OPTIONS = {
    "tests": ("-n", "8", str(KERNELS), "-k", "not ahead_of_time"),
    "kernels": ("--minutes", "1.2", "--rounds", "20"),
    "adapt_vs_peft": ("--no-tuned", "--methods", "lora,prefix,full", "--rows", "256", "--rounds", "4"),
    "decoding": ("--rounds", "3", "--tokens", "64", "--perplexity-tokens", "0"),
    "pretrain": ("--size", "gpt2", "--rounds", "5", "--steps", "10"),
}
REHEARSED = {
    "tests": ("-n", "0", str(KERNELS / "test_norm.py"), "-k", "stripe"),
    "kernels": (),
    "adapt_vs_peft": ("--no-tuned", "--methods", "lora", "--rows", "8", "--rounds", "1"),
    "decoding": ("--rounds", "1", "--tokens", "2", "--batch-size", "2", "--perplexity-tokens", "0"),
    "pretrain": ("--rounds", "1", "--steps", "1"),
}


def measure(parts: Sequence[str], device: str, minutes: float) -> dict[str, Any]:
    """The results of the parts, or for each the reason why it has none; no part starts after the time."""
    results, end = {}, time.monotonic() + 60 * minutes
    for part in parts:
        options = (OPTIONS if device == "cuda" else REHEARSED)[part]
        limit = min(LIMITS[part] * minutes / MINUTES, end - time.monotonic())
        if limit <= 0:
            results[part] = {"failed": f"{part} was not started: the {minutes:g} minutes were over"}
        elif part == "tests":
            why = ran([sys.executable, *TESTS, *options], os.environ, limit)
            results[part] = {"passed": True} if why is None else {"failed": f"the tests of the kernels {why}"}
        else:
            where = () if part == "kernels" else ("--device", device)
            results[part] = measured(part, (*options, *where), os.environ, limit)
    return results


def about(device: str) -> dict[str, Any]:
    """Date, device and versions, without the name of the machine."""
    import torch

    found = {name: version(name) for name in PACKAGES if find_spec(name) is not None}
    name = torch.cuda.get_device_name() if device == "cuda" else f"CPU ({platform.machine()}), a rehearsal"
    return {
        "date": date.today().isoformat(),
        "device": name,
        "versions": {"python": platform.python_version(), **found},
    }


def markdown(described: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    """A line for each side of each comparison, and one for each kernel next to torch; below them, what has failed."""
    kernels = {"comparisons": results.get("kernels", {}).get("works", [])}
    ours = (line for line in lines({"kernels": kernels}) if line[1] == "minillm")
    versions = ", ".join(f"{name} {number}" for name, number in described["versions"].items())
    rows = [HEADER, ["---"] * len(HEADER), *lines(results), *ours]
    return "\n".join([
        f"{described['date']}, {described['device']}; {versions}.\n",
        *(f"| {' | '.join(row)} |" for row in rows),
        *(f"\n{found['failed']}." for found in results.values() if "failed" in found),
    ])  # fmt: skip


def main(
    device: Literal["cuda", "cpu"] = "cuda",
    minutes: float = MINUTES,
    parts: str = ",".join(LIMITS),
    json: Path = Path("gpu.json"),
) -> None:
    """All parts, one after the other.

    Args:
        device: cuda, or cpu for a rehearsal.
        minutes: The time of all parts, which is divided among them.
        parts: Parts to run, comma-separated: tests, kernels, adapt_vs_peft, decoding, pretrain.
        json: Write all results to this file, and the table next to it, as .md.
    """
    import torch

    chosen = [name.strip() for name in parts.split(",")]
    if unknown := [name for name in chosen if name not in LIMITS]:
        raise InputError(f"unknown part {unknown[0]!r}; choose from {', '.join(LIMITS)}")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("no CUDA device was found; --device cpu rehearses the measurement")
    described, results = about(device), measure(chosen, device, minutes)
    text = markdown(described, results)
    write_text(json, json_format.dumps({**described, **results}, indent=2) + "\n")
    write_text(json.with_suffix(".md"), text + "\n")
    print(f"{text}\n\nsaved: {json} and {json.with_suffix('.md')}")


if __name__ == "__main__":
    run(main, __doc__)
