"""Adapting SmolLM2 to the reviews, in minillm and in transformers + peft + scikit-learn: check first, then time.

Before anything is timed, every side must give the same logits, first loss and gradients (or features) as the peer in
float32, and afterwards the same losses in every step (or the same classifier); in bfloat16 the same mean loss. An epoch
is cut into rounds, and the sides run each round in turn, each in its own process.

The sides: minillm in float32 and, where the CPU multiplies it natively, in bfloat16 with the frozen matrices stored in
it. The peer in float32 as in its documentation, which is the reference, and under torch.autocast in bfloat16. The
"tuned" peer, in both: glibc keeps freed memory, and the head runs on the last position only. minillm always does both.
All sides stay loaded: 15 GB together, 8 with --no-tuned.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.comparison import Comparison, Errors, check, cores, error, multiplies_bfloat16, write_json
from benchmarks.reviews import Work, reviews
from benchmarks.sides import Side, Worker, at_work, run, shares, take_turns
from minillm.errors import InputError

PEER, PEER_IN_HALF = "peer, float32", "peer, bfloat16"
BATCH, FEATURES_BATCH = 16, 32
C = 0.01  # of the logistic regression
# Relative to the norm of a quantity. float32 rounding errors grow to this over 30 blocks, forward and backward.
TOLERANCE = 1e-3
# In bfloat16 minillm's error may be twice that of the peer.
HALF, HALF_TO_PEER = 0.2, 2.0


class Plan(NamedTuple):
    """The settings that all comparisons share."""

    work: Work
    rounds: int
    threads: int
    tuned: bool
    device: str = "cpu"


def sides(kind: str, tuned: bool, options: dict[str, Any]) -> list[Side]:
    """minillm's and the peer's contestants of that kind, in each precision worth timing."""
    from benchmarks import minillm_side, peer_side

    peer_side.directory()  # converts the weights once, before several processes start
    wide = not multiplies_bfloat16(options.get("device", "cpu"))
    precisions = ("float32",) if wide else ("float32", "bfloat16")
    ours, theirs = getattr(minillm_side, kind), getattr(peer_side, kind)
    rows = [(f"minillm, {precision}", ours, {"precision": precision}) for precision in precisions]
    for is_tuned in (False, True) if tuned else (False,):
        for precision in precisions:
            name = f"peer{' tuned' * is_tuned}, {precision}"
            rows.append((name, theirs, {"precision": precision, "tuned": is_tuned}))
    return [Side(name, contestant, {**options, **more}) for name, contestant, more in rows]


def compared(workers: list[Worker], answers: list[dict[str, Any]]) -> Errors:
    """The errors of all sides against the reference. Raises InputError for one above its tolerance."""
    named = {worker.name: answer for worker, answer in zip(workers, answers, strict=True)}
    expected, errors = named[PEER], {name: {} for name in named}
    for what, value in expected.items():
        half = max(HALF, HALF_TO_PEER * error(named[PEER_IN_HALF][what], value)) if PEER_IN_HALF in named else HALF
        for name, answer in named.items():
            allowed = half if name.endswith("bfloat16") else TOLERANCE
            errors[name] |= check(name, {what: answer[what]}, {what: value}, allowed)
    return errors


def trained(method: str, rate: float, plan: Plan, epochs: int = 1, noise: float = 0.01) -> list[Comparison]:
    """A method trained by gradient descent, compared by epoch; see METHODS in minillm_side and peer_side."""
    batches = plan.work.batches(BATCH)
    options = {"work": plan.work, "batch": BATCH, "method": method, "rate": rate, "epochs": epochs}
    options["device"] = plan.device
    with at_work(sides("Training", plan.tuned, options), plan.threads) as workers:
        start = workers[0].ask("parameters")
        # Parameters that start at zero (LoRA's B) would hide the gradients of others (A): add noise for the check.
        random = np.random.default_rng(0)
        noisy = {name: value + noise * random.standard_normal(value.shape, "f4") for name, value in start.items()}
        errors = compared(workers, [_probed(worker, noisy, batches[0]) for worker in workers])
        for worker in workers:
            worker.ask("start_from", start)
        turns = shares(batches, plan.rounds)
        comparisons = []
        for epoch in range(1, epochs + 1):
            rounds = take_turns(workers, "train", turns, plan.work.tokens, f"{method}, epoch {epoch}")
            later = _compared_losses(workers, {one.side: np.concatenate(one.answers) for one in rounds})
            found = {name: errors[name] | later[name] for name in errors}
            comparisons.append(Comparison(f"{method}, training, epoch {epoch}", "tokens", PEER, rounds, found))
    return comparisons


def _compared_losses(workers: list[Worker], losses: dict[str, np.ndarray]) -> Errors:
    """The loss of every step in float32, else only the mean: at these rates bfloat16 follows its own trajectory."""
    means = compared(workers, [{"mean loss": losses[worker.name].mean(keepdims=True)} for worker in workers])
    wide = [worker for worker in workers if not worker.name.endswith("bfloat16")]
    each = compared(wide, [{"later losses": losses[worker.name]} for worker in wide])
    return {name: found | each.get(name, {}) for name, found in means.items()}


def _probed(worker: Worker, parameters: dict[str, np.ndarray], batch: list[int]) -> dict[str, Any]:
    worker.ask("start_from", parameters)
    return worker.ask("probe", batch)


def features(plan: Plan) -> list[Comparison]:
    """The features of all rows, and the classifier, which both sides fit on the features of the reference."""
    batches = plan.work.batches(FEATURES_BATCH)
    with at_work(sides("Features", plan.tuned, {"work": plan.work, "c": C}), plan.threads) as workers:
        errors = compared(workers, [{"features": worker.ask("compute", batches[:1])} for worker in workers])
        rounds = take_turns(workers, "compute", shares(batches, plan.rounds), plan.work.tokens, "features")
        found = next(np.concatenate(one.answers) for one in rounds if one.side == PEER)
        rows = [row for share in shares(batches, plan.rounds) for batch in share for row in batch]
        stored = np.empty_like(found)
        stored[rows] = found
        pair = [worker for worker in workers if worker.name in (PEER, "minillm, float32")]
        fitted = compared(pair, [{"classifier": worker.ask("fit", stored)} for worker in pair])
        fits = take_turns(pair, "fit", [stored] * plan.rounds, len, "classifier")
    return [
        Comparison("features, forward", "tokens", PEER, rounds, errors),
        Comparison("features, classifier", "rows", PEER, fits, fitted),
    ]


METHODS: dict[str, Callable[[Plan], list[Comparison]]] = {
    "lora": lambda plan: trained("lora", 5e-4, plan),
    "soft-prompt": lambda plan: trained("soft-prompt", 3e-2, plan),
    # Keys and values of words have size 1; near 0 a prefix's gradients in bfloat16 are mostly rounding error.
    "prefix": lambda plan: trained("prefix", 1e-2, plan, noise=1.0),
    # From the second epoch on minillm takes the outputs of the frozen blocks from its activation cache.
    "last-blocks": lambda plan: trained("last-blocks", 1e-4, plan, epochs=2),
    "full": lambda plan: trained("full", 2e-5, plan),
    "features": features,
}


def main(
    rounds: int = 8,
    rows: int = 500,
    threads: int = cores(),
    methods: str = ",".join(METHODS),
    tuned: bool = True,
    device: str = "cpu",
    json: Path | None = None,
) -> None:
    """Both sides, in turns.

    Args:
        rounds: Parts of an epoch; every side runs each of them once.
        rows: Rows of reviews.
        threads: CPU threads of each side; one side runs at a time.
        methods: Methods to compare, comma-separated: lora, soft-prompt, prefix, last-blocks, full, features.
        tuned: Time the tuned peers too.
        device: The device of the trained methods, cpu or cuda; features are computed on the CPU.
        json: Write all rounds of all sides to this file.
    """
    chosen = [name.strip() for name in methods.split(",")]
    if unknown := [name for name in chosen if name not in METHODS]:
        raise InputError(f"unknown method {unknown[0]!r}; choose from {', '.join(METHODS)}")
    settings = {"rounds": rounds, "rows": rows, "threads": threads, "methods": chosen, "device": device}
    plan, comparisons = Plan(reviews(rows), rounds, threads, tuned, device), []
    for name in chosen:
        for comparison in METHODS[name](plan):
            comparisons.append(comparison)
            print(comparison.table(), end="\n\n", flush=True)
    if json is not None:
        write_json(json, settings, comparisons)


if __name__ == "__main__":
    run(main, __doc__)
