"""The rungs of the ladder: each a way to adapt the base to the task, from telling it what to do to training it whole.

A rung is given the world (base, task, device) and returns its outcome. What can be chosen (the head's C, the best
epoch) is chosen on the validation rows; the test rows are scored once, at the end.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from minillm.adapt import Adaptation, FineTune, FrozenHead, InContext, LoRA, Method
from minillm.adapt.feature_store import Recipe, filed_features
from minillm.adapt.surgery import frozen, lower
from minillm.adapt.trunk import TrunkStore, boundary
from minillm.decoder import Decoder
from minillm.device import autocast
from minillm.errors import InputError
from minillm.generation import LanguageModel
from minillm.prompting.scoring import accuracy, answer_scores, score_all
from minillm.prompting.template import balanced_shots, common_start, render
from minillm.tasks import LabelledText, Task
from minillm.tokenizer import Tokenizer
from minillm.training import TrainingSettings, train

SHOTS = 8
PENALTIES = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1, 2e-1, 5e-1, 1.0)
"""The values of C, the inverse strength of the penalty on a classifier's weights, that are tried."""


@dataclass
class World:
    """What every rung starts from. `precision` is that of the matrix products in rungs that train."""

    decoder: Decoder
    tokenizer: Tokenizer
    task: Task
    device: torch.device
    precision: str
    seed: int
    out: Path

    def prompts(self, rows: Sequence[LabelledText], shots: Sequence[LabelledText] = ()) -> list[list[int]]:
        return [self.tokenizer.encode(render(self.task, row.text, shots)) for row in rows]

    def answers(self) -> list[list[int]]:
        return [self.tokenizer.encode(answer) for answer in self.task.answers]

    def working_body(self) -> Decoder:
        """The base in this world's precision. Its matrices take the float32 ones' place, to spare their memory."""
        if self.precision == "bfloat16":
            self.decoder = frozen(self.decoder, torch.bfloat16)
        return self.decoder

    def fine_tuned(self, decoder: Decoder, layers: int | str, classes: int | list[int] | None = None) -> FineTune:
        """Some layers trained in float32 over a trunk in this world's precision, which takes the base's place."""
        method = FineTune(decoder, layers, classes)
        if self.precision == "bfloat16":
            lower(method.decoder, torch.bfloat16)
            self.decoder = method.decoder
        return method


@dataclass
class Outcome:
    """What a rung measured. `scores` are those of the test rows; seconds leave loading the base out."""

    scores: Tensor
    trainable_parameters: int = 0
    stored_bytes: int = 0
    train_seconds: float = 0.0
    eval_seconds: float = 0.0
    tokens: int = 0
    precision: str = "float32"
    chosen: dict[str, Any] = field(default_factory=dict)
    method: Adaptation | None = None


def labels(rows: Sequence[LabelledText]) -> Tensor:
    return torch.tensor([row.label for row in rows])


def score_rows(
    world: World, model: LanguageModel, prompts: list[list[int]], answers: list[list[int]], precision: str, name: str
) -> Tensor:
    """Each answer's score after each prompt, by a model that reads the prompts."""

    def score(batch: list[int]) -> Tensor:
        with autocast(world.device, precision):
            return answer_scores(model, [prompts[index] for index in batch], answers)

    return score_all(score, [len(prompt) for prompt in prompts], name)


def in_context(world: World, name: str, shots: int) -> Outcome:
    """Nothing is trained: what all prompts have in common is read once, and each row only adds its own tokens."""
    task = world.task
    shown = balanced_shots(task, shots, world.seed) if shots else []
    prompts = world.prompts(task.test, shown)
    shared = common_start(prompts)
    start = time.perf_counter()
    model = InContext(world.decoder, torch.tensor([prompts[0][:shared]], device=world.device)) if shared else None
    scores = score_rows(
        world, model or world.decoder, [prompt[shared:] for prompt in prompts], world.answers(), "float32", name
    )
    spent = time.perf_counter() - start
    tokens = shared + sum(len(prompt) - shared for prompt in prompts)
    return Outcome(scores, eval_seconds=spent, tokens=tokens, chosen={"shots": shots, "shared_tokens": shared})


def features(world: World, name: str) -> Outcome:
    """A logistic regression on stored features; its penalty is that under which the validation rows are likeliest.

    (Their accuracy would choose by a handful of rows.) Standardised features need no other grid for another decoder.
    """
    task, body = world.task, world.working_body()
    recipe, tokenizer = Recipe(precision=world.precision), world.tokenizer.fingerprint
    splits = {"train": task.train, "validation": task.validation, "test": task.test}
    prompts = {split: world.prompts(rows) for split, rows in splits.items()}
    found, seconds = {}, {}
    for split, texts in prompts.items():
        start = time.perf_counter()
        label = f"{name}, {split} rows"
        found[split] = filed_features(body, texts, world.out / "features", recipe, tokenizer, label)
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
        method=method,
    )


def trained(
    world: World, name: str, adapt: Callable[[Decoder], Method], settings: TrainingSettings, lower: bool
) -> Outcome:
    """Gradient descent on the answers' cross-entropy; the epoch is chosen on the validation rows.

    What a frozen trunk says of a row is computed once, and a classifier's answers are its classes.
    `lower` says that the method leaves the base's matrices frozen, so that they can be held in half precision.
    """
    task, answers = world.task, world.answers()
    method = adapt(world.working_body() if lower else world.decoder)
    model = TrunkStore(method) if boundary(method) else method
    if isinstance(method, FineTune) and method.classes is not None:
        answers = [[label] for label in range(len(answers))]
    prompts, targets = world.prompts(task.train), labels(task.train)

    def loss(batch: list[int]) -> tuple[Tensor, int]:
        scores = answer_scores(model, [prompts[index] for index in batch], answers)
        return F.cross_entropy(scores, targets[batch].to(scores.device), reduction="sum"), len(batch)

    def score(rows: list[LabelledText], what: str) -> Tensor:
        return score_rows(world, model, world.prompts(rows), answers, world.precision, f"{name}, {what} rows")

    def validate() -> float:
        return accuracy(score(task.validation, "validation"), labels(task.validation))

    history = train(
        method, range(len(prompts)), loss, lambda index: len(prompts[index]), settings,
        validate=validate if settings.epochs > 1 else None, name=name,
    )  # fmt: skip
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
        method=method,
    )  # fmt: skip


def count(tensors: dict[str, Any]) -> int:
    return sum(tensor.numel() for tensor in tensors.values())


def size(tensors: dict[str, Tensor]) -> int:
    """The bytes of what is published."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


@dataclass(frozen=True)
class Rung:
    """A technique, its place in figure 1, and how it is climbed."""

    name: str
    technique: str
    place: str
    climb: Callable[[World], Outcome]


def _lora(world: World) -> Outcome:
    settings = TrainingSettings(epochs=2, rate=1e-3, precision=world.precision, seed=world.seed)
    torch.manual_seed(world.seed)
    return trained(world, "lora", partial(LoRA, r=8, alpha=16, targets=("query", "value")), settings, lower=True)


def _output(world: World) -> Outcome:
    """The answers' rows of the LM head, from where they are: of all others the answers' loss has no gradient."""
    settings = TrainingSettings(epochs=8, rate=1e-3, precision=world.precision, seed=world.seed)
    answers = world.answers()
    tokens = list(dict.fromkeys(answer[0] for answer in answers if len(answer) == 1))
    classes = tokens if len(tokens) == len(answers) else len(answers)
    adapt = partial(world.fine_tuned, layers="output", classes=classes)
    return trained(world, "output", adapt, settings, lower=False)


def _last_blocks(world: World) -> Outcome:
    settings = TrainingSettings(epochs=2, rate=1e-4, precision=world.precision, seed=world.seed)
    return trained(world, "last-blocks", partial(world.fine_tuned, layers=2), settings, lower=False)


def _full(world: World) -> Outcome:
    settings = TrainingSettings(epochs=1, rate=2e-5, precision=world.precision, seed=world.seed)
    return trained(world, "full", FineTune, settings, lower=False)


RUNGS = {
    rung.name: rung
    for rung in (
        Rung("zero-shot", "zero-shot prompt", "1 prompt", lambda world: in_context(world, "zero-shot", 0)),
        Rung("few-shot", f"{SHOTS}-shot prompt", "1 prompt", lambda world: in_context(world, "few-shot", SHOTS)),
        Rung("features", "stored features, classifier", "4 on top", lambda world: features(world, "features")),
        Rung("output", "output layer, answers' rows", "4 on top", _output),
        Rung("last-blocks", "last two blocks, final norm", "4 last layers", _last_blocks),
        Rung("lora", "LoRA r 8, query and value", "3 weights", _lora),
        Rung("full", "full fine-tuning", "3 weights", _full),
    )
}


def chosen_rungs(names: str) -> list[Rung]:
    """The rungs of a comma-separated list. Raises InputError for one that is unknown."""
    found = []
    for name in names.split(","):
        if name.strip() not in RUNGS:
            raise InputError(f"there is no rung {name.strip()!r}; there are: {', '.join(RUNGS)}")
        found.append(RUNGS[name.strip()])
    return found
