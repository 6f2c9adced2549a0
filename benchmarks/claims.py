"""The table of claims: what the lecture and the papers say about the methods, and what our measurements say.

A claim says that a figure is above a bound. It is confirmed if the 95 % interval of the figure is above the bound,
refuted if the interval is below, and else undecided: then the table gives the number of test rows at which the
interval would exclude the bound if the figure stayed the same (its width falls with the square root of the rows), or
says that more seeds are needed, where the noise of the rows alone would not hide the figure.

`python -m benchmarks.claims` prints the table from the recorded results in `benchmarks/results`. With `--record DIR` it
first records new ones: DIR has the directory of each run of COMMANDS, under its name there.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

import numpy as np

from benchmarks.sides import run
from minillm.errors import InputError
from minillm.lab.forgetting import rise
from minillm.lab.statistics import bootstrap
from minillm.runtime.files import write_text

RESULTS = Path(__file__).parent / "results"
SMOLLM2 = "--base smollm2-135m-instruct"
COMMANDS = {
    "ladder": "ladder --rungs zero-shot,few-shot,features,output,last-blocks,prefix,lora,full --seeds 3 --threads 1",
    "data": f"lab data {SMOLLM2} --methods prefix,lora,full --train 100 --minutes 60 --threads 1",
    "newtask": f"lab newtask {SMOLLM2} --methods few-shot,prefix,lora --minutes 60 --threads 1",
    "forgetting": f"lab forgetting {SMOLLM2} --methods full,lora --minutes 45 --threads 1",
    "rank": f"lab rank {SMOLLM2} --minutes 60 --threads 1",
    "overfit": f"lab overfit {SMOLLM2} --methods full --train 32 --minutes 40 --threads 1",
    "prompt": "prompt --shots 8 --channel --threads 1",
    "problems": "prompt --task word_problems --test 100 --threads 1",
    "juggler": "lab juggler --threads 1",
}
KEPT = ("train_seconds", "majority_baseline", "on")
"""What is recorded of a run besides its settings and the right answers."""
PAR, QUANTILES = -2.0, (0.025, 0.975)
"""A method on a par with another is not more than 2 points of accuracy below it."""


class Figure(NamedTuple):
    """A measured figure, its 95 % interval, its unit, the number of test rows, and half the interval that is due to
    them alone; the rest is due to the seeds, of which there are so many."""

    value: float
    low: float
    high: float
    unit: str
    rows: int
    half: float
    seeds: int = 1


class Claim(NamedTuple):
    """A statement in our words, its source, the run, what is compared in it, and the figure, above `bound` if true."""

    statement: str
    source: str
    run: str
    compared: str
    figure: Callable[[], Figure]
    bound: float = 0.0


def verdict(found: Figure, bound: float) -> str:
    if found.low > bound or found.high < bound:
        return "confirmed" if found.low > bound else "refuted"
    distance = abs(found.value - bound)
    if distance == 0:
        return "undecided (no difference)"
    rows = math.ceil(found.rows * (found.half / distance) ** 2)
    return "undecided (more seeds)" if found.half < distance else f"undecided ({rows:,} rows)"


@cache
def trials(run: str) -> list[dict[str, Any]]:
    return json.loads((RESULTS / f"{run}.json").read_text("utf-8"))["trials"]


def chosen(run: str, **settings: Any) -> list[dict[str, Any]]:
    """The trials with these settings. Raises InputError if there is none: the budget of the run ended before it."""
    found = [trial for trial in trials(run) if settings.items() <= trial["settings"].items()]
    if not found:
        raise InputError(f"{run}.json has no trial with {settings}; run `minillm {COMMANDS[run]}` for more --minutes")
    return found


def right(run: str, **settings: Any) -> np.ndarray:
    """Which answers of the trials with these settings are right: a row per trial, a column per test row."""
    return np.array([[answer == "1" for answer in trial["right"]] for trial in chosen(run, **settings)])


def points(first: np.ndarray, second: np.ndarray) -> Figure:
    """The difference of two accuracies on the same test rows."""

    def interval(*sides: np.ndarray) -> list[float]:
        one, two = bootstrap(sides)
        return (100 * np.quantile(one - two, QUANTILES)).tolist()

    low, high = interval(first, second)
    least, most = interval(*(side.mean(0, keepdims=True) for side in (first, second)))
    seeds, rows = first.shape
    return Figure(100 * float(first.mean() - second.mean()), low, high, "points", rows, (most - least) / 2, seeds)


def nats(first: Sequence[tuple[float, int]], second: Sequence[tuple[float, int]] | None = None) -> Figure:
    """The rise of the loss on text that the base knows, or how much larger it is than another on the same text."""
    rows = first if second is None else [(a - b, tokens) for (a, tokens), (b, _) in zip(first, second, strict=True)]
    mean, error = rise(rows)
    half = float(1.96 * error)
    return Figure(mean, mean - half, mean + half, "nats per token", len(rows), half)


def over_seeds(values: Sequence[float], unit: str) -> Figure:
    """The mean of a figure over two or three seeds, with Student's interval."""
    half = {2: 12.71, 3: 4.30}[len(values)] * stdev(values) / math.sqrt(len(values))
    return Figure(fmean(values), fmean(values) - half, fmean(values) + half, unit, 0, 0.0, len(values))


def compared(run: str, first: Mapping[str, Any], second: Mapping[str, Any]) -> Callable[[], Figure]:
    """The difference of the accuracies of two settings of a run."""
    return lambda: points(right(run, **first), right(run, **second))


def above_guessing(run: str, **settings: Any) -> Callable[[], Figure]:
    """How far an accuracy is above that of always giving the most frequent answer."""

    def figure() -> Figure:
        found = right(run, **settings)
        return points(found, np.full((1, found.shape[1]), chosen(run, **settings)[0]["majority_baseline"]))

    return figure


def methods(first: str, second: str, **both: Any) -> Callable[[], Figure]:
    """The difference of two methods: rungs of the ladder, or with `train` trials of `lab data`."""
    run = "data" if "train" in both else "ladder"
    return compared(run, {"method": first, **both}, {"method": second, **both})


def forgotten(method: str, other: str | None = None, remedy: str = "-") -> Callable[[], Figure]:
    """The rise of a method's loss on the base's own text, or how much larger it is than another's."""

    def rises(method: str, remedy: str) -> list[tuple[float, int]]:
        (trial,) = chosen("forgetting", method=method, remedy=remedy)
        return trial["on"]["own text"]

    return lambda: nats(rises(method, "-"), None if other is None else rises(other, remedy))


def chained() -> Figure:
    """The effect of a chain of thought on the juggler's problems of all numbers of steps."""
    both = (right("juggler", way=way) for way in ("zero-shot chain of thought", "zero-shot"))
    return points(*(answers.reshape(1, -1) for answers in both))


def training_time() -> Figure:
    (features,) = chosen("ladder", method="features")
    ratios = [trial["train_seconds"] / features["train_seconds"] for trial in chosen("ladder", method="output")]
    return over_seeds(ratios, "times")


def turned() -> Figure:
    """How much higher the last validation loss is than the least before it, in trainings on 32 rows."""
    losses = [trial["validation_losses"] for trial in chosen("overfit", method="full", train=32)]
    rises = [each[-1] - min(each[:-1]) for each in losses]  # negative while the loss still falls
    return over_seeds(rises, "nats per row")


LECTURE, HU, LI = "lecture", "Hu et al. 2021", "Li & Liang 2021"
QV, ALL = "query, value", "all-linear"
DIRECT = {"measure": "acc", "calibrated": False}  # the log-probability of each answer
CLAIMS = [
    Claim("a prompt without examples classifies reviews", LECTURE, "ladder", "zero-shot, against guessing",
          above_guessing("ladder", method="zero-shot")),
    Claim("examples in the prompt help", "Brown et al. 2020", "ladder", "few-shot - zero-shot",
          methods("few-shot", "zero-shot")),
    Claim("a prompt without examples also solves more complex tasks (the lecture: it does not)", LECTURE, "problems",
          "zero-shot on word problems, against guessing", above_guessing("problems", **DIRECT)),
    Claim("a chain of thought helps", LECTURE, "juggler", "chain - direct", chained),
    Claim("examples teach even a new task", LECTURE, "newtask", "few-shot, labels invented, against guessing",
          above_guessing("newtask", method="few-shot", changed="labels invented")),
    Claim("calibration helps few-shot", "Zhao et al. 2021", "prompt", "calibrated - not",
          compared("prompt", {**DIRECT, "calibrated": True}, DIRECT)),
    Claim("channel scoring is better than direct scoring", "Min et al. 2022", "prompt", "channel - direct",
          compared("prompt", {**DIRECT, "measure": "channel"}, DIRECT)),
    Claim("a trained prefix replaces the manual prompt", LECTURE, "ladder", "prefix - zero-shot",
          methods("prefix", "zero-shot")),
    Claim("a prefix works with 50 to 500 examples", LECTURE, "data", "prefix, 50 rows, against guessing",
          above_guessing("data", method="prefix", train=50)),
    Claim("a prefix is on a par with full fine-tuning", LI, "ladder", "prefix - full", methods("prefix", "full"), PAR),
    Claim("with few examples a prefix is better than full fine-tuning", LI, "data", "prefix - full, 50 rows",
          methods("prefix", "full", train=50)),
    Claim("a prefix cannot learn completely new tasks", LECTURE, "newtask", "LoRA - prefix, labels permuted",
          compared("newtask", {"method": "lora", "changed": "labels permuted"},
                   {"method": "prefix", "changed": "labels permuted"})),
    Claim("a classifier on stored features has a low accuracy", LECTURE, "ladder", "full - features",
          methods("full", "features")),
    Claim("the output layers are slightly more accurate", LECTURE, "ladder", "output - features",
          methods("output", "features")),
    Claim("they take slightly longer to train", LECTURE, "ladder", "seconds, output / features", training_time, 1.0),
    Claim("the last blocks are on a par with full fine-tuning", "Lee et al. 2019", "ladder", "last two blocks - full",
          methods("last-blocks", "full"), PAR),
    Claim("full fine-tuning is potentially more accurate", LECTURE, "ladder", "full - output",
          methods("full", "output")),
    Claim("full fine-tuning overfits", LECTURE, "overfit", "last - least validation loss", turned),
    Claim("full fine-tuning needs many examples", LECTURE, "data", "LoRA - full, 50 rows",
          methods("lora", "full", train=50)),
    Claim("full fine-tuning forgets", LECTURE, "forgetting", "full, on the base's own text", forgotten("full")),
    Claim("LoRA forgets less", "Biderman et al. 2024", "forgetting", "full - LoRA", forgotten("full", "lora")),
    Claim("replay reduces forgetting", "Robins 1995", "forgetting", "full - full with replay",
          forgotten("full", "full", "replay")),
    Claim("LoRA is on a par with full fine-tuning", HU, "ladder", "LoRA - full", methods("lora", "full"), PAR),
    Claim("a low rank may cause a low performance", LECTURE, "rank", "r 64 - r 1, query and value",
          compared("rank", {"r": 64, "targets": QV}, {"r": 1, "targets": QV})),
    Claim("a very small rank suffices", HU, "rank", "r 1 - r 64, query and value",
          compared("rank", {"r": 1, "targets": QV}, {"r": 64, "targets": QV}), PAR),
    Claim("it matters which matrices are adapted", LECTURE, "rank", "all - query and value, r 1",
          compared("rank", {"r": 1, "targets": ALL}, {"r": 1, "targets": QV})),
    Claim("the update of full fine-tuning has a low rank", LECTURE, "rank", "dW of full cut to r 8 - full",
          compared("rank", {"method": "dW of full", "r": 8}, {"method": "full"}), PAR),
]  # fmt: skip


def table(claims: Sequence[Claim] = CLAIMS) -> str:
    """The claims as a table in Markdown."""
    lines = ["| claim | source | compared | figure, 95 % interval | verdict | run |", "|---|---|---|---|---|---|"]
    for claim in claims:
        found = claim.figure()
        style = {"points": "+.1f", "times": ".2f"}.get(found.unit, "+.3f")
        figure = f"{found.value:{style}} {found.unit} ({found.low:{style}} to {found.high:{style}})"
        bound = f" > {claim.bound:g}" if claim.bound else ""
        lab = COMMANDS[claim.run].startswith("lab ")
        tiny, once = lab and SMOLLM2 not in COMMANDS[claim.run], lab and found.seeds == 1
        of = f"{claim.run}{', tiny' if tiny else ''}{', one seed' if once else ''}"
        cells = claim.statement, claim.source, claim.compared + bound, figure, verdict(found, claim.bound), of
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def recorded(run: str, directory: Path) -> dict[str, Any]:
    """What is kept of the results in a run's directory."""
    name = "prompt" if run == "problems" else COMMANDS[run].removeprefix("lab ").split()[0]
    found = json.loads((directory / f"{name}.json").read_text("utf-8"))
    rows = directory / "rows.json"
    labels = json.loads(rows.read_text("utf-8"))["labels"] if rows.exists() else []
    trials = []
    for settings, measured in _measured(found):
        answers = measured.get("right")
        if answers is None:
            answers = [a == b for a, b in zip(measured["predicted"], measured.get("labels", labels), strict=True)]
        kept = {key: measured[key] for key in KEPT if key in measured}
        losses = measured.get("chosen", {}).get("validation_losses")
        kept |= {"validation_losses": losses} if run == "overfit" else {}
        trials.append({"settings": settings, "right": "".join("01"[int(answer)] for answer in answers), **kept})
    return {"command": f"minillm {COMMANDS[run]}", "versions": found["versions"], "trials": trials}


def _measured(found: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], Mapping[str, Any]]]:
    """The settings and the measurements of each trial of a lab, seed of a rung, and measure of a prompt."""
    for rung in found.get("rungs", []):
        yield from (({"method": rung["name"], "seed": run["seed"]}, run) for run in rung["runs"])
    for asked in found.get("asked", []):
        for measure, both in asked["measures"].items():
            for when, measured in both.items():
                settings = {"measure": measure, "calibrated": when == "after"}
                yield settings, measured | {"labels": asked["labels"]}
    for trial in found.get("trials", []):
        settings, measured = ({**trial[part]} for part in ("settings", "measured"))
        if "targets of LoRA" in settings:
            settings["targets"] = settings["targets of LoRA"]
        if "predicted" in measured or "right" in measured:
            yield settings, measured
        for r, cut in measured.get("cut", {}).items():
            yield {"method": "dW of full", "r": int(r), "seed": settings["seed"]}, cut


def main(record: Path | None = None, out: Path | None = None) -> None:
    """The table of claims.

    Args:
        record: A directory with new results, which are recorded first.
        out: Write the table into this file.
    """
    if record is not None:
        for name in COMMANDS:
            if (record / name).is_dir():
                write_text(RESULTS / f"{name}.json", json.dumps(recorded(name, record / name)) + "\n")
        trials.cache_clear()
    print(table())
    if out is not None:
        write_text(out, table() + "\n")


if __name__ == "__main__":
    run(main, __doc__)
