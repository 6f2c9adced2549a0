"""Which answer does a model prefer? The score of an answer is the log-probability of its tokens after the prompt."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from minillm.batches import length_buckets, pad_right
from minillm.generation import LanguageModel
from minillm.ops.softmax import log_softmax
from minillm.progress import progress
from minillm.shapes import Float, Int

BATCH = 32


def answer_scores(
    model: LanguageModel, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]
) -> Float[Tensor, "B C"]:
    """log P(answer | prompt) of every answer after every prompt, in nats, in float32 at least.

    Answers of one token are read off one position a prompt. Longer ones run once for every prompt and answer.
    """
    if all(len(answer) == 1 for answer in answers):
        logits = _logits_at(model, prompts, [[len(prompt) - 1] for prompt in prompts])
        return log_softmax(logits[:, 0])[:, [answer[0] for answer in answers]]
    columns = []
    for answer in answers:
        rows = [[*prompt, *answer[:-1]] for prompt in prompts]
        places = [list(range(len(prompt) - 1, len(prompt) - 1 + len(answer))) for prompt in prompts]
        log_probabilities = log_softmax(_logits_at(model, rows, places))
        tokens = torch.tensor(list(answer), device=log_probabilities.device).expand(len(prompts), -1)
        columns.append(log_probabilities.gather(-1, tokens[..., None])[..., 0].sum(-1))
    return torch.stack(columns, -1)


def _logits_at(model: LanguageModel, rows: Sequence[Sequence[int]], places: list[list[int]]) -> Float[Tensor, "B T V"]:
    """The logits at some positions of each row; the head runs on no others."""
    device = next(parameter for parameter in model.head.parameters()).device
    ids, _ = pad_right(rows)
    hidden = model.features(ids.to(device))
    chosen = torch.tensor(places, device=device)
    hidden = hidden[torch.arange(len(rows), device=device)[:, None], chosen]
    logits = model.head(hidden)
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


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
