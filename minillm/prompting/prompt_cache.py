"""What all prompts have in common is read once, and its keys and values are kept: (P + T) / T times less to read.

A template's instruction and examples stand first and the decoder is causal, so that what it makes of them does not
depend on the text behind them. An evaluation reads them once; each row only adds its own tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True)
class KeptPrompt:
    """A model that has read the start of some prompts, its `shared` first tokens, and what is left of each to read.

    `tokens` are those that are read, if each rest is read once; those of a start that was known already are none.
    """

    model: LanguageModel
    shared: int
    rests: list[list[int]]
    tokens: int

    def score(self, answers: Sequence[Sequence[int]], name: str = "scoring") -> Float[Tensor, "N C"]:
        """log P of every answer after every prompt."""
        lengths = [len(rest) for rest in self.rests]
        return score_all(
            lambda batch: answer_scores(self.model, [self.rests[index] for index in batch], answers), lengths, name
        )


class Reader:
    """A decoder that reads what prompts have in common once and keeps it, for them and for those that come after."""

    def __init__(self, decoder: Decoder):
        self.decoder, self.start = decoder.eval(), list[int]()
        self.model: LanguageModel = self.decoder

    def read(self, prompts: Sequence[list[int]]) -> KeptPrompt:
        """Behind the start that is kept, where it is most of what these prompts have in common, or else behind that."""
        shared = common_start(prompts)
        known = shared >= len(self.start) > shared // 2 and prompts[0][: len(self.start)] == self.start
        if not known:
            self.start = prompts[0][:shared]
            start = torch.tensor([self.start], device=self.decoder.embed.weight.device)
            self.model = InContext(self.decoder, start) if shared else self.decoder
        rests = [prompt[len(self.start) :] for prompt in prompts]
        tokens = sum(map(len, rests)) + (0 if known else shared)
        return KeptPrompt(self.model, len(self.start), rests, tokens)
