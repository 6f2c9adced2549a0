"""Adapting to free answers: the loss is on the answers' tokens only, and what counts is how they are continued.

Measured on rows that were not trained on: the loss in nats a token, and the share of greedy answers that are the
expected ones, letter by letter but for the blanks around them.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minillm.adapt import Method
from minillm.data.batches import length_buckets, pad_left
from minillm.data.exchanges import Exchange, Exchanges
from minillm.errors import InputError
from minillm.generation import generate
from minillm.lab.world import Bench, Keep
from minillm.prompting.scoring import answer_log_probabilities
from minillm.runtime.device import autocast
from minillm.runtime.progress import progress
from minillm.training.loop import train
from minillm.training.schedule import TrainingSettings

BATCH = 16


@dataclass
class Answered:
    """What was measured on the test rows, and how the training went; seconds and nats."""

    nats_per_token: float
    exact_match: float
    train_seconds: float
    eval_seconds: float
    tokens_per_second: float
    validation: list[float]
    losses: list[float]


def adapt_to_answers(
    bench: Bench, task: Exchanges, method: Method, settings: TrainingSettings, name: str, keep: Keep
) -> Answered:
    """Train a method on the answers, keep the epoch with the lowest validation loss, and measure it on test rows."""
    encoded = {part: encode(bench, getattr(task, part)) for part in ("train", "validation", "test")}

    def loss(rows: list[tuple[list[int], list[int]]]) -> tuple[Tensor, int]:
        prompts, answers = zip(*rows, strict=True)
        return -answer_log_probabilities(method, prompts, answers).sum(), sum(len(answer) for answer in answers)

    history = train(
        method, encoded["train"], loss, lambda row: len(row[0]) + len(row[1]), settings,
        validate=lambda: -held_out(bench, method, encoded["validation"], settings.precision),
        interrupted=lambda: keep(method), name=name,
    )  # fmt: skip
    keep(method)
    start = time.perf_counter()
    nats = held_out(bench, method, encoded["test"], settings.precision)
    exact = exact_match(bench, method, task.test, encoded["test"], settings.precision)
    return Answered(
        nats_per_token=nats,
        exact_match=exact,
        train_seconds=history.seconds,
        eval_seconds=time.perf_counter() - start,
        tokens_per_second=history.tokens / history.seconds,
        validation=[-score for score in history.validation],
        losses=history.losses,
    )


def encode(bench: Bench, rows: Sequence[Exchange]) -> list[tuple[list[int], list[int]]]:
    """(prompt ids, answer ids with the end of text): a model that answers must also know when it is done."""
    end = bench.tokenizer.eos
    if end is None:
        raise InputError("this tokenizer has no end of text, and free answers need one")
    return [(bench.tokenizer.encode(row.prompt), [*bench.tokenizer.encode(row.answer), end]) for row in rows]


@torch.no_grad()
def held_out(bench: Bench, method: Method, rows: Sequence[tuple[list[int], list[int]]], precision: str) -> float:
    """The mean loss of the answers' tokens, in nats."""
    total, count = 0.0, 0
    batches = length_buckets([len(prompt) + len(answer) for prompt, answer in rows], BATCH)
    for batch in progress(batches, desc="held-out loss", unit="batch"):
        prompts, answers = zip(*(rows[index] for index in batch), strict=True)
        with autocast(bench.device, precision):
            total -= answer_log_probabilities(method, prompts, answers).sum().item()
        count += sum(len(answer) for answer in answers)
    return total / count


def exact_match(
    bench: Bench, method: Method, rows: Sequence[Exchange], encoded: Sequence[tuple[list[int], list[int]]],
    precision: str,
) -> float:  # fmt: skip
    """The share of rows whose greedy answer is the expected one, blanks at its ends apart."""
    right, end = 0, bench.tokenizer.eos
    assert end is not None
    for batch in progress(length_buckets([len(prompt) for prompt, _ in encoded], BATCH), desc="answers", unit="batch"):
        ids, mask = pad_left([encoded[index][0] for index in batch])
        # One token more than the longest expected answer: enough to see that it does not end there.
        longest = max(len(encoded[index][1]) for index in batch) + 1
        with autocast(bench.device, precision):
            out = generate(
                method, ids.to(bench.device), max_new_tokens=longest, stop=[end], mask=mask.to(bench.device)
            )  # fmt: skip
        for index, answer in zip(batch, out[:, ids.shape[1] :].tolist(), strict=True):
            said = bench.tokenizer.decode(answer[: answer.index(end)] if end in answer else answer)
            right += said.strip() == rows[index].answer.strip()
    return right / len(rows)
