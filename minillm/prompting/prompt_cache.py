"""The prompt cache: the keys and values of the tokens that all prompts share are computed once.

A template's instruction and examples come first and attention is causal, so their keys and values do not depend on the
text that follows. Each row then processes only its own tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minillm.adapt.in_context import InContext
from minillm.decoder import Decoder
from minillm.generation import LanguageModel
from minillm.prompting.scoring import score_all
from minillm.shapes import Float


def common_start(rows: Sequence[list[int]]) -> int:
    """The length of the longest shared prefix that leaves each row at least one token.

    Prompts are tokenised whole and split afterwards, since token boundaries are not string boundaries: an empty line
    before `Review` is one token at the end of a string and two within it.
    """
    pairs = enumerate(zip(min(rows), max(rows), strict=False))
    shared = next((index for index, (first, last) in pairs if first != last), len(min(rows)))
    return min(shared, min(len(row) for row in rows) - 1)


@dataclass(frozen=True)
class CachedPrompt:
    """A model with the first `shared` tokens of some prompts in its cache, and the rest of each prompt.

    `tokens` is the number of tokens to process, without a start that was cached before.
    """

    model: LanguageModel
    shared: int
    rests: list[list[int]]
    tokens: int

    def score(self, answers: Sequence[Sequence[int]], name: str = "scoring") -> Float[Tensor, "N C"]:
        """log P of every answer after every prompt."""
        return score_all(self.model, self.rests, answers, name)


class PromptCache:
    """A decoder with the shared start of the last prompts in its cache, which later prompts may share too."""

    def __init__(self, decoder: Decoder):
        self.decoder, self.start = decoder.eval(), list[int]()
        self.model: LanguageModel = self.decoder

    def process(self, prompts: Sequence[list[int]]) -> CachedPrompt:
        """Uses the cached start if it is most of the prompts' shared prefix, else caches that prefix."""
        shared = common_start(prompts)
        known = shared >= len(self.start) > shared // 2 and prompts[0][: len(self.start)] == self.start
        if not known:
            self.start = prompts[0][:shared]
            start = torch.tensor([self.start], device=self.decoder.embed.weight.device)
            self.model = InContext(self.decoder, start) if shared else self.decoder
        rests = [prompt[len(self.start) :] for prompt in prompts]
        tokens = sum(map(len, rests)) + (0 if known else shared)
        return CachedPrompt(self.model, len(self.start), rests, tokens)
