"""`minillm prompt --example NAME`: the lecture's own example prompts, as they stand, on a real small model.

Their source: the slides of the lecture "Large Language Models (Model Adaptation)", with the answers of larger models.
Wrong answers are shown too: a model of this size is often wrong.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from minillm.data.extraction import NUMBER, AnswerForm, Reading, same_answer
from minillm.data.templates import Question, Shot, Template
from minillm.lab.asking import AnswerOptions, Answers, ask
from minillm.lab.experiment import Experiment
from minillm.prompting.answering import GenerationSettings, generated_answers
from minillm.prompting.prompt_cache import PromptCache

LONG = GenerationSettings(max_new_tokens=128, stop=("\nQ:",))
FORM = AnswerForm(NUMBER, "answer is")


@dataclass(frozen=True)
class LecturePrompt:
    """A text, its prompt templates, and the right answer: a label, or a number in a free answer."""

    about: str
    text: str
    expected: str
    templates: tuple[Template, ...]
    labels: tuple[str, ...] | None = None


BALLS = (
    "A juggler can juggle 16 balls, half of which are golf balls, half of them are green. "
    "How many green balls does she have?"
)
STEPS = (
    "{text}\nLets think step by step and answer how many golf balls there are. "
    "Then answer how many of the golf balls are green."
)
# The slide asks for a second text, "This is nice", in the same prompt.
COLOURS = """Complete this with a single answer (red, green):
These are the examples:
This is great → red
This is good → red
This is awful → green
Complete this:
{text} →"""
DIRECT = " 4+x, where x is the number of green balls that are not golf balls."
CHAIN = (
    " Let's think step by step: There are 8 golf balls. 4 golf balls are green. "
    "She has 4 green balls plus how many other balls are green"
)

EXAMPLES = {
    "funny": LecturePrompt(
        "a label, zero-shot (ChatGPT 3.5 in the lecture: not funny)",
        "Tom went to the pub.",
        "not funny",
        (
            Template(
                "Classify the following text into the labels [funny, not funny, slightly funny]. "
                "Only respond with the label:\nText: {text}"
            ),
        ),
        (" funny", " not funny", " slightly funny"),
    ),
    "juggler": LecturePrompt(
        "the juggler, zero-shot and with a chain of thought (Llama 2 70B in the lecture: 8, with the chain 4 + x)",
        BALLS,
        "4",
        (Template("{text}"), Template(STEPS)),
    ),
    "colour": LecturePrompt(
        "red or green? Few-shot: only the examples define the task (ChatGPT 3.5 in the lecture: green)",
        "This is horrible",
        "green",
        (Template(COLOURS),),
        (" red", " green"),
    ),
    "cans": LecturePrompt(
        "Susan's cans, few-shot without and with a chain of thought (ChatGPT 3.5 in the lecture: 6, with the chain 3)",
        "Susan buys bottles and cans of soda. She has 12 bottles and cans. Half of them are cans. "
        "Half of them contain lemonade. How many lemonades does she have?",
        "3",
        tuple(Template("Q: {text}\nA:", shots=(Shot(BALLS, answer),)) for answer in (DIRECT, CHAIN)),
    ),
}


@dataclass(frozen=True)
class LectureAnswer:
    """The answer to one template: generated, or the label with the highest score (`labels`)."""

    example: LecturePrompt
    question: Question
    text: str
    reading: Reading
    labels: Answers | None

    @property
    def answer(self) -> str | None:
        return self.reading.strict or self.reading.flexible

    @property
    def right(self) -> bool:
        return same_answer(self.answer, self.example.expected)

    def described(self) -> dict[str, Any]:
        return {
            "way": self.question.template.name,
            "prompt": self.question.template.preview(self.question.text),
            "said": self.text,
            **self.reading._asdict(),
            "expected": self.example.expected,
            "right": self.right,
        }


def lecture_answers(experiment: Experiment, asked: LecturePrompt, *, chat: bool = False) -> Iterator[LectureAnswer]:
    """The answers to the templates of an example."""
    options = AnswerOptions()
    for template in asked.templates:
        question = Question(replace(template, chat=chat), asked.text)
        if asked.labels is not None:
            found = ask(experiment, [question], asked.labels, options)
            best = asked.labels[int(found.labels.scores[0].argmax())]
            yield LectureAnswer(asked, question, best, Reading(best.strip(), best.strip()), found)
        else:
            settings, cache = replace(LONG, seed=experiment.seed), PromptCache(experiment.decoder)
            text = generated_answers(cache, experiment.tokenizer, [question], settings)[0]
            yield LectureAnswer(asked, question, text, FORM.read(text), None)
