"""Every method as the experiments use it: how it is built on a base, trained, and scored on the test rows.

What can be chosen (the classifier's C, the best epoch) is chosen on the validation rows; the test rows are scored once,
at the end. Rates and epochs were found on the validation rows of the reviews.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from minillm.adapt import Adaptation, DoRA, FineTune, FrozenHead, LoRA, Method, PiSSA, PrefixTuning, SoftPrompt
from minillm.adapt.frozen_head import FeatureRecipe
from minillm.data.tasks import LabelledText, Task
from minillm.decoder import Decoder
from minillm.errors import InputError
from minillm.generation import LanguageModel
from minillm.lab.experiment import Experiment, Outcome, labels, parameter_count, tensor_bytes
from minillm.prompting.choosing import balanced_shots
from minillm.prompting.prompt_cache import PromptCache
from minillm.prompting.scoring import Features, accuracy, answer_scores, score_all
from minillm.runtime.device import autocast
from minillm.runtime.options import Names
from minillm.training.activation_cache import ActivationCache, lowest_trained_stage
from minillm.training.feature_cache import cached_features
from minillm.training.loop import train
from minillm.training.schedule import TrainingSettings

SHOTS = 8
INSTRUCTION = "Answer with negative or positive.\n\n"
PENALTIES = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1, 2e-1, 5e-1, 1.0)
"""The values of C, the inverse strength of the penalty on a classifier's weights, that are tried."""


@dataclass(frozen=True, kw_only=True)
class MethodOptions:
    """A method's options; each method uses those that it has. `epochs` and `rate` default to the method's own."""

    r: int = 8
    """The rank of a low-rank method."""
    alpha: float = 16.0
    """Its scale is alpha / r."""
    targets: Names = ("query", "value")
    """Its matrices: roles, paths with wildcards or all-linear, comma-separated."""
    length: int = 10
    """Positions of a prefix."""
    words: str | None = None
    """The words that a soft prompt or a prefix starts from."""
    layers: int = 2
    """How many blocks last-blocks trains."""
    epochs: int | None = None
    """How often each row is seen (default: the method's own number)."""
    rate: float | None = None
    """The learning rate at its highest (default: the method's own)."""
    batch: int = 16
    """Rows a step."""


def soft_prompt(experiment: Experiment, options: MethodOptions) -> Method:
    """A soft prompt starts best from words: by default the instruction, in as many vectors as it has tokens."""
    ids = experiment.tokenizer.encode(INSTRUCTION if options.words is None else options.words)
    return SoftPrompt(experiment.decoder, max(len(ids), options.length) if options.words else len(ids), ids)


def prefix(experiment: Experiment, options: MethodOptions) -> Method:
    init = "random" if options.words is None else experiment.tokenizer.encode(options.words)
    return PrefixTuning(experiment.decoder, options.length, init)


def output(experiment: Experiment, options: MethodOptions) -> Method:
    """The LM head; for labels, the answers' rows alone: no other row has a gradient from the answers' loss."""
    if experiment.task is None:
        return FineTune(experiment.decoder, "output")
    answers = experiment.answers()
    tokens = list(dict.fromkeys(answer[0] for answer in answers if len(answer) == 1))
    return FineTune(experiment.decoder, "output", tokens if len(tokens) == len(answers) else len(answers))


METHODS: dict[str, Callable[[Experiment, MethodOptions], Method]] = {
    "soft-prompt": soft_prompt,
    "prefix": prefix,
    "output": output,
    "last-blocks": lambda on, options: FineTune(on.decoder, options.layers),
    "lora": lambda on, options: LoRA(on.decoder, r=options.r, alpha=options.alpha, targets=options.targets),
    "dora": lambda on, options: DoRA(on.decoder, r=options.r, alpha=options.alpha, targets=options.targets),
    "pissa": lambda on, options: PiSSA(on.decoder, r=options.r, alpha=options.alpha, targets=options.targets),
    "full": lambda on, options: FineTune(on.decoder),
}
"""The methods that are trained by gradient descent, by the names that the commands give them."""

FINE_TUNED = ("output", "last-blocks", "full")
"""Those that train copies of the base's own weights."""


class TrainingDefaults(NamedTuple):
    epochs: int
    rate: float


DEFAULTS = {
    "soft-prompt": TrainingDefaults(2, 3e-2), "prefix": TrainingDefaults(2, 1e-2),
    "output": TrainingDefaults(8, 1e-3), "last-blocks": TrainingDefaults(2, 4e-4), "lora": TrainingDefaults(2, 1e-3),
    "dora": TrainingDefaults(2, 1e-3), "pissa": TrainingDefaults(2, 1e-4), "full": TrainingDefaults(1, 2e-5),
}  # fmt: skip


def build(experiment: Experiment, name: str, options: MethodOptions) -> Method:
    """The method on the base, whose frozen matrices are held in the experiment's precision from here on."""
    if name not in FINE_TUNED:
        experiment.lower_base()
    torch.manual_seed(experiment.seed)
    method = METHODS[name](experiment, options)
    if name in FINE_TUNED:
        experiment.lower_base(method)
    return method


def training_settings(experiment: Experiment, name: str, options: MethodOptions) -> TrainingSettings:
    epochs, rate = DEFAULTS[name]
    return TrainingSettings(
        epochs=epochs if options.epochs is None else options.epochs,
        rate=rate if options.rate is None else options.rate,
        batch=options.batch,
        precision=experiment.precision,
        seed=experiment.seed,
    )


OnTrained = Callable[[Adaptation], None]
"""What is done with a method that is trained, or with what is trained of it when training is interrupted."""


def run(
    experiment: Experiment, name: str, options: MethodOptions | None = None,
    on_trained: OnTrained = lambda method: None,
) -> Outcome:  # fmt: skip
    """One method, trained if it has anything to train, and the test rows scored. Raises InputError for its name."""
    if name in ("zero-shot", "few-shot"):
        return in_context(experiment, name, shots=0 if name == "zero-shot" else SHOTS)
    if name == "features":
        return features(experiment, on_trained)
    if name not in METHODS:
        raise InputError(f"there is no method {name!r}; there are: features, {', '.join(METHODS)}")
    return trained(experiment, name, options or MethodOptions(), on_trained)


def in_context(experiment: Experiment, name: str, shots: int) -> Outcome:
    """Nothing is trained: what all prompts have in common is processed once, and each row adds only its own tokens."""
    task = experiment.labelled
    prompts = experiment.prompts(task.test, balanced_shots(task, shots, experiment.seed) if shots else [])
    start = time.perf_counter()
    cached = PromptCache(experiment.decoder).process(prompts)
    scores = cached.score(experiment.answers(), name)
    seconds = time.perf_counter() - start
    chosen = {"shots": shots, "shared_tokens": cached.shared}
    return Outcome(scores, eval_seconds=seconds, tokens=cached.tokens, chosen=chosen)


def features(experiment: Experiment, on_trained: OnTrained) -> Outcome:
    """A logistic regression on stored features of the frozen base."""
    experiment.lower_base()
    task, precision = experiment.labelled, experiment.precision
    rows = {"train": task.train, "validation": task.validation, "test": task.test}
    prompts = {split: experiment.prompts(some) for split, some in rows.items()}
    found, seconds = {}, {}
    for split, texts in prompts.items():
        start = time.perf_counter()
        found[split] = cached_features(
            experiment.decoder, texts, experiment.out / "features", FeatureRecipe(precision=precision),
            experiment.tokenizer.fingerprint, f"features, {split} rows",
        )  # fmt: skip
        seconds[split] = time.perf_counter() - start
    start = time.perf_counter()
    method, c = _best_classifier(experiment.decoder, task, found["train"], found["validation"])
    seconds["train"] += time.perf_counter() - start
    on_trained(method)
    on_validation = accuracy(method.classifier.scores(found["validation"]), labels(task.validation))
    return Outcome(
        method.classifier.scores(found["test"]), parameter_count(method.trainable()), tensor_bytes(method.state()),
        seconds["train"], seconds["test"], sum(map(len, prompts["train"])), precision,
        chosen={"c": c, "validation": on_validation},
    )  # fmt: skip


def _best_classifier(decoder: Decoder, task: Task, train: Tensor, validation: Tensor) -> tuple[FrozenHead, float]:
    """The classifier, and the C under which the validation labels are most likely.

    (Their accuracy would choose by a handful of rows.) Standardised features need no other grid for another decoder.
    """

    def fitted(c: float) -> FrozenHead:
        method = FrozenHead(decoder, len(task.answers), settings={"c": c, "standardise": True})
        method.fit(train, labels(task.train))
        return method

    def loss(c: float) -> float:
        return F.cross_entropy(fitted(c).classifier.scores(validation), labels(task.validation)).item()

    best = min(PENALTIES, key=loss)
    return fitted(best), best


def score_rows(
    experiment: Experiment, model: LanguageModel, prompts: list[list[int]], answers: list[list[int]],
    features: Features | None, name: str,
) -> Tensor:  # fmt: skip
    """Each answer's score after each prompt, in the experiment's precision."""

    def score(batch: list[int]) -> Tensor:
        with autocast(experiment.device, experiment.precision):
            return answer_scores(model, [prompts[index] for index in batch], answers, features)

    return score_all(score, [len(prompt) for prompt in prompts], name)


def trained(experiment: Experiment, name: str, options: MethodOptions, on_trained: OnTrained) -> Outcome:
    """Gradient descent on the answers' cross-entropy; the epoch is chosen on the validation rows.

    The hidden states of frozen layers are computed once for each row, and a classifier's answers are its classes.
    """
    task, answers = experiment.labelled, experiment.answers()
    settings = training_settings(experiment, name, options)
    method = build(experiment, name, options)
    cached = ActivationCache(method).features if lowest_trained_stage(method) else None
    if isinstance(method, FineTune) and method.classes is not None:
        answers = [[label] for label in range(len(answers))]
    prompts, targets = experiment.prompts(task.train), labels(task.train)

    def loss(batch: list[int]) -> tuple[Tensor, int]:
        scores = answer_scores(method, [prompts[index] for index in batch], answers, cached)
        return F.cross_entropy(scores, targets[batch].to(scores.device), reduction="sum"), len(batch)

    def score(rows: list[LabelledText], which: str) -> Tensor:
        return score_rows(experiment, method, experiment.prompts(rows), answers, cached, f"{name}, {which} rows")

    def validate() -> float:
        return accuracy(score(task.validation, "validation"), labels(task.validation))

    history = train(
        method, range(len(prompts)), loss, lambda index: len(prompts[index]), settings,
        validate=validate if settings.epochs > 1 else None, on_interrupt=lambda: on_trained(method), name=name,
    )  # fmt: skip
    on_trained(method)
    start = time.perf_counter()
    scores = score(task.test, "test")
    return Outcome(
        scores, parameter_count(method.trainable()), tensor_bytes(method.state()), history.seconds,
        time.perf_counter() - start, history.tokens, experiment.precision,
        chosen={"epochs": settings.epochs, "rate": settings.rate, "best_epoch": history.best_epoch + 1,
                "validation": history.validation, "losses": history.losses},
    )  # fmt: skip
