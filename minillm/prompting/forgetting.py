"""Forgetting: the rise of the loss on text that the base itself sampled; mixed into the training rows, it is a remedy.

The text is sampled at temperature 1: the rise is an estimate of KL(base || adapted), in nats per token. To train on
such text too (pseudo-rehearsal, Robins 1995) needs none of the data that the base was trained on.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch

from minillm.adapt import Method
from minillm.adapt.method import is_language_model
from minillm.data.batches import length_buckets
from minillm.data.conversations import EncodedConversation, answered
from minillm.errors import InputError
from minillm.generation import LanguageModel, generate
from minillm.prompting.lengths import room
from minillm.prompting.scoring import log_likelihoods
from minillm.runtime.device import autocast
from minillm.runtime.progress import progress
from minillm.tokenizer import Tokenizer
from minillm.training.schedule import TrainingSettings

BATCH = 16
OWN_ROWS, OWN_TOKENS = 8, 64
"""The size of the base's own text."""


def held_out(model: LanguageModel, rows: Sequence[EncodedConversation], precision: str, name: str = "") -> float:
    """The mean loss of the tokens that are trained on, in nats. No name: no progress bar."""
    return sum(losses(model, rows, precision, name)) / sum(len(row.targets) for row in rows)


@torch.no_grad()
def losses(
    model: LanguageModel, rows: Sequence[EncodedConversation], precision: str, name: str = ""
) -> list[float]:  # fmt: skip
    """The loss of each row, the sum over the tokens that are trained on, in nats. No name: no progress bar."""
    found, batches = [0.0] * len(rows), length_buckets([len(row.ids) for row in rows], BATCH)
    for batch in progress(batches, desc=name, unit="batch") if name else batches:
        with autocast(model.decoder.embed.weight.device, precision):
            scores = log_likelihoods(model, [rows[index] for index in batch])
        for index, score in zip(batch, scores.tolist(), strict=True):
            found[index] = -score
    return found


def own_text(
    method: LanguageModel, tokenizer: Tokenizer, precision: str, seed: int, rows: int = OWN_ROWS
) -> list[EncodedConversation]:
    """Text that a base, or the base of an untrained method, samples at temperature 1, of up to `OWN_TOKENS` tokens."""
    start, stop = tokenizer.prompt(""), tokenizer.stop
    ids = torch.tensor([start] * rows, device=method.decoder.embed.weight.device)
    new = min(OWN_TOKENS, room(method, 0, precision).prompt - len(start))
    with autocast(ids.device, precision):
        out = generate(method.decoder, ids, max_new_tokens=new, temperature=1.0, seed=seed, stop=stop)
    new_tokens = out[:, len(start) :].tolist()
    ends = [next((n for n, token in enumerate(row, 1) if token in stop), len(row)) for row in new_tokens]
    return [answered(start, row[:end]) for row, end in zip(new_tokens, ends, strict=True)]


def remedies(
    method: Method, tokenizer: Tokenizer, settings: TrainingSettings
) -> tuple[list[EncodedConversation], Callable[[], float] | None]:
    """The rows to replay, and the measurement of forgetting if it has a budget. Raises InputError for a classifier."""
    if not is_language_model(method) and (settings.replay or settings.forgetting_budget is not None):
        raise InputError("this method trains a classifier, no language model: leave out replay and forgetting_budget")
    method.eval()
    sampled, measured = partial(own_text, method, tokenizer, settings.precision), None
    if settings.forgetting_budget is not None:
        own = sampled(settings.seed)
        before = held_out(method.decoder, own, settings.precision)
        measured = lambda: held_out(method, own, settings.precision) - before  # noqa: E731
    # Other text than that on which forgetting is measured; generators on the CPU use the lower 32 bits of a seed.
    return sampled(settings.seed ^ 2**31, settings.replay) if settings.replay else [], measured
