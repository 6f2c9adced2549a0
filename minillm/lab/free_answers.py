"""Adaptation to free answers. The loss is computed on the tokens of the answers only.

Measurements on the test rows: the loss in nats per token, and exact match, the share of greedy answers that equal the
expected ones up to surrounding whitespace.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from minillm.adapt import Method
from minillm.data.batches import generation_batches, length_buckets, pad_left
from minillm.data.exchanges import Exchange, Exchanges
from minillm.generation import generate
from minillm.lab.experiment import Experiment
from minillm.prompting.fitting import EncodedRow, encode_exchanges, fit_to_answers
from minillm.prompting.lengths import room
from minillm.prompting.scoring import answer_log_probabilities
from minillm.runtime.device import autocast
from minillm.runtime.progress import progress
from minillm.training.checkpoints import Checkpoints
from minillm.training.schedule import TrainingSettings

BATCH = 16


def adapt_to_answers(
    experiment: Experiment, task: Exchanges, method: Method, settings: TrainingSettings,
    on_trained: Callable[[], None], truncate: str = "error", checkpoints: Checkpoints | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Train a method on the answers, select the epoch with the lowest validation loss, and measure it on test rows."""
    exchanges, first, last = [*task.train, *task.validation, *task.test], len(task.train), -len(task.test)
    encoded = encode_exchanges(experiment.tokenizer, exchanges, room(method, 0, experiment.precision), truncate)
    rows, validation, test = encoded[:first], encoded[first:last], encoded[last:]
    history = fit_to_answers(
        method, rows, settings, lambda: -held_out(experiment, method, validation), on_interrupt=on_trained,
        checkpoints=checkpoints,
    )  # fmt: skip
    on_trained()
    start = time.perf_counter()
    nats, exact = held_out(experiment, method, test), exact_match(experiment, method, task.test, test)
    return {
        "nats_per_token": nats,
        "exact_match": exact,
        "train_seconds": history.seconds,
        "eval_seconds": time.perf_counter() - start,
        "tokens_per_second": history.tokens / history.seconds,
        "validation": [-score for score in history.validation],
        "losses": history.losses,
    }


@torch.no_grad()
def held_out(experiment: Experiment, method: Method, rows: Sequence[EncodedRow]) -> float:
    """The mean loss of the answer tokens, in nats."""
    total, count = 0.0, 0
    batches = length_buckets([len(prompt) + len(answer) for prompt, answer in rows], BATCH)
    for batch in progress(batches, desc="validation loss", unit="batch"):
        prompts, answers = zip(*(rows[index] for index in batch), strict=True)
        with autocast(experiment.device, experiment.precision):
            total -= answer_log_probabilities(method, prompts, answers).sum().item()
        count += sum(len(answer) for answer in answers)
    return total / count


def exact_match(
    experiment: Experiment, method: Method, rows: Sequence[Exchange], encoded: Sequence[EncodedRow]
) -> float:  # fmt: skip
    """The share of rows whose greedy answer is the expected one, up to surrounding whitespace."""
    right, device, end = 0, experiment.device, experiment.tokenizer.eos
    assert end is not None
    most = room(method, 0, experiment.precision).prompt
    prompts, answers = zip(*((len(prompt), len(answer)) for prompt, answer in encoded), strict=True)
    for batch in progress(generation_batches(prompts, answers, BATCH, most), desc="answers", unit="batch"):
        ids, mask = pad_left([encoded[index][0] for index in batch])
        # One token more than the longest expected answer if it fits: longer outputs are wrong anyway.
        longest = min(max(answers[index] for index in batch) + 1, most - ids.shape[1])
        with autocast(device, experiment.precision):
            out = generate(method, ids.to(device), max_new_tokens=longest, stop=[end], mask=mask.to(device))
        for index, answer in zip(batch, out[:, ids.shape[1] :].tolist(), strict=True):
            text = experiment.tokenizer.decode(answer[: answer.index(end)] if end in answer else answer)
            right += text.strip() == rows[index].answer.strip()
    return right / len(rows)
