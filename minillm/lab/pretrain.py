"""`minillm pretrain`: a tiny language model from scratch, on the user's text, on reviews or on word problems.

A run writes into one directory: the checkpoint from which it resumes, the curve as JSON and PNG, and at the end the
model as `minillm.load` reads it. Checkpoints are for one machine and its options; the model is portable.
Torch trains, or numpy: the same rows in the same order from the same weights.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from minillm.data import word_problems
from minillm.data.text import reviews_text, text_file
from minillm.decoder import Decoder
from minillm.errors import InputError, check_seed
from minillm.generation import generate
from minillm.hub import save
from minillm.hub.pull import pull
from minillm.lab.report import curve_picture, draw
from minillm.runtime import distributed
from minillm.runtime.device import best_precision, keep_freed_memory, pick_device, use_threads
from minillm.runtime.files import check_directory, write_text
from minillm.runtime.interrupts import interrupt_deferred
from minillm.runtime.progress import progress
from minillm.tokenizer import Tokenizer
from minillm.training.checkpoints import CHECKPOINT, restore_checkpoint, save_checkpoint
from minillm.training.learners import TorchLearner
from minillm.training.loop import Loop
from minillm.training.numpy_learner import NumpyLearner
from minillm.training.pretraining import (
    PackedRow,
    PretrainingRecipe,
    held_out_loss,
    language_model_loss,
    pack,
    pack_exchanges,
)
from minillm.training.tokenizers import token_bytes, train_tokenizer

TASKS = ("word_problems", "reviews-text")
BACKENDS = ("torch", "numpy")
CURVE = "curve.json"
MOST_HELD_OUT, PROBLEMS_HELD_OUT = 64, 300
"""Rows of the held-out text that are measured each time, and word problems that are not trained on."""


@dataclass(frozen=True, kw_only=True)
class Pretrain:
    """Train a tiny language model from scratch: a model directory, its curve as JSON and PNG, and checkpoints.

    A run that was stopped, in whatever way, continues from its last checkpoint. Under torchrun the processes share
    every batch.
    """

    data: Path | None = None
    """The text to learn, a .txt file; its last tenth is held out."""
    task: str | None = None
    """In place of a text: word_problems (generated) or reviews-text."""
    preset: str = "tiny"
    """nano, tiny or small: the depth, from which sizes, rate, batch and steps follow."""
    tokenizer: str | None = None
    """bpe, characters or words (default: words for word problems, else bpe)."""
    vocabulary: int = 2048
    """Tokens at most."""
    steps: int | None = None
    """Steps in place of the preset's."""
    seed: int = 0
    """The seed of everything random."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    threads: int | None = None
    """CPU threads (default: one a core)."""
    backend: str = "torch"
    """torch, or numpy: losses, gradients and AdamW by the reference, in float64. The same curve, some three times
    slower: a few minutes for nano, most of an hour for tiny."""
    eval_every: int = 100
    """Measure, sample and write a checkpoint every so many steps."""
    out: Path = Path("pretrained")
    """The directory for what is written."""
    fresh: bool = False
    """Start over, whatever is in that directory."""

    def __post_init__(self):
        if (self.data is None) == (self.task is None):
            raise InputError(f"give a text to learn, --data FILE.txt, or a task: {', '.join(TASKS)}")
        if self.task is not None and self.task not in TASKS:
            raise InputError(f"there is no task {self.task!r} to pretrain on; there are: {', '.join(TASKS)}")
        check_seed(self.seed)
        if self.eval_every < 1:
            raise InputError(f"eval_every is {self.eval_every} steps; it must be at least 1")
        if self.backend not in BACKENDS:
            raise InputError(f"there is no backend {self.backend!r}; there are: {', '.join(BACKENDS)}")
        if self.backend == "numpy" and self.device not in ("auto", "cpu"):
            raise InputError(f"numpy computes on the CPU, not on {self.device}")
        if self.backend == "numpy" and distributed.started() > 1:
            raise InputError("numpy trains in one process; start it without torchrun")

    def run(self) -> None:
        keep_freed_memory()
        use_threads(self.threads)
        run = pretrain(self, on_measured=lambda measured: print(describe(measured)))
        if distributed.is_first():
            draw(curve_picture, run.curve(), self.out / "curve.png")
            print(f"written: {self.out}; `minillm generate --model {self.out} ...` continues a text with it")

    def described(self) -> dict[str, Any]:
        """What is learned from what, in JSON's types. Two runs of which this is equal are the same run."""
        names = ("data", "task", "preset", "tokenizer", "vocabulary", "steps", "seed")
        found = {name: getattr(self, name) for name in names}
        problems = {"forms": word_problems.PRETRAINED_FORMS, "problem_steps": word_problems.PRETRAINED_STEPS}
        return found | {"data": None if self.data is None else str(self.data), **problems}


@dataclass(frozen=True)
class Rows:
    """A text as token ids in rows, to train on and to measure on."""

    tokenizer: Tokenizer
    train: list[PackedRow]
    held_out: list[PackedRow]


def read_rows(options: Pretrain, recipe: PretrainingRecipe) -> Rows:
    """The tokenizer trained on the text, and the text in its tokens."""
    return _problem_rows(options, recipe) if options.task == "word_problems" else _text_rows(options)


def _text_rows(options: Pretrain) -> Rows:
    corpus = text_file(options.data) if options.data is not None else reviews_text(pull("reviews"))
    tokenizer = train_tokenizer(options.tokenizer or "bpe", corpus.train, options.vocabulary)
    assert tokenizer.eos is not None
    train, held_out = (pack([tokenizer.encode(text) for text in texts], tokenizer.eos) for texts in corpus)
    return Rows(tokenizer, train, held_out[:MOST_HELD_OUT])


def drawn_problems(options: Pretrain, recipe: PretrainingRecipe) -> list[word_problems.Problem]:
    """As many as the run needs to use none twice; the first are held out."""
    forms, steps = word_problems.PRETRAINED_FORMS, word_problems.PRETRAINED_STEPS
    # A row holds four or five.
    count = PROBLEMS_HELD_OUT + 5 * recipe.batch_size * recipe.steps
    return list(islice(word_problems.problems(options.seed, forms=forms, steps=steps), count))


def _problem_rows(options: Pretrain, recipe: PretrainingRecipe) -> Rows:
    answered = word_problems.exchanges(drawn_problems(options, recipe), options.seed)
    numbers = "".join(f" {number}" for number in range(word_problems.LARGEST + 1))
    texts = [numbers, *(question + answer for question, answer in answered[:20_000])]
    tokenizer = train_tokenizer(options.tokenizer or "words", texts, options.vocabulary)
    encoded = [(tokenizer.encode(question), tokenizer.encode(answer)) for question, answer in answered]
    held_out, train = encoded[:PROBLEMS_HELD_OUT], encoded[PROBLEMS_HELD_OUT:]
    return Rows(tokenizer, pack_exchanges(train), pack_exchanges(held_out)[:MOST_HELD_OUT])


class Run:
    """One pretraining run: its model, its loop, and what it has measured so far."""

    def __init__(self, options: Pretrain, device: torch.device):
        self.options, self.device = options, device
        self.recipe = PretrainingRecipe.from_preset(options.preset, options.steps)
        self.rows = read_rows(options, self.recipe)
        in_numpy = options.backend == "numpy"
        self.precision = "float64" if in_numpy else best_precision(device) if device.type == "cuda" else "float32"
        torch.manual_seed(options.seed)
        self.decoder = Decoder(self.recipe.config(self.rows.tokenizer.vocabulary)).to(device)
        training = self.recipe.settings(self.precision, options.seed)
        parameters, loss = dict(self.decoder.named_parameters()), partial(language_model_loss, self.decoder)
        learner = NumpyLearner(self.decoder, training) if in_numpy else TorchLearner(parameters, loss, training)
        self.loop = Loop(learner, self.rows.train, lambda row: len(row.ids), training, steps=self.recipe.steps)
        self.bytes = token_bytes(self.rows.tokenizer)
        self.measured: list[dict[str, Any]] = []

    def described(self) -> dict[str, Any]:
        """What determines the run, in JSON's types; the text by its tokens' sha256."""
        tokens = hashlib.sha256(json.dumps([self.rows.train, self.rows.held_out]).encode()).hexdigest()
        described = {
            **self.options.described(), **asdict(self.recipe), "tokens": tokens, "backend": self.options.backend,
            "precision": self.precision, "processes": distributed.process_count(),
        }  # fmt: skip
        return json.loads(json.dumps(described))

    @property
    def done(self) -> int:
        return len(self.loop.history.losses)

    def measure(self) -> dict[str, Any]:
        """The held-out loss, and the continuation of a held-out text."""
        batch = self.recipe.batch_size
        found = held_out_loss(self.decoder, self.rows.held_out, self.bytes, batch, self.precision)
        start = self.rows.held_out[0].ids[:16]
        ids = generate(self.decoder, torch.tensor([start], device=self.device), max_new_tokens=48)
        self.decoder.train()
        sample = self.rows.tokenizer.decode(ids[0].tolist())
        return {"step": self.done, "nats": found.nats, "bits_per_byte": found.bits_per_byte, "sample": sample}

    def curve(self) -> dict[str, Any]:
        history = self.loop.history
        return {
            **self.described(),
            "parameters": sum(parameter.numel() for parameter in self.decoder.parameters()),
            "losses": history.losses,
            "held_out": self.measured,
            "tokens_read": history.tokens,
            "seconds": history.seconds,
        }

    def checkpoint(self) -> None:
        if distributed.is_first():
            save_checkpoint(self.options.out, self.loop, {"settings": self.described(), "measured": self.measured})

    def resume(self) -> None:
        """Continue from the checkpoint of an earlier run of these options, if there is one."""
        if self.options.fresh:
            (self.options.out / CHECKPOINT).unlink(missing_ok=True)
        found = restore_checkpoint(self.options.out, self.loop, self.described())
        self.measured = [] if found is None else found["measured"]

    def steps(self) -> Iterator[list[list[int]]]:
        """The batches of every step that is left, epoch after epoch."""
        while self.done < self.loop.steps:
            for batches in self.loop.groups():
                yield batches
                if self.done == self.loop.steps:
                    return

    def finish(self) -> None:
        """The model in float32, as `minillm.load` reads it, and the curve."""
        self.decoder.float().eval()
        save(self.decoder, self.rows.tokenizer, self.options.out)
        write_text(self.options.out / CURVE, json.dumps(self.curve(), indent=1) + "\n")


def describe(measured: Mapping[str, Any]) -> str:
    """A measurement in a line, and the sample under it."""
    sample = " ".join(measured["sample"].split())
    return (
        f"step {measured['step']}: held out {measured['nats']:.3f} nats per token, "
        f"{measured['bits_per_byte']:.3f} bits per byte\n  {sample[:160]}"
    )


def pretrain(options: Pretrain, on_measured: Callable[[Mapping[str, Any]], None] = lambda measured: None) -> Run:
    """Train to the end, from scratch or from the checkpoint in `out`, and write the model there.

    Every so many steps the held-out loss is measured, `on_measured` is called, and a checkpoint is written. Raises
    InputError for options that cannot work, for a loss that is not finite and for a checkpoint of another run;
    KeyboardInterrupt once the checkpoint is written.
    """
    check_directory(options.out)
    device = torch.device("cpu") if options.backend == "numpy" else pick_device(options.device)
    device = distributed.local_device(device)
    with distributed.joined(device):
        run = Run(options, device)
        run.resume()
        _train(run, on_measured)
        if distributed.is_first():
            run.finish()
    return run


def _train(run: Run, on_measured: Callable[[Mapping[str, Any]], None]) -> None:
    run.decoder.train()
    with interrupt_deferred() as interrupted, progress(total=run.loop.steps, initial=run.done, unit="step") as bar:
        for batches in run.steps():
            bar.set_postfix(loss=f"{run.loop.step(batches):.3f}", refresh=False)
            bar.update()
            if run.done % run.options.eval_every == 0 or run.done == run.loop.steps:
                run.measured.append(run.measure())
                if distributed.is_first():
                    on_measured(run.measured[-1])
                run.checkpoint()
            if distributed.any_process(interrupted(), run.device):
                run.checkpoint()
                raise KeyboardInterrupt
