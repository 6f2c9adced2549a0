"""What an experiment works on, a base and its tokenizer on a device, and a classifier measured on a task."""

import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minillm import hub
from minillm.adapt import Adaptation, Method
from minillm.classifier import TextClassifier
from minillm.data.reviews import PROMPT, reviews_task
from minillm.data.tables import table_task
from minillm.data.tasks import LabelledText, Task
from minillm.data.word_problems import word_problems_task
from minillm.decoder import Decoder
from minillm.errors import InputError, check_seed
from minillm.hub.pull import pull
from minillm.lab.report import standard_error
from minillm.prompting.scoring import accuracy
from minillm.runtime.device import best_precision, peak_memory, pick_device, use_threads
from minillm.runtime.options import Names, Text
from minillm.tokenizer import Tokenizer
from minillm.training.methods import Base, MethodOptions, build


@dataclass
class Experiment:
    """A base on a device. `precision` is that of the matrix products while training."""

    decoder: Decoder
    tokenizer: Tokenizer
    device: torch.device
    precision: str
    seed: int

    def build(self, name: str, options: MethodOptions) -> Method:
        """The method on the base, whose body takes the base's place: in bfloat16 the float32 matrices are freed."""
        method = build(Base(self.decoder, self.tokenizer), name, options, self.precision, self.seed)
        self.decoder = method.decoder
        return method


@dataclass(kw_only=True)
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

    def classifier(self, task: Task, method: str, options: MethodOptions, out: Path) -> TextClassifier:
        """The classifier for a task, whose labels are the indices of its answers; features are stored in `out`."""
        chosen = {option.name: getattr(options, option.name) for option in fields(MethodOptions)}
        return TextClassifier(
            base=self.base, method=method, prompt=task.prompt, answers=dict(enumerate(task.answers)), end=task.end,
            seed=self.seed, device=self.device, store=out / "features", **chosen,
        )  # fmt: skip

    def load(self) -> Experiment:
        """Load the base. Raises InputError for one without a tokenizer."""
        use_threads(self.threads)
        device = pick_device(self.device)
        decoder, tokenizer = hub.load(self.base)
        if tokenizer is None:
            raise InputError(f"{self.base} has no tokenizer, and texts need one")
        return Experiment(decoder.to(device), tokenizer, device, best_precision(device), self.seed)


def run(
    classifier: TextClassifier, task: Task, on_trained: Callable[[TextClassifier], None] = lambda classifier: None
) -> dict[str, Any]:
    """Fit on the training rows, choose on the validation rows, and score the test rows once."""
    train, validation, test = (
        ([row.text for row in rows], [row.label for row in rows]) for rows in (task.train, task.validation, task.test)
    )
    classifier.fit(*train, validation=validation, on_trained=on_trained)
    start = time.perf_counter()
    scored = classifier.scores(test[0], "test rows")
    eval_seconds, share = time.perf_counter() - start, accuracy(scored.scores, labels(task.test))
    adapted, training, chosen = classifier.method_, classifier.training_, classifier.training_.chosen
    return {
        "accuracy": share,
        "standard_error": standard_error(share, len(task.test)),
        "trainable_parameters": parameter_count(adapted.trainable()) if isinstance(adapted, Adaptation) else 0,
        "stored_bytes": tensor_bytes(adapted.state()) if isinstance(adapted, Adaptation) else 0,
        "train_seconds": training.seconds,
        "eval_seconds": eval_seconds,
        "tokens_per_second": (training.tokens or scored.tokens) / (training.seconds or eval_seconds),
        "peak_memory_bytes": peak_memory(adapted.decoder.embed.weight.device),
        "precision": classifier.precision_,
        "chosen": chosen if training.tokens else chosen | {"shared_tokens": scored.shared_tokens},
    }


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
