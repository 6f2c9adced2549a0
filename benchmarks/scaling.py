"""How the time of a LoRA training step grows with rows, length, rank, width, layers and adapters, next to its FLOPs.

A decoder of random weights in Llama's style; one axis is varied at a time. The exponents are fitted in a log-log plot,
so that time proportional to the FLOPs has the exponent of the FLOPs, and fixed costs make it smaller.
"""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from json import dumps
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.comparison import cores
from benchmarks.sides import run
from minillm import adapt
from minillm.adapters.family import Family
from minillm.config import DecoderConfig
from minillm.decoder import Decoder
from minillm.lab.report import aligned
from minillm.runtime.files import write_text

USUAL = {"rows": 8, "length": 64, "rank": 8, "width": 256, "layers": 4, "adapters": 0}
AXES = {
    "rows": (2, 4, 8, 16, 32),
    "length": (32, 64, 128, 256, 512),
    "rank": (4, 16, 64, 256),
    "width": (64, 128, 256, 512),
    "layers": (2, 4, 8, 16),
    "adapters": (1, 2, 4, 8),
}
HEAD_WIDTH = 32


def step(rows: int, length: int, rank: int, width: int, layers: int, adapters: int) -> Callable[[], Any]:
    """A training step; with a number of adapters, the forward pass of rows that take turns with them."""
    torch.manual_seed(0)
    heads = width // HEAD_WIDTH
    sizes = {"width": width, "heads": heads, "kv_heads": heads, "feed_forward_width": 3 * width, "layers": layers}
    decoder = Decoder(DecoderConfig.tiny(context_length=1024, vocabulary=256, **sizes))
    ids = torch.randint(0, 256, (rows, length))
    if adapters:
        family = Family(decoder, {str(n): adapt.LoRA(decoder, r=rank) for n in range(adapters)})
        names = [str(row % adapters) for row in range(rows)]
        return torch.no_grad()(lambda: family(ids, names))
    method = adapt.LoRA(decoder, r=rank)
    return lambda: method(ids).logsumexp(-1).mean().backward()


def exponent(sizes: Sequence[int], values: Sequence[float]) -> float:
    """The gradient of log values over log sizes, by least squares."""
    x, y = ([math.log(one) for one in side] for side in (sizes, values))
    middle, level = statistics.fmean(x), statistics.fmean(y)
    product = sum((a - middle) * (b - level) for a, b in zip(x, y, strict=True))
    return product / sum((a - middle) ** 2 for a in x)


def measured(axis: str, rounds: int) -> dict[str, Any]:
    """The median seconds and the FLOPs of each size of an axis, and their exponents."""
    seconds, flops = [], []
    for size in AXES[axis]:
        work = step(**{**USUAL, axis: size})
        with FlopCounterMode(display=False) as counter:
            work()
        times = []
        for _ in range(rounds):
            start = time.perf_counter()
            work()
            times.append(time.perf_counter() - start)
        seconds.append(statistics.median(times))
        flops.append(counter.get_total_flops())
    exponents = exponent(AXES[axis], seconds), exponent(AXES[axis], flops)
    found = {"axis": axis, "sizes": AXES[axis], "medians": seconds, "counted": flops}
    return {**found, "seconds": exponents[0], "flops": exponents[1]}


def main(rounds: int = 7, threads: int = cores(), json: Path | None = None) -> None:
    """All axes.

    Args:
        rounds: Steps of each size that are timed, after one that is not.
        threads: CPU threads.
        json: Write sizes, times and FLOPs to this file.
    """
    torch.set_num_threads(threads)
    axes = [measured(axis, rounds) for axis in AXES]
    rows = [("axis", "sizes", "seconds", "exponent", "of the FLOPs")]
    for found in axes:
        sizes, times = (f"{one[0]:.3g} to {one[-1]:.3g}" for one in (found["sizes"], found["medians"]))
        rows.append((found["axis"], sizes, times, f"{found['seconds']:.2f}", f"{found['flops']:.2f}"))
    print(aligned(rows))
    if json is not None:
        write_text(json, dumps({"usual": USUAL, "rounds": rounds, "threads": threads, "axes": axes}) + "\n")


if __name__ == "__main__":
    run(main, __doc__)
