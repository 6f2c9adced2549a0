"""Time until SmolLM2 is ready: minillm next to transformers, both from the same GGUF file; and the imports.

Every round starts new processes, because only a first load and a first import count. Imports are timed separately from
the load, without the interpreter's own start. Both sides must give the same logits.
"""

import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.comparison import Comparison, Rounds, check, cores, write_json
from benchmarks.sides import Side, at_work, run
from minillm.runtime.progress import progress

BASE = "smollm2-135m-instruct"
IDS = [[504, 3575, 282, 260, 2024]]
TOLERANCE = 1e-4  # relative to the norm of the logits, in float32

IMPORTS = {
    "import torch": "import torch",
    "torch, minillm.load": "import torch; import minillm; minillm.load",
    "torch, transformers": "import torch; from transformers import AutoModelForCausalLM, AutoTokenizer",
}
CLOCK = "import time; start = time.perf_counter()\n{statement}\nprint(time.perf_counter() - start)"


class Minillm:
    def __init__(self):
        import minillm

        self.open = minillm.load

    def load(self) -> None:
        self.decoder, _ = self.open(BASE)

    def logits(self) -> Any:
        import torch

        with torch.no_grad():
            return self.decoder(torch.tensor(IDS)).numpy()


class Transformers:
    """The decoder and the tokenizer from the GGUF file, dequantised to float32."""

    def __init__(self):
        import transformers

        from minillm.hub.pull import pull

        self.peer, self.path = transformers, pull(BASE)

    def load(self) -> None:
        import torch

        place = {"pretrained_model_name_or_path": self.path.parent, "gguf_file": self.path.name}
        self.model = self.peer.AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32)
        self.tokenizer = self.peer.AutoTokenizer.from_pretrained(**place)

    def logits(self) -> Any:
        import torch

        with torch.no_grad():
            return self.model(torch.tensor(IDS)).logits.numpy()


SIDES = (Side("minillm", Minillm, {}), Side("transformers", Transformers, {}))


def loads(rounds: int, threads: int) -> Comparison:
    """Both sides load once per round, each in a new process."""
    results, logits = [Rounds(side.name) for side in SIDES], {}
    for _ in progress(range(rounds), desc="loads", unit="round"):
        for side, result in zip(SIDES, results, strict=True):
            with at_work([side], threads) as (worker,):
                worker.ask("load")
                result.amounts.append(1)
                result.seconds.append(worker.seconds)
                result.peak_bytes = worker.peak_bytes
                logits[side.name] = {"logits": worker.ask("logits")}
    errors = {name: check(name, found, logits["transformers"], TOLERANCE) for name, found in logits.items()}
    return Comparison("loading SmolLM2 from GGUF", "", "transformers", results, errors)


def imports(rounds: int) -> Comparison:
    """The seconds of each import statement, in a new interpreter."""
    results = {name: Rounds(name) for name in IMPORTS}
    for _ in progress(range(rounds), desc="imports", unit="round"):
        for name, statement in IMPORTS.items():
            results[name].seconds.append(seconds_of(statement))
            results[name].amounts.append(1)
    return Comparison("imports", "", "import torch", list(results.values()))


def seconds_of(statement: str) -> float:
    program = CLOCK.format(statement=statement)
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout)


def main(rounds: int = 5, threads: int = cores(), json: Path | None = None) -> None:
    """Both sides, in turns.

    Args:
        rounds: Rounds of each side.
        threads: CPU threads of each side.
        json: Write all rounds of all sides to this file.
    """
    comparisons: Sequence[Comparison] = (loads(rounds, threads), imports(rounds))
    for comparison in comparisons:
        print(comparison.table(), end="\n\n")
    torch, *both = (statistics.median(rounds.seconds) for rounds in comparisons[1].rounds)
    print(
        "import time beyond torch: minillm.load {:.2f} s, transformers {:.2f} s".format(*(one - torch for one in both))
    )
    if json is not None:
        write_json(json, {"rounds": rounds, "threads": threads}, comparisons)


if __name__ == "__main__":
    run(main, __doc__)
