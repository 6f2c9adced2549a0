"""A training step from scratch next to plain PyTorch: nanoGPT's `shakespeare-char` on a CPU, or GPT-2 124M for a GPU.

`shakespeare-char`: 4 layers, width 128, 4 heads, context 64, batch 12, vocabulary 65; its larger sister for a GPU, with
6 layers, width 384 and context 256, is `10m`. AdamW with decay on matrices and clipping at 1; float32 on a CPU,
autocast to bfloat16 on a GPU. The peer is written like nanoGPT (`gpt_side.py`). Loss and all gradients must agree in
float32 before anything is timed; then both run the same steps in turns. The text is random, which does not change the
time.
"""

import random
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from benchmarks.comparison import Comparison, check, cores, write_json
from benchmarks.gpt_side import Ours, PlainTorch
from benchmarks.sides import Side, at_work, run, take_turns


def _gpt(vocabulary: int, layers: int, width: int, context: int, head: int = 64) -> dict[str, int]:
    heads = {"heads": width // head, "kv_heads": width // head}
    sizes = {"layers": layers, "width": width, "feed_forward_width": 4 * width, **heads}
    return {"vocabulary": vocabulary, "context_length": context, **sizes}


SIZES: dict[str, tuple[int, dict[str, int]]] = {
    "shakespeare-char": (12, _gpt(65, 4, 128, 64, head=32)),
    "10m": (4, _gpt(65, 6, 384, 256)),
    "30m": (4, _gpt(8192, 8, 512, 256)),
    "gpt2": (8, _gpt(50_257, 12, 768, 1024)),
}
"""Rows of a batch, and the sizes of the model."""
TOLERANCE = 1e-4  # relative to the norm of the gradients, in float32

OURS, PEER = "minillm", "plain torch"


def rows(size: str, steps: int) -> list[list[list[int]]]:
    """A batch of rows for each step."""
    order, (batch, sizes) = random.Random(0), SIZES[size]
    ids = range(sizes["vocabulary"])
    return [[order.choices(ids, k=sizes["context_length"] + 1) for _ in range(batch)] for _ in range(steps)]


def compare(size: str, rounds: int, steps: int, threads: int, device: str) -> Comparison:
    """The same steps on both sides, `steps` per round."""
    options: dict[str, Any] = {"sizes": SIZES[size][1], "device": device}
    with at_work([Side(OURS, Ours, options), Side(PEER, PlainTorch, options)], threads) as workers:
        start = workers[0].ask("parameters")
        workers[1].ask("start_from", start)
        probes = [worker.ask("probe", rows(size, 1)[0]) for worker in workers]
        errors = {OURS: check(OURS, probes[0], probes[1], TOLERANCE)}
        batches = rows(size, steps)
        take_turns(workers, "train", [batches], tokens, "warming up")
        found = take_turns(workers, "train", [batches] * rounds, tokens, "training")
    return Comparison(f"training from scratch, {size}", "tokens", PEER, found, errors)


def tokens(batches: list[list[list[int]]]) -> int:
    """Those that are predicted."""
    return sum(len(row) - 1 for batch in batches for row in batch)


def main(
    size: Literal["shakespeare-char", "10m", "30m", "gpt2"] = "shakespeare-char",
    rounds: int = 15,
    steps: int = 20,
    threads: int = cores(),
    device: str = "cpu",
    json: Path | None = None,
) -> None:
    """Both sides, in turns.

    Args:
        size: The model.
        rounds: Rounds of each side.
        steps: Optimizer steps per round.
        threads: CPU threads of each side.
        device: cpu or cuda.
        json: Write all rounds of all sides to this file.
    """
    comparison = compare(size, rounds, steps, threads, device)
    print(comparison.table(), end="\n\n")
    medians: Sequence[float] = [statistics.median(side.seconds) / steps * 1e3 for side in comparison.rounds]
    print(
        f"per step: minillm {medians[0]:.1f} ms, plain torch {medians[1]:.1f} ms, ratio {medians[0] / medians[1]:.2f}"
    )
    if json is not None:
        settings = {"size": size, "rounds": rounds, "steps": steps, "threads": threads, "device": device}
        write_json(json, settings, [comparison])


if __name__ == "__main__":
    run(main, __doc__)
