"""The scores of all labels after each text, before and after calibration."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minillm.data.templates import Question, Template
from minillm.prompting.calibration import CONTENT_FREE, calibrated
from minillm.prompting.measures import measured, prior_scores
from minillm.prompting.prompt_cache import PromptCache
from minillm.runtime.progress import progress
from minillm.shapes import Float
from minillm.tokenizer import Tokenizer


def content_free_questions(questions: Sequence[Question]) -> list[Question]:
    """The questions that calibrate these: one set, or a set for each question if their templates differ."""
    templates = [question.template for question in questions]
    if all(template == templates[0] for template in templates):
        templates = templates[:1]
    return [Question(template, text) for template in templates for text in CONTENT_FREE]


@dataclass(frozen=True)
class LabelScores:
    """log P(answer | prompt) of the questions and of the content-free ones, and log P(answer) without a prompt.

    `tokens` is the number of tokens processed.
    """

    answers: Sequence[str]
    scores: Float[Tensor, "N C"]
    content_free: Float[Tensor, "_ _ C"]
    prior: Float[Tensor, "C"]
    tokens: int

    def before(self) -> dict[str, Float[Tensor, "N C"]]:
        """The scores under each measure; the highest is the prediction."""
        return measured(self.scores, self.answers, self.prior)

    def after(self) -> dict[str, Float[Tensor, "N C"]]:
        """The log-probabilities under each measure, calibrated by the content-free questions."""
        content_free = measured(self.content_free, self.answers, self.prior)
        return {name: calibrated(scores, content_free[name]) for name, scores in self.before().items()}


def label_scores(
    cache: PromptCache, tokenizer: Tokenizer, questions: Sequence[Question], content_free: Sequence[Question],
    answers: Sequence[str],
) -> LabelScores:  # fmt: skip
    """Score every answer to every question; the shared prefix of a template's prompts is processed once."""
    everything = [*questions, *content_free]
    places: dict[Template, list[int]] = {}
    for place, question in enumerate(everything):
        places.setdefault(question.template, []).append(place)
    found, tokens, ids = [], 0, []
    for template, group in progress(places.items(), desc="scoring", unit="template"):
        some = [everything[place] for place in group]
        ids = template.answers(tokenizer, [question.text for question in some], answers)
        cached = cache.process([question.encode(tokenizer) for question in some])
        found.append(cached.score(ids))
        tokens += cached.tokens
    order = torch.tensor([place for group in places.values() for place in group])
    scores = torch.cat(found)[order.argsort()]
    by_template = scores[len(questions) :].unflatten(0, (-1, len(CONTENT_FREE)))
    prior = prior_scores(cache.decoder, tokenizer, ids).cpu()
    return LabelScores(answers, scores[: len(questions)], by_template, prior, tokens)
