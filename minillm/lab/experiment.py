"""What an experiment works on: a base, its tokenizer and perhaps a task, on a device."""

import platform
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minillm import hub
from minillm.adapt import Method
from minillm.adapt.surgery import frozen, lower
from minillm.data.reviews import PROMPT, reviews_task
from minillm.data.tables import table_task
from minillm.data.tasks import LabelledText, Task
from minillm.data.templates import task_template
from minillm.data.word_problems import word_problems_task
from minillm.decoder import Decoder
from minillm.errors import InputError, check_seed
from minillm.hub.pull import pull
from minillm.runtime.device import best_precision, pick_device, use_threads
from minillm.runtime.options import Names, Text
from minillm.tokenizer import Tokenizer


@dataclass
class Experiment:
    """A base and a task on a device. `precision` is that of the matrix products while training."""

    decoder: Decoder
    tokenizer: Tokenizer
    task: Task | None
    device: torch.device
    precision: str
    seed: int
    out: Path

    def lower_base(self, method: Method | None = None) -> None:
        """In bfloat16, hold the frozen matrices in it: the base's, or those of the body over it that is fine-tuned.

        They take the float32 ones' place in the experiment, whose memory is free from here on.
        """
        if self.precision != "bfloat16":
            return
        if method is None:
            self.decoder = frozen(self.decoder, torch.bfloat16)
        else:
            lower(method.decoder, torch.bfloat16)
            self.decoder = method.decoder

    @property
    def labelled(self) -> Task:
        """The task of an experiment that has one."""
        assert self.task is not None
        return self.task

    def prompts(self, rows: Sequence[LabelledText], shots: Sequence[LabelledText] = ()) -> list[list[int]]:
        """The rows' prompts as ids, behind some solved examples."""
        template = task_template(self.labelled, shots)
        return [template.encode(self.tokenizer, row.text) for row in rows]

    def answers(self) -> list[list[int]]:
        """The answers' ids. Raises InputError for two that are equal, as words that the tokenizer lacks may be."""
        answers = self.labelled.answers
        encoded = [self.tokenizer.encode(answer) for answer in answers]
        for index, answer in enumerate(encoded):
            if (first := encoded.index(answer)) < index:
                same = " and ".join(repr(answers[place]) for place in (first, index))
                raise InputError(f"the answers {same} are the same to this base's tokenizer; --labels gives others")
        return encoded


@dataclass(frozen=True, kw_only=True)
class ExperimentOptions:
    """The base, the labelled text and the device: options that the commands of the lab share."""

    base: str = "smollm2-135m-instruct"
    """A pulled name, a directory in Hugging Face's layout, a .gguf file, or tiny (comes with minillm)."""
    task: str = "reviews"
    """The labelled text: reviews, or word_problems (generated, meant for the base tiny)."""
    train: int = 500
    """Training rows."""
    test: int = 400
    """Test rows."""
    seed: int = 0
    """The seed of everything random."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    threads: int | None = None
    """CPU threads (default: one a core)."""
    data: Path | None = None
    """Your own text, a .csv or .jsonl file, in place of the task."""
    text_column: str = "text"
    """The column of the text in it."""
    label_column: str = "label"
    """The column of the label in it."""
    prompt: Text | None = None
    """The prompt around your text, with {text} in it."""
    labels: Names | None = None
    """The answers for the label column's values in sorted order, comma-separated (default: the values)."""

    def __post_init__(self):
        check_seed(self.seed)
        if self.threads is not None and self.threads < 1:
            raise InputError(f"threads is {self.threads}; it must be at least 1")

    @property
    def question(self) -> str:
        """The prompt around the user's own text."""
        return PROMPT if self.prompt is None else self.prompt

    def described(self) -> dict[str, Any]:
        """These options as the JSON files hold them, with the threads in use."""
        found = {option.name: getattr(self, option.name) for option in fields(ExperimentOptions)}
        threads = torch.get_num_threads() if self.threads is None else self.threads
        data = None if self.data is None else str(self.data)
        return found | {"threads": threads, "data": data, "prompt": self.question}

    def load_task(self) -> Task:
        """The user's own data if there are any, else the task of that name. Raises InputError for an unknown one."""
        if self.data is not None:
            return table_task(
                self.data, text_column=self.text_column, label_column=self.label_column, prompt=self.question,
                labels=self.labels, train=self.train, test=self.test,
            )  # fmt: skip
        if self.task == "word_problems":
            return word_problems_task(self.train, self.test)
        if self.task != "reviews":
            raise InputError(
                f"there is no task {self.task!r}; there are: reviews, word_problems, or your own with --data FILE"
            )
        return reviews_task(pull("reviews"), self.train, self.test)

    def load(self, task: Task | None, out: Path = Path()) -> Experiment:
        """Load the base. Raises InputError for one without a tokenizer."""
        use_threads(self.threads)
        device = pick_device(self.device)
        decoder, tokenizer = hub.load(self.base)
        if tokenizer is None:
            raise InputError(f"{self.base} has no tokenizer, and texts need one")
        return Experiment(decoder.to(device), tokenizer, task, device, best_precision(device), self.seed, out)


@dataclass
class Outcome:
    """The scores of the test rows, and what they cost; the seconds do not include loading the base."""

    scores: Tensor
    trainable_parameters: int = 0
    stored_bytes: int = 0
    train_seconds: float = 0.0
    eval_seconds: float = 0.0
    tokens: int = 0
    precision: str = "float32"
    chosen: dict[str, Any] = field(default_factory=dict)


def labels(rows: Sequence[LabelledText]) -> Tensor:
    return torch.tensor([row.label for row in rows])


def parameter_count(tensors: dict[str, Any]) -> int:
    return sum(tensor.numel() for tensor in tensors.values())


def tensor_bytes(tensors: dict[str, Tensor]) -> int:
    """The bytes of what is published."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def versions() -> dict[str, str]:
    packages = {name: version(name) for name in ("minillm", "torch", "numpy", "tokenizers")}
    return {"python": platform.python_version(), **packages}
