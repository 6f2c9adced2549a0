"""`minillm pretrain`: train a tiny language model from scratch, on a text file, the reviews or word problems.

A run writes one directory: its checkpoint, the loss curve (JSON and pictures), and at the end the model for
`minillm.load`. A checkpoint belongs to one machine and one set of options; the model is portable. Both backends, torch
and numpy, train on the same rows in the same order from the same initial weights.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch

from minillm.data import word_problems
from minillm.data.text import reviews_text, text_file
from minillm.decoder import Decoder
from minillm.errors import InputError
from minillm.generation import generate
from minillm.hub import save
from minillm.hub.pull import check_pulled, pull
from minillm.lab.pictures import PictureOptions, curve_picture, draw
from minillm.lab.saving import saved
from minillm.operations import backend
from minillm.runtime import distributed
from minillm.runtime.device import best_precision, keep_freed_memory, pick_device, use_threads
from minillm.runtime.files import check_directory, check_unused, commit
from minillm.runtime.fingerprint import json_fingerprint
from minillm.runtime.interrupts import interrupt_deferred
from minillm.runtime.locks import locked
from minillm.runtime.options import RUN, Directory, DryRunOptions, File, RunOptions
from minillm.runtime.progress import note, progress
from minillm.tokenizer import Tokenizer
from minillm.training.checkpoints import CHECKPOINT, Checkpoints, restore_checkpoint, save_checkpoint
from minillm.training.loop import Loop
from minillm.training.numpy_learner import NumpyLearner
from minillm.training.pretraining import (
    CONTEXT,
    PackedRow,
    PretrainingRecipe,
    held_out_loss,
    language_model_loss,
    pack,
    pack_exchanges,
)
from minillm.training.sharded import gather, learner_of, shard
from minillm.training.tokenizers import token_bytes, train_tokenizer

CURVE = "curve.json"
MOST_HELD_OUT, PROBLEMS_HELD_OUT = 64, 300
"""The largest number of validation rows, and the number of word problems among them."""


@dataclass(kw_only=True)
class DataOptions:
    """Options of the training text and its tokens."""

    data: File | None = None
    """The training text, a .txt file. Its last tenth is the validation text."""
    task: Literal["word_problems", "reviews-text"] | None = None
    """Instead of your own text: generated word problems, or the film reviews."""
    tokenizer: Literal["bpe", "characters", "words"] | None = None
    """The tokenizer to train; words for word problems, else bpe, if not given."""
    vocabulary: int = 2048
    """The maximum vocabulary size."""
    max_length: int = CONTEXT
    """The number of tokens per row, and the context length of the model."""


@dataclass(kw_only=True)
class TrainingOptions(RunOptions):
    """Options of the model and its training."""

    preset: Literal["nano", "tiny", "small"] = "tiny"
    """The model size, which also determines the learning rate, the batch size and the number of steps."""
    steps: int | None = None
    """The number of optimizer steps; depends on the preset if not given."""
    eval_every: int = 100
    """Steps between evaluations on the validation text, each with a sample and a checkpoint."""
    backend: Literal["torch", "numpy"] = "torch"
    """numpy computes losses, gradients and AdamW with the reference in float64: the same curve, about three times
    slower."""


@dataclass(kw_only=True)
class Pretrain(DryRunOptions, PictureOptions, TrainingOptions, DataOptions):
    """Train a tiny language model from scratch, and write the model, its loss curve and checkpoints.

    An interrupted run continues from its last checkpoint. Under torchrun the processes share each batch.

    Example: minillm pretrain --task word_problems --preset nano --out my-model
    """

    out: Directory = Path("pretrained")
    """The directory of the model, the curve and the checkpoints."""
    overwrite: bool = False
    """Start again, and replace the results of another run."""

    def __post_init__(self):
        super().__post_init__()
        if (self.data is None) == (self.task is None):
            raise InputError("pretrain needs either --data FILE.txt or --task word_problems or reviews-text")
        if self.eval_every < 1 or self.max_length < 1:
            raise InputError(
                f"eval_every and max_length must be at least 1, got {self.eval_every} and {self.max_length}"
            )
        if self.backend == "numpy" and self.device not in ("auto", "cpu"):
            raise InputError(f"the numpy backend runs on the CPU, got device {self.device}")
        if self.backend == "numpy" and distributed.started() > 1:
            raise InputError("the numpy backend runs in one process; start it without torchrun")

    def run(self) -> None:
        keep_freed_memory()
        use_threads(self.threads)
        run = pretrain(self, on_measured=lambda measured: note(describe(measured)))
        if self.dry_run:
            self.show_plan(run.planned())
        elif distributed.is_first():
            draw(curve_picture, run.curve(), self.out / "curve", self.format)
            last = describe(run.measured[-1]).partition("\n")[0]
            self.show(
                f"{last}\nsaved: {self.out}; try `minillm generate ... --base {self.out}`",
                run.curve() | {"out": self.out},
            )

    def described(self) -> dict[str, Any]:
        """The options that determine the result, in JSON's types."""
        names = ("data", "task", "preset", "tokenizer", "vocabulary", "max_length", "steps", "seed")
        found = {name: getattr(self, name) for name in names}
        problems = {"forms": word_problems.PRETRAINED_FORMS, "problem_steps": word_problems.PRETRAINED_STEPS}
        return found | {"data": None if self.data is None else str(self.data), **problems}


@dataclass(frozen=True)
class Rows:
    """The training and the validation text as rows of token ids."""

    tokenizer: Tokenizer
    train: list[PackedRow]
    held_out: list[PackedRow]


def read_rows(options: Pretrain, recipe: PretrainingRecipe) -> Rows:
    """Train the tokenizer on the text, and encode the text with it."""
    return _problem_rows(options, recipe) if options.task == "word_problems" else _text_rows(options)


def _text_rows(options: Pretrain) -> Rows:
    corpus = text_file(options.data) if options.data is not None else reviews_text(pull("reviews"))
    tokenizer = train_tokenizer(options.tokenizer or "bpe", corpus.train, options.vocabulary)
    assert tokenizer.eos is not None
    train, held_out = (
        pack([tokenizer.encode(text) for text in texts], tokenizer.eos, options.max_length) for texts in corpus
    )
    return Rows(tokenizer, train, held_out[:MOST_HELD_OUT])


def drawn_problems(options: Pretrain, recipe: PretrainingRecipe) -> list[word_problems.Problem]:
    """Enough word problems to use each once; the first are the validation problems."""
    forms, steps = word_problems.PRETRAINED_FORMS, word_problems.PRETRAINED_STEPS
    # A row of 384 tokens holds four or five.
    count = PROBLEMS_HELD_OUT + 5 * recipe.batch_size * recipe.steps * options.max_length // CONTEXT
    return list(islice(word_problems.problems(options.seed, forms=forms, steps=steps), count))


def _problem_rows(options: Pretrain, recipe: PretrainingRecipe) -> Rows:
    answered = word_problems.exchanges(drawn_problems(options, recipe), options.seed)
    numbers = "".join(f" {number}" for number in range(word_problems.LARGEST + 1))
    texts = [numbers, *(question + answer for question, answer in answered[:20_000])]
    tokenizer = train_tokenizer(options.tokenizer or "words", texts, options.vocabulary)
    encoded = [(tokenizer.encode(question), tokenizer.encode(answer)) for question, answer in answered]
    held_out, train = encoded[:PROBLEMS_HELD_OUT], encoded[PROBLEMS_HELD_OUT:]
    length = options.max_length
    return Rows(tokenizer, pack_exchanges(train, length), pack_exchanges(held_out, length)[:MOST_HELD_OUT])


class Run:
    """One pretraining run: its model, its training loop, and its measurements so far."""

    def __init__(self, options: Pretrain, device: torch.device):
        self.options, self.device = options, device
        self.recipe = PretrainingRecipe.from_preset(options.preset, options.steps)
        self.rows = read_rows(options, self.recipe)
        in_numpy = options.backend == "numpy"
        self.precision = "float64" if in_numpy else best_precision(device) if device.type == "cuda" else "float32"
        torch.manual_seed(options.seed)
        self.decoder = Decoder(self.recipe.config(self.rows.tokenizer.vocabulary, options.max_length)).to(device)
        training = self.recipe.settings(self.precision, options.seed)
        shard(self.decoder)
        parameters, loss = dict(self.decoder.named_parameters()), partial(language_model_loss, self.decoder)
        learner = NumpyLearner(self.decoder, training) if in_numpy else learner_of(parameters, loss, training)
        self.loop = Loop(learner, self.rows.train, lambda row: len(row.ids), training, steps=self.recipe.steps)
        self.bytes = token_bytes(self.rows.tokenizer)
        self.measured: list[dict[str, Any]] = []

    def described(self) -> dict[str, Any]:
        """The options that determine the run, in JSON's types, and the sha256 of the tokens."""
        tokens = json_fingerprint([self.rows.train, self.rows.held_out])
        described = {
            **self.options.described(), **asdict(self.recipe), "tokens": tokens, "backend": self.options.backend,
            "precision": self.precision,
        }  # fmt: skip
        return json.loads(json.dumps(described))

    def measure(self) -> dict[str, Any]:
        """The validation loss, and a continuation of a validation text."""
        batch = self.recipe.batch_size
        found = held_out_loss(self.decoder, self.rows.held_out, self.bytes, batch, self.precision)
        start = self.rows.held_out[0].ids[:16]
        # Generation copies matrices, which a process of several does not have.
        with backend("plain") if distributed.process_count() > 1 else nullcontext():
            ids = generate(self.decoder, torch.tensor([start], device=self.device), max_new_tokens=48)
        self.decoder.train()
        sample = self.rows.tokenizer.decode(ids[0].tolist())
        return {"step": self.loop.done, "nats": found.nats, "bits_per_byte": found.bits_per_byte, "sample": sample}

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

    def planned(self) -> dict[str, Any]:
        """What is trained on what, for a dry run."""
        return {
            "rows": len(self.rows.train), "validation_rows": len(self.rows.held_out), "steps": self.loop.steps,
            "rows_per_step": self.recipe.batch_size, "tokens_per_row": self.options.max_length,
            "parameters": self.curve()["parameters"], "out": self.options.out,
        }  # fmt: skip

    def checkpoint(self) -> None:
        state, run = self.loop.state(), {"settings": self.described(), "measured": self.measured}
        if distributed.is_first():
            self.options.out = saved(lambda out: save_checkpoint(out, state, run), self.options.out)

    def resume(self) -> None:
        """Continue from the checkpoint of an earlier run with these options, if there is one."""
        if self.options.overwrite:
            Checkpoints(self.options.out).remove()
        found = restore_checkpoint(self.options.out, self.loop, self.described())
        self.measured = [] if found is None else found["measured"]

    def steps(self) -> Iterator[list[list[int]]]:
        """The batches of each remaining step."""
        while self.loop.done < self.loop.steps:
            for batches in self.loop.groups():
                yield batches
                if self.loop.done == self.loop.steps:
                    return

    def finish(self) -> None:
        """Save the model in float32, and the curve."""
        self.decoder.float().eval()
        self.options.out = saved(self.write, self.options.out)

    def write(self, out: Path) -> None:
        with commit(out) as new:
            save(self.decoder, self.rows.tokenizer, out)
            new.text(CURVE, json.dumps(self.curve(), indent=1) + "\n")
            new.text(RUN, self.options.run_file())


def describe(measured: Mapping[str, Any]) -> str:
    """A measurement as one line, with the sample below it."""
    sample = " ".join(measured["sample"].split())
    return (
        f"step {measured['step']}: val loss {measured['nats']:.3f} nats/token, "
        f"{measured['bits_per_byte']:.3f} bits per byte\n  {sample[:160]}"
    )


def pretrain(options: Pretrain, on_measured: Callable[[Mapping[str, Any]], None] = lambda measured: None) -> Run:
    """Train from scratch, or from the checkpoint in `out`, and save the model there.

    Every `eval_every` steps the validation loss is measured, `on_measured` is called, and a checkpoint is saved. A dry
    run trains nothing. Raises InputError for invalid options, for a loss that is not finite and for the checkpoint of
    another run, and KeyboardInterrupt after the checkpoint is saved.
    """
    if options.dry_run and options.task == "reviews-text":
        check_pulled("reviews")
    check_directory(options.out)
    if not (options.out / CHECKPOINT).exists():
        check_unused(options.out / "config.json", options.overwrite)
    device = torch.device("cpu") if options.backend == "numpy" else pick_device(options.device)
    with distributed.joined(device):
        run = Run(options, device)
        if options.dry_run:
            return run
        with locked(options.out) if distributed.is_first() else nullcontext():
            run.resume()
            _train(run, on_measured)
            gather(run.decoder)
            if distributed.is_first():
                run.finish()
    return run


def _train(run: Run, on_measured: Callable[[Mapping[str, Any]], None]) -> None:
    run.decoder.train()
    bar = progress(total=run.loop.steps, initial=run.loop.done, desc="training", unit="step")
    with interrupt_deferred() as interrupted, bar:
        for batches in run.steps():
            bar.set_postfix(loss=f"{run.loop.step(batches):.3f}", refresh=False)
            bar.update()
            if run.loop.done % run.options.eval_every == 0 or run.loop.done == run.loop.steps:
                run.measured.append(run.measure())
                run.checkpoint()
                on_measured(run.measured[-1])
            if distributed.any_process(interrupted()):
                run.checkpoint()
                raise KeyboardInterrupt(f"step {run.loop.done} of {run.loop.steps}")
