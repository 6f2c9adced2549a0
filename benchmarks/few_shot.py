"""Few-shot scoring of the reviews by SmolLM2, in minillm and in transformers: check first, then time.

Eight solved examples stand before every query. minillm reads what all prompts have in common once for every share of
the queries, and then the queries alone; the peer reads examples and query anew for each, as it is used everywhere, in
the same batches. Both give log P of each answer, and the probabilities must agree before anything is timed, and
afterwards over all queries.

The sides: minillm in float32 and, where the CPU multiplies it natively, in bfloat16. The peer in float32 as its manual
shows it, which all are compared with, and "tuned": glibc keeps freed memory for it, and its head runs on the last
position only. minillm's sides do both always.
"""

from pathlib import Path

import numpy as np

from benchmarks.beside import Side, at_work, run, shares, take_turns
from benchmarks.comparison import Comparison, check, cores, multiplies_bfloat16, write_json
from benchmarks.reviews import Work, few_shot

PEER = "peer, float32"
TARGET = 6.0
TOLERANCES = {"float32": 1e-5, "bfloat16": 0.1}  # of the probabilities' length


def sides(work: Work, tuned: bool) -> list[Side]:
    from benchmarks import minillm_side, peer_side

    peer_side.directory()  # converts the weights, the first time, before several processes would
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
    """The errors against the peer's. Raises InputError for a side beyond its tolerance."""
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
    batch: int = 16,
    threads: int = cores(),
    tuned: bool = True,
    json: Path | None = None,
) -> None:
    """Both sides, in turns.

    Args:
        rounds: How many shares the queries are cut into; every side does each of them once.
        rows: Queries, of the task's test rows.
        shots: Examples before each query.
        batch: Queries read at a time, of about the same length.
        threads: CPU threads of each side; one side works at a time.
        tuned: Time the tuned peer too.
        json: Write every round of every side here.
    """
    work = few_shot(rows, shots)
    comparison = compare(work, work.batches(batch), rounds, threads, tuned)
    print(comparison.table())
    times = comparison.ratios()[0].of_medians
    print(f"\nminillm in float32 is {times:.1f} times as quick; {TARGET:g} at least is wanted")
    if json is not None:
        settings = {"rounds": rounds, "rows": rows, "shots": shots, "batch": batch, "threads": threads}
        write_json(json, settings, [comparison])


if __name__ == "__main__":
    run(main, __doc__)
