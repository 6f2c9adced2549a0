"""Questions put to a base in one template or several: what it prefers, what it says, and how often that is right."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor

from minillm.data.extraction import AnswerForm, answer_shares
from minillm.data.templates import Question
from minillm.errors import InputError
from minillm.lab.statistics import standard_error
from minillm.lab.world import Bench
from minillm.prompting.answering import Speech, concluded, self_consistent
from minillm.prompting.labelling import Preferences, neutral_questions, preferences
from minillm.prompting.prompt_cache import Reader
from minillm.prompting.scoring import accuracy

BRIEF = Speech(max_new_tokens=16, stop=("\n",))
"""An answer that is given at once."""


@dataclass(frozen=True)
class Manner:
    """What is wanted beside the labels' scores: free answers (`free`), and how many of them vote (`samples`)."""

    free: bool = False
    samples: int = 1
    temperature: float = 0.7
    max_new_tokens: int = 96
    seed: int = 0

    def __post_init__(self):
        if self.samples < 1 or self.max_new_tokens < 1:
            raise InputError(f"samples is {self.samples} and max_new_tokens {self.max_new_tokens}; both are 1 at least")
        if self.samples > 1 and self.temperature <= 0:
            raise InputError(f"the temperature is {self.temperature}; samples that vote need one above 0")


@dataclass(frozen=True)
class Asked:
    """The questions, with the chains of thought that the scores are behind, and what came of them.

    `said` are the greedy answers and `voted` the majority's, each whole, if they were wanted.
    """

    questions: Sequence[Question]
    preferences: Preferences
    said: Sequence[str] | None
    voted: Sequence[str] | None


def form_of(question: Question, answers: Sequence[str]) -> AnswerForm:
    template = question.template
    return AnswerForm.of(answers, template.conclusion if template.chain else template.cue)


def ask(bench: Bench, questions: Sequence[Question], answers: Sequence[str], manner: Manner) -> Asked:
    """Score the answers; with a chain of thought, behind the chain that the model writes first, the neutral ones too.

    A template with a chain is answered freely in any case: what is said is there.
    """
    neutral, template = neutral_questions(questions), questions[0].template
    speech = replace(Speech(manner.max_new_tokens) if template.chain else BRIEF, seed=manner.seed)
    reader, everything = Reader(bench.decoder), [*questions, *neutral]
    answer = partial(concluded, reader, bench.tokenizer)
    texts = voted = None
    if template.chain:
        texts = answer(everything, speech, "chains of thought")
        everything = [q._replace(said=q.template.conclude(text)) for q, text in zip(everything, texts, strict=True)]
    elif manner.free:
        texts = answer(questions, speech)
    if manner.samples > 1:
        freely, form = replace(speech, temperature=manner.temperature), form_of(questions[0], answers)
        voted = self_consistent(partial(answer, questions), freely, manner.samples, form)
    count = len(questions)
    scored = preferences(reader, bench.tokenizer, everything[:count], everything[count:], answers)
    return Asked(everything[:count], scored, None if texts is None else texts[:count], voted)


def figures(asked: Asked, labels: Tensor) -> dict[str, Any]:
    """Accuracies with their standard errors, by measure and before and after calibration, and of the free answers."""
    before, after = asked.preferences.before(), asked.preferences.after()
    form = form_of(asked.questions[0], asked.preferences.answers)
    expected = [asked.preferences.answers[int(label)] for label in labels]
    found: dict[str, Any] = {"measures": {}}
    for name in before:
        found["measures"][name] = {"before": _share(before[name], labels), "after": _share(after[name], labels)}
    for name, texts in (("free", asked.said), ("self_consistency", asked.voted)):
        if texts is not None:
            found[name] = answer_shares([form.read(text) for text in texts], expected)
            found[name]["standard_error"] = standard_error(found[name]["strict"], len(texts))
    return found


def _share(scores: Tensor, labels: Tensor) -> dict[str, float]:
    share = accuracy(scores, labels)
    return {"accuracy": share, "standard_error": standard_error(share, len(labels))}
