"""Four ways to choose among answers by their scores, under the names that lm-eval (the Evaluation Harness) gives them.

A score is log P(answer | prompt), the sum over the answer's tokens. Long answers score low and common ones high,
whatever the question: three of the four correct for that. Lengths are counted without the space before the answer,
which lm-eval keeps apart as its `target_delimiter`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from minillm.data.boundary import start_token
from minillm.errors import InputError
from minillm.generation import LanguageModel
from minillm.prompting.scoring import answer_scores
from minillm.shapes import Float
from minillm.tokenizer import Tokenizer

MEASURES = {
    "acc": "log P(answer | prompt)",
    "acc_norm": "log P(answer | prompt), divided by the answer's characters",
    "acc_bytes": "log P(answer | prompt), divided by the answer's bytes in UTF-8",
    "acc_mutual_info": "log P(answer | prompt) - log P(answer): what the prompt adds to it",
}
"""What each measure compares; the answer with the highest value is chosen."""


def measured(
    scores: Float[Tensor, "*N C"], answers: Sequence[str], unconditional: Float[Tensor, "C"]
) -> dict[str, Float[Tensor, "*N C"]]:
    """The scores under each measure. `unconditional` are the scores of `prior_scores`.

    Raises InputError for an answer without a character.
    """
    words = [answer.removeprefix(" ") for answer in answers]
    if not all(words):
        raise InputError("an answer is empty, and its score cannot be divided by its length")
    characters, lengths = ([len(w) for w in words], [len(w.encode()) for w in words])
    return {
        "acc": scores,
        "acc_norm": scores / scores.new_tensor(characters),
        "acc_bytes": scores / scores.new_tensor(lengths),
        "acc_mutual_info": scores - unconditional,
    }


@torch.no_grad()
def prior_scores(
    model: LanguageModel, tokenizer: Tokenizer, answers: Sequence[Sequence[int]]
) -> Float[Tensor, "C"]:  # fmt: skip
    """log P(answer) of each answer by itself, after the token that stands for an empty prompt (`start_token`)."""
    return answer_scores(model, [[start_token(tokenizer)]], answers)[0]
