"""Which label does a model prefer for a text? The scores of all labels, and what calibration makes of them."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from minillm.decoder import Decoder
from minillm.prompting.calibration import CONTENT_FREE, calibrated
from minillm.prompting.kept import KeptPrompt
from minillm.prompting.measures import measured, prior_scores
from minillm.prompting.scoring import answer_scores, score_all
from minillm.prompting.template import Question
from minillm.shapes import Float
from minillm.tokenizer import Tokenizer


def neutral_questions(questions: Sequence[Question]) -> list[Question]:
    """The content-free questions to calibrate by: one set, or one after another for each question's own template."""
    templates = [question.template for question in questions]
    if all(template == templates[0] for template in templates):
        templates = templates[:1]
    return [Question(template, text) for template in templates for text in CONTENT_FREE]


@dataclass(frozen=True)
class Preferences:
    """log P(answer | prompt) of the questions and of the content-free ones, and log P(answer) of no prompt at all."""

    answers: Sequence[str]
    scores: Float[Tensor, "N C"]
    neutral: Float[Tensor, "_ _ C"]
    prior: Float[Tensor, "C"]
    tokens: int

    def before(self) -> dict[str, Float[Tensor, "N C"]]:
        """The scores under each measure, the highest of which is the answer."""
        return measured(self.scores, self.answers, self.prior)

    def after(self) -> dict[str, Float[Tensor, "N C"]]:
        """The same, calibrated under each measure by the content-free questions: log-probabilities."""
        neutral = measured(self.neutral, self.answers, self.prior)
        return {name: calibrated(scores, neutral[name]) for name, scores in self.before().items()}


def preferences(
    decoder: Decoder, tokenizer: Tokenizer, questions: Sequence[Question], neutral: Sequence[Question],
    answers: Sequence[str], name: str = "scoring",
) -> Preferences:  # fmt: skip
    """Score every answer to every question, with what all prompts share read once."""
    everything = [*questions, *neutral]
    template = questions[0].template
    ids = template.answers(tokenizer, [question.text for question in everything], answers)
    kept = KeptPrompt(decoder, [question.encode(tokenizer) for question in everything])
    found = score_all(
        lambda batch: answer_scores(kept.model, [kept.rests[index] for index in batch], ids),
        [len(rest) for rest in kept.rests],
        name,
    )
    by_template = found[len(questions) :].unflatten(0, (-1, len(CONTENT_FREE)))
    prior = prior_scores(decoder, tokenizer, ids).cpu()
    return Preferences(answers, found[: len(questions)], by_template, prior, kept.tokens)
