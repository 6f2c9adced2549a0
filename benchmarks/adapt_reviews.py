"""Accuracy of SmolLM2 adapted to the reviews, for each method over several seeds, with the standard error of the mean.

A seed determines all that is random: the initial values of the trained parameters and the order of the rows. The rows
themselves are always the same. The learning rate of each method was chosen on the validation rows
(`minillm/training/methods.py`), each run chooses its epoch on them, and scores the test rows once, at its end. Every
run is a rung of the ladder in its own process; finished runs are saved under `--out` and not repeated.
"""

import json
import math
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.comparison import cores
from benchmarks.reviews import BASE
from benchmarks.sides import run
from minillm.errors import InputError

if TYPE_CHECKING:
    from minillm.lab.ladder import Ladder

COLUMNS = ("method", "validation", "test", "mean", "standard error", "best epoch")


def numbers(listed: str) -> list[int]:
    """Comma-separated seeds. Raises InputError if one is not an integer or is repeated."""
    try:
        seeds = [int(seed) for seed in listed.split(",")]
    except ValueError:
        raise InputError(f"seeds must be integers separated by commas, got {listed!r}") from None
    if len(set(seeds)) < len(seeds):
        raise InputError(f"seeds must be different, got {listed}")
    return seeds


def measured(ladders: Sequence["Ladder"]) -> Iterator[dict[str, Any]]:
    """The result of every method and seed, as each run ends."""
    from minillm.lab.ladder import run_ladder

    for ladder in ladders:
        for rung, _ in run_ladder(ladder):
            yield {"seed": ladder.seed, **rung}


def standard_error_of_mean(values: Sequence[float]) -> float:
    """The standard error of the mean of two or more independent values: their standard deviation over sqrt(n)."""
    return statistics.stdev(values) / math.sqrt(len(values))


def summary(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One method's accuracies over the seeds, their mean and its standard error."""
    accuracies = [one["accuracy"] for one in runs]
    return {
        "method": runs[0]["name"],
        "validation": [max(one["chosen"]["validation"]) for one in runs],
        "accuracies": accuracies,
        "mean": statistics.fmean(accuracies),
        "standard_error": standard_error_of_mean(accuracies) if len(runs) > 1 else None,
        "epochs": [one["chosen"]["best_epoch"] for one in runs],
    }


def table(summaries: Sequence[dict[str, Any]]) -> str:
    """A line per method: accuracies in per cent, one per seed."""
    rows = [COLUMNS, *map(_cells, summaries)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _cells(found: dict[str, Any]) -> tuple[str, ...]:
    error = found["standard_error"]
    return (
        found["method"],
        _per_cent(found["validation"]),
        _per_cent(found["accuracies"]),
        _per_cent([found["mean"]]),
        "-" if error is None else f"{100 * error:.2f}",
        " ".join(map(str, found["epochs"])),
    )


def _per_cent(shares: Sequence[float]) -> str:
    return " ".join(f"{100 * share:.1f}" for share in shares)


def main(
    methods: str = "soft-prompt,prefix,lora,last-blocks",
    seeds: str = "0,1,2",
    train: int = 500,
    test: int = 400,
    threads: int = cores(),
    out: Path = Path("adapt_reviews"),
) -> None:
    """Adapt to the reviews by each method, once per seed.

    Args:
        methods: Trained rungs of the ladder, comma-separated: soft-prompt, prefix, output, last-blocks, lora, full.
        seeds: Random seeds, comma-separated.
        train: Training rows.
        test: Test rows.
        threads: CPU threads.
        out: Output directory. Finished runs in it are not repeated.
    """
    from minillm.lab.ladder import Ladder
    from minillm.lab.report import standard_error
    from minillm.runtime.files import write_text
    from minillm.training.methods import METHODS

    ladders = [
        Ladder(
            base=BASE, rungs=tuple(name.strip() for name in methods.split(",")), train=train, test=test, seed=seed,
            device="cpu", threads=threads, out=out / f"seed-{seed}",
        )
        for seed in numbers(seeds)
    ]  # fmt: skip
    names = ladders[0].chosen()
    if untrained := [name for name in names if name not in METHODS]:
        raise InputError(f"{untrained[0]} is not trained, so no seed changes it; use `minillm ladder` for its accuracy")
    runs = []
    for one in measured(ladders):
        runs.append(one)
        print(f"{one['name']}, seed {one['seed']}: {one['accuracy']:.4f}", flush=True)
    summaries = [summary([one for one in runs if one["name"] == name]) for name in names]
    print(f"\n{table(summaries)}\n")
    error = standard_error(summaries[0]["mean"], test)
    print(f"a single accuracy on {test} rows has a standard error of {100 * error:.1f} points")
    found = {"settings": [ladder.described() for ladder in ladders], "summaries": summaries, "runs": runs}
    write_text(out / "adapt_reviews.json", json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    run(main, __doc__)
