"""The overhead of choosing an implementation, in ns per call: the operation next to its implementation, in turns."""

from functools import partial
from json import dumps
from pathlib import Path
from time import process_time
from timeit import timeit

import torch

from benchmarks.sides import run
from minillm import operations
from minillm.fast import attention, linear, lora
from minillm.ops import norm
from minillm.runtime.files import write_text

X, WEIGHT, A, B, HEADS = (torch.ones(shape) for shape in ((2, 8), (8, 8), (2, 8), (8, 2), (1, 1, 2, 8)))
CALLS = {
    "linear": (operations.linear, linear.linear, (X, WEIGHT)),
    "rms_norm": (operations.rms_norm, norm.rms_norm, (X, WEIGHT[0], 1e-5)),
    "attention": (operations.attention, attention.attention, (HEADS, HEADS, HEADS)),
    "lora": (operations.lora, lora.lora, (X, WEIGHT, None, A, B, 0.5)),
}


def main(rounds: int = 100, times: int = 500, json: Path | None = None) -> None:
    """Linear, RMS norm, attention and LoRA on tensors so small that overhead dominates.

    Args:
        rounds: Turns of each side; the fastest counts.
        times: Calls per turn.
        json: Write the nanoseconds here.
    """
    torch.set_num_threads(1)
    found = {}
    for name, (chosen, direct, arguments) in CALLS.items():
        sides = [partial(side, *arguments) for side in (chosen, direct)]
        turns = [[timeit(side, timer=process_time, number=times) for side in sides] for _ in range(rounds)]
        ours, alone = (1e9 * min(seconds) / times for seconds in zip(*turns, strict=True))
        found[name] = ours - alone
        print(f"{name:12}{ours - alone:8,.0f} ns more than {alone:,.0f}")
    if json is not None:
        write_text(json, dumps(found) + "\n")


if __name__ == "__main__":
    run(main, __doc__)
