"""Ways to choose among answers by their scores: four under the names of lm-eval (the Evaluation Harness), and channel.

A score is log P(answer | prompt), the sum over the answer's tokens. Long answers score low and common ones high,
whatever the question; three of the measures correct for this. Lengths do not count the space before the answer, which
in lm-eval is the `target_delimiter`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

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
    "channel": "log P(text | answer): the answer comes first, in the examples too (--channel)",
}
"""What each measure compares; the answer with the highest value is chosen."""


def measured(
    scores: Float[Tensor, "*N C"], answers: Sequence[str], unconditional: Float[Tensor, "C"]
) -> dict[str, Float[Tensor, "*N C"]]:
    """The scores under each measure, given those of `prior_scores`. Raises InputError for an empty answer."""
    words = [answer.removeprefix(" ") for answer in answers]
    if not all(words):
        raise InputError(f"answers must not be empty, got {list(answers)}: scores are divided by their length")
    characters, lengths = ([len(w) for w in words], [len(w.encode()) for w in words])
    return {
        "acc": scores,
        "acc_norm": scores / scores.new_tensor(characters),
        "acc_bytes": scores / scores.new_tensor(lengths),
        "acc_mutual_info": scores - unconditional,
    }


@torch.no_grad()
def prior_scores(model: LanguageModel, tokenizer: Tokenizer, answers: Sequence[Sequence[int]]) -> Float[Tensor, "C"]:
    """log P(answer) of each answer after an empty prompt."""
    return answer_scores(model, [tokenizer.prompt("")], answers)[0]
