"""The base, the task and the device of an experiment, and the measurements of a classifier on a task."""

import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from minillm import hub
from minillm.adapt import Adaptation, Method
from minillm.classifier import TextClassifier
from minillm.data.conversations import Conversations
from minillm.data.reviews import PROMPT, reviews_task
from minillm.data.table_tasks import TableTask, table_task
from minillm.data.tables import Table
from minillm.data.tasks import LabelledText, Task
from minillm.data.word_problems import word_problems_task
from minillm.decoder import Decoder
from minillm.errors import InputError
from minillm.hub.pull import check_pulled, pull
from minillm.lab.report import standard_error
from minillm.lab.saving import saved
from minillm.operations import softmax
from minillm.prompting.lengths import Truncate
from minillm.prompting.scoring import accuracy
from minillm.runtime.device import best_precision, peak_memory, pick_device, use_threads
from minillm.runtime.distributed import is_first
from minillm.runtime.files import commit
from minillm.runtime.fingerprint import json_fingerprint
from minillm.runtime.options import NO_SETTINGS, File, Model, Names, RunOptions, Text
from minillm.tokenizer import Tokenizer
from minillm.training.checkpoints import Checkpoints
from minillm.training.methods import METHODS, Base, MethodOptions, build

TRAIN, TEST = 500, 400
"""The default numbers of rows of a task."""
ROWS = "rows.json"
"""The test rows of an experiment, in the directory of its results."""


PASSES = {"zero-shot": 0.0, "few-shot": 0.0, "features": 1.0, "output": 1.2, "last-blocks": 1.5, "full": 4.0}
"""The cost of a training row per epoch, in forward passes; 3 for the other methods."""


@dataclass
class Experiment:
    """A base on a device. `precision` is the precision of matrix products in training."""

    decoder: Decoder
    tokenizer: Tokenizer
    device: torch.device
    precision: str
    seed: int

    def build(self, name: str, options: MethodOptions) -> Method:
        """The method on the base. Its decoder replaces the base, so that in bfloat16 the float32 matrices are freed."""
        method = build(Base(self.decoder, self.tokenizer), name, options, self.precision, self.seed)
        self.decoder = method.decoder
        return method


@dataclass(kw_only=True)
class DataOptions(RunOptions):
    """Options of the base and of the labelled texts."""

    base: Model = "smollm2-135m-instruct"
    """A pulled model, tiny, hf:NAME, a directory in Hugging Face's layout, or a .gguf file."""
    task: Literal["reviews", "word_problems", "lecture"] | None = None
    """The labelled texts: film reviews (the default without --data), or generated word problems (for tiny). For adapt,
    also lecture: questions on the adaptation of models, with free answers."""
    data: File | None = None
    """Your own labelled texts, a .csv, .tsv, .jsonl or .json file, instead of a task."""
    delimiter: str | None = None
    r"""The delimiter of a .csv or .tsv file, for example ; or \t (recognised if not given)."""
    encoding: str | None = None
    """The encoding of your data, for example utf-16 or cp1252 (recognised if not given)."""
    text_column: str = "text"
    """The column of the texts in your data."""
    label_column: str = "label"
    """The column of the labels in your data."""
    prompt: Text | None = None
    r"""The prompt template for your data, with {text} as the placeholder and \n for a newline. If not given:
    'Text: {text}\nLabel:'; for free answers '{text}\n'."""
    labels: Names | None = None
    """The answers for the values of the label column, as 1=bad,5=good, or all in the order of the values; the values
    themselves if not given."""
    train: int | None = None
    """The number of training rows. If not given: 500 of a task, 80 % of your own data."""
    test: int | None = None
    """The number of test rows. If not given: 400 of a task, 10 % of your own data."""
    truncate: Truncate = "error"
    """A text that is too long for the context: error, before anything is trained, or cut its left or right end."""
    quantise: int | None = None
    """Keep the matrices of the base in 4 or 8 bits (QLoRA); what is trained is in float32."""

    def __post_init__(self):
        super().__post_init__()
        if self.data is not None and self.task is not None:
            raise InputError("give either --data or --task, not both")
        if self.data is None and not (self.delimiter is None and self.encoding is None):
            raise InputError("--delimiter and --encoding need --data")
        if self.task == "lecture" and not (self.train is None and self.test is None):
            raise InputError("lecture has fixed parts; leave out --train and --test")
        if self.data is None and self.task != "lecture":
            self.train = TRAIN if self.train is None else self.train
            self.test = TEST if self.test is None else self.test

    @property
    def question(self) -> str:
        """The prompt template for the user's own data."""
        default = PROMPT if self.data is None else TextClassifier.prompt
        return default if self.prompt is None else self.prompt

    def described(self, task: Task | Conversations | None = None) -> dict[str, Any]:
        """These options in JSON's types, with the number of threads in use, and the sizes and sha256 of a task."""
        names = [option.name for option in fields(DataOptions) if option.name not in NO_SETTINGS]
        found = {name: getattr(self, name) for name in names}
        threads = torch.get_num_threads() if self.threads is None else self.threads
        source = {"task": self.task or "reviews"} if self.data is None else {"data": str(self.data)}
        if task is not None:
            rows = json_fingerprint([task.train, task.validation, task.test])
            found |= {"train": len(task.train), "test": len(task.test), "rows": rows}
        return found | source | {"threads": threads, "prompt": self.question}

    def check_local(self) -> None:
        """Raises InputError if the base or the data would be downloaded."""
        check_pulled(self.base, "reviews" if self.data is None and self.task in (None, "reviews") else "")

    @property
    def table(self) -> Table | None:
        """The file of the user's own data."""
        return None if self.data is None else Table(self.data, self.delimiter, self.encoding)

    def load_task(self) -> Task:
        """The user's own data, if given, else the task. Raises InputError for data or options that cannot be used."""
        if self.data is None and not (self.prompt is None and self.labels is None):
            raise InputError("--prompt and --labels need --data: a task has its own prompt and labels")
        return self.given_task()

    def given_task(self) -> Task:
        if self.task == "lecture":
            raise InputError("lecture has free answers and no labels; use it with minillm adapt, or another --task")
        if self.table is not None:
            return table_task(
                self.table, text_column=self.text_column, label_column=self.label_column, prompt=self.question,
                labels=self.labels, train=self.train, test=self.test,
            )  # fmt: skip
        assert self.train is not None
        assert self.test is not None
        if self.task == "word_problems":
            return word_problems_task(self.train, self.test)
        return reviews_task(pull("reviews"), self.train, self.test)

    def classifier(self, task: Task, method: str, options: MethodOptions, out: Path) -> TextClassifier:
        """A classifier for a task. Its labels are those of the file, else the answers; features are cached in `out`."""
        chosen = {option.name: getattr(options, option.name) for option in fields(MethodOptions)}
        values = task.values if isinstance(task, TableTask) else [answer.strip() for answer in task.answers]
        answers = dict(zip(values, task.answers, strict=True))
        return TextClassifier(
            base=self.base, method=method, prompt=task.prompt, answers=answers, end=task.end, seed=self.seed,
            device=self.device, store=out / "features" if is_first() else None, truncate=self.truncate,
            quantise=self.quantise, **chosen,
        )  # fmt: skip

    def save_with_rows(self, out: Path, name: str, results: Mapping[str, Any], task: Task) -> Path:
        """Write the results of a run, run.json and the test rows, if need be elsewhere; returns the directory."""

        def write(out: Path) -> None:
            with commit(out) as new:
                new.text(ROWS, rows_file(task))
                self.save(out, name, json.dumps(results, indent=2))

        return saved(write, out)

    def load(self) -> Experiment:
        """Load the base. Raises InputError if it has no tokenizer."""
        use_threads(self.threads)
        device = pick_device(self.device)
        decoder, tokenizer = hub.load(self.base, quantise=self.quantise)
        if tokenizer is None:
            raise InputError(f"{self.base} has no tokenizer, which texts need")
        return Experiment(decoder.to(device), tokenizer, device, best_precision(device), self.seed)


def run(
    classifier: TextClassifier, task: Task, checkpoints: Checkpoints | None = None,
    on_trained: Callable[[TextClassifier], None] = lambda classifier: None,
) -> dict[str, Any]:  # fmt: skip
    """Fit on the training rows, select on the validation rows, and score the test rows once, also row by row."""
    classifier.fit_task(task, on_trained, checkpoints)
    start = time.perf_counter()
    scored = classifier.scores([row.text for row in task.test], "test rows")
    eval_seconds = time.perf_counter() - start + scored.earlier
    adapted, training, chosen = classifier.method_, classifier.training_, classifier.training_.chosen
    confidence = softmax(scored.scores.double()).amax(-1)
    return {
        **judged(scored.scores, labels(task.test)),
        "trainable_parameters": parameter_count(adapted.trainable()) if isinstance(adapted, Adaptation) else 0,
        "stored_bytes": tensor_bytes(adapted.state()) if isinstance(adapted, Adaptation) else 0,
        "train_seconds": training.seconds,
        "eval_seconds": eval_seconds,
        "tokens_per_second": (training.tokens or scored.tokens) / (training.seconds or eval_seconds),
        "peak_memory_bytes": peak_memory(adapted.decoder.embed.weight.device),
        "precision": classifier.precision_,
        "chosen": chosen if training.tokens else chosen | {"shared_tokens": scored.shared_tokens},
        "confidence": [round(share, 4) for share in confidence.tolist()],
    }


def rows_file(task: Task) -> str:
    """The content of rows.json: the answers, and the labels and texts of the test rows."""
    rows = {"answers": [answer.strip() for answer in task.answers], "labels": labels(task.test).tolist()}
    return json.dumps({**rows, "texts": [row.text for row in task.test]}, indent=2, ensure_ascii=False) + "\n"


def passes(method: str, task: Task, train: int | None = None, epochs: int | None = None) -> float:
    """The time of a run, as the number of forward passes of one row that take as long: an estimate."""
    trains = method in METHODS
    epochs = epochs or (METHODS[method].epochs if trains else 1)
    held = len(task.validation) * (epochs if trains and epochs > 1 else method == "features")
    trained = min(train or len(task.train), len(task.train)) * epochs
    return trained * PASSES.get(method, 3.0) + held + len(task.test)


def judged(scores: Tensor, targets: Tensor) -> dict[str, Any]:
    """The accuracy, that of always predicting the most frequent class, the predictions and their number of classes."""
    share, predicted = accuracy(scores, targets), scores.argmax(-1)
    return {
        "accuracy": share,
        "standard_error": standard_error(share, len(targets)),
        "majority_baseline": targets.bincount().max().item() / len(targets),
        "predicted_classes": len(predicted.unique()),
        "predicted": predicted.tolist(),
    }


def doubts(measured: Mapping[str, Any]) -> list[str]:
    """Warnings: all predictions are of one class, or the accuracy is not above always predicting the majority."""
    share, error, baseline = (measured[name] for name in ("accuracy", "standard_error", "majority_baseline"))
    found = ["all predictions are of one class"] if measured["predicted_classes"] == 1 else []
    if share - error <= baseline:
        found.append(f"accuracy {share:.3f} ± {error:.3f} is not above the majority baseline, {baseline:.3f}")
    return [f"warning: {doubt}" for doubt in found]


def labels(rows: Sequence[LabelledText]) -> Tensor:
    return torch.tensor([row.label for row in rows])


def parameter_count(tensors: dict[str, Any]) -> int:
    return sum(tensor.numel() for tensor in tensors.values())


def tensor_bytes(tensors: dict[str, Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def versions() -> dict[str, str]:
    packages = {name: version(name) for name in ("minillm", "torch", "numpy", "tokenizers")}
    return {"python": platform.python_version(), **packages}
