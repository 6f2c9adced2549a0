"""Which answer does a model prefer? The score of an answer is the log-probability of its tokens after the prompt."""

from collections.abc import Callable, Sequence
from itertools import accumulate

import torch
from einops import rearrange
from torch import Tensor

from minillm.data.batches import length_buckets, pad_right
from minillm.generation import LanguageModel
from minillm.operations import log_softmax
from minillm.runtime.progress import progress
from minillm.shapes import Float, Int

BATCH = 32
Features = Callable[[Sequence[Sequence[int]]], Float[Tensor, "B T D"]]
"""The hidden states of rows of tokens before the head, padded on the right: the model's own, or out of a cache."""


def answer_scores(
    model: LanguageModel, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]],
    features: Features | None = None,
) -> Float[Tensor, "B C"]:  # fmt: skip
    """log P(answer | prompt) of every answer after every prompt, in nats, in float32 at least.

    A prompt is processed once for all answers of one token, and once more only where longer ones diverge: the last
    token of an answer is predicted and is no input, and an answer that is the start of another shares its row.
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
    each = by_prompt[:, steps, tokens]
    scores = each.new_zeros(len(prompts), len(answers))
    return scores.index_add(1, torch.tensor(owners, device=each.device), each)


def _starts_with(tokens: Sequence[int], start: Sequence[int]) -> bool:
    return list(tokens[: len(start)]) == list(start)


def _longest(inputs: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Each that is not the start of another, once."""
    different = list(dict.fromkeys(inputs))
    return [
        one for one in different if not any(other != one and _starts_with(other, one) for other in different)
    ]  # fmt: skip


def answer_log_probabilities(
    model: LanguageModel, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]],
    features: Features | None = None,
) -> Float[Tensor, "B"]:  # fmt: skip
    """log P(answer | prompt) of each row's own answer: the sum over its tokens, in nats."""
    rows = [[*prompt, *answer[:-1]] for prompt, answer in zip(prompts, answers, strict=True)]
    # A token is predicted at the place before its own: the first one at the prompt's last token.
    places = [[len(p) - 1 + index for index in range(len(a))] for p, a in zip(prompts, answers, strict=True)]
    log_probabilities = _log_probabilities_at(model, rows, places, features)
    device = log_probabilities.device
    tokens = torch.tensor([token for answer in answers for token in answer], device=device)
    owners = torch.tensor([row for row, answer in enumerate(answers) for _ in answer], device=device)
    each = log_probabilities.gather(-1, tokens[:, None])[:, 0]
    return each.new_zeros(len(rows)).index_add(0, owners, each)


def _log_probabilities_at(
    model: LanguageModel, rows: Sequence[Sequence[int]], places: Sequence[Sequence[int]], features: Features | None
) -> Float[Tensor, "N V"]:
    """log softmax of the logits at some places of each row, one row after another; the head runs on no others."""
    hidden = _features(model, rows) if features is None else features(rows)
    owners = torch.tensor([row for row, some in enumerate(places) for _ in some], device=hidden.device)
    flat = torch.tensor([place for some in places for place in some], device=hidden.device)
    logits = model.decoder.head(hidden[owners, flat])
    return log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)))


def _features(model: LanguageModel, rows: Sequence[Sequence[int]]) -> Float[Tensor, "B T D"]:
    ids = pad_right(rows)[0].to(next(model.decoder.head.parameters()).device)
    return model.decoder.features(ids, prefix=model.prefix())


def score_all(
    score: Callable[[list[int]], Float[Tensor, "B C"]], lengths: Sequence[int], name: str = "scoring"
) -> Float[Tensor, "N C"]:
    """`score(indices)` of all rows, in batches of similar length, in the order of the rows."""
    batches = length_buckets(lengths, BATCH)
    with torch.no_grad():
        found = [score(batch).cpu() for batch in progress(batches, desc=name, unit="batch")]
    scores = torch.cat(found)
    return scores[torch.tensor([index for batch in batches for index in batch]).argsort()]


def accuracy(scores: Float[Tensor, "N C"], labels: Int[Tensor, "N"]) -> float:
    """The share of rows whose best score is their label's, from 0 to 1."""
    return (scores.argmax(-1) == labels).double().mean().item()
