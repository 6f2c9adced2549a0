"""The scores of all labels after each text, before and after calibration."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from minillm.data.batches import length_buckets
from minillm.data.conversations import answered
from minillm.data.templates import BETWEEN, Question, Template
from minillm.prompting.calibration import CONTENT_FREE, calibrated
from minillm.prompting.measures import measured, prior_scores
from minillm.prompting.prompt_cache import PromptCache, common_start
from minillm.prompting.scoring import log_likelihoods
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

    `tokens` is the number of tokens processed, `channel` the `channel_scores` of both kinds of questions, if computed.
    """

    answers: Sequence[str]
    scores: Float[Tensor, "N C"]
    content_free: Float[Tensor, "_ _ C"]
    prior: Float[Tensor, "C"]
    tokens: int
    channel: tuple[Float[Tensor, "N C"], Float[Tensor, "_ _ C"]] | None = None

    def before(self) -> dict[str, Float[Tensor, "N C"]]:
        """The scores under each measure; the highest is the prediction."""
        found = measured(self.scores, self.answers, self.prior)
        return found if self.channel is None else found | {"channel": self.channel[0]}

    def after(self) -> dict[str, Float[Tensor, "N C"]]:
        """The log-probabilities under each measure, calibrated by the content-free questions."""
        content_free = measured(self.content_free, self.answers, self.prior)
        content_free |= {} if self.channel is None else {"channel": self.channel[1]}
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


def turned(question: Question, answer: str) -> tuple[str, str]:
    """The prompt with every answer before its text, up to this text, and the text, with the whitespace before it."""
    (before, _, after), shots = question.template.question.partition("{text}"), question.template.shots
    cue, end, parts = (after + question.template.cue).strip(), question.template.end, [question.template.instruction]
    for given, text in [*((shot.answer, shot.text) for shot in shots), (answer, "")]:
        parts.append(f"{cue}{given}{end}".rstrip() + f"\n{before}{text}")
    prompt = BETWEEN.join(filter(None, parts))
    return prompt.rstrip(), prompt[len(prompt.rstrip()) :] + question.text


@torch.no_grad()
def channel_scores(
    cache: PromptCache, tokenizer: Tokenizer, questions: Sequence[Question], answers: Sequence[str]
) -> Float[Tensor, "N C"]:
    """log P(text | answer) in nats (Min et al. 2022); of an empty text, the last token before it is scored."""
    rows, starts = [], []
    for prompt, text in (turned(*each) for each in product(questions, answers)):
        rows.append(tokenizer.prompt(prompt + text))
        starts.append(common_start([rows[-1], [*tokenizer.prompt(prompt), -1]]))
    cached = cache.process(rows)
    rests = [answered(row[cached.shared : start], row[start:]) for row, start in zip(rows, starts, strict=True)]
    lengths = [len(rest.ids) for rest in rests]
    batches = length_buckets(lengths, max(1, 512 // max(lengths)))  # every token of a text has logits
    found = torch.empty(len(rows), dtype=torch.float64)
    for batch in progress(batches, desc="scoring texts", unit="batch"):
        found[batch] = log_likelihoods(cached.model, [rests[n] for n in batch]).cpu().double()
    return found.unflatten(0, (-1, len(answers)))
