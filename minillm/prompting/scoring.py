"""The score of an answer: the log-probability of its tokens after the prompt."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from minillm.data.batches import length_buckets, pad_right
from minillm.data.conversations import EncodedConversation
from minillm.data.packing import pack
from minillm.generation import LanguageModel
from minillm.operations import log_softmax
from minillm.runtime.device import autocast
from minillm.runtime.progress import progress
from minillm.shapes import Float, Int

BATCH = 32
Features = Callable[[Sequence[Sequence[int]]], Float[Tensor, "B T D"]]
"""The hidden states of rows of tokens before the head, padded on the right: the model's own, or cached ones."""


def answer_scores(
    model: LanguageModel, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]],
    features: Features | None = None,
) -> Float[Tensor, "B C"]:  # fmt: skip
    """log P(answer | prompt) of every answer after every prompt, in nats, at least in float32.

    A prompt is processed once for all answers of one token, and again only where longer answers diverge: the last
    token of an answer is a target and no input, and an answer that is a prefix of another shares its row.
    """
    inputs = _longest([tuple(answer[:-1]) for answer in answers])
    rows = [[*prompt, *some] for prompt in prompts for some in inputs]
    places = [range(len(prompt) - 1, len(prompt) + len(some)) for prompt in prompts for some in inputs]
    log_probabilities = _log_probabilities_at(model, rows, places, features)
    by_prompt = rearrange(log_probabilities, "(B N) V -> B N V", B=len(prompts))
    starts = [0, *accumulate(len(some) + 1 for some in inputs)]
    owners, steps, tokens = [], [], []
    for owner, answer in enumerate(answers):
        start = next(start for start, some in zip(starts, inputs, strict=False) if _starts_with(some, answer[:-1]))
        owners += [owner] * len(answer)
        steps += range(start, start + len(answer))
        tokens += answer
    owner, step, token = torch.tensor([owners, steps, tokens], device=by_prompt.device)
    each = by_prompt[:, step, token]
    return each.new_zeros(len(prompts), len(answers)).index_add(1, owner, each)


def _starts_with(tokens: Sequence[int], start: Sequence[int]) -> bool:
    return list(tokens[: len(start)]) == list(start)


def _longest(inputs: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """The inputs that are not a prefix of another, each once."""
    different = list(dict.fromkeys(inputs))
    return [one for one in different if not any(other != one and _starts_with(other, one) for other in different)]


def log_likelihoods(
    model: LanguageModel, rows: Sequence[EncodedConversation], capacity: int | None = None
) -> Float[Tensor, "B"]:
    """The sum of the log-probabilities of the tokens of each row that are trained on, in nats.

    With a capacity, the rows are packed into rows of so many tokens.
    """
    features = None if capacity is None else partial(_packed_features, model, capacity)
    # The logits at a token predict the next one; the last token is a target and no input.
    places = [[target - 1 for target in row.targets] for row in rows]
    log_probabilities = _log_probabilities_at(model, [row.ids[:-1] for row in rows], places, features)
    device = log_probabilities.device
    tokens = torch.tensor([row.ids[target] for row in rows for target in row.targets], device=device)
    owners = torch.tensor([index for index, row in enumerate(rows) for _ in row.targets], device=device)
    each = log_probabilities.gather(-1, tokens[:, None])[:, 0]
    return each.new_zeros(len(rows)).index_add(0, owners, each)


def _packed_features(model: LanguageModel, capacity: int, rows: Sequence[Sequence[int]]) -> Float[Tensor, "B T D"]:
    """The hidden states of rows, padded on the right, computed in packed rows."""
    ids, mask, places = pack(rows, capacity)
    device = next(model.decoder.head.parameters()).device
    hidden = model.decoder.features(ids.to(device), prefix=model.prefix(), mask=mask.to(device))
    parts = [hidden[place, start : start + len(row)] for row, (place, start) in zip(rows, places, strict=True)]
    return pad_sequence(parts, batch_first=True)


def _log_probabilities_at(
    model: LanguageModel, rows: Sequence[Sequence[int]], places: Sequence[Sequence[int]],
    features: Features | None = None,
) -> Float[Tensor, "N V"]:  # fmt: skip
    """log softmax of the logits at some positions of each row, one row after another; the head runs only there."""
    if features is None:
        ids = pad_right(rows)[0].to(next(model.decoder.head.parameters()).device)
        hidden = model.decoder.features(ids, prefix=model.prefix())
    else:
        hidden = features(rows)
    owners = torch.tensor([row for row, some in enumerate(places) for _ in some], device=hidden.device)
    flat = torch.tensor([place for some in places for place in some], device=hidden.device)
    logits = model.decoder.head(hidden[owners, flat])
    return log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)))


@torch.no_grad()
def score_all(
    model: LanguageModel, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], name: str = "scoring",
    precision: str = "float32", features: Features | None = None,
) -> Float[Tensor, "N C"]:  # fmt: skip
    """`answer_scores` of all prompts, in batches of similar length, in the precision of training."""
    batches, found = length_buckets([len(prompt) for prompt in prompts], BATCH), []
    for batch in progress(batches, desc=name, unit="batch") if name else batches:
        with autocast(model.decoder.embed.weight.device, precision):
            found.append(answer_scores(model, [prompts[index] for index in batch], answers, features).cpu())
    return torch.cat(found)[torch.tensor([index for batch in batches for index in batch]).argsort()]


@torch.no_grad()
def head_scores(
    head: nn.Module, features: Float[Tensor, "N D"], answers: Sequence[Sequence[int]]
) -> Float[Tensor, "N C"]:
    """`answer_scores` of answers of one token, from the features of the prompts' last tokens."""
    ids, device = [token for (token,) in answers], next(head.parameters()).device
    return torch.cat([log_softmax(head(some.to(device)))[:, ids].cpu() for some in features.split(BATCH)])


def accuracy(scores: Float[Tensor, "N C"], labels: Int[Tensor, "N"]) -> float:
    """The share of rows whose highest score is their label's, in [0, 1]."""
    return (scores.argmax(-1) == labels).double().mean().item()
