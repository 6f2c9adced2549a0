"""The answers of a model to questions: the scores of the labels, generated answers, and their accuracy."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor

from minillm.data.extraction import AnswerForm, answer_shares
from minillm.data.templates import Question, Template
from minillm.errors import check_at_least, check_temperature
from minillm.lab.experiment import Experiment, judged
from minillm.lab.report import standard_error
from minillm.prompting.answering import CONCLUSION_TOKENS, GenerationSettings, concluded_answers, self_consistent
from minillm.prompting.calibration import CONTENT_FREE
from minillm.prompting.labelling import LabelScores, channel_scores, content_free_questions, label_scores
from minillm.prompting.lengths import Room, room
from minillm.prompting.prompt_cache import PromptCache

BRIEF = GenerationSettings(max_new_tokens=16, stop=("\n",))
"""For an answer without a chain of thought."""


@dataclass(kw_only=True)
class AnswerOptions:
    """Options of generated answers."""

    free: bool = False
    """Also generate free answers, and extract the label from them."""
    samples: int = 1
    """The number of sampled answers for the majority vote (self-consistency)."""
    temperature: float = 0.7
    """The sampling temperature for the majority vote."""
    channel: bool = False
    """Also score the text after each label, log P(text | label), with a forward pass for each label."""
    max_new_tokens: int = 96
    """The maximum number of tokens of a chain of thought."""

    def __post_init__(self):
        check_at_least(1, samples=self.samples, max_new_tokens=self.max_new_tokens)
        check_temperature(self.temperature, vote=self.samples > 1)


@dataclass(frozen=True)
class Answers:
    """The questions, each with its chain of thought, and the answers.

    `generated` holds the greedy answers and `majority` the most frequent samples; both are None if not requested.
    """

    questions: Sequence[Question]
    labels: LabelScores
    generated: Sequence[str] | None
    majority: Sequence[str] | None


def prompt_room(experiment: Experiment, template: Template, answers: Sequence[str], options: AnswerOptions) -> Room:
    """The room for a prompt before everything that may follow it: a label, a free answer, or a chain of thought."""
    tokenizer = experiment.tokenizer
    after = max(map(len, template.answers(tokenizer, (), answers))) - 1
    if template.chain:
        conclusion = len(tokenizer.encode(template.conclusion))
        after = options.max_new_tokens + conclusion + max(CONCLUSION_TOKENS, after)
    elif options.free or options.samples > 1:
        after = max(BRIEF.max_new_tokens, after)
    return room(experiment.decoder, after)


def answer_form(question: Question, answers: Sequence[str]) -> AnswerForm:
    template = question.template
    return AnswerForm.of(answers, template.conclusion if template.chain else template.cue)


def ask(
    experiment: Experiment, questions: Sequence[Question], answers: Sequence[str], options: AnswerOptions
) -> Answers:  # fmt: skip
    """Score the answers, after a generated chain of thought if the template has one.

    The content-free questions get chains of their own. With a chain, free answers are always generated.
    """
    content_free, template = content_free_questions(questions), questions[0].template
    settings = replace(GenerationSettings(options.max_new_tokens) if template.chain else BRIEF, seed=experiment.seed)
    cache, everything = PromptCache(experiment.decoder), [*questions, *content_free]
    answer = partial(concluded_answers, cache, experiment.tokenizer)
    texts = majority = None
    if template.chain:
        texts = answer(everything, settings, "chains of thought")
        everything = [
            q._replace(generated=q.template.conclude(text)) for q, text in zip(everything, texts, strict=True)
        ]  # fmt: skip
    elif options.free:
        texts = answer(questions, settings)
    if options.samples > 1:
        sampling, form = replace(settings, temperature=options.temperature), answer_form(questions[0], answers)
        majority = self_consistent(partial(answer, questions), sampling, options.samples, form)
    count = len(questions)
    scores = label_scores(cache, experiment.tokenizer, everything[:count], everything[count:], answers)
    if options.channel:
        given, free = (channel_scores(cache, experiment.tokenizer, some, answers) for some in (questions, content_free))
        scores = replace(scores, channel=(given, free.unflatten(0, (-1, len(CONTENT_FREE)))))
    return Answers(everything[:count], scores, None if texts is None else texts[:count], majority)


def accuracies(answers: Answers, labels: Tensor) -> dict[str, Any]:
    """Accuracies with standard errors: of each measure before and after calibration, and of free answers."""
    before, after = answers.labels.before(), answers.labels.after()
    form = answer_form(answers.questions[0], answers.labels.answers)
    expected = [answers.labels.answers[int(label)] for label in labels]
    both = {name: {"before": judged(before[name], labels), "after": judged(after[name], labels)} for name in before}
    found: dict[str, Any] = {"measures": both, "labels": labels.tolist()}
    for name, texts in (("free", answers.generated), ("self_consistency", answers.majority)):
        if texts is not None:
            found[name] = answer_shares([form.read(text) for text in texts], expected)
            found[name]["standard_error"] = standard_error(found[name]["strict"], len(texts))
    return found
