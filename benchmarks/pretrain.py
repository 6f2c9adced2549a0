"""A training step from scratch at the size of nanoGPT's `shakespeare-char` on a CPU, next to plain PyTorch.

4 layers, width 128, 4 heads, context 64, batch 12, vocabulary 65, float32, AdamW with decay on matrices and clipping at
1. The peer is written like nanoGPT (`gpt_side.py`). Loss and all gradients must agree before anything is timed; then
both run the same steps in turns. The text is random, which does not change the time.
"""

import random
import statistics
from collections.abc import Sequence
from pathlib import Path

from benchmarks.comparison import Comparison, check, cores, write_json
from benchmarks.gpt_side import Ours, PlainTorch
from benchmarks.sides import Side, at_work, run, take_turns

VOCABULARY, CONTEXT, BATCH = 65, 64, 12
TOLERANCE = 1e-4  # relative to the norm of the gradients, in float32

SIDES = (Side("minillm", Ours, {}), Side("plain torch", PlainTorch, {}))


def rows(steps: int) -> list[list[list[int]]]:
    """A batch of rows for each step."""
    order = random.Random(0)
    return [
        [[order.randrange(VOCABULARY) for _ in range(CONTEXT + 1)] for _ in range(BATCH)] for _ in range(steps)
    ]  # fmt: skip


def compare(rounds: int, steps: int, threads: int) -> Comparison:
    """The same steps on both sides, `steps` per round."""
    with at_work(SIDES, threads) as workers:
        start = workers[0].ask("parameters")
        workers[1].ask("start_from", start)
        probes = [worker.ask("probe", rows(1)[0]) for worker in workers]
        errors = {SIDES[0].name: check(SIDES[0].name, probes[0], probes[1], TOLERANCE)}
        take_turns(workers, "train", [rows(steps)], len, "warming up")
        found = take_turns(workers, "train", [rows(steps)] * rounds, len, "training")
    return Comparison("nanoGPT's shakespeare-char on a CPU, float32", "steps", SIDES[1].name, found, errors)


def main(rounds: int = 15, steps: int = 20, threads: int = cores(), json: Path | None = None) -> None:
    """Both sides, in turns.

    Args:
        rounds: Rounds of each side.
        steps: Optimizer steps per round.
        threads: CPU threads of each side.
        json: Write all rounds of all sides to this file.
    """
    comparison = compare(rounds, steps, threads)
    print(comparison.table(), end="\n\n")
    medians: Sequence[float] = [statistics.median(side.seconds) / steps * 1e3 for side in comparison.rounds]
    print(
        f"per step: minillm {medians[0]:.1f} ms, plain torch {medians[1]:.1f} ms, ratio {medians[0] / medians[1]:.2f}"
    )
    if json is not None:
        write_json(json, {"rounds": rounds, "steps": steps, "threads": threads}, [comparison])


if __name__ == "__main__":
    run(main, __doc__)
