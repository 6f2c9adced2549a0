"""What every rung of the ladder starts from, and what it leaves: the world, the outcome, and the scoring between."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minillm.adapt import Adaptation, FineTune
from minillm.adapt.surgery import frozen, lower
from minillm.data.tasks import LabelledText, Task
from minillm.data.templates import task_template
from minillm.decoder import Decoder
from minillm.errors import InputError
from minillm.generation import LanguageModel
from minillm.prompting.scoring import Features, answer_scores, score_all
from minillm.runtime.device import autocast
from minillm.tokenizer import Tokenizer


@dataclass
class Bench:
    """A base, and where and how it is worked on. `precision` is that of the matrix products while training."""

    decoder: Decoder
    tokenizer: Tokenizer
    device: torch.device
    precision: str
    seed: int
    out: Path

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
class World(Bench):
    """A bench with a task on it."""

    task: Task

    def prompts(self, rows: Sequence[LabelledText], shots: Sequence[LabelledText] = ()) -> list[list[int]]:
        template = task_template(self.task, shots)
        return [template.encode(self.tokenizer, row.text) for row in rows]

    def answers(self) -> list[list[int]]:
        """Raises InputError for two answers that are the same tokens, as words that the tokenizer lacks may be."""
        encoded = [self.tokenizer.encode(answer) for answer in self.task.answers]
        for index, answer in enumerate(encoded):
            if (first := encoded.index(answer)) < index:
                same = " and ".join(repr(self.task.answers[place]) for place in (first, index))
                raise InputError(f"the answers {same} are the same to this base's tokenizer; --labels gives others")
        return encoded


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


Keep = Callable[[Adaptation], None]
"""What is done with a method as soon as it is trained, or with one whose training is interrupted, as far as it is."""


def keep_nothing(method: Adaptation) -> None:
    """What a comparison does: only the figures are of interest."""


def labels(rows: Sequence[LabelledText]) -> Tensor:
    return torch.tensor([row.label for row in rows])


def score_rows(
    world: World, model: LanguageModel, prompts: list[list[int]], answers: list[list[int]], precision: str, name: str,
    features: Features | None = None,
) -> Tensor:  # fmt: skip
    """Each answer's score after each prompt, by a model that reads the prompts."""

    def score(batch: list[int]) -> Tensor:
        with autocast(world.device, precision):
            return answer_scores(model, [prompts[index] for index in batch], answers, features)

    return score_all(score, [len(prompt) for prompt in prompts], name)


def count(tensors: dict[str, Any]) -> int:
    return sum(tensor.numel() for tensor in tensors.values())


def size(tensors: dict[str, Tensor]) -> int:
    """The bytes of what is published."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
