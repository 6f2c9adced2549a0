"""What all prompts have in common is processed once, and its keys and values are cached.

A template's instruction and examples come first and the decoder is causal, so their keys and values do not depend on
the text behind them. An evaluation computes them once; each row adds only its own tokens.
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
    """How many leading tokens all rows share, at least one token being left to each.

    Prompts are tokenised whole and split afterwards, since tokens do not end where strings do: an empty line before
    `Review` is one token at the end of a string and two within it.
    """
    first, last = min(rows), max(rows)
    shared = next(
        (index for index, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), len(first)
    )
    return min(shared, min(len(row) for row in rows) - 1)


@dataclass(frozen=True)
class CachedPrompt:
    """A model with the first `shared` tokens of some prompts in its cache, and the rest of each prompt.

    `tokens` counts what is processed if each rest is processed once; a start that was cached before costs nothing.
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


class PromptCache:
    """A decoder that caches what prompts have in common, for them and for those that come after."""

    def __init__(self, decoder: Decoder):
        self.decoder, self.start = decoder.eval(), list[int]()
        self.model: LanguageModel = self.decoder

    def process(self, prompts: Sequence[list[int]]) -> CachedPrompt:
        """Behind the cached start, where it is most of what these prompts have in common; else behind a new one."""
        shared = common_start(prompts)
        known = shared >= len(self.start) > shared // 2 and prompts[0][: len(self.start)] == self.start
        if not known:
            self.start = prompts[0][:shared]
            start = torch.tensor([self.start], device=self.decoder.embed.weight.device)
            self.model = InContext(self.decoder, start) if shared else self.decoder
        rests = [prompt[len(self.start) :] for prompt in prompts]
        tokens = sum(map(len, rests)) + (0 if known else shared)
        return CachedPrompt(self.model, len(self.start), rests, tokens)
