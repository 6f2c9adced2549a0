"""Three ways to climb: by a prompt, by a classifier on stored features, by training a method.

Each is given the world (base, task, device) and returns its outcome. What can be chosen (the head's C, the best
epoch) is chosen on the validation rows; the test rows are scored once, at the end.
"""

import time
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from minillm.adapt import FineTune, FrozenHead, Method
from minillm.adapt.frozen_head import FeatureRecipe
from minillm.data.tasks import LabelledText
from minillm.decoder import Decoder
from minillm.lab.world import Keep, Outcome, World, count, keep_nothing, labels, score_rows, size
from minillm.prompting.choosing import balanced_shots
from minillm.prompting.prompt_cache import Reader
from minillm.prompting.scoring import accuracy, answer_scores
from minillm.training.activation_cache import ActivationCache, lowest_trained_stage
from minillm.training.feature_cache import cached_features
from minillm.training.loop import train
from minillm.training.schedule import TrainingSettings

PENALTIES = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1, 2e-1, 5e-1, 1.0)
"""The values of C, the inverse strength of the penalty on a classifier's weights, that are tried."""


def in_context(world: World, name: str, shots: int) -> Outcome:
    """Nothing is trained: what all prompts have in common is read once, and each row only adds its own tokens."""
    task = world.task
    shown = balanced_shots(task, shots, world.seed) if shots else []
    prompts = world.prompts(task.test, shown)
    start = time.perf_counter()
    kept = Reader(world.decoder).read(prompts)
    scores = kept.score(world.answers(), name)
    spent = time.perf_counter() - start
    chosen = {"shots": shots, "shared_tokens": kept.shared}
    return Outcome(scores, eval_seconds=spent, tokens=kept.tokens, chosen=chosen)


def features(world: World, name: str, keep: Keep = keep_nothing) -> Outcome:
    """A logistic regression on stored features; its penalty is that under which the validation rows are likeliest.

    (Their accuracy would choose by a handful of rows.) Standardised features need no other grid for another decoder.
    """
    task, body = world.task, world.working_body()
    recipe, tokenizer = FeatureRecipe(precision=world.precision), world.tokenizer.fingerprint
    splits = {"train": task.train, "validation": task.validation, "test": task.test}
    prompts = {split: world.prompts(rows) for split, rows in splits.items()}
    found, seconds = {}, {}
    for split, texts in prompts.items():
        start = time.perf_counter()
        label = f"{name}, {split} rows"
        found[split] = cached_features(body, texts, world.out / "features", recipe, tokenizer, label)
        seconds[split] = time.perf_counter() - start

    def fitted(c: float) -> FrozenHead:
        method = FrozenHead(body, len(task.answers), settings={"c": c, "standardise": True})
        method.fit(found["train"], labels(task.train))
        return method

    start, likelihood = time.perf_counter(), {}
    for c in PENALTIES:
        scores = fitted(c).classifier.scores(found["validation"])
        likelihood[c] = -F.cross_entropy(scores, labels(task.validation)).item()
    best = max(likelihood, key=lambda c: likelihood[c])
    method = fitted(best)
    fitting = time.perf_counter() - start
    keep(method)
    on_validation = accuracy(method.classifier.scores(found["validation"]), labels(task.validation))
    return Outcome(
        method.classifier.scores(found["test"]),
        trainable_parameters=count(method.trainable()),
        stored_bytes=size(method.state()),
        train_seconds=seconds["train"] + fitting,
        eval_seconds=seconds["test"],
        tokens=sum(len(prompt) for prompt in prompts["train"]),
        precision=world.precision,
        chosen={"c": best, "validation": on_validation},
    )


def trained(
    world: World, name: str, adapt: Callable[[Decoder], Method], settings: TrainingSettings, lower: bool,
    keep: Keep = keep_nothing,
) -> Outcome:  # fmt: skip
    """Gradient descent on the answers' cross-entropy; the epoch is chosen on the validation rows.

    What a frozen trunk says of a row is computed once, and a classifier's answers are its classes.
    `lower` says that the method leaves the base's matrices frozen, so that they can be held in half precision.
    """
    task, answers = world.task, world.answers()
    method = adapt(world.working_body() if lower else world.decoder)
    cached = ActivationCache(method).features if lowest_trained_stage(method) else None
    if isinstance(method, FineTune) and method.classes is not None:
        answers = [[label] for label in range(len(answers))]
    prompts, targets = world.prompts(task.train), labels(task.train)

    def loss(batch: list[int]) -> tuple[Tensor, int]:
        scores = answer_scores(method, [prompts[index] for index in batch], answers, cached)
        return F.cross_entropy(scores, targets[batch].to(scores.device), reduction="sum"), len(batch)

    def score(rows: list[LabelledText], what: str) -> Tensor:
        return score_rows(world, method, world.prompts(rows), answers, world.precision, f"{name}, {what} rows", cached)

    def validate() -> float:
        return accuracy(score(task.validation, "validation"), labels(task.validation))

    history = train(
        method, range(len(prompts)), loss, lambda index: len(prompts[index]), settings,
        validate=validate if settings.epochs > 1 else None, interrupted=lambda: keep(method), name=name,
    )  # fmt: skip
    keep(method)
    start = time.perf_counter()
    scores = score(task.test, "test")
    return Outcome(
        scores,
        trainable_parameters=count(method.trainable()),
        stored_bytes=size(method.state()),
        train_seconds=history.seconds,
        eval_seconds=time.perf_counter() - start,
        tokens=history.tokens,
        precision=world.precision,
        chosen={"epochs": settings.epochs, "rate": settings.rate, "best_epoch": history.best_epoch + 1,
                "validation": history.validation, "losses": history.losses},
    )  # fmt: skip
