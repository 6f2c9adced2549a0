"""`minillm predict` on a table of short texts, next to `TextClassifier.scores` of the same texts in the same process.

`scores` is the loop of `minillm ladder` and has all texts in memory; the command reads, checks, scores and writes the
rows of a file. Both use one LoRA, which is loaded before. The labels must be equal. The memory is the process's peak.
"""

import csv
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.comparison import Comparison, Rounds, cores, write_json
from benchmarks.sides import run
from minillm import TextClassifier
from minillm.data.word_problems import problems, word_problems_task
from minillm.errors import InputError
from minillm.lab.predict import Predict
from minillm.runtime.device import peak_memory, use_threads


def timed(side: Rounds, amount: int, work: Callable[[], Any]) -> Any:
    start = time.perf_counter()
    found = work()
    side.seconds.append(time.perf_counter() - start)
    side.amounts.append(amount)
    return found


def main(
    base: str = "tiny", rows: int = 10_000, rounds: int = 3, threads: int | None = None, json: Path | None = None
) -> None:
    """A LoRA of 40 training rows.

    Args:
        base: The base.
        rows: Rows of the table; a fifth of them is classified first.
        rounds: Turns of each side.
        threads: CPU threads; one per core if not given.
        json: Write all rounds here.
    """
    threads, cpu = use_threads(threads or cores()), torch.device("cpu")
    task = word_problems_task(40, 4)
    classifier = TextClassifier(
        base=base, method="lora", epochs=1, prompt=task.prompt, answers=dict(enumerate(task.answers)), device="cpu"
    ).fit_task(task)
    texts = [" ".join(problem.text.split()[:8]) for problem in islice(problems(0), rows)]
    ours, peer, peaks = Rounds("minillm predict"), Rounds("scores"), []
    with TemporaryDirectory() as place, patch.object(TextClassifier, "load", lambda *_, **__: classifier):

        def predict(texts: list[str]) -> list[str]:
            table, out = Path(place) / "rows.csv", Path(place) / "out.csv"
            Predict(directory=Path(place), file=table, out=out, overwrite=True, threads=threads).run()
            with out.open(encoding="utf-8", newline="") as file:
                return [row["label"] for row in csv.DictReader(file)]

        for some in (texts[: rows // 5], *[texts] * rounds):
            with (Path(place) / "rows.csv").open("w", encoding="utf-8", newline="") as file:
                csv.writer(file).writerows([["text"], *([text] for text in some)])
            found = timed(ours, len(some), lambda some=some: predict(some))
            peaks.append(peak_memory(cpu))
            if len(some) < rows:
                ours = Rounds("minillm predict")
                continue
            scores = timed(peer, rows, lambda: classifier.scores(texts)).scores
            if found != [str(label) for label in scores.argmax(-1).tolist()]:
                raise InputError("the labels of the two sides differ")
    found = Comparison(f"classifying {rows:,} texts on {base}", "rows", "scores", [ours, peer])
    print(found.table())
    first, last = (peak / 2**20 for peak in (peaks[0], peaks[1]))
    print(
        f"peak memory: {first:.1f} MiB after {rows // 5:,} rows, {last:.1f} MiB after {rows:,} rows by minillm predict"
    )
    if json is not None:
        write_json(json, {"base": base, "rows": rows, "threads": threads, "peak_bytes": peaks}, [found])


if __name__ == "__main__":
    run(main, __doc__)
