"""`minillm prompt --example NAME`: the lecture's four prompt examples, run on a real small model.

Wrong answers are shown too: a model of this size is often wrong.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from minillm.data.extraction import NUMBER, AnswerForm, Reading, same_answer
from minillm.data.templates import Question, Shot, Template
from minillm.lab.asking import BRIEF, AnswerOptions, Answers, ask
from minillm.lab.experiment import Experiment
from minillm.prompting.answering import GenerationSettings, concluded_answers
from minillm.prompting.prompt_cache import PromptCache

CHAIN = GenerationSettings(max_new_tokens=128, stop=("\n\n", "\nQ:"))


@dataclass(frozen=True)
class LecturePrompt:
    """A text, its prompt templates, and the right answer: a label, or a number in a free answer."""

    about: str
    text: str
    expected: str
    templates: tuple[Template, ...]
    labels: tuple[str, ...] | None = None


FUNNY = Template("Text: {text}\nFunny, not funny or slightly funny? This text is")
JOKES = (
    Shot("The bus to the station leaves at ten past eight.", " not funny"),
    Shot("My cat has opened a bank account, and I am the one who pays the fees.", " funny"),
    Shot("He looked for his glasses for an hour, and he had them on.", " slightly funny"),
)
COLOUR = Template("Thing: {text}\nColour:")
THINGS = (Shot("a ripe strawberry", " red"), Shot("a leaf of spinach", " green"))
NUMBERS = Template("Q: {text}\nA:", cue=" The answer (arabic numerals) is", end=".")
KOJIMA = replace(NUMBERS, chain=True, conclusion=" Therefore, the answer (arabic numerals) is")
COUNTED = (
    Shot(
        "Omar has 9 jars of honey. He sells 4 of them and fills 2 crates with 3 jars each. "
        "How many jars does Omar have now?",
        " 11",
        "Omar has 9 jars and sells 4, so 9 - 4 = 5 are left. 2 crates of 3 jars are 2 * 3 = 6 jars. 5 + 6 = 11.",
    ),
    Shot(
        "A shelf holds 12 cans. Mia takes half of them, and puts 1 back. How many cans are on the shelf?",
        " 7",
        "Half of 12 cans are 6, so 12 - 6 = 6 cans stay. One comes back, and 6 + 1 = 7.",
    ),
)

EXAMPLES = {
    "funny": LecturePrompt(
        "the label of a joke, zero-shot and few-shot (Brown et al. 2020)",
        "I told my computer that I needed a break, and it went to sleep.",
        "funny",
        (FUNNY, replace(FUNNY, shots=JOKES)),
        (" funny", " not funny", " slightly funny"),
    ),
    "juggler": LecturePrompt(
        "Kojima et al. 2022, figure 1: a direct answer, and a chain of thought in two stages",
        "A juggler can juggle 16 balls. Half of the balls are golf balls, and half of the golf balls are blue. "
        "How many blue golf balls are there?",
        "4",
        (NUMBERS, KOJIMA),
    ),
    "colour": LecturePrompt(
        "red or green? Only the examples define the task",
        "a fire engine",
        "red",
        (COLOUR, replace(COLOUR, shots=THINGS)),
        (" red", " green"),
    ),
    "cans": LecturePrompt(
        "Susan's cans: few-shot examples without and with chains of thought (Wei et al. 2022)",
        "Susan has 7 cans of soup. She buys 3 boxes with 4 cans in each, and gives 5 cans to her neighbour. "
        "How many cans does Susan have now?",
        "14",
        (replace(NUMBERS, shots=COUNTED), replace(KOJIMA, shots=COUNTED)),
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
            settings = replace(CHAIN if template.chain else BRIEF, seed=experiment.seed)
            cache = PromptCache(experiment.decoder)
            text = concluded_answers(cache, experiment.tokenizer, [question], settings)[0]
            form = AnswerForm(NUMBER, (template.conclusion if template.chain else template.cue).strip())
            yield LectureAnswer(asked, question, text, form.read(text), None)
