"""`make bench`: every benchmark that has a peer, and the scaling, one after the other: one JSON file and one table.

Each runs with few rounds, in half an hour altogether; its own command has more. `--avx2` runs all of them as a CPU
without AVX-512.
"""

import json as json_format
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.comparison import cores
from benchmarks.sides import run
from minillm.lab.report import aligned, in_bytes
from minillm.runtime.files import write_text
from minillm.runtime.progress import note

METHODS = "lora,soft-prompt,prefix,last-blocks,full,features"
COMMANDS = {
    "adapt_vs_peft": ("--no-tuned", "--rows", "64", "--rounds", "2", "--methods", METHODS),
    "decoding": ("--rounds", "3", "--tokens", "48", "--perplexity-tokens", "0"),
    "few_shot": ("--no-tuned", "--rows", "32", "--rounds", "2"),
    "family": ("--rounds", "5"),
    "pretrain": ("--rounds", "5"),
    "loading": ("--rounds", "3"),
    "scaling": (),
}
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}


def measured(name: str, options: Sequence[str], environment: Mapping[str, str], limit: float | None = None) -> Any:
    """The results of a benchmark, or under "failed" a sentence if it failed or took more than so many seconds."""
    note(f"benchmarks.{name}")
    with TemporaryDirectory() as place:
        file = Path(place) / "found.json"
        words = [sys.executable, "-m", f"benchmarks.{name}", *options, "--json", str(file)]
        why = ran(words, environment, limit)
        if why is None:
            return json_format.loads(file.read_text("utf-8"))
    note(f"benchmarks.{name} {why}")
    return {"failed": f"benchmarks.{name} {why}"}


def ran(words: Sequence[str], environment: Mapping[str, str], limit: float | None = None) -> str | None:
    """Run a command; None, or the end of a sentence that says why it has no result."""
    try:
        done = subprocess.run(words, env=dict(environment), capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return f"did not end within {limit:.0f} s"
    last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
    return f"failed, with exit code {done.returncode}: {last}" if done.returncode else None


HEADER = ("work", "side", "per second", "speedup", "single rounds", "peak memory")


def lines(results: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    """For each side of each comparison: its speedup over the reference, in single rounds, and its memory."""
    for found in results.values():
        for compared in found.get("comparisons", []):
            for side in compared["sides"]:
                rate = f"{side['median_rate']:,.3g} {compared['unit']}".strip()
                speedup = [f"{side['ratio'][part]:.2f}" for part in ("of_medians", "lowest", "highest")]
                memory = "-" if side["peak_memory_bytes"] is None else in_bytes(side["peak_memory_bytes"])
                yield compared["title"], side["side"], rate, speedup[0], f"{speedup[1]} to {speedup[2]}", memory


def main(threads: int = cores(), avx2: bool = False, json: Path = Path("bench.json")) -> None:
    """All benchmarks.

    Args:
        threads: CPU threads of each side; one side runs at a time.
        avx2: Use no instructions beyond AVX2.
        json: Write all results to this file.
    """
    environment, words = os.environ | (AVX2 if avx2 else {}), ("--threads", str(threads))
    results = {name: measured(name, (*options, *words), environment) for name, options in COMMANDS.items()}
    write_text(json, json_format.dumps(results, indent=2) + "\n")
    print(aligned([HEADER, *lines(results)]))
    for axis in results.get("scaling", {}).get("axes", []):
        print("{axis}: seconds ~ n^{seconds:.2f}, FLOPs ~ n^{flops:.2f}".format(**axis))
    print(f"saved: {json}")


if __name__ == "__main__":
    run(main, __doc__)
