"""`minillm pretrain`: a tiny language model from nothing, on a text of one's own, on reviews or on word problems.

What a run writes stands in one directory: the checkpoint from which it goes on, the curve as JSON and PNG, and at the
end the model as `minillm.load` reads it. Checkpoints are for one machine and its settings; the model is for everyone.
Torch trains, or numpy: the same rows in the same order from the same weights.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
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
from minillm.lab.curve import CURVE
from minillm.runtime import distributed
from minillm.runtime.device import best_precision, pick_device
from minillm.runtime.files import check_directory, write_text
from minillm.runtime.interrupts import interrupt_deferred
from minillm.runtime.progress import progress
from minillm.tokenizer import Tokenizer
from minillm.training.checkpoints import CHECKPOINT, restore_checkpoint, save_checkpoint
from minillm.training.learners import TorchLearner
from minillm.training.loop import Loop
from minillm.training.numpy_learner import NumpyLearner
from minillm.training.pretraining import FromNothing, Recipe, Row, held_out_loss, pack, pack_exchanges
from minillm.training.tokenizers import token_bytes, train_tokenizer

TASKS = ("word_problems", "reviews-text")
BACKENDS = ("torch", "numpy")
MOST_HELD_OUT, PROBLEMS_HELD_OUT = 64, 300
"""Rows of the held-out text that are measured each time, and word problems that are not trained on."""


@dataclass(frozen=True)
class PretrainSettings:
    """What is learned by what. Two runs of equal settings are the same run."""

    data: str | None = None
    task: str | None = None
    preset: str = "tiny"
    tokenizer: str | None = None
    vocabulary: int = 2048
    steps: int | None = None
    seed: int = 0
    forms: tuple[str, ...] = word_problems.PRETRAINED_FORMS
    problem_steps: tuple[int, ...] = word_problems.PRETRAINED_STEPS

    def __post_init__(self):
        if (self.data is None) == (self.task is None):
            raise InputError(f"give a text to learn, --data FILE.txt, or a task: {', '.join(TASKS)}")
        if self.task is not None and self.task not in TASKS:
            raise InputError(f"there is no task {self.task!r} to pretrain on; there are: {', '.join(TASKS)}")
        check_seed(self.seed)


@dataclass(frozen=True)
class Rows:
    """A text as token ids in rows, to train on and to measure on."""

    tokenizer: Tokenizer
    train: list[Row]
    held_out: list[Row]


def read_rows(settings: PretrainSettings, recipe: Recipe) -> Rows:
    """The tokenizer that the text makes, and the text in its tokens."""
    return _problem_rows(settings, recipe) if settings.task == "word_problems" else _text_rows(settings)


def _text_rows(settings: PretrainSettings) -> Rows:
    corpus = text_file(Path(settings.data)) if settings.data is not None else reviews_text(pull("reviews"))
    tokenizer = train_tokenizer(settings.tokenizer or "bpe", corpus.train, settings.vocabulary)
    assert tokenizer.eos is not None
    train, held_out = (pack([tokenizer.encode(text) for text in texts], tokenizer.eos) for texts in corpus)
    return Rows(tokenizer, train, held_out[:MOST_HELD_OUT])


def drawn_problems(settings: PretrainSettings, recipe: Recipe) -> list[word_problems.Problem]:
    """As many as the run reads, so that it need read none twice; the first are held out."""
    found = word_problems.problems(settings.seed, forms=settings.forms, steps=settings.problem_steps)
    # A row holds four or five.
    return list(islice(found, PROBLEMS_HELD_OUT + 5 * recipe.batch * recipe.steps))


def _problem_rows(settings: PretrainSettings, recipe: Recipe) -> Rows:
    answered = word_problems.exchanges(drawn_problems(settings, recipe), settings.seed)
    numbers = "".join(f" {number}" for number in range(word_problems.LARGEST + 1))
    texts = [numbers, *(question + answer for question, answer in answered[:20_000])]
    tokenizer = train_tokenizer(settings.tokenizer or "words", texts, settings.vocabulary)
    encoded = [(tokenizer.encode(question), tokenizer.encode(answer)) for question, answer in answered]
    held_out, train = encoded[:PROBLEMS_HELD_OUT], encoded[PROBLEMS_HELD_OUT:]
    return Rows(tokenizer, pack_exchanges(train), pack_exchanges(held_out)[:MOST_HELD_OUT])


class Run:
    """One pretraining run: its model, its loop, and what it has measured so far."""

    def __init__(self, settings: PretrainSettings, out: Path, device: torch.device, backend: str = "torch"):
        self.settings, self.out, self.device, self.backend = settings, out, device, backend
        self.recipe = Recipe.from_preset(settings.preset, settings.steps)
        self.rows = read_rows(settings, self.recipe)
        self.precision = "float64" if backend == "numpy" else _torch_precision(device)
        torch.manual_seed(settings.seed)
        self.decoder = Decoder(self.recipe.config(self.rows.tokenizer.vocabulary)).to(device)
        self.model = FromNothing(self.decoder)
        training = self.recipe.settings(self.precision, settings.seed)
        learner = (
            NumpyLearner(self.decoder, training)
            if backend == "numpy"
            else TorchLearner(self.model, self.model.loss, training)
        )
        self.loop = Loop(learner, self.rows.train, lambda row: len(row.ids), training, steps=self.recipe.steps)
        self.bytes = token_bytes(self.rows.tokenizer)
        self.measured: list[dict[str, Any]] = []

    def described(self) -> dict[str, Any]:
        """What determines the run, in JSON's types; the text by its tokens' sha256."""
        tokens = hashlib.sha256(json.dumps([self.rows.train, self.rows.held_out]).encode()).hexdigest()
        return json.loads(
            json.dumps(
                {**asdict(self.settings), **asdict(self.recipe), "tokens": tokens, "backend": self.backend,
                 "precision": self.precision, "processes": distributed.size()}
            )
        )  # fmt: skip

    @property
    def done(self) -> int:
        return len(self.loop.history.losses)

    def measure(self) -> dict[str, Any]:
        """The held-out loss, and how a held-out text goes on."""
        batch = self.recipe.batch
        found = held_out_loss(self.model, self.rows.held_out, self.bytes, batch, self.precision)
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
        if distributed.rank() == 0:
            save_checkpoint(self.out, self.loop, {"settings": self.described(), "measured": self.measured})

    def resume(self, fresh: bool) -> None:
        """Go on from the checkpoint of an earlier run of these settings, if there is one."""
        if fresh:
            (self.out / CHECKPOINT).unlink(missing_ok=True)
        found = restore_checkpoint(self.out, self.loop, self.described())
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
        save(self.decoder, self.rows.tokenizer, self.out)
        write_text(self.out / CURVE, json.dumps(self.curve(), indent=1) + "\n")


def pretrain(
    settings: PretrainSettings, out: Path, *, device: str = "auto", backend: str = "torch", fresh: bool = False,
    every: int = 100, say: Callable[[Mapping[str, Any]], None] = lambda measured: None,
) -> Run:  # fmt: skip
    """Train to the end, from nothing or from the checkpoint in `out`, and write the model there.

    Every so many steps the held-out loss is measured, said, and a checkpoint written. Raises InputError for settings
    that cannot work, for a loss that is no number and for a checkpoint of another run; KeyboardInterrupt once the
    checkpoint is written.
    """
    if every < 1:
        raise InputError(f"a checkpoint every {every} steps cannot be; it must be 1 at least")
    check_directory(out)
    place = distributed.local_device(_place(device, backend))
    with distributed.joined(place):
        run = Run(settings, out, place, backend)
        run.resume(fresh)
        _train(run, every, say)
        if distributed.rank() == 0:
            run.finish()
    return run


def _place(device: str, backend: str) -> torch.device:
    """Where the backend computes: numpy only in one process, on the CPU."""
    if backend not in BACKENDS:
        raise InputError(f"there is no backend {backend!r}; there are: {', '.join(BACKENDS)}")
    if backend == "torch":
        return pick_device(device)
    if device not in ("auto", "cpu"):
        raise InputError(f"numpy computes on the CPU, not on {device}")
    if distributed.started() > 1:
        raise InputError("numpy trains in one process; start it without torchrun")
    return torch.device("cpu")


def _torch_precision(device: torch.device) -> str:
    return best_precision(device) if device.type == "cuda" else "float32"


def _train(run: Run, every: int, say: Callable[[Mapping[str, Any]], None]) -> None:
    run.decoder.train()
    with interrupt_deferred() as interrupted, progress(total=run.loop.steps, initial=run.done, unit="step") as bar:
        for batches in run.steps():
            bar.set_postfix(loss=f"{run.loop.step(batches):.3f}", refresh=False)
            bar.update()
            if run.done % every == 0 or run.done == run.loop.steps:
                run.measured.append(run.measure())
                if distributed.rank() == 0:
                    say(run.measured[-1])
                run.checkpoint()
            if distributed.any_says(interrupted(), run.device):
                run.checkpoint()
                raise KeyboardInterrupt
