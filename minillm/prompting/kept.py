"""What all prompts have in common is read once, and its keys and values are kept: (P + T) / T times less to read.

A template's instruction and examples stand first and the decoder is causal, so that what it makes of them does not
depend on the text behind them. An evaluation reads them once; each row only adds its own tokens.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from minillm.adapt.in_context import InContext
from minillm.decoder import Decoder
from minillm.generation import LanguageModel
from minillm.prompting.scoring import answer_scores, score_all
from minillm.shapes import Float


def common_start(rows: Sequence[list[int]]) -> int:
    """How many leading tokens all rows share, at least one being left to each: what a prompt has in common.

    Prompts are tokenised whole and parted afterwards, for tokens do not end where strings do: a blank line before
    `Review` is one token at the end of a string and two within it.
    """
    first, last = min(rows), max(rows)
    shared = next(
        (index for index, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), len(first)
    )
    return min(shared, min(len(row) for row in rows) - 1)


class KeptPrompt:
    """The decoder, with the common start of some prompts read. `model` reads on from there, and `rests` are its rows.

    `tokens` counts what is read if each rest is read once.
    """

    model: LanguageModel

    def __init__(self, decoder: Decoder, prompts: Sequence[list[int]]):
        self.shared = common_start(prompts)
        self.rests = [prompt[self.shared :] for prompt in prompts]
        self.tokens = self.shared + sum(map(len, self.rests))
        start = torch.tensor([prompts[0][: self.shared]], device=decoder.embed.weight.device)
        self.model = InContext(decoder, start) if self.shared else decoder.eval()

    def score(self, answers: Sequence[Sequence[int]], name: str = "scoring") -> Float[Tensor, "N C"]:
        """log P of every answer after every prompt."""
        lengths = [len(rest) for rest in self.rests]
        return score_all(
            lambda batch: answer_scores(self.model, [self.rests[index] for index in batch], answers), lengths, name
        )
