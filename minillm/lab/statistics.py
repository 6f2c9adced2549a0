"""Is a difference of two accuracies larger than noise? Paired tests on the same test rows, and calibration.

The noise has two sources: the choice of the test rows, and the seed of a training. `right` is True where a prediction
is right: a row per seed, a column per test row.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import fmean, variance
from typing import Any

import numpy as np

from minillm.lab.report import standard_error
from minillm.shapes import Bool, Float

Right = Bool[np.ndarray, "_ N"]
SAMPLES, BINS, LEVEL = 10_000, 15, 0.05
"""Bootstrap samples, bins of a reliability curve, and the significance level."""


def compare_all(right: Mapping[str, Right]) -> list[dict[str, Any]]:
    """The difference in accuracy of every pair of methods, its 95 % interval, and the p-value of no difference.

    With one seed each, p is that of McNemar's exact test, else of the bootstrap; `holm_p` is adjusted for all pairs.
    """
    found, samples = [], dict(zip(right, bootstrap(list(right.values())), strict=True)) if right else {}
    for one, two in combinations(right, 2):
        differences = np.round(samples[one] - samples[two], 12)  # 0 for equal accuracies
        low, high = np.quantile(differences, [0.025, 0.975]).tolist()
        p = min(1.0, 2 * (1 + min((differences <= 0).sum(), (differences >= 0).sum()).item()) / (1 + SAMPLES))
        if len(right[one]) == len(right[two]) == 1:
            p = mcnemar(right[one][0], right[two][0])
        difference = right[one].mean().item() - right[two].mean().item()
        found.append({"first": one, "second": two, "difference": difference, "low": low, "high": high, "p": p})
    for pair, p in zip(found, holm([pair["p"] for pair in found]), strict=True):
        pair |= {"holm_p": p, "verdict": "larger than noise" if p < LEVEL else "not distinguishable"}
    return found


def mcnemar(first: Bool[np.ndarray, "N"], second: Bool[np.ndarray, "N"]) -> float:
    """The two-sided p-value of McNemar's exact test (McNemar 1947).

    Without a difference, either method is right with probability 1/2 in a row where only one is right: a binomial test.
    """
    one, two = int((first & ~second).sum()), int((second & ~first).sum())
    return min(1.0, 2 * sum(math.comb(one + two, few) for few in range(min(one, two) + 1)) / 2 ** (one + two))


def bootstrap(right: Sequence[Right | Float[np.ndarray, "_ N"]]) -> Float[np.ndarray, "_ _"]:
    """The accuracy of each method in 10,000 samples of the test rows, the same for all, and of its seeds.

    Rows are drawn with replacement. As seeds are too few for that, the noise of their mean is drawn from Student's t,
    with the variance between the seeds beyond that of random predictions on the rows.
    """
    random, runs, rows = np.random.default_rng(0), np.concatenate(right).T.astype(float), right[0].shape[1]
    samples = [random.multinomial(rows, np.full(rows, 1 / rows), 100) @ runs / rows for _ in range(SAMPLES // 100)]
    found = np.split(np.concatenate(samples), np.cumsum([len(one) for one in right])[:-1], axis=1)
    shares = np.stack([one.mean(1) for one in found])
    for share, one in zip(shares, right, strict=True):
        if (seeds := len(one)) > 1:
            between = one.mean(1).var(ddof=1) - one.var(0, ddof=1).mean() / rows
            share += random.standard_t(seeds - 1, SAMPLES) * math.sqrt(max(0.0, between) / seeds)
    return shares


def holm(p: Sequence[float]) -> list[float]:
    """The p-values adjusted for the number of tests (Holm 1979); each may be compared with the significance level."""
    order = np.argsort(p, kind="stable")
    scaled = np.maximum.accumulate(np.asarray(p)[order] * np.arange(len(p), 0, -1))
    return np.minimum(1, scaled)[np.argsort(order)].tolist()


def calibration(confidence: Float[np.ndarray, "N"], right: Bool[np.ndarray, "N"]) -> dict[str, Any]:
    """The expected calibration error, and the points of the reliability curve in 15 bins (Guo et al. 2017, eq. 3)."""
    bins, points = np.minimum((confidence * BINS).astype(int), BINS - 1), []
    for rows in (bins == n for n in np.unique(bins)):
        share, accuracy = confidence[rows].mean().item(), right[rows].mean().item()
        points.append({"confidence": share, "accuracy": accuracy, "rows": int(rows.sum())})
    error = sum(point["rows"] * abs(point["accuracy"] - point["confidence"]) for point in points) / len(right)
    return {"calibration_error": error, "reliability": points}


def right_of(runs: Sequence[Mapping[str, Any]], labels: Sequence[int]) -> Right:
    return np.array([run["predicted"] for run in runs]) == np.array(labels)


def confusion(labels: Sequence[int], predicted: Sequence[int], classes: int) -> list[list[int]]:
    """The number of rows by label and predicted answer."""
    counts = Counter(zip(labels, predicted, strict=True))
    return [[counts[label, answer] for answer in range(classes)] for label in range(classes)]


def accuracy_over_seeds(runs: Sequence[Mapping[str, Any]], rows: int) -> tuple[float, float]:
    """The mean accuracy of runs that differ in their seeds, and its standard error.

    The variance is that between the seeds, divided by their number, plus that of the test rows, which they share.
    """
    shares = [run["accuracy"] for run in runs]
    mean, between = fmean(shares), variance(shares) / len(shares) if len(shares) > 1 else 0.0
    return mean, math.sqrt(between + standard_error(mean, rows) ** 2)


def over_seeds(runs: Sequence[Mapping[str, Any]], labels: Sequence[int], classes: int) -> dict[str, Any]:
    """The results of several seeds as one: means, the standard error over rows and seeds, calibration and confusion.

    The confusion matrix (labels by predictions) is the sum over the seeds. Everything else is of the first seed.
    """
    means = {name: fmean(run[name] for run in runs) for name in ("train_seconds", "eval_seconds", "tokens_per_second")}
    means["accuracy"], error = accuracy_over_seeds(runs, len(labels))
    predicted = [answer for run in runs for answer in run["predicted"]]
    counts = confusion([*labels] * len(runs), predicted, classes)
    confidence = np.array([share for run in runs for share in run["confidence"]])
    calibrated = calibration(confidence, right_of(runs, labels).ravel())
    return {**runs[0], **means, "standard_error": error, **calibrated, "confusion": counts, "runs": list(runs)}
