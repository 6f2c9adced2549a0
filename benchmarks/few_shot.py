"""Few-shot scoring of the reviews by SmolLM2, in minillm and in transformers: check first, then time.

Every query follows eight solved examples. minillm processes the common prefix of the prompts once per share of the
queries, and then only the queries; the peer processes examples and query again for each, its usual way, in the same
batches. Both give log P of each answer, and the probabilities must agree before anything is timed, and afterwards over
all queries.

The sides: minillm in float32 and, where the CPU multiplies it natively, in bfloat16. The peer in float32 as in its
documentation, which is the reference, and "tuned": glibc keeps freed memory, and the head runs on the last position
only. minillm always does both.
"""

from pathlib import Path

import numpy as np

from benchmarks.comparison import Comparison, check, cores, multiplies_bfloat16, write_json
from benchmarks.reviews import Work, few_shot
from benchmarks.sides import Side, at_work, run, shares, take_turns

PEER = "peer, float32"
TARGET = 6.0
TOLERANCES = {"float32": 1e-5, "bfloat16": 0.1}  # relative to the norm of the probabilities


def sides(work: Work, tuned: bool) -> list[Side]:
    from benchmarks import minillm_side, peer_side

    peer_side.directory()  # converts the weights once, before several processes start
    precisions = ("float32", "bfloat16") if multiplies_bfloat16() else ("float32",)
    found = [
        Side(f"minillm, {precision}", minillm_side.Scoring, {"work": work, "precision": precision})
        for precision in precisions
    ]
    for is_tuned in (False, True) if tuned else (False,):
        options = {"work": work, "precision": "float32", "tuned": is_tuned}
        found.append(Side(f"peer{' tuned' * is_tuned}, float32", peer_side.Scoring, options))
    return found


def compare(work: Work, batches: list[list[int]], rounds: int, threads: int, tuned: bool) -> Comparison:
    """All batches by all sides, in `rounds` shares."""
    with at_work(sides(work, tuned), threads) as workers:
        _checked({worker.name: worker.ask("score", batches[:1]) for worker in workers})
        found = take_turns(
            workers, "score", shares(batches, rounds), lambda share: sum(map(len, share)), "scoring"
        )  # fmt: skip
    errors = _checked({one.side: np.concatenate(one.answers) for one in found})
    return Comparison("few-shot scoring", "queries", PEER, found, errors)


def _checked(probabilities: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """The errors against the peer. Raises InputError for a side above its tolerance."""
    return {
        name: check(
            name, {"probabilities": found}, {"probabilities": probabilities[PEER]}, TOLERANCES[name.split()[-1]]
        )
        for name, found in probabilities.items()
    }


def main(
    rounds: int = 5,
    rows: int = 400,
    shots: int = 8,
    batch_size: int = 16,
    threads: int = cores(),
    tuned: bool = True,
    json: Path | None = None,
) -> None:
    """Both sides, in turns.

    Args:
        rounds: Parts of the queries; every side scores each of them once.
        rows: Number of queries, from the test rows of the task.
        shots: Examples before each query.
        batch_size: Queries per batch, of about the same length.
        threads: CPU threads of each side; one side runs at a time.
        tuned: Time the tuned peer too.
        json: Write all rounds of all sides to this file.
    """
    work = few_shot(rows, shots)
    comparison = compare(work, work.batches(batch_size), rounds, threads, tuned)
    print(comparison.table())
    times = comparison.ratios()[0].of_medians
    print(f"\nminillm in float32 is {times:.1f} times as fast; the target is {TARGET:g}")
    if json is not None:
        settings = {"rounds": rounds, "rows": rows, "shots": shots, "batch": batch_size, "threads": threads}
        write_json(json, settings, [comparison])


if __name__ == "__main__":
    run(main, __doc__)
