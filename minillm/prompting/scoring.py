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
from minillm.training.activation_cache import TrunkStore

BATCH = 32


def answer_scores(
    model: LanguageModel, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]
) -> Float[Tensor, "B C"]:
    """log P(answer | prompt) of every answer after every prompt, in nats, in float32 at least.

    A prompt is read once for all answers of one token, and once more only where longer ones part: the last token of
    an answer is foretold and not read, and an answer that begins as another goes with it.
    """
    stems = _branches([tuple(answer[:-1]) for answer in answers])
    rows = [[*prompt, *stem] for prompt in prompts for stem in stems]
    places = [range(len(prompt) - 1, len(prompt) + len(stem)) for prompt in prompts for stem in stems]
    log_probabilities = _log_probabilities_at(model, rows, places)
    by_prompt = rearrange(log_probabilities, "(B N) V -> B N V", B=len(prompts))
    starts = [0, *accumulate(len(stem) + 1 for stem in stems)]
    owners, steps, tokens = [], [], []
    for owner, answer in enumerate(answers):
        start = next(start for start, stem in zip(starts, stems, strict=False) if _goes_on(stem, answer[:-1]))
        owners += [owner] * len(answer)
        steps += range(start, start + len(answer))
        tokens += answer
    each = by_prompt[:, steps, tokens]
    scores = each.new_zeros(len(prompts), len(answers))
    return scores.index_add(1, torch.tensor(owners, device=each.device), each)


def _goes_on(longer: Sequence[int], start: Sequence[int]) -> bool:
    return list(longer[: len(start)]) == list(start)


def _branches(starts: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """The different ones that no other goes on from."""
    different = list(dict.fromkeys(starts))
    return [
        start
        for start in different
        if not any(other != start and _goes_on(other, start) for other in different)
    ]  # fmt: skip


def answer_log_probabilities(
    model: LanguageModel, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]
) -> Float[Tensor, "B"]:
    """log P(answer | prompt) of each row's own answer: the sum over its tokens, in nats."""
    rows = [[*prompt, *answer[:-1]] for prompt, answer in zip(prompts, answers, strict=True)]
    # The token at each place is foretold from the place before it: the prompt's last token foretells the first.
    places = [[len(p) - 1 + index for index in range(len(a))] for p, a in zip(prompts, answers, strict=True)]
    log_probabilities = _log_probabilities_at(model, rows, places)
    device = log_probabilities.device
    tokens = torch.tensor([token for answer in answers for token in answer], device=device)
    owners = torch.tensor([row for row, answer in enumerate(answers) for _ in answer], device=device)
    each = log_probabilities.gather(-1, tokens[:, None])[:, 0]
    return each.new_zeros(len(rows)).index_add(0, owners, each)


def _log_probabilities_at(
    model: LanguageModel, rows: Sequence[Sequence[int]], places: Sequence[Sequence[int]]
) -> Float[Tensor, "N V"]:
    """log softmax of the logits at some places of each row, one row after another; the head runs on no others."""
    hidden = _hidden(model, rows)
    owners = torch.tensor([row for row, some in enumerate(places) for _ in some], device=hidden.device)
    flat = torch.tensor([place for some in places for place in some], device=hidden.device)
    logits = model.decoder.head(hidden[owners, flat])
    return log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)))


def _hidden(model: LanguageModel, rows: Sequence[Sequence[int]]) -> Float[Tensor, "B T D"]:
    """What the head reads of each row, padded on the right; a store knows the rows that it has read before."""
    if isinstance(model, TrunkStore):
        return model.read(rows)
    decoder = model.decoder
    return decoder.features(pad_right(rows)[0].to(decoder.embed.weight.device), prefix=model.prefix())


def score_all(
    score: Callable[[list[int]], Float[Tensor, "B C"]], lengths: Sequence[int], name: str = "scoring"
) -> Float[Tensor, "N C"]:
    """`score(indices)` of all rows, in batches of neighbours in length, back in the order of the rows."""
    batches = length_buckets(lengths, BATCH)
    with torch.no_grad():
        found = [score(batch).cpu() for batch in progress(batches, desc=name, unit="batch")]
    scores = torch.cat(found)
    return scores[torch.tensor([index for batch in batches for index in batch]).argsort()]


def accuracy(scores: Float[Tensor, "N C"], labels: Int[Tensor, "N"]) -> float:
    """The share of rows whose best score is their label's, from 0 to 1."""
    return (scores.argmax(-1) == labels).double().mean().item()
