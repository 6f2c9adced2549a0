"""`make bench`: every benchmark that has a peer, and the scaling, one after the other: one JSON file and one table.

Each runs with few rounds, in half an hour altogether; its own command has more. `--avx2` runs all of them as a CPU
without AVX-512.
"""

import json as json_format
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.comparison import cores
from benchmarks.sides import run
from minillm.lab.report import aligned, in_bytes
from minillm.runtime.files import write_text
from minillm.runtime.progress import note

COMMANDS = {
    "adapt_vs_peft": ("--no-tuned", "--rows", "64", "--rounds", "2"),
    "decoding": ("--rounds", "3", "--tokens", "48", "--perplexity-tokens", "0"),
    "few_shot": ("--no-tuned", "--rows", "32", "--rounds", "2"),
    "family": ("--rounds", "5"),
    "pretrain": ("--rounds", "5"),
    "loading": ("--rounds", "3"),
    "scaling": (),
}
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}


def measured(threads: int, avx2: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """The results of each benchmark that did not fail."""
    environment = os.environ | (AVX2 if avx2 else {})
    with TemporaryDirectory() as place:
        for name, options in COMMANDS.items():
            note(f"benchmarks.{name}")
            file = Path(place) / f"{name}.json"
            words = ["-m", f"benchmarks.{name}", *options, "--threads", str(threads), "--json", str(file)]
            done = subprocess.run([sys.executable, *words], env=environment, stdout=subprocess.DEVNULL)
            if done.returncode:
                note(f"benchmarks.{name} failed, with exit code {done.returncode}")
            else:
                yield name, json_format.loads(file.read_text("utf-8"))


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """A line for each side of each comparison: its speedup over the reference, in single rounds, and its memory."""
    rows = [("work", "side", "per second", "speedup", "single rounds", "peak memory")]
    for found in results.values():
        for compared in found.get("comparisons", []):
            for side in compared["sides"]:
                rate = f"{side['median_rate']:,.3g} {compared['unit']}".strip()
                speedup = [f"{side['ratio'][part]:.2f}" for part in ("of_medians", "lowest", "highest")]
                memory = "-" if side["peak_memory_bytes"] is None else in_bytes(side["peak_memory_bytes"])
                between = f"{speedup[1]} to {speedup[2]}"
                rows.append((compared["title"], side["side"], rate, speedup[0], between, memory))
    return aligned(rows)


def main(threads: int = cores(), avx2: bool = False, json: Path = Path("bench.json")) -> None:
    """All benchmarks.

    Args:
        threads: CPU threads of each side; one side runs at a time.
        avx2: Use no instructions beyond AVX2.
        json: Write all results to this file.
    """
    results = dict(measured(threads, avx2))
    write_text(json, json_format.dumps(results, indent=2) + "\n")
    print(table(results))
    for axis in results.get("scaling", {}).get("axes", []):
        print("{axis}: seconds ~ n^{seconds:.2f}, FLOPs ~ n^{flops:.2f}".format(**axis))
    print(f"saved: {json}")


if __name__ == "__main__":
    run(main, __doc__)
